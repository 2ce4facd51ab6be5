"""Fit a preset to labelled windows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moola_features.command import command, json_option
from moola_features.terminal import print_json, print_table
from moola_train.commands.options import PATH, config_of, open_one, run_options, setting_options
from moola_train.commands.running import exit_if_stopped, print_outcome, running
from moola_train.config import RunConfig
from moola_train.evaluation.names import MEANING

if TYPE_CHECKING:
    from moola_train.fit import FitReport


@command
@click.argument("store", type=PATH, required=False)
@click.option("--labels", type=PATH, required=True, help="Labelled windows.")
@click.option("--split", "split_path", type=PATH, required=True, help="Split of the labels.")
@click.option("--fold", type=int, default=0, show_default=True)
@click.option("--encoder", type=PATH, help="Encoder file of `pretrain` to start from.")
@click.option("--freeze-epochs", type=int, help="Train the heads alone for so many epochs.")
@click.option("--unfreeze-lr-scale", type=float, help="Learning rate of the encoder afterwards.")
@run_options
@setting_options
@json_option
def fit(
    store: Path | None,
    labels: Path,
    split_path: Path,
    fold: int,
    encoder: Path | None,
    run_path: Path,
    resume: str,
    tensorboard: bool,
    mlflow: str | None,
    config: Path | None,
    settings: dict[str, str],
    print_config: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Fit a model to labelled windows of STORE, or to windows that hold their own prices."""
    resolved = config_of(RunConfig, config, settings, flags)
    if print_config:
        click.echo(resolved.to_toml(), nl=False)
        return
    from moola_train.fit import fit as fit_model

    with running(resolved, run_path, tensorboard=tensorboard, mlflow=mlflow) as (world, report):
        found = fit_model(
            open_one(store), labels, split_path, run_path, resolved,
            fold=fold, encoder=encoder, resume=resume == "auto", report=report, world=world,
        )  # fmt: skip
    if world.writes:
        print_json(found.to_dict()) if as_json else _print_fit(found)
    exit_if_stopped(found.outcome)


def _print_fit(report: FitReport) -> None:
    print_outcome(report)
    outcome = report.outcome
    if not outcome.best:
        return
    click.echo(f"\nvalidation at its best ({outcome.best['watch']}), epoch {outcome.best['epoch']}")
    rows = []
    for name, metric in outcome.best["metrics"].items():
        value, floor, better = metric["value"], metric["floor"], metric["better"]
        beats = ""
        if floor is not None and better is not None:
            beats = "yes" if (value > floor if better == "higher" else value < floor) else "no"
        shown = "-" if floor is None else f"{floor:.3f}"
        rows.append((name, f"{value:.3f}", shown, better or "-", beats))
    headers = ("metric", "value", "floor", "better", "beats its floor")
    print_table(headers, rows, numbers=(1, 2))
    click.echo(f"\n{MEANING}")
