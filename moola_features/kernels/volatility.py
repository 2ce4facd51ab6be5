"""True ranges and their averages over a block, summed afresh at every bar.

The working set [4, depth + block] holds a block's bars behind the history that they look back on.
Every pass walks plain 1-D slices of it with one index: only then does the compiler vectorise.
"""

from __future__ import annotations

from moola_features.kernels.compiled import inlined
from moola_features.kernels.layout import copy

TRUE_RANGE, HIGH, LOW, CLOSE = range(4)  # rows of the working set


@inlined
def start_history(work, depth, high, low, close):
    """Fill the history of a segment's first bar so that it adds nothing to any look-back.

    True ranges of 0 add nothing to a sum; the first bar's own high, low and close add nothing to a
    highest, a lowest or a path that the first bar is a part of.
    """
    work[TRUE_RANGE, :depth] = 0.0
    work[HIGH, :depth] = high
    work[LOW, :depth] = low
    work[CLOSE, :depth] = close


@inlined
def take_block(work, depth, high, low, close, first):
    """Copy a block of bars behind the history and derive its true ranges."""
    size = close.shape[0]
    copy(high, work[HIGH, depth : depth + size])
    copy(low, work[LOW, depth : depth + size])
    copy(close, work[CLOSE, depth : depth + size])
    before = work[CLOSE, depth - 1 : depth + size - 1]
    out = work[TRUE_RANGE, depth : depth + size]
    for t in range(size):
        top = high[t] if high[t] > before[t] else before[t]
        bottom = low[t] if low[t] < before[t] else before[t]
        out[t] = top - bottom
    if first:
        out[0] = 0.0  # a segment's first bar has no close before it


@inlined
def keep_history(work, depth, size):
    """Move the last bars to the front, where the next block looks for its history."""
    for row in range(work.shape[0]):
        for j in range(depth):
            work[row, j] = work[row, j + size]


@inlined
def average(true_range, depth, period, index, out):
    """Mean of the last min(i, period) true ranges, oldest first, for each bar i of a block."""
    size = out.shape[0]
    out[:] = 0.0
    for lag in range(period - 1, -1, -1):
        lagged = true_range[depth - lag : depth - lag + size]
        for t in range(size):
            out[t] += lagged[t]
    if index >= period:
        for t in range(size):
            out[t] /= period
    else:
        for t in range(size):
            out[t] = out[t] / min(index + t, period) if index + t > 0 else 0.0
