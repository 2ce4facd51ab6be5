"""New bars held against a store: what it has already must agree, what it has not is new."""

from __future__ import annotations

import numpy as np

from moola_features.bars import Bars
from moola_features.bars.checks import PRICES
from moola_features.errors import BarsError
from moola_features.store import Store
from moola_features.times import time_text


class Overlap:
    """Compares bars, batch by batch, with those of a store.

    Parameters
    ----------
    store
        The store.
    name
        What the new bars come from, put before every message.
    in_rows
        Whether each bar is a row of the source; else messages count bars.

    Attributes
    ----------
    from_the_start
        Whether the new bars begin where the store does, so that they stand for all of it.
    num_new
        Bars that the store has not.
    """

    def __init__(self, store: Store, name: str, *, in_rows: bool) -> None:
        self.from_the_start = False
        self.num_new = 0
        self._store = store
        self._name = name
        self._unit = "row" if in_rows else "bar"
        self._num_seen = 0
        self._next: int | None = None  # stored bar that has to come next; None before the first

    def new_bars(self, bars: Bars) -> Bars:
        """Return the bars behind the store's last one.

        Raises
        ------
        BarsError
            A bar that contradicts the store: another price, a time between two stored bars, or
            one that leaves stored bars out. The message names row, time and both values.
        """
        last = int(self._store.time[-1])
        num_old = int(np.searchsorted(bars.time, last, side="right"))
        if num_old:
            self._compare(bars[:num_old])
        if num_old < len(bars) and self._next not in (None, len(self._store)):
            self._refuse_gap(bars, num_old)
        self._num_seen += len(bars)
        self.num_new += len(bars) - num_old
        return bars[num_old:]

    def _compare(self, bars: Bars) -> None:
        store = self._store
        if self._next is None:
            self._next = int(np.searchsorted(store.time, bars.time[0]))
            self.from_the_start = self._next == 0 and bars.time[0] == store.time[0]
        stored = slice(self._next, self._next + len(bars))
        times = store.time[stored]
        # As many bars as there are between two stored ones lie beyond the last: times tell first.
        differs = np.ones(len(bars), np.bool_)
        differs[: len(times)] = times != bars.time[: len(times)]
        if differs.any():
            self._refuse_time(bars, int(np.argmax(differs)))
        prices = store.ohlc[stored]
        for j, name in enumerate(PRICES):
            # To the bit, as a rebuild would store them: 0.0 is not -0.0.
            found = np.ascontiguousarray(prices[:, j]).view(np.uint64)
            given = getattr(bars, name)
            changed = found != given.view(np.uint64)
            if changed.any():
                row = int(np.argmax(changed))
                here, there = float(given[row]), float(prices[row, j])
                self._refuse(row, bars, f"{name} is {here!r}, but {there!r} in the store")
        self._next += len(bars)

    def _refuse_time(self, bars: Bars, row: int) -> None:
        expected = (self._next or 0) + row
        known = time_text(int(self._store.time[min(expected, len(self._store) - 1)]))
        if self._store.time[min(expected, len(self._store) - 1)] < bars.time[row]:
            text = f"the store has a bar at {known} before it, which is missing here"
        else:
            text = f"the store has no such bar, the next one that it has is at {known}"
        self._refuse(row, bars, text)

    def _refuse_gap(self, bars: Bars, row: int) -> None:
        missing = time_text(int(self._store.time[self._next or 0]))
        text = f"the store has a bar at {missing} before it, which is missing here"
        self._refuse(row, bars, text)

    def _refuse(self, row: int, bars: Bars, text: str) -> None:
        when = time_text(int(bars.time[row]))
        raise BarsError(
            f"{self._name}: {self._unit} {self._num_seen + row} ({when}): {text}; give bars that "
            "agree with the store, or rebuild it with --force"
        )
