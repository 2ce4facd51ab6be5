"""Which column of a source holds what, and reading prices from columns of any type."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from moola_features.bars.checks import FIELDS, PRICES, Float64, named
from moola_features.errors import BarsError, ConfigError

# Compared after lower-casing and leaving out everything but letters and digits.
SYNONYMS = {
    "time": frozenset((
        "time", "timestamp", "datetime", "date", "ts", "t", "tsevent", "tsutc", "opentime",
        "bartime", "barstart", "starttime", "windowstart", "timeutc", "utctime", "gmttime",
        "timestamputc", "datetimeutc", "timens", "timestampns", "timestampms", "unix", "unixtime",
        "unixtimestamp", "epoch",
    )),
    "open": frozenset(("open", "o", "openprice", "priceopen", "pxopen", "openpx")),
    "high": frozenset(("high", "h", "highprice", "pricehigh", "pxhigh", "highpx")),
    "low": frozenset(("low", "l", "lowprice", "pricelow", "pxlow", "lowpx")),
    "close": frozenset(("close", "c", "closeprice", "priceclose", "pxclose", "closepx")),
    "symbol": frozenset(("symbol", "sym", "ticker", "instrument", "contract")),
}  # fmt: skip

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


@dataclass(frozen=True, kw_only=True)
class BarColumns:
    """The columns of a source that hold bars.

    Attributes
    ----------
    time
        One column, or a date and a time of day that belong together.
    open, high, low, close
        One column each.
    symbol
        The column that names the instrument, or None.
    """

    time: tuple[str, ...]
    open: str
    high: str
    low: str
    close: str
    symbol: str | None

    @property
    def names(self) -> list[str]:
        """The columns to read, each once."""
        names = [*self.time, self.open, self.high, self.low, self.close]
        return list(dict.fromkeys(names if self.symbol is None else [*names, self.symbol]))


def find_columns(
    names: list[str], column_map: Mapping[str, str] | None = None, source: str = ""
) -> BarColumns:
    """Tell which column holds what, by the map first and by the usual names for the rest.

    Parameters
    ----------
    names
        Names of the columns of the source.
    column_map
        Column by field; the fields are time, open, high, low, close and symbol.
    source
        Name of the source, put before every message.

    Raises
    ------
    ConfigError
        What :func:`require_column_map` refuses.
    BarsError
        A field without a column or with several, or a map to a column that is not there.

    Examples
    --------
    >>> find_columns(["Date", "Time", "O", "H", "L", "C", "vol"]).time
    ('Date', 'Time')
    >>> find_columns(["ts", "px", "o", "h", "l"], {"close": "px"}).close
    'px'
    """
    require_column_map(column_map)
    given = dict(column_map or {})
    for field, name in given.items():
        if name not in names:
            text = f"no column {name!r} for {field}; the columns are {_listed(names)}"
            raise BarsError(named(source, text))
    free = [name for name in names if name not in given.values()]
    found = {}
    for field, synonyms in SYNONYMS.items():
        matching = [name for name in free if _plain(name) in synonyms]
        found[field] = [given[field]] if field in given else matching
    if sorted(map(_plain, found["time"])) == ["date", "time"]:
        time = tuple(sorted(found["time"], key=_plain))
    else:
        time = tuple(found["time"][:1])
        _require_one("time", found["time"], source)
    for field in (*PRICES, "symbol"):
        _require_one(field, found[field], source)
    missing = [field for field in FIELDS if not found[field]]
    if missing:
        raise BarsError(named(source, _missing_text(missing, names)))
    one = {field: found[field][0] for field in PRICES}
    return BarColumns(time=time, symbol=next(iter(found["symbol"]), None), **one)


def require_column_map(column_map: Any) -> None:
    """Refuse what is no map of column by field, whatever the columns are.

    Raises
    ------
    ConfigError
        Anything but a mapping, or a field that bars do not have.
    """
    if not isinstance(column_map, Mapping | None):
        raise ConfigError(
            f"column_map is {column_map!r}; give column by field, such as {{'open': 'px_open'}}"
        )
    for field in column_map or {}:
        if field not in SYNONYMS:
            raise ConfigError(
                f"column_map (--map) has {field!r}; its fields are {', '.join(SYNONYMS)}"
            )


def _require_one(field: str, matching: list[str], source: str) -> None:
    if len(matching) > 1:
        both = " and ".join(map(repr, matching))
        if len(set(matching)) == 1:
            text = f"columns {both} have one name; rename one of them"
        else:
            first = matching[0]
            text = (
                f"columns {both} could each be {field}; choose with "
                f"column_map={{{field!r}: {first!r}}} (--map {field}={first})"
            )
        raise BarsError(named(source, text))


def _missing_text(missing: list[str], names: list[str]) -> str:
    if len(names) > 1 and sum(bool(NUMBER.fullmatch(name)) for name in names) >= len(PRICES):
        return f"the first line, {_listed(names)}, is no header; add one: {','.join(FIELDS)}"
    field = missing[0]
    return (
        f"no column for {', '.join(missing)}; the columns are {_listed(names)}; name it with "
        f"column_map={{{field!r}: 'COLUMN'}} (--map {field}=COLUMN)"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20]) or "none"
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def price_array(column: pl.Series, name: str, *, from_text: bool) -> Float64:
    """Convert a column to float64 ``[T]``; what is missing or no number becomes NaN.

    Parameters
    ----------
    column
        Whole numbers, floats or decimals; with ``from_text`` also text.
    name
        Field it is for, named in messages.
    from_text
        Whether numbers are expected as text, as a CSV file holds them.

    Raises
    ------
    BarsError
        A column whose type does not hold numbers.
    """
    if column.dtype == pl.String and from_text:
        column = parsed_numbers(column, pl.Float64())
    elif not column.dtype.is_numeric() and column.dtype != pl.Null:
        raise BarsError(
            f"{name} is column {column.name!r} of type {column.dtype}{example(column)}, "
            "not numbers; convert it to float64"
        )
    # Polars rounds decimals correctly, which Arrow's own cast does not.
    values: Float64 = column.cast(pl.Float64).to_numpy()
    return values


def symbol_text(column: pl.Series) -> pl.Series:
    """Convert a column of symbols to text.

    Raises
    ------
    BarsError
        A column of lists or structures, or of bytes that are not text in UTF-8.
    """
    if not column.dtype.is_nested() and column.dtype != pl.Object:
        with contextlib.suppress(pl.exceptions.ComputeError):  # bytes that are no UTF-8
            return column.cast(pl.String)
    raise BarsError(
        f"symbol is column {column.name!r} of type {column.dtype}{example(column)}, not text; "
        "convert it, or map symbol to another column"
    )


def parsed_numbers(text: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Read text as numbers; null where a cell holds none."""
    values = text.cast(dtype, strict=False)
    if values.null_count() > text.null_count():
        values = text.str.strip_chars().cast(dtype, strict=False)
    return values


def example(column: pl.Series) -> str:
    """Show a value of the column in a message."""
    values = column.drop_nulls().head(1).to_list()
    return f" such as {values[0]!r}" if values else ""
