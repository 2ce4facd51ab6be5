"""Reading times from columns of any type: timestamps, dates, text, epoch numbers."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from moola_features.bars.checks import MISSING_TIME, Int64
from moola_features.bars.columns import NUMBER, example, parsed_numbers
from moola_features.errors import BarsError

# Epoch numbers: the magnitude below which one is read in each unit, and the unit in ns.
# Milliseconds reach the first bound in March 1973, seconds in the year 5138.
EPOCH_UNITS = ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3), (np.inf, 1))
COMPACT_DATES = (19_000_101, 21_001_231)  # 20200131 is a day, not a second in August 1970
_TEXT = 0  # stands for a unit where the cells are to be read as text
_MAX_NS = 9_200_000_000 * 10**9  # whole seconds that int64 can hold in ns, to the year 2261

_TIME_PATTERN = (
    r"^\s*(?P<year>\d{4})[-/.]?(?P<month>\d{2})[-/.]?(?P<day>\d{2})"
    r"(?:[T ]\s*(?P<hour>\d{1,2})(?::?(?P<minute>\d{2})(?::?(?P<second>\d{2})"
    r"(?:[.,](?P<fraction>\d{1,9})\d*)?)?)?)?"
    r"\s*(?:Z|z|UTC|GMT|(?P<sign>[+-])(?P<zone_hour>\d{2})(?::?(?P<zone_minute>\d{2}))?)?\s*$"
)


class TimeReader:
    """Turns time columns into int64 ns UTC, batch after batch; a new one for every pass.

    Times may be timestamps of any zone and unit (naive ones are UTC), dates, ISO text with or
    without a zone, or epoch numbers. Epoch numbers are read in one unit throughout, told by
    the magnitude of the first: below 1e11 seconds, below 1e14 milliseconds, below 1e17
    microseconds, else nanoseconds; eight digits that read as a day from 1900 to 2100 are one.
    What cannot be read becomes the smallest int64, which means "no time".

    Examples
    --------
    >>> read = TimeReader()
    >>> read([pl.Series([1_577_836_800_000, 1_577_836_860_000])]).tolist()
    [1577836800000000000, 1577836860000000000]
    >>> read = TimeReader()
    >>> read([pl.Series(["2020-01-01"]), pl.Series(["00:01"])]).tolist()
    [1577836860000000000]
    """

    def __init__(self) -> None:
        self._unit_ns: int | None = None

    def __call__(self, columns: list[pl.Series]) -> Int64:
        """Convert one column, or a date and a time of day that belong together.

        Raises
        ------
        BarsError
            A column whose type does not hold times.
        """
        if len(columns) == 2:
            return _text_times(join_date_and_time(columns))
        (column,) = columns
        dtype = column.dtype
        if isinstance(dtype, pl.Datetime):
            return _scaled(
                column.to_physical(), {"ns": 1, "us": 10**3, "ms": 10**6}[dtype.time_unit]
            )
        if dtype == pl.Date:
            return _scaled(column.to_physical(), 86_400 * 10**9)
        if isinstance(dtype, pl.Decimal | pl.Categorical | pl.Enum | pl.Null):
            column = column.cast(pl.String)
        elif not dtype.is_numeric() and dtype != pl.String:
            raise BarsError(
                f"time is column {column.name!r} of type {dtype}{example(column)}; give "
                "timestamps, ISO text or epoch numbers"
            )
        if self._unit_ns is None:
            self._unit_ns = _told_unit(column)
        if self._unit_ns is None:
            return np.full(len(column), MISSING_TIME)
        if self._unit_ns == _TEXT:
            return _text_times(column)
        return _epoch_times(column, self._unit_ns)


def join_date_and_time(columns: list[pl.Series]) -> pl.Series:
    """Join a date and a time of day as text."""
    date, clock = columns
    if isinstance(date.dtype, pl.Datetime):
        date = date.cast(pl.Date)
    if clock.dtype == pl.Time:
        clock = clock.dt.to_string("%H:%M:%S%.9f")
    return date.cast(pl.String).str.strip_chars() + " " + clock.cast(pl.String).str.strip_chars()


def _told_unit(column: pl.Series) -> int | None:
    """Unit of epoch numbers in ns by the first cell that holds a time; None where none does."""
    for cell in column:
        text = str(cell)
        if NUMBER.fullmatch(text):
            number = float(text)
            if number.is_integer() and COMPACT_DATES[0] <= number <= COMPACT_DATES[1]:
                return _TEXT
            return next(unit_ns for bound, unit_ns in EPOCH_UNITS if abs(number) < bound)
        if re.match(r"\s*\d{4}", text):
            return _TEXT
    return None


def _scaled(column: pl.Series, unit_ns: int) -> Int64:
    """Whole numbers of a unit in ns; no time where that is null or beyond int64."""
    column = column.cast(pl.Int64, strict=False)
    bound = _MAX_NS // unit_ns
    known = column.is_between(-bound, bound).fill_null(False)
    if known.all():
        values: Int64 = column.to_numpy()
        return values if unit_ns == 1 else values * unit_ns
    return _where(known, column.fill_null(0).to_numpy() * unit_ns)


def _epoch_times(column: pl.Series, unit_ns: int) -> Int64:
    if column.dtype.is_integer():
        return _scaled(column, unit_ns)
    if column.dtype != pl.String:
        return _scaled_floats(column, unit_ns)
    # Whole numbers by themselves: float64 cannot tell nanoseconds apart.
    whole = parsed_numbers(column, pl.Int64())
    if whole.null_count() == column.null_count():
        return _scaled(whole, unit_ns)
    floats = _scaled_floats(parsed_numbers(column, pl.Float64()), unit_ns)
    return np.where(whole.is_not_null().to_numpy(), _scaled(whole, unit_ns), floats)


def _scaled_floats(column: pl.Series, unit_ns: int) -> Int64:
    """Epoch numbers with a fraction: whole units exactly, the rest to the microsecond."""
    numbers = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = np.abs(numbers) <= _MAX_NS // unit_ns
    numbers = np.where(known, numbers, 0.0)
    floor = np.floor(numbers)
    step_ns = min(unit_ns, 1_000)
    steps = np.round((numbers - floor) * (unit_ns // step_ns)).astype(np.int64)
    return np.where(known, floor.astype(np.int64) * unit_ns + steps * step_ns, MISSING_TIME)


def _text_times(column: pl.Series) -> Int64:
    """ISO text and its looser cousins."""
    if column.dtype != pl.String:
        column = column.cast(pl.Int64).cast(pl.String)
    # Arrow reads well-formed text much faster, but all cells or none, and either all with a
    # zone or all without.
    values = column.to_arrow()
    for zone in (None, "UTC"):
        try:
            times = values.cast(pa.timestamp("ns", zone))
        except pa.ArrowInvalid:
            continue
        return _scaled(pl.Series(times.cast(pa.int64())), 1)
    return _loose_text_times(column)


def _loose_text_times(column: pl.Series) -> Int64:
    parts = column.str.extract_groups(_TIME_PATTERN).struct.unnest()

    def number(name: str) -> pl.Expr:
        return pl.col(name).fill_null("0").cast(pl.Int64)

    clock = [pl.col(name).fill_null("0").str.zfill(2) for name in ("hour", "minute", "second")]
    text = pl.format("{}-{}-{} {}:{}:{}", "year", "month", "day", *clock)
    local = text.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False)
    zone = number("zone_hour") * 3_600 + number("zone_minute") * 60
    zone = pl.when(pl.col("sign") == "-").then(-zone).otherwise(zone)
    fraction = pl.col("fraction").fill_null("0").str.pad_end(9, "0").cast(pl.Int64)
    table = parts.select(seconds=local.cast(pl.Int64) // 1_000 - zone, fraction=fraction)
    seconds = _scaled(table["seconds"], 10**9)
    return _where(seconds != MISSING_TIME, seconds + table["fraction"].to_numpy())


def _where(known: pl.Series | NDArray[np.bool_], times: Int64) -> Int64:
    return np.where(np.asarray(known), times, MISSING_TIME)
