"""The permutation control: the same windows with their bars shuffled, so that their order is gone.

What a model scores on them it owes to what shuffling leaves: how volatile a stretch is, and where
in a window expansions tend to lie.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moola_features.bars import Bars
from moola_features.engine import compute
from moola_features.windows import Windows
from moola_train.evaluation.bootstrap import SEED
from moola_train.evaluation.names import BLOCK_BARS
from moola_train.evaluation.subject import Subject
from moola_train.inference import Predictions
from moola_train.targets import Float64, Int64

_OPEN, _HIGH, _LOW, _CLOSE = range(4)


def predict_shuffled(subject: Subject, rows: Int64, *, seed: int = SEED) -> Predictions:
    """What a model says of windows whose bars are shuffled inside blocks of 240.

    Features are computed anew from the shuffled bars, for windows of a store with the history
    before them, shuffled as well.

    Parameters
    ----------
    subject
        The run.
    rows
        int64 ``[M]``: windows of its labels.
    seed
        Of the permutations.
    """
    if subject.store is None:
        length = subject.labels.length
        prices = subject.prices(rows).reshape(-1, 4)
        bounds = np.arange(len(rows) + 1) * length
        segments = np.stack([bounds[:-1], bounds[1:]], axis=1)
        shuffled = shuffle_bars(prices, segments, seed=seed)
        return subject.predictor.predict_prices(shuffled.reshape(-1, length, 4))
    store, starts = subject.store, subject.start_bars(rows)
    stops = store.segments[:, 1]
    reached = np.searchsorted(stops, [starts.min(), starts.max()], side="right")
    first = int(store.segments[reached[0], 0])
    stop = int(min(stops[reached[1]], starts.max() + subject.labels.length + BLOCK_BARS))
    segments = store.segments[reached[0] : reached[1] + 1].clip(max=stop) - first
    shuffled = shuffle_bars(np.asarray(store.ohlc[first:stop]), segments, seed=seed)
    bars = Bars(store.time[first:stop], *shuffled.T)
    features = compute(bars, store.config).values
    return subject.predictor.predict_windows(
        Windows(features, starts - first, subject.labels.length)
    )


def shuffle_bars(
    ohlc: Float64, segments: NDArray[np.int64], *, seed: int = SEED, block: int = BLOCK_BARS
) -> Float64:
    """Bars in another order inside blocks, joined to one path of prices again.

    A bar is what it adds to the close before it: its gap, and its high, low and close from its
    open. Those four stay together and change places with those of other bars of the block; a
    block ends at the price at which it ended. Prices are added up as logarithms where all of them
    are above 0. The first bar of a segment has nothing before it and stays.

    Parameters
    ----------
    ohlc
        float64 ``[T, 4]``.
    segments
        int64 ``[S, 2]``, [start, stop): a block lies inside one.
    seed
        Of the permutations.
    block
        Bars in a block, counted from each segment's second bar.

    Returns
    -------
    ndarray
        float64 ``[T, 4]``.

    Examples
    --------
    >>> close = np.array([1.0, 2.0, 1.0, 3.0])
    >>> bars = np.stack([close] * 4, axis=1)
    >>> shuffle_bars(bars, np.array([[0, 4]]), seed=17)[:, 3].round(6).tolist()
    [1.0, 0.5, 1.5, 3.0]
    """
    to_sums, to_prices = _scales(ohlc)
    values = to_sums(ohlc)
    moves = np.empty_like(values)  # [gap, high, low, close from the open]
    moves[1:, _OPEN] = values[1:, _OPEN] - values[:-1, _CLOSE]
    moves[0, _OPEN] = 0.0
    moves[:, _HIGH:] = values[:, _HIGH:] - values[:, [_OPEN]]
    out = np.empty_like(values)
    random = np.random.default_rng(seed)
    for start, stop in segments.tolist():
        order = np.arange(start, stop)
        order[1:] = start + 1 + _permutation(stop - start - 1, block, random)
        chosen = moves[order]
        chosen[0, _OPEN] = 0.0
        steps = chosen[:, _OPEN] + chosen[:, _CLOSE]  # from close to close
        ends = values[start, _OPEN] + np.cumsum(steps)
        out[start:stop, _OPEN] = ends - chosen[:, _CLOSE]
        out[start:stop, _HIGH:] = out[start:stop, [_OPEN]] + chosen[:, _HIGH:]
    prices = to_prices(out)
    # Sums are rounded; a high stays the highest of its bar and a low the lowest.
    prices[:, _HIGH] = prices.max(axis=1)
    prices[:, _LOW] = prices.min(axis=1)
    return prices


def _permutation(count: int, block: int, random: np.random.Generator) -> Int64:
    keys = random.random(count)
    order: Int64 = np.lexsort((keys, np.arange(count) // block)).astype(np.int64)
    return order


def _scales(ohlc: Float64) -> tuple[Callable[[Float64], Float64], Callable[[Float64], Float64]]:
    """To a scale on which moves add up, and back."""
    return (np.log, np.exp) if ohlc.min() > 0 else (np.copy, np.copy)
