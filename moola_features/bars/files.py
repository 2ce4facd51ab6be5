"""Decoding: files and frames as a stream of Polars frames of the columns asked for.

What a file holds is told by its first bytes. Every file is decoded piece by piece.
"""

from __future__ import annotations

import contextlib
import copy
import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from moola_features.bars import Bars
from moola_features.bars.checks import FIELDS
from moola_features.errors import BarsError, BarsNotFoundError, MoolaError

_HEAD_BYTES = 65_536
_PARQUET_BUFFER_BYTES = 1 << 20
_MAGIC = {b"PAR1": "parquet", b"ARROW1": "ipc", b"\xff\xff\xff\xff": "ipc_stream"}
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip
_CLAIMED = {
    ".parquet": "Parquet", ".pq": "Parquet", ".arrow": "Arrow IPC", ".feather": "Arrow IPC",
    ".ipc": "Arrow IPC",
}  # fmt: skip
DECODING_BYTES = 100_000_000
_CSV_BYTES_PER_BAR = 64
_CSV_LEAST_BYTES_PER_BAR = 16  # ten digits of a time, and four prices of one
_CSV_BLOCK_BYTES = (1 << 16, 1 << 20)

# What Arrow and Polars raise on input that they cannot decode.
_DECODING_ERRORS = (pa.ArrowException, OSError, pl.exceptions.PolarsError, UnicodeDecodeError)


class Reader:
    """A source that yields Polars frames.

    Attributes
    ----------
    description
        What messages call the source.
    names
        Names of all columns.
    from_text
        Whether numbers are stored as text.
    path
        The file, None for what lies in memory.
    first_row
        Number of the first row, of a part of a source.
    decoding_bytes
        Memory that a pass takes at most, besides what it yields: measured, with the pages of
        libraries that it is the first to touch.
    """

    description: str
    names: list[str]
    from_text = False
    path: Path | None = None
    first_row = 0
    decoding_bytes = DECODING_BYTES

    def part(self, start: int, stop: int) -> Reader | None:
        """Return a reader of rows ``start:stop`` alone; None where that would read all of them."""
        return None

    def count_rows(self, columns: list[str]) -> int | None:
        """Number of rows of these columns, None where only reading would tell."""
        raise NotImplementedError

    def frames(self, columns: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
        """Yield all rows in order, ``batch_rows`` at a time where the source can."""
        raise NotImplementedError

    def fraction_read(self) -> float | None:
        """How much the current pass has read, None where nothing tells."""
        return None


class _MemoryReader(Reader):
    """Columns in memory; only those asked for are converted."""

    def __init__(self, names: list[str], columns: Mapping[str, Any], description: str) -> None:
        self.description = description
        self.names = names
        self._columns = columns

    def count_rows(self, columns: list[str]) -> int:
        return self._frame(columns).height

    def frames(self, columns: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
        yield self._frame(columns)

    def _frame(self, columns: list[str]) -> pl.DataFrame:
        arrays = {name: _as_arrow(name, self._columns[name]) for name in columns}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            text = f"{self.description}: lengths differ: {listed}; give arrays of one length"
            raise BarsError(text)
        return _as_frame(pa.table(arrays))


class _LazyFrameReader(Reader):
    """A Polars query, run afresh on every pass."""

    def __init__(self, query: pl.LazyFrame) -> None:
        self.description = "<polars lazyframe>"
        self.names = query.collect_schema().names()
        self._query = query

    def count_rows(self, columns: list[str]) -> None:
        return None

    def frames(self, columns: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
        yield from self._query.select(columns).collect_batches(
            chunk_size=batch_rows, maintain_order=True
        )


class _ParquetReader(Reader):
    """A Parquet file."""

    path: Path

    def __init__(self, path: Path) -> None:
        self.description = str(path)
        self.path = path
        with self._open() as file:
            self.names = file.schema_arrow.names
            self._num_rows = int(file.metadata.num_rows)
        self._rows = range(self._num_rows)

    def part(self, start: int, stop: int) -> Reader:
        found = copy.copy(self)
        found._rows = self._rows[start:stop]
        found.first_row = found._rows.start
        return found

    def count_rows(self, columns: list[str]) -> int:
        return len(self._rows)

    def frames(self, columns: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
        with self._open() as file:
            for first_row, groups in self._runs(file, batch_rows):
                yield from self._run(file, first_row, groups, columns, batch_rows)

    def _runs(
        self, file: pyarrow.parquet.ParquetFile, batch_rows: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Row groups to read at a time, and the number of their first row: one, or small ones.

        A batch that crossed from one group into the next would keep both in memory.
        """
        groups: list[int] = []
        first_row = row = 0
        for index in range(file.num_row_groups):
            end = row + file.metadata.row_group(index).num_rows
            if groups and end - first_row > batch_rows:
                yield first_row, groups
                groups = []
            if row < self._rows.stop and self._rows.start < end:
                first_row = first_row if groups else row
                groups.append(index)
            row = end
        if groups:
            yield first_row, groups

    def _run(
        self,
        file: pyarrow.parquet.ParquetFile,
        row: int,
        groups: list[int],
        columns: list[str],
        batch_rows: int,
    ) -> Iterator[pl.DataFrame]:
        """Rows of some row groups, of which the first has number ``row``."""
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=columns):
            start = max(self._rows.start - row, 0)
            length = min(self._rows.stop - row, len(batch)) - start
            row += len(batch)
            if length > 0:
                yield _as_frame(batch.slice(start, length))

    def _open(self) -> pyarrow.parquet.ParquetFile:
        # By default Arrow fetches all column chunks ahead and keeps them to the end of the
        # pass: 641 MB for a file of 592 MB, against 65 MB with these two, and no faster.
        return pyarrow.parquet.ParquetFile(
            self.path, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES
        )


class _IpcReader(Reader):
    """An Arrow IPC file, such as Feather version 2, or an Arrow IPC stream."""

    path: Path

    def __init__(self, path: Path, kind: str) -> None:
        self.description = str(path)
        self.path = path
        self._is_stream = kind == "ipc_stream"
        with pa.OSFile(str(path)) as file:
            opened = pa.ipc.open_stream(file) if self._is_stream else pa.ipc.open_file(file)
            self.names = opened.schema.names
            if not self._is_stream and opened.num_record_batches:
                # A record batch is read whole; a stream does not tell how many there are.
                self.decoding_bytes += 2 * file.size() // opened.num_record_batches

    def count_rows(self, columns: list[str]) -> int | None:
        return None if self._is_stream else sum(x.num_rows for x in self._batches(columns[:1]))

    def frames(self, columns: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
        for batch in self._batches(columns):
            yield _as_frame(batch)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        wanted = [self.names.index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        with pa.OSFile(str(self.path)) as file:
            if self._is_stream:
                yield from pa.ipc.open_stream(file, options=options)
                return
            reader = pa.ipc.open_file(file, options=options)
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


class _CsvReader(Reader):
    """Separated text with a header; plain or compressed.

    Every column is read as text and then parsed by Polars, which takes no longer than letting
    Arrow parse. Types that Arrow guesses from the first block fail on later ones, and a bad
    cell could be neither quoted nor dropped.
    """

    path: Path
    from_text = True
    decoding_bytes = 130_000_000

    def __init__(self, path: Path, head: bytes, compression: str | None) -> None:
        self.description = str(path)
        self.path = path
        self._compression = compression
        lines = head.decode("utf-8-sig", errors="replace").strip("\r\n").splitlines()
        self._has_rows = len(lines) > 1
        self._delimiter = max(",;\t|", key=lines[0].count)
        self.names = next(csv.reader(lines[:1], delimiter=self._delimiter))
        self._file: pa.NativeFile | None = None

    def count_rows(self, columns: list[str]) -> None:
        return None

    def frames(self, columns: list[str], batch_rows: int) -> Iterator[pl.DataFrame]:
        if not self._has_rows:
            return
        low, high = _CSV_BLOCK_BYTES
        block = min(max(batch_rows * _CSV_BYTES_PER_BAR, low), high)
        with pa.OSFile(str(self.path)) as self._file:
            reader = pyarrow.csv.open_csv(
                _decompressed(self._file, self._compression),
                read_options=pyarrow.csv.ReadOptions(block_size=block),
                parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter),
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                ),
            )
            for batch in reader:
                yield _as_frame(batch)

    def most_rows(self) -> int | None:
        """Most rows that there can be, None where the text is compressed."""
        return None if self._compression else self.path.stat().st_size // _CSV_LEAST_BYTES_PER_BAR

    def fraction_read(self) -> float | None:
        if self._file is None:
            return 0.0
        return 1.0 if self._file.closed else float(self._file.tell() / self._file.size())


def foreseen_decoding(path: str | Path) -> int:
    """Memory that a pass over a file will take, by its name alone; an open one knows better."""
    claimed = Path(path).suffix.lower() in _CLAIMED
    return DECODING_BYTES if claimed else _CsvReader.decoding_bytes


def foreseen_bars(path: str | Path) -> int | None:
    """Most bars that a file can hold, where that is told without reading it; else None."""
    try:
        reader = _open_file(Path(path))
    except MoolaError:
        return 0  # what is wrong with it is told when its turn comes
    if isinstance(reader, _ParquetReader):
        return reader.count_rows([])
    return reader.most_rows() if isinstance(reader, _CsvReader) else None


def open_reader(source: Any) -> Reader:
    """Choose the reader for a path, a frame, a table, a dict of arrays or bars.

    Raises
    ------
    BarsError
        A source of an unknown kind, or a file that cannot be decoded.
    BarsNotFoundError
        No file at the path.
    """
    if isinstance(source, str | Path):
        return _open_file(Path(source))
    if isinstance(source, pl.LazyFrame):
        with decoding("<polars lazyframe>"):
            return _LazyFrameReader(source)
    names, columns, description = _columns_in_memory(source)
    texts = [str(name) for name in names]
    return _MemoryReader(texts, dict(zip(texts, columns, strict=True)), description)


@contextlib.contextmanager
def decoding(source: str | Path) -> Iterator[None]:
    """Turn the errors of a decoder into our own, in one line."""
    try:
        yield
    except FileNotFoundError as error:
        text = f"{source}: no such file; give the path of a file of bars"
        raise BarsNotFoundError(text) from error
    except PermissionError as error:
        raise BarsError(f"{source}: may not be read; change its permissions") from error
    except _DECODING_ERRORS as error:
        text = f"{source}: damaged or cut off: {_one_line(error)}; write or fetch it again"
        raise BarsError(text) from error


def _open_file(path: Path) -> Reader:
    with decoding(path):
        if path.is_dir():
            raise BarsError(f"{path}: is a folder; give one file of bars")
        return _reader_for(path, *_head(path))


def _head(path: Path) -> tuple[bytes, str | None]:
    """The first bytes of the content, and how the file is compressed."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    compression = next(
        (name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None
    )
    if compression:
        with pa.OSFile(str(path)) as file:
            head = _decompressed(file, compression).read(_HEAD_BYTES)
    return head, compression


def _decompressed(file: pa.NativeFile, compression: str | None) -> pa.NativeFile:
    return pa.CompressedInputStream(file, compression) if compression else file


def _reader_for(path: Path, head: bytes, compression: str | None) -> Reader:
    if not head.strip():
        raise BarsError(f"{path}: is empty ({len(head)} bytes); give a file that holds bars")
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "csv")
    if kind != "csv" and compression:
        raise BarsError(f"{path}: is {kind} packed with {compression}; unpack it first")
    if kind == "parquet":
        return _ParquetReader(path)
    if kind != "csv":
        return _IpcReader(path, kind)
    claimed = _CLAIMED.get(path.suffix.lower())
    if claimed:
        raise BarsError(
            f"{path}: is not {claimed}, it begins with {head[:16]!r}; give a {claimed} file, or "
            "name it .csv if it is text"
        )
    if b"\0" in head:
        raise BarsError(
            f"{path}: is neither Parquet, Arrow nor CSV text in UTF-8, it begins with "
            f"{head[:16]!r}; convert it to one of them"
        )
    return _CsvReader(path, head, compression)


def _one_line(error: BaseException) -> str:
    """Another library's message in one line of bearable length."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _as_frame(data: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    # Text is as the file has it, offsets and all, and Polars would trust it.
    data.validate(full=True)
    frame = pl.from_arrow(data)  # numbers and times without a copy
    assert isinstance(frame, pl.DataFrame)
    return frame


def _columns_in_memory(source: Any) -> tuple[Iterable[Any], Iterable[Any], str]:
    """Names and values of the columns, and what to call the whole."""
    if isinstance(source, pl.DataFrame):
        return source.columns, source.get_columns(), "<polars frame>"
    if isinstance(source, Bars):
        return FIELDS, (source.time.view("datetime64[ns]"), *source.arrays[1:]), "<bars>"
    if isinstance(source, Mapping):
        return source.keys(), source.values(), "<dict of arrays>"
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return *_pandas_columns(source), "<pandas frame>"
    if hasattr(source, "__arrow_c_stream__"):
        table = pa.table(source)
        return table.column_names, table.columns, "<arrow table>"
    raise BarsError(
        f"source is a {type(source).__name__}; give a path, a Polars or pandas frame, an Arrow "
        "table, a dict of arrays or Bars"
    )


def _pandas_columns(frame: Any) -> tuple[list[Any], list[Any]]:
    """Columns of a pandas frame, and whatever of its index is named or holds times."""
    names = list(frame.columns)
    columns = [frame.iloc[:, index] for index in range(len(names))]
    for level, label in enumerate(frame.index.names):
        values = frame.index.get_level_values(level)
        name = "time" if label is None and hasattr(values, "tz") else label
        if name is not None and name not in names:
            names.append(name)
            columns.append(values)
    return names, columns


def _as_arrow(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        unit, _ = np.datetime_data(values.dtype)
        if unit not in ("s", "ms", "us", "ns"):  # Arrow knows no hours or minutes
            values = values.astype("datetime64[s]")
    try:
        return values.to_arrow() if isinstance(values, pl.Series) else pa.array(values)
    except (*_DECODING_ERRORS, TypeError, ValueError, OverflowError) as error:
        raise BarsError(
            f"column {name!r} cannot be read: {_one_line(error)}; give one dimension of "
            "numbers or times of one type"
        ) from error
