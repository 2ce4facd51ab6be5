"""Labelling and inspecting as a user meets them: results on stdout, the story on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import moola_features as mf
from tests.markets import tree
from tests.train.command_line import Moola, Outcome
from tests.train.labelled import contained

THREE = "consolidation,retracement,none"


def refused(done: Outcome, code: int, *parts: str) -> None:
    """Check that all it said is one line that names the thing and the remedy."""
    assert (done.code, done.out) == (code, "")
    (line,) = done.err.strip().splitlines()
    for part in parts:
        assert part in line, line


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sample_bars: mf.Bars) -> Path:
    return mf.build(sample_bars, tmp_path_factory.mktemp("cli") / "sample.zarr").path


def cells(out: str, name: str) -> list[str]:
    (line,) = (line for line in out.splitlines() if line.strip().startswith(name))
    return line.strip().removeprefix(name).split()


# --- label -----------------------------------------------------------------------------------


def test_label_counts_everything(moola: Moola, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    done = moola("label", store, "-o", path)
    assert done.code == 0
    kept = pl.read_parquet(path)
    sizes = dict(kept["label"].value_counts().iter_rows())
    windows = 0
    for name in ("consolidation", "retracement", "other", "none", "ambiguous"):
        count, *_, written = cells(done.out, name)
        assert int(written) == sizes.get(name, 0)
        windows += int(count)
    for cause in ("a gap over 10 minutes inside", "spanning over 180 minutes", "fewer than 10"):
        (line,) = (line for line in done.out.splitlines() if f"skipped: {cause}" in line)
        windows += int(line.split()[-4])
    assert cells(done.out, "all") == [str(windows), "100.0", "%", str(len(kept))]
    assert f"{path}: {len(kept)} windows" in done.out
    assert "windows/s" in done.err
    assert "windows/s" not in done.out


def test_label_as_json(moola: Moola, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    done = moola(
        "label", store, "-o", path, "--stride", 7, "--from", "2020-01-07", "--to", "2020-01-20",
        "--keep", "none, other", "--max-gap-minutes", 100, "--max-span-minutes", 150, "--json",
    )  # fmt: skip
    found = json.loads(done.out)
    table = pl.read_parquet(path)
    assert found["path"] == str(path)
    assert found["kept"] == {name: found["labels"][name] for name in ("other", "none")}
    assert sum(found["kept"].values()) == len(table)
    assert 0 < found["skipped"]["gap"] < found["skipped"]["span"]  # of weekends, of every day
    assert found["num_windows"] == sum(found["labels"].values()) + sum(found["skipped"].values())
    assert str(table["start_time"].min())[:10] == "2020-01-07"
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "code", "parts"),
    [
        (("--keep", "rally"), 2, ("keep names 'rally'", "ambiguous")),
        (("--keep", "none,none"), 2, ("--keep is 'none,none'", "give names that differ")),
        (("--from", "noon"), 2, ("--from is 'noon'", "give a time such as")),
        (("--from", "2031-01-01"), 1, ("no valid window of 105 bars there", "another period")),
        (("--stride", 0), 2, ("stride is 0", "from 1 to")),
        (("--max-gap-minutes", 0), 2, ("max_gap_minutes is 0", "0.001")),
        (("--stride", 10**20), 2, ("stride is 100000000000000000000", "from 1 to")),
        (("--max-span-minutes", 9), 1, ("is labelled consolidation or retracement", "keep more")),
    ],
)  # fmt: skip
def test_label_refuses_in_one_line(
    moola: Moola, store: Path, tmp_path: Path, options: tuple[object, ...], code: int,
    parts: tuple[str, ...],
) -> None:  # fmt: skip
    done = moola("label", store, "-o", tmp_path / "labels.parquet", *options, "--json")
    refused(done, code, "moola-train: ", *parts)
    assert not list(tmp_path.iterdir())


def test_label_says_where_it_cannot_write(moola: Moola, store: Path, tmp_path: Path) -> None:
    done = moola("label", store, "-o", tmp_path / "no" / "labels.parquet", "--json")
    refused(done, 1, "there is no folder")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--stride", 0), 2, "stride is 0"), (("--keep", "foo"), 2, "keep names 'foo'"),
        (("--keep", "none,none"), 2, "give names that differ"), (("--from", "noon"), 2, "'noon'"),
        (("--from", "2031-01-01"), 1, "no valid window"), (("-o", "no/x.parquet"), 1, "no folder"),
    ],
)  # fmt: skip
def test_label_draws_no_bar_for_what_it_refuses(
    moola: Moola, store: Path, tmp_path: Path, options: tuple[object, ...], code: int, words: str
) -> None:
    refused(moola("label", store, "-o", tmp_path / "labels.parquet", *options), code, words)


def test_label_draws_a_bar_for_what_it_does(moola: Moola, store: Path, tmp_path: Path) -> None:
    assert "labelling" in moola("label", store, "-o", tmp_path / "labels.parquet").err


def test_label_replaces_only_what_it_wrote(moola: Moola, store: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "labels.parquet", tmp_path / "link.pq"
    link.symlink_to(path.name)
    assert moola("label", store, "-o", path, "--json").code == 0
    first = path.read_bytes()
    assert moola("label", store, "-o", link, "--json", "--stride", 26).code == 0
    assert link.is_symlink()
    assert path.read_bytes() != first
    table = pl.read_parquet(path)
    for number, other in enumerate(
        (
            table.with_columns(source=pl.Series(["human", *table["source"][1:]])),
            table.with_columns(source=pl.lit(None, pl.String)),
            table.with_columns(reviewed_at=pl.lit(None, pl.Datetime("ns", "UTC"))),
            pl.DataFrame({"time": [1], "open": [1.0]}),
        )
    ):
        kept = tmp_path / f"{number}.parquet"
        other.write_parquet(kept)
        before = kept.read_bytes()
        refused(
            moola("label", store, "-o", kept), 2,
            f"{kept} was not written by label; choose another output",
        )  # fmt: skip
        assert kept.read_bytes() == before
    (tmp_path / "text.parquet").write_text("mine")
    (tmp_path / "folder.parquet").mkdir()
    for name in ("text.parquet", "folder.parquet"):
        refused(moola("label", store, "-o", tmp_path / name), 2, name, "not written by label")
    assert (tmp_path / "text.parquet").read_text() == "mine"


def test_label_writes_parquet_and_says_so(moola: Moola, store: Path, tmp_path: Path) -> None:
    refused(moola("label", store, "-o", tmp_path / "z.csv"), 2, "z.csv'; give a name that ends in")
    inside = moola("label", store, "-o", store / "labels.parquet")
    refused(inside, 2, "labels.parquet', inside the store", "choose another folder")
    assert not list(tmp_path.iterdir())
    assert not (store / "labels.parquet").exists()


# --- split -----------------------------------------------------------------------------------


def test_split_writes_over_nothing_that_it_reads(
    moola: Moola, store: Path, three: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.json"  # what a file holds is told by its first bytes
    labels.write_bytes(three.read_bytes())
    before = tree(store)
    (tmp_path / "link.json").symlink_to(labels)
    (tmp_path / "second.json").hardlink_to(labels)
    (tmp_path / "door").symlink_to(store)
    given = ("split", "--labels", labels, "--store", store, "--classes", THREE)
    for name in ("labels.json", "link.json", "second.json"):
        done = moola(*given, "-o", tmp_path / name)
        refused(done, 2, f"{name}', which is read as the labels; choose another name")
    for inside in (store / "zarr.json", tmp_path / "door" / "zarr.json"):
        refused(moola(*given, "-o", inside), 2, "zarr.json', inside the store", "another folder")
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(three.read_bytes())
    done = moola("split", "--labels", copy, "--store", store, "--classes", THREE, "-o", copy)
    refused(done, 2, "copy.parquet'; give a name that ends in .json")
    assert copy.read_bytes() == labels.read_bytes() == three.read_bytes()
    assert tree(store) == before
    for _ in range(2):
        assert moola(*given, "-o", tmp_path / "split.json").code == 0


def test_split_refuses_a_gap_of_ages(
    moola: Moola, store: Path, three: Path, tmp_path: Path
) -> None:
    given = ("split", "--labels", three, "--store", store, "--classes", THREE)
    for option, value in (("--embargo-bars", 99999999999999999999), ("--purge-bars", 2**63 - 999)):
        done = moola(*given, "-o", tmp_path / "split.json", option, value)
        refused(done, 1, f"{option[2:].replace('-', '_')} is {value}; it must be a whole number")


# --- inspect ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from moola_train.labelling import label_store

    path = tmp_path_factory.mktemp("three") / "labels.parquet"
    label_store(mf.open_store(store), path, keep=tuple(THREE.split(",")))
    return path


def test_inspect_counts_what_labels_hold(moola: Moola, store: Path, three: Path) -> None:
    done = moola("inspect", three, "--store", store, "--classes", THREE)
    table = pl.read_parquet(three)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{three}\n")
    assert cells(done.out, "windows") == [f"{len(table)},", "anchored", "in", "a", "store"]
    for name, size in table["label"].value_counts().iter_rows():
        assert cells(done.out, name)[0] == f"{size},"
    expanding = table.drop_nulls("expansion_start")
    assert cells(done.out, "expansions") == [str(len(expanding))]
    least, greatest = expanding["expansion_start"].min(), expanding["expansion_start"].max()
    assert cells(done.out, "their start")[:3] == [str(least), "to", f"{greatest},"]
    assert cells(done.out, "overlapping")[1:] == ["windows", "share", "a", "bar", "with", "another"]
    assert cells(done.out, "first bars")[1] == "to"


def test_inspect_as_json(moola: Moola, three: Path, tmp_path: Path) -> None:
    found = json.loads(moola("inspect", three, "--classes", THREE, "--json").out)
    assert found["labels"] == str(three)
    assert list(found["class_counts"]) == THREE.split(",")
    assert found["num_overlapping"] is None
    assert found["num_windows"] == found["num_expansions"] + found["class_counts"]["none"]
    contained(4).write_parquet(tmp_path / "own.parquet")
    done = moola("inspect", tmp_path / "own.parquet")
    assert cells(done.out, "windows")[1:] == ["holding", "their", "own", "prices"]
    assert cells(done.out, "overlapping") == ["not", "known", "without", "times"]
    assert "first bars" not in done.out


def test_inspect_names_a_defect(moola: Moola, three: Path, tmp_path: Path) -> None:
    refused(
        moola("inspect", three),
        1,
        "labels.parquet, row ",
        "label is 'none'",
        "the classes are",
        "--classes",
    )
    done = moola("inspect", three, "--classes", "a,,b")
    refused(done, 2, "--classes is 'a,,b'", "give names")
    refused(moola("inspect", tmp_path / "x.parquet"), 1, "x.parquet", "no such file")
    table = pl.read_parquet(three)
    table.with_columns(window_id=pl.lit(b"\xff\xfe")).write_parquet(tmp_path / "bin.parquet")
    done = moola("inspect", tmp_path / "bin.parquet")
    refused(done, 1, "row 0: window_id is b'\\xff\\xfe'; its type is Binary, give text")
    table.with_columns(label=pl.concat_list("label", "label")).write_parquet(tmp_path / "l.parquet")
    refused(moola("inspect", tmp_path / "l.parquet"), 1, "row 0: label is ['", "give text")


def test_inspect_of_labels_without_a_span(moola: Moola, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    pl.DataFrame(
        {
            "window_id": ["a", "b"], "label": ["none", None], "start_time": ["2020-01-01"] * 2,
            "expansion_start": [None, None], "expansion_end": [None, None],
        }
    ).write_csv(path)  # fmt: skip
    done = moola("inspect", path, "--classes", THREE)
    assert cells(done.out, "their length") == cells(done.out, "their start") == ["-"]
    assert cells(done.out, "unlabelled") == cells(done.out, "duplicates") == ["1"]
    assert cells(done.out, "overlapping") == ["not", "known;", "give", "--store"]


# --- the commands behind them ----------------------------------------------------------------


def test_the_classes_go_through_to_training(
    moola: Moola, store: Path, three: Path, tmp_path: Path
) -> None:
    cut, run = tmp_path / "split.json", tmp_path / "run"
    split = ("split", "--labels", three, "--store", store, "-o", cut)
    refused(moola(*split), 1, "label is 'none'", "--classes")
    assert moola(*split, "--classes", THREE).code == 0
    pretrain = (
        "pretrain", store, "-o", tmp_path / "encoder.safetensors", "--labels", three,
        "--split", cut, "--run-folder", run, "--preset", "jade-compact", "--device", "cpu",
        "--stride", 999, "--epochs", 1, "--set", "model.hidden=4",
    )  # fmt: skip
    assert "label is 'none'" in moola(*pretrain).err
    assert moola(*pretrain, "--classes", THREE).code == 0
    assert json.loads((run / "data.json").read_text())["labels_sha256"]
