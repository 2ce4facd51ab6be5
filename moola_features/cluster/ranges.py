"""One long instrument on a cluster: its chunk ranges are computed at once, each from a guess.

A range tells the state that it began from and the one that it ended in. Where one began from
another state than the range before it ended in, it is done again from that; so the bytes are those
of one pass, as within one machine.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_features import spec
from moola_features.bars import Bars
from moola_features.bars.checks import DroppedBars
from moola_features.bars.sources import BarSource, open_source
from moola_features.building.chunks import ChunkDone, ChunkTask
from moola_features.building.crew import Crew
from moola_features.building.instrument import Instrument
from moola_features.building.job import Job
from moola_features.building.make import identity
from moola_features.building.recipe import Recipe
from moola_features.building.report import BuildReport
from moola_features.building.tally import Tally
from moola_features.cluster.dask import Dask
from moola_features.engine import require_positive
from moola_features.errors import StoreError
from moola_features.files import clear_folder, replaced_folder
from moola_features.segments import segment_starts
from moola_features.store.layout import CHUNK_BARS, num_chunks
from moola_features.store.summary import summarise
from moola_features.stretches import Cutter, guess_state, join, warmup_bars

_RANGES_PER_SLOT = 4  # so that one that is done again, or a slow machine, holds up little


@dataclass(frozen=True)
class Range:
    """Some whole chunks of a series, as a task for whoever reaches its file and its folder.

    Attributes
    ----------
    path
        The file of bars.
    recipe
        What to make of them.
    folder
        The instrument's group.
    start, stop
        The bars.
    segment_start
        Where the segment of the bar before them begins.
    begins_segment
        Whether the first of them begins one, so that nothing before it matters.
    state
        The state before them; None to begin from a guess.
    """

    path: Path
    recipe: Recipe
    folder: Path
    start: int
    stop: int
    segment_start: int = 0
    begins_segment: bool = False
    state: bytes | None = None


@dataclass(frozen=True)
class Surveyed:
    """Times of a range.

    Attributes
    ----------
    start
        First bar of the range.
    first_time, last_time
        Of its first and last bars.
    starts
        int64: bars at which segments begin.
    """

    start: int
    first_time: int
    last_time: int
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class RangeDone:
    """What came of a range.

    Attributes
    ----------
    start
        First bar of the range.
    began, ended
        The states before and after it; b"" of one that nothing could be guessed for.
    chunks
        What came of its chunks, in order.
    """

    start: int
    began: bytes
    ended: bytes
    chunks: list[ChunkDone]


def survey(task: Range) -> Surveyed:
    """Read the times of a range, and tell where segments begin."""
    first = max(task.start - 1, 0)
    times = np.concatenate(list(_part(task, first).times()))
    before = int(times[0]) if first < task.start else None
    own = times[task.start - first :]
    starts = segment_starts(own, task.recipe.config.max_gap_ns, before)
    return Surveyed(task.start, int(own[0]), int(own[-1]), starts + task.start)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return open_source(path).sha256()


def compute_range(task: Range) -> RangeDone:
    """Compute and write the chunks of a range."""
    config = task.recipe.config
    warmup = min(warmup_bars(config, CHUNK_BARS), task.start - task.segment_start)
    head = min(max(warmup, 1), task.start)  # one bar at least, whose time is compared
    batches = (bars for _, bars in _part(task, task.start - head).batches())
    before, rest = _split(batches, head)
    state = task.state
    if state is None and not task.begins_segment:
        if not warmup or before is None:
            return RangeDone(task.start, b"", b"", [])
        age = task.start - warmup - task.segment_start
        state = guess_state(config, before[head - warmup :], age)
    state = state or b""
    cutter = Cutter(
        config, CHUNK_BARS, num_bars=task.start, segment_start=task.segment_start,
        last_time=None if before is None else int(before.time[-1]),
    )  # fmt: skip
    done: list[ChunkDone] = []
    end: Future[bytes] = Future()
    end.set_result(state)
    with Crew(1, len(spec.columns(config))) as crew:
        for bars in itertools.chain(rest, batches):
            require_positive(bars, config, cutter.num_bars)
            for stretch in cutter.add(bars):
                end, start = Future(), end
                crew.submit(ChunkTask(config, task.folder, stretch, start, end), done.append)
        for stretch in cutter.finish():
            end, start = Future(), end
            crew.submit(ChunkTask(config, task.folder, stretch, start, end), done.append)
        crew.drain()
    return RangeDone(task.start, state, end.result(), done)


def build_ranges(job: Job, path: Path, target: Path, recipe: Recipe, dask: Dask) -> BuildReport:
    """Build one instrument's store of a Parquet file by the chunk ranges of its bars.

    Parameters
    ----------
    job
        The source, open.
    path
        Its file, as workers find it.
    target
        The store, as workers find it.
    recipe
        What to make of the bars; bad ones are not dropped.
    dask
        Runs the tasks.

    Returns
    -------
    BuildReport
        As :func:`moola_features.build` returns it, and raises.
    """
    found = identity(target)
    began = time.perf_counter()
    with replaced_folder(target) as folder:
        if identity(target) != found and not recipe.force:
            raise StoreError(f"{target} was built by another process meanwhile; build again")
        clear_folder(folder)
        num_bars = int(job.opened.num_rows or 0)
        ranges = _cut(path, recipe, folder.absolute(), num_bars, dask.slots)
        sha256, ranges, tally = _surveyed(dask, path, ranges)
        tally.num_bars = num_bars
        done, num_redone = _computed(dask, ranges)
        for each in done:
            for chunk in each.chunks:
                tally.add(chunk)
        tally.state = done[-1].ended
        symbol = job.opened.symbols[0] if job.opened.symbols else None
        with Crew(1, len(spec.columns(recipe.config))) as crew:
            instrument = Instrument(folder, symbol, recipe.config, crew, tally=tally)
            instrument.finish({**job.settings, "sha256": sha256}, DroppedBars().to_dict())
    times = [
        {"compute": chunk.compute_seconds, "write": chunk.write_seconds}
        for each in done
        for chunk in each.chunks
    ]
    job.clock.spread(time.perf_counter() - began, times)
    return BuildReport(
        target, summarise(target), job.clock.report(), workers=dask.slots,
        num_chunks=num_chunks(num_bars), num_guessed=len(ranges) - 1, num_redone=num_redone,
    )  # fmt: skip


def build_whole(source: Any, target: Any, options: dict[str, Any]) -> BuildReport:
    """Build on a worker what is no more than one task."""
    from moola_features.builder import build

    return build(source, target, **options)


def _cut(path: Path, recipe: Recipe, folder: Path, num_bars: int, slots: int) -> list[Range]:
    size = -(-num_chunks(num_bars) // (_RANGES_PER_SLOT * slots)) * CHUNK_BARS
    return [
        Range(path, recipe, folder, start, min(start + size, num_bars))
        for start in range(0, num_bars, max(size, 1))
    ]


def _surveyed(dask: Dask, path: Path, ranges: list[Range]) -> tuple[str, list[Range], Tally]:
    """Digest of the file, ranges that know their segment, and a tally of times and segments."""
    tasks = [(digest, path), *((survey, each) for each in ranges)]
    sha256 = ""
    found: dict[int, Surveyed] = {}
    for each in dask.run(_call, tasks):
        if isinstance(each, Surveyed):
            found[each.start] = each
        else:
            sha256 = each
    in_order = [found[each.start] for each in ranges]
    known, segment_start = [], 0
    for each, times in zip(ranges, in_order, strict=True):
        begins = len(times.starts) > 0 and int(times.starts[0]) == each.start
        known.append(replace(each, segment_start=segment_start, begins_segment=begins))
        segment_start = int(times.starts[-1]) if len(times.starts) else segment_start
    tally = Tally(
        first_time=in_order[0].first_time, last_time=in_order[-1].last_time,
        segment_start=segment_start, starts=[times.starts for times in in_order],
    )  # fmt: skip
    return sha256, known, tally


def _computed(dask: Dask, ranges: list[Range]) -> tuple[list[RangeDone], int]:
    """Compute all ranges; those that began from a state that was not the true one again."""
    done = {each.start: each for each in dask.run(compute_range, [(each,) for each in ranges])}
    num_redone = 0
    for before, task in itertools.pairwise(ranges):
        truth = done[before.start].ended
        if not task.begins_segment and done[task.start].began != truth:
            (done[task.start],) = dask.run(compute_range, [(replace(task, state=truth),)])
            num_redone += 1
    return [done[each.start] for each in ranges], num_redone


def _call(task: Callable[..., Any], *arguments: Any) -> Any:
    return task(*arguments)


def _part(task: Range, first: int) -> BarSource:
    recipe = task.recipe
    opened = open_source(task.path, column_map=recipe.column_map, on_bad_bars=recipe.on_bad_bars)
    part = opened.part(first, task.stop)
    assert part is not None  # it was asked before there were ranges
    return part


def _split(batches: Iterator[Bars], head: int) -> tuple[Bars | None, list[Bars]]:
    """Take so many bars off a series; return them, and what came along behind them."""
    pieces: list[Bars] = []
    while sum(map(len, pieces)) < head:
        pieces.append(next(batches))
    if not pieces:
        return None, []
    taken = join(pieces)
    return taken[:head], [taken[head:]] if len(taken) > head else []
