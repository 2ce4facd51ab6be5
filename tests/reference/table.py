"""Whole series: segments, the features of each, which bars and which windows are valid."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference.relativity import relativity
from tests.reference.returns import returns
from tests.reference.zigzag import Swing, zigzag


def its_own(function: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters that a function takes, out of those of a whole configuration."""
    return {
        name: value
        for name, value in parameters.items()
        if name in inspect.signature(function).parameters
    }


def segments(time: Iterable[int], *, max_gap_ns: int | None = None) -> NDArray[np.int64]:
    """Runs of bars no further apart than ``max_gap_ns``, as int64 [S, 2] of [start, stop)."""
    times = [int(value) for value in time]
    runs = []
    start = 0
    for i in range(1, len(times)):
        if max_gap_ns is not None and times[i] - times[i - 1] > max_gap_ns:
            runs.append((start, i))
            start = i
    if times:
        runs.append((start, len(times)))
    return np.array(runs, dtype=np.int64).reshape(len(runs), 2)


def features(
    time: Iterable[int],
    ohlc: NDArray[np.float64],
    *,
    family: str = "relativity",
    max_gap_ns: int | None = None,
    **parameters: Any,
) -> NDArray[np.float64]:
    """Columns of a whole series, float64 [T, F]; every segment starts afresh."""
    pieces = []
    for start, stop in segments(time, max_gap_ns=max_gap_ns):
        if family == "returns":
            pieces.append(returns(ohlc[start:stop]))
        else:
            pieces.append(relativity(ohlc[start:stop], **its_own(relativity, parameters)))
    return np.concatenate(pieces)


def swings(
    time: Iterable[int],
    ohlc: NDArray[np.float64],
    *,
    max_gap_ns: int | None = None,
    **parameters: Any,
) -> list[Swing]:
    """Confirmed swings of a whole series; indices count from the first bar of the series."""
    found = []
    for start, stop in segments(time, max_gap_ns=max_gap_ns):
        for swing in zigzag(ohlc[start:stop], **its_own(zigzag, parameters))[1]:
            found.append(
                Swing(
                    swing.is_high,
                    swing.index + int(start),
                    swing.confirmed_index + int(start),
                    swing.price,
                )
            )
    return found


def valid(
    time: Iterable[int],
    ohlc: NDArray[np.float64],
    *,
    family: str = "relativity",
    max_gap_ns: int | None = None,
    warmup_bars: int = 20,
    atr_period: int = 10,
    context: bool = False,
    **parameters: Any,
) -> NDArray[np.bool_]:
    """Whether each bar is past its warm-up, has full look-backs and knows both swings."""
    chosen = its_own(zigzag, parameters)
    marks: list[bool] = []
    for start, stop in segments(time, max_gap_ns=max_gap_ns):
        states = zigzag(ohlc[start:stop], atr_period=atr_period, **chosen)[0]
        for i in range(stop - start):
            good = i >= warmup_bars
            if family == "returns":
                good = good and i + 1 >= 20  # bars of the z-score
            else:
                good = good and i >= atr_period
                good = good and states[i].swing_high is not None
                good = good and states[i].swing_low is not None
                if context:
                    good = good and i >= 60  # true ranges of A60
            marks.append(bool(good))
    return np.array(marks, dtype=np.bool_)


def valid_window_starts(
    valid: NDArray[np.bool_], segments: NDArray[np.int64], *, length: int = 105
) -> NDArray[np.int64]:
    """First bars of the windows that lie in one segment and hold valid bars only, int64 [N]."""
    starts = []
    for start in range(0, len(valid) - length + 1):
        whole = any(first <= start and start + length <= stop for first, stop in segments)
        if whole and all(valid[start : start + length]):
            starts.append(start)
    return np.array(starts, dtype=np.int64)
