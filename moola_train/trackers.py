"""Sending a run's records elsewhere as well: each tracker is a function of a record."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moola_train.errors import ConfigError
from moola_train.loop import Report


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Report]:
    """Write every number of a run's records as TensorBoard events.

    Parameters
    ----------
    folder
        Where the event files go; `tensorboard --logdir` shows them.

    Yields
    ------
    Report
        To be called with every record of the loop.

    Raises
    ------
    ConfigError
        TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs {error.name}; pip install 'moola[tensorboard]'"
        ) from error
    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def write(record: dict[str, Any]) -> None:
            if not opened:  # not before there is something to write: a run may be refused
                opened.append(stack.enter_context(SummaryWriter(str(folder))))
            for name, value in numbers(record):
                opened[0].add_scalar(name, value, record["step"])

        yield write


def numbers(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Every finite number of a record under the name of its place.

    Examples
    --------
    >>> numbers({"step": 4, "part": "train", "terms": {"span": 0.5}})
    [('train/terms/span', 0.5)]
    >>> numbers({"step": 4, "part": "val", "metrics": {"loss": {"value": 2.0, "floor": None}}})
    [('val/metrics/loss/value', 2.0)]
    """
    found: list[tuple[str, float]] = []

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(f"{prefix}/{name}", inner)
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((prefix, float(value)))

    for name, value in record.items():
        if name not in ("part", "step"):
            visit(f"{record['part']}/{name}", value)
    return found
