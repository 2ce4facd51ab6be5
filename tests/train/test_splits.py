"""Splits: forward in time, purged in bars, and no leak gets past either end of the file."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moola_features as mf
from moola_features.errors import OutputError
from moola_features.times import parse_time_ns
from moola_train.errors import ConfigError, SplitError
from moola_train.labels import read_labels
from moola_train.split_checks import SplitPart
from moola_train.splits import Split, check_split, forward_chain, read_split, write_split
from moola_train.targets import LabelledWindows
from tests.train.labelled import LENGTH, at_bars, contained, prices, windows_at

APART = 400  # bars between windows that share nothing
PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))


def chain(count: int = 40, apart: int = APART, **settings: Any) -> Split:
    return forward_chain(windows_at(range(1_000, 1_000 + count * apart, apart)), **settings)


def edited(split: Split, path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """The split's file with something in it changed by hand."""
    write_split(split, path)
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return path


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises((SplitError, ConfigError)) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def touched_bars(labels: LabelledWindows, rows: Any, *, warmup: int) -> set[int]:
    assert labels.start_bar is not None
    starts = labels.start_bar[rows].tolist()
    return {bar for start in starts for bar in range(start - warmup, start + LENGTH)}


def assert_nothing_leaks(split: Split, embargo: int = 0) -> None:
    """What a split promises, bar by bar."""
    labels = split.labels
    for fold in range(split.num_folds):
        rows = {name: split.part(name, fold) for name in ("train", "val", "test")}
        together = np.concatenate(list(rows.values())).tolist()
        assert len(set(together)) == len(together)
        for earlier, later in PAIRS:
            before = touched_bars(labels, rows[earlier], warmup=0)
            after = touched_bars(labels, rows[later], warmup=labels.warmup_bars)
            assert not before & after
            if before and after:
                assert min(after) - max(before) > embargo
            bases = [{labels.base_id[row] for row in rows[name]} for name in (earlier, later)]
            assert not bases[0] & bases[1]


# --- how windows are divided -----------------------------------------------------------------


def test_one_fold_is_cut_by_shares() -> None:
    split = chain(40, val_share=0.2, test_share=0.1)
    assert split.part("train").tolist() == list(range(28))
    assert split.part("val").tolist() == list(range(28, 36))
    assert split.part("test").tolist() == list(range(36, 40))
    assert split.part("train").dtype == np.int64
    assert split.counts() == [{"train": 28, "val": 8, "test": 4, "left_out": 0}]


def test_folds_grow_and_share_one_sealed_test_part() -> None:
    split = chain(40, folds=3, val_share=0.2, test_share=0.1)
    assert [len(split.part("train", fold)) for fold in range(3)] == [12, 20, 28]
    assert [split.part("val", fold).tolist()[0] for fold in range(3)] == [12, 20, 28]
    for fold in range(3):
        assert split.part("test", fold).tolist() == [36, 37, 38, 39]
    assert_nothing_leaks(split)


def test_the_order_of_the_rows_does_not_matter() -> None:
    shuffled = np.random.default_rng(1).permutation(40)
    split = forward_chain(windows_at((1_000 + shuffled * APART).tolist()))
    starts = split.labels.start_bar
    assert starts is not None
    plain = chain(40)
    assert plain.labels.start_bar is not None
    for name in ("train", "val", "test"):
        expected = plain.labels.start_bar[plain.part(name)]
        assert sorted(starts[split.part(name)].tolist()) == expected.tolist()


def test_windows_too_close_to_the_next_part_are_left_out() -> None:
    # Stride 52: the next three starts are 52, 104 and 156 bars on; 104 + 20 must be passed.
    split = chain(100, apart=52, val_share=0.2, test_share=0.2)
    assert split.part("train").tolist() == list(range(58))
    assert split.part("val").tolist() == list(range(60, 78))
    assert split.part("test").tolist() == list(range(80, 100))
    assert (split.purge_bars, split.embargo_bars, split.warmup_bars) == (104, 0, 20)
    assert split.counts()[0]["left_out"] == 4
    assert_nothing_leaks(split)


def test_the_first_bar_that_is_free_is_used() -> None:
    """A start 124 bars before the next part is too close, one of 125 is not."""
    for distance, kept in ((124, 2), (125, 3)):
        labels = windows_at([1_000, 2_000, 4_000 - distance, 4_000, 6_000])
        split = forward_chain(labels, val_share=0.2, test_share=0.2)
        assert len(split.part("train")) == kept
        assert_nothing_leaks(split)


def test_purge_and_embargo_widen_the_gap() -> None:
    wide = chain(100, apart=52, purge_bars=200, embargo_bars=100)
    assert wide.counts()[0]["left_out"] > chain(100, apart=52).counts()[0]["left_out"]
    assert_nothing_leaks(wide, embargo=100)


def test_a_base_that_straddles_is_left_out() -> None:
    bases = [f"b{row}" for row in range(20)]
    bases[12] = bases[15] = "straddler"  # the validation part begins between the two
    labels = windows_at(range(1_000, 1_000 + 20 * APART, APART), base_id=bases)
    split = forward_chain(labels)
    assert split.part("train").tolist() == list(range(12))
    assert split.part("val").tolist() == [13, 14, 16]
    assert_nothing_leaks(split)


def test_a_base_stays_in_one_validation_part() -> None:
    bases = [f"b{row}" for row in range(20)]
    bases[12] = bases[16] = "straddler"  # two windows of the two validation parts
    labels = windows_at(range(1_000, 1_000 + 20 * APART, APART), base_id=bases)
    split = forward_chain(labels, folds=2, val_share=0.2, test_share=0.1)
    assert split.part("val", 0).tolist() == [10, 11]
    assert split.part("val", 1).tolist() == [13, 14, 15, 17]
    assert split.part("test").tolist() == [18, 19]


@given(
    starts=st.lists(st.integers(100, 6_000), min_size=12, max_size=60),
    num_bases=st.integers(3, 60),
    folds=st.integers(1, 3),
    embargo=st.integers(0, 300),
    seed=st.integers(0, 9),
)
def test_no_split_leaks(
    starts: list[int], num_bases: int, folds: int, embargo: int, seed: int
) -> None:
    bases = np.sort(np.random.default_rng(seed).integers(0, num_bases, len(starts)))
    # In time, bases of neighbours; as drawn, bases that reach over everything.
    ordered = starts if seed == 0 else sorted(starts)
    labels = windows_at(ordered, base_id=[f"b{base}" for base in bases.tolist()])
    try:
        split = forward_chain(labels, folds=folds, embargo_bars=embargo, val_share=0.2)
    except SplitError as error:
        assert "no window left in" in str(error)  # noqa: PT017 - one of two outcomes
        return
    assert_nothing_leaks(split, embargo)


def test_windows_without_times_are_grouped_and_kept_in_order(tmp_path: Path) -> None:
    # Twenty originals, then a copy of each with other prices: a copy goes where its original does.
    bases = [*(f"w{row}" for row in range(20)), *(f"w{row}" for row in range(20))]
    labels = read_labels(contained(40, base_window_id=bases))
    split = forward_chain(labels, val_share=0.2, test_share=0.2)
    assert split.part("train").tolist() == [*range(12), *range(20, 32)]
    assert split.part("val").tolist() == [*range(12, 16), *range(32, 36)]
    assert split.part("test").tolist() == [*range(16, 20), *range(36, 40)]
    write_split(split, tmp_path / "split.json")
    document = json.loads((tmp_path / "split.json").read_text())
    assert document["order"] == "as given, bases together; without times nothing can be purged"
    assert (document["purge_bars"], document["warmup_bars"], document["store"]) == (0, 0, None)
    assert read_split(tmp_path / "split.json", labels).counts() == split.counts()
    message = refusal(lambda: forward_chain(labels, embargo_bars=10))
    assert "embargo_bars is 10, but windows without times" in message


def test_the_same_prices_on_two_sides_are_refused() -> None:
    windows = prices(20)
    windows[19] = windows[0]
    labels = read_labels(contained(20, features=windows.tolist()))
    message = refusal(lambda: forward_chain(labels))
    assert "'w0' of train and 'w19' of test share bars" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folds": 0}, "folds is 0"), ({"folds": True}, "folds is True"),
        ({"val_share": 0.0}, "val_share is 0.0"), ({"val_share": 1.0}, "val_share is 1.0"),
        ({"test_share": -0.1}, "test_share is -0.1"), ({"test_share": 1.0}, "test_share is 1.0"),
        ({"folds": 6}, "take 105% of the windows"),
        ({"purge_bars": 103}, "purge_bars is 103; windows of 105 bars"),
        ({"purge_bars": 104.0}, "purge_bars is 104.0"), ({"embargo_bars": -1}, "embargo_bars is -"),
        ({"embargo_bars": 10**20}, "embargo_bars is 100000000000000000000; it must be a whole"),
        ({"embargo_bars": 2**63 - 1000}, "a whole number from 0 to 1,000,000,000"),
        ({"purge_bars": 2**63 - 1000}, "purge_bars is 9223372036854774808; it must be a whole"),
        ({"folds": 10**12, "val_share": 1e-15}, "and there are 40 windows; give fewer folds"),
        ({"embargo_bars": 10**9}, "fold 0 has no window left in train, of 40"),
        ({"embargo_bars": 10**6}, "fold 0 has no window left in train, of 40"),
        ({"val_share": 0.001}, "fold 0 has no window left in val"),
        ({"test_share": 0.001}, "fold 0 has no window left in test"),
    ],
)  # fmt: skip
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: chain(**settings))


def test_periods_may_begin_at_dates() -> None:
    """Windows stand 400 minutes apart from bar 1,000 on; a time is that of the first bar."""
    border = "1970-01-08 00:00"  # minute 10,080, between windows 22 (9,800) and 23 (10,200)
    split = chain(40, val_from=border, test_from=parse_time_ns("at", "1970-01-10 14:00"))
    assert split.part("train").tolist() == list(range(23))
    assert split.part("val").tolist() == list(range(23, 32))
    assert split.part("test").tolist() == list(range(32, 40))  # window 32 begins at that minute
    assert chain(40, val_from=border).counts() == [
        {"train": 23, "val": 17, "test": 0, "left_out": 0}
    ]
    close = chain(300, apart=52, val_from="1970-01-05 00:00", test_from="1970-01-08 00:00")
    assert close.labels.start_time is not None
    minutes = close.labels.start_time // 60_000_000_000
    assert minutes[close.part("val")].min() >= 5_760 > minutes[close.part("train")].max() + 124
    assert minutes[close.part("test")].min() >= 10_080 > minutes[close.part("val")].max() + 124
    assert close.counts()[0]["left_out"] == 4
    assert_nothing_leaks(close)


def test_a_base_that_straddles_a_date_is_left_out() -> None:
    bases = [f"b{row}" for row in range(20)]
    bases[9] = bases[15] = "straddler"
    labels = windows_at(range(1_000, 1_000 + 20 * APART, APART), base_id=bases)
    split = forward_chain(labels, val_from=(1_000 + 12 * APART) * 60_000_000_000)
    assert split.part("train").tolist() == [*range(9), 10, 11]
    assert split.part("val").tolist() == [12, 13, 14, *range(16, 20)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"test_from": "1970-01-02"}, "test_from is given without val_from"),
        ({"val_from": "1970-01-05", "test_from": "1970-01-05"}, "00:00:00Z, not after val_from"),
        ({"val_from": "1971-01-01"}, "the last window begins at 1970-01-12T"),
        ({"val_from": "1970-01-01"}, "fold 0 has no window left in train"),
        ({"val_from": "1970-01-05", "folds": 2}, "divide one fold by time"),
        ({"val_from": "1970-01-05", "val_share": 0.1}, "leave out folds and shares"),
        ({"val_from": "1970-01-05", "test_share": 0.0}, "leave out folds and shares"),
    ],
)  # fmt: skip
def test_dates_are_checked(settings: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: chain(40, **settings))


def test_windows_without_times_have_no_dates() -> None:
    labels = read_labels(contained(20))
    message = refusal(lambda: forward_chain(labels, val_from="1970-01-02"))
    assert "these windows have none; give shares instead" in message


def test_there_may_be_no_test_part() -> None:
    split = chain(20, test_share=0.0)
    assert split.counts() == [{"train": 17, "val": 3, "test": 0, "left_out": 0}]


def test_parts_are_named() -> None:
    split = chain(folds=2)
    assert "part is 'dev'; choose one of train, val, test" in refusal(lambda: split.part("dev"))
    assert "fold is 2; split 'forward-chain' has 0 to 1" in refusal(lambda: split.part("val", 2))


def test_anchored_windows_need_their_store() -> None:
    labels = dataclasses.replace(windows_at(range(0, 8_000, 400)), start_bar=None)
    assert "give the store that they stand in" in refusal(lambda: forward_chain(labels))


# --- files -----------------------------------------------------------------------------------


def test_a_split_is_read_as_it_was_written(tmp_path: Path) -> None:
    split = chain(100, apart=52, folds=2, embargo_bars=7, name="mine")
    path = tmp_path / "split.json"
    write_split(split, path)
    actual = read_split(path, split.labels)
    assert actual.to_dict() == split.to_dict() == json.loads(path.read_text())
    for fold, name in itertools.product(range(2), ("train", "val", "test")):
        np.testing.assert_array_equal(actual.part(name, fold), split.part(name, fold))
    assert parse_time_ns("created", split.created) % 10**9 == 0


def test_the_documented_keys_are_enough(tmp_path: Path) -> None:
    labels = windows_at(range(1_000, 9_000, APART))
    document = {
        "name": "by hand", "created": "2024-05-01", "method": "forward-chain",
        "purge_bars": 104, "embargo_bars": 0,
        "parts": [{"train": ["w0", "w1"], "val": ["w3"], "test": ["w5", "w4"]}],
    }  # fmt: skip
    path = tmp_path / "split.json"
    path.write_text(json.dumps(document))
    split = read_split(path, labels)
    assert split.part("test").tolist() == [5, 4]
    assert (split.name, split.warmup_bars) == ("by hand", 0)


def test_a_split_belongs_to_its_labels_and_its_bars(tmp_path: Path, sample_bars: mf.Bars) -> None:
    def opened(name: str, bars: mf.Bars, profile: str) -> mf.Store:
        config = mf.FeatureConfig.profile(profile)
        store: mf.Store = mf.open_store(mf.build(bars, tmp_path / name, config).path)
        return store

    store = opened("a.zarr", sample_bars, "standard")
    wide = opened("b.zarr", sample_bars, "wide")
    other = opened("c.zarr", sample_bars[:19_999], "standard")
    frame = at_bars(store, range(1_000, 17_000, APART))
    path = tmp_path / "split.json"
    write_split(forward_chain(read_labels(frame, store=store)), path)

    assert read_split(path, read_labels(frame, store=wide)).num_folds == 1
    changed = refusal(lambda: read_split(path, read_labels(frame, store=other)))
    assert "was made from other store than these" in changed
    left_out = refusal(lambda: read_split(path, read_labels(frame)))
    assert "split.json was made with the store 'a.zarr', and no store is given; give" in left_out
    relabelled = read_labels(
        frame.with_columns(expansion_end=frame["expansion_end"] + 1), store=store
    )
    changed = refusal(lambda: read_split(path, relabelled))
    assert "was made from other labels than these" in changed
    fewer = read_labels(frame[:-1], store=store)
    assert "names window 'w39', which the labels do not have" in refusal(
        lambda: read_split(path, fewer)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "method is []"),
        ('{"method": "random"}', "method is 'random'"),
        ('{"method": "forward-chain", "format_version": 2}', "format version 2"),
        ('{"method": "forward-chain"}', "parts is None"),
        ('{"method": "forward-chain", "parts": []}', "parts is []"),
        ('{"method": "forward-chain", "parts": [{"train": []}]}', "val is None, not a list"),
        ('{"method": "forward-chain", "parts": [3]}', "train is None"),
        (
            '{"method": "forward-chain", "window_length": 64, "parts": [3]}',
            "window_length is 64, but the labels have 105",
        ),
        (
            '{"method": "forward-chain", "purge_bars": "x",'
            ' "parts": [{"train": [], "val": [], "test": []}]}',
            "purge_bars is 'x'",
        ),
        (
            '{"method": "forward-chain", "parts": [{"train": [7], "val": [], "test": []}]}',
            "train names window 7, which the labels do not have",
        ),
    ],
)
def test_files_that_are_no_split(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    message = refusal(lambda: read_split(path, windows_at([0])))
    assert words in message
    assert str(path) in message


@pytest.mark.parametrize("text", ["[" * 200_000, '{"method": ' * 200_000])
def test_a_file_that_is_nested_too_deeply(tmp_path: Path, text: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    message = refusal(lambda: read_split(path, windows_at([0])))
    assert f"{path} is no split: its JSON is nested too deeply; make the split again" in message


def test_what_was_found_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    for document in (
        list(range(10_000)),
        {"method": "forward-chain", "parts": "x" * 10_000},
        {"method": "forward-chain", "parts": [{"train": "x" * 10_000}]},
        {"method": "forward-chain", "parts": [{"train": [["x" * 10_000]]}]},
    ):
        path.write_text(json.dumps(document))
        assert len(refusal(lambda: read_split(path, windows_at([0])))) < 500


@pytest.mark.parametrize("name", ["train", "val"])
def test_only_the_test_part_may_be_empty(tmp_path: Path, name: str) -> None:
    split, path = planted([]), tmp_path / "split.json"
    emptied = edited(split, path, lambda document: document["parts"][0].update({name: []}))
    words = f"fold 0: {name} is empty, and only test may be; make the split again"
    assert words in refusal(lambda: read_split(emptied, leaking()))
    part = dataclasses.replace(split.parts[0], **{name: np.array([], np.int64)})
    path.unlink()
    assert words in refusal(lambda: write_split(dataclasses.replace(split, parts=(part,)), path))
    assert not path.exists()
    tested = edited(split, path, lambda document: document["parts"][0].update(test=[]))
    assert read_split(tested, leaking()).counts()[0]["test"] == 0


def test_a_missing_file_and_a_missing_folder(tmp_path: Path) -> None:
    missing = tmp_path / "no.json"
    assert "No such file" in refusal(lambda: read_split(missing, windows_at([0])))
    with pytest.raises(OutputError, match="there is no folder"):
        write_split(chain(), tmp_path / "nowhere" / "split.json")


# --- leaks -----------------------------------------------------------------------------------


def leaking() -> LabelledWindows:
    """Twenty windows far apart, and others that must not stand beside some of them."""
    starts = list(range(1_000, 1_000 + 20 * APART, APART))
    validation = starts[14]  # train has rows 0 to 13
    starts += [validation - 104, validation - 124, validation + 60, validation + 50 * APART]
    bases = [f"w{row}" for row in range(len(starts))]
    bases[13] = bases[15] = "pair"
    return windows_at(starts, base_id=bases)


def planted(train: list[int], *, embargo_bars: int = 0) -> Split:
    """The split of :func:`leaking` by hand, with more windows to train on."""
    rows = [np.array(rows, np.int64) for rows in ([*range(12), *train], [14, 16], [18, 19])]
    return Split(
        labels=leaking(), parts=(SplitPart(*rows),), purge_bars=104, embargo_bars=embargo_bars,
        warmup_bars=20, name="planted", created="2024-01-01T00:00:00Z",
    )  # fmt: skip


LEAKS = {
    "shared bar": ([20], "windows 'w20' of train and 'w14' of val share bars"),
    "shared bar behind": ([22], "windows 'w22' of train and 'w14' of val share bars"),
    "shared bar among others": ([20, 23], "windows 'w20' of train and 'w14' of val share bars"),
    "warm-up bar": ([21], "'w21' of train and 'w14' of val start 124 bars apart; purge, embargo"),
    "shared base": ([13], "windows 'w13' of train and 'w15' of val come from one base"),
    "reversed time": ([23], "windows 'w23' of train and 'w14' of val stand in reversed time"),
    "duplicate id": ([16], "window 'w16' stands twice, in train and in val"),
    "duplicate id in a part": ([3], "window 'w3' stands twice, in train and in train"),
}


def test_the_split_without_a_leak_passes(tmp_path: Path) -> None:
    write_split(planted([12]), tmp_path / "split.json")
    assert len(read_split(tmp_path / "split.json", leaking()).part("train")) == 13


@pytest.mark.parametrize("kind", LEAKS)
def test_a_planted_leak_is_refused(kind: str, tmp_path: Path) -> None:
    rows, words = LEAKS[kind]
    split = planted(rows)
    if kind == "shared base":
        split.parts[0].val[1] = 15
    assert words in refusal(lambda: check_split(split))
    path = tmp_path / "split.json"
    assert words in refusal(lambda: write_split(split, path))
    assert not path.exists()

    def plant(document: dict[str, Any]) -> None:
        document["parts"][0] = split.to_dict()["parts"][0]

    edited(planted([]), path, plant)
    assert words in refusal(lambda: read_split(path, leaking()))


@pytest.mark.parametrize("pair", [("train", "test"), ("val", "test")])
def test_every_pair_of_parts_is_checked(pair: tuple[str, str]) -> None:
    split = planted([])
    part = dataclasses.replace(split.parts[0], **{pair[0]: np.array([19])})
    assert "stands twice" in refusal(lambda: check_split(dataclasses.replace(split, parts=(part,))))
    part = dataclasses.replace(split.parts[0], **{pair[0]: np.array([23]), "val": np.array([22])})
    if pair[0] == "val":
        part = dataclasses.replace(split.parts[0], val=np.array([23]))
    message = refusal(lambda: check_split(dataclasses.replace(split, parts=(part,))))
    assert "stand in reversed time" in message


def test_every_fold_is_checked() -> None:
    clean, leak = planted([]), planted([20])
    both = dataclasses.replace(clean, parts=(*clean.parts, *leak.parts))
    assert "split 'planted', fold 1: windows 'w20'" in refusal(lambda: check_split(both))


def test_a_declared_embargo_is_held_to(tmp_path: Path) -> None:
    split = planted([12], embargo_bars=300)  # the last of train starts 800 bars before
    check_split(split)
    path = edited(
        split, tmp_path / "split.json", lambda document: document.update(embargo_bars=700)
    )
    assert "ask for more than 824" in refusal(lambda: read_split(path, leaking()))


def test_a_longer_warm_up_of_the_features_is_held_to(tmp_path: Path) -> None:
    """A split for one store is read with another of the same bars, whose features look further."""
    split = planted([12])
    write_split(split, tmp_path / "split.json")
    longer = dataclasses.replace(leaking(), warmup_bars=700)
    path = edited(split, tmp_path / "long.json", lambda document: document.update(warmup_bars=700))
    assert "ask for more than 804" in refusal(lambda: read_split(path, leaking()))
    assert "ask for more than 804" in refusal(lambda: read_split(tmp_path / "split.json", longer))


def test_an_id_that_the_labels_do_not_have(tmp_path: Path) -> None:
    def plant(document: dict[str, Any]) -> None:
        document["parts"][0]["val"].append("stranger")

    path = edited(planted([]), tmp_path / "split.json", plant)
    message = refusal(lambda: read_split(path, leaking()))
    assert "val names window 'stranger', which the labels do not have" in message


def test_windows_without_times_stay_in_order() -> None:
    labels = read_labels(contained(10))
    rows = [np.array(part, np.int64) for part in ([0, 1, 6], [4, 5], [8])]
    split = Split(
        labels=labels, parts=(SplitPart(*rows),), purge_bars=0, embargo_bars=0, warmup_bars=0,
        name="planted", created="",
    )  # fmt: skip
    assert "'w6' of train and 'w4' of val stand in reversed time" in refusal(
        lambda: check_split(split)
    )


def test_digest_is_of_what_the_split_says() -> None:
    split = chain()
    renamed = dataclasses.replace(split, name="another", created="2000-01-01T00:00:00Z")
    assert renamed.sha256() == split.sha256()
    store = {"name": "elsewhere.zarr", "sha256": "5" * 64}
    moved_store = dataclasses.replace(split.labels, store=store)
    assert dataclasses.replace(split, labels=moved_store).sha256() == split.sha256()
    other = dataclasses.replace(split.labels, store={**store, "sha256": "6" * 64})
    assert dataclasses.replace(split, labels=other).sha256() != split.sha256()
    moved = dataclasses.replace(split, embargo_bars=split.embargo_bars + 1)
    assert moved.sha256() != split.sha256()
