"""One instrument's store under way: bars in, tasks out, and what was counted on the way."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from moola_features import spec
from moola_features.bars import Bars
from moola_features.building.chunks import ChunkDone, ChunkTask
from moola_features.building.crew import Crew
from moola_features.building.journal import Journal
from moola_features.building.tally import Tally
from moola_features.config import FeatureConfig
from moola_features.engine import require_positive
from moola_features.errors import BarsError
from moola_features.feature_pass import FeaturePass
from moola_features.segments import segment_bounds
from moola_features.store.layout import CHUNK_BARS
from moola_features.store.writer import finish_store
from moola_features.stream import saved_state
from moola_features.stretches import Cutter, Stretch
from moola_features.versions import versions


class Instrument:
    """Cuts bars into chunks, lets a crew compute and write them, and finishes the store.

    Parameters
    ----------
    folder
        The group; made if it is missing.
    symbol
        The instrument, None where the source names none.
    config
        What to compute.
    crew
        Runs the tasks.
    journal
        What an earlier build has finished, and where this one notes what it has; None for neither.
    tally
        What was counted of the bars that stand already; None where there are none.

    Attributes
    ----------
    num_chunks, num_guessed, num_redone, num_resumed
        Chunks; those that started from a guess, whose guess was wrong, and that an earlier build
        had finished.
    compute_seconds, write_seconds
        What threads were busy with.
    """

    def __init__(
        self,
        folder: Path,
        symbol: str | None,
        config: FeatureConfig,
        crew: Crew,
        journal: Journal | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.symbol = symbol
        self.num_chunks = self.num_guessed = self.num_redone = self.num_resumed = 0
        self.compute_seconds = self.write_seconds = 0.0
        self._folder = folder
        self._config = config
        self._crew = crew
        self._journal = journal
        self._tally = tally or Tally()
        self._standing = self._tally.standing
        self._cutter = Cutter(
            config, CHUNK_BARS,
            num_bars=self._tally.num_bars,
            segment_start=self._tally.segment_start,
            last_time=self._tally.last_time,
        )  # fmt: skip
        self._end: Future[bytes] = Future()
        self._end.set_result(self._tally.state)

    @property
    def num_bars(self) -> int:
        """Bars that stood already and have been taken."""
        return self._tally.num_bars

    def add(self, bars: Bars) -> None:
        """Take the next bars; what makes a whole chunk goes to the crew."""
        tally = self._tally
        require_positive(bars, self._config, tally.num_bars)
        tally.num_bars += len(bars)
        tally.first_time = int(bars.time[0]) if tally.first_time is None else tally.first_time
        tally.last_time = int(bars.time[-1])
        for stretch in self._cutter.add(bars):
            self._submit(stretch)

    def finish(self, source: dict[str, Any], dropped: dict[str, Any]) -> None:
        """Refuse too few bars, let the rest be computed, and write what stands beside it.

        Parameters
        ----------
        source
            What the bars come from; the number of all bars is added unless it tells one.
        dropped
            Bad bars that were left out.

        Raises
        ------
        BarsError
            Fewer bars than one window.
        """
        num_bars = self._tally.num_bars
        if num_bars < self._config.window_length:
            name = source["source"] + (f" [{self.symbol}]" if self.symbol is not None else "")
            raise BarsError(
                f"{name}: {num_bars} bars, fewer than one window of "
                f"{self._config.window_length}; give more bars or a smaller window_length"
            )
        for stretch in self._cutter.finish():
            self._submit(stretch)
        self._crew.drain()
        segments = segment_bounds(np.concatenate(self._tally.starts), num_bars)
        attributes = self._attributes(source, dropped, len(segments))
        finish_store(self._folder, num_bars, self._tally.checksums, segments, attributes)

    def _submit(self, stretch: Stretch) -> None:
        start, self._end = self._end, Future()
        self._tally.starts.append(stretch.starts + stretch.first_bar)
        standing, self._standing = self._standing, None
        task = ChunkTask(
            config=self._config, folder=self._folder, stretch=stretch,
            start=start, end=self._end, standing=standing, journal=self._journal,
        )  # fmt: skip
        self._crew.submit(task, self._take)

    def _take(self, done: ChunkDone) -> None:
        self.num_chunks += 1
        self.num_resumed += done.computed is None
        self.num_guessed += done.computed is not None and done.computed.guessed
        self.num_redone += done.computed is not None and done.computed.redone
        self.compute_seconds += done.compute_seconds
        self.write_seconds += done.write_seconds
        self._tally.add(done)

    def _attributes(
        self, source: dict[str, Any], dropped: dict[str, Any], num_segments: int
    ) -> dict[str, Any]:
        config, tally = self._config, self._tally
        carried = FeaturePass(config)
        carried.thaw(self._end.result())
        return {
            "symbol": self.symbol,
            "features": [_described(column) for column in spec.columns(config)],
            "config": config.to_dict(),
            "input": {**source, "num_bars": source.get("num_bars", tally.num_bars)},
            "dropped": dropped,
            "gaps": tally.gaps.to_dict(),
            "first_time": tally.first_time,
            "last_time": tally.last_time,
            "num_segments": num_segments,
            "num_valid": tally.num_valid,
            "num_flat": tally.num_flat,
            "state": saved_state(
                config, carried,
                num_bars=tally.num_bars, last_time=tally.last_time, valid=tally.last_valid,
            ),
            "versions": versions(),
        }  # fmt: skip


def _described(column: spec.Column) -> dict[str, Any]:
    def bound(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None  # JSON knows no infinity

    return {
        "name": column.name,
        "low": bound(column.low),
        "high": bound(column.high),
        "meaning": column.meaning,
    }
