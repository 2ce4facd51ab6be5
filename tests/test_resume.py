"""Builds that go on where another was cut off: what is taken over, and what is made anew."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moola_features as mf
from moola_features.building.journal import Finished, Journal, origin_of
from moola_features.errors import BarsError, OutputError
from tests.markets import CHUNK, assert_store_holds, frame, names_in, refused, tree, walk
from tests.strategies import to_bars

CONFIG = mf.FeatureConfig(max_gap="2h")
NUM_BARS = 5 * CHUNK + 700
NUM_FULL = 5
GAPS = [CHUNK + 9, 3 * CHUNK]


@pytest.fixture(scope="module")
def bars() -> mf.Bars:
    return walk(NUM_BARS, gaps=GAPS)


@pytest.fixture(scope="module")
def whole(bars, tmp_path_factory) -> dict[str, bytes]:
    """The store that no build was cut off for."""
    path = tmp_path_factory.mktemp("whole") / "x.zarr"
    mf.build(bars, path, CONFIG)
    return tree(path)


class CutOffError(Exception):
    """What cuts a build off."""


def cut_off(bars: Any, target: Path, after: int, *, num_finished: int = NUM_FULL) -> Path:
    """Begin a build, and let it end when so many bars are read; return what it leaves."""
    left = target.with_name(f".{target.name}.building")

    def stop(done: int, total: int | None) -> None:
        if done < after:
            return
        deadline = time.monotonic() + 60
        while num_noted(left) < num_finished and time.monotonic() < deadline:
            time.sleep(0.01)  # chunks are under way, and a build that ends forgets some of them
        raise CutOffError

    with pytest.raises(CutOffError):
        mf.build(bars, target, CONFIG, progress=stop)
    assert not target.exists()
    return left


def num_noted(left: Path) -> int:
    """Chunks that the journals in a folder tell of."""
    return sum(path.read_bytes().count(b"\n") - 1 for path in left.glob(".*.journal"))


@pytest.fixture
def half(bars, tmp_path) -> tuple[Path, Path]:
    """A target, and what a build of it left that was cut off at its end."""
    target = tmp_path / "x.zarr"
    return target, cut_off(bars, target, NUM_BARS)


class TestTakenOver:
    @pytest.mark.parametrize("workers", [1, 2, 7])
    def test_finished_chunks(self, bars, whole, half, workers):
        target, left = half
        assert (left / "..journal").exists()
        report = mf.build(bars, target, CONFIG, workers=workers)
        assert report.num_chunks == NUM_FULL + 1
        assert report.num_resumed == NUM_FULL
        assert tree(target) == whole
        assert names_in(target.parent) == ["x.zarr"]

    def test_again_and_again(self, bars, whole, tmp_path):
        target = tmp_path / "x.zarr"
        for num_chunks in (2, 4, 5):
            cut_off(bars, target, num_chunks * CHUNK, num_finished=num_chunks)
        assert mf.build(bars, target, CONFIG).num_resumed == NUM_FULL
        assert tree(target) == whole

    def test_of_a_shorter_series(self, bars, half, tmp_path):
        target, _ = half
        mf.build(bars[: CHUNK + 300], target, CONFIG)
        mf.build(bars[: CHUNK + 300], tmp_path / "y.zarr", CONFIG)
        assert tree(target) == tree(tmp_path / "y.zarr")

    def test_of_a_universe(self, bars, tmp_path):
        one, other = frame(bars[: 2 * CHUNK + 5], "A/B"), frame(walk(CHUNK + 300, seed=5), "C")
        table = one.vstack(other)
        target = tmp_path / "u.zarr"
        left = cut_off(table, target, 1, num_finished=0)  # one instrument, and perhaps the other
        assert {"A%2FB", "C"} & set(names_in(left))
        report = mf.build(table, target, CONFIG)
        assert report.num_resumed >= 2
        mf.build(table, tmp_path / "v.zarr", CONFIG)
        assert tree(target) == tree(tmp_path / "v.zarr")
        # Of what is left of a universe, nothing is left of a single store.
        cut_off(table, tmp_path / "w.zarr", 1, num_finished=0)
        mf.build(bars, tmp_path / "w.zarr", CONFIG)
        assert_store_holds(mf.open_store(tmp_path / "w.zarr"), bars, CONFIG)
        assert "A%2FB" not in names_in(tmp_path / "w.zarr")


def changed(bars: mf.Bars, row: int) -> mf.Bars:
    """The same bars but for one close."""
    ohlc = np.column_stack(bars.arrays[1:])
    ohlc[row, 3] = ohlc[row, 2]
    assert ohlc[row, 3] != bars.close[row]
    return to_bars(bars.time, ohlc)


class TestMadeAnew:
    @pytest.mark.parametrize("row", [5, CHUNK - 1, CHUNK, 3 * CHUNK + 70, NUM_BARS - 1])
    def test_where_bars_are_others(self, bars, half, row):
        target, _ = half
        row = (
            next(i for i in range(row, NUM_BARS) if bars.close[i] != bars.low[i])
            if (row < NUM_BARS - 1)
            else row
        )
        other = changed(bars, row)
        report = mf.build(other, target, CONFIG)
        assert report.num_resumed < NUM_FULL or row >= NUM_FULL * CHUNK
        assert_store_holds(mf.open_store(target), other, CONFIG)

    def test_where_a_gap_is_another(self, bars, half):
        """The bars of a chunk are the same, but a segment begins with it."""
        target, _ = half
        time = bars.time.copy()
        time[: 2 * CHUNK] -= 7 * 24 * 3_600 * 10**9
        other = to_bars(time, np.column_stack(bars.arrays[1:]))
        mf.build(other, target, CONFIG)
        assert_store_holds(mf.open_store(target), other, CONFIG)

    @pytest.mark.parametrize("config", [mf.FeatureConfig(), mf.FeatureConfig(family="returns")])
    def test_of_another_configuration(self, bars, half, config):
        target, _ = half
        report = mf.build(bars, target, config)
        assert report.num_resumed == 0
        assert_store_holds(mf.open_store(target), bars, config)

    def test_of_another_moola(self, bars, half, monkeypatch):
        target, _ = half
        monkeypatch.setattr(mf, "__version__", "0.0.9")
        assert mf.build(bars, target, CONFIG).num_resumed == 0

    @pytest.mark.parametrize("name", ["features", "time", "valid", "ohlc"])
    @pytest.mark.parametrize("damage", ["flip", "cut", "grow", "zero", "remove"])
    def test_where_a_file_is_damaged(self, bars, whole, half, name, damage):
        target, left = half
        chunk = left / name / "c" / "1"
        chunk = chunk if chunk.is_file() else chunk / "0"
        data = bytearray(chunk.read_bytes())
        if damage == "flip":
            data[54_321] ^= 4
        elif damage == "zero":
            data[4_096:8_192] = bytes(4_096)
        elif damage == "cut":
            data = data[:-4_096]
        elif damage == "grow":
            data += b"x"
        chunk.unlink()
        if damage != "remove":
            chunk.write_bytes(data)
        report = mf.build(bars, target, CONFIG)
        assert report.num_resumed < NUM_FULL
        assert tree(target) == whole

    def test_never_through_another_name(self, bars, whole, half, tmp_path):
        """A file that somebody else knows too is not written into."""
        target, left = half
        journal = left / "..journal"
        journal.unlink()
        chunk = left / "time" / "c" / "0"
        chunk.write_bytes(b"mine")
        (tmp_path / "mine").hardlink_to(chunk)
        mf.build(bars, target, CONFIG)
        assert tree(target) == whole
        assert (tmp_path / "mine").read_bytes() == b"mine"


class TestNothingIsKept:
    def test_of_bad_bars(self, bars, tmp_path):
        table = frame(bars)
        high = table["high"].to_numpy().copy()
        high[NUM_BARS - 1] = -1
        target = tmp_path / "x.zarr"
        refused(BarsError, table.with_columns(high=high), target, CONFIG)
        assert names_in(tmp_path) == []

    def test_of_less_than_a_chunk(self, tmp_path):
        left = cut_off(walk(300), tmp_path / "x.zarr", 300, num_finished=0)
        assert not left.exists()


SUBJECT = {"config": {"k": 1.2}, "versions": {"moola": "1"}}


class TestJournal:
    def write(self, path: Path) -> list[Finished]:
        told = [Finished(i, f"origin {i}", "00ff", {"time": i}) for i in range(3)]
        with Journal(path, SUBJECT) as journal:
            assert journal.is_empty
            for finished in told:
                journal.add(finished)
            assert not journal.is_empty
        return told

    def read(self, path: Path, subject: dict[str, Any] | None = None) -> list[Finished | None]:
        with Journal(path, subject or SUBJECT) as journal:
            return [journal.find(index) for index in range(4)]

    def test_is_read_again(self, tmp_path):
        told = self.write(tmp_path / "j")
        assert self.read(tmp_path / "j") == [*told, None]
        assert self.read(tmp_path / "j") == [*told, None]

    def test_of_another_subject(self, tmp_path):
        self.write(tmp_path / "j")
        other = {**SUBJECT, "versions": {"moola": "2"}}
        assert self.read(tmp_path / "j", other) == [None] * 4
        assert self.read(tmp_path / "j") == [None] * 4  # for good

    def test_cut_anywhere(self, tmp_path):
        """What is whole is believed, and what is added behind a cut is found again."""
        told = self.write(tmp_path / "whole")
        data = (tmp_path / "whole").read_bytes()
        ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
        for length in range(len(data) + 1):
            path = tmp_path / "j"
            path.write_bytes(data[:length])
            num_whole = max(0, sum(end <= length for end in ends) - 1)
            expected = [*told[:num_whole], *[None] * (4 - num_whole)]
            with Journal(path, SUBJECT) as journal:
                assert [journal.find(index) for index in range(4)] == expected
                journal.add(Finished(3, "last", "", {}))
            assert self.read(path)[3] == Finished(3, "last", "", {})

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text.replace("origin 1", "origin 7"),
            lambda text: text.replace('"index":1', '"index":2'),
            lambda text: text.replace("00ff", "00fe", 2),
        ],
    )
    def test_lines_with_flipped_bits_are_not_believed(self, tmp_path, damage: Callable[[str], str]):
        self.write(tmp_path / "j")
        text = (tmp_path / "j").read_text()
        (tmp_path / "j").write_text(damage(text))
        assert damage(text) != text
        assert self.read(tmp_path / "j")[1:] == [None] * 3

    def test_lines_that_say_something_else(self, tmp_path):
        from moola_features.building.journal import _line

        told = self.write(tmp_path / "j")
        with (tmp_path / "j").open("ab") as file:
            file.write(_line({"index": 3}) + _line([1, 2]) + _line({**vars(told[0]), "index": 3}))
        found = self.read(tmp_path / "j")
        assert found[:3] == told
        assert found[3] == Finished(3, "origin 0", "00ff", {"time": 0})

    def test_origin(self):
        assert origin_of(b"ab", b"c") != origin_of(b"a", b"bc")
        assert len(json.dumps(origin_of(b"", b""))) == 66


def test_a_full_disk_says_what_is_kept(bars, tmp_path, monkeypatch):
    from tests.test_faults import TestFullDisk

    target = tmp_path / "x.zarr"
    with monkeypatch.context() as patch:
        TestFullDisk().fill_up(patch, 18)
        message = refused(OutputError, bars, target, CONFIG, workers=1)
    assert message.endswith(
        f"; what is finished stays in {tmp_path}/.x.zarr.building, to be gone on from"
    )
    assert mf.build(bars, target, CONFIG).num_resumed >= 1
    assert_store_holds(mf.open_store(target), bars, CONFIG)
