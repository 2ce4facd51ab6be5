"""Sources of bars: files and frames as checked bars, whole or streamed in bounded memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from moola_features.bars import Bars
from moola_features.bars.checks import (
    FIELDS,
    PRICES,
    BarArrays,
    BarCheck,
    DroppedBars,
    Int64,
    require_on_bad_bars,
    take_rows,
)
from moola_features.bars.columns import BarColumns, find_columns, price_array, symbol_text
from moola_features.bars.files import Reader, decoding, open_reader
from moola_features.bars.times import TimeReader, join_date_and_time
from moola_features.errors import BarsError, MoolaError
from moola_features.times import time_text

BATCH_BARS = 131_072


def read_bars(
    source: Any,
    *,
    column_map: Mapping[str, str] | None = None,
    symbol: str | None = None,
    on_bad_bars: str = "error",
) -> Bars:
    """Read bars whole into memory.

    Parameters
    ----------
    source
        Path to Parquet, CSV (plain or compressed) or Arrow IPC; a Polars or pandas frame; an
        Arrow table; a dict of arrays; or :class:`Bars`.
    column_map
        Column by field, such as ``{"open": "px_open"}``, for names that are not recognised;
        the fields are time, open, high, low, close and symbol.
    symbol
        The one to read where the source holds several.
    on_bad_bars
        ``"error"`` or ``"drop"``; :func:`open_source` tells what was dropped.

    Returns
    -------
    Bars
        All bars of one symbol, in order of time.

    Raises
    ------
    BarsError
        Bars that cannot be read or contradict themselves, several symbols and none chosen, or
        none of that name. The message says which row, what was found and what to do.
    ConfigError
        A ``column_map`` that is none, or of a field that bars do not have.
    BarsNotFoundError
        No file at the path.

    Examples
    --------
    >>> prices = {"open": [5, 6], "high": [7, 7], "low": [5, 5], "close": [6, 7]}
    >>> bars = read_bars({"time": ["2020-01-01T00:00Z", "2020-01-01T00:01Z"], **prices})
    >>> bars.time.tolist(), bars.close.tolist()
    ([1577836800000000000, 1577836860000000000], [6.0, 7.0])
    """
    opened = open_source(source, column_map=column_map, on_bad_bars=on_bad_bars)
    if symbol is None and len(opened.symbols) > 1:
        listed = ", ".join(opened.symbols[:20])
        raise BarsError(
            f"{opened.description}: holds {len(opened.symbols)} symbols ({listed}"
            f"{', ...' if len(opened.symbols) > 20 else ''}); choose one with symbol="
        )
    # One batch of everything, where the length is known: nothing to join afterwards.
    opened.batch_bars = opened.num_rows or BATCH_BARS
    pieces = [bars.arrays for _, bars in opened.batches(symbol)]
    if len(pieces) == 1:
        return Bars.trusted(pieces[0])
    time, open, high, low, close = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return Bars.trusted((time, open, high, low, close))


def open_source(
    source: Any,
    *,
    column_map: Mapping[str, str] | None = None,
    on_bad_bars: str = "error",
    batch_bars: int = BATCH_BARS,
) -> BarSource:
    """Open bars for streaming in bounded memory.

    Parameters
    ----------
    source, column_map, on_bad_bars
        As for :func:`read_bars`.
    batch_bars
        Bars in a piece, at most.

    Returns
    -------
    BarSource
        Yields checked pieces; can be read more than once.

    Raises
    ------
    BarsError
        A source that cannot be opened, or whose columns are not those of bars.
    ConfigError
        As of :func:`read_bars`.
    BarsNotFoundError
        No file at the path.

    Examples
    --------
    >>> hour = [1_577_836_800 + 60 * minute for minute in range(60)]
    >>> flat = dict.fromkeys(("open", "high", "low", "close"), [5.0] * 60)
    >>> source = open_source({"time": hour, **flat}, batch_bars=25)
    >>> [len(bars) for symbol, bars in source.batches()]
    [25, 25, 10]
    """
    return BarSource(
        open_reader(source),
        column_map=column_map,
        on_bad_bars=on_bad_bars,
        batch_bars=batch_bars,
    )


class BarSource:
    """A source of bars, opened by :func:`open_source`.

    Attributes
    ----------
    description
        The path, or what kind of thing in memory it is.
    num_rows
        Rows of all symbols together, None where only reading would tell.
    columns
        Which column holds what.
    batch_bars
        Bars in a piece, at most.
    decoding_bytes
        Memory that a pass takes at most, besides the pieces.
    dropped
        What ``on_bad_bars="drop"`` has left out of the current or last pass, by symbol; None
        stands for the only one.
    rows_read
        Rows that the current or last pass has read.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        column_map: Mapping[str, str] | None,
        on_bad_bars: str,
        batch_bars: int,
    ) -> None:
        require_on_bad_bars(on_bad_bars)
        if isinstance(batch_bars, bool) or not isinstance(batch_bars, int) or batch_bars < 1:
            raise BarsError(f"batch_bars is {batch_bars!r}; give a whole number from 1")
        self.description = reader.description
        self.columns: BarColumns = find_columns(reader.names, column_map, reader.description)
        with decoding(reader.description):
            self.num_rows = reader.count_rows(self.columns.names)
        self.batch_bars = batch_bars
        self.decoding_bytes = reader.decoding_bytes
        self.dropped: dict[str | None, DroppedBars] = {}
        self.rows_read = 0
        self._reader = reader
        self._on_bad_bars = on_bad_bars

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Symbols in order of first appearance, () without a symbol column.

        The first access reads that one column through.
        """
        name = self.columns.symbol
        if name is None:
            return ()
        found: dict[str, None] = {}
        first_row = 0
        for frame in self._frames([name]):
            symbols = symbol_text(frame[name])
            missing = symbols.str.strip_chars().fill_null("") == ""
            if missing.any():
                row = first_row + int(missing.arg_max() or 0)
                raise BarsError(f"{self.description}: row {row}: {name} is missing; fill it in")
            found.update(dict.fromkeys(symbols.unique(maintain_order=True)))
            first_row += len(symbols)
        return tuple(found)

    def batches(
        self, symbol: str | None = None, *, refused: dict[str | None, MoolaError] | None = None
    ) -> Iterator[tuple[str | None, Bars]]:
        """Read the source from its start and yield checked pieces.

        Parameters
        ----------
        symbol
            The only one to yield and check; None for all.
        refused
            Gets what is wrong with the bars of a symbol, which then yields no more; without it
            that is raised.

        Yields
        ------
        symbol, bars
            Each piece continues the series of its symbol, which is None where the source has
            no symbol column or only one symbol.

        Raises
        ------
        BarsError
            A bad row with ``on_bad_bars="error"``; a damaged file; no good bar of a symbol.
        """
        self._require_symbol(symbol)
        self.dropped = {}
        self.rows_read = 0
        checks: dict[str | None, BarCheck] = {}
        wrong: dict[str | None, MoolaError] = {} if refused is None else refused
        for first_row, frame, arrays in self._arrays():
            self.rows_read = first_row + frame.height
            for name, rows in self._split(frame):
                if name in wrong or (symbol is not None and name not in (None, symbol)):
                    continue
                if name not in checks:
                    checks[name] = self._new_check(name)
                    self.dropped[name] = checks[name].dropped
                piece = arrays if rows is None else take_rows(arrays, rows)
                try:
                    good = checks[name](
                        piece,
                        first_row=first_row,
                        rows=None if rows is None else first_row + rows,
                        found=self._finder(frame, rows),
                    )
                except BarsError as error:
                    if refused is None:
                        raise
                    refused[name] = error
                    continue
                if len(good[0]):
                    yield name, Bars.trusted(good)
        for name, check in checks.items() or {None: self._new_check(None)}.items():
            try:
                check.require_bars()
            except BarsError as error:
                if refused is None:
                    raise
                refused.setdefault(name, error)

    def part(self, start: int, stop: int) -> BarSource | None:
        """Return rows ``start:stop`` as a source of their own, which messages number as here.

        None where the format does not let a part be read without what is before it.
        """
        reader = self._reader.part(start, stop)
        if reader is None:
            return None
        found = copy.copy(self)
        found._reader = reader
        found.num_rows = reader.count_rows(self.columns.names)
        found.dropped, found.rows_read = {}, 0
        return found

    def times(self) -> Iterator[Int64]:
        """Yield the times alone, unchecked, int64 ``[n]`` in ns."""
        read_time = TimeReader()
        for frame in self._frames(list(self.columns.time)):
            yield read_time([frame[name] for name in self.columns.time])

    def progress(self) -> float | None:
        """Share of the source that the current or last pass has read, None if unknown."""
        if self.num_rows is None:
            return self._reader.fraction_read()
        return self.rows_read / max(self.num_rows, 1)

    def sha256(self) -> str:
        """Return the SHA-256 of the input as hexadecimal text.

        Of a file it is that of the file's bytes. Of anything in memory it is that of six
        digests one after the other: of time as int64 ns, open, high, low and close as float64,
        each little-endian, and of the symbols, one a line, as UTF-8.
        """
        if self._reader.path is not None:
            with self._reader.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digests = [hashlib.sha256() for _ in (*FIELDS, "symbol")]
        for _, frame, arrays in self._arrays():
            for digest, values in zip(digests, arrays, strict=False):
                digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
            if self.columns.symbol is not None:
                lines = symbol_text(frame[self.columns.symbol]).fill_null("").to_list()
                digests[-1].update("".join(f"{line}\n" for line in lines).encode())
        return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()

    def _frames(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        frames = self._reader.frames(columns, self.batch_bars)
        while True:
            with decoding(self.description):
                frame = next(frames, None)
            if frame is None:
                return
            yield from frame.iter_slices(self.batch_bars)

    def _arrays(self) -> Iterator[tuple[int, pl.DataFrame, BarArrays]]:
        """Number of the first row, the frame as it was read, and its five arrays."""
        read_time = TimeReader()
        first_row = self._reader.first_row
        for frame in self._frames(self.columns.names):
            time = read_time([frame[name] for name in self.columns.time])
            open, high, low, close = (
                price_array(
                    frame[getattr(self.columns, name)], name, from_text=self._reader.from_text
                )
                for name in PRICES
            )
            yield first_row, frame, (time, open, high, low, close)
            first_row += frame.height

    def _split(self, frame: pl.DataFrame) -> Iterator[tuple[str | None, Int64 | None]]:
        """Symbols of a frame with the positions of their rows, None for all rows."""
        column = self.columns.symbol
        if column is None or len(self.symbols) == 1:
            yield None, None
            return
        symbols = pl.DataFrame({"symbol": symbol_text(frame[column])}).with_row_index("rows")
        rows = pl.col("rows").cast(pl.Int64)
        groups = symbols.group_by("symbol", maintain_order=True).agg(rows)
        for name, positions in zip(groups["symbol"], groups["rows"], strict=True):
            yield name, positions.to_numpy()

    def _new_check(self, symbol: str | None) -> BarCheck:
        name = self.description if symbol is None else f"{self.description} [{symbol}]"
        return BarCheck(on_bad_bars=self._on_bad_bars, name=name)

    def _finder(self, frame: pl.DataFrame, rows: Int64 | None) -> Callable[[int, str], Any]:
        def found(position: int, field: str) -> Any:
            row = position if rows is None else int(rows[position])
            if field != "time":
                return frame[getattr(self.columns, field)][row]
            columns = [frame[name][row : row + 1] for name in self.columns.time]
            column = columns[0] if len(columns) == 1 else join_date_and_time(columns)
            if column.dtype.is_temporal() and column[0] is not None:
                return time_text(int(TimeReader()([column])[0]))
            return column[0]

        return found

    def _require_symbol(self, symbol: str | None) -> None:
        if symbol is None or symbol in self.symbols:
            return
        if not self.symbols:
            text = f"symbol is {symbol!r}, but there is no symbol column; leave symbol out"
        else:
            text = f"no symbol {symbol!r}; choose one of {', '.join(self.symbols[:20])}"
        raise BarsError(f"{self.description}: {text}")
