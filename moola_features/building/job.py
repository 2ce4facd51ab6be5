"""One run of a build: a source that is read in one thread while others compute and write."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from moola_features import spec
from moola_features.bars import Bars
from moola_features.building.crew import Crew
from moola_features.building.instruments import Instruments
from moola_features.building.memory import allot, peak_bytes
from moola_features.building.outcomes import COUNTS, Outcome
from moola_features.building.recipe import Recipe, Source, name_of
from moola_features.building.report import BuildReport, Clock, Progress
from moola_features.config import FeatureConfig
from moola_features.feature_pass import kernel_of
from moola_features.store.summary import summarise


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

    opened: Source
    settings: dict[str, Any]
    config: FeatureConfig
    workers: int
    max_memory: int | None = None
    clock: Clock = field(default_factory=Clock)
    progress: Progress | None = None
    predicted_bytes: int = field(default=0)

    @classmethod
    def open(
        cls,
        source: Any,
        recipe: Recipe,
        *,
        workers: int,
        max_memory: int | None,
        progress: Progress | None,
    ) -> Self:
        """Open a source; arguments as for ``build``."""
        clock = Clock()
        with clock.measure("import"):
            importlib.import_module("zarr")
            kernel_of(recipe.config)
            from moola_features.bars.sources import open_source
        with clock.measure("read"):
            opened = open_source(
                source, column_map=recipe.column_map, on_bad_bars=recipe.on_bad_bars
            )
        settings = recipe.input_of(opened, name_of(source, opened))
        return cls(opened, settings, recipe.config, workers, max_memory, clock, progress)

    def begin(self, tell: Callable[[str], None] | None) -> None:
        """Load the kernel, foretell the memory, and lower the number of workers to what fits.

        Raises
        ------
        ConfigError
            Not even one fits.
        """
        load_kernel(self.config, self.clock)
        self.workers, self.predicted_bytes = allot(
            self.workers, self.max_memory, tell,
            num_columns=len(spec.columns(self.config)),
            batch_bars=self.opened.batch_bars,
            decoding_bytes=self.opened.decoding_bytes,
        )  # fmt: skip

    def crew(self) -> Crew:
        """Start the threads."""
        return Crew(self.workers, len(spec.columns(self.config)))

    def run(
        self, instruments: Instruments, batches: Iterator[tuple[str | None, Bars]] | None = None
    ) -> None:
        """Read everything, let it be computed and written, and finish.

        Parameters
        ----------
        instruments
            They take the bars.
        batches
            All bars of the source; as it yields them by itself when None.
        """
        crew, clock, opened = instruments.crew, self.clock, self.opened
        with ThreadPoolExecutor(1) as background:
            digest = background.submit(opened.sha256)
            batches = opened.batches() if batches is None else batches
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
        self,
        target: Path,
        instruments: Instruments | None = None,
        *,
        num_appended: int = 0,
        outcomes: tuple[Outcome, ...] = (),
    ) -> BuildReport:
        """Say what was done, or, without instruments, that nothing had to be."""
        done: dict[str, Any] = {"up_to_date": True}
        if instruments is not None:
            counts = {name: instruments.count(name) for name in COUNTS}
            done = {
                "workers": self.workers, "predicted_bytes": self.predicted_bytes,
                "peak_bytes": peak_bytes(), "num_appended": num_appended,
                "outcomes": outcomes, **counts,
            }  # fmt: skip
        return BuildReport(target, summarise(target), self.clock.report(), **done)


def load_kernel(config: FeatureConfig, clock: Clock) -> None:
    """Compile a family's kernel, or load it, and say in the clock which."""
    kernel = kernel_of(config)
    if not kernel.is_loaded:
        began = time.perf_counter()
        kernel.load()
        stage = "compile" if kernel.was_compiled else "import"
        clock.seconds[stage] += time.perf_counter() - began
