"""Bars in a file to features in a store, in bounded memory and in one step for every reader."""

from __future__ import annotations

import contextlib
import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moola_features import spec
from moola_features.bars import Bars
from moola_features.building.crew import Crew
from moola_features.building.instrument import Instrument
from moola_features.building.journal import Journal
from moola_features.building.memory import fitting_workers, parse_size, peak_bytes
from moola_features.config import FeatureConfig
from moola_features.engine import resolve_workers
from moola_features.errors import MoolaError, StoreError
from moola_features.feature_pass import kernel_of
from moola_features.files import clear_folder, replaced_folder
from moola_features.store import open_store
from moola_features.store.layout import FORMAT, METADATA, bar_arrays, group_name
from moola_features.store.summary import Summary, summarise
from moola_features.store.writer import write_universe
from moola_features.versions import versions

if TYPE_CHECKING:
    from moola_features.bars.sources import BarSource

Progress = Callable[[int, int | None], None]
_STAGES = ("import", "compile", "read", "compute", "write")
_PARTS = frozenset({*bar_arrays(0), "segments", METADATA})


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
    workers
        Threads that computed and wrote.
    predicted_bytes, peak_bytes
        Memory that was foretold, and the most that this process has had.
    num_chunks
        Chunks of all instruments.
    num_guessed, num_redone
        Those computed from a guess of the state before them, and those of them whose guess was
        wrong, so that they were computed again.
    num_resumed
        Those that an earlier build had finished before it was cut off.
    """

    path: Path
    instruments: tuple[Summary, ...]
    seconds: dict[str, float]
    up_to_date: bool = False
    workers: int = 0
    predicted_bytes: int = 0
    peak_bytes: int = 0
    num_chunks: int = 0
    num_guessed: int = 0
    num_redone: int = 0
    num_resumed: int = 0

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
            "workers": self.workers,
            "predicted_bytes": self.predicted_bytes,
            "peak_bytes": self.peak_bytes,
            "num_chunks": self.num_chunks,
            "num_guessed": self.num_guessed,
            "num_redone": self.num_redone,
            "num_resumed": self.num_resumed,
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
    workers: int | None = None,
    max_memory: int | str | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> BuildReport:
    """Compute the features of every bar of a source into a store.

    The bits are those of :func:`compute`. Memory does not grow with the input. The store is
    written beside the target and takes its place at the end; until then, and if anything goes
    wrong, what was there stays. A build that was cut off leaves its finished chunks to the next
    one. A store that already holds these features of this very input is left alone.

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
    workers
        Threads that compute and write, besides the one that reads; one for each core when None.
        The bytes of the store do not depend on it.
    max_memory
        Most memory that this process may take, such as ``"500MB"``: the number of workers is
        lowered until it fits. None for no limit.
    progress
        Called with bars done and bars in all (None where unknown).
    tell
        Called, before anything is built, with a line about the memory that it will take.

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
    ConfigError
        Less than one worker, or memory that not even one fits into.
    OutputError
        A full disk, no permission, or another build of the same target.
    """
    clock = _Clock()
    config = config or FeatureConfig()
    num_workers = resolve_workers(workers)
    limit = None if max_memory is None else parse_size(max_memory)
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
    num_workers, predicted = fitting_workers(
        num_workers, limit,
        num_columns=len(spec.columns(config)),
        batch_bars=opened.batch_bars,
        decoding_bytes=opened.decoding_bytes,
        num_symbols=len(opened.symbols),
    )  # fmt: skip
    if tell is not None:
        tell(_memory_text(predicted, num_workers, limit))
    with replaced_folder(target, resumable=True) as folder:
        if _identity(target) != found and not force:
            raise StoreError(f"{target} was built by another process meanwhile; build again")
        instruments = _Instruments(folder, config, opened.symbols, num_workers)
        try:
            with contextlib.closing(instruments):
                _run(opened, instruments, settings, clock, progress)
        except BaseException as error:
            # What is wrong with the bars stays wrong; else the next build goes on from here.
            if isinstance(error, MoolaError) or not instruments.has_finished_chunks:
                clear_folder(folder)
            raise
        began = time.perf_counter()
    # Flushing everything to the disk, and taking the target's place.
    clock.seconds["write"] += time.perf_counter() - began
    names = ("num_chunks", "num_guessed", "num_redone", "num_resumed")
    counts = {name: instruments.count(name) for name in names}
    return BuildReport(
        target, summarise(target), clock.report(),
        workers=num_workers, predicted_bytes=predicted, peak_bytes=peak_bytes(), **counts,
    )  # fmt: skip


def _run(
    opened: BarSource,
    instruments: _Instruments,
    settings: dict[str, Any],
    clock: _Clock,
    progress: Progress | None,
) -> None:
    """Read, let compute and write, and finish."""
    crew = instruments.crew
    with ThreadPoolExecutor(1) as background:
        digest = background.submit(opened.sha256)
        batches = opened.batches()
        while True:
            with clock.measure("read"):
                symbol, bars = next(batches, (None, None))
            if bars is None:
                break
            began = time.perf_counter()
            instruments.add(symbol, bars)
            clock.seconds["write"] += time.perf_counter() - began
            if progress is not None:
                progress(opened.rows_read, opened.num_rows)
        with clock.measure("write"):
            dropped = {name: lost.to_dict() for name, lost in opened.dropped.items()}
            instruments.finish({**settings, "sha256": digest.result()}, dropped)
    # Computing and writing go on at once: what was waited for both is split by what each took.
    computing, writing = instruments.count("compute_seconds"), instruments.count("write_seconds")
    share = computing / max(computing + writing, 1e-9)
    clock.seconds["compute"] += share * crew.waited
    clock.seconds["write"] -= share * crew.waited


class _Instruments:
    """The stores under way, by symbol, in a folder that may hold an earlier attempt at them."""

    def __init__(
        self, folder: Path, config: FeatureConfig, symbols: tuple[str, ...], workers: int
    ) -> None:
        self._folder = folder
        self._config = config
        self._multiple = len(symbols) > 1
        self._only_symbol = symbols[0] if len(symbols) == 1 else None
        self._under_way: dict[str | None, Instrument] = {}
        self._journals: list[Journal] = []
        groups = [group_name(symbol) for symbol in symbols] if self._multiple else []
        parts = {*groups, *map(_journal_name, groups)} or {*_PARTS, _journal_name("")}
        clear_folder(folder, keep=parts)
        self.crew = Crew(workers, len(spec.columns(config)))

    def add(self, symbol: str | None, bars: Bars) -> None:
        if symbol not in self._under_way:
            self._under_way[symbol] = self._begin(symbol)
        self._under_way[symbol].add(bars)

    def finish(self, source: dict[str, Any], dropped: dict[str | None, dict[str, Any]]) -> None:
        for symbol, instrument in self._under_way.items():
            instrument.finish(source, dropped[symbol])
        if self._multiple:
            write_universe(
                self._folder,
                [symbol for symbol in self._under_way if symbol is not None],
                {"config": self._config.to_dict(), "input": source, "versions": versions()},
            )

    def count(self, name: str) -> Any:
        """Sum of an attribute over all instruments."""
        return sum(getattr(instrument, name) for instrument in self._under_way.values())

    @property
    def has_finished_chunks(self) -> bool:
        return not all(journal.is_empty for journal in self._journals)

    def close(self) -> None:
        self.crew.close()
        for journal in self._journals:
            journal.close()

    def _begin(self, symbol: str | None) -> Instrument:
        group = group_name(symbol) if symbol is not None else ""
        folder = self._folder / group
        folder.mkdir(exist_ok=True)
        subject = {"config": self._config.to_dict(), "versions": versions()}
        journal = Journal(self._folder / _journal_name(group), subject)
        self._journals.append(journal)
        name = self._only_symbol if symbol is None else symbol
        return Instrument(folder, name, self._config, self.crew, journal)


def _journal_name(group: str) -> str:
    return f".{group}.journal"


def _memory_text(predicted: int, workers: int, limit: int | None) -> str:
    threads = f"{workers} worker{'s' if workers > 1 else ''}"
    bound = "no limit" if limit is None else f"limit {limit / 1e6:,.0f} MB"
    return f"memory: about {predicted / 1e6:,.0f} MB with {threads}, {bound}"


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
        ours = target.is_dir() and {entry.name for entry in target.iterdir()} <= _PARTS
    else:
        attributes = document.get("attributes") if isinstance(document, dict) else None
        ours = isinstance(attributes, dict) and attributes.get("format") == FORMAT
    if not ours:
        raise StoreError(f"{target} is no store, so it is not replaced; build into another folder")
