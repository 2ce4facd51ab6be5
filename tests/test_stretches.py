"""Stretches computed at once, from guesses: the bits of one pass, whatever the guesses were."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf
from moola_features.engine import compute_at_once
from moola_features.errors import ConfigError
from moola_features.feature_pass import FeaturePass
from moola_features.segments import segment_starts
from moola_features.stretches import Computed, Cutter, Stretch, run_stretch, warmup_bars
from tests.markets import as_bits, walk
from tests.strategies import (
    TickBars,
    config_name,
    configs,
    every_config,
    hostile,
    tick_bars,
    to_bars,
)

HOSTILE = hostile()
WORKERS = (1, 2, 7)


def at_once(
    bars: mf.Bars, config: mf.FeatureConfig, workers: int, size: int, warmup: int | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[Computed]]:
    values = np.full((len(bars), len(config.names)), np.nan, np.float32)
    valid = np.zeros(len(bars), np.bool_)
    done = compute_at_once(bars, config, values, valid, workers=workers, size=size, warmup=warmup)
    return values, valid, done


def guessing(
    bars: mf.Bars, config: mf.FeatureConfig, size: int, warmup: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[Computed]]:
    """Compute stretch by stretch, each before it is told what it starts from."""
    cutter = Cutter(config, size, warmup=warmup)
    values = np.full((len(bars), len(config.names)), np.nan, np.float32)
    valid = np.zeros(len(bars), np.bool_)
    done = []
    truth = b""
    for stretch in [*cutter.add(bars), *cutter.finish()]:
        rows = slice(stretch.first_bar, stretch.first_bar + len(stretch.bars))
        end: Future[bytes] = Future()
        start = _Late(truth)
        done.append(run_stretch(config, stretch, start, end, values[rows], valid[rows]))
        truth = end.result()
    return values, valid, done


class _Late(Future):
    """A state that is known only when it is asked for."""

    def __init__(self, truth: bytes) -> None:
        super().__init__()
        self._truth = truth

    def result(self, timeout: float | None = None) -> bytes:
        return self._truth


def assert_as_in_one_pass(
    bars: mf.Bars,
    config: mf.FeatureConfig,
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> None:
    expected = mf.compute(bars, config)
    np.testing.assert_array_equal(as_bits(values), as_bits(expected.values))
    np.testing.assert_array_equal(valid, expected.valid)


@given(
    drawn=tick_bars(), config=configs(),
    size=st.sampled_from((1, 2, 7, 50, 64, 133, 1_000)),
    warmup=st.sampled_from((0, 1, 3, 20, 40, 90)),
)  # fmt: skip
def test_any_plan(drawn: TickBars, config: mf.FeatureConfig, size: int, warmup: int) -> None:
    bars = drawn.bars()
    values, valid, _ = guessing(bars, config, size, warmup)
    assert_as_in_one_pass(bars, config, values, valid)
    workers = 1 + size % 7
    values, valid, done = at_once(bars, config, workers, size, warmup)
    assert_as_in_one_pass(bars, config, values, valid)
    assert len(done) == -(-len(bars) // size)


@pytest.mark.parametrize("config", every_config(), ids=config_name)
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    bars = HOSTILE[name].bars()
    for size, warmup in itertools.product((9, 30), (5, 28)):
        values, valid, _ = guessing(bars, config, size, warmup)
        assert_as_in_one_pass(bars, config, values, valid)
        for workers in WORKERS:
            values, valid, _ = at_once(bars, config, workers, size, warmup)
            assert_as_in_one_pass(bars, config, values, valid)


def trap(kind: str) -> mf.Bars:
    """8,000 bars whose state at the seams every 2,000 is not told by 610 bars before them."""
    rng = np.random.default_rng(5)
    ticks = 1_000 + rng.integers(-6, 7, 8_000).cumsum()
    ticks += 1 - min(0, int(ticks.min()))
    spread = rng.integers(0, 3, (2, 8_000))
    if kind == "flat":  # longer than the warm-up, and over a seam
        ticks[3_000:4_800] = ticks[3_000]
        spread[:, 3_000:4_800] = 0
    else:  # a swing that never confirms: every bar closes at its high
        ticks[3_000:4_800] = ticks[3_000] + np.arange(1_800)
        ticks[4_800:] += ticks[4_799] - ticks[4_800]
        spread[:, 3_000:4_800] = 0
    opened = np.concatenate((ticks[:1], ticks[:-1]))
    if kind == "flat":
        opened[3_000:4_800] = ticks[3_000]
    high = np.maximum(opened, ticks) + spread[0]
    low = np.minimum(opened, ticks) - spread[1]
    ohlc = np.column_stack((opened, high, low, ticks)) * 0.25
    return to_bars(np.arange(8_000, dtype=np.int64) * 60_000_000_000, ohlc)


@pytest.mark.parametrize("rule", ["atr", "early", "same_bar"])
@pytest.mark.parametrize("kind", ["flat", "never confirms"])
def test_a_wrong_guess_is_found_and_redone(kind: str, rule: str) -> None:
    bars, config = trap(kind), mf.FeatureConfig(swing_rule=rule)
    values, valid, done = guessing(bars, config, 2_000, 610)
    assert [x.guessed for x in done] == [False, True, True, True]
    assert [x.redone for x in done] == [False, False, True, False]
    assert_as_in_one_pass(bars, config, values, valid)
    for workers in WORKERS:
        values, valid, _ = at_once(bars, config, workers, 2_000, 610)
        assert_as_in_one_pass(bars, config, values, valid)


def test_guesses_that_are_never_right_are_all_redone() -> None:
    bars, config = walk(3_000), mf.FeatureConfig(range_period=5_000)
    values, valid, done = guessing(bars, config, 500, 100)
    assert [x.redone for x in done] == [False, *[True] * 5]
    assert_as_in_one_pass(bars, config, values, valid)


@pytest.mark.parametrize("config", every_config(), ids=config_name)
def test_the_warm_up_tells_the_state_of_a_market(config: mf.FeatureConfig) -> None:
    bars = walk(20_000, gaps=[4_000, 9_990, 10_000])
    warmup = warmup_bars(config, 65_536)
    values, valid, done = guessing(bars, config, 2_500, warmup)
    assert_as_in_one_pass(bars, config, values, valid)
    assert sum(x.guessed for x in done) >= 6
    assert not any(x.redone for x in done)


def test_real_bars(real_bars: mf.Bars) -> None:
    for config in (mf.FeatureConfig(), mf.FeatureConfig.profile("wide", max_gap="4h")):
        expected = mf.compute(real_bars, config)
        for workers in (2, 7):
            found = mf.compute(real_bars, config, workers=workers)
            np.testing.assert_array_equal(as_bits(found.values), as_bits(expected.values))
            np.testing.assert_array_equal(found.valid, expected.valid)
            np.testing.assert_array_equal(found.segments, expected.segments)
    _, _, done = guessing(real_bars, mf.FeatureConfig(), 65_536, 610)
    assert sum(x.guessed for x in done) == 40


class TestCutter:
    def cut(self, bars: mf.Bars, pieces: list[int], **options: object) -> list[Stretch]:
        cutter = Cutter(mf.FeatureConfig(max_gap="2h"), 100, **options)
        edges = [0, *pieces, len(bars)]
        parts = [bars[start:stop] for start, stop in itertools.pairwise(edges)]
        found = [stretch for part in parts for stretch in cutter.add(part)]
        found += cutter.finish()
        assert cutter.num_bars == len(bars) + int(options.get("num_bars", 0))
        return found

    @given(pieces=st.lists(st.integers(0, 450)))
    def test_pieces_do_not_matter(self, pieces: list[int]) -> None:
        bars = walk(450, gaps=[30, 100, 199, 350])
        expected = self.cut(bars, [], warmup=25)
        found = self.cut(bars, sorted(pieces), warmup=25)
        assert [x.first_bar for x in found] == [0, 100, 200, 300, 400]
        for one, other in zip(found, expected, strict=True):
            for mine, theirs in zip(one.bars.arrays, other.bars.arrays, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            assert one.starts.tolist() == other.starts.tolist()
            assert (one.previous_time, one.age) == (other.previous_time, other.age)
            assert (one.before is None) == (other.before is None)

    def test_what_a_stretch_is_told(self) -> None:
        bars = walk(450, gaps=[30, 100, 199, 350])
        stretches = self.cut(bars, [], warmup=25)
        starts = segment_starts(bars.time, 2 * 3_600 * 10**9, None)
        for stretch in stretches:
            rows = slice(stretch.first_bar, stretch.first_bar + 100)
            np.testing.assert_array_equal(stretch.bars.time, bars.time[rows])
            inside = starts[(starts >= rows.start) & (starts < rows.stop)] - rows.start
            assert stretch.starts.tolist() == inside.tolist()
        assert [x.is_independent for x in stretches] == [True, True, False, False, False]
        assert stretches[0].previous_time is None
        assert stretches[3].previous_time == bars.time[299]
        # One bar of its segment before bar 200, many before 300, and 50 before 400.
        before = [None if x.before is None else len(x.before) for x in stretches]
        assert before == [None, None, 1, 25, 25]
        assert [x.age for x in stretches] == [0, 0, 0, 76, 25]

    def test_going_on(self) -> None:
        bars = walk(450)
        options = {"num_bars": 30, "segment_start": 10, "last_time": int(bars.time[0]) - 1}
        stretches = self.cut(bars, [], warmup=75, **options)
        assert [(x.first_bar, len(x.bars)) for x in stretches] == [
            (30, 70), (100, 100), (200, 100), (300, 100), (400, 80),
        ]  # fmt: skip
        assert not stretches[0].is_independent
        # 70 bars are too few to guess from: there are 90 of the segment.
        assert [x.before is None for x in stretches] == [True, True, False, False, False]
        assert stretches[2].age == 200 - 75 - 10

    def test_no_warm_up(self) -> None:
        assert all(x.before is None for x in self.cut(walk(450), [], warmup=0))

    def test_warm_up_that_would_not_pay(self) -> None:
        assert warmup_bars(mf.FeatureConfig(range_period=540), 65_536) == 16_210
        assert warmup_bars(mf.FeatureConfig(range_period=546), 65_536) == 0
        assert warmup_bars(mf.FeatureConfig(family="returns"), 65_536) == 20


def test_an_error_reaches_those_who_wait() -> None:
    config = mf.FeatureConfig()
    first, second = Cutter(config, 100).add(walk(200))
    start: Future[bytes] = Future()
    middle: Future[bytes] = Future()
    end: Future[bytes] = Future()
    values, valid = np.empty((100, 11), np.float32), np.empty(100, np.bool_)
    faults: list[BaseException] = []

    def run_second() -> None:
        try:
            run_stretch(config, second, middle, end, values.copy(), valid.copy())
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run_second)
    thread.start()
    with pytest.raises(TypeError):
        run_stretch(config, first, start, middle, values[::2], valid)
    thread.join(10)
    assert [type(error) for error in faults] == [TypeError]
    assert isinstance(end.exception(0), TypeError)


def test_frozen_state_goes_on() -> None:
    bars, config = walk(400), mf.FeatureConfig(context=True)
    expected = mf.compute(bars, config)
    carried = FeaturePass(config)
    values, valid = np.empty((200, 19), np.float32), np.empty(200, np.bool_)
    nowhere = np.zeros(0, np.int64)
    head, tail = bars[:200], bars[200:]
    carried.run(head.open, head.high, head.low, head.close, np.zeros(1, np.int64), values, valid)
    other = FeaturePass(config)
    other.thaw(carried.freeze())
    assert other.freeze() == carried.freeze()
    other.run(tail.open, tail.high, tail.low, tail.close, nowhere, values, valid)
    np.testing.assert_array_equal(as_bits(values), as_bits(expected.values[200:]))


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", 1_025, 100_000])
def test_workers_that_are_none(workers: object) -> None:
    with pytest.raises(ConfigError) as caught:
        mf.compute(walk(10), workers=workers)
    assert str(caught.value) == (
        f"workers is {workers!r}; give a whole number from 1 to 1,024, or leave it out"
    )


def test_as_many_workers_as_cores() -> None:
    bars = walk(70_000)
    expected = mf.compute(bars)
    np.testing.assert_array_equal(mf.compute(bars, workers=None).values, expected.values)
