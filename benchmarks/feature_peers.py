"""What others would write: the same features by plain loops, NumPy and Polars."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

import moola_features as mf
from tests.reference import relativity

PRICES = ("open", "high", "low", "close")
RANGE_WEIGHT = 2 / 21  # of the newest range in the exponential mean: 2 / (range_period + 1)
RANGE_CLIP = 3.0
BLOCK_BARS = 128  # of the exponential mean by matrix product


def frame_of(bars: mf.Bars) -> pl.DataFrame:
    """Prices as a frame."""
    return pl.DataFrame({name: getattr(bars, name) for name in PRICES})


def loop_by_position(bars: mf.Bars) -> NDArray[np.float64]:
    """All 11 columns in a plain loop over a pandas frame, each price by its row: ``.iloc[i]``."""
    frame = frame_of(bars).to_pandas()
    return relativity([frame[name].iloc[i] for name in PRICES] for i in range(len(frame)))


def loop_by_rows(bars: mf.Bars) -> NDArray[np.float64]:
    """The same loop by ``iterrows``."""
    frame = frame_of(bars).to_pandas()
    return relativity([row[name] for name in PRICES] for _, row in frame.iterrows())


def loop_by_tuples(bars: mf.Bars) -> NDArray[np.float64]:
    """The same loop by ``itertuples``, the quickest of them."""
    return relativity(frame_of(bars).to_pandas().itertuples(index=False))


def numpy_candles(bars: mf.Bars) -> NDArray[np.float32]:
    """The six candle columns by whole-array arithmetic, float32 [T, 6]."""
    open_, high, low, close = (getattr(bars, name) for name in PRICES)
    ranges = high - low
    moves = ranges > 0
    out = np.zeros((len(ranges), 6), np.float32)
    mean_ranges = _exponential_mean(ranges)
    parts = (
        open_ - low, close - low, close - open_,
        high - np.maximum(open_, close), np.minimum(open_, close) - low,
    )  # fmt: skip
    for j, part in enumerate(parts):
        np.divide(part, ranges, out=out[:, j], where=moves, casting="same_kind")
    np.divide(ranges, mean_ranges, out=out[:, 5], where=moves, casting="same_kind")
    np.minimum(out[:, 5], np.float32(RANGE_CLIP), out=out[:, 5])
    return out


def _exponential_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """E_0 = x_0, E_i = a x_i + (1 - a) E_{i-1}, by blocks: NumPy has no recurrence of its own."""
    rest = 1 - RANGE_WEIGHT
    num_blocks = -(-len(values) // BLOCK_BARS)
    blocks = np.zeros((num_blocks, BLOCK_BARS))
    blocks.reshape(-1)[: len(values)] = values
    age = np.arange(BLOCK_BARS)[None, :] - np.arange(BLOCK_BARS)[:, None]
    means = blocks @ np.where(age >= 0, RANGE_WEIGHT * rest ** np.maximum(age, 0), 0.0)
    carried = np.empty(num_blocks)
    last = values[0]
    for block, own in enumerate(means[:, -1].tolist()):
        carried[block] = last
        last = own + rest**BLOCK_BARS * last
    means += carried[:, None] * rest ** np.arange(1, BLOCK_BARS + 1)
    return means.reshape(-1)[: len(values)]


def polars_candles(frame: pl.DataFrame) -> pl.DataFrame:
    """The six candle columns by expressions, on Polars' own threads."""
    return frame.lazy().select(candle_expressions()).collect()


def candle_expressions() -> list[pl.Expr]:
    """The six candle columns as Polars expressions, float32."""
    open_, high, low, close = (pl.col(name) for name in PRICES)
    bar_range = high - low

    def share(part: pl.Expr, name: str) -> pl.Expr:
        return pl.when(bar_range > 0).then(part / bar_range).otherwise(0.0).alias(name)

    mean_range = bar_range.ewm_mean(alpha=RANGE_WEIGHT, adjust=False)
    relative = (bar_range / mean_range).clip(upper_bound=RANGE_CLIP)
    columns = (
        share(open_ - low, "open_norm"),
        share(close - low, "close_norm"),
        share(close - open_, "body_pct"),
        share(high - pl.max_horizontal(open_, close), "upper_wick_pct"),
        share(pl.min_horizontal(open_, close) - low, "lower_wick_pct"),
        pl.when(bar_range > 0).then(relative).otherwise(0.0).alias("range_z"),
    )
    return [column.cast(pl.Float32) for column in columns]
