"""One instrument of a universe: is it what it should be, and if not, build it.

These functions take and return little and meet nobody else's files, so that they may run in a
thread here or in a process elsewhere that has the same folders.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moola_features.bars.sources import open_source
from moola_features.building.append import append
from moola_features.building.job import Job
from moola_features.building.make import make
from moola_features.building.outcomes import BUILT, COUNTS, FAILED, UNCHANGED, Outcome
from moola_features.building.recipe import Recipe, Source
from moola_features.errors import BarsError, MoolaError, OutputError, StoreError
from moola_features.files import link_tree
from moola_features.store import read_attributes
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
    """

    recipe: Recipe
    folder: Path
    standing: Path
    workers: int = 1


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
        power cut, and not flushed.
    """
    group = work.folder / group_name(member.symbol)
    try:
        attributes = read_attributes(group)
        opened = _opened(work.recipe, member)
        known, asked = attributes["input"], work.recipe.input_of(opened, member.name)
        same = (
            attributes["config"] == work.recipe.config.to_dict()
            and attributes["versions"]["moola"] == versions()["moola"]
            and all(known.get(key) == value for key, value in asked.items())
            and known["sha256"] == opened.sha256()
        )
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
    group = work.folder / group_name(member.symbol)
    stands = work.standing / group_name(member.symbol)
    if group.exists():
        shutil.rmtree(group)
    recipe = work.recipe
    try:
        opened = _opened(recipe, member)
        job = Job(
            opened, recipe.input_of(opened, member.name), recipe.config, work.workers,
            progress=None if check is None else lambda _done, _total: check(),
        )  # fmt: skip
        if recipe.append and stands.exists():
            group.mkdir()
            link_tree(stands, group)
            report = append(job, group, durable=False)
        else:
            if not recipe.force:
                _require_nothing_appended(stands)
            report = make(job, group, None, symbol=member.symbol, durable=False)
    except OutputError:
        raise
    except MoolaError as error:
        if group.exists():
            shutil.rmtree(group)
        return Outcome(member.symbol, FAILED, str(error))
    counts = {name: getattr(report, name) for name in COUNTS}
    status = UNCHANGED if report.up_to_date else BUILT
    return Outcome(member.symbol, status, seconds=report.seconds, **counts)


def _opened(recipe: Recipe, member: Member) -> Source:
    if isinstance(member.source, SortedBars):
        return member.source
    opened = open_source(
        member.source, column_map=recipe.column_map, on_bad_bars=recipe.on_bad_bars
    )
    if len(opened.symbols) > 1:
        raise BarsError(
            f"{opened.description}: holds {len(opened.symbols)} symbols; build this file alone, "
            "or write each symbol into a file of its own"
        )
    return opened


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
