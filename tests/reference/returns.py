"""The family ``returns`` over one segment: log returns, candle ratios, z-scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference.zigzag import Bar, to_bars

ZSCORE_BARS = 20
ZSCORE_CLIP = 10.0


def returns(ohlc: Iterable[Any]) -> NDArray[np.float64]:
    """Columns of one segment, float64 [T, 11]; every price must be above 0."""
    bars = to_bars(ohlc)
    rows = []
    for i in range(len(bars)):
        log_returns = [0.0] * 4
        if i >= 1:
            log_returns = [math.log(bars[i][p] / bars[i - 1][p]) for p in range(4)]
        last = bars[max(0, i + 1 - ZSCORE_BARS) : i + 1]
        zscores = [zscore([bar[p] for bar in last]) for p in range(4)]
        rows.append(log_returns + ratios(bars[i]) + zscores)
    return np.array(rows, dtype=np.float64).reshape(len(bars), 11)


def ratios(bar: Bar) -> list[float]:
    """Body and wicks as shares of the range, unsigned; 0 on a flat bar."""
    bar_range = bar.high - bar.low
    if bar_range == 0:
        return [0.0] * 3
    return [
        abs(bar.close - bar.open) / bar_range,
        (bar.high - max(bar.open, bar.close)) / bar_range,
        (min(bar.open, bar.close) - bar.low) / bar_range,
    ]


def zscore(values: list[float]) -> float:
    """Last value against the mean and population deviation of all, by two passes."""
    if min(values) == max(values):
        return 0.0
    total = 0.0
    for value in values:
        total += value
    mean = total / len(values)
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    score = (values[-1] - mean) / math.sqrt(squares / len(values))
    return min(max(score, -ZSCORE_CLIP), ZSCORE_CLIP)
