"""What a page draws of a window: its bars and some around it, swings, and labels of the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moola_features.bars import Bars
from moola_features.chart.scene import (
    DAY_RANK,
    count_decimals,
    duration_text,
    label_times,
    short_time,
)
from moola_features.engine import swings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moola_features.store import Store

NUM_BEFORE = 40
NUM_AFTER = 30  # hidden until somebody asks for them
LEAST_PAUSE = 10  # bars; in a thin market a few are missing everywhere


class Pictures:
    """Pictures of the windows of one store.

    Swings are those of the store's configuration, found once over all bars: a window shows those
    that its bars would have shown, wherever it begins.

    Parameters
    ----------
    store
        The bars.
    length
        Bars in a window.
    """

    def __init__(self, store: Store, length: int) -> None:
        self._store = store
        self._length = length
        columns = (np.ascontiguousarray(store.ohlc[:, index]) for index in range(4))
        open_, high, low, close = columns
        bars = Bars(time=np.array(store.time), open=open_, high=high, low=low, close=close)
        self._swings = swings(bars, store.config)

    def of(self, start_bar: int) -> dict[str, Any]:
        """Return the picture of a window as plain JSON types.

        Parameters
        ----------
        start_bar
            Position of its first bar in the store.

        Returns
        -------
        dict
            ``time`` in ms, ``open``, ``high``, ``low``, ``close``: bars drawn, of which ``before``
            stand before the window; ``swings`` with positions in the window, negative before it;
            ``pauses`` of :data:`LEAST_PAUSE` bars or longer, each before the bar ``at``;
            ``period``; and what the axes need.
        """
        store, length = self._store, self._length
        segment = int(np.searchsorted(store.segments[:, 1], start_bar, side="right"))
        begin, end = store.segments[segment].tolist()
        first = max(begin, start_bar - NUM_BEFORE)
        stop = min(end, start_bar + length + NUM_AFTER)
        time, ohlc = np.array(store.time[first:stop]), np.array(store.ohlc[first:stop])
        step = int(time[1] - time[0])
        rank, text = label_times(time, int(time[0]) - step)
        names = ("open", "high", "low", "close")
        last = start_bar + length - 1
        return {
            "time": (time / 1e6).tolist(),  # milliseconds, as the browser counts
            **dict(zip(names, ohlc.T.tolist(), strict=True)),
            "before": start_bar - first,
            "length": length,
            "swings": self._swings_in(begin, first, stop, start_bar),
            "pauses": _pauses(time, start_bar - first),
            "period": f"{short_time(store.time[start_bar])} to {short_time(store.time[last])} UTC",
            "tick_rank": rank.tolist(),
            "tick_text": text,
            "day_rank": DAY_RANK,
            "decimals": count_decimals(ohlc),
        }

    def _swings_in(self, begin: int, first: int, stop: int, origin: int) -> list[dict[str, Any]]:
        """Swings confirmed among the bars drawn, and the last one before them in the segment."""
        found = self._swings
        left, right = np.searchsorted(found.confirmed_index, [first, stop]).tolist()
        if left > 0 and found.index[left - 1] >= begin:
            left -= 1
        return [
            {
                "high": bool(found.is_high[row]),
                "at": int(found.index[row]) - origin,
                "confirmed": int(found.confirmed_index[row]) - origin,
                "price": float(found.price[row]),
            }
            for row in range(left, right)
        ]


def _pauses(time: NDArray[np.int64], origin: int) -> list[dict[str, Any]]:
    """Where bars stand side by side that were long apart."""
    passed = np.diff(time)
    missing = passed // passed.min() - 1
    return [
        {"at": row + 1 - origin, "text": duration_text(int(passed[row]))}
        for row in np.flatnonzero(missing >= LEAST_PAUSE).tolist()
    ]
