"""How scores are written, in a terminal and on the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moola_train.evaluation.bootstrap import Interval
    from moola_train.evaluation.scores import Score

SCORE_HEADERS = (
    "metric", "value", "95 %", "floor", "rule", "better", "beats its floor", "beats the rule",
)  # fmt: skip


def number(value: float | None) -> str:
    """Write a score; a dash where there is none.

    Examples
    --------
    >>> number(0.70049), number(float("nan")), number(None)
    ('0.700', '-', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def spread(interval: Interval) -> str:
    """Write an interval; a dash where there is none.

    Examples
    --------
    >>> from moola_train.evaluation.bootstrap import Interval
    >>> spread(Interval(0.68, 0.72))
    '0.680 to 0.720'
    """
    return f"{number(interval.low)} to {number(interval.high)}" if interval.is_known else "-"


def score_cells(name: str, score: Score) -> tuple[str, ...]:
    """Write a score as a row under :data:`SCORE_HEADERS`."""
    return (
        name, number(score.value), spread(score.interval), number(score.floor), number(score.rule),
        score.better or "-", score.beats_floor or "-", score.beats_rule or "-",
    )  # fmt: skip
