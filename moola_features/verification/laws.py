"""The laws that a store can show on its own bars: causal, local, and free of price's scale."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moola_features.config import FeatureConfig
from moola_features.feature_pass import FeaturePass
from moola_features.store import Store
from moola_features.times import time_text

# Decimal and binary factors: the first round every price anew, the others leave every bit.
FACTORS = (7.77e-9, 1e-6, 0.1, 1 / 3, 1.3, 1e6, 3.3e7, 0.5, 2.0**10, 2.0**-20)
SCALE_TOLERANCE = 1e-6
NUM_PLACES = 16  # sampled for each law
STRETCH_BARS = 4_096  # the longest that is computed from a cold start

Computed = tuple[NDArray[np.float32], NDArray[np.bool_]]  # features [n, F], validity [n]


class Differences:
    """Bars of a store that were computed in two ways, and where the two differ.

    Parameters
    ----------
    store
        Gives the columns' names and the bars' times.

    Attributes
    ----------
    num_bars
        Bars compared.
    num_different
        Those that differ.
    first
        The first that was met, in one line: bar, time, column and both values; or "".
    """

    def __init__(self, store: Store) -> None:
        self.num_bars = 0
        self.num_different = 0
        self.first = ""
        self._names = (*store.names, "valid")
        self._time = store.time

    def compare(
        self, first_bar: int, one: Computed, other: Computed, words: str, *, within: float = 0.0
    ) -> None:
        """Compare features and validity of consecutive bars, to the bit unless told otherwise.

        Parameters
        ----------
        first_bar
            Position in the store of the first of them.
        one, other
            Features ``[n, F]`` and validity ``[n]``, twice.
        words
            How a message tells the two values apart, such as ``"{} stored, {} recomputed"``.
        within
            What the features may differ by; a float32's own spacing where that is larger.
        """
        num_bars = len(one[1])
        self.num_bars += num_bars
        differs = _differs(one[0], other[0], within)
        # Bytes, not truth values: a stored 2 is neither false nor true.
        valid_differs = one[1].view(np.uint8) != other[1].view(np.uint8)
        if not differs.any() and not valid_differs.any():
            return
        table = np.column_stack([differs, valid_differs])
        rows = table.any(axis=1)
        self.num_different += int(np.count_nonzero(rows))
        if not self.first:
            row = int(np.argmax(rows))
            column = int(np.argmax(table[row]))
            values = (self._value(computed, row, column) for computed in (one, other))
            bar = first_bar + row
            self.first = (
                f"bar {bar:,} ({time_text(int(self._time[bar]))}): "
                f"{self._names[column]} is {words.format(*values)}"
            )

    @staticmethod
    def _value(computed: Computed, row: int, column: int) -> str:
        values, valid = computed
        if column < values.shape[1]:
            return str(values[row, column])
        return str(valid.view(np.uint8)[row])


def _differs(
    one: NDArray[np.float32], other: NDArray[np.float32], within: float
) -> NDArray[np.bool_]:
    if within == 0.0:
        return np.asarray(one.view(np.uint32) != other.view(np.uint32))
    largest = np.maximum(np.abs(one), np.abs(other))
    # Beyond 16, two neighbouring float32 lie further apart than 1e-6.
    limit = np.maximum(np.float32(within), np.spacing(largest))
    close: NDArray[np.bool_] = np.abs(one - other) <= limit
    return ~close  # so that a NaN is never close


def price_columns(ohlc: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prices ``[n, 4]`` as contiguous columns ``[4, n]``, which the kernels read."""
    return np.ascontiguousarray(ohlc.T, dtype=np.float64)


def run(carried: FeaturePass, prices: NDArray[np.float64], starts: NDArray[np.int64]) -> Computed:
    """Continue a pass over prices ``[4, n]``; segments begin at ``starts``."""
    num_bars = prices.shape[1]
    values = np.empty((num_bars, carried.num_columns), np.float32)
    valid = np.empty(num_bars, np.bool_)
    carried.run(prices[0], prices[1], prices[2], prices[3], starts, values, valid)
    return values, valid


def run_cold(config: FeatureConfig, prices: NDArray[np.float64]) -> Computed:
    """Compute prices ``[4, n]`` as a segment of their own."""
    return run(FeaturePass(config), prices, np.zeros(1, np.int64))


def without_future(
    carried: FeaturePass,
    prices: NDArray[np.float64],
    starts: NDArray[np.int64],
    num_bars: int,
    rng: np.random.Generator,
) -> Iterator[Computed]:
    """Compute the first bars of a chunk alone, and with another future behind them.

    Parameters
    ----------
    carried
        The pass as it stands at the chunk's first bar; left as it is.
    prices
        float64 ``[4, n]`` of the chunk.
    starts
        Positions in the chunk at which a segment begins.
    num_bars
        How many bars to compute.
    rng
        Draws the other future: every later bar is stretched by a factor of its own, which leaves
        it a legal bar, and all later segments are joined.

    Yields
    ------
    features, valid
        float32 ``[num_bars, F]`` and bool ``[num_bars]``.
    """
    config, state, inside = carried.config, carried.state(), starts[starts < num_bars]
    yield run(FeaturePass.from_state(config, state), prices[:, :num_bars], inside)
    other = prices.copy()
    other[:, num_bars:] *= rng.uniform(0.5, 2.0, prices.shape[1] - num_bars)
    values, valid = run(FeaturePass.from_state(config, state), other, inside)
    yield values[:num_bars], valid[:num_bars]


def check_local(store: Store, segments: NDArray[np.int64], rng: np.random.Generator) -> Differences:
    """Compute the heads of sampled segments alone and compare them with the store.

    Parameters
    ----------
    store
        The store.
    segments
        int64 ``[S, 2]``: [start, stop) of its segments.
    rng
        Draws the segments.
    """
    found = Differences(store)
    chosen = rng.choice(len(segments), min(NUM_PLACES, len(segments)), replace=False)
    for start, stop in segments[np.sort(chosen)].tolist():
        bars = slice(start, min(stop, start + STRETCH_BARS))
        alone = run_cold(store.config, price_columns(store.ohlc[bars]))
        stored = store.features[bars], store.valid[bars]
        found.compare(start, stored, alone, "{} in the store, {} when its segment stands alone")
    return found


def check_scale(store: Store, segments: NDArray[np.int64], rng: np.random.Generator) -> Differences:
    """Compute sampled stretches as they are and with all prices multiplied, and compare.

    Parameters
    ----------
    store
        The store; its prices are used, its features are not.
    segments
        int64 ``[S, 2]``: [start, stop) of its segments.
    rng
        Draws the stretches.
    """
    found = Differences(store)
    for start, stop in _stretches(segments, rng):
        prices = price_columns(store.ohlc[start:stop])
        plain = run_cold(store.config, prices)
        for factor in FACTORS:
            within = 0.0 if math.frexp(factor)[0] == 0.5 else SCALE_TOLERANCE
            scaled = run_cold(store.config, prices * factor)
            words = f"{{}}, but {{}} with all prices times {factor:g}"
            found.compare(start, plain, scaled, words, within=within)
    return found


def _stretches(segments: NDArray[np.int64], rng: np.random.Generator) -> list[tuple[int, int]]:
    """[start, stop) around sampled bars: whole segments where they are short."""
    chosen = set()
    for bar in rng.integers(0, segments[-1, 1], NUM_PLACES).tolist():
        start, stop = segments[np.searchsorted(segments[:, 0], bar, side="right") - 1].tolist()
        begin = max(start, min(bar, stop - STRETCH_BARS))
        chosen.add((begin, min(stop, begin + STRETCH_BARS)))
    return sorted(chosen)
