"""What predictions are worth, each number beside that of a guess that ignores the window.

A floor is the very same function, called with the best constant prediction in place of the
model's. That constant comes from the training part, as everything that is fitted does.

Metrics of spans look at windows that have an expansion; a window without a predicted span counts
as a miss there, and as an error of the whole window in bars. ``span_f1_micro`` and ``pointer_f1``
count spans that were predicted where there is none, too; a window of which nobody said whether
there is one counts nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_train.errors import LabelsError
from moola_train.floors import TOLERANCE
from moola_train.targets import Float64, Int64, TargetPriors, countdown_bars

NUM_BINS = 15

_HIGHER, _LOWER = "higher", "lower"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number beside its floor.

    Attributes
    ----------
    value
        The model's.
    floor
        That of the best guess that is the same for every window; None where none makes sense.
    better
        ``"higher"`` or ``"lower"``; None where neither is.

    Examples
    --------
    >>> Metric(2.0, 3.0, "lower").beats_floor
    True
    """

    value: float
    floor: float | None
    better: str | None

    @property
    def beats_floor(self) -> bool | None:
        """Whether the value is better than the floor; None where there is none."""
        if self.floor is None:
            return None
        return self.value > self.floor if self.better == _HIGHER else self.value < self.floor


@dataclass(frozen=True, eq=False)
class Spans:
    """Spans of windows, one each.

    Attributes
    ----------
    start, end
        int64 ``[N]``, inclusive; -1 where there is none.
    """

    start: Int64
    end: Int64

    @property
    def present(self) -> NDArray[np.bool_]:
        """Where there is one, bool ``[N]``."""
        return self.start >= 0

    @property
    def center(self) -> Float64:
        """Middle of each, float64 ``[N]``."""
        return (self.start + self.end) / 2

    @property
    def num_bars(self) -> Int64:
        """Bars in each, int64 ``[N]``, 0 where there is none."""
        return np.where(self.present, self.end - self.start + 1, 0)

    def take(self, rows: NDArray[Any]) -> Spans:
        """Return those of some rows."""
        return Spans(self.start[rows], self.end[rows])

    @classmethod
    def constant(cls, span: tuple[int, int], count: int) -> Spans:
        """Repeat one span."""
        return cls(np.full(count, span[0]), np.full(count, span[1]))


def evaluate(
    predictions: Mapping[str, NDArray[Any]],
    truth: Mapping[str, NDArray[Any]],
    priors: TargetPriors,
) -> dict[str, Metric]:
    """Score predictions by every metric that they and the labels allow.

    Parameters
    ----------
    predictions
        ``type_probability`` float ``[N, C]``; ``start`` and ``end`` int64 ``[N]``, -1 for none;
        ``countdown`` float ``[N, K]`` in [0, 1]. What is not there is not scored.
    truth
        ``type``, ``start``, ``end``, ``span`` and ``countdown`` as
        :func:`moola_train.targets.make_targets` returns them, of the same windows.
    priors
        Of the training part: what the floors are made of.

    Returns
    -------
    dict of Metric
        By name. ``f1_CLASS`` is left out for a class that neither occurs nor is predicted.

    Raises
    ------
    LabelsError
        Predictions of another number of windows or classes than the labels.
    """
    count = len(truth["type"])
    for name, values in predictions.items():
        if len(values) != count:
            raise LabelsError(f"{name} has {len(values)} rows for {count} windows; give one each")
    found: dict[str, Metric] = {}
    if "type_probability" in predictions:
        found |= _type_metrics(predictions["type_probability"], truth["type"], priors)
    if "start" in predictions:
        predicted = Spans(np.asarray(predictions["start"]), np.asarray(predictions["end"]))
        true = Spans(np.asarray(truth["start"]), np.asarray(truth["end"]))
        known = are_known(truth["span"])
        length = truth["span"].shape[1]
        found |= _span_metrics(predicted.take(known), true.take(known), priors, length)
    if "countdown" in predictions:
        found |= _countdown_metrics(predictions["countdown"], truth["countdown"], priors)
    return found


def _type_metrics(
    probability: NDArray[Any], target: NDArray[Any], priors: TargetPriors
) -> dict[str, Metric]:
    num_classes = len(priors.classes)
    if probability.shape[1] != num_classes:
        raise LabelsError(
            f"type_probability has {probability.shape[1]} columns for {num_classes} classes: "
            f"{', '.join(priors.classes)}; score it with the classes of its training"
        )
    labelled = target >= 0
    true = target[labelled]
    if len(true) == 0:
        return {}
    shares = np.asarray(probability[labelled], np.float64)
    guessed = shares.argmax(axis=1)
    frequencies = np.broadcast_to(priors.class_shares, shares.shape)
    majority = frequencies.argmax(axis=1)
    found = {
        "accuracy": Metric(accuracy(guessed, true), accuracy(majority, true), _HIGHER),
        "f1_macro": Metric(f1_macro(guessed, true), f1_macro(majority, true), _HIGHER),
    }
    floors = f1_per_class(majority, true, num_classes)
    for index, value in enumerate(f1_per_class(guessed, true, num_classes)):
        if np.isfinite(value):
            floor = float(np.nan_to_num(floors[index]))
            found[f"f1_{priors.classes[index]}"] = Metric(float(value), floor, _HIGHER)
    for name, score, better in (
        ("pr_auc", pr_auc, _HIGHER), ("brier", brier, _LOWER), ("ece", ece, _LOWER),
    ):  # fmt: skip
        found[name] = Metric(score(shares, true), score(frequencies, true), better)
    return found


def _span_metrics(
    predicted: Spans, true: Spans, priors: TargetPriors, length: int
) -> dict[str, Metric]:
    expands = true.present
    count = int(expands.sum())
    if count == 0:
        return {}
    guess, known = predicted.take(expands), true.take(expands)
    best = priors.best
    hit_span = Spans.constant(best.hit_span, count)
    iou_span = Spans.constant(best.iou_span, count)
    every_bar = Spans.constant((0, length - 1), len(true.start))
    anywhere = Spans.constant(best.hit_span, len(true.start))
    found = {
        "hit_at_3": Metric(hit_rate(guess, known), hit_rate(hit_span, known), _HIGHER),
        "center_hit_at_3": Metric(
            float(np.mean(guess.present & (_error(guess.center, known.center) <= TOLERANCE))),
            float(np.mean(_error(np.full(count, best.hit_center), known.center) <= TOLERANCE)),
            _HIGHER,
        ),
        "span_f1": Metric(span_f1(guess, known), span_f1(every_bar.take(expands), known), _HIGHER),
        "span_f1_micro": Metric(
            span_f1_micro(predicted, true), span_f1_micro(every_bar, true), _HIGHER
        ),
        "span_iou": Metric(span_iou(guess, known), span_iou(iou_span, known), _HIGHER),
        "pointer_f1": Metric(pointer_f1(predicted, true), pointer_f1(anywhere, true), _HIGHER),
    }
    for name in ("start", "end", "center"):
        wanted = getattr(known, name)
        errors = np.where(guess.present, _error(getattr(guess, name), wanted), length - 1)
        floor = _error(np.full(count, getattr(best, name)), wanted)
        found[f"{name}_mae"] = Metric(float(errors.mean()), float(floor.mean()), _LOWER)
    lags = (guess.start - known.start)[guess.present]
    if len(lags):
        for name, lag in zip(("q1", "median", "q3"), lead_lag(lags), strict=True):
            found[f"lead_lag_{name}"] = Metric(lag, None, None)
    return found


def _countdown_metrics(
    predicted: NDArray[Any], true: NDArray[Any], priors: TargetPriors
) -> dict[str, Metric]:
    known = ~np.isnan(true).any(axis=1)
    if not known.any():
        return {}
    wanted = countdown_bars(true[known])
    guess = countdown_bars(predicted[known])
    best = countdown_bars(priors.best.countdown)
    value, floor = (float(np.mean(_error(bars, wanted))) for bars in (guess, best))
    return {"countdown_mae": Metric(value, floor, _LOWER)}


def accuracy(guessed: NDArray[Any], true: NDArray[Any]) -> float:
    """Share of classes that are right: scikit-learn's ``accuracy_score``."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(true, guessed))


def f1_macro(guessed: NDArray[Any], true: NDArray[Any]) -> float:
    """Mean F1 of the classes that occur or are guessed: scikit-learn's ``f1_score``."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, guessed, average="macro", zero_division=0.0))


def f1_per_class(guessed: NDArray[Any], true: NDArray[Any], num_classes: int) -> Float64:
    """F1 of each class, float64 ``[C]``; NaN where it neither occurs nor is guessed."""
    from sklearn.metrics import f1_score

    scores = f1_score(
        true, guessed, average=None, labels=np.arange(num_classes), zero_division=np.nan
    )
    return np.asarray(scores, np.float64)


def pr_auc(shares: NDArray[Any], true: NDArray[Any]) -> float:
    """Average precision of each class against the rest, their mean over classes that occur.

    scikit-learn's ``average_precision_score``: the sum over thresholds of the step in recall times
    the precision. A constant has the share of the class.
    """
    from sklearn.metrics import average_precision_score

    occurring = np.unique(true)
    scores = [average_precision_score(true == index, shares[:, index]) for index in occurring]
    return float(np.mean(scores))


def brier(shares: NDArray[Any], true: NDArray[Any]) -> float:
    """Brier score: the mean over windows and classes of (p - y)^2.

    Examples
    --------
    >>> brier(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]))
    0.125
    """
    return float(np.mean((shares - np.eye(shares.shape[1])[true]) ** 2))


def ece(shares: NDArray[Any], true: NDArray[Any], num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: the mean over bins of |share right - mean top probability|.

    Bins hold equally many windows, ordered by their top probability; equal ones stay together, so
    that the order of the windows does not matter.

    Notes
    -----
    Naeini, Cooper, Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning,
    AAAI 2015; bins of equal mass after Nixon et al., Measuring Calibration in Deep Learning, 2019.

    Examples
    --------
    >>> ece(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 1, 1]))
    0.25
    """
    top = shares.max(axis=1)
    right = shares.argmax(axis=1) == true
    differences = np.bincount(mass_bins(top, num_bins), weights=right - top, minlength=num_bins)
    return float(np.abs(differences).sum() / len(top))


def mass_bins(top: NDArray[Any], num_bins: int = NUM_BINS) -> NDArray[np.intp]:
    """Which of the bins of equally many windows each top probability ``[N]`` falls into."""
    edges = np.quantile(top, np.arange(1, num_bins) / num_bins)
    return np.searchsorted(edges, top, side="right")


def hit_rate(predicted: Spans, true: Spans, tolerance: int = TOLERANCE) -> float:
    """Share of windows in which both ends are at most so many bars off."""
    return float(np.mean(hits(predicted, true, tolerance)))


def pointer_f1(predicted: Spans, true: Spans, tolerance: int = TOLERANCE) -> float:
    """F1 of events: 2 x hits / (predicted + true), a hit being off by so many bars at most.

    A window has one event or none, so that a prediction can match only its own window's.

    Examples
    --------
    >>> true = Spans(np.array([5, 50, -1]), np.array([9, 60, -1]))
    >>> pointer_f1(Spans(np.array([6, 40, 8]), np.array([9, 60, 9])), true)
    0.4
    """
    events = int(predicted.present.sum() + true.present.sum())
    found = int(hits(predicted, true, tolerance).sum())
    return 2 * found / events if events else 1.0


def span_f1(predicted: Spans, true: Spans) -> float:
    """F1 of bars in each window, 2 x shared / (predicted + true), their mean over windows."""
    bars = predicted.num_bars + true.num_bars
    return float(np.mean(2 * shared_bars(predicted, true) / bars))


def span_f1_micro(predicted: Spans, true: Spans) -> float:
    """F1 of the bars of all windows together."""
    bars = int(predicted.num_bars.sum() + true.num_bars.sum())
    return 2 * int(shared_bars(predicted, true).sum()) / bars


def span_iou(predicted: Spans, true: Spans) -> float:
    """Intersection over union of bars in each window, their mean over windows."""
    shared = shared_bars(predicted, true)
    return float(np.mean(shared / (predicted.num_bars + true.num_bars - shared)))


def lead_lag(lags: NDArray[Any]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of predicted minus true start, in bars."""
    low, middle, high = np.quantile(lags, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def are_known(span: NDArray[Any]) -> NDArray[np.bool_]:
    """Of which windows it is known whether they expand, from the mask ``[N, K]``: bool ``[N]``."""
    known: NDArray[np.bool_] = np.isnan(span).sum(axis=1) == 0
    return known


def shared_bars(predicted: Spans, true: Spans) -> Int64:
    """Bars that both spans of a window have, int64 ``[N]``."""
    bars = np.minimum(predicted.end, true.end) - np.maximum(predicted.start, true.start) + 1
    return np.where(predicted.present & true.present, np.maximum(bars, 0), 0)


def hits(predicted: Spans, true: Spans, tolerance: int = TOLERANCE) -> NDArray[np.bool_]:
    """Where both ends are at most so many bars off, bool ``[N]``."""
    near = _error(predicted.start, true.start) <= tolerance
    near &= _error(predicted.end, true.end) <= tolerance
    found: NDArray[np.bool_] = near & predicted.present & true.present
    return found


def _error(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    errors: NDArray[Any] = np.abs(found - wanted)
    return errors
