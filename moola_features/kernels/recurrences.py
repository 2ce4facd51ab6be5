"""The two recurrences: the exponential mean range and the zigzag.

Both wait at every bar for their own last result and cannot be vectorised, so one loop carries them
and each hides in the other's waiting.
"""

from __future__ import annotations

from moola_features.kernels.compiled import inlined
from moola_features.kernels.layout import ATR, SAME_BAR

# On a tick grid a move often equals its threshold in real arithmetic, and rounding would decide.
# A move that falls short by this share of the close counts as equal, so a tie always confirms.
TIE = 2.0**-41

# Rows that `advance` fills: the state after each bar. Indices are kept as float64 (exact to 2**53)
# so that the passes behind can vectorise them.
MEAN_RANGE, LEG, SWING_HIGH, SWING_LOW, HIGH_INDEX, LOW_INDEX = range(6)
NUM_ROWS = 6


@inlined
def advance(parameters, state, high, low, close, atr, rows):
    """Carry the mean range and the zigzag over a block; ``rows`` [6, block] is filled."""
    weight = parameters.range_weight
    rest = parameters.range_rest
    k = parameters.k
    retrace = parameters.early_retrace
    early = parameters.swing_rule != ATR
    # An extreme made by the bar itself (age 0) is too fresh, except under the rule that allows it.
    youngest = 0 if parameters.swing_rule == SAME_BAR else 1
    oldest = parameters.early_lookback
    index = state.index
    mean = state.mean_range
    leg = state.leg
    extreme = state.extreme
    extreme_index = state.extreme_index
    swing_high = state.swing_high
    swing_high_index = state.swing_high_index
    swing_low = state.swing_low
    swing_low_index = state.swing_low_index
    for t in range(close.shape[0]):
        h = high[t]
        l = low[t]
        c = close[t]
        slack = TIE * abs(c)
        mean = weight * (h - l) + rest * mean if index > 0 else h - l
        if leg > 0:
            if h > extreme:
                extreme = h
                extreme_index = index
            confirmed = extreme - c >= k * atr[t] - slack
            if early and not confirmed:
                age = index - extreme_index
                confirmed = youngest <= age <= oldest and extreme - l >= retrace * atr[t] - slack
            if confirmed:
                swing_high = extreme
                swing_high_index = extreme_index
                leg = -1
                extreme = l
                extreme_index = index
        elif leg < 0:
            if l < extreme:
                extreme = l
                extreme_index = index
            confirmed = c - extreme >= k * atr[t] - slack
            if early and not confirmed:
                age = index - extreme_index
                confirmed = youngest <= age <= oldest and h - extreme >= retrace * atr[t] - slack
            if confirmed:
                swing_low = extreme
                swing_low_index = extreme_index
                leg = 1
                extreme = h
                extreme_index = index
        elif atr[t] > 0.0:
            leg = 1
            extreme = c
            extreme_index = index
        rows[MEAN_RANGE, t] = mean
        rows[LEG, t] = leg
        rows[SWING_HIGH, t] = swing_high
        rows[SWING_LOW, t] = swing_low
        rows[HIGH_INDEX, t] = swing_high_index
        rows[LOW_INDEX, t] = swing_low_index
        index += 1
    state.mean_range = mean
    state.leg = leg
    state.extreme = extreme
    state.extreme_index = extreme_index
    state.swing_high = swing_high
    state.swing_high_index = swing_high_index
    state.swing_low = swing_low
    state.swing_low_index = swing_low_index
