"""What fitting and pretraining do alike: join the other processes, show progress, say the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moola_features.terminal import count, print_fields
from moola_train.config import RunConfig

if TYPE_CHECKING:
    from moola_train.assembly import RunReport
    from moola_train.distributed import World
    from moola_train.loop import Outcome, Report


@contextlib.contextmanager
def running(
    config: RunConfig, run_path: Path, *, tensorboard: bool, mlflow: str | None
) -> Iterator[tuple[World, Report]]:
    """Join the other processes, if any; the first one shows progress and keeps records."""
    from moola_train import trackers
    from moola_train.devices import uses_gpu
    from moola_train.distributed import joined
    from moola_train.progress import training_progress

    with contextlib.ExitStack() as stack:
        world = stack.enter_context(joined(on_gpu=uses_gpu(config.loop)))
        listeners: list[Report] = []
        if world.writes:
            if tensorboard:
                folder = run_path / "tensorboard"
                listeners.append(stack.enter_context(trackers.tensorboard(folder)))
            if mlflow is not None:
                listeners.append(stack.enter_context(trackers.mlflow(mlflow, config, run_path)))
            listeners.append(stack.enter_context(training_progress(config.loop.epochs)))

        def report(record: dict[str, Any]) -> None:
            for listener in listeners:
                listener(record)

        yield world, report


def exit_if_stopped(outcome: Outcome) -> None:
    """Say how a run that was stopped goes on, and exit with 1."""
    if outcome.status == "stopped":
        click.echo(f"stopped at step {outcome.step}; go on with --resume auto", err=True)
        sys.exit(1)


def print_outcome(report: RunReport) -> None:
    """Print how a run ended, on how many windows."""
    outcome = report.outcome
    parts = ", ".join(f"{name} {count(size)}" for name, size in report.parts.items())
    print_fields(
        str(report.run),
        [
            ("status", f"{outcome.status} at epoch {outcome.epoch}, step {outcome.step}"),
            ("windows", parts),
            ("parameters", count(report.num_parameters)),
        ],
    )
