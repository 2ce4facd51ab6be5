"""Builds: the bits of computing in memory, whatever lies between, and what they refuse."""

from __future__ import annotations

import functools
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import moola_features as mf
from moola_features.bars import sources
from moola_features.bars.checks import PRICES
from moola_features.building import crew
from moola_features.errors import BarsError, StoreError
from tests.markets import (
    CHUNK,
    as_bits,
    assert_store_holds,
    frame,
    names_in,
    refused,
    run_python,
    tree,
    walk,
    write,
)
from tests.strategies import MINUTE_NS, START_NS, to_bars

CONFIGS = {
    "standard": mf.FeatureConfig(max_gap="2h"),
    "everything": mf.FeatureConfig(
        swing_rule="early", consol_proxy=True, context=True, max_gap="2h"
    ),
    "returns": mf.FeatureConfig(family="returns", max_gap="2h"),
    "no segments": mf.FeatureConfig(),
}
# Before the seams of chunks, batches and blocks, behind them, next to each other, at both ends.
SEAMS = (1, 2, 255, 256, 997, 65_535, 65_536, 65_537, 131_071, 131_072, 139_998, 139_999)
MANY = 140_000  # bars: two chunk files and a part of one


@pytest.fixture(scope="module")
def many_bars() -> mf.Bars:
    return walk(MANY, gaps=SEAMS)


def long_trap() -> mf.Bars:
    """Eight chunks: a flat run over one seam, and over another a climb in which no swing turns."""
    ohlc = np.column_stack(walk(7 * CHUNK + 500, seed=3).arrays[1:])
    flat, climb = slice(2 * CHUNK - 900, 2 * CHUNK + 200), slice(4 * CHUNK - 900, 4 * CHUNK + 200)
    ohlc[flat] = ohlc[flat.start]
    rise = np.arange(1_100)
    ohlc[climb] = ohlc[climb.start, 1] + np.column_stack((rise, rise + 1, rise, rise + 1))
    return to_bars(START_NS + np.arange(len(ohlc)) * MINUTE_NS, ohlc)


def batched(monkeypatch: pytest.MonkeyPatch, batch_bars: int) -> None:
    """Let builds read so many bars at a time."""
    whole = sources.open_source
    monkeypatch.setattr(sources, "open_source", functools.partial(whole, batch_bars=batch_bars))


class TestSameBits:
    @pytest.mark.parametrize("batch_bars", [997, 65_536, 70_001, MANY])
    @pytest.mark.parametrize("name", CONFIGS)
    def test_as_in_memory(self, name, batch_bars, many_bars, tmp_path, monkeypatch):
        config = CONFIGS[name]
        batched(monkeypatch, batch_bars)
        report = mf.build(many_bars, tmp_path / "x.zarr", config)
        store = mf.open_store(tmp_path / "x.zarr")
        assert len(store.segments) == (len(SEAMS) + 1 if config.max_gap else 1)
        assert_store_holds(store, many_bars, config)
        assert report.num_bars == MANY

    @pytest.mark.parametrize("num_bars", [105, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
    def test_chunks_that_are_just_full(self, num_bars, many_bars, tmp_path):
        bars = many_bars[:num_bars]
        mf.build(bars, tmp_path / "x.zarr")
        assert_store_holds(mf.open_store(tmp_path / "x.zarr"), bars, mf.FeatureConfig())
        num_chunks = -(-num_bars // CHUNK)
        for name in ("features", "time", "valid", "ohlc"):
            found = names_in(tmp_path / "x.zarr" / name / "c")
            assert found == [str(index) for index in range(num_chunks)]

    def test_few_bars_take_little_room(self, many_bars, tmp_path):
        """The padding of the last chunk is a hole in its file, if there can be one."""
        hole = tmp_path / "hole"
        with hole.open("wb") as file:
            file.truncate(1 << 20)
        if hole.stat().st_blocks * 512 >= 1 << 20:
            pytest.skip("this file system has no holes")
        target = mf.build(many_bars[:300], tmp_path / "x.zarr").path
        arrays = ("features", "time", "valid", "ohlc")
        files = [path for name in arrays for path in (target / name / "c").rglob("*")]
        files = [path for path in files if path.is_file()]
        assert sum(path.stat().st_size for path in files) > 5_000_000
        assert sum(path.stat().st_blocks * 512 for path in files) < 100_000
        features = np.fromfile(target / "features/c/0/0", "<f4").reshape(-1, 11)
        assert features[:300].any(axis=1).all()
        assert not features[300:].any()
        mf.build(many_bars[: CHUNK + 1], target, append=True)
        mf.build(many_bars[: CHUNK + 1], tmp_path / "y.zarr")
        one, other = (mf.open_store(path, check=True) for path in (target, tmp_path / "y.zarr"))
        np.testing.assert_array_equal(as_bits(one.features), as_bits(other.features))

    def test_one_bar_at_a_time(self, tmp_path, monkeypatch):
        batched(monkeypatch, 1)
        bars = walk(300, gaps=[40, 41, 170])
        mf.build(bars, tmp_path / "x.zarr", CONFIGS["everything"])
        assert_store_holds(mf.open_store(tmp_path / "x.zarr"), bars, CONFIGS["everything"])

    def test_segments_know_nothing_of_each_other(self, many_bars, tmp_path):
        config = CONFIGS["everything"]
        mf.build(many_bars, tmp_path / "x.zarr", config)
        store = mf.open_store(tmp_path / "x.zarr")
        for start, stop in store.segments.tolist():
            alone = mf.compute(many_bars[start:stop], config)
            np.testing.assert_array_equal(
                as_bits(store.features[start:stop]), as_bits(alone.values)
            )
            np.testing.assert_array_equal(store.valid[start:stop], alone.valid)

    def test_two_builds_are_the_same_files(self, many_bars, tmp_path, monkeypatch):
        source = write(many_bars, tmp_path / "bars.parquet")
        mf.build(source, tmp_path / "a.zarr", CONFIGS["everything"])
        batched(monkeypatch, 12_345)
        mf.build(source, tmp_path / "b.zarr", CONFIGS["everything"])
        assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")

    @pytest.mark.parametrize("name", CONFIGS)
    def test_any_number_of_workers(self, name, tmp_path):
        bars = long_trap()
        found = {}
        for workers in (1, 2, 7):
            report = mf.build(bars, tmp_path / "x.zarr", CONFIGS[name], workers=workers, force=True)
            assert (report.workers, report.num_chunks) == (workers, 8)
            assert report.num_redone <= report.num_guessed < 8
            found[workers] = tree(tmp_path / "x.zarr")
        assert_store_holds(mf.open_store(tmp_path / "x.zarr"), bars, CONFIGS[name])
        assert found[2] == found[1]
        assert found[7] == found[1]

    def test_guesses_are_made_and_mended(self, tmp_path, monkeypatch):
        """With the first chunk held back, every other one has nothing but its guess."""
        held = threading.Event()
        run_chunk = crew.run_chunk

        def run(task: Any, buffer: Any) -> Any:
            if task.index == 0:
                assert held.wait(60)
            if task.index == 4:
                held.set()
            return run_chunk(task, buffer)

        monkeypatch.setattr(crew, "run_chunk", run)
        bars = long_trap()
        report = mf.build(bars, tmp_path / "x.zarr", CONFIGS["no segments"], workers=5)
        assert report.num_guessed >= 4
        assert report.num_redone >= 2  # behind the run of flat bars, and in the long climb
        assert_store_holds(mf.open_store(tmp_path / "x.zarr"), bars, CONFIGS["no segments"])

    @pytest.mark.parametrize("name", CONFIGS)
    def test_a_stream_goes_on_from_a_store(self, name, many_bars, tmp_path):
        config = CONFIGS[name]
        # 65,700 bars end between two seams; 65,536 end where a segment is about to begin.
        for num_bars in (65_700, 65_536):
            mf.build(many_bars[:num_bars], tmp_path / "x.zarr", config, force=True)
            state = mf.open_store(tmp_path / "x.zarr").attributes["state"]
            stream = mf.Stream.from_state(json.loads(json.dumps(state)))
            assert stream.num_bars == num_bars
            expected = mf.compute(many_bars[: num_bars + 300], config)
            assert stream.valid == expected.valid[num_bars - 1]
            for i in range(num_bars, num_bars + 300):
                actual = stream.update(*(array[i] for array in many_bars.arrays))
                np.testing.assert_array_equal(as_bits(actual), as_bits(expected.values[i]))
                assert stream.valid == expected.valid[i]


class TestUniverse:
    SYMBOLS = ("BTC/USD", "ETHUSD", ".hidden", "zarr.json", "ß 1")

    @pytest.fixture
    def source(self, tmp_path) -> Path:
        """Five symbols, their rows in one order of time."""
        tables = [
            frame(walk(400 + 10 * i, seed=i, gaps=[200 + i]), symbol)
            for i, symbol in enumerate(self.SYMBOLS)
        ]
        pl.concat(tables).sort("time", "symbol").write_parquet(tmp_path / "many.parquet")
        return tmp_path / "many.parquet"

    def test_one_store_for_each(self, source, tmp_path, monkeypatch):
        batched(monkeypatch, 333)
        report = mf.build(source, tmp_path / "u.zarr", CONFIGS["everything"])
        universe = mf.open_store(tmp_path / "u.zarr")
        assert sorted(universe) == sorted(self.SYMBOLS)
        assert len(universe) == len(report.instruments) == 5
        assert [x.symbol for x in report.instruments] == list(universe)
        for i, symbol in enumerate(self.SYMBOLS):
            bars = walk(400 + 10 * i, seed=i, gaps=[200 + i])
            assert_store_holds(universe[symbol], bars, CONFIGS["everything"])
            assert universe[symbol].attributes["symbol"] == symbol
            assert universe[symbol].path.parent == tmp_path / "u.zarr"
        with pytest.raises(KeyError, match=r"no instrument 'XRP' in .*; there is .*ETHUSD"):
            universe["XRP"]

    def test_up_to_date_and_not(self, source, tmp_path):
        mf.build(source, tmp_path / "u.zarr")
        before = tree(tmp_path / "u.zarr")
        assert mf.build(source, tmp_path / "u.zarr").up_to_date
        assert "swing_rule = 'atr', not 'early'" in refused(
            StoreError, source, tmp_path / "u.zarr", mf.FeatureConfig(swing_rule="early")
        )
        assert tree(tmp_path / "u.zarr") == before

    def test_one_with_too_few_bars(self, source, tmp_path):
        table = pl.concat([pl.read_parquet(source), frame(walk(104, seed=9), "SHORT")])
        table.write_parquet(tmp_path / "short.parquet")
        report = mf.build(tmp_path / "short.parquet", tmp_path / "u.zarr")
        (failed,) = (one for one in report.outcomes if one.status == "failed")
        assert failed.symbol == "SHORT"
        assert failed.detail.startswith(
            "short.parquet [SHORT]: 104 bars, fewer than one window of 105;"
        )
        assert set(mf.open_store(tmp_path / "u.zarr")) == set(self.SYMBOLS)
        assert names_in(tmp_path) == ["many.parquet", "short.parquet", "u.zarr"]

    def test_a_single_symbol_is_no_universe(self, tmp_path):
        frame(walk(200), "NQ").write_parquet(tmp_path / "nq.parquet")
        report = mf.build(tmp_path / "nq.parquet", tmp_path / "nq.zarr")
        assert_store_holds(mf.open_store(tmp_path / "nq.zarr"), walk(200), mf.FeatureConfig())
        assert report.instruments[0].symbol == "NQ"


class TestBarsThatWillNotDo:
    @pytest.mark.parametrize("num_bars", [0, 1, 104])
    @pytest.mark.parametrize("standing", [False, True])
    def test_too_few(self, num_bars, standing, tmp_path):
        target = tmp_path / "out" / "x.zarr"
        target.parent.mkdir()
        if standing:
            mf.build(walk(200), target)
        before = tree(target.parent)
        table = frame(walk(200))[:num_bars]
        message = refused(BarsError, table, target, force=True)
        assert ("there are no bars" if num_bars == 0 else f"{num_bars} bars, fewer") in message
        assert tree(target.parent) == before
        assert names_in(target.parent) == (["x.zarr"] if standing else [])

    def test_just_enough(self, tmp_path):
        mf.build(walk(105), tmp_path / "x.zarr")
        assert len(mf.open_store(tmp_path / "x.zarr")) == 105
        mf.build(walk(60), tmp_path / "y.zarr", mf.FeatureConfig(window_length=60))
        assert len(mf.open_store(tmp_path / "y.zarr").windows()) == 0

    def bad_source(self, tmp_path: Path) -> Path:
        table = frame(walk(70_000))
        high = table["high"].to_numpy().copy()
        high[66_000] = 0.25
        high[69_000] = np.nan
        table.with_columns(high=high).write_parquet(tmp_path / "bad.parquet")
        return tmp_path / "bad.parquet"

    def test_bad_bars_in_the_middle(self, tmp_path):
        source = self.bad_source(tmp_path)
        mf.build(walk(200), tmp_path / "x.zarr")
        before = tree(tmp_path)
        message = refused(BarsError, source, tmp_path / "x.zarr", force=True)
        assert "row 66000 (" in message
        assert "high is 0.25, below " in message
        assert tree(tmp_path) == before

    def test_bad_bars_dropped(self, tmp_path):
        source = self.bad_source(tmp_path)
        report = mf.build(source, tmp_path / "x.zarr", on_bad_bars="drop")
        keep = np.delete(np.arange(70_000), [66_000, 69_000])
        good = mf.Bars(*(array[keep] for array in walk(70_000).arrays))
        store = mf.open_store(tmp_path / "x.zarr")
        assert_store_holds(store, good, mf.FeatureConfig())
        dropped = store.attributes["dropped"]
        assert dropped == report.instruments[0].dropped
        assert dropped["total"] == 2
        assert dropped["counts"] == {
            "high below open or close": 1, "price not a finite number": 1,
        }  # fmt: skip
        assert [fault["row"] for fault in dropped["examples"]] == [66_000, 69_000]
        assert store.attributes["gaps"]["histogram"]["up to 2 min"] == 2

    def test_prices_without_a_logarithm(self, tmp_path):
        prices = np.linspace(5, -5, 200)
        time = START_NS + np.arange(200) * MINUTE_NS
        table = {"time": time, **dict.fromkeys(PRICES, prices)}
        message = refused(BarsError, table, tmp_path / "x.zarr", mf.FeatureConfig(family="returns"))
        assert message.startswith("row 100, 2020-09-13T14:06:40Z: low is -0.0251256;")
        assert names_in(tmp_path) == []


class TestReport:
    def test_size_is_without_holes(self, tmp_path):
        """Of few bars a store takes little, though its chunk files have their full size."""
        (tmp_path / "hole").touch()
        os.truncate(tmp_path / "hole", 2**20)
        if (tmp_path / "hole").stat().st_blocks:
            pytest.skip("the file system knows no holes")
        found = mf.build(walk(300), tmp_path / "x.zarr").instruments[0]
        num_bytes = 300 * (44 + 8 + 1 + 32)
        assert num_bytes < found.num_bytes < 1_000_000
        assert sum(map(len, tree(tmp_path / "x.zarr").values())) > 5_000_000

    def test_counts_times_and_progress(self, many_bars, tmp_path):
        source = write(many_bars, tmp_path / "bars.parquet")
        calls: list[tuple[int, int | None]] = []
        report = mf.build(
            source, tmp_path / "x.zarr", CONFIGS["standard"],
            progress=lambda done, total: calls.append((done, total)),
        )  # fmt: skip
        found = report.instruments[0]
        assert (found.num_bars, found.num_segments) == (MANY, len(SEAMS) + 1)
        assert found.num_flat == np.count_nonzero(many_bars.high == many_bars.low)
        assert found.num_valid == mf.compute(many_bars, CONFIGS["standard"]).valid.sum()
        assert (found.first_time, found.last_time) == (many_bars.time[0], many_bars.time[-1])
        files = [path for path in (tmp_path / "x.zarr").rglob("*") if path.is_file()]
        assert found.num_bytes == sum(512 * path.stat().st_blocks for path in files)
        assert found.input["source"] == "bars.parquet"
        steps = found.gaps["histogram"]
        assert (steps["1 min"], steps["up to 1 day"]) == (MANY - 1 - len(SEAMS), len(SEAMS))
        assert [gap["seconds"] for gap in found.gaps["longest"]] == [36_000.0] * 5
        assert list(report.seconds) == ["import", "compile", "read", "compute", "write", "total"]
        *stages, total = report.seconds.values()
        assert total == pytest.approx(sum(stages))
        assert json.loads(json.dumps(report.to_dict()))["num_bars"] == MANY
        assert calls == sorted(calls)
        assert calls[-1] == (MANY, MANY)

    def test_progress_may_stop_it(self, tmp_path):
        def stop(done: int, total: int | None) -> None:
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            mf.build(walk(200), tmp_path / "x.zarr", progress=stop)
        assert names_in(tmp_path) == []


MEMORY = """
import sys
import numpy as np
import moola_features as mf

def peak():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM"))

small, large, target = sys.argv[1:]
told = []
config = mf.FeatureConfig(context=True)
report = mf.build(small, target, config, workers=2, tell=told.append)
before = peak()
mf.build(large, target, config, workers=2, force=True)
print(before // 1024, peak() // 1024, report.predicted_bytes >> 20, report.peak_bytes >> 20)
assert told == [f"memory: about {report.predicted_bytes / 1e6:,.0f} MB with 2 workers, no limit"]
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_input(tmp_path):
    large = walk(2_500_000)
    small = write(large[:1_000_000], tmp_path / "small.parquet")
    source = write(large, tmp_path / "large.parquet")
    found = run_python(MEMORY, small, source, tmp_path / "x.zarr").stdout.split()
    before, after, foretold, told = map(int, found)
    assert after < 476  # MiB: 500 MB
    assert after < 1.1 * before  # the other 1.5 million bars would take 120 MiB
    assert abs(told - before) <= 1
    assert before < foretold < 1.3 * before
    assert_store_holds(mf.open_store(tmp_path / "x.zarr"), large, mf.FeatureConfig(context=True))
