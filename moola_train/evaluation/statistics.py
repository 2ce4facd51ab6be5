"""Every metric as a function of which windows are drawn: what intervals are made of.

A metric that is a ratio of sums over windows needs those sums only, so that a thousand draws cost
one matrix product. The values are those of :func:`moola_train.metrics.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moola_train import metrics
from moola_train.evaluation.bootstrap import MIN_BLOCKS, Draws
from moola_train.floors import TOLERANCE
from moola_train.metrics import Spans
from moola_train.targets import Float64, Int64, countdown_bars

Arrays = Mapping[str, NDArray[Any]]


class Statistic(Protocol):
    """A number that depends on the windows of a sample."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """The windows that it depends on, bool ``[N]``."""

    def drawn(self, draws: Draws) -> Float64:
        """Its value in each draw, float64 ``[D]``; NaN where the draw says nothing of it."""


@dataclass(frozen=True, eq=False)
class Ratio:
    """Sum of ``top`` over sum of ``bottom``, both ``[N]``; a mean where ``bottom`` counts."""

    top: NDArray[Any]
    bottom: NDArray[Any]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Windows with a bottom."""
        found: NDArray[np.bool_] = np.not_equal(self.bottom, 0)
        return found

    def drawn(self, draws: Draws) -> Float64:
        """Value in each draw."""
        return _ratio(draws.sums(self.top), draws.sums(self.bottom))


@dataclass(frozen=True, eq=False)
class MeanOfRatios:
    """Mean over columns of such ratios, ``[N, C]``; a column without a bottom is left out."""

    top: NDArray[Any]
    bottom: NDArray[Any]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Windows with a bottom in any column."""
        found: NDArray[np.bool_] = np.not_equal(self.bottom, 0).any(axis=1)
        return found

    def drawn(self, draws: Draws) -> Float64:
        """Value in each draw."""
        return _known_mean(_ratio(draws.sums(self.top), draws.sums(self.bottom)))


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Mean over columns of the average precision of ``scores`` for ``is_class``, ``[N, C]``.

    ``known`` bool ``[N]`` says which windows count; a class that a draw lacks is left out.
    """

    scores: NDArray[Any]
    is_class: NDArray[np.bool_]
    known: NDArray[np.bool_]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Known windows."""
        return self.known

    def drawn(self, draws: Draws) -> Float64:
        """Value in each draw."""
        rows = np.flatnonzero(self.known)
        columns = [
            _average_precisions(self.scores[rows, column], self.is_class[rows, column], draws, rows)
            for column in range(self.scores.shape[1])
        ]
        return _known_mean(np.stack(columns, axis=1))


@dataclass(frozen=True, eq=False)
class Resampled:
    """Any function of the rows of a draw, among those that are ``known``, bool ``[N]``."""

    function: Callable[[Int64], float]
    known: NDArray[np.bool_]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Known windows."""
        return self.known

    def drawn(self, draws: Draws) -> Float64:
        """Value in each draw."""
        rows = np.flatnonzero(self.known)
        found = (rows[drawn] for drawn in draws.take(rows).rows())
        return np.array([self.function(part) if len(part) else np.nan for part in found])


def with_draws(statistic: Statistic, draws: Draws) -> Float64:
    """Value of the sample and of each draw, float64 ``[1 + D]``.

    The draws are NaN where fewer than :data:`MIN_BLOCKS` blocks hold a window that counts: what
    comes from one day alone is the same in every draw, and would look certain.
    """
    drawn = statistic.drawn(draws)
    if draws.num_blocks_of(statistic.counted) < MIN_BLOCKS:
        drawn = np.full_like(drawn, np.nan)
    return np.concatenate([statistic.drawn(draws.once()), drawn])


def statistics_of(predictions: Arrays, truth: Arrays, num_classes: int) -> dict[str, Statistic]:
    """Every metric of predictions, by the names of :func:`moola_train.metrics.evaluate`.

    Parameters
    ----------
    predictions, truth
        As there, of the same N windows.
    num_classes
        Types of a window, C.

    Returns
    -------
    dict of Statistic
        ``f1_0``, ``f1_1`` and so on stand for the classes in their order.
    """
    found: dict[str, Statistic] = {}
    if "type_probability" in predictions:
        found |= _type_statistics(predictions["type_probability"], truth["type"], num_classes)
    if "start" in predictions:
        predicted = Spans(predictions["start"], predictions["end"])
        true = Spans(truth["start"], truth["end"])
        known = metrics.are_known(truth["span"])
        found |= _span_statistics(predicted, true, known, truth["span"].shape[1])
    if "countdown" in predictions:
        known = np.isnan(truth["countdown"]).sum(axis=1) == 0
        errors = countdown_bars(predictions["countdown"]) - countdown_bars(truth["countdown"])
        found["countdown_mae"] = _mean(np.abs(errors).mean(axis=1), known)
    return found


def _type_statistics(
    probability: NDArray[Any], target: NDArray[Any], num_classes: int
) -> dict[str, Statistic]:
    known: NDArray[np.bool_] = np.greater_equal(target, 0)
    shares = np.asarray(probability, np.float64)
    guessed = shares.argmax(axis=1)
    classes = np.arange(num_classes)
    is_true = (target[:, None] == classes) & known[:, None]  # [N, C]
    is_guessed = (guessed[:, None] == classes) & known[:, None]
    both, either = 2 * (is_true & is_guessed), is_true.astype(int) + is_guessed
    found: dict[str, Statistic] = {
        "accuracy": _mean(guessed == target, known),
        "f1_macro": MeanOfRatios(both, either),
    }
    for index in range(num_classes):
        found[f"f1_{index}"] = Ratio(both[:, index], either[:, index])
    found["pr_auc"] = AveragePrecision(shares, is_true, known)
    found["brier"] = _mean(((shares - is_true) ** 2).mean(axis=1), known)
    found["ece"] = Resampled(lambda rows: metrics.ece(shares[rows], target[rows]), known)
    return found


def _span_statistics(
    predicted: Spans, true: Spans, known: NDArray[np.bool_], length: int
) -> dict[str, Statistic]:
    expands = true.present
    shared = metrics.shared_bars(predicted, true)
    bars = predicted.num_bars + true.num_bars
    hits = metrics.hits(predicted, true)
    center_off = np.abs(predicted.center - true.center)
    found: dict[str, Statistic] = {
        "hit_at_3": _mean(hits, expands),
        "center_hit_at_3": _mean(predicted.present & (center_off <= TOLERANCE), expands),
        "span_f1": _mean(2 * shared / np.maximum(bars, 1), expands),
        "span_f1_micro": Ratio(2 * shared, bars * known),
        "span_iou": _mean(shared / np.maximum(bars - shared, 1), expands),
        "pointer_f1": Ratio(2 * hits, (predicted.present.astype(int) + true.present) * known),
    }
    for name in ("start", "end", "center"):
        errors = np.abs(getattr(predicted, name) - getattr(true, name))
        missed = np.where(predicted.present, errors, length - 1)
        found[f"{name}_mae"] = _mean(missed, expands)
    lags = predicted.start - true.start
    for position, name in enumerate(("q1", "median", "q3")):
        found[f"lead_lag_{name}"] = Resampled(
            lambda rows, place=position: metrics.lead_lag(lags[rows])[place],  # type: ignore[misc]
            expands & predicted.present,
        )
    return found


def _mean(values: NDArray[Any], known: NDArray[np.bool_]) -> Ratio:
    return Ratio(np.where(known, values, 0), known)


def _ratio(top: Float64, bottom: Float64) -> Float64:
    found = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=found, where=bottom > 0)
    return found


def _known_mean(values: Float64) -> Float64:
    """Mean over columns ``[D, C]`` that are no NaN; NaN where all are."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _average_precisions(
    scores: NDArray[Any], is_class: NDArray[np.bool_], draws: Draws, rows: Int64
) -> Float64:
    """Average precision in each draw: the steps in recall times the precision, ties together."""
    if len(rows) == 0:
        return np.full(len(draws), np.nan)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of equal scores
    hits = is_class[order].astype(np.float64)
    parts = []
    for weights in draws.take(rows[order]).weights():  # [d, M]
        right = np.cumsum(weights * hits, axis=1)[:, ends]
        taken = np.cumsum(weights, axis=1)[:, ends]
        steps = np.diff(right, axis=1, prepend=0.0)
        precision = np.divide(right, taken, out=np.zeros_like(right), where=taken > 0)
        parts.append(_ratio((steps * precision).sum(axis=1), right[:, -1]))
    return np.concatenate(parts)
