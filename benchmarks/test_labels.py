"""Labelling windows in hindsight, on one thread."""

from __future__ import annotations

from typing import Any

import numpy as np

import moola_features as mf
from benchmarks import label_peers as peers
from benchmarks.comparison import Contender, at_least, compare
from moola_train.hindsight import label_windows

NUM_WINDOWS = 4_096  # spread over all bars, as a stride would


def test_labelling(benchmark: Any, full: bool, bars: mf.Bars) -> None:
    ohlc = np.column_stack((bars.open, bars.high, bars.low, bars.close))
    count = NUM_WINDOWS * 8 if full else 256
    starts = np.linspace(1, len(bars) - 116, count).astype(np.int64)
    ours = Contender(
        name="hindsight labels: span, and what stands before it", amount=len(starts),
        run=lambda: label_windows(bars.time, ohlc, starts), goal=at_least(1e5), headline=True,
    )  # fmt: skip
    theirs = Contender(
        name="NumPy, the best span alone", amount=len(starts),
        run=lambda: [
            peers.best_spans(ohlc, starts[first : first + NUM_WINDOWS])
            for first in range(0, len(starts), NUM_WINDOWS)
        ],
    )  # fmt: skip
    found, spans = compare(benchmark, ours, theirs, unit="windows/s", rounds=7)
    start, end = (np.concatenate(column) for column in zip(*spans, strict=True))
    expands = found.start >= 0
    assert expands.any()
    # Running sums round otherwise, which can tell apart spans that are equal.
    same = (start[expands] == found.start[expands]) & (end[expands] == found.end[expands])
    assert same.mean() > 0.99
