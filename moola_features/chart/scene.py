"""What a picture shows: one stretch of a store, cut out, measured and ready to be drawn.

A scene knows nothing of drawing. Page and image are two renderings of one scene, so they cannot
disagree about a swing, a range or a label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moola_features import spec
from moola_features.bars import Bars
from moola_features.errors import ConfigError
from moola_features.times import TimeLike, parse_time_ns, time_text

if TYPE_CHECKING:
    from moola_features.store import Store

MIN_BARS = 10
MAX_BARS = 20_000  # a page stays quick up to here
DEFAULT_COLUMNS = {
    "relativity": ("range_z", "dist_to_prev_SH", "dist_to_prev_SL", "expansion_proxy"),
    "returns": ("log_return_close", "body_ratio", "zscore_close"),
}
PRICE_DIGITS = 4  # prices off any grid are written to 1e-4 of the stretch's height
GRID_SHARE = 0.75  # of the prices lie on what counts as the tick grid; some feeds have odd ones

SWING = np.dtype(
    [
        ("is_high", np.bool_),
        ("index", np.int64),  # bar of the extreme, counted from the store's first bar
        ("confirmed_index", np.int64),
        ("price", np.float64),
        ("segment", np.int64),
    ]
)

# Steps of time at which labels of the axis may stand, finest first: numpy's unit, and how many.
TIME_STEPS = (
    *(("s", count) for count in (1, 5, 15, 30)),
    *(("m", count) for count in (1, 5, 15, 30)),
    *(("h", count) for count in (1, 2, 4, 12)),
    *(("D", 1), ("W", 1), ("M", 1), ("M", 3), ("Y", 1), ("Y", 5)),
)
DAY_RANK = TIME_STEPS.index(("D", 1)) + 1  # labels from here on are dates
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAY_NS = 86_400 * 10**9


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One column below the price: its values float32 [B] and the limits of its axis."""

    column: spec.Column
    values: NDArray[np.float32]
    low: float
    high: float

    @property
    def ticks(self) -> list[float]:
        """Where the axis is labelled: the bounds, and zero between them."""
        return sorted({self.low, max(self.low, 0.0), self.high})


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A stretch of B bars; positions count from the store's first bar.

    Attributes
    ----------
    name, summary
        The store's name, and one line on its configuration.
    first
        Position of the first bar drawn.
    time, ohlc, valid
        int64 [B] in ns UTC, float64 [B, 4], bool [B].
    panels
        The chosen columns.
    swings
        :data:`SWING` [S]; those confirmed inside the stretch, and in the segment that it begins
        in the last one before, where the zigzag line comes from.
    boundaries
        int64 [N]; first bars of the segments that start inside the stretch.
    gap_texts
        How long before each boundary nothing was traded, such as ``"2 d 1 h"``.
    focus
        Position of the bar that was asked for, or None.
    tick_rank, tick_text
        int64 [B] and B texts: how coarse a step of time each bar opens, and its label.
    decimals
        Digits after the point that the prices are written with.
    """

    name: str
    summary: str
    first: int
    time: NDArray[np.int64]
    ohlc: NDArray[np.float64]
    valid: NDArray[np.bool_]
    panels: tuple[Panel, ...]
    swings: NDArray[Any]
    boundaries: NDArray[np.int64]
    gap_texts: tuple[str, ...]
    focus: int | None
    tick_rank: NDArray[np.int64]
    tick_text: tuple[str, ...]
    decimals: int

    @property
    def period(self) -> str:
        """First and last time drawn."""
        return f"{short_time(self.time[0])} to {short_time(self.time[-1])} UTC"

    @property
    def invalid_runs(self) -> list[tuple[int, int]]:
        """``(start, stop)`` positions of the runs of bars that are not valid."""
        edges = np.flatnonzero(np.diff(~self.valid, prepend=False, append=False))
        return [(self.first + a, self.first + b) for a, b in edges.reshape(-1, 2).tolist()]


def make_scene(
    store: Store, at: TimeLike | None, bars: int, columns: Sequence[str] | None
) -> Scene:
    """Cut a stretch out of a store; every check of the arguments happens here."""
    focus = None if at is None else _find_bar(store.time, at)
    first, stop = _find_stretch(len(store.time), focus, bars)
    time = np.array(store.time[first:stop])
    ohlc = np.array(store.ohlc[first:stop])
    starts = np.asarray(store.segments)[:, 0]
    boundaries = starts[(starts > first) & (starts < stop)]
    before = int(store.time[first - 1]) if first else int(time[0]) - 1
    rank, text = label_times(time, before)
    return Scene(
        name=Path(store.path).resolve().name,
        summary=_summarize(store),
        first=first,
        time=time,
        ohlc=ohlc,
        valid=np.array(store.valid[first:stop]),
        panels=tuple(_make_panel(store, i, first, stop) for i in _choose_columns(store, columns)),
        swings=_find_swings(store, first, stop),
        boundaries=boundaries,
        gap_texts=tuple(duration_text(int(store.time[i] - store.time[i - 1])) for i in boundaries),
        focus=focus,
        tick_rank=rank,
        tick_text=text,
        decimals=count_decimals(ohlc),
    )


def choose_ticks(rank: NDArray[np.int64], spacing: int) -> list[int]:
    """Bars to label, ``spacing`` bars apart or more; those that open coarser steps go first."""
    wanted = max(1, len(rank) // spacing)
    levels = range(len(TIME_STEPS) + 2)
    level = next(level for level in levels if np.count_nonzero(rank >= level) <= wanted)
    chosen: list[int] = []
    for index in sorted(np.flatnonzero(rank >= level).tolist(), key=lambda i: (-int(rank[i]), i)):
        if all(abs(index - other) >= spacing for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def choose_notes(places: list[int], spacing: int, taken: int | None) -> list[int]:
    """Which boundaries get their note: those with room for it, beside the focus's own."""
    chosen: list[int] = []
    for number, place in enumerate(places):
        others = [places[i] for i in chosen[-1:]] + ([] if taken is None else [taken])
        if all(abs(place - other) >= spacing for other in others):
            chosen.append(number)
    return chosen


def short_time(time_ns: int | np.int64) -> str:
    """Text of a time: seconds only where there are some."""
    return time_text(int(time_ns)).replace("T", " ").removesuffix("Z").removesuffix(":00")


def _find_bar(time: NDArray[np.int64], at: TimeLike) -> int:
    """Position of the bar that a time falls into."""
    wanted = parse_time_ns("at", at)
    if not int(time[0]) <= wanted <= int(time[-1]):
        raise ConfigError(
            f"at is {at!r}, outside the store; give a time from {short_time(time[0])} "
            f"to {short_time(time[-1])} UTC"
        )
    return int(np.searchsorted(time, wanted, side="right")) - 1


def _find_stretch(num_stored: int, focus: int | None, bars: int) -> tuple[int, int]:
    if isinstance(bars, bool) or not isinstance(bars, int) or not MIN_BARS <= bars <= MAX_BARS:
        raise ConfigError(
            f"bars is {bars!r}; it must be a whole number from {MIN_BARS} to {MAX_BARS}"
        )
    num_drawn = min(bars, num_stored)
    first = num_stored - num_drawn
    if focus is not None:
        first = min(max(focus - num_drawn // 2, 0), first)
    return first, first + num_drawn


def _choose_columns(store: Store, columns: Sequence[str] | None) -> list[int]:
    """Positions of the columns in the feature matrix, each once."""
    known = [column.name for column in spec.columns(store.config)]
    if isinstance(columns, str):
        raise ConfigError(f"columns is {columns!r}; give a list of names, such as [{columns!r}]")
    chosen = DEFAULT_COLUMNS[store.config.family] if columns is None else columns
    for name in chosen:
        if name not in known:
            raise ConfigError(f"columns holds {name!r}; choose from {', '.join(known)}")
    return [known.index(name) for name in dict.fromkeys(chosen)]


def _make_panel(store: Store, index: int, first: int, stop: int) -> Panel:
    column = spec.columns(store.config)[index]
    values = np.array(store.features[first:stop, index])
    low, high = column.low, column.high
    if not (math.isfinite(low) and math.isfinite(high)):
        # The registry sets no bound: the values drawn decide, with zero in the middle.
        high = float(np.abs(values).max()) or 1.0
        low = -high
    return Panel(column=column, values=values, low=float(low), high=float(high))


def _find_swings(store: Store, first: int, stop: int) -> NDArray[Any]:
    """Swings of the true state, so each segment is followed from its own first bar.

    Bars after the stretch are left out: a swing that only they confirm is not known in it.
    """
    found = [np.empty(0, SWING)]
    if any(column.needs_swings for column in spec.columns(store.config)):
        for segment, (start, end) in enumerate(np.asarray(store.segments).tolist()):
            if start < stop and end > first:
                found.append(_segment_swings(store, segment, start, min(end, stop), first))
    return np.concatenate(found)


def _segment_swings(store: Store, segment: int, start: int, stop: int, first: int) -> NDArray[Any]:
    from moola_features.engine import swings

    opens, highs, lows, closes = np.asarray(store.ohlc[start:stop]).T
    bars = Bars(time=store.time[start:stop], open=opens, high=highs, low=lows, close=closes)
    found = swings(bars, store.config)
    rows = np.empty(len(found.index), SWING)
    rows["is_high"] = found.is_high
    rows["index"] = found.index + start
    rows["confirmed_index"] = found.confirmed_index + start
    rows["price"] = found.price
    rows["segment"] = segment
    num_before = int(np.searchsorted(rows["confirmed_index"], first))
    return rows[max(0, num_before - 1) :]


def label_times(time: NDArray[np.int64], before: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """For every bar the coarsest step of time that it opens, and its label; 0 opens none."""
    rank = np.zeros(len(time), dtype=np.int64)
    with_previous = np.concatenate(([before], time))
    for level, (unit, count) in enumerate(TIME_STEPS, start=1):
        step = _step_number(with_previous, unit, count)
        rank[step[1:] != step[:-1]] = level
    units = ["s", *(unit for unit, _ in TIME_STEPS)]
    moments = time.astype("datetime64[ns]").astype("datetime64[us]").tolist()
    return rank, tuple(
        _label(moment, units[level]) for moment, level in zip(moments, rank.tolist(), strict=True)
    )


def _step_number(time: NDArray[np.int64], unit: str, count: int) -> NDArray[np.int64]:
    if unit == "W":
        return (time // DAY_NS + 3) // 7  # day 0 was a Thursday; weeks begin on Monday
    whole: NDArray[np.int64] = (
        time.astype("datetime64[ns]").astype(f"datetime64[{unit}]").astype(np.int64)
    )
    return whole // count


def _label(moment: datetime, unit: str) -> str:
    # Not strftime: its month names follow the machine's locale.
    match unit:
        case "s":
            return f"{moment:%H:%M:%S}"
        case "m" | "h":
            return f"{moment:%H:%M}"
        case "D" | "W":
            return f"{moment.day} {MONTHS[moment.month - 1]}"
        case "M":
            return f"{MONTHS[moment.month - 1]} {moment.year}"
        case _:
            return f"{moment.year}"


def duration_text(nanoseconds: int) -> str:
    """Write a duration in its two largest units, such as ``"2 d 1 h"``."""
    parts = []
    rest = nanoseconds
    for unit, size in (("d", DAY_NS), ("h", 3_600 * 10**9), ("min", 60 * 10**9)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or f"{nanoseconds / 1e9:g} s"


def count_decimals(ohlc: NDArray[np.float64]) -> int:
    """Digits after the point of the tick grid; where there is none, enough to tell bars apart."""
    height = float(ohlc.max() - ohlc.min()) or abs(float(ohlc.max())) or 1.0
    most = max(0, math.ceil(-math.log10(height)) + PRICE_DIGITS)
    for decimals in range(most):
        on_grid = np.isclose(np.round(ohlc, decimals), ohlc, rtol=1e-12, atol=height * 1e-9)
        if on_grid.mean() >= GRID_SHARE:
            return decimals
    return most


def _summarize(store: Store) -> str:
    config, num_segments = store.config, len(store.segments)
    parts = [f"family {config.family}"]
    if config.family == "relativity":
        parts.append(f"swing rule {config.swing_rule}, k {config.k:g}, ATR {config.atr_period}")
    parts.append(f"max gap {config.max_gap or 'none'}")
    parts.append(
        f"{len(store.time):,} bars in {num_segments:,} segment{'s' if num_segments != 1 else ''}"
    )
    return " · ".join(parts)
