"""The checks that bars pass once, at the edge; kernels look at nothing that stands here.

A check is carried on from batch to batch, so that a file can be checked while it streams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moola_features.errors import BarsError
from moola_features.times import time_text

PRICES = ("open", "high", "low", "close")
FIELDS = ("time", *PRICES)
ON_BAD_BARS = ("error", "drop")

MAX_PRICE = 1e150  # the square of a larger one would overflow
MISSING_TIME = int(np.iinfo(np.int64).min)  # what numpy and Arrow mean by "not a time"
NUM_EXAMPLES = 5
_SLICE_ROWS = 16_384  # five columns of a slice, 640 kB, stay in a core's cache between passes

Float64: TypeAlias = NDArray[np.float64]
Int64: TypeAlias = NDArray[np.int64]
BarArrays: TypeAlias = tuple[Int64, Float64, Float64, Float64, Float64]  # in the order of FIELDS

_GOOD, _NO_TIME, _NOT_A_NUMBER, _TOO_LARGE, _HIGH, _LOW, _REPEATED, _UNSORTED = range(8)
REASONS = (
    "good", "time missing", "price not a finite number", "price too large",
    "high below open or close", "low above open or close", "time repeated", "time out of order",
)  # fmt: skip
_REMEDIES = {_REPEATED: "keep one bar for each time", _UNSORTED: "sort the bars by time"}


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row.

    Attributes
    ----------
    row, time
        Where: number of the row, and its time as ISO text.
    column, value
        What: the column, and the value found as text.
    reason
        Why, one of :data:`REASONS`.
    detail
        All of it in one line for people.
    """

    row: int
    time: str
    column: str
    value: str
    reason: str
    detail: str


@dataclass(eq=False)
class DroppedBars:
    """What ``on_bad_bars="drop"`` left out.

    Attributes
    ----------
    counts
        Number of dropped rows by reason, one of :data:`REASONS`.
    examples
        The first five.

    Examples
    --------
    >>> str(DroppedBars(counts={"time repeated": 2}))
    '2 dropped (2 time repeated)'
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[Fault] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of dropped rows."""
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Return total, counts and examples as plain JSON types."""
        return {"total": self.total, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        """Write total and counts in one line for people."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        return f"{self.total} dropped ({counts})" if counts else "none dropped"


class BarCheck:
    """The check of one series of bars.

    Parameters
    ----------
    on_bad_bars
        ``"error"`` raises at the first bad row; ``"drop"`` leaves bad rows out and counts them.
    name
        What the rows belong to, put before every message: a file's path, say.
    last_time
        Time of the bar before the first row, in ns; None where there is none.

    Attributes
    ----------
    last_time
        Time of the last good bar so far.
    num_bars
        Number of good bars so far.
    dropped
        What was left out so far.

    Examples
    --------
    >>> import numpy as np
    >>> check = BarCheck(on_bad_bars="drop")
    >>> price = np.array([5.0, 5.0, np.nan])
    >>> time, *prices = check((np.array([60, 60, 120]), price, price, price, price))
    >>> time.tolist(), check.dropped.counts
    ([60], {'time repeated': 1, 'price not a finite number': 1})
    """

    def __init__(
        self, *, on_bad_bars: str = "error", name: str = "", last_time: int | None = None
    ) -> None:
        require_on_bad_bars(on_bad_bars)
        self.on_bad_bars = on_bad_bars
        self.name = name
        self.last_time = MISSING_TIME if last_time is None else last_time
        self.num_bars = 0
        self.dropped = DroppedBars()

    def __call__(
        self,
        arrays: BarArrays,
        *,
        first_row: int = 0,
        rows: Int64 | None = None,
        found: Callable[[int, str], Any] | None = None,
    ) -> BarArrays:
        """Check the next rows of the series.

        Parameters
        ----------
        arrays
            time int64 ``[T]`` in ns; open, high, low and close float64 ``[T]``.
        first_row, rows
            Numbers that messages give the rows: counted from ``first_row``, or each its own.
        found
            Takes a position and a column and returns the value as the user wrote it, for
            messages; by default the value itself.

        Returns
        -------
        tuple of ndarray
            The same arrays; with ``"drop"`` their good rows, which may be none.

        Raises
        ------
        BarsError
            With ``"error"``, the first bad row.
        """
        keep: NDArray[np.bool_] | None = None
        for start in range(0, len(arrays[0]), _SLICE_ROWS):
            piece = slice(start, start + _SLICE_ROWS)
            part = take_rows(arrays, piece)
            if _is_clean(part, self.last_time):
                self.last_time = int(part[0][-1])
                continue
            codes, latest = _fault_codes(part, self.last_time)
            for index in np.flatnonzero(codes)[:NUM_EXAMPLES]:
                position = start + int(index)
                row = first_row + position if rows is None else int(rows[position])
                fault = _describe(
                    arrays, position, row, int(codes[index]), int(latest[index]), found
                )
                self._record(fault, int(codes[index]))
            if keep is None:
                keep = np.ones(len(arrays[0]), dtype=np.bool_)
            keep[piece] = codes == _GOOD
            self._count(codes)
            if keep[piece].any():
                self.last_time = int(part[0][keep[piece]][-1])
        good = arrays if keep is None else take_rows(arrays, keep)
        self.num_bars += len(good[0])
        return good

    def require_bars(self) -> None:
        """Refuse a series that has had no good bar, once it has come to its end.

        Raises
        ------
        BarsError
            There were no rows, or all were dropped.
        """
        if self.num_bars:
            return
        if not self.dropped.total:
            raise BarsError(named(self.name, "there are no bars; give at least one"))
        first = self.dropped.examples[0].detail
        text = f"no good bar is left, {self.dropped}; the first: {first}; mend the bars"
        raise BarsError(named(self.name, text))

    def _record(self, fault: Fault, code: int) -> None:
        if self.on_bad_bars == "error":
            remedy = _REMEDIES.get(code, "mend the row")
            text = f"{remedy}, or pass on_bad_bars='drop' (--on-bad-bars drop)"
            raise BarsError(named(self.name, f"{fault.detail}; {text}"))
        if len(self.dropped.examples) < NUM_EXAMPLES:
            self.dropped.examples.append(fault)

    def _count(self, codes: NDArray[np.int8]) -> None:
        counts = self.dropped.counts
        # In order of first appearance, so that a report reads like the file.
        for code in dict.fromkeys(codes[codes != _GOOD].tolist()):
            counts.setdefault(REASONS[code], 0)
            counts[REASONS[code]] += int(np.count_nonzero(codes == code))


def take_rows(arrays: BarArrays, rows: slice | NDArray[Any]) -> BarArrays:
    """Select rows of all five arrays: by a slice as views, by a mask or positions as copies."""
    time, open, high, low, close = arrays
    return time[rows], open[rows], high[rows], low[rows], close[rows]


def require_on_bad_bars(value: str) -> None:
    """Refuse a mode that is neither ``"error"`` nor ``"drop"``."""
    if value not in ON_BAD_BARS:
        raise BarsError(f"on_bad_bars is {value!r}; choose one of {', '.join(ON_BAD_BARS)}")


def named(name: str, text: str) -> str:
    """Put the name of the source before a message."""
    return f"{name}: {text}" if name else text


def _is_clean(arrays: BarArrays, last_time: int) -> bool:
    time, open, high, low, close = arrays
    # NaN fails every comparison, and low <= open, close <= high bounds the other two.
    with np.errstate(invalid="ignore"):
        return bool(
            time[0] > last_time
            and (time[1:] > time[:-1]).all()
            and (np.minimum(open, close) >= low).all()
            and (np.maximum(open, close) <= high).all()
            and high.max() <= MAX_PRICE
            and low.min() >= -MAX_PRICE
        )


def _fault_codes(arrays: BarArrays, last_time: int) -> tuple[NDArray[np.int8], Int64]:
    """For every row what is wrong with it, and the time of the last good row before it."""
    time, open, high, low, close = arrays
    prices = np.stack(arrays[1:])  # [4, T]
    with np.errstate(invalid="ignore"):
        tests = (
            (_NO_TIME, time == MISSING_TIME),
            (_NOT_A_NUMBER, ~np.isfinite(prices).all(axis=0)),
            (_TOO_LARGE, (np.abs(prices) > MAX_PRICE).any(axis=0)),
            (_HIGH, high < np.maximum(open, close)),
            (_LOW, low > np.minimum(open, close)),
        )
    codes = np.full(len(time), _GOOD, dtype=np.int8)
    for code, failed in reversed(tests):
        codes[failed] = code
    # A row that comes too late is no later than the latest, so the latest of all rows with good
    # prices is the latest of those kept.
    latest = np.empty(len(time), dtype=np.int64)
    latest[0] = last_time
    latest[1:] = np.where(codes == _GOOD, time, MISSING_TIME)[:-1]
    np.maximum.accumulate(latest, out=latest)
    codes[(codes == _GOOD) & (time == latest)] = _REPEATED
    codes[(codes == _GOOD) & (time < latest)] = _UNSORTED
    return codes, latest


def _describe(
    arrays: BarArrays,
    position: int,
    row: int,
    code: int,
    latest: int,
    found: Callable[[int, str], Any] | None,
) -> Fault:
    time_ns = int(arrays[0][position])
    time = "no time" if time_ns == MISSING_TIME else time_text(time_ns)
    price = {name: float(values[position]) for name, values in zip(PRICES, arrays[1:], strict=True)}
    column, problem = "time", "not a time from 1678 to 2261"
    if code == _NOT_A_NUMBER:
        column = next(name for name in PRICES if not np.isfinite(price[name]))
        problem = "not a finite number"
    elif code == _TOO_LARGE:
        column = next(name for name in PRICES if abs(price[name]) > MAX_PRICE)
        problem = f"beyond {MAX_PRICE:g}"
    elif code == _HIGH:
        other = max("open", "close", key=price.__getitem__)
        column, problem = "high", f"below {other} {price[other]!r}"
    elif code == _LOW:
        other = min("open", "close", key=price.__getitem__)
        column, problem = "low", f"above {other} {price[other]!r}"
    elif code == _REPEATED:
        problem = "the same as that of the bar before it"
    elif code == _UNSORTED:
        problem = f"before {time_text(latest)} of an earlier bar"
    if found is not None:
        value = repr(found(position, column))
    else:
        value = time if column == "time" else repr(price[column])
    detail = f"row {row} ({time}): {column} is {value}, {problem}"
    return Fault(
        row=row, time=time, column=column, value=value, reason=REASONS[code], detail=detail
    )
