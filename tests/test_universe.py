"""Many instruments at once: each comes out as it would alone, and none stops the others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import moola_features as mf
from moola_features.building.outcomes import Outcome
from moola_features.errors import (
    BarsError,
    BarsNotFoundError,
    ConfigError,
    OutputError,
    StoreError,
)
from moola_features.files import replaced_folder
from moola_features.store import writer as store_writer
from moola_features.universe import runner
from moola_features.universe.inputs import Member, files_of, names_files
from moola_features.universe.tasks import Work, build_member
from tests.markets import (
    CHUNK,
    assert_store_holds,
    environment,
    frame,
    names_in,
    refused,
    run_python,
    seen,
    tree,
    walk,
    write,
)

CONFIG = mf.FeatureConfig()
THREE = {"BTC/USD": 300, "ETHUSD": 411, "ß 1": 150}
FILES = {"BTC": 300, "ETH": 411, "NQ": 150}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a file for each of three instruments."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, (symbol, num_bars) in enumerate(FILES.items()):
        write(walk(num_bars, seed=seed), folder / f"{symbol}.parquet")
    return folder


def statuses(report: mf.BuildReport) -> dict[str, str]:
    return {one.symbol: one.status for one in report.outcomes}


def details(report: mf.BuildReport) -> dict[str, str]:
    return {one.symbol: one.detail for one in report.outcomes if one.detail}


def inodes(folder: Path) -> dict[str, int]:
    return {str(x.relative_to(folder)): x.stat().st_ino for x in folder.rglob("*") if x.is_file()}


class TestInputs:
    @pytest.mark.parametrize("form", ["folder", "pattern", "files", "text"])
    def test_named_by_their_files(self, form, data, tmp_path):
        source: Any = {
            "folder": data,
            "pattern": f"{data}/*.parquet",
            "files": [data / f"{symbol}.parquet" for symbol in reversed(FILES)],
            "text": [str(data)],
        }[form]
        (data / "notes.md").write_text("no bars\n")
        report = mf.build(source, tmp_path / "u.zarr")
        universe = mf.open_store(tmp_path / "u.zarr")
        assert list(universe) == list(FILES)
        assert [x.symbol for x in report.instruments] == list(FILES)
        for seed, (symbol, num_bars) in enumerate(FILES.items()):
            assert_store_holds(universe[symbol], walk(num_bars, seed=seed), CONFIG)
            assert universe[symbol].attributes["symbol"] == symbol
            assert universe[symbol].attributes["input"]["source"] == f"{symbol}.parquet"
        assert names_in(tmp_path) == ["data", "u.zarr"]

    def test_suffixes(self, tmp_path):
        for name in ("BRK.B.csv.gz", "a.parquet", "b.txt.zst", "c.ipc", ".d.parquet", "e.py", "f"):
            (tmp_path / name).write_bytes(b"")
        found = {member.symbol: member.name for member in files_of(tmp_path).members}
        assert found == {
            "BRK.B": "BRK.B.csv.gz", "a": "a.parquet", "b": "b.txt.zst", "c": "c.ipc",
        }  # fmt: skip

    def test_a_file_whose_name_is_a_pattern(self, tmp_path):
        path = write(walk(200), tmp_path / "x[1].parquet")
        assert not names_files(str(path))
        assert not names_files([1, 2])
        assert not names_files([])
        assert names_files([path])
        mf.build(path, tmp_path / "x.zarr")
        assert_store_holds(mf.open_store(tmp_path / "x.zarr"), walk(200), CONFIG)

    def test_nothing_there(self, data, tmp_path):
        message = refused(BarsNotFoundError, f"{data}/*.csv", tmp_path / "u.zarr")
        assert message == f"{data}/*.csv: no file has a name like this; give another pattern"
        (tmp_path / "empty").mkdir()
        message = refused(BarsNotFoundError, tmp_path / "empty", tmp_path / "u.zarr")
        assert message.startswith(f"{tmp_path}/empty: no file in this folder ends in one of .parq")
        assert names_in(tmp_path) == ["data", "empty"]

    def test_a_folder_that_may_not_be_read(self, data, tmp_path, monkeypatch):
        def refuse(_: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)  # permissions themselves do not stop root
        message = refused(BarsNotFoundError, data, tmp_path / "u.zarr")
        assert message == (
            f"{data} cannot be listed: permission denied; name a folder that you may read"
        )

    def test_two_of_one_name(self, data, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(data, other)
        message = refused(BarsError, [data, other], tmp_path / "u.zarr")
        assert message == (
            f"{data}/BTC.parquet and {other}/BTC.parquet would both be instrument 'BTC'; rename "
            "one, or build them into universes of their own"
        )
        # The same file twice is no contradiction.
        assert len(files_of([data, str(data)]).members) == 3

    def test_a_file_of_several_symbols_among_others(self, data, tmp_path):
        both = pl.concat([frame(walk(200), "A"), frame(walk(200), "B")])
        both.write_parquet(data / "both.parquet")
        report = mf.build(data, tmp_path / "u.zarr")
        assert details(report) == {
            "both": f"{data}/both.parquet: holds 2 symbols; build this file alone, or write each "
            "symbol into a file of its own"
        }
        assert statuses(report)["BTC"] == "built"


class TestBad:
    def test_reported_and_left_out(self, data, tmp_path):
        (data / "JUNK.parquet").write_bytes(b"this is not Parquet")
        write(walk(104), data / "SHORT.parquet")
        calls: list[tuple[int, int | None]] = []
        report = mf.build(
            [data, data / "GONE.parquet"], tmp_path / "u.zarr",
            progress=lambda done, total: calls.append((done, total)),
        )  # fmt: skip
        assert Counter(statuses(report).values()) == {"built": 3, "failed": 3}
        told = details(report)
        assert told["GONE"].startswith(f"{data}/GONE.parquet: no such file; give the path of")
        assert told["JUNK"].startswith(f"{data}/JUNK.parquet: is not Parquet, it begins with")
        assert told["SHORT"].startswith("SHORT.parquet [SHORT]: 104 bars, fewer than one window")
        assert list(mf.open_store(tmp_path / "u.zarr")) == list(FILES)
        assert calls == [(n, 6) for n in range(1, 7)]
        assert json.loads(json.dumps(report.to_dict()))["outcomes"][2]["status"] == "failed"
        assert names_in(tmp_path / "u.zarr") == ["BTC", "ETH", "NQ", "zarr.json"]

    def test_all_of_them(self, data, tmp_path):
        for symbol in FILES:
            (data / f"{symbol}.parquet").write_bytes(b"junk")
        message = refused(BarsError, data, tmp_path / "u.zarr")
        assert message.startswith("none of 3 instruments can be built; the first: ")
        assert names_in(tmp_path) == ["data"]

    def test_an_earlier_store_stays(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = tree(tmp_path / "u.zarr")
        (data / "ETH.parquet").write_bytes(b"junk")
        report = mf.build(data, tmp_path / "u.zarr")
        assert statuses(report) == {"BTC": "unchanged", "ETH": "failed", "NQ": "unchanged"}
        assert tree(tmp_path / "u.zarr") == before

    @pytest.mark.parametrize("form", ["files", "file"])
    def test_a_name_that_no_folder_can_have(self, form, tmp_path):
        longest, too_long = 27 * "金" + "ab", 27 * "金" + "abc"
        series = {longest: walk(200), too_long: walk(300), "B": walk(150)}
        (tmp_path / "data").mkdir()
        if form == "files":
            for symbol, bars in series.items():
                write(bars, tmp_path / "data" / f"{symbol}.parquet")
        else:
            table = pl.concat([frame(bars, symbol) for symbol, bars in series.items()])
            table.write_parquet(tmp_path / "data" / "all.parquet")
        source = tmp_path / "data" if form == "files" else tmp_path / "data" / "all.parquet"
        calls: list[tuple[int, int | None]] = []
        report = mf.build(
            source, tmp_path / "u.zarr", progress=lambda done, total: calls.append((done, total))
        )
        assert statuses(report) == {"B": "built", longest: "built", too_long: "failed"}
        assert details(report)[too_long] == (
            f"symbol '{too_long}' makes a folder's name of 246 bytes, percent-quoted; give it a "
            "shorter one, of 245 at most"
        )
        assert calls == [(n, 3) for n in range(1, 4)]
        assert_store_holds(mf.open_store(tmp_path / "u.zarr")[longest], walk(200), CONFIG)
        assert statuses(mf.build(source, tmp_path / "u.zarr"))[longest] == "unchanged"

    def test_one_symbol_of_a_file(self, tmp_path):
        tables = [frame(walk(n, seed=n), symbol) for symbol, n in THREE.items()]
        table = pl.concat(tables).sort("time", "symbol")
        bad = (pl.col("symbol") == "ETHUSD") & (pl.int_range(pl.len()).over("symbol") == 400)
        table = table.with_columns(high=pl.when(bad).then(-1.0).otherwise("high"))
        row = table.select(bad.arg_max()).item()
        table.write_parquet(tmp_path / "many.parquet")
        report = mf.build(tmp_path / "many.parquet", tmp_path / "u.zarr")
        assert statuses(report) == {"BTC/USD": "built", "ETHUSD": "failed", "ß 1": "built"}
        assert f"[ETHUSD]: row {row} (" in details(report)["ETHUSD"]
        universe = mf.open_store(tmp_path / "u.zarr")
        for symbol in ("BTC/USD", "ß 1"):
            n = THREE[symbol]
            assert_store_holds(universe[symbol], walk(n, seed=n), CONFIG)
        dropped = mf.build(
            tmp_path / "many.parquet", tmp_path / "v.zarr", on_bad_bars="drop"
        ).instruments  # fmt: skip
        assert [one.dropped["total"] for one in dropped] == [0, 1, 0]


class TestAgain:
    def test_nothing_changed(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = inodes(tmp_path / "u.zarr")
        for path in data.iterdir():  # newer files of the same content
            path.write_bytes(path.read_bytes())
        report = mf.build(data, tmp_path / "u.zarr")
        assert report.up_to_date
        assert set(statuses(report).values()) == {"unchanged"}
        assert inodes(tmp_path / "u.zarr") == before

    def test_only_what_changed(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = inodes(tmp_path / "u.zarr")
        opened = mf.open_store(tmp_path / "u.zarr")["ETH"]
        write(walk(500, seed=9), data / "ETH.parquet")
        write(walk(170, seed=10), data / "ADA.parquet")
        report = mf.build(data, tmp_path / "u.zarr")
        assert statuses(report) == {
            "ADA": "built", "BTC": "unchanged", "ETH": "built", "NQ": "unchanged",
        }  # fmt: skip
        after = inodes(tmp_path / "u.zarr")
        kept = {name for name in before if before[name] == after[name]}
        assert kept == {name for name in before if name.startswith(("BTC/", "NQ/"))}
        mf.build(data, tmp_path / "v.zarr")
        assert tree(tmp_path / "u.zarr") == tree(tmp_path / "v.zarr")
        # A reader who had it open goes on with what it opened.
        assert_store_holds(opened, walk(411, seed=1), CONFIG)

    def test_an_input_that_is_gone(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        (data / "ETH.parquet").unlink()
        before = inodes(tmp_path / "u.zarr")
        report = mf.build(data, tmp_path / "u.zarr")
        assert report.up_to_date
        assert statuses(report) == {"BTC": "unchanged", "ETH": "kept", "NQ": "unchanged"}
        assert inodes(tmp_path / "u.zarr") == before
        report = mf.build(data, tmp_path / "u.zarr", prune=True)
        assert statuses(report) == {"BTC": "unchanged", "ETH": "removed", "NQ": "unchanged"}
        assert list(mf.open_store(tmp_path / "u.zarr")) == ["BTC", "NQ"]
        assert names_in(tmp_path / "u.zarr") == ["BTC", "NQ", "zarr.json"]

    def test_where_nothing_can_be_removed(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        mf.build(data / "BTC.parquet", tmp_path / "x.zarr")
        before = tree(tmp_path)
        for source in (data / "BTC.parquet", [data / "BTC.parquet"]):
            message = refused(ConfigError, source, tmp_path / "u.zarr", append=True, prune=True)
            assert message == (
                "prune is set, and append removes nothing; leave out --append or --prune"
            )
        for force in (False, True):
            message = refused(
                ConfigError, data / "BTC.parquet", tmp_path / "x.zarr", prune=True, force=force
            )
            assert message == (
                "prune is set, and BTC.parquet is one instrument, not a universe; leave out --prune"
            )
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("name", ["features/c/0/0", "valid/zarr.json", "segments/c/0/0"])
    def test_a_damaged_store_is_built_anew(self, name, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = tree(tmp_path / "u.zarr")
        os.truncate(tmp_path / "u.zarr" / "ETH" / name, 8)
        report = mf.build(data, tmp_path / "u.zarr")
        assert statuses(report) == {"BTC": "unchanged", "ETH": "built", "NQ": "unchanged"}
        assert tree(tmp_path / "u.zarr") == before

    @pytest.mark.parametrize("damage", [shutil.rmtree, lambda x: (x / "zarr.json").unlink()])
    def test_a_store_that_is_gone(self, damage, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        damage(tmp_path / "u.zarr" / "ETH")
        before = tree(tmp_path / "u.zarr")
        write(walk(200), data / "NQ.parquet")
        others = [data / "BTC.parquet", data / "NQ.parquet"]
        message = refused(StoreError, others, tmp_path / "u.zarr")
        assert message.startswith(f"{tmp_path}/u.zarr lists ETH, whose store cannot be kept: ")
        assert message.endswith("; give its input, or pass --prune to remove it")
        assert tree(tmp_path / "u.zarr") == before
        assert names_in(tmp_path) == ["data", "u.zarr"]
        # Given again, it is built; one whose bars fail as well is not there any more.
        shutil.copytree(tmp_path / "u.zarr", tmp_path / "v.zarr")
        assert statuses(mf.build(data, tmp_path / "v.zarr"))["ETH"] == "built"
        shutil.copytree(tmp_path / "u.zarr", tmp_path / "w.zarr")
        assert statuses(mf.build(others, tmp_path / "w.zarr", prune=True))["ETH"] == "removed"
        (data / "ETH.parquet").write_bytes(b"junk")
        assert statuses(mf.build(data, tmp_path / "u.zarr"))["ETH"] == "failed"
        for name in ("u.zarr", "w.zarr"):
            assert list(mf.open_store(tmp_path / name, check=True)) == ["BTC", "NQ"]

    def test_another_configuration(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = tree(tmp_path / "u.zarr")
        other = mf.FeatureConfig(k=3)
        message = refused(StoreError, data, tmp_path / "u.zarr", other)
        assert message.startswith(f"{tmp_path}/u.zarr was built with k = 1.2, not 3")
        (data / "ETH.parquet").unlink()
        message = refused(StoreError, data, tmp_path / "u.zarr", other, force=True)
        assert message == (
            f"{tmp_path}/u.zarr holds 1 instruments of another configuration whose input is not "
            "given, such as ETH; give it too, or pass --prune to remove them"
        )
        assert tree(tmp_path / "u.zarr") == before
        mf.build(data, tmp_path / "u.zarr", other, force=True, prune=True)
        mf.build(data, tmp_path / "v.zarr", other)
        assert tree(tmp_path / "u.zarr") == tree(tmp_path / "v.zarr")

    def test_bars_that_fail_with_another_configuration(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = tree(tmp_path / "u.zarr")
        write(walk(50), data / "ETH.parquet")
        other = mf.FeatureConfig(k=3)
        message = refused(StoreError, data, tmp_path / "u.zarr", other, force=True)
        few = "50 bars, fewer than one window of 105; give more bars or a smaller window_length"
        assert message == (
            f"{tmp_path}/u.zarr stays as it is: of its instruments, 1 cannot be built with the new "
            f"configuration, such as ETH (ETH.parquet [ETH]: {few}); mend their bars, or pass "
            "--prune to remove them"
        )
        assert tree(tmp_path / "u.zarr") == before
        # What was finished is taken over; a new instrument that fails takes nothing away.
        write(walk(411, seed=1), data / "ETH.parquet")
        write(walk(50), data / "NEW.parquet")
        shutil.copytree(tmp_path / "u.zarr", tmp_path / "v.zarr")
        report = mf.build(data, tmp_path / "u.zarr", other, force=True)
        assert Counter(statuses(report).values()) == {"built": 3, "failed": 1}
        assert report.num_resumed == 2
        assert names_in(tmp_path) == ["data", "u.zarr", "v.zarr"]
        write(walk(50), data / "ETH.parquet")
        report = mf.build(data, tmp_path / "v.zarr", other, force=True, prune=True)
        assert details(report)["ETH"].endswith("; its store, of another configuration, is removed")
        assert list(mf.open_store(tmp_path / "v.zarr", other)) == ["BTC", "NQ"]

    def test_force_builds_all_and_keeps_the_rest(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = inodes(tmp_path / "u.zarr")
        report = mf.build([data / "ETH.parquet"], tmp_path / "u.zarr", force=True)
        assert statuses(report) == {"BTC": "kept", "ETH": "built", "NQ": "kept"}
        after = inodes(tmp_path / "u.zarr")
        assert before["ETH/features/c/0/0"] != after["ETH/features/c/0/0"]
        assert before["NQ/features/c/0/0"] == after["NQ/features/c/0/0"]

    @pytest.mark.parametrize("source", ["", " ", ["a.parquet", ""]])
    def test_empty_text_is_not_the_current_folder(self, source, tmp_path, data, monkeypatch):
        monkeypatch.chdir(data)
        assert "is empty text" in refused(BarsNotFoundError, source, tmp_path / "x.zarr")
        assert not (tmp_path / "x.zarr").exists()

    def test_what_is_no_universe(self, data, tmp_path):
        mf.build(walk(200), tmp_path / "x.zarr")
        message = refused(StoreError, data, tmp_path / "x.zarr")
        assert message == (
            f"{tmp_path}/x.zarr holds one instrument, not a universe; pass --force to replace it, "
            "or build into another folder"
        )
        mf.build(data, tmp_path / "x.zarr", force=True)
        assert list(mf.open_store(tmp_path / "x.zarr")) == list(FILES)
        message = refused(StoreError, walk(200), tmp_path / "x.zarr")
        assert "holds a universe, not one instrument; pass --force to replace it" in message
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter.txt").write_text("dear")
        assert "is no store" in refused(StoreError, data, tmp_path / "mine", force=True)
        assert tree(tmp_path / "mine") == {"letter.txt": b"dear"}

    def test_a_file_of_one_symbol_takes_no_other_away(self, tmp_path):
        """The same file, which held two the day before."""
        both = [frame(walk(n, seed=n), symbol) for symbol, n in (("A", 300), ("B", 200))]
        pl.concat(both).write_parquet(tmp_path / "day.parquet")
        mf.build(tmp_path / "day.parquet", tmp_path / "u.zarr")
        frame(walk(400, seed=300), "A").write_parquet(tmp_path / "day.parquet")
        report = mf.build(tmp_path / "day.parquet", tmp_path / "u.zarr")
        assert statuses(report) == {"A": "built", "B": "kept"}
        universe = mf.open_store(tmp_path / "u.zarr")
        assert {symbol: len(universe[symbol]) for symbol in universe} == {"A": 400, "B": 200}
        report = mf.build(tmp_path / "day.parquet", tmp_path / "u.zarr", prune=True)
        assert statuses(report) == {"A": "unchanged", "B": "removed"}

    def test_of_one_file_of_several_symbols(self, tmp_path):
        tables = [frame(walk(n, seed=n), symbol) for symbol, n in THREE.items()]
        pl.concat(tables).sort("time").write_parquet(tmp_path / "many.parquet")
        mf.build(tmp_path / "many.parquet", tmp_path / "u.zarr")
        before = inodes(tmp_path / "u.zarr")
        assert mf.build(tmp_path / "many.parquet", tmp_path / "u.zarr").up_to_date
        assert inodes(tmp_path / "u.zarr") == before
        longer = pl.concat([*tables, frame(walk(120, seed=3), "NEW")])
        longer.write_parquet(tmp_path / "many.parquet")
        report = mf.build(tmp_path / "many.parquet", tmp_path / "u.zarr")
        assert set(statuses(report).values()) == {"built"}
        mf.build(tmp_path / "many.parquet", tmp_path / "v.zarr")
        assert tree(tmp_path / "u.zarr") == tree(tmp_path / "v.zarr")


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """Files of some length, and the universe they make by one worker."""
    folder = tmp_path_factory.mktemp("several") / "data"
    folder.mkdir()
    for seed, num_bars in enumerate((CHUNK + 500, 400, 3 * CHUNK, 900, CHUNK)):
        write(walk(num_bars, seed=seed, gaps=[350]), folder / f"i{seed}.parquet")
    mf.build(folder, folder.parent / "one.zarr", workers=1)
    return folder, tree(folder.parent / "one.zarr")


class TestExactly:
    @pytest.mark.parametrize("workers", [2, 7])
    def test_bytes_do_not_depend_on_workers(self, workers, several, tmp_path):
        folder, expected = several
        report = mf.build(folder, tmp_path / "u.zarr", workers=workers)
        assert tree(tmp_path / "u.zarr") == expected
        assert report.num_chunks == 2 + 1 + 3 + 1 + 1
        assert report.workers == workers

    def test_each_is_what_it_is_alone(self, several, tmp_path):
        folder, expected = several
        for path in sorted(folder.iterdir()):
            mf.build(path, tmp_path / "x.zarr", force=True)
            alone = tree(tmp_path / "x.zarr")
            group = {
                name.removeprefix(f"{path.stem}/"): data
                for name, data in expected.items()
                if name.startswith(f"{path.stem}/")
            }
            assert alone.keys() == group.keys()
            # The symbol is the file's, and with it the checksum of the attributes.
            assert {name for name in alone if alone[name] != group[name]} == {"zarr.json"}

    def test_two_hundred(self, tmp_path):
        (tmp_path / "data").mkdir()
        for i in range(200):
            write(walk(110, seed=i), tmp_path / "data" / f"i{i:03}.parquet")
        report = mf.build(tmp_path / "data", tmp_path / "u.zarr")
        universe = mf.open_store(tmp_path / "u.zarr")
        assert len(universe) == len(report.instruments) == 200
        for i in (0, 77, 199):
            assert_store_holds(universe[f"i{i:03}"], walk(110, seed=i), CONFIG)
        seconds = dict(report.seconds)
        assert seconds.pop("total") == pytest.approx(sum(seconds.values()))


class TestCutOff:
    def test_by_an_error_of_the_caller(self, several, tmp_path, monkeypatch):
        folder, expected = several
        begun: list[str] = []

        def hold(work: Work, member: Member, check: Any) -> Outcome:
            begun.append(member.symbol)
            while len(begun) > 2:  # the third waits until it is told to stop
                check()
                time.sleep(0.001)
            return build_member(work, member, check)

        def stop(done: int, total: int | None) -> None:
            if done == 2:
                raise RuntimeError("enough")

        with monkeypatch.context() as patch:
            patch.setattr(runner, "build_member", hold)
            with pytest.raises(RuntimeError, match="enough"):
                mf.build(folder, tmp_path / "u.zarr", progress=stop, workers=1)
        left = tmp_path / ".u.zarr.building"
        finished = [x.name for x in left.iterdir() if (x / "zarr.json").exists()]
        assert sorted(finished) == begun[:2]
        times = {name: (left / name / "zarr.json").stat().st_mtime_ns for name in finished}
        # One of them is damaged, as by a power cut: it is built again.
        chunk = left / finished[0] / "features" / "c" / "0" / "0"
        chunk.write_bytes(bytes(chunk.stat().st_size))
        report = mf.build(folder, tmp_path / "u.zarr")
        assert report.num_resumed >= len(finished) - 1
        assert tree(tmp_path / "u.zarr") == expected
        built = {x: (tmp_path / "u.zarr" / x / "zarr.json").stat().st_mtime_ns for x in finished}
        assert [built[x] == times[x] for x in finished] == [False, *[True] * (len(finished) - 1)]
        assert names_in(tmp_path) == ["u.zarr"]

    def test_killed(self, several, tmp_path):
        folder, expected = several
        command = [sys.executable, "-m", "moola_features", "build", str(folder), "-o", "u.zarr"]
        trials = finished = 0
        while not finished:
            trials += 1
            assert trials < 10
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment({}), stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            # Finished is what bears its instrument's name; until then it is .NAME.building.
            left = tmp_path / ".u.zarr.building"
            while process.poll() is None and not seen(left, "i?/zarr.json"):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
            finished = len(seen(left, "i?/zarr.json"))
        assert not (tmp_path / "u.zarr").exists()
        report = mf.build(folder, tmp_path / "u.zarr")
        assert report.num_resumed >= finished
        assert tree(tmp_path / "u.zarr") == expected
        assert names_in(tmp_path) == ["u.zarr"]

    def test_full_disk(self, several, tmp_path, monkeypatch):
        folder, expected = several
        write_bytes = os.write
        sizes: list[int] = []

        def limited(handle: int, data: memoryview) -> int:
            sizes.append(len(data))
            if len(sizes) > 25:
                raise OSError(28, os.strerror(28))
            return write_bytes(handle, data)

        with monkeypatch.context() as patch:
            patch.setattr(store_writer.os, "write", limited)
            message = refused(OutputError, folder, tmp_path / "u.zarr")
        assert "cannot be written: no space left on device; free some space" in message
        mf.build(folder, tmp_path / "u.zarr")
        assert tree(tmp_path / "u.zarr") == expected

    def test_two_at_once(self, data, tmp_path):
        mf.build(data, tmp_path / "u.zarr")
        before = tree(tmp_path / "u.zarr")
        write(walk(999), data / "NQ.parquet")
        with contextlib.suppress(ZeroDivisionError), replaced_folder(tmp_path / "u.zarr"):
            message = refused(OutputError, data, tmp_path / "u.zarr")
            raise ZeroDivisionError
        assert "u.zarr is being built by another process; wait for it, or stop it" in message
        assert tree(tmp_path / "u.zarr") == before

    def test_another_build_meanwhile(self, data, tmp_path, monkeypatch):
        from moola_features.universe import building

        load = building.load_kernel

        def meanwhile(*arguments: Any) -> None:
            monkeypatch.setattr(building, "load_kernel", load)
            mf.build(data, tmp_path / "u.zarr")
            load(*arguments)

        monkeypatch.setattr(building, "load_kernel", meanwhile)
        message = refused(StoreError, data, tmp_path / "u.zarr")
        assert message.endswith("u.zarr was built by another process meanwhile; build again")


PEAK = """
import sys
import moola_features as mf
mf.build(mf.synthesise(2_000).bars, sys.argv[2] + ".warm")
report = mf.build(sys.argv[1], sys.argv[2], workers=2)
print(report.predicted_bytes / 2**20, report.peak_bytes / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_memory_does_not_grow_with_the_instruments(kind, tmp_path):
    peaks = []
    for number in (4, 60):
        num_bars = 480_000 // number
        series = {f"i{i:02}": walk(num_bars, seed=i) for i in range(number)}
        source = tmp_path / f"data{number}"
        if kind == "file":
            table = pl.concat([frame(bars, symbol) for symbol, bars in series.items()])
            table.sort("time", "symbol").write_parquet(source, row_group_size=100_000)
        else:
            source.mkdir()
            for symbol, bars in series.items():
                write(bars, source / f"{symbol}.parquet")
        run = run_python(PEAK, source, tmp_path / f"u{number}.zarr")
        predicted, peak = map(float, run.stdout.split())
        assert peak < predicted
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 60  # MiB; a chunk of each of 56 more would take 300


class TestCommandLine:
    @pytest.fixture
    def moola(self, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
        def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "moola_features", *map(str, arguments)],
                cwd=tmp_path, env=environment({}), capture_output=True, text=True, check=False,
            )  # fmt: skip

        return run

    def test_a_pattern_in_quotes(self, moola, data, tmp_path):
        (data / "JUNK.parquet").write_bytes(b"junk")
        done = moola("build", "data/*.parquet", "-o", "u.zarr", "--workers", 2)
        assert done.returncode == 1
        assert "3 built, 1 failed" in done.stdout
        (line,) = [x for x in done.stderr.splitlines() if "failed" in x]
        assert line.startswith("JUNK failed: data/JUNK.parquet: is not Parquet")
        (data / "JUNK.parquet").unlink()
        done = moola("build", "data/BTC.parquet", "data/NQ.parquet", "-o", "u.zarr", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert [one["status"] for one in told["outcomes"]] == ["unchanged", "kept", "unchanged"]
        done = moola("build", "data/BTC.parquet", "data/NQ.parquet", "-o", "u.zarr", "--prune")
        assert "2 unchanged, 1 removed" in done.stdout

    def test_a_table_that_is_sorted(self, moola, data):
        assert moola("build", "data", "-o", "u.zarr").returncode == 0

        def order(*options: str) -> list[str]:
            shown = moola("info", "u.zarr", *options)
            assert shown.returncode == 0, shown.stderr
            return [line.split()[0] for line in shown.stdout.splitlines()[2:]]

        assert order() == ["BTC", "ETH", "NQ"]
        assert order("--sort", "bars") == ["NQ", "BTC", "ETH"]
        assert order("--sort", "bars", "--reverse") == ["ETH", "BTC", "NQ"]
        assert order("--sort", "instrument", "--reverse") == ["NQ", "ETH", "BTC"]
        told = json.loads(moola("info", "u.zarr", "--json", "--sort", "to").stdout)
        assert [one["num_bars"] for one in told] == [150, 300, 411]
        refused_ = moola("info", "u.zarr", "--sort", "taste")
        assert (refused_.returncode, "'instrument', 'bars'" in refused_.stderr) == (2, True)
        assert moola("info", "u.zarr", "--reverse").returncode == 2
