"""Building into an object store: made on the local disk, then brought there, the mark last."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moola_features.building.instruments import universe_attributes
from moola_features.building.job import Job, load_kernel
from moola_features.building.make import make
from moola_features.building.memory import peak_bytes
from moola_features.building.outcomes import FAILED, KEPT, REMOVED, UNCHANGED, Outcome
from moola_features.building.recipe import Recipe
from moola_features.building.report import BuildReport, Clock, Progress
from moola_features.config import FeatureConfig
from moola_features.errors import StoreError, StoreNotFoundError
from moola_features.remote.objects import Objects
from moola_features.remote.store import remote_attributes
from moola_features.remote.transfer import publish
from moola_features.store import require_config
from moola_features.store.layout import METADATA, group_name
from moola_features.store.summary import summarise
from moola_features.store.writer import write_universe
from moola_features.universe.building import (
    Build,
    fit,
    report_of,
    standing_in,
    symbols_left,
    tell_nobody,
)
from moola_features.universe.inputs import Input
from moola_features.universe.runner import Runner, Threads
from moola_features.universe.tasks import Work
from moola_features.versions import versions


def build_remote_instrument(
    job: Job, address: str, recipe: Recipe, tell: Callable[[str], None] | None
) -> BuildReport:
    """Build the store of one instrument into an object store; see :func:`moola_features.build`."""
    objects = Objects(address)
    known = _attributes(objects)
    if known is not None and not recipe.force:
        if known.get("kind") == "universe":
            raise StoreError(
                f"{address} holds a universe, not one instrument; pass --force to replace it, or "
                "build to another address"
            )
        require_config(address, FeatureConfig.from_dict(known["config"]), recipe.config)
        told, name = known.get("input", {}), job.settings["source"]
        if told.get("source") != name:
            raise StoreError(
                f"{address} was built from {told.get('source')}, not {name}; pass --force to "
                "replace it, or build to another address"
            )
        asked = {**job.settings, "sha256": job.opened.sha256()}
        same = all(told.get(key) == value for key, value in asked.items())
        if same and known["versions"]["moola"] == versions()["moola"]:
            return BuildReport(
                objects.address, summarise(objects.address), job.clock.report(), up_to_date=True
            )
    job.begin(tell)
    with tempfile.TemporaryDirectory(prefix="moola-") as scratch:
        report = make(job, Path(scratch) / "store", None, durable=False)
        began = time.perf_counter()
        publish(Path(scratch) / "store", objects)
    job.clock.seconds["write"] += time.perf_counter() - began
    return dataclasses.replace(
        report, path=objects.address, instruments=summarise(objects.address),
        seconds=job.clock.report(),
    )  # fmt: skip


def build_remote_universe(
    given: Input,
    address: str,
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
    """Build a universe into an object store, instrument by instrument.

    A reader sees each instrument as it was or as it will be, and a new universe, or a new
    instrument in it, when all is done. Nothing is locked: let one build run at a time.

    Parameters
    ----------
    given, recipe, workers, prune, max_memory, tell, progress, clock, runner
        As for :func:`build_universe`.
    address
        Of the universe.

    Returns
    -------
    BuildReport
        As :func:`build_universe` returns it, and raises; also RemoteError.
    """
    clock = clock or Clock()
    objects = Objects(address)
    known = _attributes(objects)
    symbols = {member.symbol for member in given.members}
    standing = {} if known is None else standing_in(known, address, symbols, recipe, prune=prune)
    missing = [symbol for symbol in standing if symbol not in symbols]
    predicted = 0
    load_kernel(recipe.config, clock)
    if runner is None:
        workers, predicted = fit(given, recipe, workers, max_memory, tell)
        runner = Threads(workers)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="moola-") as name:
        folder = Path(name)
        build = Build(
            given, folder, folder / ".none", recipe, runner, progress or tell_nobody,
            objects.address,
        )  # fmt: skip
        unchanged: set[str] = set()
        if not recipe.force:
            work = Work(recipe, folder, folder, address=objects.address)
            old = [member for member in given.members if member.symbol in standing]
            found = runner.look(work, old, check_files=False)
            unchanged = {member.symbol for member, made in found if made}
        for symbol in unchanged:
            build.tell(Outcome(symbol, UNCHANGED))
        for symbol in missing:
            build.tell(Outcome(symbol, REMOVED if prune else KEPT))
        if unchanged >= symbols and not (prune and missing):
            clock.seconds["read"] += time.perf_counter() - began
            return report_of(objects.address, build.outcomes, clock, up_to_date=True)
        build.run([one for one in given.members if one.symbol not in unchanged], workers)
        left = symbols_left(build, standing)
        _tell_lost(build, known)
        write_universe(folder, left, universe_attributes(recipe.config, given.source))
        objects.write(METADATA, (folder / METADATA).read_bytes())
    for symbol in missing if prune else ():
        group = objects.below(group_name(symbol))
        group.remove(sorted(group.names()))
    times = [outcome.seconds for outcome in build.outcomes.values()]
    clock.spread(time.perf_counter() - began, times)
    return report_of(
        objects.address, build.outcomes, clock,
        workers=workers, predicted_bytes=predicted, peak_bytes=peak_bytes(),
    )  # fmt: skip


def _tell_lost(build: Build, known: dict[str, Any] | None) -> None:
    """Say which stores of an old configuration nothing new took the place of.

    A build on this machine refuses to lose them. Here the others have taken their places already.
    """
    if known is None or known.get("config") == build.recipe.config.to_dict():
        return
    for symbol in known.get("instruments", {}):
        one = build.outcomes.get(symbol)
        if one is not None and one.status == FAILED:
            place = f"{build.address}/{group_name(symbol)}"
            detail = f"{one.detail}; its store, of another configuration, stays at {place} alone"
            build.outcomes[symbol] = dataclasses.replace(one, detail=detail)


def _attributes(objects: Objects) -> dict[str, Any] | None:
    try:
        return remote_attributes(objects)
    except StoreNotFoundError:
        return None
