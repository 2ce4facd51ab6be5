"""The hindsight labeller, window by window, as docs/labels.md defines it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

MARGIN = 1e-9  # of every comparison, relative


class Label(NamedTuple):
    """What is said of one window; start and end are -1 and the direction is 0 without a span."""

    label: str
    start: int
    end: int
    direction: int
    score: float


class Candidate(NamedTuple):
    """A run of bars that may be the expansion, and what is measured of it."""

    start: int
    end: int
    move: float
    travelled: float
    scale: float
    score: float


def at_least(value: float, bound: float) -> bool:
    """Whether value >= bound, up to rounding."""
    return value >= bound - MARGIN * abs(bound)


class Window:
    """Prices by position: 0 to 104 lie in the window, -1 before it, 105 to 114 behind it."""

    def __init__(self, ohlc: Any, begin: int) -> None:
        rows = np.asarray(ohlc, float)[begin - 1 : begin + 115].tolist()
        assert len(rows) == 116
        self._rows = rows
        self._true_ranges = [
            max(self.high(t), self.close(t - 1)) - min(self.low(t), self.close(t - 1))
            for t in range(105)
        ]

    def high(self, t: int) -> float:
        """Highest price of bar t."""
        return float(self._rows[t + 1][1])

    def low(self, t: int) -> float:
        """Lowest price of bar t."""
        return float(self._rows[t + 1][2])

    def close(self, t: int) -> float:
        """Last price of bar t."""
        return float(self._rows[t + 1][3])

    def true_range(self, t: int) -> float:
        """Range of bar t and the close before it."""
        return float(self._true_ranges[t])

    def mean_true_range(self, first: int, last: int) -> float:
        """Mean over the bars first to last, both included."""
        total = 0.0
        for t in range(first, last + 1):
            total += self.true_range(t)
        return total / (last - first + 1)


def label_window(ohlc: Any, begin: int) -> Label:
    """Label the window of 105 bars that starts at bar ``begin``."""
    window = Window(ohlc, begin)
    mean = window.mean_true_range(0, 104)
    if mean == 0:
        return Label("none", -1, -1, 0, 0.0)
    candidates = list_candidates(window, mean)
    best_score = max(candidate.score for candidate in candidates)
    # Listed by start, then by end: the first of equals is the earliest.
    best = next(one for one in candidates if at_least(one.score, best_score))
    if not expands(window, best):
        return Label("none", -1, -1, 0, best_score)
    for other in candidates:
        apart = other.end < best.start or other.start > best.end
        if apart and other.score > 0.8 * best_score * (1 + MARGIN):
            return Label("ambiguous", -1, -1, 0, best_score)
    direction = 1 if best.move > 0 else -1
    return Label(before(window, best, direction), best.start, best.end, direction, best_score)


def list_candidates(window: Window, mean: float) -> list[Candidate]:
    """Every start from 20 to 95 with every length from 3 to 12 that ends in the window."""
    candidates = []
    for start in range(20, 96):
        scale = (window.mean_true_range(start - 20, start - 1) + mean) / 2
        for length in range(3, 13):
            end = start + length - 1
            if end > 104:
                continue
            move = window.close(end) - window.close(start - 1)
            travelled = 0.0
            for t in range(start, end + 1):
                travelled += window.true_range(t)
            score = 0.0
            if travelled > 0:
                score = (abs(move) / scale) * (abs(move) / travelled)
            candidates.append(Candidate(start, end, move, travelled, scale, score))
    return candidates


def expands(window: Window, best: Candidate) -> bool:
    """Whether the best candidate is far, straight and lasting enough to be an expansion."""
    size = abs(best.move)
    if not at_least(size, 5 * best.scale):
        return False
    if not at_least(size, 0.5 * best.travelled):
        return False
    direction = 1 if best.move > 0 else -1
    for t in range(best.end + 1, best.end + 11):
        held = direction * (window.close(t) - window.close(best.start - 1))
        if not at_least(held, 0.25 * size):
            return False
    return True


def before(window: Window, best: Candidate, direction: int) -> str:
    """Name what the 15 bars before the span are, mirrored for a move downwards."""

    def high(t: int) -> float:
        return window.high(t) if direction == 1 else -window.low(t)

    def low(t: int) -> float:
        return window.low(t) if direction == 1 else -window.high(t)

    prelude = range(best.start - 15, best.start)
    top = max(high(t) for t in prelude)
    box = top - min(low(t) for t in prelude)
    if at_least(4 * best.scale, box):
        return "consolidation"
    last_top = max(t for t in prelude if top - high(t) <= MARGIN * box)
    leg = top - min(low(t) for t in range(max(last_top - 39, 0), last_top + 1))
    pullback = top - direction * window.close(best.start - 1)
    if at_least(pullback, 1.5 * best.scale) and at_least(leg, pullback):
        return "retracement"
    return "other"
