"""Bars in a file to features in a store, in bounded memory and in one step for every reader."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moola_features.building.append import append as append_bars
from moola_features.building.append import config_of
from moola_features.building.instruments import PARTS, NewInstruments
from moola_features.building.job import Job
from moola_features.building.report import BuildReport, Progress
from moola_features.config import FeatureConfig
from moola_features.engine import resolve_workers
from moola_features.errors import MoolaError, StoreError
from moola_features.files import clear_folder, replaced_folder
from moola_features.store import open_store
from moola_features.store.layout import FORMAT, METADATA
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
    workers: int | None = None,
    max_memory: int | str | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> BuildReport:
    """Compute the features of every bar of a source into a store.

    The bits are those of :func:`compute`. Memory does not grow with the input. The store is
    written beside the target and takes its place at the end; until then, and if anything goes
    wrong, what was there stays. A build that was cut off leaves its finished chunks to the next
    one. A store that already holds these features of this very input is left alone.

    Parameters
    ----------
    source
        Path of a bar file, or anything else that :func:`read_bars` takes. A source of several
        symbols becomes a universe: one store for each, below one folder.
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
    workers
        Threads that compute and write, besides the one that reads; one for each core when None.
        The bytes of the store do not depend on it.
    max_memory
        Most memory that this process may take, such as ``"500MB"``: the number of workers is
        lowered until it fits. None for no limit.
    progress
        Called with bars done and bars in all (None where unknown).
    tell
        Called, before anything is built, with a line about the memory that it will take.

    Returns
    -------
    BuildReport
        Counts, gaps, dropped bars and times.

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
    target = Path(path)
    found = _identity(target)
    grow = append and not force and found is not None
    if grow:
        config = config_of(target, config)
    job = Job.open(
        source, config or FeatureConfig(),
        column_map=column_map, on_bad_bars=on_bad_bars, workers=num_workers,
        max_memory=max_memory, progress=progress,
    )  # fmt: skip
    if found and force:
        _require_ours(target)
    elif found and not grow and _is_up_to_date(target, job):
        return job.report(target)
    job.begin(tell)
    return append_bars(job, target) if grow else _make(job, target, found, force)


def _make(job: Job, target: Path, found: tuple[int, ...] | None, force: bool) -> BuildReport:
    """Build every bar; ``found`` is what stood at the target when it was looked at."""
    with replaced_folder(target, resumable=True) as folder:
        if _identity(target) != found and not force:
            raise StoreError(f"{target} was built by another process meanwhile; build again")
        with job.crew() as crew:
            instruments = NewInstruments(folder, job.config, job.opened.symbols, crew)
            try:
                with contextlib.closing(instruments):
                    job.run(instruments)
            except BaseException as error:
                # What is wrong with the bars stays wrong; else the next build goes on from here.
                if isinstance(error, MoolaError) or not instruments.has_finished_chunks:
                    clear_folder(folder)
                raise
        began = time.perf_counter()
    # Flushing everything to the disk, and taking the target's place.
    job.clock.seconds["write"] += time.perf_counter() - began
    return job.report(target, instruments)


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


def _identity(target: Path) -> tuple[int, int, int] | None:
    """What tells a folder from the one that replaces it; None where none can be seen."""
    try:
        status = target.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _require_ours(target: Path) -> None:
    """Refuse to replace a folder that is no store, finished or damaged, whatever is asked."""
    try:
        document = json.loads((target / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # No mark that can be read: ours if it holds nothing but parts of a store. Empty will do.
        ours = target.is_dir() and {entry.name for entry in target.iterdir()} <= PARTS
    else:
        attributes = document.get("attributes") if isinstance(document, dict) else None
        ours = isinstance(attributes, dict) and attributes.get("format") == FORMAT
    if not ours:
        raise StoreError(f"{target} is no store, so it is not replaced; build into another folder")
