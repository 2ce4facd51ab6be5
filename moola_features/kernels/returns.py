"""Family ``returns``: log returns, candle ratios and z-scores, in one pass over the bars."""

from __future__ import annotations

import math

import numba
import numpy as np

from moola_features.kernels.compiled import f8, i8, inlined, kernel, matrix, vector
from moola_features.kernels.layout import (
    BLOCK,
    PARAMETERS_TYPE,
    STATE_TYPE,
    clip,
    copy,
    restart,
    transpose,
)

ZSCORE_PERIOD = 20  # bars
ZSCORE_CLIP = 10.0
LOG_RETURN, BODY, UPPER_WICK, LOWER_WICK, ZSCORE = 0, 4, 5, 6, 7  # first column of each kind


@kernel(
    vector(f8), vector(f8), vector(f8), vector(f8), vector(i8),
    vector(PARAMETERS_TYPE), vector(STATE_TYPE, writable=True), matrix(f8, writable=True),
    matrix(numba.float32, writable=True), vector(numba.boolean, writable=True),
)  # fmt: skip
def returns(open_, high, low, close, starts, parameters, state, history, out, valid):
    """Fill ``out`` [n, 11] and ``valid`` [n]; ``starts`` are the bars that begin a segment."""
    s = state[0]
    first_valid_index = parameters[0].first_valid_index
    num_bars = close.shape[0]
    depth = history.shape[1]
    size = min(num_bars, BLOCK)
    work = np.empty((4, depth + size))  # open, high, low, close behind the history they need
    for row in range(4):
        copy(history[row], work[row, :depth])
    columns = np.empty((out.shape[1], size), dtype=np.float32)
    scratch = np.empty((2, size))
    position = 0
    begin = 0
    while begin < num_bars:
        if position < starts.shape[0] and starts[position] == begin:
            restart(s)
            position += 1
        end = min(begin + BLOCK, num_bars)
        if position < starts.shape[0] and starts[position] < end:
            end = starts[position]
        count = end - begin
        copy(open_[begin:end], work[0, depth : depth + count])
        copy(high[begin:end], work[1, depth : depth + count])
        copy(low[begin:end], work[2, depth : depth + count])
        copy(close[begin:end], work[3, depth : depth + count])
        if s.index == 0:
            # A first bar that stands in for the missing ones: its return is ln(1) = 0.
            for row in range(4):
                work[row, :depth] = work[row, depth]
        for row in range(4):
            fill_log_return(work[row], depth, columns[LOG_RETURN + row, :count])
            fill_zscore(work[row], depth, s.index, scratch, columns[ZSCORE + row, :count])
        fill_ratios(open_[begin:end], high[begin:end], low[begin:end], close[begin:end], columns)
        for t in range(count):
            valid[begin + t] = s.index + t >= first_valid_index
        transpose(columns, out[begin:end])
        s.index += count
        for row in range(4):
            for j in range(depth):
                work[row, j] = work[row, j + count]
        begin = end
    for row in range(4):
        copy(work[row, :depth], history[row])


@inlined
def fill_log_return(prices, depth, out):
    """Logarithm of each price over the one before it."""
    size = out.shape[0]
    here = prices[depth : depth + size]
    before = prices[depth - 1 : depth - 1 + size]
    for t in range(size):
        ratio = here[t] / before[t]
        # A jump of more than 308 decades has no finite ratio, but a logarithm all the same.
        finite = 0.0 < ratio < math.inf
        out[t] = math.log(ratio) if finite else math.log(here[t]) - math.log(before[t])


@inlined
def fill_ratios(open_, high, low, close, columns):
    """Body and wicks as shares of the range, 0 on a flat bar (its differences are 0)."""
    size = close.shape[0]
    body = columns[BODY, :size]
    upper = columns[UPPER_WICK, :size]
    lower = columns[LOWER_WICK, :size]
    for t in range(size):
        r = high[t] - low[t]
        divisor = r if r > 0.0 else 1.0
        body[t] = abs(close[t] - open_[t]) / divisor
        upper[t] = (high[t] - max(open_[t], close[t])) / divisor
        lower[t] = (min(open_[t], close[t]) - low[t]) / divisor


@inlined
def fill_zscore(prices, depth, index, scratch, out):
    """Each price against its last min(i + 1, 20): population standard deviation, two passes.

    Everything is taken relative to the price itself, so that its size cancels before squaring.
    """
    size = out.shape[0]
    mean = scratch[0, :size]
    variance = scratch[1, :size]
    mean[:] = 0.0
    here = prices[depth : depth + size]
    for lag in range(ZSCORE_PERIOD - 1, 0, -1):
        # A lag counts only from the bar on whose look-back stays inside the segment.
        first = max(0, min(lag - index, size))
        lagged = prices[depth - lag + first : depth - lag + size]
        add_differences(lagged, here[first:], mean[first:])
    for t in range(size):
        mean[t] /= min(index + t + 1, ZSCORE_PERIOD)
        variance[t] = mean[t] * mean[t]  # the price itself differs from itself by 0
    for lag in range(ZSCORE_PERIOD - 1, 0, -1):
        first = max(0, min(lag - index, size))
        lagged = prices[depth - lag + first : depth - lag + size]
        add_squares(lagged, here[first:], mean[first:], variance[first:])
    for t in range(size):
        deviation = math.sqrt(variance[t] / min(index + t + 1, ZSCORE_PERIOD))
        score = -mean[t] / (deviation if deviation > 0.0 else 1.0)
        out[t] = clip(score, -ZSCORE_CLIP, ZSCORE_CLIP) if deviation > 0.0 else 0.0


@inlined
def add_differences(lagged, here, total):
    """Add each difference to its sum: exactly 0 where the prices are equal."""
    for t in range(total.shape[0]):
        total[t] += lagged[t] - here[t]


@inlined
def add_squares(lagged, here, mean, total):
    """Add the square of each difference from the mean."""
    for t in range(total.shape[0]):
        deviation = lagged[t] - here[t] - mean[t]
        total[t] += deviation * deviation
