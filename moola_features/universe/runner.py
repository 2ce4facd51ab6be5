"""Running tasks at once: whatever order they end in, each is handed over as it does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from moola_features.building.outcomes import Outcome
from moola_features.universe.inputs import Member
from moola_features.universe.tasks import Work, build_member, is_made


class Runner(Protocol):
    """Whatever runs the tasks of a build.

    Attributes
    ----------
    slots
        Tasks that it runs at once.
    """

    slots: int

    def look(
        self, work: Work, members: Iterable[Member], *, check_files: bool
    ) -> Iterator[tuple[Member, bool]]:
        """Yield for each instrument what :func:`is_made` says of it."""

    def build(self, work: Work, members: Iterable[Member]) -> Iterator[Outcome]:
        """Yield what came of each instrument, as soon as it is known."""


class Threads:
    """Runs tasks in threads of this process.

    Parameters
    ----------
    slots
        Number of threads.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def look(
        self, work: Work, members: Iterable[Member], *, check_files: bool
    ) -> Iterator[tuple[Member, bool]]:
        """Yield for each instrument what :func:`is_made` says of it."""

        def task(member: Member, _check: Callable[[], None]) -> tuple[Member, bool]:
            return member, is_made(work, member, check_files=check_files)

        return self._run(task, members)

    def build(self, work: Work, members: Iterable[Member]) -> Iterator[Outcome]:
        """Yield what came of each instrument, as soon as it is known."""
        return self._run(lambda member, check: build_member(work, member, check), members)

    def _run(
        self, task: Callable[[Member, Callable[[], None]], Any], members: Iterable[Member]
    ) -> Iterator[Any]:
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise _Stopped

        with ThreadPoolExecutor(self.slots, thread_name_prefix="moola-universe") as threads:
            futures = [threads.submit(task, member, check) for member in members]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                # On the way out of an error or an interrupt, nobody wants the rest.
                stop.set()
                threads.shutdown(wait=False, cancel_futures=True)


class _Stopped(Exception):  # noqa: N818 - somebody else's error is on its way
    """A task was told to stop."""
