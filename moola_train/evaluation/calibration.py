"""Whether probabilities mean what they say, and the one number that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_train.errors import LabelsError
from moola_train.evaluation.bootstrap import Draws, Interval
from moola_train.evaluation.statistics import Ratio, with_draws
from moola_train.metrics import NUM_BINS, brier, ece, mass_bins
from moola_train.targets import Float64, Int64

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0

_SMALLEST = 1e-30  # probability whose logarithm is taken in place of that of 0


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Windows of about the same top probability.

    Attributes
    ----------
    num_windows
        How many there are.
    confidence, share_right
        Mean top probability, and share of them that are right.
    interval
        95 % of that share.
    """

    num_windows: int
    confidence: float
    share_right: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of types, as they are and with the temperature.

    Attributes
    ----------
    temperature
        Fitted on the validation part: what logits are divided by.
    num_fitted
        Windows that it was fitted on.
    before, after
        ``nll`` (mean negative log likelihood, nats), ``brier`` and ``ece`` of the part.
    bins, bins_after
        Reliability diagram of the part: 15 bins of equally many windows.
    """

    temperature: float
    num_fitted: int
    before: dict[str, float]
    after: dict[str, float]
    bins: tuple[Bin, ...]
    bins_after: tuple[Bin, ...]


def calibrate(
    fitted_on: tuple[NDArray[Any], Int64], judged_on: tuple[NDArray[Any], Int64], draws: Draws
) -> Calibration | None:
    """Fit a temperature on one part, and judge calibration on another.

    Parameters
    ----------
    fitted_on, judged_on
        Probabilities ``[N, C]`` and types int64 ``[N]``, -1 unknown, of the validation part and
        of the part that is judged.
    draws
        Of the windows that are judged.

    Returns
    -------
    Calibration or None
        None where one of the parts has no window with a type.
    """
    known = [types >= 0 for _, types in (fitted_on, judged_on)]
    if not (known[0].any() and known[1].any()):
        return None
    temperature = fit_temperature(fitted_on[0][known[0]], fitted_on[1][known[0]])
    true = judged_on[1][known[1]]
    plain = np.asarray(judged_on[0][known[1]], np.float64)
    cooled = tempered(plain, temperature)
    part = draws.take(np.flatnonzero(known[1]))
    return Calibration(
        temperature=temperature,
        num_fitted=int(known[0].sum()),
        before=_quality(plain, true),
        after=_quality(cooled, true),
        bins=reliability(plain, true, part),
        bins_after=reliability(cooled, true, part),
    )


def fit_temperature(probability: NDArray[Any], true: Int64) -> float:
    """Temperature of the highest likelihood, from 0.01 to 100.

    Parameters
    ----------
    probability
        float ``[N, C]``.
    true
        int64 ``[N]``: class of each window.

    Raises
    ------
    LabelsError
        No windows.

    Notes
    -----
    Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017. The log
    likelihood is concave in b = 1 / T; its derivative, the sum over windows of the true logit minus
    the mean logit under b, falls with b, and its zero is found by bisection.

    Examples
    --------
    >>> shares = np.array([[0.9, 0.1]] * 4)  # right in three of four, and too sure of it
    >>> round(fit_temperature(shares, np.array([0, 0, 0, 1])), 3)  # ln 9 / ln 3
    2.0
    """
    if len(true) == 0:
        raise LabelsError("no window has a type to fit a temperature to; label some")
    logits = np.log(np.maximum(np.asarray(probability, np.float64), _SMALLEST))
    of_true = logits[np.arange(len(true)), true]

    def slope(inverse: float) -> float:
        return float(np.sum(of_true - (_softmax(logits * inverse) * logits).sum(axis=1)))

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) <= 0:
        return MAX_TEMPERATURE
    if slope(high) >= 0:
        return MIN_TEMPERATURE
    for _ in range(100):  # each halves the ratio's logarithm: far below the last digit
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def tempered(probability: NDArray[Any], temperature: float) -> Float64:
    """Probabilities ``[N, C]`` with their logits divided by a temperature.

    Examples
    --------
    >>> tempered(np.array([[0.8, 0.2]]), 2.0).round(4)
    array([[0.6667, 0.3333]])
    """
    logits = np.log(np.maximum(np.asarray(probability, np.float64), _SMALLEST))
    return _softmax(logits / temperature)


def reliability(probability: Float64, true: Int64, draws: Draws) -> tuple[Bin, ...]:
    """Bins of equally many windows by their top probability, those that hold any."""
    top = probability.max(axis=1)
    right = probability.argmax(axis=1) == true
    bins = mass_bins(top)
    found = []
    for index in range(NUM_BINS):
        inside = bins == index
        if inside.any():
            drawn = with_draws(Ratio(right & inside, inside), draws)[1:]
            found.append(
                Bin(
                    num_windows=int(inside.sum()),
                    confidence=float(top[inside].mean()),
                    share_right=float(right[inside].mean()),
                    interval=Interval.of(drawn),
                )
            )
    return tuple(found)


def _quality(probability: Float64, true: Int64) -> dict[str, float]:
    chosen = np.maximum(probability[np.arange(len(true)), true], _SMALLEST)
    return {
        "nll": float(-np.log(chosen).mean()),
        "brier": brier(probability, true),
        "ece": ece(probability, true),
    }


def _softmax(logits: Float64) -> Float64:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Float64 = powers / powers.sum(axis=1, keepdims=True)
    return shares
