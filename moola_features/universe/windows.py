"""Windows of many instruments as one index.

The index is as long as there are segments, not windows: five years of 5,000 instruments have as
many windows as bars, and a number for each of them would take 100 GB.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_features.config import FeatureConfig
from moola_features.errors import StoreError, WindowError
from moola_features.store.layout import CHUNK_BARS, bar_arrays, chunk_path, num_chunks
from moola_features.times import TimeLike
from moola_features.windows import (
    checked_out,
    checked_rows,
    chosen_segments,
    clipped_segments,
    position_of,
    positive,
    valid_runs,
)

if TYPE_CHECKING:
    from moola_features.store import Universe

# The system allows a process 65,530 mappings by default, and each chunk file is one. Instruments
# beyond these are read with system calls, three for a window.
MAX_MAPPED_FILES = 32_768


class RowReader(Protocol):
    """Rows of features that are read when they are asked for."""

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return rows ``[n, F]``."""


class Indexed(Protocol):
    """What of a store it takes to index its windows."""

    path: Any
    names: tuple[str, ...]
    config: FeatureConfig
    segments: NDArray[np.int64]
    features: Any
    time: Any
    valid: Any

    def __len__(self) -> int:
        """Number of bars."""


class UniverseWindows:
    """Windows of consecutive bars of many instruments; made by :meth:`Universe.windows`.

    A universe that is rebuilt meanwhile goes on to serve what it was indexed on, as far as that is
    mapped; of the rest, gathering says that it is gone.

    Attributes
    ----------
    symbols
        The instruments; each window tells by its position among them which one it is of.
    length, stride
        Bars in a window, and from one window's start to the next one's in a segment.
    num_features
        Columns.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        tables: Sequence[NDArray[np.float32] | RowReader],
        runs: NDArray[np.int64],
        *,
        length: int,
        stride: int,
        num_features: int,
    ) -> None:
        self.symbols = tuple(symbols)
        self.length = length
        self.stride = stride
        self.num_features = num_features
        self._tables = tables
        self._instrument, self._first, counts = runs.T
        self._offsets = np.concatenate([[0], np.cumsum(counts)])

    @classmethod
    def of(
        cls,
        stores: Iterable[tuple[str, Indexed, NDArray[np.float32] | RowReader]],
        length: int | None,
        stride: int,
        *,
        start: TimeLike | None,
        stop: TimeLike | None,
        segment: int | None = None,
    ) -> UniverseWindows:
        """Index the valid windows of stores.

        Parameters
        ----------
        stores
            Symbol, store, and where its features are read from.
        length, stride, start, stop
            As for :meth:`Universe.windows`.
        segment
            As for :meth:`Store.windows`, of each store.
        """
        step = positive("stride", stride)
        size = None if length is None else positive("length", length)
        symbols: list[str] = []
        tables: list[NDArray[np.float32] | RowReader] = []
        runs, shape = [], (0, 0)
        for position, (symbol, store, table) in enumerate(stores):
            found = (size or store.config.window_length, len(store.names))
            if position and found != shape:
                raise StoreError(
                    f"{store.path} has windows of {found[0]} bars by {found[1]} features, "
                    f"{symbols[0]!r} of {shape[0]} by {shape[1]}; build them alike"
                )
            shape = found
            segments = chosen_segments(store.segments, segment)
            bounds = clipped_segments(segments, store.time, start, stop)
            for first, count in valid_runs(store.valid, bounds, shape[0], step):
                runs.append((position, first, count))
            symbols.append(symbol)
            tables.append(table)
        return cls(
            symbols, tables, np.array(runs, np.int64).reshape(-1, 3),
            length=shape[0], stride=step, num_features=shape[1],
        )  # fmt: skip

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def __repr__(self) -> str:
        return (
            f"<UniverseWindows: {len(self):,} of {self.length} bars, {self.num_features} features, "
            f"{len(self.symbols)} instruments>"
        )

    def __getitem__(self, index: int | slice) -> NDArray[np.float32]:
        """Return a copy of a window ``[K, F]``, or of a slice of windows ``[n, K, F]``.

        Raises
        ------
        WindowIndexError
            A position outside the windows there are.
        """
        if isinstance(index, slice):
            return self.gather(np.arange(*index.indices(len(self))))
        (window,) = self.gather([position_of(index)])
        return window  # type: ignore[no-any-return]

    def locate(self, rows: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tell which instrument windows are of, and where in it they begin.

        Parameters
        ----------
        rows
            Whole numbers ``[B]``: positions of windows, negative ones from the end.

        Returns
        -------
        instrument, start
            int64 ``[B]`` each: position in ``symbols``, and first bar in that instrument's store.
        """
        positions = checked_rows(rows, len(self))
        positions = np.where(positions < 0, positions + len(self), positions)
        run = np.searchsorted(self._offsets, positions, side="right") - 1
        start = self._first[run] + self.stride * (positions - self._offsets[run])
        return self._instrument[run], start

    def gather(
        self, rows: ArrayLike, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Copy windows into one array.

        Parameters
        ----------
        rows
            Whole numbers ``[B]``: positions of windows, negative ones from the end.
        out
            float32 ``[B, K, F]``, C-contiguous: filled and returned; a new array when None.

        Returns
        -------
        ndarray
            float32 ``[B, K, F]``, C-contiguous.

        Raises
        ------
        WindowIndexError
            A row outside the windows there are.
        WindowError
            Rows that are no whole numbers, or an ``out`` of another shape, type or layout.
        StoreError
            A file that is not mapped, and gone.
        """
        from moola_features.kernels.gather import gather as kernel

        instrument, start = self.locate(rows)
        filled = checked_out(out, (len(start), self.length, self.num_features))
        width, size = self.num_features, self.length * self.num_features
        flat = filled.reshape(len(start), size)
        # By instrument, and there by place: what lies in one chunk is read behind each other.
        order = np.lexsort((start, instrument))
        bounds = np.flatnonzero(np.diff(instrument[order])) + 1
        for group in np.split(order, bounds) if len(order) else ():
            table = self._tables[int(instrument[group[0]])]
            if isinstance(table, np.ndarray):
                kernel.load()(table.reshape(-1), start, group, group, size, width, flat)
                continue
            for row in group.tolist():
                filled[row] = table[int(start[row]) : int(start[row]) + self.length]
        return filled


def index_universe(
    universe: Universe,
    length: int | None,
    stride: int,
    *,
    start: TimeLike | None,
    stop: TimeLike | None,
    symbols: Sequence[str] | None,
) -> UniverseWindows:
    """Index the valid windows of a universe on this machine; see :meth:`Universe.windows`."""
    from moola_features.store import undisturbed

    chosen = chosen_symbols(universe, symbols)

    def stores() -> Iterator[tuple[str, Indexed, NDArray[np.float32] | RowReader]]:
        num_mapped = 0
        root = _Root(universe.path)
        for symbol in chosen:
            store = universe.open_afresh(symbol)  # its mappings go when they are not needed
            num_mapped += num_chunks(len(store))
            mapped = num_mapped <= MAX_MAPPED_FILES
            folder = universe.folder_of(symbol).name
            table = store.features if mapped else ChunkFiles(root, folder, len(store.names))
            yield symbol, store, table

    return undisturbed(
        universe.path,
        lambda: UniverseWindows.of(stores(), length, stride, start=start, stop=stop),
    )


def chosen_symbols(universe: Mapping[str, Any], symbols: Sequence[str] | None) -> list[str]:
    """Return the symbols that are asked for, all by default, or refuse one that is not there."""
    chosen = list(universe if symbols is None else symbols)
    unknown = [symbol for symbol in chosen if symbol not in universe]
    if unknown or not chosen:
        found = repr(unknown[0]) if unknown else "no symbol"
        listed = ", ".join(list(universe)[:20])
        raise WindowError(f"symbols has {found}; choose among {listed}")
    return chosen


class _Root:
    """An open folder: it stays the one that was opened, whatever takes its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.handle)


class ChunkFiles:
    """Features of an instrument, read from chunk files that are not mapped.

    Parameters
    ----------
    root
        The universe.
    folder
        Name of the instrument's group.
    num_features
        Columns.
    """

    def __init__(self, root: _Root, folder: str, num_features: int) -> None:
        self._root = root
        self._folder = Path(folder)
        self._num_features = num_features

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Return rows ``[n, F]``, which may lie across the seams of files."""
        array = bar_arrays(self._num_features)["features"]
        row_bytes = 4 * self._num_features
        pieces = []
        start = rows.start
        while start < rows.stop:
            chunk, row = divmod(start, CHUNK_BARS)
            num_rows = min(CHUNK_BARS - row, rows.stop - start)
            path = chunk_path(self._folder, "features", chunk, array)
            pieces.append(self._read(path, row * row_bytes, num_rows * row_bytes))
            start += num_rows
        return np.frombuffer(b"".join(pieces), "<f4").reshape(-1, self._num_features)

    def _read(self, path: Path, offset: int, num_bytes: int) -> bytes:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._root.handle)
            try:
                data = os.pread(handle, num_bytes, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise StoreError(
                f"{self._root.path / path} cannot be read any more: {error.strerror}; if the "
                "universe was rebuilt, open it and index its windows again"
            ) from error
        if len(data) != num_bytes:
            raise StoreError(
                f"{self._root.path / path} is cut short; rebuild the store with --force"
            )
        return data
