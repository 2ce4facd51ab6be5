"""Columns of labels as they were given, and how to refuse what stands in them."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moola_features.bars.files import Reader, decoding, open_reader
from moola_features.errors import BarsError, BarsNotFoundError
from moola_train.errors import LabelsError
from moola_train.targets import NONE, Int64

Bool = NDArray[np.bool_]

_REQUIRED = ("window_id", "label", "expansion_start", "expansion_end")
_COLUMNS = (*_REQUIRED, "start_time", "features", "base_window_id")
_BATCH_ROWS = 65_536
_MOST_SHOWN = 200  # characters of a value that was found


class LabelTable:
    """Columns of text, numbers or lists, and how to refuse what stands in them."""

    def __init__(self, source: Any) -> None:
        try:
            reader = open_reader(source)
            _refuse_repeated(reader)
            columns = [name for name in _COLUMNS if name in reader.names]
            with decoding(reader.description):
                batches = list(reader.frames(columns, _BATCH_ROWS)) if columns else []
        except (BarsError, BarsNotFoundError) as error:
            # The reader is that of bars; its messages speak of them.
            text = str(error).replace("file of bars", "file of labels")
            raise LabelsError(text.replace("holds bars", "holds labels")) from error
        self.name = reader.description
        self._names = reader.names
        self.frame = pl.concat(batches) if batches else pl.DataFrame(schema=columns)

    def __len__(self) -> int:
        return self.frame.height

    def has(self, column: str) -> bool:
        """Tell whether there is such a column."""
        return column in self.frame.columns

    def require_columns(self) -> None:
        """Refuse labels without a column or without a row."""
        for column in _REQUIRED:
            if not self.has(column):
                found = ", ".join(self._names[:20])
                raise LabelsError(f"{self.name}: no column {column!r}; the columns are {found}")
        if not self.has("start_time") and not self.has("features"):
            raise LabelsError(
                f"{self.name}: neither column 'start_time' nor 'features'; give the first bar's "
                "time, or the windows' own prices"
            )
        if len(self) == 0:
            raise LabelsError(f"{self.name}: no rows; label at least one window")

    def refuse(self, bad: Any, column: str, remedy: str) -> None:
        """Refuse the first of some rows, if there are any."""
        rows = np.flatnonzero(np.asarray(bad, bool))
        if len(rows):
            row = int(rows[0])
            self.refuse_row(row, column, remedy, self._cell(row, column), len(rows) - 1)

    def refuse_row(
        self, row: int, column: str, remedy: str, value: Any, num_more: int = 0
    ) -> NoReturn:
        """Refuse one row, naming the value that was found."""
        more = f" ({num_more} more such rows)" if num_more else ""
        raise LabelsError(f"{self.name}, row {row}: {column} is {shown(value)}; {remedy}{more}")

    def texts(self, column: str) -> list[Any]:
        """Cells as text; None for what is missing or empty."""
        series = self.frame[column]
        if not (series.dtype.is_nested() or series.dtype.is_float()):
            # Bytes may well be text; some that are not, and lengths of time, cannot be cast.
            with contextlib.suppress(pl.exceptions.PolarsError):
                return [text or None for text in series.cast(pl.String).to_list()]
        self._refuse_type(column, "give text")
        return [None] * len(self)

    def known(self, column: str) -> Bool:
        """Tell which cells hold something."""
        if not self.has(column):
            return np.zeros(len(self), bool)
        series = self.frame[column]
        known = series.is_not_null()
        if series.dtype == pl.String:
            known &= (series.str.strip_chars() != "").fill_null(False)
        elif series.dtype.is_float():
            known &= series.is_not_nan().fill_null(False)
        return known.to_numpy()

    def positions(self, column: str) -> tuple[Int64, Bool]:
        """Whole numbers, -1 where the cell is empty; and where it is not."""
        known = self.known(column)
        series = self.frame[column]
        if series.dtype == pl.String:
            series = series.str.strip_chars()
        elif not (series.dtype.is_numeric() or series.dtype == pl.Null):
            self._refuse_type(column, "give whole numbers")
            series = pl.repeat(None, len(self), eager=True)  # it holds nothing
        numbers = series.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53)
        self.refuse(known & ~whole, column, "give a whole number, or nothing")
        return np.where(known, np.where(known, numbers, 0.0), NONE).astype(np.int64), known

    def _refuse_type(self, column: str, remedy: str) -> None:
        """Refuse a column for its type, if it holds anything."""
        kind = self.frame[column].dtype
        self.refuse(self.known(column), column, f"its type is {kind}, {remedy}")

    def _cell(self, row: int, column: str) -> Any:
        value = self.frame[column][row] if self.has(column) else None
        if isinstance(value, pl.Series):  # a list, which Polars would show in several lines
            return value.to_list()
        return str(value) if hasattr(value, "isoformat") else value


def shown(value: Any) -> str:
    """Write a value that was found, in one line of bearable length."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _refuse_repeated(reader: Reader) -> None:
    """Refuse a column that stands there twice: nothing says which of the two is meant."""
    for name in _COLUMNS:
        if (count := reader.names.count(name)) > 1:
            raise LabelsError(
                f"{reader.description}: column {name!r} stands there {count} times; "
                "keep one of them, or rename the others"
            )
