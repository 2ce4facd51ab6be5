"""Running the tasks of a build on a Dask cluster whose workers reach the same folders.

What passes through the scheduler is paths and settings on the way there, counts and states on the
way back; bars and features go from and to the shared store.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from moola_features.building.outcomes import Outcome
from moola_features.errors import ConfigError, OutputError, RemoteError
from moola_features.remote.objects import is_remote, local_path
from moola_features.universe.inputs import Member
from moola_features.universe.tasks import Work, build_member, is_made

_CONNECT_SECONDS = 20
_POLL_SECONDS = 0.05


class Dask:
    """A cluster; use it in a ``with`` block.

    Parameters
    ----------
    address
        Of the scheduler, such as ``tcp://host:8786``.

    Attributes
    ----------
    slots
        Tasks that it runs at once.

    Raises
    ------
    ConfigError
        What is no address.
    RemoteError
        No scheduler at the address, or one without workers.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"([a-z]+://)?[^/\s]+:\d{1,5}", address):
            raise ConfigError(
                f"--dask is {address!r}; give the address of a scheduler, such as tcp://host:8786"
            )
        try:
            import distributed
        except ImportError as error:
            raise RemoteError(
                f"--dask {address} needs the extra 'dask'; run pip install 'moola[dask]'"
            ) from error
        self.address = address
        try:
            made: Any = distributed.Client
            self._client = made(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise RemoteError(
                f"no scheduler answers at {address}; start one with `dask scheduler`, or mend the "
                "address"
            ) from error
        self.slots = sum(self._client.nthreads().values())
        if not self.slots:
            self._client.close()
            raise RemoteError(
                f"the scheduler at {address} has no workers; start some with `dask worker "
                f"{address}`"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def look(
        self, work: Work, members: Iterable[Member], *, check_files: bool
    ) -> Iterator[tuple[Member, bool]]:
        """Yield for each instrument what :func:`is_made` says of it."""
        by_symbol = {member.symbol: member for member in members}
        sent = [(_anywhere(work), _findable(member), check_files) for member in by_symbol.values()]
        for symbol, made in self.run(_look, sent):
            yield by_symbol[symbol], made

    def build(self, work: Work, members: Iterable[Member]) -> Iterator[Outcome]:
        """Yield what came of each instrument, as soon as it is known."""
        return self.run(build_member, [(_anywhere(work), _findable(one)) for one in members])

    def run(self, task: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Iterator[Any]:
        """Run a function on each tuple of arguments and yield what it returns, as it comes.

        A task whose worker is lost runs again on another one.

        Raises
        ------
        OutputError
            Every worker that a task was given to was lost.
        """
        import distributed

        as_completed: Any = distributed.as_completed
        run = uuid.uuid4().hex
        futures = [self._client.submit(_counted, run, task, each, pure=False) for each in arguments]
        try:
            for future in as_completed(futures, loop=self._client.loop):
                yield future.result()
        except distributed.KilledWorker as error:
            raise OutputError(
                f"workers of {self.address} are killed again and again; see what their logs say, "
                "or give them more memory"
            ) from error
        finally:
            self._client.cancel(futures)
            # What runs runs on; whoever clears up behind this must not have it write meanwhile.
            while any(self._client.run(_num_running, run, on_error="ignore").values()):
                time.sleep(_POLL_SECONDS)


_running: Counter[str] = Counter()  # tasks in this process, a worker's, by run
_guard = threading.Lock()


def _counted(run: str, task: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    with _guard:
        _running[run] += 1
    try:
        return task(*arguments)
    finally:
        with _guard:
            _running[run] -= 1


def _num_running(run: str) -> int:
    return _running[run]


def absolute(place: Any) -> Any:
    """Return a path as a worker finds it, whatever folder it was started in."""
    if is_remote(place):
        return place
    return Path(local_path(place)).absolute()


def _look(work: Work, member: Member, check_files: bool) -> tuple[str, bool]:
    return member.symbol, is_made(work, member, check_files=check_files)


def _anywhere(work: Work) -> Work:
    folder, standing = work.folder.absolute(), work.standing.absolute()
    return dataclasses.replace(work, folder=folder, standing=standing, durable=True)


def _findable(member: Member) -> Member:
    if not isinstance(member.source, str | Path):
        return member  # sorted bars, whose path is that of the folder under way
    return dataclasses.replace(member, source=absolute(member.source))
