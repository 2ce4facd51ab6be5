"""Format 1 of the store: names, types, chunks and paths that writer and reader agree on."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moola_features.errors import BarsError, OutputError

FORMAT = "moola"
FORMAT_VERSION = 1
METADATA = "zarr.json"
CHUNK_BARS = 65_536  # rows of a chunk file: whole pages for every array, so that it maps

_NAME_BYTES = 255 - len("..building")  # of a file system's name, and a build's beside it
_ITEM_BYTES = {"float32": 4, "int64": 8, "bool": 1, "float64": 8}


@dataclass(frozen=True, slots=True)
class ArrayFormat:
    """One array of a store: its type, what a row holds, and its dimensions' names."""

    dtype: str
    row: tuple[int, ...]
    dimensions: tuple[str, ...]

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk."""
        return (CHUNK_BARS, *self.row)


def bar_arrays(num_columns: int) -> dict[str, ArrayFormat]:
    """Arrays with one row a bar."""
    return {
        "features": ArrayFormat("float32", (num_columns,), ("bar", "feature")),
        "time": ArrayFormat("int64", (), ("bar",)),
        "valid": ArrayFormat("bool", (), ("bar",)),
        "ohlc": ArrayFormat("float64", (4,), ("bar", "price")),
    }


SEGMENTS = ArrayFormat("int64", (2,), ("segment", "bound"))  # [start, stop), one chunk


def array_document(
    array: ArrayFormat, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> dict[str, Any]:
    """Metadata of an array, without what is empty in it.

    The writer has it made by zarr, which takes too long to import for those who only read.
    """
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "fill_value": False if array.dtype == "bool" else 0,
        "dimension_names": list(array.dimensions),
    }


def chunk_bytes(array: ArrayFormat) -> int:
    """Size of a chunk file."""
    return math.prod(array.chunk_shape) * _ITEM_BYTES[array.dtype]


def num_chunks(num_bars: int) -> int:
    """Files of one array that so many bars take.

    Examples
    --------
    >>> num_chunks(65_536), num_chunks(65_537)
    (1, 2)
    """
    return -(-num_bars // CHUNK_BARS)


def chunk_path(folder: Path, name: str, index: int, array: ArrayFormat) -> Path:
    """Path of a chunk file: the index along the bars, then a 0 for each other dimension."""
    return folder.joinpath(name, "c", str(index), *("0" for _ in array.row))


def group_name(symbol: str) -> str:
    """Name of an instrument's group: its symbol, with what a path cannot hold percent-quoted.

    Examples
    --------
    >>> group_name("BTC/USD")
    'BTC%2FUSD'

    Raises
    ------
    BarsError
        A name that is longer than a file system takes.
    """
    name = quote(symbol, safe="")
    taken = name[:1] in {".", "_"} or name == METADATA
    name = f"%{ord(name[0]):02X}{name[1:]}" if taken else name
    if len(name) > _NAME_BYTES:
        raise BarsError(
            f"symbol {symbol!r} makes a folder's name of {len(name)} bytes, percent-quoted; give "
            f"it a shorter one, of {_NAME_BYTES} at most"
        )
    return name


def require_outside(target: Path) -> None:
    """Refuse to write into a store, of which the next build would leave nothing else.

    Raises
    ------
    OutputError
        A target that is in a store, or in a group of one.
    """
    for folder in Path(os.path.realpath(target)).parents:
        if (folder / METADATA).exists():
            raise OutputError(
                f"{target} is inside the store {folder}, and the next build would delete it; "
                "choose another folder"
            )
