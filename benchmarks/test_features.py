"""Features of bars in memory, on one thread."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

import moola_features as mf
from benchmarks import feature_peers as peers
from benchmarks.comparison import Contender, at_least, compare
from moola_features.feature_pass import FeaturePass

CONFIGS = {
    "11 columns, rule atr": mf.FeatureConfig(),
    "11 columns, rule early": mf.FeatureConfig(swing_rule="early"),
    "11 columns, rule same_bar": mf.FeatureConfig(swing_rule="same_bar"),
    "19 columns, with context": mf.FeatureConfig(context=True),
    "11 columns, family returns": mf.FeatureConfig(family="returns"),
}
RATE = at_least(40e6)  # bars a second, rule atr
LOOP_BARS = 20_000


class WarmBuffer:
    """A pass over all bars into arrays that have been written to before."""

    def __init__(self, bars: mf.Bars, config: mf.FeatureConfig) -> None:
        self.bars = bars
        self.config = config
        self.start = np.zeros(1, np.int64)
        self.values = np.zeros((len(bars), len(config.names)), np.float32)
        self.valid = np.zeros(len(bars), np.bool_)

    def fill(self) -> None:
        bars = self.bars
        carried = FeaturePass(self.config)
        carried.run(bars.open, bars.high, bars.low, bars.close, self.start, self.values, self.valid)


@pytest.mark.parametrize("name", CONFIGS)
def test_warm_buffer(benchmark: Any, bars: mf.Bars, name: str) -> None:
    config = CONFIGS[name]
    buffer = WarmBuffer(bars, config)
    is_default = config == mf.FeatureConfig()
    ours = Contender(
        name=f"{name}, into a warm buffer", run=buffer.fill, amount=len(bars),
        goal=RATE if is_default else None,
    )  # fmt: skip
    compare(benchmark, ours, unit="bars/s", rounds=9)
    np.testing.assert_array_equal(buffer.values, mf.compute(bars, config).values)


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_pages(benchmark: Any, bars: mf.Bars, name: str) -> None:
    config = CONFIGS[name]
    values = mf.compute(bars, config).values
    is_default = config == mf.FeatureConfig()
    ours = Contender(
        name=f"{name}, into fresh pages", run=lambda: mf.compute(bars, config), amount=len(bars),
        goal=RATE if is_default else None, headline=is_default,
    )  # fmt: skip
    copy = Contender(
        name="a copy of the same bytes into fresh pages", run=values.copy, amount=len(bars),
        goal=at_least(0.25) if is_default else None, is_rival=False, headline=is_default,
    )  # fmt: skip
    computed, copied = compare(benchmark, ours, copy, unit="bars/s", rounds=9, fresh_pages=True)
    np.testing.assert_array_equal(computed.values, copied)


def test_loop(benchmark: Any, full: bool, bars: mf.Bars) -> None:
    head = bars[: LOOP_BARS if full else 500]
    buffer = WarmBuffer(bars, mf.FeatureConfig())
    ours = Contender(
        name="11 columns, rule atr, into a warm buffer", run=buffer.fill, amount=len(bars)
    )
    by_position = Contender(
        name="a plain loop over a DataFrame, row by row with .iloc", amount=len(head),
        run=lambda: peers.loop_by_position(head), goal=at_least(2_000), headline=True,
    )  # fmt: skip
    by_rows = Contender(
        name="the same loop by iterrows", amount=len(head), run=lambda: peers.loop_by_rows(head)
    )
    by_tuples = Contender(
        name="the same loop by itertuples", amount=len(head), headline=True,
        run=lambda: peers.loop_by_tuples(head),
    )  # fmt: skip
    results = compare(benchmark, ours, by_position, by_rows, by_tuples, unit="bars/s", rounds=5)
    expected = buffer.values[: len(head)]
    for looped in results[1:]:
        np.testing.assert_allclose(looped, expected, rtol=0, atol=1e-6)


def test_candle_columns(benchmark: Any, bars: mf.Bars) -> None:
    frame = peers.frame_of(bars)
    threads = pl.thread_pool_size()
    ours = Contender(
        name="11 columns, rule atr, into fresh pages", run=lambda: mf.compute(bars),
        amount=len(bars),
    )  # fmt: skip
    polars = Contender(
        name=f"Polars, the six candle columns only, {threads} threads", amount=len(bars),
        run=lambda: peers.polars_candles(frame), headline=True,
    )  # fmt: skip
    numpy = Contender(
        name="NumPy, the six candle columns only", amount=len(bars),
        run=lambda: peers.numpy_candles(bars), headline=True,
    )  # fmt: skip
    computed, by_polars, by_numpy = compare(
        benchmark, ours, polars, numpy, unit="bars/s", rounds=9, fresh_pages=True
    )
    expected = computed.values[:, :6]
    np.testing.assert_allclose(by_polars.to_numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(by_numpy, expected, rtol=0, atol=1e-6)
