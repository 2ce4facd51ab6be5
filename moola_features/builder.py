"""Bars in a file to features in a store, in bounded memory and in one step for every reader."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_features import spec
from moola_features.bars import Bars
from moola_features.config import FeatureConfig
from moola_features.engine import require_positive
from moola_features.errors import BarsError, StoreError
from moola_features.feature_pass import FeaturePass, kernel_of
from moola_features.files import replaced_folder
from moola_features.gaps import GapCensus
from moola_features.segments import segment_bounds, segment_starts
from moola_features.store import open_store
from moola_features.store.layout import FORMAT, METADATA, bar_arrays, group_name
from moola_features.store.summary import Summary, summarise
from moola_features.store.writer import StoreWriter, write_universe
from moola_features.stream import saved_state

Progress = Callable[[int, int | None], None]
_STAGES = ("import", "compile", "read", "compute", "write")


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    path
        The store.
    instruments
        What is known of each symbol's bars.
    seconds
        Wall time by stage, each what the build waited for it: import, compile, read, compute,
        write; ``total`` is their sum.
    up_to_date
        Whether the store was already what was asked for, and was left alone.
    """

    path: Path
    instruments: tuple[Summary, ...]
    seconds: dict[str, float]
    up_to_date: bool = False

    @property
    def num_bars(self) -> int:
        """Bars of all instruments."""
        return sum(instrument.num_bars for instrument in self.instruments)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "path": str(self.path),
            "up_to_date": self.up_to_date,
            "num_bars": self.num_bars,
            "seconds": self.seconds,
            "instruments": [instrument.to_dict() for instrument in self.instruments],
        }


@dataclass
class _Clock:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STAGES, 0.0))

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def report(self) -> dict[str, float]:
        return {**self.seconds, "total": sum(self.seconds.values())}


def build(
    source: Any,
    path: str | Path,
    config: FeatureConfig | None = None,
    *,
    column_map: Mapping[str, str] | None = None,
    on_bad_bars: str = "error",
    force: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Compute the features of every bar of a source into a store.

    The bits are those of :func:`compute`. Memory does not grow with the input. The store is
    written beside the target and takes its place at the end; until then, and if anything goes
    wrong, what was there stays. A store that already holds these features of this very input is
    left alone.

    Parameters
    ----------
    source
        Path of a bar file, or anything else that :func:`read_bars` takes. A source of several
        symbols becomes a universe: one store for each, below one folder.
    path
        Folder of the store.
    config
        What to compute; the standard profile when None.
    column_map
        Column by field where names are not recognised, such as ``{"open": "px_open"}``.
    on_bad_bars
        ``"error"``, or ``"drop"`` to leave bad bars out, counted and listed in the report.
    force
        Replace a store of another input or configuration, or rebuild one that is up to date.
    progress
        Called with bars done and bars in all (None where unknown).

    Returns
    -------
    BuildReport
        Counts, gaps, dropped bars and times.

    Raises
    ------
    BarsError
        Bars that cannot be read or contradict themselves, or too few for one window.
    StoreError
        The target holds something else and ``force`` is not set.
    OutputError
        A full disk, no permission, or another build of the same target.
    """
    clock = _Clock()
    config = config or FeatureConfig()
    target = Path(path)
    with clock.measure("import"):
        importlib.import_module("zarr")
        kernel = kernel_of(config)
        from moola_features.bars.sources import open_source
    with clock.measure("read"):
        opened = open_source(source, column_map=column_map, on_bad_bars=on_bad_bars)
        # The name alone: where a file lies on this machine is nobody else's business.
        name = Path(source).name if isinstance(source, str | Path) else opened.description
        columns = {**asdict(opened.columns), "time": list(opened.columns.time)}
        settings = {"source": name, "columns": columns, "on_bad_bars": on_bad_bars}
        keep = False
        found = _identity(target)
        if found and force:
            _require_ours(target)
        elif found:
            keep = _is_up_to_date(target, config, {**settings, "sha256": opened.sha256()})
    if keep:
        return BuildReport(target, summarise(target), clock.report(), up_to_date=True)
    if not kernel.is_loaded:
        began = time.perf_counter()
        kernel.load()
        stage = "compile" if kernel.was_compiled else "import"
        clock.seconds[stage] += time.perf_counter() - began
    with replaced_folder(target) as folder, ThreadPoolExecutor(1) as background:
        if _identity(target) != found and not force:
            raise StoreError(f"{target} was built by another process meanwhile; build again")
        digest = background.submit(opened.sha256)
        instruments = _Instruments(folder, config, opened.symbols)
        with contextlib.closing(instruments):
            batches = opened.batches()
            while True:
                with clock.measure("read"):
                    symbol, bars = next(batches, (None, None))
                if bars is None:
                    break
                instruments.add(symbol, bars, clock)
                if progress is not None:
                    progress(opened.rows_read, opened.num_rows)
            with clock.measure("write"):
                dropped = {name: lost.to_dict() for name, lost in opened.dropped.items()}
                instruments.finish({**settings, "sha256": digest.result()}, dropped)
        began = time.perf_counter()
    # Flushing everything to the disk, and taking the target's place.
    clock.seconds["write"] += time.perf_counter() - began
    return BuildReport(target, summarise(target), clock.report())


class _Instruments:
    """The stores under way, by symbol."""

    def __init__(self, folder: Path, config: FeatureConfig, symbols: tuple[str, ...]) -> None:
        self._folder = folder
        self._config = config
        self._multiple = len(symbols) > 1
        self._only_symbol = symbols[0] if len(symbols) == 1 else None
        self._under_way: dict[str | None, _Instrument] = {}
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="moola-disk")
        # Started with nothing to do: a thread that is interrupted as it starts is never waited for.
        self._disk.submit(bool)

    def add(self, symbol: str | None, bars: Bars, clock: _Clock) -> None:
        if symbol not in self._under_way:
            folder = self._folder / group_name(symbol) if symbol is not None else self._folder
            name = self._only_symbol if symbol is None else symbol
            self._under_way[symbol] = _Instrument(folder, name, self._config, self._disk)
        self._under_way[symbol].add(bars, clock)

    def finish(self, source: dict[str, Any], dropped: dict[str | None, dict[str, Any]]) -> None:
        for symbol, instrument in self._under_way.items():
            instrument.finish(source, dropped[symbol])
        if self._multiple:
            write_universe(
                self._folder,
                [symbol for symbol in self._under_way if symbol is not None],
                {"config": self._config.to_dict(), "input": source, "versions": versions()},
            )

    def close(self) -> None:
        self._disk.shutdown(wait=True, cancel_futures=True)


class _Instrument:
    """One store under way: the carried pass, the writer, and what was counted on the way."""

    def __init__(
        self, folder: Path, symbol: str | None, config: FeatureConfig, disk: Executor
    ) -> None:
        self.symbol = symbol
        self.config = config
        self.carried = FeaturePass(config)
        self.writer = StoreWriter(folder, self.carried.num_columns, disk)
        self.starts: list[NDArray[np.int64]] = []
        self.gaps = GapCensus()
        self.num_valid = 0
        self.num_flat = 0
        self.first_time: int | None = None
        self.last_time: int | None = None
        self.last_valid = False

    def add(self, bars: Bars, clock: _Clock) -> None:
        """Compute a batch straight into the writer's chunks."""
        require_positive(bars, self.config, self.writer.num_bars)
        starts = segment_starts(bars.time, self.config.max_gap_ns, self.last_time)
        self.starts.append(starts + self.writer.num_bars)
        self.gaps.add(bars.time, self.last_time)
        self.num_flat += int(np.count_nonzero(bars.high == bars.low))
        self.first_time = int(bars.time[0]) if self.first_time is None else self.first_time
        self.last_time = int(bars.time[-1])
        done = 0
        while done < len(bars):
            with clock.measure("write"):
                rows = self.writer.room(len(bars) - done)
            piece = bars[done : done + len(rows.time)]
            inside = starts[(starts >= done) & (starts < done + len(piece))] - done
            with clock.measure("compute"):
                self.carried.run(
                    piece.open, piece.high, piece.low, piece.close,
                    inside, rows.features, rows.valid,
                )  # fmt: skip
                rows.time[:] = piece.time
                for j, prices in enumerate((piece.open, piece.high, piece.low, piece.close)):
                    rows.ohlc[:, j] = prices
                self.num_valid += int(np.count_nonzero(rows.valid))
                self.last_valid = bool(rows.valid[-1])
            with clock.measure("write"):
                self.writer.advance(len(piece))
            done += len(piece)

    def finish(self, source: dict[str, Any], dropped: dict[str, Any]) -> None:
        """Refuse too few bars, then write the rest and the attributes."""
        num_bars = self.writer.num_bars
        if num_bars < self.config.window_length:
            name = source["source"] + (f" [{self.symbol}]" if self.symbol is not None else "")
            raise BarsError(
                f"{name}: {num_bars} bars, fewer than one window of "
                f"{self.config.window_length}; give more bars or a smaller window_length"
            )
        segments = segment_bounds(np.concatenate(self.starts), num_bars)
        state = saved_state(
            self.config, self.carried, num_bars=num_bars,
            last_time=self.last_time, valid=self.last_valid,
        )  # fmt: skip
        attributes = {
            "symbol": self.symbol,
            "features": [_described(column) for column in spec.columns(self.config)],
            "config": self.config.to_dict(),
            "input": {**source, "num_bars": num_bars},
            "dropped": dropped,
            "gaps": self.gaps.to_dict(),
            "first_time": self.first_time,
            "last_time": self.last_time,
            "num_segments": len(segments),
            "num_valid": self.num_valid,
            "num_flat": self.num_flat,
            "state": state,
            "versions": versions(),
        }
        self.writer.finish(segments, attributes)


def versions() -> dict[str, str]:
    """Versions of whatever has a say in the bits of a store."""
    from moola_features import __version__

    packages = ("numpy", "numba", "zarr", "polars", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"moola": __version__, "python": platform.python_version(), **found}


def _described(column: spec.Column) -> dict[str, Any]:
    def bound(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None  # JSON knows no infinity

    return {
        "name": column.name,
        "low": bound(column.low),
        "high": bound(column.high),
        "meaning": column.meaning,
    }


def _is_up_to_date(target: Path, config: FeatureConfig, asked: dict[str, Any]) -> bool:
    """Whether a store already is what is asked for; refuse to replace one of something else."""
    opened = open_store(target, config)
    known = opened.attributes.get("input", {})
    if known.get("source") != asked["source"]:
        raise StoreError(
            f"{target} was built from {known.get('source')}, not {asked['source']}; "
            "pass --force to replace it, or build into another folder"
        )
    same_moola = opened.attributes.get("versions", {}).get("moola") == versions()["moola"]
    return same_moola and all(known.get(name) == value for name, value in asked.items())


def _identity(target: Path) -> tuple[int, int, int] | None:
    """What tells a folder from the one that replaces it; None where none can be seen."""
    try:
        status = target.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _require_ours(target: Path) -> None:
    """Refuse to replace a folder that is no store, finished or damaged, whatever is asked."""
    try:
        document = json.loads((target / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # No mark that can be read: ours if it holds nothing but parts of a store. Empty will do.
        parts = {*bar_arrays(0), "segments", METADATA}
        ours = target.is_dir() and {entry.name for entry in target.iterdir()} <= parts
    else:
        attributes = document.get("attributes") if isinstance(document, dict) else None
        ours = isinstance(attributes, dict) and attributes.get("format") == FORMAT
    if not ours:
        raise StoreError(f"{target} is no store, so it is not replaced; build into another folder")
