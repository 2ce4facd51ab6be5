"""A training run in a terminal: one line on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from moola_train.loop import Report


@contextlib.contextmanager
def training_progress(num_epochs: int) -> Iterator[Report]:
    """Show loss, speed, memory and the share of time spent waiting for data.

    Yields
    ------
    Report
        To be called with every record of the loop.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("epoch {task.completed:g}/{task.total:g}"),
        BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[story]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr)) as bars:
        task = bars.add_task("fit", total=num_epochs, story="")
        story: dict[str, str] = {}

        def report(record: dict[str, Any]) -> None:
            story.update(_shown(record))
            bars.update(task, completed=record["epoch"], story=", ".join(story.values()))

        yield report


def _shown(record: dict[str, Any]) -> dict[str, str]:
    if record["part"] == "val":
        return {"val": f"val loss {record['metrics']['loss']['value']:.4f}"}
    timing = record["timing"]
    shown = {
        "loss": f"loss {sum(record['terms'].values()):.4f}",
        "speed": f"{timing['windows_per_second']:,.0f} windows/s",
        "wait": f"waiting {timing['waiting_share']:.0%}",
    }
    if "device_bytes" in timing:
        shown["memory"] = f"{timing['device_bytes'] / 1e9:.1f} GB"
    return shown
