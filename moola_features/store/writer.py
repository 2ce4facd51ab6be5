"""Writing a store: chunk files by a thread of their own, zarr-python's metadata, the mark last.

Chunks hold plain little-endian values, so they are written as they stand in memory: the bytes that
zarr-python would write, without its copies.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_features.store.layout import (
    CHUNK_BARS,
    FORMAT,
    FORMAT_VERSION,
    METADATA,
    SEGMENTS,
    ArrayFormat,
    bar_arrays,
    chunk_path,
    group_name,
)

NUM_BUFFERS = 3  # chunks in memory: one being filled, the others on their way to the disk


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of all arrays: features [n, F], time [n], valid [n], ohlc [n, 4]."""

    features: NDArray[np.float32]
    time: NDArray[np.int64]
    valid: NDArray[np.bool_]
    ohlc: NDArray[np.float64]

    def __getitem__(self, rows: slice) -> Rows:
        """Return views of some rows."""
        return Rows(self.features[rows], self.time[rows], self.valid[rows], self.ohlc[rows])


class StoreWriter:
    """Writes one instrument's arrays into an empty folder, chunk by chunk.

    Parameters
    ----------
    folder
        Where the group goes; made if it is missing.
    num_columns
        Number of features.
    disk
        Where full chunks are written, in order.
    """

    def __init__(self, folder: Path, num_columns: int, disk: Executor) -> None:
        self.num_bars = 0
        self._folder = folder
        self._arrays = bar_arrays(num_columns)
        self._chunks = [self._empty_chunk() for _ in range(NUM_BUFFERS)]
        self._pending: list[Future[None] | None] = [None] * NUM_BUFFERS
        self._disk = disk

    def room(self, limit: int) -> Rows:
        """Return views of the next free rows, at most ``limit``: fill them, then ``advance``."""
        index, start = divmod(self.num_bars, CHUNK_BARS)
        slot = index % NUM_BUFFERS
        self._await(slot)
        return self._chunks[slot][start : min(start + limit, CHUNK_BARS)]

    def advance(self, num_rows: int) -> None:
        """Count rows that were filled; a chunk that is full goes to the disk."""
        index = self.num_bars // CHUNK_BARS
        self.num_bars += num_rows
        if self.num_bars // CHUNK_BARS > index:
            slot = index % NUM_BUFFERS
            self._pending[slot] = self._disk.submit(self._write, self._chunks[slot], index)

    def finish(self, segments: NDArray[np.int64], attributes: dict[str, Any]) -> None:
        """Write what is left: the last chunk, the segments, the metadata, ``complete`` last."""
        index, filled = divmod(self.num_bars, CHUNK_BARS)
        if filled:
            last = self._chunks[index % NUM_BUFFERS]
            for array in vars(last[filled:]).values():
                array[...] = 0
            self._write(last, index)
        for slot in range(NUM_BUFFERS):
            self._await(slot)
        shapes = {name: (self.num_bars, *array.row) for name, array in self._arrays.items()}
        for name, array in self._arrays.items():
            _write_metadata(self._folder, name, array, shapes[name], array.chunk_shape)
        _write_values(chunk_path(self._folder, "segments", 0, SEGMENTS), segments)
        _write_metadata(self._folder, "segments", SEGMENTS, segments.shape, segments.shape)
        write_group(self._folder, {**attributes, "num_bars": self.num_bars})

    def _empty_chunk(self) -> Rows:
        return Rows(**{
            name: np.empty(array.chunk_shape, array.dtype) for name, array in self._arrays.items()
        })  # fmt: skip

    def _await(self, slot: int) -> None:
        pending, self._pending[slot] = self._pending[slot], None
        if pending is not None:
            pending.result()

    def _write(self, chunk: Rows, index: int) -> None:
        for name, array in self._arrays.items():
            _write_values(chunk_path(self._folder, name, index, array), getattr(chunk, name))


def write_group(folder: Path, attributes: dict[str, Any]) -> None:
    """Write a group's metadata with its attributes, ``complete`` among them, in one step."""
    document = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **attributes,
            "complete": True,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{METADATA}"
    beside.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(beside, folder / METADATA)


def write_universe(folder: Path, symbols: list[str], attributes: dict[str, Any]) -> None:
    """Write the group above the groups of several instruments."""
    groups = {symbol: group_name(symbol) for symbol in symbols}
    write_group(folder, {"kind": "universe", "instruments": groups, **attributes})


def _write_values(path: Path, values: NDArray[Any]) -> None:
    little_endian = values.astype(values.dtype.newbyteorder("<"), copy=False)
    data = memoryview(np.ascontiguousarray(little_endian).reshape(-1).view(np.uint8).data)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        while data:
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def _write_metadata(
    folder: Path, name: str, array: ArrayFormat, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    import zarr
    from zarr.codecs import BytesCodec

    # In memory: zarr writes from threads of its own, which an interrupt does not stop.
    documents: dict[str, Any] = {}
    zarr.create_array(
        documents, shape=shape, chunks=chunks, dtype=array.dtype,
        filters=None, compressors=None, serializer=BytesCodec(endian="little"),
        fill_value=False if array.dtype == "bool" else 0,
        zarr_format=3, dimension_names=array.dimensions,
    )  # fmt: skip
    (folder / name / METADATA).write_bytes(documents[METADATA].to_bytes())
