"""Whether stores hold the bars of a source: every time and every price, streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_features.bars import Bars
from moola_features.bars.checks import FIELDS, DroppedBars
from moola_features.bars.sources import BarSource
from moola_features.errors import BarsError
from moola_features.store import Store
from moola_features.times import time_text


class Agreement:
    """A store held against the bars of one symbol, batch by batch.

    Parameters
    ----------
    store
        The store; None for a symbol that none was built of.
    symbol
        The symbol, None for the only one.

    Attributes
    ----------
    num_bars
        Bars of the source so far.
    difference
        What differs first, in one line; "" as long as nothing does.
    """

    def __init__(self, store: Store | None, symbol: str | None) -> None:
        self.num_bars = 0
        self.difference = ""
        if store is None:
            whose = "the bars name no symbol" if symbol is None else f"{symbol!r} is in the bars"
            self.difference = f"{whose}, but no store was built of it"
        self._store = store

    def add(self, bars: Bars) -> None:
        """Compare the next bars of the source."""
        first = self.num_bars
        self.num_bars += len(bars)
        if self._store is None or self.difference:
            return
        stored = stored_bars(self._store, slice(first, self.num_bars))
        num_shared = len(stored[0])
        differs = [
            one != other[:num_shared] for one, other in zip(stored, bars.arrays, strict=True)
        ]
        rows = np.logical_or.reduce(differs)
        if rows.any():
            row = int(np.argmax(rows))
            field = next(j for j, column in enumerate(differs) if column[row])
            here, there = (_shown(field, arrays[field][row]) for arrays in (stored, bars.arrays))
            self.difference = (
                f"bar {first + row:,} ({time_text(int(stored[0][row]))}): "
                f"{FIELDS[field]} is {here} in the store, {there} in the bars"
            )
        elif num_shared < len(bars):
            self.difference = (
                f"the store ends after {len(self._store):,} bars, the bars go on at "
                f"{time_text(int(bars.time[num_shared]))}"
            )

    def finish(self, dropped: DroppedBars) -> None:
        """Compare what only the end of the source tells: how many bars, how many dropped."""
        if self._store is None or self.difference:
            return
        told = self._store.attributes.get("dropped")
        num_dropped = told.get("total") if isinstance(told, dict) else None
        if self.num_bars < len(self._store):
            self.difference = f"the store has {len(self._store):,} bars, the bars {self.num_bars:,}"
        elif num_dropped != dropped.total:
            self.difference = (
                f"{num_dropped} bad bars were dropped for the store, {dropped.total} are here"
            )


def compare_bars(
    stores: Mapping[str | None, Store], source: BarSource, progress: Callable[[int], None]
) -> dict[str | None, Agreement]:
    """Read a source once and hold it against the stores that were built of it.

    Parameters
    ----------
    stores
        By symbol; one store takes the bars of a source without symbols, whatever its own.
    source
        The bars, opened as they were for the build.
    progress
        Called after every batch with the number of its bars.

    Returns
    -------
    dict
        One :class:`Agreement` for every store, and for every symbol without a store.
    """
    only = next(iter(stores)) if len(stores) == 1 else None
    found = {symbol: Agreement(store, symbol) for symbol, store in stores.items()}
    dropped: dict[str | None, DroppedBars] = {}
    try:
        for name, bars in source.batches(only if only in source.symbols else None):
            symbol = name
            if name is None:
                symbol = only if len(stores) == 1 else next(iter(source.symbols), None)
            found.setdefault(symbol, Agreement(None, symbol)).add(bars)
            dropped[symbol] = source.dropped[name]
            progress(len(bars))
    except BarsError as error:
        # Bars that cannot be read to their end are bars that the store was not built of.
        for agreement in found.values():
            agreement.difference = agreement.difference or str(error)
    for symbol, agreement in found.items():
        agreement.finish(dropped.get(symbol, DroppedBars()))
    return found


def stored_bars(store: Store, rows: slice) -> tuple[NDArray[Any], ...]:
    """Time, open, high, low and close of some bars of a store."""
    return (store.time[rows], *store.ohlc[rows].T)


def _shown(field: int, value: Any) -> str:
    return time_text(int(value)) if FIELDS[field] == "time" else repr(value.item())
