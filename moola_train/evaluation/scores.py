"""A model's metrics beside floor, rule and interval, and what sets two models apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from moola_train.evaluation.bootstrap import Draws, Interval
from moola_train.evaluation.statistics import Statistic, statistics_of, with_draws
from moola_train.metrics import evaluate
from moola_train.targets import Float64, TargetPriors

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of a model.

    Attributes
    ----------
    value, floor, better
        As `moola_train.metrics.Metric` has them.
    interval
        95 % of the value; NaN where too few days or bases have a say.
    rule
        The same metric of the rule floor; None where the rule says nothing of it.
    over_rule
        Value minus rule, 95 %, both on the same draws.
    """

    value: float
    interval: Interval
    floor: float | None
    better: str | None
    rule: float | None = None
    over_rule: Interval | None = None

    @property
    def beats_floor(self) -> str | None:
        """``"yes"`` where all of the interval beats the floor, ``"no"``, or ``"unsure"``.

        None without a floor or an interval.
        """
        if self.floor is None or self.better is None:
            return None
        return _verdict(self.interval, self.value, self.floor, self.better)

    @property
    def beats_rule(self) -> str | None:
        """The same of the difference to the rule."""
        if self.rule is None or self.over_rule is None or self.better is None:
            return None
        return _verdict(self.over_rule, self.value - self.rule, 0.0, self.better)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of two models on the same windows.

    Attributes
    ----------
    first, second
        The metric of each.
    difference
        First minus second.
    interval
        95 % of it; both are drawn on the same windows.
    better
        ``"higher"`` or ``"lower"``; None where neither is.
    """

    first: float
    second: float
    difference: float
    interval: Interval
    better: str | None

    @property
    def verdict(self) -> str | None:
        """Which one is better, ``"first"`` or ``"second"``; None where the interval holds 0."""
        if self.better is None:
            return None
        other = "lower" if self.better == "higher" else "higher"
        if _verdict(self.interval, self.difference, 0.0, self.better) == "yes":
            return "first"
        return "second" if _verdict(self.interval, self.difference, 0.0, other) == "yes" else None


def _verdict(interval: Interval, value: float, bar: float, better: str) -> str | None:
    if not interval.is_known:
        return None
    higher = better == "higher"
    if interval.low > bar if higher else interval.high < bar:
        return "yes"
    return "unsure" if (value > bar if higher else value < bar) else "no"


def scores_of(
    predictions: Arrays,
    truth: Arrays,
    priors: TargetPriors,
    draws: Draws,
    *,
    rule: Arrays | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Score]:
    """Score predictions, with intervals and beside the floors.

    Parameters
    ----------
    predictions, truth, priors
        As :func:`moola_train.metrics.evaluate` takes them, of N windows.
    draws
        Of the same windows.
    rule
        What the rule floor predicts of them.
    names
        Metrics to report; all when None.

    Returns
    -------
    dict of Score
        By the names of :func:`moola_train.metrics.evaluate`.

    Examples
    --------
    >>> import numpy as np
    >>> from moola_train.targets import LabelledWindows, make_targets
    >>> start = np.arange(10, 90, 10)
    >>> truth = make_targets(LabelledWindows(
    ...     window_id=tuple("abcdefgh"), base_id=tuple("abcdefgh"), type=start // 10 % 2,
    ...     start=start, end=start + 5, classes=("even", "odd"), length=105,
    ... ))
    >>> priors = TargetPriors.of(truth, ("even", "odd"))
    >>> guess = {"start": start + np.array([0, 1, 2, 9] * 2), "end": start + 5}
    >>> score = scores_of(guess, truth, priors, Draws.of(range(8)), names=["hit_at_3"])["hit_at_3"]
    >>> score.value, score.interval
    (0.75, Interval(low=0.375, high=1.0))
    """
    metrics = evaluate(predictions, truth, priors)
    kept = [name for name in metrics if names is None or name in names]
    drawn = _drawn(predictions, truth, priors.classes, draws, kept)
    beside = {} if rule is None else _drawn(rule, truth, priors.classes, draws, kept)
    found = {}
    for name in kept:
        metric, values = metrics[name], drawn[name][1:]
        known: dict[str, Any] = {}
        if name in beside:
            known = {
                "rule": float(beside[name][0]),
                "over_rule": Interval.of(values - beside[name][1:]),
            }
        found[name] = Score(
            value=metric.value, interval=Interval.of(values),
            floor=metric.floor, better=metric.better, **known,
        )  # fmt: skip
    return found


def differences_of(
    first: Arrays, second: Arrays, truth: Arrays, priors: TargetPriors, draws: Draws
) -> dict[str, Difference]:
    """Compare two models' predictions of the same windows, metric by metric.

    Parameters
    ----------
    first, second
        Predictions of N windows.
    truth, priors, draws
        As :func:`scores_of` takes them.

    Returns
    -------
    dict of Difference
        For the metrics that both models have.
    """
    metrics = evaluate(first, truth, priors)
    shared = [name for name in evaluate(second, truth, priors) if name in metrics]
    one, other = (
        _drawn(predictions, truth, priors.classes, draws, shared) for predictions in (first, second)
    )
    found = {}
    for name in shared:
        apart = one[name] - other[name]
        found[name] = Difference(
            first=float(one[name][0]), second=float(other[name][0]), difference=float(apart[0]),
            interval=Interval.of(apart[1:]), better=metrics[name].better,
        )  # fmt: skip
    return found


def named_statistics(
    predictions: Arrays, truth: Arrays, classes: tuple[str, ...]
) -> dict[str, Statistic]:
    """Every metric as a function of draws, by the names of `moola_train.metrics.evaluate`."""
    names = {f"f1_{index}": f"f1_{name}" for index, name in enumerate(classes)}
    found = statistics_of(predictions, truth, len(classes))
    return {names.get(name, name): statistic for name, statistic in found.items()}


def _drawn(
    predictions: Arrays,
    truth: Arrays,
    classes: tuple[str, ...],
    draws: Draws,
    names: Iterable[str],
) -> dict[str, Float64]:
    """Value of the sample and of each draw, float64 ``[1 + D]``, of the metrics there are."""
    statistics = named_statistics(predictions, truth, classes)
    return {name: with_draws(statistics[name], draws) for name in names if name in statistics}
