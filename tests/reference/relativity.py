"""The family ``relativity`` over one segment: 11 columns, ``consol_proxy`` and ``context``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference.zigzag import Bar, State, mean_true_range, to_bars, zigzag


def relativity(
    ohlc: Iterable[Any],
    *,
    swing_rule: str = "atr",
    range_period: int = 20,
    atr_period: int = 10,
    k: float = 1.2,
    early_lookback: int = 5,
    early_retrace: float = 0.5,
    distance_clip: float = 3.0,
    range_clip: float = 3.0,
    proxy_clip: float = 2.0,
    window_length: int = 105,
    consol_proxy: bool = False,
    context: bool = False,
) -> NDArray[np.float64]:
    """Columns of one segment, float64 [T, 11], one more with consol_proxy, eight with context.

    ``ohlc`` is anything that yields open, high, low, close: an array [T, 4], or, for a loop over
    a DataFrame, ``frame[["open", "high", "low", "close"]].itertuples(index=False)``.
    """
    bars = to_bars(ohlc)
    states, _ = zigzag(
        bars,
        swing_rule=swing_rule,
        atr_period=atr_period,
        k=k,
        early_lookback=early_lookback,
        early_retrace=early_retrace,
    )
    mean_range = 0.0  # E
    weight = 2 / (range_period + 1)  # a
    rows: list[list[float]] = []
    for i in range(len(bars)):
        bar = bars[i]
        bar_range = bar.high - bar.low  # R
        mean_range = weight * bar_range + (1 - weight) * mean_range if i > 0 else bar_range
        atr = mean_true_range(bars, i, atr_period)

        row = candle(bar)
        range_z = 0.0
        if bar_range > 0 and mean_range > 0:
            range_z = min(bar_range / mean_range, range_clip)
        row += [range_z]
        row += distances(bar, states[i], atr, distance_clip)
        row += bars_since(i, states[i], window_length)
        body_pct = row[2]
        row += [clip(range_z * states[i].leg * body_pct, -proxy_clip, proxy_clip)]
        if consol_proxy:
            since = (row[8] + row[9]) / 2
            calm = (1 - range_z / range_clip) * (1 - abs(body_pct)) * since
            row += [clip(calm, 0.0, 3.0)]
        if context:
            row += surroundings(bars, i, atr)
        rows.append(row)
    num_columns = 11 + consol_proxy + 8 * context
    return np.array(rows, dtype=np.float64).reshape(len(bars), num_columns)


def candle(bar: Bar) -> list[float]:
    """Columns 0 to 4: where the prices lie within the bar; all 0 on a flat bar."""
    bar_range = bar.high - bar.low
    if bar_range == 0:
        return [0.0] * 5
    return [
        (bar.open - bar.low) / bar_range,
        (bar.close - bar.low) / bar_range,
        (bar.close - bar.open) / bar_range,
        (bar.high - max(bar.open, bar.close)) / bar_range,
        (min(bar.open, bar.close) - bar.low) / bar_range,
    ]


def distances(bar: Bar, state: State, atr: float, reach: float) -> list[float]:
    """Columns 6 and 7: swing high minus close and close minus swing low, in ATR."""
    above = below = 0.0
    if state.swing_high is not None:
        above = in_units(state.swing_high.price - bar.close, atr, reach)
    if state.swing_low is not None:
        below = in_units(bar.close - state.swing_low.price, atr, reach)
    return [above, below]


def in_units(distance: float, atr: float, reach: float) -> float:
    """Distance over ATR, clipped; where ATR = 0, its limit."""
    if atr == 0:
        return reach * ((distance > 0) - (distance < 0))
    return clip(distance / atr, -reach, reach)


def bars_since(i: int, state: State, window_length: int) -> list[float]:
    """Columns 8 and 9: window lengths since the extremes, at most 3."""
    since_high = since_low = 0.0
    if state.swing_high is not None:
        since_high = min((i - state.swing_high.index) / window_length, 3.0)
    if state.swing_low is not None:
        since_low = min((i - state.swing_low.index) / window_length, 3.0)
    return [since_high, since_low]


def surroundings(bars: list[Bar], i: int, atr: float) -> list[float]:
    """The eight ``context`` columns, in units of the mean of the last 60 true ranges."""
    slow = mean_true_range(bars, i, 60)  # A60
    if slow == 0:
        return [0.0] * 8
    close = bars[i].close
    return [
        clip((close - bars[i - 1].close) / slow, -10.0, 10.0),
        clip((highest(bars, i, 20) - close) / slow, 0.0, 30.0),
        clip((close - lowest(bars, i, 20)) / slow, 0.0, 30.0),
        clip((highest(bars, i, 60) - close) / slow, 0.0, 30.0),
        clip((close - lowest(bars, i, 60)) / slow, 0.0, 30.0),
        clip(atr / slow, 0.0, 10.0),
        efficiency(bars, i, 10),
        clip((highest(bars, i, 15) - lowest(bars, i, 15)) / slow, 0.0, 30.0),
    ]


def efficiency(bars: list[Bar], i: int, period: int) -> float:
    """Net move over the last min(i, period) steps divided by the way gone."""
    steps = min(i, period)
    way = 0.0
    for j in range(i - steps + 1, i + 1):
        way += abs(bars[j].close - bars[j - 1].close)
    if way == 0:
        return 0.0
    return (bars[i].close - bars[i - steps].close) / way


def highest(bars: list[Bar], i: int, period: int) -> float:
    """Highest high of the last min(i + 1, period) bars."""
    return max(bar.high for bar in bars[max(0, i + 1 - period) : i + 1])


def lowest(bars: list[Bar], i: int, period: int) -> float:
    """Lowest low of the last min(i + 1, period) bars."""
    return min(bar.low for bar in bars[max(0, i + 1 - period) : i + 1])


def clip(value: float, low: float, high: float) -> float:
    """Bring a value into [low, high]."""
    return min(max(value, low), high)
