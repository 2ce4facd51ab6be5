"""One instrument on a cluster: by its chunk ranges where that can be, else as one task."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from moola_features.bars.sources import BarSource
from moola_features.building.job import Job
from moola_features.building.recipe import Recipe
from moola_features.building.report import BuildReport
from moola_features.cluster.dask import Dask, absolute
from moola_features.cluster.ranges import build_ranges, build_whole
from moola_features.errors import ConfigError
from moola_features.remote.objects import is_remote


def build_on_cluster(
    job: Job, source: Any, place: str | Path, recipe: Recipe, dask: Dask
) -> BuildReport:
    """Build the store of one instrument; see :func:`moola_features.build`.

    Parameters
    ----------
    job
        The source, open on this machine.
    source
        What workers can open: a path or an address.
    place
        The store.
    recipe
        What to make of the bars.
    dask
        Runs the tasks.

    Raises
    ------
    ConfigError
        Bars in this machine's memory, which would have to pass through the scheduler.
    """
    if not isinstance(source, str | Path):
        raise ConfigError(
            f"source is {job.opened.description}; a cluster builds from files, so write the bars "
            "to one that its workers reach"
        )
    where = place if is_remote(place) else Path(place).absolute()
    in_parts = (
        not is_remote(source)
        and not is_remote(place)
        and not recipe.append
        and recipe.on_bad_bars == "error"
        and bool(job.opened.num_rows)
        and isinstance(job.opened, BarSource)
        and job.opened.part(0, 1) is not None
    )
    if in_parts:
        return build_ranges(job, absolute(source), Path(where), recipe, dask)
    options = vars(recipe)
    report: BuildReport
    (report,) = dask.run(build_whole, [(absolute(source), where, options)])
    return dataclasses.replace(report, path=place)
