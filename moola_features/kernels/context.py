"""The context columns: where price stands in the last hour, in units of slow volatility."""

from __future__ import annotations

from moola_features.kernels.compiled import inlined
from moola_features.kernels.layout import clip, copy
from moola_features.kernels.volatility import CLOSE, HIGH, LOW, TRUE_RANGE, average

SLOW, FAST, BOX = 60, 20, 15  # bars
STEPS = 10
CLIP = 10.0
DISTANCE_CLIP = 30.0

MOVE, BELOW_20, ABOVE_20, BELOW_60, ABOVE_60, VOLATILITY, EFFICIENCY, BOX_HEIGHT = range(8)


@inlined
def fill_context(work, depth, index, atr, scratch, columns):
    """Fill the eight columns [8, block]; ``scratch`` [4, block] is free for use."""
    size = atr.shape[0]
    close = work[CLOSE, depth : depth + size]
    slow = scratch[0, :size]
    highest = scratch[1, :size]
    lowest = scratch[2, :size]
    average(work[TRUE_RANGE], depth, SLOW, index, slow)

    before = work[CLOSE, depth - 1 : depth - 1 + size]
    move = columns[MOVE]
    volatility = columns[VOLATILITY]
    for t in range(size):
        divisor = slow[t] if slow[t] > 0.0 else 1.0
        move[t] = clip((close[t] - before[t]) / divisor, -CLIP, CLIP) if slow[t] > 0.0 else 0.0
        volatility[t] = clip(atr[t] / divisor, 0.0, CLIP) if slow[t] > 0.0 else 0.0

    # Highest and lowest grow from the 15 bars of the box over 20 to 60, each lag visited once.
    copy(work[HIGH, depth : depth + size], highest)
    copy(work[LOW, depth : depth + size], lowest)
    reach(work, depth, 1, BOX, highest, lowest)
    box = columns[BOX_HEIGHT]
    for t in range(size):
        height = (highest[t] - lowest[t]) / (slow[t] if slow[t] > 0.0 else 1.0)
        box[t] = clip(height, 0.0, DISTANCE_CLIP) if slow[t] > 0.0 else 0.0
    reach(work, depth, BOX, FAST, highest, lowest)
    fill_reach(close, slow, highest, lowest, columns[BELOW_20, :size], columns[ABOVE_20, :size])
    reach(work, depth, FAST, SLOW, highest, lowest)
    fill_reach(close, slow, highest, lowest, columns[BELOW_60, :size], columns[ABOVE_60, :size])
    fill_efficiency(work[CLOSE], depth, scratch[3, :size], columns[EFFICIENCY, :size])
    if index == 0:
        columns[:, 0] = 0.0


@inlined
def reach(work, depth, first_lag, stop_lag, highest, lowest):
    """Extend the running highest and lowest by the bars first_lag to stop_lag - 1 back."""
    size = highest.shape[0]
    for lag in range(first_lag, stop_lag):
        high = work[HIGH, depth - lag : depth - lag + size]
        low = work[LOW, depth - lag : depth - lag + size]
        for t in range(size):
            highest[t] = max(highest[t], high[t])
            lowest[t] = min(lowest[t], low[t])


@inlined
def fill_reach(close, slow, highest, lowest, below, above):
    """How far the close is below the highest and above the lowest."""
    for t in range(close.shape[0]):
        divisor = slow[t] if slow[t] > 0.0 else 1.0
        down = clip((highest[t] - close[t]) / divisor, 0.0, DISTANCE_CLIP)
        up = clip((close[t] - lowest[t]) / divisor, 0.0, DISTANCE_CLIP)
        below[t] = down if slow[t] > 0.0 else 0.0
        above[t] = up if slow[t] > 0.0 else 0.0


@inlined
def fill_efficiency(close, depth, path, out):
    """Net move over the length of the path, last 10 steps."""
    size = out.shape[0]
    path[:] = 0.0
    for lag in range(STEPS - 1, -1, -1):
        at = close[depth - lag : depth - lag + size]
        before = close[depth - lag - 1 : depth - lag - 1 + size]
        for t in range(size):
            path[t] += abs(at[t] - before[t])
    here = close[depth : depth + size]
    there = close[depth - STEPS : depth - STEPS + size]
    for t in range(size):
        net = (here[t] - there[t]) / (path[t] if path[t] > 0.0 else 1.0)
        # Rounding may carry the quotient past 1. Where A60 is 0 the path is 0 too.
        out[t] = clip(net, -1.0, 1.0) if path[t] > 0.0 else 0.0
