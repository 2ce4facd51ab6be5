"""The permutation control: what a shuffle keeps, and what it takes away."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf
from moola_train.evaluation.control import shuffle_bars

Float64 = NDArray[np.float64]


def bars_of(count: int, *, seed: int = 0, level: float = 100.0) -> Float64:
    rng = np.random.default_rng(seed)
    close = level + np.cumsum(rng.normal(size=count)) * 0.05
    opened = close + rng.normal(size=count) * 0.1  # gaps as well
    high = np.maximum(opened, close) + rng.random(count) * 0.1
    low = np.minimum(opened, close) - rng.random(count) * 0.1
    return np.stack([opened, high, low, close], axis=1)


def moves_of(ohlc: Float64) -> Float64:
    """What each bar adds: its gap, and its high, low and close from its open; in logarithms."""
    logs = np.log(ohlc)
    gaps = logs[1:, [0]] - logs[:-1, [3]]
    return np.concatenate([gaps, logs[1:, 1:] - logs[1:, [0]]], axis=1)


@given(
    count=st.integers(1, 400), block=st.sampled_from([2, 7, 240]), seed=st.integers(0, 99),
    cut=st.integers(0, 400),
)  # fmt: skip
def test_a_block_holds_the_same_bars_in_another_order(
    count: int, block: int, seed: int, cut: int
) -> None:
    ohlc = bars_of(count, seed=seed)
    edges = sorted({0, min(cut, count), count})
    segments = np.array(list(itertools.pairwise(edges)))
    shuffled = shuffle_bars(ohlc, segments, seed=seed, block=block)
    opened, high, low, close = shuffled.T
    assert (high >= np.maximum(opened, close)).all()
    assert (low <= np.minimum(opened, close)).all()
    for start, stop in segments.tolist():
        np.testing.assert_allclose(shuffled[start], ohlc[start])
        before, after = moves_of(ohlc[start:stop]), moves_of(shuffled[start:stop])
        for first in range(0, stop - start - 1, block):
            was, now = (moves[first : first + block] for moves in (before, after))
            order = [np.lexsort(moves.round(9).T) for moves in (was, now)]
            np.testing.assert_allclose(now[order[1]], was[order[0]], atol=1e-9)
            end = start + min(first + block, stop - start - 1)
            assert shuffled[end, 3] == pytest.approx(ohlc[end, 3])


def test_the_order_is_gone_and_depends_on_the_seed() -> None:
    ohlc = bars_of(1_000)
    segments = np.array([[0, 1_000]])
    one, again, other = (shuffle_bars(ohlc, segments, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any(axis=1).mean() > 0.95
    before, after = moves_of(ohlc), moves_of(one)
    kept = np.isclose(before, after).all(axis=1).mean()
    assert kept < 0.02  # one in 240 by chance
    place = np.array([np.argmin(np.abs(before - move).sum(axis=1)) for move in after[:480]])
    assert (place // 240 == np.arange(480) // 240).all()
    assert abs(np.corrcoef(place[:240], np.arange(240))[0, 1]) < 0.2


def test_prices_below_zero_are_added_up_as_they_are() -> None:
    ohlc = bars_of(300, level=-3.0)
    shuffled = shuffle_bars(ohlc, np.array([[0, 300]]))
    assert shuffled[240, 3] == pytest.approx(ohlc[240, 3])
    steps = [np.sort(np.diff(bars[:241, 3])) for bars in (ohlc, shuffled)]
    np.testing.assert_allclose(steps[0], steps[1], atol=1e-9)


def test_volatility_of_a_block_stays() -> None:
    bars = bars_of(4_000, seed=3)
    shuffled = shuffle_bars(bars, np.array([[0, 4_000]]))
    ranges = [np.log(b[1:, 1] / b[1:, 2])[: 240 * 16].reshape(16, 240) for b in (bars, shuffled)]
    np.testing.assert_allclose(ranges[0].mean(axis=1), ranges[1].mean(axis=1))
    time = np.arange(4_000) * 60_000_000_000
    config = mf.FeatureConfig(family="returns")
    found = mf.compute(mf.Bars(time, *shuffled.T), config)  # bars that a build would take
    assert np.isfinite(found.values[found.valid]).all()
