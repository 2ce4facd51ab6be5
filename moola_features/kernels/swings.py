"""The list of confirmed swings: the zigzag of the features, written down as it turns."""

from __future__ import annotations

import numba
import numpy as np

from moola_features.kernels import recurrences, volatility
from moola_features.kernels.compiled import f8, i8, kernel, vector
from moola_features.kernels.layout import BLOCK, PARAMETERS_TYPE, STATE_TYPE, restart


@kernel(
    vector(f8), vector(f8), vector(f8), i8,
    vector(PARAMETERS_TYPE), vector(STATE_TYPE, writable=True),
    vector(numba.boolean, writable=True), vector(i8, writable=True),
    vector(i8, writable=True), vector(f8, writable=True), vector(i8, writable=True),
)  # fmt: skip
def swings(high, low, close, depth, parameters, state, is_high, index, confirmed, price, count):
    """List the swings of one segment; ``count`` [1] gets their number. The leg turns once a bar."""
    p = parameters[0]
    s = state[0]
    restart(s)
    work = np.empty((4, depth + BLOCK))
    atr = np.empty(BLOCK)
    rows = np.empty((recurrences.NUM_ROWS, BLOCK))
    volatility.start_history(work, depth, high[0], low[0], close[0])
    found = 0
    leg = 0.0
    for begin in range(0, close.shape[0], BLOCK):
        end = min(begin + BLOCK, close.shape[0])
        size = end - begin
        h = high[begin:end]
        l = low[begin:end]
        c = close[begin:end]
        volatility.take_block(work, depth, h, l, c, s.index == 0)
        volatility.average(work[volatility.TRUE_RANGE], depth, p.atr_period, s.index, atr[:size])
        recurrences.advance(p, s, h, l, c, atr, rows)
        s.index += size
        volatility.keep_history(work, depth, size)
        for t in range(size):
            turned = rows[recurrences.LEG, t]
            if leg != 0.0 and turned != leg:
                high_turned = turned < 0.0
                is_high[found] = high_turned
                row = recurrences.HIGH_INDEX if high_turned else recurrences.LOW_INDEX
                index[found] = int(rows[row, t])
                row = recurrences.SWING_HIGH if high_turned else recurrences.SWING_LOW
                price[found] = rows[row, t]
                confirmed[found] = begin + t
                found += 1
            leg = turned
    count[0] = found
