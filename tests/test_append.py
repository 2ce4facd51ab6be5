"""Appending: the bytes of a rebuild, what contradicts is refused, readers see old or new."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import moola_features as mf
from moola_features import files
from moola_features.errors import BarsError, OutputError, StoreError, StoreNotFoundError
from tests.markets import CHUNK, assert_store_holds, frame, names_in, refused, tree, walk, write
from tests.stores import edit_attributes, failed
from tests.strategies import configs, tick_bars, to_bars

CONFIG = mf.FeatureConfig(max_gap="2h")
EVERYTHING = mf.FeatureConfig(swing_rule="early", consol_proxy=True, context=True, max_gap="2h")
RETURNS = mf.FeatureConfig(family="returns", max_gap="2h")
MANY = 3 * CHUNK + 900
GAPS = (300, CHUNK - 1, CHUNK, 2 * CHUNK + 5, MANY - 300)
HALVES = (105, 5_000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, MANY - 300, MANY - 1)


@pytest.fixture(scope="module")
def bars() -> mf.Bars:
    return walk(MANY, gaps=GAPS)


@pytest.fixture(scope="module")
def rebuilt(bars, tmp_path_factory) -> dict[mf.FeatureConfig, dict[str, bytes]]:
    """Stores of all bars, each built in one go."""
    folder = tmp_path_factory.mktemp("rebuilt")
    for number, config in enumerate((CONFIG, EVERYTHING, RETURNS)):
        mf.build(bars, folder / f"{number}", config)
    return {
        config: tree(folder / f"{number}")
        for number, config in enumerate((CONFIG, EVERYTHING, RETURNS))
    }


def without_input(found: dict[str, bytes]) -> dict[str, Any]:
    """Files of a store, but for what its attributes tell of where the bars came from."""
    document = json.loads(found["zarr.json"])
    document["attributes"].pop("input")
    document["attributes"]["checksums"].pop("attributes")
    return {**found, "zarr.json": document}


class TestSameBytes:
    @pytest.mark.parametrize(
        ("config", "half"),
        [*((CONFIG, half) for half in HALVES), (EVERYTHING, CHUNK + 1), (RETURNS, MANY - 1)],
    )
    def test_of_a_longer_source(self, bars, rebuilt, config, half, tmp_path):
        mf.build(bars[:half], tmp_path / "x.zarr", config)
        report = mf.build(bars, tmp_path / "x.zarr", config, append=True)
        assert tree(tmp_path / "x.zarr") == rebuilt[config]
        assert (report.num_appended, report.num_bars) == (MANY - half, MANY)
        assert report.num_chunks == 4 - half // CHUNK
        assert names_in(tmp_path) == ["x.zarr"]

    @pytest.mark.parametrize("half", HALVES)
    def test_of_new_bars_only(self, bars, rebuilt, half, tmp_path):
        mf.build(bars[:half], tmp_path / "x.zarr", CONFIG)
        report = mf.build(bars[half:], tmp_path / "x.zarr", append=True)
        found = tree(tmp_path / "x.zarr")
        assert without_input(found) == without_input(rebuilt[CONFIG])
        assert report.num_appended == MANY - half
        told = mf.open_store(tmp_path / "x.zarr", check=True).attributes["input"]
        assert told["num_bars"] == half
        assert [piece["num_bars"] for piece in told["appended"]] == [MANY - half]

    def test_of_bars_that_overlap(self, bars, rebuilt, tmp_path):
        mf.build(bars[: CHUNK + 50], tmp_path / "x.zarr", CONFIG)
        report = mf.build(bars[CHUNK - 7 :], tmp_path / "x.zarr", append=True)
        assert without_input(tree(tmp_path / "x.zarr")) == without_input(rebuilt[CONFIG])
        assert report.num_appended == MANY - CHUNK - 50

    def test_piece_by_piece(self, bars, rebuilt, tmp_path):
        edges = [0, 400, 401, 5_000, CHUNK, 2 * CHUNK + 3, MANY]
        for start, stop in itertools.pairwise(edges):
            piece, workers = bars[start:stop], 1 + start % 3
            mf.build(piece, tmp_path / "x.zarr", CONFIG, append=True, workers=workers)
        assert without_input(tree(tmp_path / "x.zarr")) == without_input(rebuilt[CONFIG])
        told = mf.open_store(tmp_path / "x.zarr").attributes["input"]
        pieces = [stop - start for start, stop in itertools.pairwise(edges[1:])]
        assert [x["num_bars"] for x in told["appended"]] == pieces
        # All of them at once agree, and then there is nothing to tell of pieces.
        assert mf.build(bars, tmp_path / "x.zarr", append=True).up_to_date

    @settings(max_examples=15)
    @given(drawn=tick_bars(), config=configs(), data=st.data())
    def test_any_bars(self, drawn, config, data, tmp_path_factory):
        bars = drawn.bars()
        least = config.window_length
        if len(bars) <= least:
            return
        folder = tmp_path_factory.mktemp("any")
        half = data.draw(st.integers(least, len(bars) - 1))
        first = data.draw(st.sampled_from((0, half, half // 2)))
        mf.build(bars[:half], folder / "x.zarr", config)
        mf.build(bars[first:], folder / "x.zarr", config, append=True)
        mf.build(bars, folder / "y.zarr", config)
        one, other = tree(folder / "x.zarr"), tree(folder / "y.zarr")
        assert without_input(one) == without_input(other)
        assert first or one == other
        shutil.rmtree(folder)

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_of_files(self, kind, bars, tmp_path):
        table = frame(bars[: CHUNK + 3_000])
        writer = getattr(pl.DataFrame, f"write_{kind}")
        writer(table[: CHUNK - 40], tmp_path / f"bars.{kind}")
        mf.build(tmp_path / f"bars.{kind}", tmp_path / "x.zarr", CONFIG)
        writer(table, tmp_path / f"bars.{kind}")
        mf.build(tmp_path / f"bars.{kind}", tmp_path / "x.zarr", append=True)
        mf.build(tmp_path / f"bars.{kind}", tmp_path / "y.zarr", CONFIG)
        assert tree(tmp_path / "x.zarr") == tree(tmp_path / "y.zarr")
        assert mf.build(tmp_path / f"bars.{kind}", tmp_path / "x.zarr", CONFIG).up_to_date

    def test_without_a_store_one_is_built(self, bars, rebuilt, tmp_path):
        report = mf.build(bars, tmp_path / "x.zarr", CONFIG, append=True)
        assert tree(tmp_path / "x.zarr") == rebuilt[CONFIG]
        assert report.num_appended == 0

    def test_by_force_everything_is_built(self, bars, tmp_path):
        mf.build(bars[:400], tmp_path / "x.zarr", CONFIG)
        report = mf.build(bars[200:700], tmp_path / "x.zarr", RETURNS, append=True, force=True)
        assert (report.num_bars, report.num_appended) == (500, 0)

    def test_only_the_tail_is_written(self, bars, tmp_path):
        mf.build(bars[: 2 * CHUNK + 10], tmp_path / "x.zarr", CONFIG)

        def numbers() -> dict[str, int]:
            return {
                f"{name} {index}": os.stat(path if path.is_file() else path / "0").st_ino
                for name in ("features", "time", "valid", "ohlc")
                for index in range(3)
                for path in [tmp_path / "x.zarr" / name / "c" / str(index)]
            }

        before = numbers()
        mf.build(bars[: 2 * CHUNK + 90], tmp_path / "x.zarr", append=True)
        after = numbers()
        assert [name for name in before if before[name] != after[name]] == [
            "features 2", "time 2", "valid 2", "ohlc 2",
        ]  # fmt: skip

    @pytest.mark.parametrize("code", ["EPERM", "EXDEV", "EMLINK", "ENOTSUP"])
    def test_where_files_cannot_be_linked(self, bars, rebuilt, tmp_path, monkeypatch, code):
        def link(*_: Any, **__: Any) -> None:
            raise OSError(getattr(files.errno, code), "no links here")

        mf.build(bars[: 2 * CHUNK + 10], tmp_path / "x.zarr", CONFIG)
        monkeypatch.setattr(files.os, "link", link)
        mf.build(bars, tmp_path / "x.zarr", append=True)
        assert tree(tmp_path / "x.zarr") == rebuilt[CONFIG]

    def test_a_stream_and_zarr_go_on(self, bars, tmp_path):
        mf.build(bars[:CHUNK], tmp_path / "x.zarr", CONFIG)
        mf.build(bars[CHUNK : CHUNK + 400], tmp_path / "x.zarr", append=True)
        store = mf.open_store(tmp_path / "x.zarr")
        stream = mf.Stream.from_state(store.attributes["state"])
        expected = mf.compute(bars[: CHUNK + 500], CONFIG)
        for i in range(CHUNK + 400, CHUNK + 500):
            row = stream.update(*(array[i] for array in bars.arrays))
            np.testing.assert_array_equal(row, expected.values[i])
        group = zarr.open_group(tmp_path / "x.zarr", mode="r")
        np.testing.assert_array_equal(group["features"][:], store.features)
        assert mf.verify(tmp_path / "x.zarr").passed


class TestNothingNew:
    @pytest.mark.parametrize("part", [slice(None), slice(50), slice(300, None), slice(200, 300)])
    def test_is_left_alone(self, part, tmp_path):
        bars = walk(400)
        mf.build(bars, tmp_path / "x.zarr", CONFIG)
        inode = os.stat(tmp_path / "x.zarr").st_ino
        before = tree(tmp_path)
        report = mf.build(bars[part], tmp_path / "x.zarr", append=True)
        assert report.up_to_date
        assert report.num_appended == 0
        assert tree(tmp_path) == before
        assert os.stat(tmp_path / "x.zarr").st_ino == inode
        assert names_in(tmp_path) == ["x.zarr"]

    def test_a_build_does_not_undo_it(self, tmp_path):
        source = write(walk(500)[:400], tmp_path / "bars.parquet")
        mf.build(source, tmp_path / "x.zarr", CONFIG)
        mf.build(walk(500)[400:], tmp_path / "x.zarr", append=True)
        message = refused(StoreError, source, tmp_path / "x.zarr", CONFIG)
        assert message == (
            f"{tmp_path}/x.zarr holds bars that were appended from <bars>; pass --append to go "
            "on, or --force to replace it by one without them"
        )
        assert len(mf.open_store(tmp_path / "x.zarr")) == 500


NUM_STORED = CHUNK + 400


def iso(bars: mf.Bars, row: int) -> str:
    return str(bars.time[row].astype("M8[ns]").astype("M8[s]")) + "Z"


class TestContradictions:
    @pytest.fixture
    def target(self, bars, tmp_path) -> Path:
        mf.build(bars[:NUM_STORED], tmp_path / "x.zarr", CONFIG)
        return tmp_path / "x.zarr"

    def changed(self, bars: mf.Bars, **columns: Any) -> mf.Bars:
        fields = ("time", "open", "high", "low", "close")
        values = {name: getattr(bars, name)[: NUM_STORED + 100].copy() for name in fields}
        for name, (row, value) in columns.items():
            values[name][row] = value
        return mf.Bars(**values)

    def refuse(self, source: Any, target: Path, error: type[Exception] = BarsError) -> str:
        before = tree(target)
        message = refused(error, source, target, append=True)
        assert tree(target) == before
        assert names_in(target.parent) == [target.name]
        return message

    @pytest.mark.parametrize("row", [0, 77, CHUNK - 1, CHUNK, CHUNK + 399])
    @pytest.mark.parametrize("name", ["open", "high", "low", "close"])
    def test_another_price(self, bars, target, row, name):
        known = float(getattr(bars, name)[row])
        high, low = float(bars.high[row]), float(bars.low[row])
        values = {"high": high + 0.5, "low": low - 0.5}
        value = values.get(name, low if known != low else high)
        assert self.refuse(self.changed(bars, **{name: (row, value)}), target) == (
            f"<bars>: row {row} ({iso(bars, row)}): {name} is {value!r}, but {known!r} in the "
            "store; give bars that agree with the store, or rebuild it with --force"
        )

    def test_minus_zero(self, tmp_path):
        bars = walk(300)
        ohlc = np.column_stack(bars.arrays[1:]) - bars.low[200]
        target = tmp_path / "x.zarr"
        mf.build(to_bars(bars.time, ohlc), target)
        ohlc[200, 2] = -0.0
        assert "row 200 " in self.refuse(to_bars(bars.time, ohlc), target)

    def moved(self, bars: mf.Bars, row: int, by: int) -> mf.Bars:
        time = bars.time[: NUM_STORED + 100].copy()
        time[row] += by
        return to_bars(time, np.column_stack(bars.arrays[1:])[: len(time)])

    @pytest.mark.parametrize("row", [150, CHUNK + 20])
    def test_another_time(self, bars, target, row):
        message = self.refuse(self.moved(bars, row, 7), target)
        assert message.startswith(
            f"<bars>: row {row} ({iso(bars, row)[:-1]}.000000007Z): the store"
        )
        assert f"has a bar at {iso(bars, row)} before it, which is missing here" in message
        message = self.refuse(self.moved(bars, row, -7), target)
        assert message.startswith(f"<bars>: row {row} (")
        assert f"no such bar, the next one that it has is at {iso(bars, row)}" in message

    def test_a_bar_before_all(self, bars, target):
        message = self.refuse(self.moved(bars, 0, -5), target)
        assert message.startswith("<bars>: row 0 (")
        assert f"no such bar, the next one that it has is at {iso(bars, 0)}" in message

    @pytest.mark.parametrize("row", [150, CHUNK + 398, CHUNK + 399])
    @pytest.mark.parametrize("first", [0, 100])
    def test_a_missing_bar(self, bars, target, first, row):
        keep = np.delete(np.arange(first, NUM_STORED + 100), row - first)
        message = self.refuse(mf.Bars(*(array[keep] for array in bars.arrays)), target)
        assert message.startswith(
            f"<bars>: row {row - first} ({iso(bars, row + 1)}): the store has"
        )
        assert f"a bar at {iso(bars, row)} before it, which is missing here" in message

    def test_bars_are_counted_where_rows_are_not_known(self, tmp_path):
        """A dropped row makes the row of a later bar unknown, so its place is told."""
        table = frame(walk(400))
        high = table["high"].to_numpy().copy()
        high[20] = -9
        table = table.with_columns(high=high)
        mf.build(table[:300], tmp_path / "y.zarr", CONFIG, on_bad_bars="drop")
        close = table["close"].to_numpy().copy()
        close[160] = table["low"][160] if close[160] != table["low"][160] else table["high"][160]
        other = table.with_columns(close=close)
        with pytest.raises(BarsError, match=r"<polars frame>: bar 159 \(.*\): close is "):
            mf.build(other, tmp_path / "y.zarr", append=True, on_bad_bars="drop")

    def test_bad_bars_of_their_own(self, bars, target):
        table = frame(bars[NUM_STORED : NUM_STORED + 100])
        high = table["high"].to_numpy().copy()
        high[50] = -1.0
        message = self.refuse(table.with_columns(high=high), target)
        assert "row 50 (" in message
        assert "high is -1.0, below" in message


class TestRefused:
    def test_another_configuration(self, tmp_path):
        mf.build(walk(300), tmp_path / "x.zarr", CONFIG)
        message = refused(
            StoreError, walk(400), tmp_path / "x.zarr", mf.FeatureConfig(k=2), append=True
        )
        assert "was built with k = 1.2, not 2.0" in message

    def test_another_moola(self, tmp_path, monkeypatch):
        mf.build(walk(300), tmp_path / "x.zarr", CONFIG)
        built = mf.__version__
        monkeypatch.setattr(mf, "__version__", "0.0.9")
        message = refused(StoreError, walk(400), tmp_path / "x.zarr", append=True)
        assert message == (
            f"{tmp_path}/x.zarr was built by moola {built}, this is 0.0.9; rebuild it with --force"
        )

    @pytest.mark.parametrize("name", ["features", "time", "valid", "ohlc"])
    def test_a_damaged_tail(self, name, tmp_path):
        mf.build(walk(300), tmp_path / "x.zarr", CONFIG)
        chunk = tmp_path / "x.zarr" / name / "c" / "0"
        chunk = chunk if chunk.is_file() else chunk / "0"
        data = bytearray(chunk.read_bytes())
        data[100] ^= 1
        chunk.write_bytes(data)
        for source in (walk(400)[300:], walk(400)):
            message = refused(StoreError, source, tmp_path / "x.zarr", append=True)
            assert message.startswith(f"file {chunk} is not what was written: ")
        assert names_in(tmp_path) == ["x.zarr"]

    def test_a_store_without_checksums(self, tmp_path):
        mf.build(walk(300), tmp_path / "x.zarr", CONFIG)
        edit_attributes(tmp_path / "x.zarr", lambda attributes: attributes.pop("checksums"))
        message = refused(StoreError, walk(400)[300:], tmp_path / "x.zarr", append=True)
        assert message == (
            f"{tmp_path}/x.zarr has no checksums, as an older moola made it; "
            "rebuild it with --force"
        )

    def test_no_store(self, tmp_path):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.txt").write_text("a")
        refused(StoreError, walk(400), tmp_path / "notes", append=True)
        assert names_in(tmp_path / "notes") == ["a.txt"]

    def test_while_another_builds(self, tmp_path):
        mf.build(walk(300), tmp_path / "x.zarr", CONFIG)
        with files.replaced_folder(tmp_path / "x.zarr"):
            message = refused(OutputError, walk(400), tmp_path / "x.zarr", append=True)
        assert "is being built by another process; wait for it" in message

    def test_other_symbols(self, tmp_path):
        mf.build(frame(walk(300), "NQ"), tmp_path / "x.zarr", CONFIG)
        more = walk(400)[300:]
        message = refused(StoreError, frame(more, "ES"), tmp_path / "x.zarr", append=True)
        assert message == (
            f"{tmp_path}/x.zarr holds NQ, but <polars frame> holds ES; build that into another "
            "folder"
        )
        both = pl.concat([frame(more, "NQ"), frame(more, "ES")])
        assert "holds NQ, ES" in refused(StoreError, both, tmp_path / "x.zarr", append=True)
        assert mf.build(frame(more), tmp_path / "x.zarr", append=True).num_appended == 100
        assert mf.open_store(tmp_path / "x.zarr").attributes["symbol"] == "NQ"


class TestUniverse:
    def bars(self, name: str) -> mf.Bars:
        return walk(600, seed=ord(name), gaps=[200])

    def table(self, **lengths: int) -> pl.DataFrame:
        parts = [frame(self.bars(name)[:n], name) for name, n in lengths.items()]
        return pl.concat(parts).sort("time", "symbol")

    def test_some_grow_one_is_new_one_stays(self, tmp_path):
        target = tmp_path / "u.zarr"
        mf.build(self.table(A=300, B=400, C=350), target, CONFIG)
        whole = self.table(A=500, B=400, C=360, D=220)
        report = mf.build(whole, target, append=True)
        assert report.num_appended == 200 + 10 + 220
        mf.build(whole, tmp_path / "v.zarr", CONFIG)
        for symbol in "ABCD":
            found, expected = (mf.open_store(tmp_path / x)[symbol] for x in ("u.zarr", "v.zarr"))
            assert found.attributes == expected.attributes
        mf.open_store(target, check=True)
        one, other = tree(target), tree(tmp_path / "v.zarr")
        mine, theirs = json.loads(one.pop("zarr.json")), json.loads(other.pop("zarr.json"))
        assert one == other
        order = list(theirs["attributes"].pop("instruments"))
        assert sorted(mine["attributes"].pop("instruments")) == sorted(order)
        assert mine == theirs

    def test_of_new_bars_only(self, tmp_path):
        target = tmp_path / "u.zarr"
        mf.build(self.table(A=300, B=400), target, CONFIG)
        new = pl.concat([frame(self.bars("A")[300:360], "A"), self.table(B=400)])
        assert mf.build(new, target, append=True).num_appended == 60
        universe = mf.open_store(target, check=True)
        assert_store_holds(universe["A"], self.bars("A")[:360], CONFIG)
        assert_store_holds(universe["B"], self.bars("B")[:400], CONFIG)
        assert universe["A"].attributes["input"]["appended"][0]["num_bars"] == 60
        assert "appended" not in universe["B"].attributes["input"]
        assert len(universe.attributes["input"]["appended"]) == 1
        # Of so few bars, too few are valid; nothing else is wrong.
        assert failed(mf.verify(target)) <= {"A: valid share", "B: valid share"}

    def test_one_of_several(self, tmp_path):
        target = tmp_path / "u.zarr"
        mf.build(self.table(A=300, B=400), target, CONFIG)
        more = frame(self.bars("B")[400:450], "B")
        assert mf.build(more, target, append=True).num_appended == 50
        assert len(mf.open_store(target)["B"]) == 450
        message = refused(StoreError, walk(500)[450:], target, append=True)
        assert "holds several instruments, but <bars> names none; give bars with a" in message

    def test_bars_of_one_that_will_not_do(self, tmp_path):
        target = tmp_path / "u.zarr"
        lengths = {"A": 300, "B": CHUNK + 300, "C": 350, "D": 400}
        bars = {name: walk(3 * CHUNK, seed=ord(name), gaps=[200]) for name in lengths}
        parts = {name: frame(bars[name][:n], name) for name, n in lengths.items()}
        mf.build(pl.concat(parts.values()), target, CONFIG)
        before = tree(target)
        bad = frame(bars["B"], "B")
        nan = pl.when(pl.int_range(pl.len()) == 3 * CHUNK - 9).then(float("nan"))
        parts["B"] = bad.with_columns(close=nan.otherwise("close"))  # behind finished chunks
        parts["C"] = frame(walk(500, seed=1), "C")
        few, both = frame(walk(50), "FEW"), [parts["B"], parts["C"]]
        message = refused(BarsError, pl.concat([few, *both]), target, append=True)
        assert message.startswith("nothing of 3 instruments can be appended; the first: ")
        assert tree(target) == before
        grown = [frame(bars["A"][:500], "A"), frame(bars["A"][:200], "NEW")]
        report = mf.build(pl.concat([few, *both, *grown]), target, append=True)
        assert report.num_appended == 200 + 200
        assert {one.symbol: one.status for one in report.outcomes} == {
            "A": "built", "B": "failed", "C": "failed", "D": "kept", "FEW": "failed",
            "NEW": "built",
        }  # fmt: skip
        details = {one.symbol: one.detail for one in report.outcomes if one.detail}
        assert "close is nan" in details["B"]
        assert details["C"].startswith("<polars frame> [C]: bar 200 (")
        assert details["FEW"].startswith("<polars frame> [FEW]: 50 bars, fewer than one window")
        universe = mf.open_store(target, check=True)
        assert sorted(universe) == ["A", "B", "C", "D", "NEW"]
        assert_store_holds(universe["A"], bars["A"][:500], CONFIG)
        assert_store_holds(universe["NEW"], bars["A"][:200], CONFIG)
        after = tree(target)
        kept = {name for name in before if name.startswith(("B/", "C/", "D/"))}
        assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
        assert names_in(target) == ["A", "B", "C", "D", "NEW", "zarr.json"]
        assert names_in(tmp_path) == ["u.zarr"]

    def test_a_damaged_one_does_not_stop_the_others(self, tmp_path):
        target = tmp_path / "u.zarr"
        mf.build(self.table(A=300, B=400, C=350), target, CONFIG)
        path = target / "B" / "features" / "c" / "0" / "0"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        before = tree(target / "B")
        report = mf.build(self.table(A=500, B=450, C=350), target, append=True)
        assert report.num_appended == 200
        assert {one.symbol: one.status for one in report.outcomes} == {
            "A": "built", "B": "failed", "C": "unchanged",
        }  # fmt: skip
        (detail,) = [one.detail for one in report.outcomes if one.detail]
        assert detail.startswith(f"file {path} is not what was written: ")
        assert tree(target / "B") == before
        universe = mf.open_store(target)
        assert_store_holds(universe["A"], self.bars("A")[:500], CONFIG)
        assert list(universe) == ["A", "B", "C"]
        # Where nothing else is new, that is the whole story.
        refused(StoreError, self.table(A=500, B=450), target, append=True)
        assert names_in(tmp_path) == ["u.zarr"]

    def test_contradictions_name_the_symbol(self, tmp_path):
        target = tmp_path / "u.zarr"
        mf.build(self.table(A=300, B=400), target, CONFIG)
        other = self.table(A=300).vstack(frame(walk(500, seed=9), "B"))
        message = refused(BarsError, other, target, append=True)
        assert message.startswith("<polars frame> [B]: bar ")


class TestDropped:
    def test_counts_add_up(self, tmp_path):
        table = frame(walk(400))
        high = table["high"].to_numpy().copy()
        high[[10, 320, 330]] = -9
        table = table.with_columns(high=high)
        mf.build(table[:300], tmp_path / "x.zarr", CONFIG, on_bad_bars="drop")
        mf.build(table[300:], tmp_path / "x.zarr", append=True, on_bad_bars="drop")
        found = mf.open_store(tmp_path / "x.zarr").attributes["dropped"]
        assert found["total"] == 3
        assert found["counts"] == {"high below open or close": 3}
        assert [fault["row"] for fault in found["examples"]] == [10, 20, 30]
        mf.build(table[:300], tmp_path / "y.zarr", CONFIG, on_bad_bars="drop")
        mf.build(table, tmp_path / "y.zarr", append=True, on_bad_bars="drop")
        mf.build(table, tmp_path / "z.zarr", CONFIG, on_bad_bars="drop")
        assert tree(tmp_path / "y.zarr") == tree(tmp_path / "z.zarr")


class TestRefresh:
    def test_goes_over_to_the_new_bars(self, bars, tmp_path):
        target = tmp_path / "x.zarr"
        mf.build(bars[: CHUNK + 10], target, CONFIG)
        store, other = mf.open_store(target), mf.open_store(target)
        windows, features = store.windows(), store.features
        assert store.refresh() is False
        for num_bars in (CHUNK + 20, 2 * CHUNK + 7):
            mf.build(bars[:num_bars], target, append=True)
            assert len(store) < num_bars
            assert store.refresh() is True
            assert store.refresh() is False
            assert_store_holds(store, bars[:num_bars], CONFIG)
        assert len(store.windows()) > len(windows)
        # What was taken before serves on.
        assert_store_holds(other, bars[: CHUNK + 10], CONFIG)
        assert len(features) == CHUNK + 10
        assert windows.gather([0, -1]).shape == (2, 105, 11)

    def test_another_configuration_or_kind(self, tmp_path):
        target = tmp_path / "x.zarr"
        mf.build(walk(300), target, CONFIG)
        store = mf.open_store(target)
        mf.build(walk(400), target, RETURNS, force=True)
        with pytest.raises(StoreError, match="was built with family = 'returns', not 'relativity'"):
            store.refresh()
        assert_store_holds(store, walk(300), CONFIG)
        both = pl.concat([frame(walk(300), "A"), frame(walk(300), "B")])
        mf.build(both, target, CONFIG, force=True)
        with pytest.raises(StoreError, match="holds several instruments now; open it anew"):
            store.refresh()
        shutil.rmtree(target)
        with pytest.raises(StoreNotFoundError):
            store.refresh()
        assert_store_holds(store, walk(300), CONFIG)

    def test_a_universe_is_of_one_build(self, tmp_path):
        target = tmp_path / "u.zarr"
        table = pl.concat([frame(walk(300, seed=seed), name) for seed, name in enumerate("ABC")])
        mf.build(table, target, CONFIG)
        universe = mf.open_store(target)
        held, windows = universe["A"], universe.windows()
        assert universe.refresh() is False
        mf.build(frame(walk(400), "D"), target, append=True)
        message = (
            f"{target} was rebuilt since it was opened, so its B is not opened beside others of "
            "before; call refresh(), or open it again"
        )
        for opened in (lambda: universe["B"], lambda: universe.windows(symbols=["B"])):
            with pytest.raises(StoreError) as caught:
                opened()
            assert str(caught.value) == message
        assert universe["A"] is held
        assert universe.refresh() is True
        assert universe.refresh() is False
        assert list(universe) == ["A", "B", "C", "D"]
        assert_store_holds(universe["B"], walk(300, seed=1), CONFIG)
        assert_store_holds(held, walk(300, seed=0), CONFIG)
        assert windows.gather([0, -1]).shape == (2, 105, 11)

    def test_a_universe_of_another_configuration_or_kind(self, tmp_path):
        target = tmp_path / "u.zarr"
        table = pl.concat([frame(walk(300, seed=seed), name) for seed, name in enumerate("AB")])
        mf.build(table, target, CONFIG)
        universe = mf.open_store(target)
        held = universe["A"]
        mf.build(table, target, mf.FeatureConfig(k=2), force=True)
        with pytest.raises(StoreError, match="so its B is not opened beside others"):
            universe["B"]
        with pytest.raises(StoreError, match=r"was built with k = 2\.0, not 1\.2"):
            universe.refresh()
        mf.build(table.filter(symbol="A"), tmp_path / "x.zarr", CONFIG)
        shutil.rmtree(target)
        with pytest.raises(StoreNotFoundError):
            universe["B"]
        with pytest.raises(StoreNotFoundError):
            universe.refresh()
        (tmp_path / "x.zarr").rename(target)
        with pytest.raises(StoreError, match="holds one instrument now; open it anew"):
            universe.refresh()
        assert universe["A"] is held

    def test_readers_see_old_or_new(self, bars, tmp_path):
        """One that opens anew, one that refreshes and one that does neither, all the while."""
        target = tmp_path / "x.zarr"
        lengths = [4_000 + 8 * step for step in range(10)]
        mf.build(bars[: lengths[0]], target, CONFIG)
        expected = mf.compute(bars[: lengths[-1]], CONFIG)
        held, longlived = mf.open_store(target), mf.open_store(target)
        done, faults, seen = threading.Event(), [], set()

        def check(store: Any) -> None:
            rows = slice(len(store))
            same = store.features.tobytes() == expected.values[rows].tobytes()
            same &= store.valid.tobytes() == expected.valid[rows].tobytes()
            same &= store.time.tobytes() == bars.time[rows].tobytes()
            if not same or len(store) not in lengths:
                faults.append(f"{len(store)} bars are not those")
            seen.add(len(store))

        def read() -> None:
            try:
                while not done.is_set():
                    longlived.refresh()
                    for store in (longlived, held, mf.open_store(target)):
                        check(store)
            except BaseException as error:
                faults.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        for length in lengths[1:]:
            mf.build(bars[:length], target, append=True)
        done.set()
        thread.join(60)
        assert faults == []
        assert len(seen) > 2
        assert len(held) == lengths[0]
