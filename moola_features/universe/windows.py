"""Windows of many instruments as one index.

The index is as long as there are segments, not windows: five years of 5,000 instruments have as
many windows as bars, and a number for each of them would take 100 GB.
"""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_features.errors import StoreError, WindowError
from moola_features.store.layout import CHUNK_BARS, bar_arrays, chunk_path, num_chunks
from moola_features.times import TimeLike
from moola_features.windows import (
    checked_out,
    checked_rows,
    clipped_segments,
    positive,
    valid_runs,
)

if TYPE_CHECKING:
    from moola_features.store import Universe

# The system allows a process 65,530 mappings by default, and each chunk file is one. Instruments
# beyond these are read with system calls, three for a window.
MAX_MAPPED_FILES = 32_768


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
        path: Path,
        folders: Sequence[str],
        symbols: Sequence[str],
        tables: list[NDArray[np.float32] | None],
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
        self._path = path
        self._folders = folders
        self._tables = tables
        self._instrument, self._first, counts = runs.T
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        # Holds the folder that was indexed, whatever takes its place.
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._handle)

    @classmethod
    def of(
        cls,
        universe: Universe,
        length: int | None,
        stride: int,
        *,
        start: TimeLike | None,
        stop: TimeLike | None,
        symbols: Sequence[str] | None,
    ) -> UniverseWindows:
        """Index the valid windows; see :meth:`Universe.windows`."""
        from moola_features.store import Store, undisturbed

        chosen = list(universe if symbols is None else symbols)
        unknown = [symbol for symbol in chosen if symbol not in universe]
        if unknown or not chosen:
            found = repr(unknown[0]) if unknown else "no symbol"
            listed = ", ".join(list(universe)[:20])
            raise WindowError(f"symbols has {found}; choose among {listed}")
        step = positive("stride", stride)
        size = None if length is None else positive("length", length)

        def index() -> UniverseWindows:
            tables: list[NDArray[np.float32] | None] = []
            runs, num_mapped, shape = [], 0, (0, 0)
            for position, symbol in enumerate(chosen):
                store = _open(universe, symbol, Store)
                found = (size or store.config.window_length, len(store.names))
                if position and found != shape:
                    raise StoreError(
                        f"{store.path} has windows of {found[0]} bars by {found[1]} features, "
                        f"{chosen[0]!r} of {shape[0]} by {shape[1]}; build them alike"
                    )
                shape = found
                bounds = clipped_segments(store.segments, store.time, start, stop)
                for first, count in valid_runs(store.valid, bounds, shape[0], step):
                    runs.append((position, first, count))
                num_mapped += num_chunks(len(store))
                tables.append(store.features if num_mapped <= MAX_MAPPED_FILES else None)
            folders = [universe.folder_of(symbol).name for symbol in chosen]
            return cls(
                universe.path, folders, chosen, tables,
                np.array(runs, np.int64).reshape(-1, 3),
                length=shape[0], stride=step, num_features=shape[1],
            )  # fmt: skip

        return undisturbed(universe.path, index)

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
        (window,) = self.gather([operator.index(index)])
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
        instrument, start = self.locate(rows)
        filled = checked_out(out, (len(start), self.length, self.num_features))
        order = np.argsort(instrument, kind="stable")
        bounds = np.flatnonzero(np.diff(instrument[order])) + 1
        for group in np.split(order, bounds) if len(order) else ():
            position = int(instrument[group[0]])
            table = self._tables[position]
            if table is None:
                for row in group.tolist():
                    self._read(position, int(start[row]), filled[row])
            else:
                self._copy(table, start[group], group, filled)
        return filled

    def _copy(
        self,
        table: NDArray[np.float32],
        start: NDArray[np.int64],
        rows: NDArray[np.int64],
        out: NDArray[np.float32],
    ) -> None:
        from moola_features.kernels.gather import gather as kernel

        size = self.length * self.num_features
        flat, offsets = table.reshape(-1), start * self.num_features
        if len(rows) == len(out):  # all of them are of one instrument, and in their order
            kernel.load()(flat, offsets, size, out.reshape(len(rows), size))
            return
        found = np.empty((len(rows), size), np.float32)
        kernel.load()(flat, offsets, size, found)
        out[rows] = found.reshape(len(rows), self.length, self.num_features)

    def _read(self, instrument: int, start: int, out: NDArray[np.float32]) -> None:
        """Read one window from its chunk files, two of them where it lies across their seam."""
        array = bar_arrays(self.num_features)["features"]
        row_bytes = 4 * self.num_features
        done = 0
        while done < self.length:
            chunk, row = divmod(start + done, CHUNK_BARS)
            num_rows = min(CHUNK_BARS - row, self.length - done)
            path = chunk_path(Path(self._folders[instrument]), "features", chunk, array)
            data = self._read_bytes(path, row * row_bytes, num_rows * row_bytes)
            out[done : done + num_rows] = np.frombuffer(data, "<f4").reshape(num_rows, -1)
            done += num_rows

    def _read_bytes(self, path: Path, offset: int, num_bytes: int) -> bytes:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._handle)
            try:
                data = os.pread(handle, num_bytes, offset)
            finally:
                os.close(handle)
        except OSError as error:
            raise StoreError(
                f"{self._path / path} cannot be read any more: {error.strerror}; if the universe "
                "was rebuilt, open it and index its windows again"
            ) from error
        if len(data) != num_bytes:
            raise StoreError(f"{self._path / path} is cut short; rebuild the store with --force")
        return data


def _open(universe: Universe, symbol: str, kind: Any) -> Any:
    """Open a store of a universe that nobody keeps: its mappings go when they are not needed."""
    from moola_features.store import open_store

    opened = open_store(universe.folder_of(symbol))
    if not isinstance(opened, kind):
        raise StoreError(f"{opened.path} is a universe inside a universe; rebuild it with --force")
    return opened
