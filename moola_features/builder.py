"""Bars in a file to features in a store, in bounded memory and in one step for every reader."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moola_features.building.append import append as append_bars
from moola_features.building.append import config_of
from moola_features.building.job import Job
from moola_features.building.make import identity, make, require_ours
from moola_features.building.memory import parse_size
from moola_features.building.recipe import Recipe
from moola_features.building.report import BuildReport, Progress
from moola_features.config import FeatureConfig
from moola_features.engine import resolve_workers
from moola_features.errors import ConfigError, StoreError
from moola_features.files import require_named, steady_path
from moola_features.remote.building import build_remote_instrument, build_remote_universe
from moola_features.remote.objects import is_remote, local_path
from moola_features.remote.transfer import at_hand
from moola_features.store import open_store, read_attributes
from moola_features.store.layout import require_outside
from moola_features.universe.building import build_universe
from moola_features.universe.inputs import Input, files_of, names_files
from moola_features.universe.sorting import symbols_of
from moola_features.versions import versions

if TYPE_CHECKING:
    from moola_features.cluster.dask import Dask

__all__ = ["BuildReport", "build"]


def build(
    source: Any,
    path: str | Path,
    config: FeatureConfig | None = None,
    *,
    column_map: Mapping[str, str] | None = None,
    on_bad_bars: str = "error",
    force: bool = False,
    append: bool = False,
    prune: bool = False,
    dask: str | None = None,
    workers: int | None = None,
    max_memory: int | str | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> BuildReport:
    """Compute the features of every bar of a source into a store, or of several into a universe.

    The bits are those of :func:`compute`. Memory does not grow with the input. The store is
    written beside the target and takes its place at the end; until then, and if anything goes
    wrong, what was there stays. A build that was cut off leaves its finished chunks to the next
    one. A store that already holds these features of this very input is left alone.

    Parameters
    ----------
    source
        Path of a bar file, or anything else that :func:`read_bars` takes. A list of files, a
        folder of them, a pattern such as ``data/*.parquet``, or a source of several symbols
        becomes a universe: one store for each, below one folder. Files may be addresses.
    path
        Folder of the store, or an address such as ``s3://bucket/nq.zarr``.
    config
        What to compute; the standard profile when None.
    column_map
        Column by field where names are not recognised, such as ``{"open": "px_open"}``.
    on_bad_bars
        ``"error"``, or ``"drop"`` to leave bad bars out, counted and listed in the report.
    force
        Replace a store of another input or configuration, or rebuild one that is up to date.
    append
        Put what the source has behind the last bar of a store behind it, and leave the rest as it
        is: the source holds new bars only, or also some or all that are stored, which must
        agree. The configuration is the store's, and must be if one is given. Without a store to
        append to, or with ``force``, one is built of the source alone.
    prune
        Remove instruments of a universe whose input is not given; they stay by default. Refused
        with ``append``, and for one instrument.
    dask
        Address of a Dask scheduler, such as ``tcp://host:8786``, whose workers reach the input and
        the target by the same paths or addresses: they build whole instruments, or chunk ranges of
        one that is a Parquet file. The bytes of the store do not depend on it.
    workers
        Threads that compute and write, besides the one that reads; when None one more than there
        are cores, since one of them mostly waits for the disk. The bytes of the store do not
        depend on it.
    max_memory
        Most memory that this process may take, such as ``"500MB"``: the number of workers is
        lowered until it fits. None for no limit.
    progress
        Called with bars done and bars in all (None where unknown), for a universe with
        instruments done and in all.
    tell
        Called, before anything is built, with a line about the memory that it will take.

    Returns
    -------
    BuildReport
        Counts, gaps, dropped bars and times; for a universe also what could not be built.

    Raises
    ------
    BarsError
        Bars that cannot be read or contradict themselves or, appended, the store; or too few for
        one window.
    StoreError
        The target holds something else and ``force`` is not set; or it cannot be appended to.
    ConfigError
        Less than one worker, memory that not even one fits into, a limit of it for a cluster, what
        is no address of one, a ``column_map`` that fits no input, or ``prune`` where there is
        nothing to be removed.
    OutputError
        A full disk, no permission, a target that is inside another store, or another build of the
        same target.
    """
    if prune and append and not force:
        raise ConfigError("prune is set, and append removes nothing; leave out --append or --prune")
    place = local_path(path)
    many: dict[str, Any] = {
        "prune": prune, "progress": progress, "tell": tell,
        "max_memory": None if max_memory is None else parse_size(max_memory),
    }  # fmt: skip
    if dask is not None and max_memory is not None:
        raise ConfigError(
            f"max_memory is {max_memory!r}, and a cluster's workers have limits of their own; "
            "leave it out, or build without --dask"
        )
    target = Path(place)
    found = None
    if not is_remote(place):
        require_named(place)
        place = target = steady_path(place)
        found = identity(target)
    if append and is_remote(place):
        raise StoreError(f"{place} cannot be appended to; build it anew, without --append")
    grow = append and not force and found is not None
    if grow:
        config = config_of(target, config)
    elif not is_remote(place):
        require_outside(target)
    recipe = Recipe(
        config=FeatureConfig.or_standard(config), column_map=column_map, on_bad_bars=on_bad_bars,
        force=force, append=grow,
    )  # fmt: skip
    with _runner(dask) as runner:
        order = Order(place, found, recipe, resolve_workers(workers, waiting=1), runner, many)
        if names_files(source):
            return _build_universe(files_of(source), order)
        with at_hand(source) as near:
            return _build_source(near, source, order)


@dataclass(frozen=True)
class Order:
    """What is to be built where, and by whom.

    Attributes
    ----------
    place
        The target.
    found
        What :func:`identity` tells of it.
    recipe
        Settings.
    workers
        Threads.
    runner
        A cluster; None for this machine.
    options
        ``prune``, ``max_memory``, ``progress`` and ``tell``, as for :func:`build`.
    """

    place: str | Path
    found: tuple[int, ...] | None
    recipe: Recipe
    workers: int
    runner: Dask | None
    options: dict[str, Any]


def _build_source(near: Any, source: Any, order: Order) -> BuildReport:
    """Build what one source holds; ``near`` is a copy of it on this machine, or itself."""
    recipe, place, target = order.recipe, order.place, Path(order.place)
    told = order.options
    job = Job.open(
        near, recipe, workers=order.workers,
        max_memory=told["max_memory"], progress=told["progress"],
    )  # fmt: skip
    onto_universe = bool(order.found) and not recipe.append and _is_universe(target)
    symbols = job.opened.symbols
    if (len(symbols) > 1 and not recipe.append) or (symbols and onto_universe):
        opened: Any = job.opened  # from a file or from memory: no source of one symbol
        return _build_universe(symbols_of(opened, job.settings), order, clock=job.clock)
    if onto_universe and not recipe.force:
        raise StoreError(
            f"{target} holds a universe, not one instrument; pass --force to replace it, or build "
            "into another folder"
        )
    if told["prune"]:
        raise ConfigError(
            f"prune is set, and {job.settings['source']} is one instrument, not a universe; "
            "leave out --prune"
        )
    if is_remote(place) and order.runner is None:
        return build_remote_instrument(job, str(place), recipe, told["tell"])
    if order.found and recipe.force:
        require_ours(target)
    elif order.found and not recipe.append and _is_up_to_date(target, job):
        return job.report(target)
    if order.runner is not None:
        from moola_features.cluster.alone import build_on_cluster

        return build_on_cluster(job, source, place, recipe, order.runner)
    job.begin(told["tell"])
    if recipe.append:
        return append_bars(job, target)
    return make(job, target, order.found, force=recipe.force)


def _runner(address: str | None) -> contextlib.AbstractContextManager[Dask | None]:
    if address is None:
        return contextlib.nullcontext()
    from moola_features.cluster.dask import Dask

    return Dask(address)


def _build_universe(given: Input, order: Order, **clock: Any) -> BuildReport:
    told = {**order.options, **clock, "runner": order.runner}
    if not is_remote(order.place):
        return build_universe(given, Path(order.place), order.recipe, order.workers, **told)
    if order.runner is not None and given.opened is not None:
        raise ConfigError(
            f"{order.place} is an address: there, a cluster cannot tell the symbols of one source "
            "apart; build without --dask, or give a file for each symbol"
        )
    return build_remote_universe(given, str(order.place), order.recipe, order.workers, **told)


def _is_universe(target: Path) -> bool:
    """Whether a finished universe stands there; what is damaged is told of later."""
    try:
        return read_attributes(target).get("kind") == "universe"
    except StoreError:
        return False


def _is_up_to_date(target: Path, job: Job) -> bool:
    """Whether a store already is what is asked for; refuse to replace one of something else."""
    opened = open_store(target, job.config)
    known = opened.attributes.get("input", {})
    if known.get("source") != job.settings["source"]:
        raise StoreError(
            f"{target} was built from {known.get('source')}, not {job.settings['source']}; "
            "pass --force to replace it, or build into another folder"
        )
    if known.get("appended"):
        raise StoreError(
            f"{target} holds bars that were appended from {known['appended'][-1]['source']}; pass "
            "--append to go on, or --force to replace it by one without them"
        )
    with job.clock.measure("read"):
        asked = {**job.settings, "sha256": job.opened.sha256()}
    same_moola = opened.attributes.get("versions", {}).get("moola") == versions()["moola"]
    return same_moola and all(known.get(name) == value for name, value in asked.items())
