"""Whether a model knows when there is nothing to find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moola_train.evaluation.bootstrap import Draws, Interval
from moola_train.evaluation.statistics import AveragePrecision, with_draws
from moola_train.targets import Float64

_MOST_POINTS = 200  # of a curve that is drawn


@dataclass(frozen=True, kw_only=True)
class Abstaining:
    """How well the windows with an expansion are told from those without.

    Attributes
    ----------
    num_with, num_without
        Windows of each kind; those that nobody labelled are neither.
    average_precision, interval
        Of "there is an expansion", and its 95 %.
    floor
        The share of windows with one.
    rule, over_rule
        That of the largest net move of 8 bars, in mean true ranges; and the 95 % of the difference.
    recall, precision
        The model's curve, by falling probability, at most 200 points.
    """

    num_with: int
    num_without: int
    average_precision: float
    interval: Interval
    floor: float
    rule: float
    over_rule: Interval
    recall: tuple[float, ...]
    precision: tuple[float, ...]


def abstaining_of(
    probability: NDArray[np.floating],
    expands: NDArray[np.bool_],
    known: NDArray[np.bool_],
    draws: Draws,
    *,
    rule_move: Float64,
) -> Abstaining | None:
    """Score the probability that there is an expansion.

    Parameters
    ----------
    probability
        float ``[N]``.
    expands, known
        bool ``[N]``: which windows have an expansion, and of which that is known.
    draws
        Of the windows.
    rule_move
        float64 ``[N]``: what the rule orders windows by.

    Returns
    -------
    Abstaining or None
        None where windows of one of the two kinds are missing.
    """
    num_with, num_without = int((expands & known).sum()), int((~expands & known).sum())
    if not (num_with and num_without):
        return None
    drawn = [
        with_draws(AveragePrecision(score[:, None], expands[:, None], known), draws)
        for score in (probability, rule_move)
    ]
    recall, precision = _curve(probability[known], expands[known])
    return Abstaining(
        num_with=num_with,
        num_without=num_without,
        average_precision=float(drawn[0][0]),
        interval=Interval.of(drawn[0][1:]),
        floor=num_with / (num_with + num_without),
        rule=float(drawn[1][0]),
        over_rule=Interval.of(drawn[0][1:] - drawn[1][1:]),
        recall=recall,
        precision=precision,
    )


def _curve(
    probability: NDArray[np.floating], expands: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(expands, probability)
    kept = np.unique(np.linspace(0, len(recall) - 1, _MOST_POINTS).round().astype(int))[::-1]
    return tuple(recall[kept].tolist()), tuple(precision[kept].tolist())
