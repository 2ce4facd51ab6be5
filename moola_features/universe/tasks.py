"""One instrument of a universe: is it what it should be, and if not, build it.

These functions take and return little and meet nobody else's files, so that they may run in a
thread here or in a process elsewhere that has the same folders.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moola_features.bars.sources import open_source
from moola_features.building.append import append
from moola_features.building.job import Job
from moola_features.building.make import make
from moola_features.building.outcomes import BUILT, COUNTS, FAILED, UNCHANGED, Outcome
from moola_features.building.recipe import Recipe, Source
from moola_features.building.report import BuildReport
from moola_features.errors import BarsError, MoolaError, OutputError, StoreError
from moola_features.files import link_tree
from moola_features.remote.objects import Objects
from moola_features.remote.store import remote_attributes
from moola_features.remote.transfer import at_hand, publish
from moola_features.store import Store, read_attributes
from moola_features.store.checksums import require_intact
from moola_features.store.layout import group_name
from moola_features.universe.inputs import Member
from moola_features.universe.sorting import SortedBars
from moola_features.versions import versions

Check = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """What the tasks of one build have in common.

    Attributes
    ----------
    recipe
        Settings of the build.
    folder
        The universe under way.
    standing
        The universe that it will take the place of.
    workers
        Threads for one instrument.
    address
        Where finished instruments go and others are looked for, if that is in an object store;
        what is built on the way there lies in a folder of the task's own.
    durable
        Whether a finished instrument is to be on the disk, and not only in this machine's memory.
    """

    recipe: Recipe
    folder: Path
    standing: Path
    workers: int = 1
    address: str | None = None
    durable: bool = False

    def objects(self, member: Member) -> Objects | None:
        """Return the place of an instrument in the object store, if there is one."""
        if self.address is None:
            return None
        return Objects(self.address).below(group_name(member.symbol))


def is_made(work: Work, member: Member, *, check_files: bool = False) -> bool:
    """Whether an instrument's store is there, and just what building it would make.

    Parameters
    ----------
    work
        The settings, and the universe to look into.
    member
        The instrument; where its bars cannot be opened the answer is no.
    check_files
        Whether the store's files must have their checksums: it may have been finished before a
        power cut, and not flushed. Those on this machine must have their sizes in any case.
    """
    group = work.folder / group_name(member.symbol)
    objects = work.objects(member)
    try:
        attributes = read_attributes(group) if objects is None else remote_attributes(objects)
        with _opened(work.recipe, member) as opened:
            known, asked = attributes["input"], work.recipe.input_of(opened, member.name)
            same = (
                attributes["config"] == work.recipe.config.to_dict()
                and attributes["versions"]["moola"] == versions()["moola"]
                and "appended" not in known
                and all(known.get(key) == value for key, value in asked.items())
                and known["sha256"] == opened.sha256()
            )
        if same and objects is None:
            Store(group, attributes)
        if same and check_files:
            require_intact(group, attributes, len(attributes["features"]))
    except (MoolaError, OSError, KeyError, TypeError):
        return False
    return same


def build_member(work: Work, member: Member, check: Check | None = None) -> Outcome:
    """Build the store of one instrument.

    Parameters
    ----------
    work
        The settings, and the universe under way.
    member
        The instrument.
    check
        Called now and then; may raise to stop.

    Returns
    -------
    Outcome
        ``"built"``; ``"failed"`` where its bars will not do; ``"unchanged"`` where bars were to
        be appended and none were new.

    Raises
    ------
    OutputError
        The disk, not the bars, is to blame.
    """
    try:
        with _opened(work.recipe, member) as opened, _place(work) as folder:
            group = folder / group_name(member.symbol)
            if group.exists():
                shutil.rmtree(group)
            report = _built(work, member, opened, group, check)
            objects = work.objects(member)
            if objects is not None:
                publish(group, objects)
    except OutputError:
        raise
    except MoolaError as error:
        group = work.folder / group_name(member.symbol)
        if group.exists():
            shutil.rmtree(group)
        return Outcome(member.symbol, FAILED, str(error))
    counts = {name: getattr(report, name) for name in COUNTS}
    status = UNCHANGED if report.up_to_date else BUILT
    return Outcome(member.symbol, status, seconds=report.seconds, **counts)


@contextlib.contextmanager
def _place(work: Work) -> Iterator[Path]:
    """Where to build: among the others, or, on the way to an object store, apart."""
    if work.address is None:
        yield work.folder
        return
    with tempfile.TemporaryDirectory(prefix="moola-") as scratch:
        yield Path(scratch)


def _built(
    work: Work, member: Member, opened: Source, group: Path, check: Check | None
) -> BuildReport:
    recipe = work.recipe
    stands = work.standing / group.name
    job = Job(
        opened, recipe.input_of(opened, member.name), recipe.config, work.workers,
        progress=None if check is None else lambda _done, _total: check(),
    )  # fmt: skip
    if recipe.append and stands.exists():
        group.mkdir()
        link_tree(stands, group)
        return append(job, group, durable=work.durable)
    if not recipe.force:
        _require_nothing_appended(stands)
    return make(job, group, None, symbol=member.symbol, durable=work.durable)


@contextlib.contextmanager
def _opened(recipe: Recipe, member: Member) -> Iterator[Source]:
    if isinstance(member.source, SortedBars):
        yield member.source
        return
    with at_hand(member.source) as source:
        try:
            opened = open_source(
                source, column_map=recipe.column_map, on_bad_bars=recipe.on_bad_bars
            )
            if len(opened.symbols) > 1:
                raise BarsError(
                    f"{opened.description}: holds {len(opened.symbols)} symbols; build this file "
                    "alone, or write each symbol into a file of its own"
                )
            yield opened
        except BarsError as error:
            # Of a copy at hand, the address is what the user knows.
            raise BarsError(str(error).replace(str(source), str(member.source))) from error


def _require_nothing_appended(stands: Path) -> None:
    """Refuse to lose bars that the input may not hold any more."""
    try:
        known = read_attributes(stands).get("input", {}).get("appended")
    except MoolaError:
        return  # nothing there that could be lost
    if known:
        raise StoreError(
            f"{stands} holds bars that were appended from {known[-1]['source']}; pass --append to "
            "go on, or --force to replace it by one without them"
        )
