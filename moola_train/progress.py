"""A training run in a terminal: one line on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from moola_train.loop import Report


@contextlib.contextmanager
def training_progress(num_epochs: int) -> Iterator[Report]:
    """Show loss, speed, memory and the share of time spent waiting for data.

    Meanwhile what is logged or warned of appears above, a line each.

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
    bars = Progress(*columns, console=Console(file=sys.stderr, soft_wrap=True))
    task = bars.add_task("fit", total=num_epochs, story="")
    story: dict[str, str] = {}
    with contextlib.ExitStack() as stack:

        def report(record: dict[str, Any]) -> None:
            if not story:  # not before there is something to show: a run may be refused
                stack.enter_context(bars)
            story.update(_shown(record))
            bars.update(task, completed=record["epoch"], story=", ".join(story.values()))

        with _told(lambda line: bars.console.print(line, markup=False, highlight=False)):
            yield report


@contextlib.contextmanager
def _told(say: Callable[[str], None]) -> Iterator[None]:
    """Let what the training layer logs or warns of be said in lines of its own."""
    handler = logging.Handler()
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("moola_train")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_others, **_more: say(f"warning: {message}")
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


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
