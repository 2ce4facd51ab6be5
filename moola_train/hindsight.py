"""The hindsight labeller: the most prominent expansion of a window, and what stands before it.

It looks at bars after the window: what it says is a target to learn, never a feature to learn from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_features.times import time_text
from moola_train.config import number
from moola_train.errors import LabelsError

LABELS = ("consolidation", "retracement", "other", "none", "ambiguous")
SKIPPED = ("", "gap", "span", "edge")
UNLABELLED = -1

_MINUTE_NS = 60 * 10**9
_MAX_MINUTES = 10_000_000.0  # nineteen years

Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class HindsightSettings:
    """Which windows are skipped because their bars stand too far apart.

    Parameters
    ----------
    max_gap_minutes
        Longest time between the starts of two neighbouring bars of a window.
    max_span_minutes
        Longest time from the start of a window's first bar to that of its last.

    Raises
    ------
    ConfigError
        A time outside 0.001 to 10 million minutes.

    Examples
    --------
    >>> HindsightSettings(max_gap_minutes=30).max_span_minutes
    180.0
    """

    max_gap_minutes: float = 10.0
    max_span_minutes: float = 180.0

    def __post_init__(self) -> None:
        for name in ("max_gap_minutes", "max_span_minutes"):
            number(name, getattr(self, name), 1e-3, _MAX_MINUTES)
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Hindsight:
    """What hindsight says of N windows, one row a window.

    Attributes
    ----------
    label
        int8 ``[N]``: position in :data:`LABELS`; -1 where the window was skipped.
    skipped
        int8 ``[N]``: position in :data:`SKIPPED`. 0 for a window that was looked at, 1 for a gap
        inside it, 2 for one that spans too long a time, 3 where a bar is missing before it or one
        of the ten behind it.
    start, end
        int64 ``[N]``: first and last bar of the expansion, inclusive; -1 where there is none or
        where it is not clear which one is meant.
    direction
        int8 ``[N]``: 1 upwards, -1 downwards, 0 without a span.
    score
        float64 ``[N]``: score of the window's best candidate, whether or not it is an expansion;
        0 where nothing moves, NaN where the window was skipped.
    """

    label: Int8
    skipped: Int8
    start: Int64
    end: Int64
    direction: Int8
    score: Float64

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def joined(cls, parts: Sequence[Hindsight]) -> Self:
        """Put the rows of several behind one another."""
        names = [entry.name for entry in dataclasses.fields(cls)]
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})

    def take(self, rows: ArrayLike) -> Hindsight:
        """Return these rows, int64 ``[M]``, in their order."""
        index = np.asarray(rows, np.int64)
        names = [entry.name for entry in dataclasses.fields(self)]
        return Hindsight(**{name: getattr(self, name)[index] for name in names})

    def counts(self) -> dict[str, int]:
        """Windows by label."""
        found = np.bincount(self.label[self.label >= 0], minlength=len(LABELS))
        return dict(zip(LABELS, found.tolist(), strict=True))

    def skip_counts(self) -> dict[str, int]:
        """Windows that were skipped, by cause."""
        found = np.bincount(self.skipped, minlength=len(SKIPPED))
        return dict(zip(SKIPPED[1:], found.tolist()[1:], strict=True))


def label_windows(
    time: ArrayLike,
    ohlc: ArrayLike,
    starts: ArrayLike,
    settings: HindsightSettings | None = None,
) -> Hindsight:
    """Label windows of 105 bars by what happens in them and in the ten bars behind them.

    A candidate starts at s in 20..95 and has 3 to 12 bars. With M its net move, T the sum of its
    true ranges and A the mean of two mean true ranges, that of the 20 bars before s and that of
    the window, its score is (abs(M) / A) (abs(M) / T); the best one counts, the earliest of
    equals. The label is ``none`` unless abs(M) >= 5 A, abs(M) / T >= 0.5 and the next 10 closes
    keep a quarter of the move; ``ambiguous`` if another one that shares no bar with it has more
    than 0.8 of its score. Otherwise the 15 bars before s, mirrored for a move downwards, decide:
    ``consolidation`` if their box is at most 4 A high; ``retracement`` if they fell back from
    their high by at least 1.5 A and at most by the leg that led to it; else ``other``.

    Parameters
    ----------
    time
        int64 ``[T]``, ns, increasing: starts of the bars.
    ohlc
        float64 ``[T, 4]``, finite: open, high, low, close.
    starts
        int64 ``[N]``: first bar of each window.
    settings
        Which windows are skipped; the defaults when None.

    Returns
    -------
    Hindsight
        One row a window, in the order of ``starts``. Multiplying all prices by one factor,
        mirroring them, or changing a bar other than b - 1 to b + 114 of a window that starts at b
        changes no label.

    Raises
    ------
    LabelsError
        Arrays of another shape, or a start that is no bar.

    Examples
    --------
    >>> close = np.full(130, 100.0)
    >>> close[60:66] += np.arange(1, 7)  # flat, then six bars up, then it stays there
    >>> close[66:] += 6
    >>> bars = np.stack([close, close + 0.1, close - 0.1, close], axis=1)
    >>> found = label_windows(np.arange(130) * 60_000_000_000, bars, [1])
    >>> LABELS[found.label[0]], found.start, found.end, found.direction
    ('consolidation', array([59]), array([64]), array([1], dtype=int8))
    """
    times, prices, begins = _arrays(time, ohlc, starts)
    chosen = HindsightSettings() if settings is None else settings
    count = len(begins)
    found = Hindsight(
        label=np.full(count, UNLABELLED, np.int8),
        skipped=np.zeros(count, np.int8),
        start=np.full(count, UNLABELLED, np.int64),
        end=np.full(count, UNLABELLED, np.int64),
        direction=np.zeros(count, np.int8),
        score=np.full(count, np.nan),
    )
    load_kernel()(
        times.view(np.uint64), prices, begins,
        np.uint64(round(chosen.max_gap_minutes * _MINUTE_NS)),
        np.uint64(round(chosen.max_span_minutes * _MINUTE_NS)),
        found.label, found.skipped, found.start, found.end, found.direction, found.score,
    )  # fmt: skip
    return found


def load_kernel() -> Callable[..., None]:
    """Return the compiled loop; the first call takes seconds where nothing is cached yet."""
    from moola_train.hindsight_kernel import label

    return label.load()


def window_names(start_time: Int64) -> list[str]:
    """Names of windows by the time of their first bar, the same in every file.

    Examples
    --------
    >>> window_names(np.array([1_577_836_800_000_000_000]))
    ['h-2020-01-01T00:00:00Z']
    """
    return [f"h-{time_text(time)}" for time in start_time.tolist()]


def _arrays(time: ArrayLike, ohlc: ArrayLike, starts: ArrayLike) -> tuple[Int64, Float64, Int64]:
    times = np.ascontiguousarray(time, np.int64)
    prices = np.ascontiguousarray(ohlc, np.float64)
    begins = np.ascontiguousarray(starts, np.int64)
    if times.ndim != 1 or prices.shape != (len(times), 4):
        raise LabelsError(
            f"time is {list(times.shape)} and ohlc {list(prices.shape)}; give [T] and [T, 4]"
        )
    if begins.ndim != 1:
        raise LabelsError(f"starts are {list(begins.shape)}; give one dimension, [N]")
    outside = (begins < 0) | (begins >= len(times))
    if outside.any():
        row = int(np.argmax(outside))
        raise LabelsError(
            f"starts[{row}] is {begins[row]}, and there are {len(times)} bars; give a position "
            f"from 0 to {len(times) - 1}"
        )
    return times, prices, begins
