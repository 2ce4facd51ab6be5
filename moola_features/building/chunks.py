"""One chunk of a build: its bars go in, its files come out, and what is known of it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moola_features.building.journal import Finished, Journal, origin_of
from moola_features.config import FeatureConfig
from moola_features.gaps import GapCensus
from moola_features.store.layout import CHUNK_BARS
from moola_features.store.writer import Rows, read_chunk, write_chunk
from moola_features.stretches import Computed, Stretch, run_stretch


@dataclass(frozen=True, eq=False)
class ChunkTask:
    """All that computing and writing one chunk takes; whoever runs it owns its files.

    Attributes
    ----------
    config
        What to compute.
    folder
        The instrument's group.
    stretch
        The bars of the chunk, or those behind the ones that stand already.
    start, end
        The state before its bars, and after them; each is known at some time.
    standing
        Rows at the head of the chunk that an earlier build computed.
    journal
        Where finished chunks are written down, and found again; None to do neither.
    """

    config: FeatureConfig
    folder: Path
    stretch: Stretch
    start: Future[bytes]
    end: Future[bytes]
    standing: Rows | None = None
    journal: Journal | None = None

    @property
    def index(self) -> int:
        """Number of the chunk."""
        return self.stretch.first_bar // CHUNK_BARS


@dataclass(frozen=True, eq=False)
class ChunkDone:
    """What came of a chunk.

    Attributes
    ----------
    num_valid, num_flat
        Counts of its new bars.
    last_valid
        Whether the last of them is valid.
    gaps
        The steps that end in its new bars.
    checksums
        Of its files, by array.
    computed
        How it was computed; None where an earlier build had finished it.
    compute_seconds, write_seconds
        What its thread was busy with.
    """

    num_valid: int
    num_flat: int
    last_valid: bool
    gaps: GapCensus
    checksums: dict[str, int]
    computed: Computed | None
    compute_seconds: float
    write_seconds: float


def run_chunk(task: ChunkTask, buffer: Rows) -> ChunkDone:
    """Compute and write one chunk, unless an earlier build has left just that.

    Parameters
    ----------
    task
        The chunk.
    buffer
        Room for a whole chunk, to be overwritten.
    """
    try:
        return _run(task, buffer)
    except BaseException as error:
        if not task.end.done():  # whoever waits for it learns why it will not come
            task.end.set_exception(error)
        raise


def _run(task: ChunkTask, buffer: Rows) -> ChunkDone:
    began = time.perf_counter()
    bars = task.stretch.bars
    first = task.stretch.first_bar % CHUNK_BARS
    new = buffer[first : first + len(bars)]
    computed = None
    checksums = _resumed(task, buffer)
    computed_at = time.perf_counter()
    if checksums is None:
        computed = run_stretch(
            task.config, task.stretch, task.start, task.end, new.features, new.valid
        )
        _fill_bars(task, buffer, new)
        computed_at = time.perf_counter()
        checksums = write_chunk(task.folder, task.index, buffer, first + len(bars))
        _write_down(task, checksums)
    written_at = time.perf_counter()
    gaps = GapCensus()
    gaps.add(bars.time, task.stretch.previous_time)
    num_flat = int(np.count_nonzero(bars.high == bars.low))
    num_valid = int(np.count_nonzero(new.valid))
    counted_at = time.perf_counter()
    return ChunkDone(
        num_valid=num_valid,
        num_flat=num_flat,
        last_valid=bool(new.valid[-1]),
        gaps=gaps,
        checksums=checksums,
        computed=computed,
        compute_seconds=computed_at - began + counted_at - written_at,
        write_seconds=written_at - computed_at,
    )


def _fill_bars(task: ChunkTask, buffer: Rows, new: Rows) -> None:
    """Fill in all but the features: the bars, the rows that stand, zeros where no bar is."""
    _fill(task, new.time, new.ohlc)
    standing = task.standing
    if standing is not None:
        for name, values in vars(buffer[: len(standing.time)]).items():
            values[...] = getattr(standing, name)
    first = task.stretch.first_bar % CHUNK_BARS
    for values in vars(buffer[first + len(new.time) :]).values():
        values[...] = 0


def _fill(task: ChunkTask, time_: NDArray[np.int64], ohlc: NDArray[np.float64]) -> None:
    bars = task.stretch.bars
    time_[:] = bars.time
    for j, prices in enumerate((bars.open, bars.high, bars.low, bars.close)):
        ohlc[:, j] = prices


def _is_full(task: ChunkTask) -> bool:
    return len(task.stretch.bars) == CHUNK_BARS


def _origin(task: ChunkTask) -> str:
    state = b"" if task.stretch.is_independent else task.start.result()
    return origin_of(state, task.stretch.starts.tobytes())


def _write_down(task: ChunkTask, checksums: dict[str, int]) -> None:
    """Keep a full chunk for the next build; the last one is computed again, it may grow."""
    if task.journal is not None and _is_full(task):
        end = task.end.result().hex()
        task.journal.add(Finished(task.index, _origin(task), end, checksums))


def _resumed(task: ChunkTask, buffer: Rows) -> dict[str, int] | None:
    """Take over what an earlier build left of the chunk, if it is what this one would write."""
    if task.journal is None or not _is_full(task):
        return None
    known = task.journal.find(task.index)
    if known is None or known.origin != _origin(task):
        return None
    found = read_chunk(task.folder, task.index, buffer)
    if found is None or found != known.checksums:
        return None
    stored = buffer.time, buffer.ohlc
    expected = np.empty_like(stored[0]), np.empty_like(stored[1])
    _fill(task, *expected)
    same = all(
        np.array_equal(one.view(np.uint64), other.view(np.uint64))
        for one, other in zip(stored, expected, strict=True)
    )
    if not same:
        return None
    task.end.set_result(bytes.fromhex(known.end))
    return found
