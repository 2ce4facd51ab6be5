"""The hindsight labeller's loops: one window at a time, on bars b - 1 to b + 114.

Whatever is summed is summed afresh in every window, oldest bar first: no label depends on the bars
around its window, and running sums would carry their rounding from a quake into the calm after it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from moola_features.kernels.compiled import f8, i8, inlined, kernel, matrix, vector

LENGTH = 105  # bars in a window
FIRST_START, LAST_START = 20, 95
MIN_SPAN, MAX_SPAN = 3, 12
NUM_AFTER = 10  # bars after the span that must hold the move
VOLATILITY_BARS, PRELUDE_BARS, LEG_BARS = 20, 15, 40
TOLERANCE = 1e-9  # relative; equal on paper is equal here, whatever the unit of the prices
MIN_MOVE, MIN_EFFICIENCY, MIN_HELD = 5.0, 0.5, 0.25
MAX_RIVAL = 0.8
MAX_BOX, MIN_PULLBACK = 4.0, 1.5

CONSOLIDATION, RETRACEMENT, OTHER, NONE, AMBIGUOUS = range(5)
KEPT, GAP, LONG, EDGE = range(4)  # why a window was skipped

_NUM_STARTS = LAST_START - FIRST_START + 1
_NUM_SPANS = MAX_SPAN - MIN_SPAN + 1
_NUM_BARS = 1 + LENGTH + NUM_AFTER
# Rows of the working set; position t of the window stands at t + 1, behind the bar before it.
_HIGH, _LOW, _CLOSE, _TRUE_RANGE = range(4)

_uint64 = numba.uint64
_int8 = numba.int8

Array = NDArray[Any]


@inlined
def _at_least(value: float, bound: float) -> bool:
    """Whether value >= bound >= 0, up to rounding."""
    return value >= bound * (1.0 - TOLERANCE)


@inlined
def _skip_cause(time: Array, begin: int, max_gap: int, max_time: int) -> int:
    """Why a window is skipped; times are unsigned, so that no difference overflows."""
    if begin < 1 or begin + LENGTH + NUM_AFTER > time.shape[0]:
        return EDGE
    for t in range(begin + 1, begin + LENGTH):
        if time[t] - time[t - 1] > max_gap:
            return GAP
    if time[begin + LENGTH - 1] - time[begin] > max_time:
        return LONG
    return KEPT


@inlined
def _take_bars(ohlc: Array, begin: int, bars: Array) -> float:
    """Copy a window's bars, the one before and the ten after it; return its mean true range."""
    for t in range(_NUM_BARS):
        bars[_HIGH, t] = ohlc[begin - 1 + t, 1]
        bars[_LOW, t] = ohlc[begin - 1 + t, 2]
        bars[_CLOSE, t] = ohlc[begin - 1 + t, 3]
    total = 0.0
    for t in range(1, LENGTH + 1):
        before = bars[_CLOSE, t - 1]
        top = bars[_HIGH, t] if bars[_HIGH, t] > before else before
        bottom = bars[_LOW, t] if bars[_LOW, t] < before else before
        bars[_TRUE_RANGE, t] = top - bottom
        total += bars[_TRUE_RANGE, t]
    return total / LENGTH


@inlined
def _score_starts(
    bars: Array, mean: float, scale: Array, path: Array, score: Array, best: Array
) -> None:
    """Score every candidate, ``score`` [spans, starts], and the best of each start."""
    scale[:] = 0.0
    for lag in range(VOLATILITY_BARS, 0, -1):
        lagged = bars[_TRUE_RANGE, FIRST_START + 1 - lag : LAST_START + 2 - lag]
        for s in range(_NUM_STARTS):
            scale[s] += lagged[s]
    for s in range(_NUM_STARTS):
        scale[s] = (scale[s] / VOLATILITY_BARS + mean) / 2.0
    path[:] = 0.0
    best[:] = -1.0
    score[:] = -1.0
    before = bars[_CLOSE, FIRST_START : LAST_START + 1]
    for span in range(1, MAX_SPAN + 1):
        # Spans that would end behind the window are no candidates.
        count = min(_NUM_STARTS, LENGTH - span - FIRST_START + 1)
        last = FIRST_START + span  # where the first start's span ends
        true_range = bars[_TRUE_RANGE, last : last + count]
        close = bars[_CLOSE, last : last + count]
        for s in range(count):
            path[s] += true_range[s]
        if span >= MIN_SPAN:
            out = score[span - MIN_SPAN]
            for s in range(count):
                move = abs(close[s] - before[s])
                found = (move / scale[s]) * (move / path[s])
                out[s] = found if path[s] > 0.0 else 0.0  # without a range there is no move
                best[s] = out[s] if out[s] > best[s] else best[s]


@inlined
def _earliest(score: Array, best: Array, top: float) -> tuple[int, int]:
    """First start with the best score, up to rounding, and its shortest span that has it."""
    bound = top * (1.0 - TOLERANCE)
    s = 0
    while best[s] < bound:
        s += 1
    j = 0
    while score[j, s] < bound:
        j += 1
    return s, j


@inlined
def _has_rival(score: Array, best: Array, start: int, end: int, bound: float) -> bool:
    """Whether a candidate that shares no bar with the span scores above the bound."""
    for s in range(_NUM_STARTS):
        first = FIRST_START + s
        if (first > end or first + MAX_SPAN <= start) and best[s] > bound:
            return True
        if start - MAX_SPAN < first <= start - MIN_SPAN:
            for j in range(start - first - MIN_SPAN + 1):
                if score[j, s] > bound:
                    return True
    return False


@inlined
def _expands(bars: Array, start: int, end: int, scale: float, move: float) -> bool:
    """Whether a span goes far enough, straight enough, and is held by the bars after it."""
    size = abs(move)
    travelled = 0.0
    for t in range(start, end + 1):
        travelled += bars[_TRUE_RANGE, t + 1]
    if not (_at_least(size, MIN_MOVE * scale) and _at_least(size, MIN_EFFICIENCY * travelled)):
        return False
    direction = 1.0 if move > 0.0 else -1.0
    base = bars[_CLOSE, start]  # of the bar before the span
    for t in range(end + 1, end + 1 + NUM_AFTER):
        if not _at_least(direction * (bars[_CLOSE, t + 1] - base), MIN_HELD * size):
            return False
    return True


@inlined
def _prelude(bars: Array, start: int, scale: float, base: float, direction: int) -> int:
    """What stands before a span: consolidation, retracement or other."""
    # Mirrored, the lows are the highs with their sign changed.
    high = bars[_HIGH] if direction > 0 else bars[_LOW]
    low = bars[_LOW] if direction > 0 else bars[_HIGH]
    sign = 1.0 if direction > 0 else -1.0
    top = -np.inf
    bottom = np.inf
    for t in range(start - PRELUDE_BARS, start):
        top = max(top, sign * high[t + 1])
        bottom = min(bottom, sign * low[t + 1])
    box = top - bottom
    if _at_least(MAX_BOX * scale, box):
        return CONSOLIDATION
    last = start - 1
    while top - sign * high[last + 1] > TOLERANCE * box:
        last -= 1
    bottom = np.inf
    for t in range(max(last - LEG_BARS + 1, 0), last + 1):
        bottom = min(bottom, sign * low[t + 1])
    pullback = top - sign * base
    if _at_least(pullback, MIN_PULLBACK * scale) and _at_least(top - bottom, pullback):
        return RETRACEMENT
    return OTHER


@kernel(
    vector(_uint64), matrix(f8), vector(i8), _uint64, _uint64,
    vector(_int8, writable=True), vector(_int8, writable=True), vector(i8, writable=True),
    vector(i8, writable=True), vector(_int8, writable=True), vector(f8, writable=True),
)  # fmt: skip
def label(
    time: Array, ohlc: Array, starts: Array, max_gap: int, max_time: int,
    label_out: Array, skipped_out: Array, start_out: Array, end_out: Array,
    direction_out: Array, score_out: Array,
) -> None:  # fmt: skip
    """Label the windows that begin at ``starts``; only what differs from the fill is written."""
    bars = np.empty((4, _NUM_BARS))
    scale = np.empty(_NUM_STARTS)
    path = np.empty(_NUM_STARTS)
    best = np.empty(_NUM_STARTS)
    score = np.empty((_NUM_SPANS, _NUM_STARTS))
    for w in range(starts.shape[0]):
        begin = starts[w]
        cause = _skip_cause(time, begin, max_gap, max_time)
        skipped_out[w] = cause
        if cause != KEPT:
            continue
        label_out[w] = NONE
        score_out[w] = 0.0
        mean = _take_bars(ohlc, begin, bars)
        if mean <= 0.0:
            continue
        _score_starts(bars, mean, scale, path, score, best)
        top = best.max()
        score_out[w] = top
        s, j = _earliest(score, best, top)
        start = FIRST_START + s
        end = start + MIN_SPAN + j - 1
        base = bars[_CLOSE, start]  # of the bar before the span
        move = bars[_CLOSE, end + 1] - base
        if not _expands(bars, start, end, scale[s], move):
            continue
        if _has_rival(score, best, start, end, MAX_RIVAL * top * (1.0 + TOLERANCE)):
            label_out[w] = AMBIGUOUS
            continue
        direction = 1 if move > 0.0 else -1
        label_out[w] = _prelude(bars, start, scale[s], base, direction)
        start_out[w] = start
        end_out[w] = end
        direction_out[w] = direction
