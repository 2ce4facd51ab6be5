"""What others would write: the labeller's search for the best span, by NumPy over all windows."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

LENGTH, AFTER = 105, 10
FIRST, LAST = 20, 95
SPANS = range(3, 13)
TOLERANCE = 1e-9

Int64 = NDArray[np.int64]


def best_spans(ohlc: NDArray[np.float64], starts: Int64) -> tuple[Int64, Int64]:
    """First and last bar of the best candidate of each window, int64 ``[N]`` both."""
    bars = sliding_window_view(ohlc, LENGTH + 1, axis=0)[starts - 1]  # [N, 4, 1 + K]
    high, low, close = bars[:, 1, 1:], bars[:, 2, 1:], bars[:, 3]
    before = close[:, :-1]
    true_range = np.maximum(high, before) - np.minimum(low, before)  # [N, K]
    mean = true_range.mean(axis=1, keepdims=True)
    sums = np.cumsum(np.pad(true_range, ((0, 0), (1, 0))), axis=1)  # [N, K + 1]
    first = np.arange(FIRST, LAST + 1)
    scale = ((sums[:, first] - sums[:, first - 20]) / 20 + mean) / 2
    scores = np.full((len(starts), len(first), len(SPANS)), -1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        for column, span in enumerate(SPANS):
            ends = first[first + span <= LENGTH] + span  # one behind the last bar
            fitting = slice(0, len(ends))
            move = np.abs(close[:, ends] - close[:, first[fitting]])
            travelled = sums[:, ends] - sums[:, first[fitting]]
            score = (move / scale[:, fitting]) * (move / travelled)
            scores[:, fitting, column] = np.nan_to_num(score, nan=0.0)
    flat = scores.reshape(len(starts), -1)
    best = np.argmax(flat >= flat.max(axis=1, keepdims=True) * (1 - TOLERANCE), axis=1)
    start = first[best // len(SPANS)]
    return start, start + SPANS.start + best % len(SPANS) - 1
