"""Writing a store: chunk files by whoever computed them, zarr-python's metadata, the mark last.

Chunks hold plain little-endian values, so they are written as they stand in memory: the bytes that
zarr-python would write, without its copies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moola_features.files import clear_folder
from moola_features.store import checksums
from moola_features.store.layout import (
    CHUNK_BARS,
    FORMAT,
    FORMAT_VERSION,
    METADATA,
    SEGMENTS,
    ArrayFormat,
    bar_arrays,
    chunk_bytes,
    chunk_path,
    group_name,
)

_DIRECT = getattr(os, "O_DIRECT", 0)  # which macOS has not


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

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return sum(values.nbytes for values in vars(self).values())

    @classmethod
    def empty_chunk(cls, num_columns: int) -> Self:
        """Return room for the rows of one chunk, in whole pages; what it holds is arbitrary."""
        made = {}
        for name, array in bar_arrays(num_columns).items():
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            pages = mmap.mmap(-1, chunk_bytes(array), flags=flags)
            made[name] = np.frombuffer(pages, array.dtype).reshape(array.chunk_shape)
        return cls(**made)


def write_chunk(
    folder: Path, index: int, chunk: Rows, num_rows: int = CHUNK_BARS
) -> dict[str, int]:
    """Write the files of one chunk and return their checksums by array.

    A file that is in the way is unlinked, never written into: somebody may have it mapped, or know
    it by another name.

    Parameters
    ----------
    folder, index
        The group, and the number of the chunk.
    chunk
        All its rows.
    num_rows
        Rows that hold bars; those behind them are zeros and become a hole in the file, which takes
        no room where the file system knows holes.
    """
    arrays = bar_arrays(chunk.features.shape[1])
    return {
        name: _write_values(
            chunk_path(folder, name, index, array),
            getattr(chunk, name),
            share=num_rows / CHUNK_BARS,
        )
        for name, array in arrays.items()
    }


def read_chunk(folder: Path, index: int, chunk: Rows) -> dict[str, int] | None:
    """Read the files of one chunk and return their checksums; None where one is not whole."""
    found = {}
    for name, array in bar_arrays(chunk.features.shape[1]).items():
        values = getattr(chunk, name)
        data = _bytes_of(values)
        try:
            with open(chunk_path(folder, name, index, array), "rb", buffering=0) as file:
                whole = file.readinto(data) == len(data) and not file.read(1)
        except OSError:
            return None
        if not whole:
            return None
        found[name] = checksums.checksum(data)
    return found


def finish_store(
    folder: Path,
    num_bars: int,
    chunk_checksums: dict[str, list[int]],
    segments: NDArray[np.int64],
    attributes: dict[str, Any],
) -> None:
    """Write what stands beside the chunks: the segments, the metadata, ``complete`` last.

    Parameters
    ----------
    folder
        The group, with its chunk files.
    num_bars
        Rows that they hold.
    chunk_checksums
        Checksums of the chunk files by array.
    segments
        int64 ``[S, 2]``.
    attributes
        Everything else that is known of the store; ``features`` tells the number of columns.
    """
    for name, array in bar_arrays(len(attributes["features"])).items():
        _remove_others(folder / name / "c", len(chunk_checksums[name]))
        _write_metadata(folder, name, array, (num_bars, *array.row), array.chunk_shape)
    written = _write_values(chunk_path(folder, "segments", 0, SEGMENTS), segments)
    _write_metadata(folder, "segments", SEGMENTS, segments.shape, segments.shape)
    values = {**chunk_checksums, "segments": [written]}
    texts = {name: checksums.as_text(found) for name, found in values.items()}
    known = {"algorithm": checksums.ALGORITHM, **texts}
    write_group(folder, {**attributes, "num_bars": num_bars}, known)


def write_group(
    folder: Path, attributes: dict[str, Any], known: dict[str, str] | None = None
) -> None:
    """Write a group's metadata with its attributes, ``complete`` among them, in one step."""
    told = {"format": FORMAT, "format_version": FORMAT_VERSION, **attributes}
    if known is not None:
        whole = {**told, "complete": True}
        told["checksums"] = {**known, "attributes": checksums.of_attributes(whole)}
    document = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {**told, "complete": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{METADATA}"
    beside.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    os.replace(beside, folder / METADATA)


def rewrite_attributes(folder: Path, attributes: dict[str, Any], news: dict[str, Any]) -> None:
    """Write the metadata of a group that stays as it is but for some attributes."""
    ours = ("format", "format_version", "checksums", "complete")
    rest = {name: value for name, value in attributes.items() if name not in ours}
    known = {name: value for name, value in attributes["checksums"].items() if name != "attributes"}
    write_group(folder, {**rest, **news}, known)


def write_universe(folder: Path, symbols: list[str], attributes: dict[str, Any]) -> None:
    """Write the group above the groups of several instruments."""
    groups = {symbol: group_name(symbol) for symbol in symbols}
    known = {"algorithm": checksums.ALGORITHM}  # of its attributes, it has no files of values
    write_group(folder, {"kind": "universe", "instruments": groups, **attributes}, known)


def _bytes_of(values: NDArray[Any]) -> memoryview:
    little_endian = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return memoryview(np.ascontiguousarray(little_endian).reshape(-1).view(np.uint8).data)


def _write_values(path: Path, values: NDArray[Any], *, share: float | None = None) -> int:
    """Write values; with a ``share`` past the cache, as far as that, and zeros behind it."""
    data = _bytes_of(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        if share is None:
            _write_all(handle, data)
        else:
            _bypass_cache(handle, True)
            pages = math.ceil(len(data) * share / mmap.PAGESIZE)
            _write_all(handle, data[: pages * mmap.PAGESIZE])
            os.ftruncate(handle, len(data))
    finally:
        os.close(handle)
    return checksums.checksum(data)


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(handle, data) :]
        except OSError as error:
            # The rest of a write that came up short, or a disk with larger blocks.
            if error.errno != errno.EINVAL or not _bypass_cache(handle, False):
                raise


def _bypass_cache(handle: int, wanted: bool) -> bool:
    """Let writes go past the page cache or not; return whether that was a change.

    Copying into the cache takes more of the processor than computing what is copied: on a virtual
    machine under Linux 6.18, 577 MB took 1.5 s of it, and 0.1 s past the cache.
    """
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    changed = flags | _DIRECT if wanted else flags & ~_DIRECT
    if changed == flags:
        return False
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, changed)
    except OSError:  # a file system that cannot
        return False
    return True


def _remove_others(folder: Path, num_files: int) -> None:
    """Remove chunks beyond the last one: those of a longer series that was cut off."""
    clear_folder(folder, keep={str(index) for index in range(num_files)})


def _write_metadata(
    folder: Path, name: str, array: ArrayFormat, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    document = {**_metadata_of(array), "shape": shape, "chunk_grid": grid}
    _replace_text(folder / name / METADATA, json.dumps(document, indent=2).encode())


@functools.cache
def _metadata_of(array: ArrayFormat) -> dict[str, Any]:
    """What zarr tells of an array; it takes 0.4 ms, and only shape and chunks ever change."""
    import zarr
    from zarr.codecs import BytesCodec

    # In memory: zarr writes from threads of its own, which an interrupt does not stop.
    documents: dict[str, Any] = {}
    zarr.create_array(
        documents, shape=array.chunk_shape, chunks=array.chunk_shape, dtype=array.dtype,
        filters=None, compressors=None, serializer=BytesCodec(endian="little"),
        fill_value=False if array.dtype == "bool" else 0,
        zarr_format=3, dimension_names=array.dimensions,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(documents[METADATA].to_bytes())
    return found


def _replace_text(path: Path, data: bytes) -> None:
    """Write a small file, unlinking what is in the way."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    path.write_bytes(data)
