"""One pass over all bars of a store: computed again, counted again, compared as it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_features import spec
from moola_features.bars.checks import BarCheck
from moola_features.feature_pass import FeaturePass
from moola_features.gaps import GapCensus
from moola_features.segments import segment_bounds, segment_starts
from moola_features.store import Store
from moola_features.store.layout import CHUNK_BARS
from moola_features.stream import saved_state
from moola_features.times import time_text
from moola_features.verification.laws import (
    NUM_PLACES,
    Differences,
    price_columns,
    run,
    without_future,
)


@dataclass(frozen=True)
class ColumnValues:
    """What the stored values of one column are like.

    Attributes
    ----------
    name
        The column.
    low, high
        Its range; infinite where it has none.
    min, max
        The smallest and the largest value; NaN where one is.
    share_non_zero
        Share of the values that are not 0.
    share_at_bound
        Share of the values that are the lowest or the highest there can be.
    """

    name: str
    low: float
    high: float
    min: float
    max: float
    share_non_zero: float
    share_at_bound: float

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types; None where one is not finite."""
        return {
            name: value if isinstance(value, str) or np.isfinite(value) else None
            for name, value in vars(self).items()
        }


class Sweep:
    """What one pass over a store finds.

    Parameters
    ----------
    store
        The store.
    rng
        Draws the places at which causality is tried.
    progress
        Called after every chunk with the number of its bars.

    Attributes
    ----------
    bars
        The check of the stored bars; ``bars.dropped`` counts the bad ones.
    segments
        int64 ``[S, 2]``: what times and ``max_gap`` make of the bars.
    recomputed
        Where the stored bits are not those of a pass over the stored bars.
    causal
        Where they depend on what came later.
    columns
        One :class:`ColumnValues` a column.
    num_outside
        Values that are not finite or outside their column's range.
    first_outside
        The first of them in one line, or "".
    state
        What the next bar depends on.
    counted
        Attributes of the store as they are counted from its arrays.
    """

    def __init__(
        self, store: Store, rng: np.random.Generator, progress: Callable[[int], None]
    ) -> None:
        self.store = store
        self.bars = BarCheck(on_bad_bars="drop")
        self.recomputed = Differences(store)
        self.causal = Differences(store)
        self.num_outside = 0
        self.first_outside = ""
        self._registry = spec.columns(store.config)
        self._tallies = [_Tally(column) for column in self._registry]
        self._rng = rng
        places = np.unique(rng.integers(1, max(2, len(store)), NUM_PLACES))
        # With what another price does to a computation that is damaged, NumPy need not bother us.
        with np.errstate(all="ignore"):
            self._run(places, progress)

    def _run(self, places: NDArray[np.int64], progress: Callable[[int], None]) -> None:
        store = self.store
        carried = FeaturePass(store.config)
        gaps = GapCensus()
        all_starts: list[NDArray[np.int64]] = []
        previous: int | None = None
        num_valid = num_flat = 0
        for first in range(0, len(store), CHUNK_BARS):
            chunk = slice(first, first + CHUNK_BARS)
            time, features, valid = store.time[chunk], store.features[chunk], store.valid[chunk]
            prices = price_columns(store.ohlc[chunk])
            self.bars((time, *prices), first_row=first)
            gaps.add(time, previous)
            starts = segment_starts(time, store.config.max_gap_ns, previous)
            all_starts.append(first + starts)
            previous = int(time[-1])
            self._try_causality(carried, first, prices, starts, places)
            again = run(carried, prices, starts)
            self.recomputed.compare(
                first, (features, valid), again, "{} in the store, {} computed again"
            )
            self._tally(first, features)
            num_valid += int(np.count_nonzero(valid.view(np.uint8)))
            num_flat += int(np.count_nonzero(prices[1] == prices[2]))
            progress(len(time))
        self.segments = segment_bounds(np.concatenate(all_starts), len(store))
        self.columns = tuple(tally.result(len(store)) for tally in self._tallies)
        self.num_valid = num_valid
        self.state = saved_state(
            store.config, carried,
            num_bars=len(store), last_time=previous, valid=bool(again[1][-1]),
        )  # fmt: skip
        self.counted = {
            "first_time": int(store.time[0]),
            "last_time": previous,
            "num_segments": len(self.segments),
            "num_valid": num_valid,
            "num_flat": num_flat,
            "gaps": gaps.to_dict(),
        }

    def _try_causality(
        self,
        carried: FeaturePass,
        first: int,
        prices: NDArray[np.float64],
        starts: NDArray[np.int64],
        places: NDArray[np.int64],
    ) -> None:
        inside = places[(places >= first) & (places < first + prices.shape[1])] - first
        for num_bars in np.maximum(inside, 1).tolist():
            bars = slice(first, first + num_bars)
            stored = self.store.features[bars], self.store.valid[bars]
            for head in without_future(carried, prices, starts, num_bars, self._rng):
                words = "{} in the store, {} when later bars are missing or others"
                self.causal.compare(first, stored, head, words)

    def _tally(self, first: int, features: NDArray[np.float32]) -> None:
        for tally, values in zip(self._tallies, np.ascontiguousarray(features.T), strict=True):
            outside = tally.add(values)
            if outside is None:
                continue
            self.num_outside += int(np.count_nonzero(outside))
            if not self.first_outside:
                row = int(np.argmax(outside))
                when = time_text(int(self.store.time[first + row]))
                column = tally.column
                self.first_outside = (
                    f"bar {first + row:,} ({when}): {column.name} is {values[row]}, "
                    f"outside [{column.low:g}, {column.high:g}]"
                )


class _Tally:
    """Counts of one column, chunk by chunk."""

    def __init__(self, column: spec.Column) -> None:
        self.column = column
        # Bounds as a float32 can hold them, the largest one where there is none.
        most = np.finfo(np.float32).max
        self._low, self._high = np.clip((column.low, column.high), -most, most).astype(np.float32)
        self._min = np.float32(np.inf)
        self._max = np.float32(-np.inf)
        self._num_non_zero = 0
        self._num_at_bound = 0

    def add(self, values: NDArray[np.float32]) -> NDArray[np.bool_] | None:
        """Count values ``[n]``; return which are outside the range, None where none is."""
        least, most = values.min(), values.max()
        self._min = np.minimum(self._min, least)
        self._max = np.maximum(self._max, most)
        self._num_non_zero += int(np.count_nonzero(values != 0))
        at_bound = (values == self._low) | (values == self._high)
        self._num_at_bound += int(np.count_nonzero(at_bound))
        if self._low <= least and most <= self._high:
            return None
        inside = (values >= self._low) & (values <= self._high)
        return np.asarray(~inside)

    def result(self, num_bars: int) -> ColumnValues:
        """Turn the counts into shares."""
        return ColumnValues(
            name=self.column.name, low=float(self.column.low), high=float(self.column.high),
            min=float(self._min), max=float(self._max),
            share_non_zero=self._num_non_zero / num_bars,
            share_at_bound=self._num_at_bound / num_bars,
        )  # fmt: skip


def first_difference(stored: Any, expected: Any) -> str:
    """Say where two JSON values first differ, "" when nowhere; numbers count to the bit."""
    found, wanted = dict(_leaves("", stored)), dict(_leaves("", expected))
    for place in (*wanted, *found):
        here, there = (leaves.get(place, "missing") for leaves in (found, wanted))
        if here != there:
            return f"{place.lstrip('.')} is {here} in the store, {there} computed again"
    return ""


def _leaves(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every number or text of a JSON value, with where it stands."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{place}.{name}", inner)
    elif isinstance(value, list | tuple) and value:
        for position, inner in enumerate(value):
            yield from _leaves(f"{place}[{position}]", inner)
    else:
        yield place, json.dumps(value)
