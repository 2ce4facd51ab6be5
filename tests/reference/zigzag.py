"""True ranges, their mean, and the zigzag of swing highs and lows, bar by bar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

TIE_MARGIN = 2.0**-41  # as a share of the close; a tie always confirms


class Bar(NamedTuple):
    """One bar's prices."""

    open: float
    high: float
    low: float
    close: float


class Swing(NamedTuple):
    """A confirmed swing: bar of the extreme, bar that confirmed it, price of the extreme."""

    is_high: bool
    index: int  # type: ignore[assignment]  # hides a method of tuple that nobody wants here
    confirmed_index: int
    price: float


class State(NamedTuple):
    """What the zigzag knows once a bar has closed; ``leg`` is +1, -1, or 0 before the first."""

    leg: int
    swing_high: Swing | None
    swing_low: Swing | None


def to_bars(ohlc: Iterable[Any]) -> list[Bar]:
    """Take rows of open, high, low, close: an array [T, 4] or a DataFrame's ``itertuples``."""
    return [Bar(float(row[0]), float(row[1]), float(row[2]), float(row[3])) for row in ohlc]


def true_range(bars: list[Bar], i: int) -> float:
    """Range of bar ``i`` and the close before it; bar 0 has none."""
    before = bars[i - 1].close
    return max(bars[i].high, before) - min(bars[i].low, before)


def mean_true_range(bars: list[Bar], i: int, period: int) -> float:
    """Mean of the last min(i, period) true ranges, 0 where there is none."""
    count = min(i, period)
    if count == 0:
        return 0.0
    total = 0.0
    for j in range(i - count + 1, i + 1):
        total += true_range(bars, j)
    return total / count


def zigzag(
    ohlc: Iterable[Any],
    *,
    swing_rule: str = "atr",
    atr_period: int = 10,
    k: float = 1.2,
    early_lookback: int = 5,
    early_retrace: float = 0.5,
) -> tuple[list[State], list[Swing]]:
    """State after every bar of one segment, and the swings in the order of confirmation."""
    bars = to_bars(ohlc)
    states: list[State] = []
    swings: list[Swing] = []
    leg = 0
    extreme = 0.0  # x
    extreme_index = 0  # j
    swing_high: Swing | None = None
    swing_low: Swing | None = None

    for i in range(len(bars)):
        bar = bars[i]
        atr = mean_true_range(bars, i, atr_period)
        margin = TIE_MARGIN * abs(bar.close)

        if leg == 0:
            if i >= 1 and atr > 0:
                leg = 1
                extreme, extreme_index = bar.close, i

        elif leg == 1:
            if bar.high > extreme:
                extreme, extreme_index = bar.high, i
            confirmed = extreme - bar.close >= k * atr - margin
            if swing_rule in ("early", "same_bar"):
                age = i - extreme_index
                old_enough = age > 0 or swing_rule == "same_bar"
                retraced = extreme - bar.low >= early_retrace * atr - margin
                if old_enough and age <= early_lookback and retraced:
                    confirmed = True
            if confirmed:
                swing_high = Swing(True, extreme_index, i, extreme)
                swings.append(swing_high)
                leg = -1
                extreme, extreme_index = bar.low, i

        else:
            if bar.low < extreme:
                extreme, extreme_index = bar.low, i
            confirmed = bar.close - extreme >= k * atr - margin
            if swing_rule in ("early", "same_bar"):
                age = i - extreme_index
                old_enough = age > 0 or swing_rule == "same_bar"
                retraced = bar.high - extreme >= early_retrace * atr - margin
                if old_enough and age <= early_lookback and retraced:
                    confirmed = True
            if confirmed:
                swing_low = Swing(False, extreme_index, i, extreme)
                swings.append(swing_low)
                leg = 1
                extreme, extreme_index = bar.high, i

        states.append(State(leg, swing_high, swing_low))
    return states, swings
