"""Bars: five arrays that have been converted and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_features.bars.checks import (
    FIELDS,
    MISSING_TIME,
    BarArrays,
    BarCheck,
    Float64,
    Int64,
    take_rows,
)
from moola_features.errors import BarsError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_REMEDY = "give whole nanoseconds since 1970 UTC, or datetime64"


@dataclass(frozen=True, eq=False, init=False)
class Bars:
    """Bars in order of time, checked when made.

    The arrays are contiguous, of one length, and read-only; where a given array already has
    the right type they are views of it, so do not change it afterwards.

    Parameters
    ----------
    time
        int64 ``[T]``, start of each bar in nanoseconds since 1970 UTC, strictly increasing.
        datetime64 of any unit and ``datetime`` objects are converted, naive ones read as UTC.
    open, high, low, close
        float64 ``[T]``. Whole numbers, ``Decimal`` and other floats are converted.

    Raises
    ------
    BarsError
        No bars, lengths that differ, values that are not numbers, a price that is not finite
        or beyond 1e150, high < max(open, close), low > min(open, close), or a time that is
        not after the one before it. The message names row, time, column, value and remedy.

    Examples
    --------
    >>> bars = Bars(time=[0, 60_000_000_000], open=[1, 2], high=[3, 3], low=[1, 1], close=[2, 1])
    >>> len(bars), bars.close.tolist(), len(bars[:1])
    (2, [2.0, 1.0], 1)
    """

    time: Int64
    open: Float64
    high: Float64
    low: Float64
    close: Float64

    def __init__(
        self, time: ArrayLike, open: ArrayLike, high: ArrayLike, low: ArrayLike, close: ArrayLike
    ) -> None:
        check = BarCheck()
        self._hold(check(_as_arrays(time, open, high, low, close)))
        check.require_bars()

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, rows: slice) -> Self:
        """Return bars ``start:stop`` as views, without checking them again."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise BarsError(f"bars[{rows!r}]: take bars by a slice such as bars[start:stop]")
        return self.trusted(take_rows(self.arrays, rows))

    @property
    def arrays(self) -> BarArrays:
        """The five arrays: time, open, high, low, close."""
        return self.time, self.open, self.high, self.low, self.close

    @classmethod
    def trusted(cls, arrays: BarArrays) -> Self:
        """Make bars of arrays that have passed a check, without checking them again.

        Parameters
        ----------
        arrays
            time int64 ``[T]``, then open, high, low, close float64 ``[T]``.
        """
        bars = object.__new__(cls)
        bars._hold(arrays)
        return bars

    def _hold(self, arrays: BarArrays) -> None:
        for name, values in zip(FIELDS, arrays, strict=True):
            view = np.ascontiguousarray(values).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)


def _as_arrays(
    time: ArrayLike, open: ArrayLike, high: ArrayLike, low: ArrayLike, close: ArrayLike
) -> BarArrays:
    arrays = (
        _as_time(time),
        _as_price("open", open),
        _as_price("high", high),
        _as_price("low", low),
        _as_price("close", close),
    )
    lengths = {name: len(values) for name, values in zip(FIELDS, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BarsError(f"lengths differ: {listed}; give five arrays of one length")
    return arrays


def _as_price(name: str, values: ArrayLike) -> Float64:
    array = _as_vector(name, values)
    if array.dtype == object:
        for row, value in enumerate(array):
            number = isinstance(value, Real | Decimal) and not isinstance(value, bool)
            if not number and value is not None:
                raise BarsError(f"row {row}: {name} is {value!r}, not a number; give numbers only")
    elif array.dtype.kind not in "iuf":
        raise BarsError(f"{name} holds {_shown(array)}, not numbers; convert it to float64")
    return np.asarray(array, dtype=np.float64)


def _as_time(values: ArrayLike) -> Int64:
    array = _as_vector("time", values)
    if len(array) == 0:
        return np.empty(0, np.int64)  # numpy calls an empty list one of floats
    if array.dtype == object:
        array = _objects_as_time(values, array)
    if array.dtype.kind == "M":
        return _datetime64_as_ns(array)
    if array.dtype.kind not in "iu":
        raise BarsError(f"time holds {_shown(array)}; {_TIME_REMEDY}")
    if array.dtype == np.uint64 and len(array) and array.max() > np.iinfo(np.int64).max:
        raise BarsError(f"time {array.max()} is beyond int64; {_TIME_REMEDY}")
    return np.asarray(array, dtype=np.int64)


def _datetime64_as_ns(array: NDArray[np.datetime64]) -> Int64:
    known = array[~np.isnat(array)]
    if len(known):
        # numpy wraps around without a word; the conversion keeps order, so the ends tell.
        for end in (known.min(), known.max()):
            if end.astype("datetime64[ns]").astype("datetime64[Y]") != end.astype("datetime64[Y]"):
                raise BarsError(f"time {end} does not fit into int64 ns; give years 1678 to 2261")
    return np.asarray(array, dtype="datetime64[ns]").view(np.int64)


def _objects_as_time(values: Any, array: NDArray[Any]) -> NDArray[Any]:
    if getattr(getattr(values, "dtype", None), "tz", None) is not None:
        # A pandas index or series with a zone; asked for datetime64 it hands out UTC.
        return np.asarray(values, dtype="datetime64[ns]")
    converted = np.empty(len(array), dtype=np.int64)
    for row, value in enumerate(array):
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            converted[row] = (aware - _EPOCH) // timedelta(microseconds=1) * 1_000
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            converted[row] = value
        elif value is None:
            converted[row] = MISSING_TIME
        else:
            raise BarsError(f"row {row}: time is {value!r}; {_TIME_REMEDY}")
    return converted


def _as_vector(name: str, values: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise BarsError(f"{name} is no array: {error}; give one dimension, [T]") from error
    if array.ndim != 1:
        raise BarsError(f"{name} has shape {list(array.shape)}; give one dimension, [T]")
    return array


def _shown(array: NDArray[Any]) -> str:
    return f"{array.dtype} such as {array[0].item()!r}" if len(array) else f"{array.dtype}"
