"""The threads of a build, each with room for one chunk; the bars never run far ahead of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Self

from moola_features.building.chunks import ChunkDone, ChunkTask, run_chunk
from moola_features.store.writer import Rows

AHEAD = 2  # chunks decoded and waiting, so that no thread waits for the next one
_START_SECONDS = 1.0  # that threads wait for each other, should an interrupt keep one from starting


class Crew:
    """Runs chunk tasks in threads and hands in what came of them, in their order.

    Parameters
    ----------
    workers
        Number of threads.
    num_columns
        Number of features.

    Attributes
    ----------
    waited
        Seconds that :meth:`submit` and :meth:`drain` spent waiting.
    """

    def __init__(self, workers: int, num_columns: int) -> None:
        self.waited = 0.0
        self._limit = workers + AHEAD
        self._buffers: SimpleQueue[Rows] = SimpleQueue()
        for _ in range(workers):
            self._buffers.put(Rows.empty_chunk(num_columns))
        self._under_way: deque[tuple[Future[ChunkDone], Callable[[ChunkDone], None]]] = deque()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="moola-build")
        # All of them now: a thread that is interrupted as it starts is never waited for.
        together = threading.Barrier(workers)
        for _ in range(workers):
            self._threads.submit(together.wait, _START_SECONDS)

    def submit(self, task: ChunkTask, take: Callable[[ChunkDone], None]) -> None:
        """Let a thread run a task, and ``take`` have what comes of it; wait while many are ahead.

        Tasks start in their order, so one that waits for the state before it waits for one that
        runs.
        """
        while len(self._under_way) >= self._limit:
            self._hand_in()
        self._under_way.append((self._threads.submit(self._run, task), take))

    def drain(self) -> None:
        """Wait for all tasks."""
        while self._under_way:
            self._hand_in()

    def close(self) -> None:
        """Let tasks that run come to their end, and forget the others."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, task: ChunkTask) -> ChunkDone:
        buffer = self._buffers.get()
        try:
            return run_chunk(task, buffer)
        finally:
            self._buffers.put(buffer)

    def _hand_in(self) -> None:
        future, take = self._under_way.popleft()
        began = time.perf_counter()
        try:
            done = future.result()
        finally:
            self.waited += time.perf_counter() - began
        take(done)
