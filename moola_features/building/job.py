"""One run of a build: a source that is read in one thread while others compute and write."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moola_features import spec
from moola_features.building.crew import Crew
from moola_features.building.instruments import Instruments
from moola_features.building.memory import fitting_workers, parse_size, peak_bytes
from moola_features.building.report import BuildReport, Clock, Progress
from moola_features.config import FeatureConfig
from moola_features.feature_pass import kernel_of
from moola_features.store.summary import summarise

if TYPE_CHECKING:
    from moola_features.bars.sources import BarSource

_COUNTS = ("num_chunks", "num_guessed", "num_redone", "num_resumed")


@dataclass
class Job:
    """A source, and how it is to be built.

    Attributes
    ----------
    opened
        The source.
    settings
        What a store tells of its input: name, columns, treatment of bad bars.
    config
        What to compute.
    workers
        Threads that compute and write; fewer once :meth:`begin` finds that they do not fit.
    max_memory
        Most memory that this process may take, None for no limit.
    clock
        Time by stage.
    progress
        Called with bars done and bars in all.
    predicted_bytes
        Memory that the build will take.
    """

    opened: BarSource
    settings: dict[str, Any]
    config: FeatureConfig
    workers: int
    max_memory: int | str | None
    clock: Clock
    progress: Progress | None
    predicted_bytes: int = field(default=0)

    @classmethod
    def open(
        cls,
        source: Any,
        config: FeatureConfig,
        *,
        column_map: Mapping[str, str] | None,
        on_bad_bars: str,
        workers: int,
        max_memory: int | str | None,
        progress: Progress | None,
    ) -> Self:
        """Open a source; arguments as for ``build``."""
        clock = Clock()
        if max_memory is not None:
            max_memory = parse_size(max_memory)
        with clock.measure("import"):
            importlib.import_module("zarr")
            kernel_of(config)
            from moola_features.bars.sources import open_source
        with clock.measure("read"):
            opened = open_source(source, column_map=column_map, on_bad_bars=on_bad_bars)
        # The name alone: where a file lies on this machine is nobody else's business.
        name = Path(source).name if isinstance(source, str | Path) else opened.description
        columns = {**asdict(opened.columns), "time": list(opened.columns.time)}
        settings = {"source": name, "columns": columns, "on_bad_bars": on_bad_bars}
        return cls(opened, settings, config, workers, max_memory, clock, progress)

    def begin(self, tell: Callable[[str], None] | None) -> None:
        """Load the kernel, foretell the memory, and lower the number of workers to what fits.

        Raises
        ------
        ConfigError
            Not even one fits.
        """
        kernel = kernel_of(self.config)
        if not kernel.is_loaded:
            began = time.perf_counter()
            kernel.load()
            stage = "compile" if kernel.was_compiled else "import"
            self.clock.seconds[stage] += time.perf_counter() - began
        limit = None if self.max_memory is None else parse_size(self.max_memory)
        self.workers, self.predicted_bytes = fitting_workers(
            self.workers, limit,
            num_columns=len(spec.columns(self.config)),
            batch_bars=self.opened.batch_bars,
            decoding_bytes=self.opened.decoding_bytes,
            num_symbols=len(self.opened.symbols),
        )  # fmt: skip
        if tell is not None:
            threads = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
            bound = "no limit" if limit is None else f"limit {limit / 1e6:,.0f} MB"
            foretold = f"about {self.predicted_bytes / 1e6:,.0f} MB with {threads}"
            tell(f"memory: {foretold}, {bound}")

    def crew(self) -> Crew:
        """Start the threads."""
        return Crew(self.workers, len(spec.columns(self.config)))

    def run(self, instruments: Instruments) -> None:
        """Read everything, let it be computed and written, and finish."""
        crew, clock, opened = instruments.crew, self.clock, self.opened
        with ThreadPoolExecutor(1) as background:
            digest = background.submit(opened.sha256)
            batches = opened.batches()
            while True:
                with clock.measure("read"):
                    symbol, bars = next(batches, (None, None))
                if bars is None:
                    break
                with clock.measure("write"):
                    instruments.add(symbol, bars)
                if self.progress is not None:
                    self.progress(opened.rows_read, opened.num_rows)
            with clock.measure("write"):
                dropped = {name: lost.to_dict() for name, lost in opened.dropped.items()}
                instruments.finish({**self.settings, "sha256": digest.result()}, dropped)
        # Computing and writing go on at once: the wait for both is split by what each took.
        computing = instruments.count("compute_seconds")
        writing = instruments.count("write_seconds")
        share = computing / max(computing + writing, 1e-9)
        clock.seconds["compute"] += share * crew.waited
        clock.seconds["write"] -= share * crew.waited

    def report(
        self, target: Path, instruments: Instruments | None = None, *, num_appended: int = 0
    ) -> BuildReport:
        """Say what was done, or, without instruments, that nothing had to be."""
        done: dict[str, Any] = {"up_to_date": True}
        if instruments is not None:
            counts = {name: instruments.count(name) for name in _COUNTS}
            done = {
                "workers": self.workers, "predicted_bytes": self.predicted_bytes,
                "peak_bytes": peak_bytes(), "num_appended": num_appended, **counts,
            }  # fmt: skip
        return BuildReport(target, summarise(target), self.clock.report(), **done)
