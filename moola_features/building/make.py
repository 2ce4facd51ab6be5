"""Making one instrument's store anew, in one step for every reader."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from moola_features.building.instruments import PARTS, NewInstrument
from moola_features.building.job import Job
from moola_features.building.report import BuildReport
from moola_features.errors import MoolaError, StoreError
from moola_features.files import clear_folder, replaced_folder
from moola_features.store.layout import FORMAT, METADATA


def make(
    job: Job,
    target: Path,
    found: tuple[int, ...] | None,
    *,
    force: bool = False,
    symbol: str | None = None,
    durable: bool = True,
) -> BuildReport:
    """Build every bar of one instrument.

    Parameters
    ----------
    job
        The source.
    target
        The store.
    found
        What :func:`identity` told of the target when it was looked at.
    force
        Whether the target may be another by now.
    symbol
        What the store calls the instrument; as the source does when None.
    durable
        Whether the store is to be on the disk when this returns. Not needed below a folder that
        is flushed as a whole.
    """
    if symbol is None and job.opened.symbols:
        symbol = job.opened.symbols[0]
    with replaced_folder(target, resumable=True, durable=durable) as folder:
        if identity(target) != found and not force:
            raise StoreError(f"{target} was built by another process meanwhile; build again")
        with job.crew() as crew:
            instrument = NewInstrument(folder, job.config, symbol, crew)
            try:
                with contextlib.closing(instrument):
                    job.run(instrument)
            except BaseException as error:
                # What is wrong with the bars stays wrong; else the next build goes on from here.
                if isinstance(error, MoolaError) or not instrument.has_finished_chunks:
                    clear_folder(folder)
                raise
        began = time.perf_counter()
    # Flushing everything to the disk, and taking the target's place.
    job.clock.seconds["write"] += time.perf_counter() - began
    return job.report(target, instrument)


def identity(target: Path) -> tuple[int, int, int] | None:
    """What tells a folder from the one that replaces it; None where none can be seen."""
    try:
        status = target.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def require_ours(target: Path) -> None:
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
