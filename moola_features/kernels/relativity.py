"""Family ``relativity``: candles, swings and the expansion proxy, in one pass over the bars."""

from __future__ import annotations

import numba
import numpy as np

from moola_features.kernels import recurrences, volatility
from moola_features.kernels.compiled import f8, i8, inlined, kernel, matrix, vector
from moola_features.kernels.context import fill_context
from moola_features.kernels.layout import (
    BLOCK,
    PARAMETERS_TYPE,
    STATE_TYPE,
    clip,
    copy,
    restart,
    transpose,
)

BARS_SINCE_CLIP = 3.0
CONSOLIDATION_CLIP = 3.0

# The feature matrix, column by column.
OPEN, CLOSE, BODY, UPPER_WICK, LOWER_WICK, RANGE = range(6)
FROM_HIGH, FROM_LOW, SINCE_HIGH, SINCE_LOW, PROXY = range(6, 11)
NUM_COLUMNS = 11

# Rows of a block that several columns are made of, before those of the recurrences.
RANGES, ATR, BODIES, RATIOS, SWINGS = range(5)


@kernel(
    vector(f8), vector(f8), vector(f8), vector(f8), vector(i8),
    vector(PARAMETERS_TYPE), vector(STATE_TYPE, writable=True), matrix(f8, writable=True),
    matrix(numba.float32, writable=True), vector(numba.boolean, writable=True),
)  # fmt: skip
def relativity(open_, high, low, close, starts, parameters, state, history, out, valid):
    """Fill ``out`` [n, F] and ``valid`` [n]; ``starts`` are the bars that begin a segment."""
    p = parameters[0]
    s = state[0]
    num_bars = close.shape[0]
    depth = history.shape[1]
    size = min(num_bars, BLOCK)
    work = np.empty((4, depth + size))
    for row in range(4):
        copy(history[row], work[row, :depth])
    rows = np.empty((SWINGS + recurrences.NUM_ROWS, size))
    columns = np.empty((out.shape[1], size), dtype=np.float32)
    slow = np.empty((4, size if p.context else 0))
    position = 0
    begin = 0
    while begin < num_bars:
        if position < starts.shape[0] and starts[position] == begin:
            restart(s)
            volatility.start_history(work, depth, high[begin], low[begin], close[begin])
            position += 1
        end = min(begin + BLOCK, num_bars)
        if position < starts.shape[0] and starts[position] < end:
            end = starts[position]
        piece = slice(begin, end)
        fill_block(
            p, s, work, depth, open_[piece], high[piece], low[piece], close[piece],
            rows, columns, slow, valid[piece],
        )  # fmt: skip
        transpose(columns, out[piece])
        begin = end
    for row in range(4):
        copy(work[row, :depth], history[row])


@inlined
def fill_block(p, s, work, depth, open_, high, low, close, rows, columns, slow, valid):
    """Compute one block of one segment into ``columns`` [F, block] and carry the state."""
    size = close.shape[0]
    # Rows are cut one by one: a cut of the whole matrix would not be contiguous, nor vectorised.
    ranges = rows[RANGES, :size]
    atr = rows[ATR, :size]
    swings = rows[SWINGS:]
    volatility.take_block(work, depth, high, low, close, s.index == 0)
    volatility.average(work[volatility.TRUE_RANGE], depth, p.atr_period, s.index, atr)
    for t in range(size):
        ranges[t] = high[t] - low[t]
    recurrences.advance(p, s, high, low, close, atr, swings)
    fill_candles(p, open_, high, low, close, rows, columns)
    index = float(s.index)
    high_index = swings[recurrences.HIGH_INDEX, :size]
    low_index = swings[recurrences.LOW_INDEX, :size]
    swing_high = swings[recurrences.SWING_HIGH, :size]
    swing_low = swings[recurrences.SWING_LOW, :size]
    fill_distance(
        p.distance_clip, 1.0, swing_high, high_index, close, atr, columns[FROM_HIGH, :size]
    )
    fill_distance(p.distance_clip, -1.0, swing_low, low_index, close, atr, columns[FROM_LOW, :size])
    fill_since(p.window_length, index, high_index, columns[SINCE_HIGH, :size])
    fill_since(p.window_length, index, low_index, columns[SINCE_LOW, :size])
    next_column = NUM_COLUMNS
    if p.consol_proxy:
        fill_consolidation(p.range_clip, columns, columns[next_column, :size])
        next_column += 1
    if p.context:
        fill_context(work, depth, s.index, atr, slow, columns[next_column:])
    first = p.first_valid_index - s.index
    for t in range(size):
        valid[t] = (t >= first) & (high_index[t] >= 0.0) & (low_index[t] >= 0.0)
    s.index += size
    volatility.keep_history(work, depth, size)


@inlined
def fill_candles(p, open_, high, low, close, rows, columns):
    """Fill the six candle columns and the expansion proxy, which is made of two of them.

    One short loop a column: the compiler gives up on a loop over a dozen arrays. What takes most of
    the time is dividing, so nothing is divided twice.
    """
    size = close.shape[0]
    ranges = rows[RANGES, :size]
    swings = rows[SWINGS:]
    fill_share(open_, low, ranges, columns[OPEN, :size])
    fill_share(close, low, ranges, columns[CLOSE, :size])
    bodies = rows[BODIES, :size]
    fill_share(close, open_, ranges, bodies)
    copy(bodies, columns[BODY, :size])
    upper_wick = columns[UPPER_WICK, :size]
    for t in range(size):
        upper_wick[t] = (high[t] - max(open_[t], close[t])) / (
            ranges[t] if ranges[t] > 0.0 else 1.0
        )
    lower_wick = columns[LOWER_WICK, :size]
    for t in range(size):
        lower_wick[t] = (min(open_[t], close[t]) - low[t]) / (ranges[t] if ranges[t] > 0.0 else 1.0)
    mean = swings[recurrences.MEAN_RANGE, :size]
    ratios = rows[RATIOS, :size]
    range_clip = p.range_clip
    for t in range(size):
        ratios[t] = min(ranges[t] / (mean[t] if mean[t] > 0.0 else 1.0), range_clip)
    copy(ratios, columns[RANGE, :size])
    leg = swings[recurrences.LEG, :size]
    proxy = columns[PROXY, :size]
    proxy_clip = p.proxy_clip
    for t in range(size):
        proxy[t] = clip(ratios[t] * leg[t] * bodies[t], -proxy_clip, proxy_clip)


@inlined
def fill_share(upper, lower, ranges, out):
    """A difference as a share of the bar's range, 0 on a flat bar (its differences are 0)."""
    for t in range(out.shape[0]):
        out[t] = (upper[t] - lower[t]) / (ranges[t] if ranges[t] > 0.0 else 1.0)


@inlined
def fill_distance(reach, sign, swing, swing_index, close, atr, out):
    """Distance to a swing in ATR, 0 while none is known; the clip itself where ATR is 0."""
    for t in range(close.shape[0]):
        distance = sign * (swing[t] - close[t]) if swing_index[t] >= 0.0 else 0.0
        limit = reach if distance > 0.0 else (-reach if distance < 0.0 else 0.0)
        quotient = distance / (atr[t] if atr[t] > 0.0 else 1.0)
        out[t] = clip(quotient, -reach, reach) if atr[t] > 0.0 else limit


@inlined
def fill_since(window_length, index, swing_index, out):
    """Window lengths since a swing, 0 while none is known."""
    for t in range(out.shape[0]):
        since = min((index + t - swing_index[t]) / window_length, BARS_SINCE_CLIP)
        out[t] = since if swing_index[t] >= 0.0 else 0.0


@inlined
def fill_consolidation(range_clip, columns, out):
    """Small, undecided bars long after both swings."""
    range_z = columns[RANGE]
    body = columns[BODY]
    since_high = columns[SINCE_HIGH]
    since_low = columns[SINCE_LOW]
    for t in range(out.shape[0]):
        calm = 1.0 - float(range_z[t]) / range_clip
        undecided = 1.0 - abs(float(body[t]))
        age = (float(since_high[t]) + float(since_low[t])) / 2.0
        out[t] = clip(calm * undecided * age, 0.0, CONSOLIDATION_CLIP)
