"""Which windows a person is asked for, in what order, and what a model guesses of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moola_features.times import TimeLike
from moola_train.errors import ConfigError, LabelsError
from moola_train.labels import WINDOW_LENGTH
from moola_train.review.marks import Mark
from moola_train.targets import NO_EXPANSION

if TYPE_CHECKING:
    from moola_features.store import Store
    from moola_train.targets import Float64, Int64

ORDERS = ("given", "random", "uncertain")
STRIDE = WINDOW_LENGTH  # no two candidates share a bar


@dataclass(frozen=True, kw_only=True, eq=False)
class Guesses:
    """What a model makes of N windows.

    Attributes
    ----------
    marks
        Its type and span of each.
    uncertainty
        float64 ``[N]``, 0 to 1: mean of the entropies of its type and of its start and end, each
        over that of an even distribution; of those heads that the model has.
    """

    marks: list[Mark]
    uncertainty: Float64


def store_windows(
    store: Store, *, stride: int | None, sample: int | None, seed: int,
    start: TimeLike | None = None, stop: TimeLike | None = None,
) -> Int64:  # fmt: skip
    """Choose windows of a store to ask for.

    Parameters
    ----------
    store
        The bars.
    stride
        Bars from one candidate to the next; a whole window when None.
    sample
        How many to draw at random; all when None. A larger sample holds the smaller one.
    seed
        Of the sample.
    start, stop
        Only windows whose bars all lie in [start, stop).

    Returns
    -------
    ndarray
        int64, ascending: their first bars.

    Raises
    ------
    ConfigError
        A sample below 1.
    LabelsError
        No valid window there.
    """
    if sample is not None and sample < 1:
        raise ConfigError(f"sample is {sample}; draw at least 1 window")
    step = STRIDE if stride is None else stride
    starts = store.windows(WINDOW_LENGTH, step, start=start, stop=stop).starts
    if len(starts) == 0:
        raise LabelsError(
            f"{store.path} has no valid window of {WINDOW_LENGTH} bars there; give another period"
        )
    if sample is None:
        return starts
    chosen: Int64 = np.sort(np.random.default_rng(seed).permutation(starts)[:sample])
    return chosen


def queue_rows(
    start_bar: Int64, *, order: str, seed: int, bounds: tuple[int, int], uncertainty: Float64 | None
) -> Int64:
    """Put windows into the order in which they are asked for.

    Parameters
    ----------
    start_bar
        int64 ``[N]``: first bars of the windows.
    order
        ``"given"``, ``"random"``, or ``"uncertain"``: the most uncertain first.
    seed
        Of the random order.
    bounds
        Windows whose bars do not all lie in these [first, stop) are not asked for.
    uncertainty
        float64 ``[N]``; needed by ``"uncertain"`` alone.

    Returns
    -------
    ndarray
        int64 ``[M]``: rows. Which of them are answered already makes no difference.
    """
    first, stop = bounds
    rows = np.flatnonzero((start_bar >= first) & (start_bar + WINDOW_LENGTH <= stop))
    if order == "random":
        by_time = rows[np.argsort(start_bar[rows], kind="stable")]
        return np.random.default_rng(seed).permutation(by_time)
    if order == "uncertain":
        assert uncertainty is not None
        return rows[np.argsort(-uncertainty[rows], kind="stable")]
    return rows


def guess(run: Path, store: Store, starts: Int64, classes: tuple[str, ...]) -> Guesses:
    """Ask a run's model for types and spans of windows.

    Parameters
    ----------
    run
        Folder of the run.
    store
        The bars and features.
    starts
        int64 ``[N]``: first bars of the windows.
    classes
        Labels that may be suggested, besides ``"none"``.

    Returns
    -------
    Guesses
        One row a window.

    Raises
    ------
    ConfigError
        A model of windows of another length, or one that gives no probabilities.
    RunError, ModelError
        A run that cannot be read, or that does not fit the store.
    """
    from moola_train.inference import Predictor

    predictor = Predictor.open(run)
    if predictor.data.window_length != WINDOW_LENGTH:
        raise ConfigError(
            f"by is {run}, a model of windows of {predictor.data.window_length} bars; give one of "
            f"{WINDOW_LENGTH}"
        )
    found = predictor.predict(store, starts)
    names = ("type_probability", "start_probability", "end_probability")
    distributions = [found[name] for name in names if name in found]
    if not distributions:
        raise ConfigError(f"by is {run}, whose model gives no probabilities; give another run")
    marks = [Mark(source=f"model {run.resolve().name}")] * len(starts)
    if "type_probability" in found:
        types = found["type_probability"].argmax(axis=1).tolist()
        labels = [predictor.data.classes[index] for index in types]
        known = {*classes, NO_EXPANSION}
        marks = [
            dataclasses.replace(mark, label=label if label in known else None)
            for mark, label in zip(marks, labels, strict=True)
        ]
    if "start" in found:
        spans = zip(found["start"].tolist(), found["end"].tolist(), strict=True)
        marks = [
            mark if first < 0 or mark.label == NO_EXPANSION
            else dataclasses.replace(mark, start=first, end=last)
            for mark, (first, last) in zip(marks, spans, strict=True)
        ]  # fmt: skip
    return Guesses(marks=marks, uncertainty=mean_entropy(distributions))


def mean_entropy(distributions: list[NDArray[np.floating]]) -> Float64:
    """Mean entropy of some distributions, each over that of an even one.

    Parameters
    ----------
    distributions
        Each float ``[N, M]``, rows that sum to 1; at least one.

    Examples
    --------
    >>> mean_entropy([np.array([[0.5, 0.5], [1.0, 0.0]])]).tolist()
    [1.0, 0.0]
    """
    parts = []
    for values in distributions:
        shares = np.asarray(values, np.float64)
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        parts.append(np.maximum(-(shares * logs).sum(axis=1), 0.0) / np.log(shares.shape[1]))
    return np.asarray(np.mean(parts, axis=0))
