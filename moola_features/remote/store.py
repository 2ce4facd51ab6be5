"""Stores in an object store, read chunk by chunk through a cache on the local disk."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from moola_features.config import FeatureConfig
from moola_features.errors import StoreError, StoreNotFoundError
from moola_features.remote.cache import ChunkCache
from moola_features.remote.objects import Objects
from moola_features.store import attributes_in, cuts
from moola_features.store.checksums import from_text, has_checksums
from moola_features.store.instruments import Instruments
from moola_features.store.layout import (
    CHUNK_BARS,
    METADATA,
    SEGMENTS,
    ArrayFormat,
    bar_arrays,
    chunk_bytes,
    chunk_path,
)
from moola_features.times import TimeLike
from moola_features.universe.windows import UniverseWindows, chosen_symbols

_KEPT_CHUNKS = 32  # of an array in memory: 92 MB of features

_REBUILD = "rebuild it with `moola-features build ... --force`"


class RemoteArray:
    """An array of a remote store; slices of rows are read, and nothing else.

    Attributes
    ----------
    shape, dtype
        As of the array.
    """

    def __init__(
        self,
        objects: Objects,
        name: str,
        array: ArrayFormat,
        num_bars: int,
        checksums: list[int],
        cache: ChunkCache,
    ) -> None:
        self.shape = (num_bars, *array.row)
        self.dtype = np.dtype(array.dtype)
        self._objects = objects
        self._name = name
        self._array = array
        self._checksums = checksums
        self._cache = cache
        self._guard = threading.Lock()
        self._chunks: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<RemoteArray {self._name}: {self.dtype} {list(self.shape)}>"

    def __getitem__(self, rows: int | slice) -> NDArray[Any]:
        """Return a row, or rows ``start:stop``.

        Raises
        ------
        IndexError
            A row outside the array.
        StoreError
            A step, or a chunk that is missing or damaged.
        RemoteError
            A store that cannot be reached.
        """
        if not isinstance(rows, slice):
            row = range(len(self))[rows]
            (found,) = self[row : row + 1]
            return found  # type: ignore[no-any-return]
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise StoreError(f"{self._name}[{rows!r}]: take rows by a slice such as [start:stop]")
        first, last = start // CHUNK_BARS, max(start, stop - 1) // CHUNK_BARS
        parts = [
            self._chunk(index)[
                max(start - index * CHUNK_BARS, 0) : max(stop - index * CHUNK_BARS, 0)
            ]
            for index in range(first, last + 1 if stop > start else first)
        ]
        if not parts:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all of it."""
        return np.asarray(self[:], dtype)

    def _chunk(self, index: int) -> NDArray[Any]:
        with self._guard:
            if index in self._chunks:
                self._chunks.move_to_end(index)
                return self._chunks[index]
        path = chunk_path(Path(), self._name, index, self._array).as_posix()
        data = self._cache.get(
            self._objects, path, self._checksums[index], chunk_bytes(self._array)
        )
        values = np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(-1, *self._array.row)
        with self._guard:
            self._chunks[index] = values
            if len(self._chunks) > _KEPT_CHUNKS:
                self._chunks.popitem(last=False)
        return values


class RemoteStore:
    """One instrument's features, bars and provenance in an object store.

    Attributes
    ----------
    path
        The address.
    features, time, valid, ohlc
        As of :class:`Store`; each a :class:`RemoteArray`.
    segments, config, attributes
        As of :class:`Store`.
    """

    def __init__(self, objects: Objects, attributes: dict[str, Any], cache: ChunkCache) -> None:
        self.path = objects.address
        self.attributes = attributes
        if not has_checksums(attributes):
            raise StoreError(f"{self.path} has no checksums, so it is not cached; {_REBUILD}")
        try:
            self.config = FeatureConfig.from_dict(attributes["config"])
            self.num_bars = int(attributes["num_bars"])
            known = attributes["checksums"]
            checksums = {name: from_text(known[name]) for name in (*bar_arrays(0), "segments")}
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{self.path}: attributes cannot be read: {error!r}; {_REBUILD}"
            ) from error
        self.names = self.config.names
        self.features, self.time, self.valid, self.ohlc = (
            RemoteArray(objects, name, array, self.num_bars, checksums[name], cache)
            for name, array in bar_arrays(len(self.names)).items()
        )
        num_bytes = 16 * int(attributes["num_segments"])
        path = chunk_path(Path(), "segments", 0, SEGMENTS).as_posix()
        data = cache.get(objects, path, checksums["segments"][0], num_bytes)
        bounds = np.frombuffer(data, "<i8")
        if not cuts(bounds, self.num_bars):
            raise StoreError(f"{self.path} is not cut into segments; {_REBUILD}")
        self.segments: NDArray[np.int64] = bounds.reshape(-1, 2)

    def __len__(self) -> int:
        return self.num_bars

    def __repr__(self) -> str:
        return f"<RemoteStore {self.path}: {self.num_bars:,} bars, {len(self.names)} features>"

    def windows(
        self,
        length: int | None = None,
        stride: int = 1,
        *,
        start: TimeLike | None = None,
        stop: TimeLike | None = None,
        segment: int | None = None,
    ) -> UniverseWindows:
        """Index the valid windows, as of one instrument; see :meth:`Store.windows`."""
        symbol = str(self.attributes.get("symbol") or "")
        return UniverseWindows.of(
            [(symbol, self, self.features)], length, stride,
            start=start, stop=stop, segment=segment,
        )  # fmt: skip

    def refresh(self) -> NoReturn:
        """Refuse what :meth:`Store.refresh` does."""
        _refuse_refresh(self.path)


class RemoteUniverse(Instruments[RemoteStore]):
    """Several instruments' stores below one address, by symbol."""

    def __init__(self, objects: Objects, attributes: dict[str, Any], cache: ChunkCache) -> None:
        super().__init__(objects.address, attributes)
        self._objects = objects
        self._cache = cache

    def _open(self, symbol: str) -> RemoteStore:
        objects = self._objects.below(self._groups[symbol])
        store = RemoteStore(objects, remote_attributes(objects), self._cache)
        self._require_ours(symbol, store.path, store.attributes)
        return store

    def refresh(self) -> NoReturn:
        """Refuse what :meth:`Universe.refresh` does."""
        _refuse_refresh(self.path)

    def windows(
        self,
        length: int | None = None,
        stride: int = 1,
        *,
        start: TimeLike | None = None,
        stop: TimeLike | None = None,
        symbols: Sequence[str] | None = None,
    ) -> UniverseWindows:
        """Index the valid windows of all instruments as one; see :meth:`Instruments.windows`."""
        chosen = chosen_symbols(self, symbols)
        stores = ((symbol, self[symbol], self[symbol].features) for symbol in chosen)
        return UniverseWindows.of(stores, length, stride, start=start, stop=stop)


def _refuse_refresh(address: str) -> NoReturn:
    raise StoreError(f"{address} is an address, which is not refreshed; open it again")


def open_remote(address: str, cache: ChunkCache | None = None) -> RemoteStore | RemoteUniverse:
    """Open a store, or a universe of stores, in an object store.

    Parameters
    ----------
    address
        Such as ``s3://bucket/universe.zarr``.
    cache
        Where chunks are kept; the user's own cache when None.

    Returns
    -------
    RemoteStore or RemoteUniverse
        Nothing but attributes and segments is read before it is asked for.

    Raises
    ------
    StoreNotFoundError, StoreError
        As for :func:`open_store`.
    RemoteError
        A store that cannot be reached.
    """
    objects = Objects(address)
    attributes = remote_attributes(objects)
    kind = RemoteUniverse if attributes.get("kind") == "universe" else RemoteStore
    return kind(objects, attributes, cache or ChunkCache())


def remote_attributes(objects: Objects) -> dict[str, Any]:
    """Read and check the attributes of a remote group."""
    data = objects.read(METADATA)
    if data is None:
        raise StoreNotFoundError(
            f"no finished store at {objects.address}; make one with `moola-features build`, or "
            "wait for a build that is on its way"
        )
    try:
        document = json.loads(data)
    except ValueError as error:
        raise StoreError(
            f"{objects.address}/{METADATA} cannot be read: {error}; {_REBUILD}"
        ) from error
    if not isinstance(document, dict):
        raise StoreError(f"{objects.address}/{METADATA} is no JSON object; {_REBUILD}")
    return attributes_in(document, objects.address)
