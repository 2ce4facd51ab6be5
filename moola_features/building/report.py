"""What a build says of itself, and the clock that it looks at."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moola_features.building.outcomes import Outcome
from moola_features.store.summary import Summary

Progress = Callable[[int, int | None], None]
STAGES = ("import", "compile", "read", "compute", "write")


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
        Chunks that were computed or taken over, of all instruments.
    num_guessed, num_redone
        Those computed from a guess of the state before them, and those of them whose guess was
        wrong, so that they were computed again.
    num_resumed
        Those that an earlier build had finished before it was cut off.
    num_appended
        Bars that came behind those that stood already.
    outcomes
        What came of each instrument of a universe, by symbol; () for one instrument.
    """

    path: Path | str
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
    num_appended: int = 0
    outcomes: tuple[Outcome, ...] = ()

    @property
    def num_bars(self) -> int:
        """Bars of all instruments."""
        return sum(instrument.num_bars for instrument in self.instruments)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        plain = {**vars(self), "path": str(self.path), "num_bars": self.num_bars}
        for name in ("instruments", "outcomes"):
            plain[name] = [each.to_dict() for each in getattr(self, name)]
        return plain


@dataclass
class Clock:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that something takes to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def spread(self, seconds: float, by_stage: list[dict[str, float]]) -> None:
        """Add wall time in which several threads were at work, in the shares of their stages."""
        taken = {stage: sum(one.get(stage, 0.0) for one in by_stage) for stage in STAGES}
        whole = sum(taken.values())
        for stage in STAGES:
            part = taken[stage] / whole if whole else float(stage == "write")
            self.seconds[stage] += part * seconds

    def report(self) -> dict[str, float]:
        """Seconds by stage, and their sum."""
        return {**self.seconds, "total": sum(self.seconds.values())}
