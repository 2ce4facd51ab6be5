"""Bars appended to a store: the bytes that a rebuild from all of them would write."""

from __future__ import annotations

import time
from pathlib import Path

from moola_features.bars.sources import BarSource
from moola_features.building.instruments import GrowingInstruments
from moola_features.building.job import Job
from moola_features.building.outcomes import FAILED, Outcome
from moola_features.building.report import BuildReport
from moola_features.config import FeatureConfig
from moola_features.errors import BarsError, MoolaError, StoreError
from moola_features.files import replaced_folder
from moola_features.store import (
    Store,
    Universe,
    open_store,
    read_attributes,
    require_config,
    undisturbed,
)
from moola_features.versions import versions


def append(job: Job, target: Path, *, durable: bool = True) -> BuildReport:
    """Append what is new in a source to a store.

    Parameters
    ----------
    job
        The source, with the configuration of the store.
    target
        The store.
    durable
        Whether the store is to be on the disk when this returns.

    Returns
    -------
    BuildReport
        What was done; ``up_to_date`` where nothing was new.

    Raises
    ------
    BarsError
        Bars that contradict what is stored, or too few for an instrument that is new; where
        others of a universe can go on, they do, and the report tells what is wrong with these.
    StoreError
        A last chunk that is damaged, likewise; a store that cannot be opened, was made by another
        moola, or is of other instruments.
    """
    refused: dict[str | None, MoolaError] = {}
    try:
        with replaced_folder(target, durable=durable) as folder:
            # Opened behind the lock: nobody replaces it from here on.
            opened = open_store(target, job.config)
            _require_this_moola(opened)
            single = len(job.opened.symbols) < 2
            batches = None
            if isinstance(opened, Universe) and isinstance(job.opened, BarSource) and not single:
                batches = job.opened.batches(refused=refused)
            with job.crew() as crew:
                instruments = GrowingInstruments(
                    folder, opened, job.config, job.opened.symbols, job.opened.description,
                    in_rows=single and job.settings["on_bad_bars"] == "error", crew=crew,
                    refused=None if batches is None else refused,
                )  # fmt: skip
                job.run(instruments, batches)
            if refused and not instruments.num_new:
                raise _first_of(refused)
            if not instruments.num_new:
                raise _NothingNewError
            began = time.perf_counter()
    except _NothingNewError:
        return job.report(target)
    job.clock.seconds["write"] += time.perf_counter() - began
    outcomes = {name: Outcome(name, status) for name, status in instruments.statuses().items()}
    told = {str(name): str(error) for name, error in refused.items()}
    outcomes |= {name: Outcome(name, FAILED, detail) for name, detail in told.items()}
    return job.report(
        target, instruments,
        num_appended=instruments.num_new,
        outcomes=tuple(outcomes[name] for name in sorted(outcomes)) if refused else (),
    )  # fmt: skip


def _first_of(refused: dict[str | None, MoolaError]) -> MoolaError:
    """What to say where nothing new will do."""
    first = next(iter(refused.values()))
    if len(refused) == 1:
        return first
    return BarsError(f"nothing of {len(refused)} instruments can be appended; the first: {first}")


def config_of(target: Path, config: FeatureConfig | None) -> FeatureConfig:
    """Return the configuration of a store, which must be the one asked for, if one is."""
    attributes = undisturbed(target, lambda: read_attributes(target))
    try:
        found = FeatureConfig.from_dict(attributes["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{target}: attributes cannot be read: {error!r}; rebuild it with --force"
        ) from error
    require_config(target, found, config or found)
    return found


class _NothingNewError(Exception):
    """Leaves the folder beside the target, so that the target stays as it is."""


def _require_this_moola(opened: Store | Universe) -> None:
    for store in opened.values() if isinstance(opened, Universe) else [opened]:
        found = store.attributes.get("versions", {}).get("moola")
        if found != versions()["moola"]:
            raise StoreError(
                f"{store.path} was built by moola {found}, this is {versions()['moola']}; "
                "rebuild it with --force"
            )
