"""A store as plain files: windows and masks for NumPy, bars as Parquet, splits as JSON.

Everything is written front to back, a batch at a time, so that memory stays small whatever the
size of the export.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moola_features.bars.checks import PRICES
from moola_features.errors import ConfigError, MoolaError, OutputError, WindowError
from moola_features.files import replaced_folder, require_named, steady_path
from moola_features.remote.objects import require_local
from moola_features.splits import DEFAULT_SHARES, split_windows
from moola_features.store import Store, open_store, read_json
from moola_features.store.layout import CHUNK_BARS, require_outside
from moola_features.times import time_text
from moola_features.versions import versions
from moola_features.windows import Windows, valid_starts

FORMAT = "moola-export"
FORMAT_VERSION = 1
METADATA = "metadata.json"
BATCH_BYTES = 16 * 2**20  # of windows in memory

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes
    ----------
    path
        The folder.
    files
        Size in bytes of each file, by name.
    num_bars
        Bars of the store.
    num_windows, num_valid_windows
        Windows on the grid, and those of which every bar is valid; 0 when not asked for.
    splits
        Number of windows in each split.
    seconds
        Wall time.
    """

    path: Path
    files: dict[str, int]
    num_bars: int
    num_windows: int
    num_valid_windows: int
    splits: dict[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {**asdict(self), "path": str(self.path)}


def export_store(
    store: Store | str | Path,
    folder: str | Path,
    *,
    stride: int = 52,
    length: int | None = None,
    splits: Mapping[str, float] = DEFAULT_SHARES,
    per_split: bool = False,
    windows: bool = True,
    bars: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a store as plain files that need no moola to read.

    With F features, and N windows of K bars on a grid that begins at each segment's first bar:

    - ``features_{F}d.npy`` float32 ``[N, K, F]``, windows with bars that are not valid yet among
      them, and ``valid_mask.npy`` bool ``[N, K]``;
    - ``starts.npy`` int64 ``[N]``, the first bar of each window, and ``start_time.npy`` int64
      ``[N]``, its time in ns since 1970 UTC;
    - ``splits.json``: for each split the numbers of its windows. All their bars are valid; splits
      follow each other in time, and neither a window's bars nor its warm-up are in an earlier one;
    - ``bars.parquet``: time, prices, features and validity of every bar;
    - ``metadata.json``: what all of it is, and where it came from.

    Parameters
    ----------
    store
        A store of one instrument, or its folder.
    folder
        Where to write; it appears when everything is written.
    stride
        Bars from one window's start to the next one's.
    length
        Bars in a window, K; the configuration's ``window_length`` when None.
    splits
        Share of the valid windows by split, in order of time.
    per_split
        Write one pair of files for each split, such as ``train_features_{F}d.npy`` and
        ``train_valid_mask.npy``, with its windows only, instead of one pair for all.
    windows, bars
        Whether to write the windows and their splits, and ``bars.parquet``.
    force
        Replace an earlier export.
    progress
        Called with windows and bars written so far, and in all.

    Returns
    -------
    ExportReport
        Files and counts.

    Raises
    ------
    StoreNotFoundError, StoreError
        As for :func:`open_store`; also an address.
    ConfigError
        Several instruments, shares that cannot be split by, or nothing to write.
    WindowError
        A length or stride below 1, or a length that no segment has.
    OutputError
        A folder that is inside a store, or not empty and not to be replaced; a full disk; no
        permission.

    Examples
    --------
    >>> import tempfile
    >>> import moola_features as mf
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     built = mf.build(mf.synthesise(3_000).bars, f"{folder}/bars.zarr")
    ...     report = export_store(built.path, f"{folder}/plain")
    ...     np.load(f"{folder}/plain/features_11d.npy").shape
    (56, 105, 11)
    """
    began = time.perf_counter()
    opened = _one_store(store)
    require_named(folder)
    target = steady_path(folder)
    if not windows and (per_split or not bars):
        asked = "per_split" if per_split else "bars = False"
        raise ConfigError(f"windows = False and {asked} leave nothing to write; drop one of them")
    require_outside(target)
    _require_replaceable(target, force=force)
    export = _Export(opened, progress)
    if windows:
        export.plan_windows(length, stride, splits)
    with replaced_folder(target) as beside:
        export.write(beside, per_split=per_split, bars=bars)
    return ExportReport(
        path=target,
        files={path.name: path.stat().st_size for path in sorted(target.iterdir())},
        **export.counts,
        seconds=time.perf_counter() - began,
    )


class _Export:
    """One store on its way into one folder."""

    def __init__(self, store: Store, progress: Progress | None) -> None:
        self.store = store
        self.counts: dict[str, Any] = {
            "num_bars": len(store), "num_windows": 0, "num_valid_windows": 0, "splits": {},
        }  # fmt: skip
        self._grid: Windows | None = None
        self._splits: dict[str, NDArray[np.int64]] = {}
        self._window_metadata: dict[str, Any] = {}
        self._split_metadata: dict[str, Any] = {}
        self._files: dict[str, dict[str, Any]] = {}
        self._progress = progress
        self._done = self._total = 0

    def plan_windows(self, length: int | None, stride: int, shares: Mapping[str, float]) -> None:
        """Lay the grid and divide its valid windows among the splits."""
        store = self.store
        length = store.windows(length, stride).length  # refuses what cannot work
        every_bar = np.broadcast_to(np.True_, len(store))
        starts = valid_starts(every_bar, store.segments, length, stride)
        if len(starts) == 0:
            raise WindowError(f"no segment has {length} bars in a row; give a smaller length")
        # Validity begins once in a segment and never ends, so a window's first bar tells.
        numbers = np.flatnonzero(store.valid[starts])
        warmup = store.config.first_valid_index
        purge = length - 1 + warmup
        splits = split_windows(starts[numbers], purge, shares)
        self._grid = Windows(store.features, starts, length)
        self._splits = {name: numbers[positions] for name, positions in splits.items()}
        self.counts["num_windows"] = len(starts)
        self.counts["num_valid_windows"] = len(numbers)
        self.counts["splits"] = {name: len(split) for name, split in splits.items()}
        self._window_metadata = {"window_length": length, "stride": stride}
        self._split_metadata = {
            "shares": dict(shares),
            "purge_bars": purge,
            "purge_rule": (
                f"a split's first window starts more than {purge} bars (window_length {length} "
                f"- 1 + {warmup} bars of warm-up) after the start of the last window before it"
            ),
        }

    def write(self, folder: Path, *, per_split: bool, bars: bool) -> None:
        """Write all files."""
        grid = self._grid
        if grid is not None:
            parts = {"": np.arange(len(grid))}
            if per_split:
                parts = {f"{name}_": numbers for name, numbers in self._splits.items()}
            self._total += sum(len(numbers) for numbers in parts.values())
        self._total += len(self.store) if bars else 0
        if grid is not None:
            for prefix, numbers in parts.items():
                self._write_windows(folder, grid, prefix, numbers)
            self._write_index(folder, grid)
            self._write_splits(folder)
        if bars:
            self._write_bars(folder)
        _write_json(folder / METADATA, self._metadata())

    def _write_windows(
        self, folder: Path, grid: Windows, prefix: str, numbers: NDArray[np.int64]
    ) -> None:
        """Write the features and masks of some windows, batch by batch."""
        num_features = grid.features.shape[1]
        shape = (len(numbers), grid.length, num_features)
        features = f"{prefix}features_{num_features}d.npy"
        mask = f"{prefix}valid_mask.npy"
        size = max(1, BATCH_BYTES // (grid.length * num_features * grid.features.itemsize))
        within = np.arange(grid.length)
        with (
            self._array(folder, features, np.float32, shape, "windows") as add_features,
            self._array(folder, mask, np.bool_, shape[:2], "whether a bar is valid") as add_mask,
        ):
            for first in range(0, len(numbers), size):
                batch = numbers[first : first + size]
                add_features(grid.gather(batch))
                add_mask(self.store.valid[grid.starts[batch][:, None] + within])
                self._advance(len(batch))

    def _write_index(self, folder: Path, grid: Windows) -> None:
        """Write where and when the windows of the grid begin."""
        times = self.store.time[grid.starts]
        meaning = "first bar of each window of the grid"
        with self._array(folder, "starts.npy", np.int64, grid.starts.shape, meaning) as add:
            add(grid.starts)
        meaning = "time of that bar, ns since 1970 UTC"
        with self._array(folder, "start_time.npy", np.int64, times.shape, meaning) as add:
            add(times)

    def _write_splits(self, folder: Path) -> None:
        windows = {name: numbers.tolist() for name, numbers in self._splits.items()}
        _write_json(folder / "splits.json", {**self._split_metadata, "windows": windows})
        self._files["splits.json"] = {
            "meaning": "windows of each split, as positions in starts.npy; all their bars are valid"
        }

    def _write_bars(self, folder: Path) -> None:
        """Write one row a bar, one row group a chunk."""
        store = self.store
        fields = [
            ("time", pa.timestamp("ns", tz="UTC")),
            *((name, pa.float64()) for name in PRICES),
            *((name, pa.float32()) for name in store.names),
            ("valid", pa.bool_()),
        ]
        schema = pa.schema(fields)
        # A file of our own rather than a path: a full disk then surfaces as an OSError.
        with (
            (folder / "bars.parquet").open("wb") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            for first in range(0, len(store), CHUNK_BARS):
                rows = slice(first, first + CHUNK_BARS)
                columns = [
                    store.time[rows].view("datetime64[ns]"),
                    *np.ascontiguousarray(store.ohlc[rows].T),
                    *np.ascontiguousarray(store.features[rows].T),
                    store.valid[rows],
                ]
                arrays = [
                    pa.array(values, type=field.type)
                    for values, field in zip(columns, schema, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                self._advance(len(columns[0]))
        self._files["bars.parquet"] = {
            "meaning": "time, prices, features and validity of every bar",
            "shape": [len(store), len(schema)],
        }

    def _metadata(self) -> dict[str, Any]:
        attributes = self.store.attributes
        told = ("symbol", "features", "config", "input", "dropped")
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "store": self.store.path.name,
            **{name: attributes.get(name) for name in told},
            **self._window_metadata,
            **self.counts,
            "first_time": time_text(int(self.store.time[0])),
            "last_time": time_text(int(self.store.time[-1])),
            "files": self._files,
            "store_versions": attributes.get("versions"),
            "export_versions": versions(),
        }

    @contextlib.contextmanager
    def _array(
        self, folder: Path, name: str, dtype: Any, shape: tuple[int, ...], meaning: str
    ) -> Iterator[Callable[[NDArray[Any]], None]]:
        """Write an .npy file piece by piece.

        Not as a mapping of the file: on a full disk that ends the process, and its pages count as
        this process's memory until they are written.
        """
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        self._files[name] = {
            "meaning": meaning, "dtype": np.dtype(dtype).name, "shape": list(shape),
        }  # fmt: skip
        with (folder / name).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda values: _write_all(file, values, descr)

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _write_all(file: Any, values: NDArray[Any], descr: Any) -> None:
    file.write(np.ascontiguousarray(values, dtype=descr).data.cast("B"))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def _one_store(store: Store | str | Path) -> Store:
    require_local(store, "export")
    opened = open_store(store) if isinstance(store, str | Path) else store
    if isinstance(opened, Store):
        return opened
    raise ConfigError(
        f"{opened.path} holds several instruments: {', '.join(list(opened)[:20])}; "
        "export them one by one"
    )


def _require_replaceable(target: Path, *, force: bool) -> None:
    """Refuse to replace anything but an earlier export, and that only when asked to."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file; give a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise OutputError(f"{target} is not empty; pass --force to replace an earlier export")
    try:
        ours = read_json(target / METADATA, "export").get("format") == FORMAT
    except MoolaError:
        ours = False
    if not ours:
        raise OutputError(f"{target} holds no earlier export, so it is kept; give another folder")
