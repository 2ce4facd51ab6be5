"""Parts of a part: windows of one class, and windows of quiet, middling and wild times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_train.evaluation.bootstrap import Draws
from moola_train.evaluation.names import CLASS, TERCILES, VOLATILITY
from moola_train.evaluation.scores import Score, scores_of
from moola_train.targets import Float64, Int64, TargetPriors

NAMES = {
    CLASS: ("accuracy", "span_f1", "hit_at_3", "start_mae"),
    VOLATILITY: ("f1_macro", "accuracy", "span_f1", "hit_at_3", "start_mae"),
}

_HIGH, _LOW, _CLOSE = 1, 2, 3

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Scores of some of the windows.

    Attributes
    ----------
    by
        ``"class"`` or ``"volatility"``.
    name
        Which class, or which tercile.
    num_windows
        How many there are.
    scores
        As of the whole part. The accuracy of a class is its recall.
    """

    by: str
    name: str
    num_windows: int
    scores: dict[str, Score]


def volatility_of(ohlc: Float64) -> Float64:
    """Mean true range of windows over their mean close, float64 ``[N]``.

    Parameters
    ----------
    ohlc
        float64 ``[N, K, 4]``. The first bar has no close before it and is left out.

    Examples
    --------
    >>> bars = np.array([[[10, 11, 9, 10], [10, 12, 10, 10], [14, 14, 13, 13]]])  # 2, then 4
    >>> volatility_of(bars.astype(float)).round(4)  # 3 over 11
    array([0.2727])
    """
    high, low, close = (ohlc[:, :, price] for price in (_HIGH, _LOW, _CLOSE))
    before = close[:, :-1]
    ranges = np.maximum(high[:, 1:], before) - np.minimum(low[:, 1:], before)
    level = np.abs(close).mean(axis=1)
    found: Float64 = ranges.mean(axis=1) / np.where(level > 0, level, 1.0)
    return found


def tercile_edges(volatility: Float64) -> tuple[float, float]:
    """The two edges that cut windows of the training part into three of equally many."""
    low, high = np.quantile(volatility, [1 / 3, 2 / 3]).tolist()
    return low, high


def slices_of(
    predictions: Arrays,
    truth: Arrays,
    priors: TargetPriors,
    draws: Draws,
    *,
    volatility: Float64,
    edges: tuple[float, float],
    rule: Arrays,
) -> tuple[Slice, ...]:
    """Score each class and each tercile of volatility that has windows.

    Parameters
    ----------
    predictions, truth, priors, draws, rule
        As :func:`moola_train.evaluation.scores.scores_of` takes them, of N windows.
    volatility
        float64 ``[N]``.
    edges
        Of the training part.
    """
    tercile = np.searchsorted(np.array(edges), volatility, side="right")
    parts = [(CLASS, name, truth["type"] == index) for index, name in enumerate(priors.classes)]
    parts += [(VOLATILITY, name, tercile == index) for index, name in enumerate(TERCILES)]
    found = []
    for by, name, inside in parts:
        rows: Int64 = np.flatnonzero(inside)
        if len(rows):
            scores = scores_of(
                _take(predictions, rows), _take(truth, rows), priors, draws.take(rows),
                rule=_take(rule, rows), names=NAMES[by],
            )  # fmt: skip
            found.append(Slice(by=by, name=name, num_windows=len(rows), scores=scores))
    return tuple(found)


def _take(arrays: Arrays, rows: Int64) -> dict[str, NDArray[Any]]:
    return {name: values[rows] for name, values in arrays.items()}
