"""Building a universe: what changed is built, what did not is kept, and all of it stands at once.

The universe is written beside the target and takes its place as a whole. Instruments that did not
change are linked, not copied; those that a build which was cut off had finished are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moola_features import spec
from moola_features.bars.files import foreseen_bars, foreseen_decoding
from moola_features.bars.sources import BATCH_BARS
from moola_features.building.instruments import universe_attributes
from moola_features.building.job import load_kernel
from moola_features.building.make import identity, require_ours
from moola_features.building.memory import allot, peak_bytes
from moola_features.building.outcomes import (
    BUILT,
    COUNTS,
    FAILED,
    KEPT,
    REMOVED,
    UNCHANGED,
    Outcome,
)
from moola_features.building.recipe import Recipe
from moola_features.building.report import BuildReport, Clock, Progress
from moola_features.config import FeatureConfig
from moola_features.errors import BarsError, MoolaError, StoreError
from moola_features.files import clear_folder, link_tree, replaced_folder
from moola_features.remote.objects import is_remote
from moola_features.store import read_attributes, require_config
from moola_features.store.layout import group_name, num_chunks
from moola_features.store.summary import summarise
from moola_features.store.writer import write_universe
from moola_features.universe.inputs import Input, Member
from moola_features.universe.runner import Runner, Threads
from moola_features.universe.sorting import MAX_BATCH_BARS, sort_by_symbol
from moola_features.universe.tasks import Work

_SORTED = ".sorted"  # below the universe under way: a file of bars for each symbol


@dataclass
class Build:
    """What goes on while a universe is built.

    Attributes
    ----------
    given
        The instruments.
    folder, target
        The universe under way, and the one that it will take the place of.
    recipe, runner, progress
        As for :func:`build_universe`.
    address
        Where finished instruments go, if that is in an object store.
    outcomes
        What came of each instrument so far.
    """

    given: Input
    folder: Path
    target: Path
    recipe: Recipe
    runner: Runner
    progress: Progress
    address: str | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def tell(self, outcome: Outcome) -> None:
        """Take what came of an instrument."""
        self.outcomes[outcome.symbol] = outcome
        told = sum(one.status not in (KEPT, REMOVED) for one in self.outcomes.values())
        self.progress(told, len(self.given.members))

    def run(self, members: list[Member], workers: int) -> None:
        """Build instruments, but those that an earlier attempt has finished."""
        members = [member for member in members if self._can_be_named(member.symbol)]
        each = max(1, workers // max(len(members), 1))
        work = Work(self.recipe, self.folder, self.target, each, self.address)
        begun = [m for m in members if (self.folder / group_name(m.symbol)).exists()]
        begun = begun if self.address is None else []
        finished = set()
        for member, whole in self.runner.look(work, begun, check_files=True):
            if whole:
                finished.add(member.symbol)
                chunks = num_chunks(
                    read_attributes(self.folder / group_name(member.symbol))["num_bars"]
                )
                self.tell(Outcome(member.symbol, BUILT, num_chunks=chunks, num_resumed=chunks))
        rest = [member for member in members if member.symbol not in finished]
        for outcome in self.runner.build(work, self._told_apart(rest)):
            self.tell(outcome)

    def _can_be_named(self, symbol: str) -> bool:
        """Whether a folder can bear a symbol's name, or say so of the one that cannot have it."""
        try:
            group_name(symbol)
        except BarsError as error:
            self.tell(Outcome(symbol, FAILED, str(error)))
            return False
        return True

    def _told_apart(self, members: list[Member]) -> list[Member]:
        """Sort the bars of one source by symbol, where all come from one."""
        if self.given.opened is None or not members:
            return members
        place = self.folder / _SORTED
        place.mkdir()
        wanted = {}
        for member in members:
            member.source.path = place / group_name(member.symbol)
            wanted[member.symbol] = member.source
        refused = sort_by_symbol(self.given.opened, wanted)
        for symbol in refused.keys() & wanted.keys():
            self.tell(Outcome(symbol, FAILED, str(refused[symbol])))
        return [member for member in members if member.symbol not in refused]


def build_universe(
    given: Input,
    target: Path,
    recipe: Recipe,
    workers: int,
    *,
    prune: bool = False,
    max_memory: int | None = None,
    tell: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
    runner: Runner | None = None,
) -> BuildReport:
    """Build a store for each instrument below one folder; see :func:`moola_features.build`.

    Parameters
    ----------
    given
        The instruments.
    target
        Folder of the universe.
    recipe
        What to make of them.
    workers
        Threads.
    prune
        Whether instruments that stand, but are not given, are removed.
    max_memory, tell
        Bytes that may be taken, and who is told how many will be.
    progress
        Called with instruments done and in all.
    clock
        What has been measured so far.
    runner
        Runs the tasks; threads of this process when None.

    Returns
    -------
    BuildReport
        Also where some instruments failed.

    Raises
    ------
    BarsError
        Not one instrument could be built.
    StoreError
        The target holds something else and ``recipe.force`` is not set.
    OutputError
        A full disk, no permission, or another build of the same target.
    """
    clock = clock or Clock()
    found = identity(target)
    symbols = {member.symbol for member in given.members}
    standing = _standing(target, symbols, recipe, prune=prune)
    standing = _still_there(target, standing, symbols, prune=prune)
    missing = [symbol for symbol in standing if symbol not in symbols]
    outdated = _outdated(target, recipe)
    predicted, looking = 0, runner or Threads(workers)
    with clock.measure("read"):
        unchanged = set() if recipe.force else _unchanged(given, target, recipe, looking, standing)
    done = {symbol: Outcome(symbol, UNCHANGED) for symbol in unchanged}
    done |= {symbol: Outcome(symbol, REMOVED if prune else KEPT) for symbol in missing}
    if unchanged >= symbols and not (prune and missing):
        return report_of(target, done, clock, up_to_date=True)
    load_kernel(recipe.config, clock)
    if runner is None:
        workers, predicted = fit(given, recipe, workers, max_memory, tell)
        runner = Threads(workers)
    with replaced_folder(target, resumable=True) as folder:
        if identity(target) != found and not recipe.force:
            raise StoreError(f"{target} was built by another process meanwhile; build again")
        build = Build(given, folder, target, recipe, runner, progress or tell_nobody)
        changed = [member for member in given.members if member.symbol not in unchanged]
        began = time.perf_counter()
        with _kept_for_the_next(folder, changed):
            for outcome in done.values():
                build.tell(outcome)
            build.run(changed, workers)
            for symbol in standing:
                group = folder / group_name(symbol)
                if build.outcomes[symbol].status != REMOVED and not group.exists():
                    group.mkdir()
                    link_tree(target / group.name, group)
            left = symbols_left(build, standing)
            _give_up(build, outdated, prune=prune)
            _finish(build, left)
        clock.spread(time.perf_counter() - began, [x.seconds for x in build.outcomes.values()])
        began = time.perf_counter()
    clock.seconds["write"] += time.perf_counter() - began
    return report_of(
        target, build.outcomes, clock,
        workers=workers, predicted_bytes=predicted, peak_bytes=peak_bytes(),
    )  # fmt: skip


def tell_nobody(_done: int, _total: int | None) -> None:
    """Progress that none asked for."""


def fit(
    given: Input,
    recipe: Recipe,
    workers: int,
    max_memory: int | None,
    tell: Callable[[str], None] | None,
) -> tuple[int, int]:
    """Lower the number of workers to what fits into memory; return it, and what it will take.

    Call it with the kernel loaded: what a process already takes is counted.
    """
    importlib.import_module("zarr")  # as much as a kernel
    opened = given.opened
    return allot(
        workers, max_memory, tell,
        num_columns=len(spec.columns(recipe.config)),
        batch_bars=BATCH_BARS if opened is None else MAX_BATCH_BARS,
        decoding_bytes=_decoding(given) if opened is None else opened.decoding_bytes,
        at_once=len(given.members),
        num_bars=None if recipe.append else _most_bars(given),  # or with those that stand
    )  # fmt: skip


def _decoding(given: Input) -> int:
    """Memory that a pass over the input of one instrument takes at most."""
    sources = (member.source for member in given.members)
    return max(
        foreseen_decoding(source) if isinstance(source, str | Path) else source.decoding_bytes
        for source in sources
    )


def _most_bars(given: Input) -> int | None:
    """Most bars that the input of one instrument can hold; None where nothing tells cheaply."""
    if given.opened is not None:
        return given.opened.num_rows
    most = 0
    for member in given.members:
        if is_remote(member.source):
            return None
        found = foreseen_bars(member.source)
        if found is None or found >= BATCH_BARS:
            return None  # the rest cannot make it more: no need to look at all of many files
        most = max(most, found)
    return most


def _standing(target: Path, given: set[str], recipe: Recipe, *, prune: bool) -> dict[str, str]:
    """Instruments that stand and may stay, or a refusal to replace what stands."""
    if identity(target) is None:
        return {}
    if recipe.force:
        require_ours(target)
    try:
        attributes = read_attributes(target)
    except StoreError:
        if recipe.force:
            return {}  # nothing in it that can be told
        raise
    return standing_in(attributes, target, given, recipe, prune=prune)


def standing_in(
    attributes: dict[str, Any], where: Path | str, given: set[str], recipe: Recipe, *, prune: bool
) -> dict[str, str]:
    """Group by symbol of the instruments that a universe's attributes tell and that may stay.

    Raises
    ------
    StoreError
        Something else stands there, or of another configuration, and is not to be replaced.
    """
    groups = attributes.get("instruments")
    if attributes.get("kind") != "universe" or not isinstance(groups, dict):
        if recipe.force:
            return {}
        raise StoreError(
            f"{where} holds one instrument, not a universe; pass --force to replace it, or build "
            "into another folder"
        )
    config = FeatureConfig.from_dict(attributes["config"])
    if not recipe.force:
        require_config(where, config, recipe.config)
    elif config != recipe.config:
        others = [symbol for symbol in groups if symbol not in given]
        if others and not prune:
            raise StoreError(
                f"{where} holds {len(others)} instruments of another configuration whose input "
                f"is not given, such as {others[0]}; give it too, or pass --prune to remove them"
            )
        return {}
    return groups


def _outdated(target: Path, recipe: Recipe) -> set[str]:
    """Instruments that stand in another configuration, which cannot stay beside the new ones."""
    try:
        attributes = read_attributes(target)
    except MoolaError:
        return set()  # nothing there, or nothing in it that can be told
    groups = attributes.get("instruments")
    if not isinstance(groups, dict) or attributes.get("config") == recipe.config.to_dict():
        return set()
    return {symbol for symbol, group in groups.items() if (target / group).exists()}


def _still_there(
    target: Path, standing: dict[str, str], given: set[str], *, prune: bool
) -> dict[str, str]:
    """Those that stand whose stores can be read; one that is lost must be given or pruned.

    Raises
    ------
    StoreError
        An instrument that is to be kept, of which nothing is there that could be.
    """
    found = {}
    for symbol, group in standing.items():
        try:
            read_attributes(target / group)
        except MoolaError as error:
            if symbol in given:
                continue  # built anew
            if not prune:
                told = str(error).split(";")[0]
                raise StoreError(
                    f"{target} lists {symbol}, whose store cannot be kept: {told}; give its "
                    "input, or pass --prune to remove it"
                ) from error
        found[symbol] = group
    return found


def _unchanged(
    given: Input, target: Path, recipe: Recipe, runner: Runner, standing: dict[str, str]
) -> set[str]:
    known = [member for member in given.members if member.symbol in standing]
    found = runner.look(Work(recipe, target, target), known, check_files=False)
    return {member.symbol for member, made in found if made}


@contextlib.contextmanager
def _kept_for_the_next(folder: Path, changed: list[Member]) -> Iterator[None]:
    """Clear a folder of all but what is finished of some instruments; again if it is left early."""
    groups = set()
    for member in changed:
        with contextlib.suppress(BarsError):  # of a name that is too long; told when it is built
            groups.add(group_name(member.symbol))
    keep = groups | {f".{group}.building" for group in groups}
    clear_folder(folder, keep)
    try:
        yield
    except BarsError:
        clear_folder(folder)
        raise
    except BaseException:
        clear_folder(folder, keep)
        raise


def _give_up(build: Build, outdated: set[str], *, prune: bool) -> None:
    """Say which stores are lost with the old configuration; without ``prune`` none may be."""
    lost = [
        build.outcomes[symbol]
        for symbol in sorted(outdated & build.outcomes.keys())
        if build.outcomes[symbol].status == FAILED
    ]
    if lost and not prune:
        raise StoreError(
            f"{build.target} stays as it is: of its instruments, {len(lost)} cannot be built with "
            f"the new configuration, such as {lost[0].symbol} ({lost[0].detail}); mend their bars, "
            "or pass --prune to remove them"
        )
    for one in lost:
        detail = f"{one.detail}; its store, of another configuration, is removed"
        build.outcomes[one.symbol] = dataclasses.replace(one, detail=detail)


def _finish(build: Build, symbols: list[str]) -> None:
    """Leave nothing but the instruments, and write what says which they are."""
    clear_folder(build.folder, keep={group_name(symbol) for symbol in symbols})
    source = build.given.source
    write_universe(build.folder, symbols, universe_attributes(build.recipe.config, source))


def symbols_left(build: Build, standing: dict[str, str]) -> list[str]:
    """Instruments that the universe holds in the end, those that were given first.

    Raises
    ------
    BarsError
        Not one.
    """
    order = [*(member.symbol for member in build.given.members), *standing]
    symbols = [
        symbol
        for symbol in dict.fromkeys(order)
        if build.outcomes[symbol].status in {BUILT, UNCHANGED, KEPT}
        or (build.outcomes[symbol].status == FAILED and symbol in standing)
    ]
    if not symbols:
        first = next(iter(build.outcomes.values()))
        raise BarsError(
            f"none of {len(build.outcomes)} instruments can be built; the first: {first.detail}"
        )
    return symbols


def report_of(
    target: Path | str, outcomes: dict[str, Outcome], clock: Clock, **told: Any
) -> BuildReport:
    """Return the report of a universe, by what came of each instrument."""
    counts = {name: sum(getattr(one, name) for one in outcomes.values()) for name in COUNTS}
    in_order = tuple(outcomes[symbol] for symbol in sorted(outcomes))
    return BuildReport(
        target, summarise(target), clock.report(), outcomes=in_order, **counts, **told
    )
