"""Reading a store: chunk files mapped side by side, nothing copied, nothing half-built opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moola_features.config import FeatureConfig
from moola_features.errors import MoolaError, StoreError, StoreNotFoundError
from moola_features.remote.objects import is_remote, local_path
from moola_features.store.checksums import has_checksums, require_attributes, require_intact
from moola_features.store.instruments import Instruments
from moola_features.store.layout import (
    FORMAT,
    FORMAT_VERSION,
    METADATA,
    SEGMENTS,
    ArrayFormat,
    array_document,
    bar_arrays,
    chunk_bytes,
    chunk_path,
    num_chunks,
)
from moola_features.store.mapping import map_files
from moola_features.times import TimeLike, time_text
from moola_features.windows import Windows

if TYPE_CHECKING:
    from moola_features.universe.windows import UniverseWindows

_Found = TypeVar("_Found")

_REBUILD = "rebuild it with `moola-features build ... --force`"
_SHOWN = 200  # characters of a value in a message


class Store:
    """One instrument's features, bars and provenance, mapped from disk.

    A store that is rebuilt while it is open keeps serving what it was opened on.

    Attributes
    ----------
    path
        Folder of the group.
    features
        float32 ``[T, F]``, read-only.
    time
        int64 ``[T]``, ns since 1970 UTC, start of each bar.
    valid
        bool ``[T]``.
    ohlc
        float64 ``[T, 4]``: open, high, low, close.
    segments
        int64 ``[S, 2]``: [start, stop).
    config
        The configuration that it was built with.
    attributes
        Everything else that is known of it: input, state, versions, gaps, dropped bars.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        try:
            self.config = FeatureConfig.from_dict(attributes["config"])
            self.num_bars = int(attributes["num_bars"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: attributes cannot be read: {error!r}; {_REBUILD}") from error
        self.names = self.config.names
        arrays = bar_arrays(len(self.names))
        mapped = {name: self._map(name, array) for name, array in arrays.items()}
        self.features: NDArray[np.float32] = mapped["features"]
        self.time: NDArray[np.int64] = mapped["time"]
        self.valid: NDArray[np.bool_] = mapped["valid"]
        self.ohlc: NDArray[np.float64] = mapped["ohlc"]
        self.segments = self._read_segments()

    def __len__(self) -> int:
        return self.num_bars

    def __repr__(self) -> str:
        return (
            f"<Store {self.path.name}: {self.num_bars:,} bars, {len(self.names)} features, "
            f"{time_text(int(self.time[0]))} to {time_text(int(self.time[-1]))}>"
        )

    def windows(
        self,
        length: int | None = None,
        stride: int = 1,
        *,
        start: TimeLike | None = None,
        stop: TimeLike | None = None,
        segment: int | None = None,
    ) -> Windows:
        """Index the valid windows: all their bars valid, and in one segment.

        Parameters
        ----------
        length
            Bars in a window; the configuration's ``window_length`` when None.
        stride
            Bars from one window's start to the next one's, counted afresh in every segment.
        start, stop
            Only windows whose bars all lie in [start, stop): ns, ISO text or ``datetime``, UTC.
        segment
            Only windows of one segment.

        Returns
        -------
        Windows
            ``len()``, indexing, ``starts`` and ``gather``.

        Raises
        ------
        WindowError
            A length or stride below 1, or a segment that is not there.
        """
        return Windows.of(self, length, stride, start=start, stop=stop, segment=segment)

    def refresh(self) -> bool:
        """Go over to what stands at the path now: bars may have been appended.

        Arrays and windows that were taken before keep serving what they did.

        Returns
        -------
        bool
            Whether anything is new.

        Raises
        ------
        StoreNotFoundError, StoreError
            As for :func:`open_store`; also a store of another configuration, whose columns mean
            something else. This one serves on as before.

        Examples
        --------
        >>> import tempfile
        >>> import moola_features as mf
        >>> bars = mf.synthesise(2_000).bars
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = mf.build(bars[:1_500], f"{folder}/bars.zarr").path
        ...     store = mf.open_store(path)
        ...     report = mf.build(bars, path, append=True)
        ...     len(store), store.refresh(), len(store), store.refresh()
        (1500, True, 2000, False)
        """
        if undisturbed(self.path, lambda: read_attributes(self.path)) == self.attributes:
            return False
        fresh = open_store(self.path)
        if not isinstance(fresh, Store):
            raise StoreError(f"{self.path} holds several instruments now; open it anew")
        require_config(fresh.path, fresh.config, self.config)
        vars(self).update(vars(fresh))
        return True

    def _map(self, name: str, array: ArrayFormat) -> NDArray[Any]:
        self._check_metadata(name, array, (self.num_bars, *array.row), array.chunk_shape)
        dtype = np.dtype(array.dtype).newbyteorder("<")
        indices = range(num_chunks(self.num_bars))
        paths = [chunk_path(self.path, name, index, array) for index in indices]
        values = map_files(paths, chunk_bytes(array)).view(dtype).reshape(-1, *array.row)
        return values[: self.num_bars]

    def _read_segments(self) -> NDArray[np.int64]:
        path = chunk_path(self.path, "segments", 0, SEGMENTS)
        try:
            segments = np.fromfile(path, "<i8")
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}; {_REBUILD}") from error
        shape = (len(segments) // 2, 2)
        self._check_metadata("segments", SEGMENTS, shape, shape)
        if len(segments) % 2 or not cuts(segments, self.num_bars):
            raise StoreError(f"{path} does not cut {self.num_bars} bars into segments; {_REBUILD}")
        segments = segments.reshape(shape).astype(np.int64, copy=False)
        segments.flags.writeable = False
        return segments

    def _check_metadata(
        self, name: str, array: ArrayFormat, shape: tuple[int, ...], chunks: tuple[int, ...]
    ) -> None:
        path = self.path / name / METADATA
        document = read_json(path, f"array {name!r} of {self.path}")
        if array.dtype == "bool" and document.get("codecs") == [{"name": "bytes"}]:
            # A single byte needs no order, newer zarr names none.
            document["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        _require_document(path, document, array_document(array, shape, chunks))


class Universe(Instruments[Store]):
    """Several instruments' stores under one folder, by symbol; each is opened when asked for.

    All of them are of one build. When the universe was rebuilt meanwhile, stores that are open
    serve on, and one that is not is refused until :meth:`refresh`.

    Examples
    --------
    ``open_store("universe.zarr")["ETHUSD"]`` is a :class:`Store`.
    """

    path: Path

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        super().__init__(path, attributes)
        self._build = _build_of(path)

    def open_afresh(self, symbol: str) -> Store:
        """Open an instrument's store, and do not keep it: its mappings go with whoever has it."""
        try:
            opened = open_store(self.folder_of(symbol))
            if not isinstance(opened, Store):
                raise StoreError(f"{opened.path} is a universe inside a universe; {_REBUILD}")
            self._require_ours(symbol, opened.path, opened.attributes)
        except MoolaError:
            self._require_same_build(symbol)  # which tells why, if it is of another one
            raise
        self._require_same_build(symbol)
        return opened

    def refresh(self) -> bool:
        """Go over to what stands at the path now: instruments may have grown, come or gone.

        Stores, arrays and windows that were taken before keep serving what they did.

        Returns
        -------
        bool
            Whether the universe was built again since.

        Raises
        ------
        StoreNotFoundError, StoreError
            As for :func:`open_store`; also a universe of another configuration, whose columns
            mean something else. This one stays as before.

        Examples
        --------
        >>> import tempfile
        >>> import moola_features as mf
        >>> import polars as pl
        >>> bars = mf.synthesise(400).bars
        >>> fields = ("time", "open", "high", "low", "close")
        >>> table = pl.DataFrame({name: getattr(bars, name) for name in fields})
        >>> nq, es = (table.with_columns(symbol=pl.lit(symbol)) for symbol in ("NQ", "ES"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = mf.build(pl.concat([nq[:300], es]), f"{folder}/u.zarr").path
        ...     universe = mf.open_store(path)
        ...     report = mf.build(nq, path, append=True)
        ...     universe.refresh(), len(universe["NQ"]), universe.refresh()
        (True, 400, False)
        """
        if _build_of(self.path) == self._build:
            return False
        fresh = open_store(self.path)
        if not isinstance(fresh, Universe):
            raise StoreError(f"{self.path} holds one instrument now; open it anew")
        known, found = (FeatureConfig.from_dict(x.attributes["config"]) for x in (self, fresh))
        require_config(fresh.path, found, known)
        vars(self).update(vars(fresh))
        return True

    def _require_same_build(self, symbol: str) -> None:
        if _build_of(self.path) not in (None, self._build):
            raise StoreError(
                f"{self.path} was rebuilt since it was opened, so its {symbol} is not opened "
                "beside others of before; call refresh(), or open it again"
            )

    def _open(self, symbol: str) -> Store:
        return self.open_afresh(symbol)

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
        from moola_features.universe.windows import index_universe

        return index_universe(self, length, stride, start=start, stop=stop, symbols=symbols)

    def folder_of(self, symbol: str) -> Path:
        """Return where the store of an instrument lies."""
        return self.path / self._groups[symbol]


def open_store(
    path: str | Path, config: FeatureConfig | None = None, *, check: bool = False
) -> Any:
    """Open a store, or a universe of stores.

    Parameters
    ----------
    path
        Folder that ``build`` made, or an address such as ``s3://bucket/universe.zarr``.
    config
        When given, the configuration that the store must have been built with.
    check
        Whether to read every file and compare its checksum: some seconds for a gigabyte. What
        comes from an address is compared in any case.

    Returns
    -------
    Store or Universe
        Mapped arrays of one instrument; for a file of several instruments a mapping from
        symbol to store.
    RemoteStore or RemoteUniverse
        The same of an address: arrays are fetched chunk by chunk, when slices of rows are asked
        for, and windows are :class:`UniverseWindows`. None is refreshed, drawn, exported or
        verified.

    Raises
    ------
    StoreNotFoundError
        Nothing there.
    StoreError
        No store, an unfinished or damaged one, one of a newer format or of another
        configuration, or, with ``check``, without checksums; the message says what to do.
    """
    place = local_path(path)
    if is_remote(place):
        return _open_remote(str(place), config)
    folder = Path(place)
    return undisturbed(folder, lambda: _open(folder, config, check))


def _open_remote(address: str, config: FeatureConfig | None) -> Any:
    from moola_features.remote.store import RemoteStore, open_remote

    opened = open_remote(address)
    if config is not None:
        for store in [opened] if isinstance(opened, RemoteStore) else opened.values():
            require_config(store.path, store.config, config)
    return opened


def _open(folder: Path, config: FeatureConfig | None, check: bool) -> Store | Universe:
    attributes = read_attributes(folder)
    is_universe = attributes.get("kind") == "universe"
    opened = Universe(folder, attributes) if is_universe else Store(folder, attributes)
    if isinstance(opened, Universe) and check and has_checksums(attributes):  # older ones have none
        require_attributes(folder, attributes)
    if config is None and not check:
        return opened
    for store in opened.values() if isinstance(opened, Universe) else [opened]:
        if check:
            require_intact(store.path, store.attributes, len(store.names))
        if config is not None:
            require_config(store.path, store.config, config)
    return opened


def _build_of(folder: Path) -> tuple[int, int, int] | None:
    """What tells one build of a universe from the next: each writes its metadata anew."""
    try:
        status = (folder / METADATA).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def cuts(bounds: NDArray[np.int64], num_bars: int) -> bool:
    """Whether pairs of bounds cut bars into segments: one begins where the one before it ends."""
    edges = np.concatenate([[0], bounds[1::2]])
    in_turn = np.array_equal(edges[:-1], bounds[::2]) and (np.diff(edges) > 0).all()
    return bool(in_turn and edges[-1] == num_bars)


def undisturbed(folder: Path, read: Callable[[], _Found]) -> _Found:
    """Read a store by its path; anew, if a rebuild took that path's place meanwhile.

    Files are opened one by one, so some of them might be the old store's and others the new one's.
    """
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return read()  # which says what is wrong
        try:
            found = read()
        except (MoolaError, OSError):
            if _stands(folder, handle):
                raise
        else:
            if _stands(folder, handle):
                return found
        finally:
            os.close(handle)


def _stands(folder: Path, handle: int) -> bool:
    """Whether a path still leads to a folder; while that is open, its inode is not reused."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


def read_attributes(folder: Path) -> dict[str, Any]:
    """Read and check a group's attributes: a finished store, of a format that is known here."""
    try:
        if not folder.exists():
            raise StoreNotFoundError(f"no store at {folder}; make one with `moola-features build`")
        if not folder.is_dir():
            raise StoreError(f"{folder} is a file, not a store; give the folder that build made")
        if not (folder / METADATA).exists():
            raise StoreError(f"{folder} is not a finished store: it has no {METADATA}; {_REBUILD}")
    except MoolaError:
        raise
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be read: {error.strerror}; mend its permissions"
        ) from error
    return attributes_in(read_json(folder / METADATA, f"store {folder}"), folder)


def attributes_in(document: dict[str, Any], folder: Path | str) -> dict[str, Any]:
    """Check the attributes in a group's metadata; ``folder`` is what messages call it."""
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise StoreError(f"{folder} is a Zarr group that moola did not make; give another folder")
    version = attributes.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"{folder} has format version {version}, this moola reads up to {FORMAT_VERSION}; "
            "upgrade moola, or rebuild the store with this one"
        )
    if attributes.get("complete") is not True:
        raise StoreError(f"{folder} was not finished: complete is not true; {_REBUILD}")
    # Somebody may have had zarr gather the metadata of all arrays here; it is not read from there.
    own = {key: value for key, value in document.items() if key != "consolidated_metadata"}
    expected = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    _require_document(f"{folder}/{METADATA}", own, expected)
    return attributes


def _require_document(path: Path | str, document: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse metadata that another reader would take for anything else than what is mapped here."""
    for key in {**expected, **document}:
        here, there = document.get(key), expected.get(key)
        if here != there and (here or key in expected):  # more may stand there if it is empty
            raise StoreError(
                f"{path} is not as format {FORMAT_VERSION} has it: {key} is "
                f"{json.dumps(here)[:_SHOWN]}, not {json.dumps(there)}; {_REBUILD}"
            )


def require_config(path: Path | str, known: FeatureConfig, config: FeatureConfig) -> None:
    """Refuse a store of another configuration, naming the first setting that differs."""
    for name, wanted in config.to_dict().items():
        found = getattr(known, name)
        if found != wanted:
            raise StoreError(
                f"{path} was built with {name} = {found!r}, not {wanted!r}; "
                "rebuild it with --force, or build into another folder"
            )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object, or say which one cannot be."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{what} is missing: no {path}; {_REBUILD}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; {_REBUILD}") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path} is no JSON object; {_REBUILD}")
    return document
