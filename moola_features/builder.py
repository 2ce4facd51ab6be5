"""Bars in a file to features in a store, in bounded memory and in one step for every reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moola_features.building.append import append as append_bars
from moola_features.building.append import config_of
from moola_features.building.job import Job
from moola_features.building.make import identity, make, require_ours
from moola_features.building.memory import parse_size
from moola_features.building.recipe import Recipe
from moola_features.building.report import BuildReport, Progress
from moola_features.config import FeatureConfig
from moola_features.engine import resolve_workers
from moola_features.errors import StoreError
from moola_features.store import open_store
from moola_features.universe.building import build_universe
from moola_features.universe.inputs import files_of, names_files
from moola_features.universe.sorting import symbols_of
from moola_features.versions import versions

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
        becomes a universe: one store for each, below one folder.
    path
        Folder of the store.
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
        Remove instruments of a universe whose input is not given; they stay by default.
    workers
        Threads that compute and write, besides the one that reads; one for each core when None.
        The bytes of the store do not depend on it.
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
        Less than one worker, or memory that not even one fits into.
    OutputError
        A full disk, no permission, or another build of the same target.
    """
    num_workers = resolve_workers(workers)
    limit = None if max_memory is None else parse_size(max_memory)
    target = Path(path)
    found = identity(target)
    grow = append and not force and found is not None
    if grow:
        config = config_of(target, config)
    recipe = Recipe(
        config=config or FeatureConfig(), column_map=column_map, on_bad_bars=on_bad_bars,
        force=force, append=grow,
    )  # fmt: skip
    many: dict[str, Any] = {"prune": prune, "max_memory": limit, "progress": progress, "tell": tell}
    if names_files(source):
        return build_universe(files_of(source), target, recipe, num_workers, **many)
    job = Job.open(source, recipe, workers=num_workers, max_memory=limit, progress=progress)
    if len(job.opened.symbols) > 1 and not grow:
        opened: Any = job.opened  # from a file or from memory: no source of one symbol
        given = symbols_of(opened, job.settings)
        return build_universe(given, target, recipe, num_workers, clock=job.clock, **many)
    if found and force:
        require_ours(target)
    elif found and not grow and _is_up_to_date(target, job):
        return job.report(target)
    job.begin(tell)
    if grow:
        return append_bars(job, target)
    return make(job, target, found, force=force)


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
