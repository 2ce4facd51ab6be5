"""One score for each span, added up span by span from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHORTEST, LONGEST = 2, 20

Float64 = NDArray[np.float64]


def scores(
    first: Float64, last: Float64, summed: Float64, weight: Float64, length_bias: Float64
) -> Float64:
    """a_s + b_e + w . relu(sum of u_t over s..e + c_length): [T], [T], [T, S] to [T, 19].

    Minus infinity where a span leaves the window.
    """
    num_bars = len(first)
    found = np.full((num_bars, LONGEST - SHORTEST + 1), -np.inf)
    for start in range(num_bars):
        for length in range(SHORTEST, LONGEST + 1):
            end = start + length - 1
            if end < num_bars:
                total = summed[start : end + 1].sum(axis=0) + length_bias[length - SHORTEST]
                inner = float(weight @ np.maximum(total, 0))
                found[start, length - SHORTEST] = first[start] + last[end] + inner
    return found


def bars(span: tuple[int, int]) -> set[int]:
    """Bars of a span, both ends inclusive."""
    return set(range(span[0], span[1] + 1))


def f1(one: tuple[int, int], other: tuple[int, int]) -> float:
    """2 x shared / all bars of two spans."""
    return 2 * len(bars(one) & bars(other)) / (len(bars(one)) + len(bars(other)))


def spans(num_bars: int) -> list[tuple[int, int]]:
    """Every span that there is, as first and last bar."""
    return [
        (start, start + length - 1)
        for start in range(num_bars)
        for length in range(SHORTEST, LONGEST + 1)
        if start + length <= num_bars
    ]


def best_span(chances: dict[tuple[int, int], float], num_bars: int) -> tuple[Any, float]:
    """The span of the highest expected F1, and that expectation."""
    worth = {
        guess: sum(chance * f1(guess, true) for true, chance in chances.items())
        for guess in spans(num_bars)
    }
    best = max(worth, key=worth.__getitem__)
    return best, worth[best]
