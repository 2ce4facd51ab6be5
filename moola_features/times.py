"""Times as people write them, to and from nanoseconds since 1970 UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np

from moola_features.errors import ConfigError

TimeLike: TypeAlias = "int | str | datetime | np.datetime64 | np.integer"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_NS = 2**63 - 1  # 2262-04-11; its negative lies in 1677, and one less is numpy's NaT


def time_text(time_ns: int) -> str:
    """Write a time as ISO text, UTC, without fractions that are zero.

    Examples
    --------
    >>> time_text(1_577_836_800_000_000_000)
    '2020-01-01T00:00:00Z'
    """
    text = str(np.datetime64(time_ns, "ns"))
    head, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f"{head}.{fraction}Z" if fraction else f"{head}Z"


def parse_time_ns(name: str, value: TimeLike) -> int:
    """Read a time: ns as a whole number, ISO text, ``datetime`` or ``datetime64``; naive is UTC.

    Raises
    ------
    ConfigError
        Text that is no time, or a time outside the years 1678 to 2261, naming the parameter.

    Examples
    --------
    >>> parse_time_ns("at", "2020-01-01 01:00+01:00")
    1577836800000000000
    """
    time_ns = _nanoseconds(value)
    if time_ns is None:
        raise ConfigError(f"{name} is {value!r}; give a time such as '2020-01-31 14:30' (UTC)")
    if abs(time_ns) > _LAST_NS:
        raise ConfigError(f"{name} is {value!r}; give a time of the years 1678 to 2261")
    return time_ns


def _nanoseconds(value: TimeLike) -> int | None:
    if isinstance(value, np.datetime64):
        if np.isnat(value):
            return None
        # numpy wraps around without a word where nanoseconds do not fit; seconds always do.
        seconds = int(value.astype("datetime64[s]").astype(np.int64))
        exact = int(value.astype("datetime64[ns]").astype(np.int64))
        return exact if abs(seconds) <= _LAST_NS // 10**9 else seconds * 10**9
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1) * 1_000
