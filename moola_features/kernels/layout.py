"""What every kernel shares: the parameters, the carried state, and the size of a block.

A kernel works in blocks that stay in the first-level cache: a few vectorised passes over a block
cost less than one pass over all bars that branches at each. What a bar needs of the bars before it
is carried in ``history``, so that the first block of a batch is like any other.
"""

from __future__ import annotations

import numba
import numpy as np

from moola_features.kernels.compiled import inlined

BLOCK = 256  # bars

ATR, EARLY, SAME_BAR = 0, 1, 2  # swing rules, in the order of spec.SWING_RULES

PARAMETERS = np.dtype(
    [
        ("range_weight", np.float64),  # weight of the newest range in the mean range
        ("range_rest", np.float64),  # 1 - range_weight
        ("atr_period", np.int64),
        ("swing_rule", np.int64),
        ("k", np.float64),
        ("early_lookback", np.int64),
        ("early_retrace", np.float64),
        ("distance_clip", np.float64),
        ("range_clip", np.float64),
        ("proxy_clip", np.float64),
        ("window_length", np.float64),
        ("first_valid_index", np.int64),
        ("consol_proxy", np.int64),
        ("context", np.int64),
    ],
    align=True,
)

STATE = np.dtype(
    [
        ("index", np.int64),  # bars of the segment seen so far
        ("mean_range", np.float64),
        ("leg", np.int64),  # +1 up, -1 down, 0 before the first leg
        ("extreme", np.float64),
        ("extreme_index", np.int64),
        ("swing_high", np.float64),
        ("swing_high_index", np.int64),  # -1 while none is known
        ("swing_low", np.float64),
        ("swing_low_index", np.int64),  # -1 while none is known
    ],
    align=True,
)

PARAMETERS_TYPE = numba.from_dtype(PARAMETERS)
STATE_TYPE = numba.from_dtype(STATE)


@inlined
def restart(state):
    """Forget everything: the next bar is the first of a segment."""
    state.index = 0
    state.mean_range = 0.0
    state.leg = 0
    state.extreme = 0.0
    state.extreme_index = 0
    state.swing_high = 0.0
    state.swing_high_index = -1
    state.swing_low = 0.0
    state.swing_low_index = -1


@inlined
def clip(value, low, high):
    """Value brought into [low, high]."""
    return low if value < low else (high if value > high else value)


@inlined
def copy(source, out):
    """Copy a 1-D array: as a loop, since an assignment compiles its error messages too."""
    for t in range(out.shape[0]):
        out[t] = source[t]


@inlined
def transpose(columns, out):
    """Turn [F, block] into the rows of the feature matrix."""
    for t in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[t, j] = columns[j, t]
