"""Pretrain an encoder on windows that need no labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moola_features.command import command, json_option
from moola_features.terminal import print_json, print_table
from moola_train.commands.options import PATH, config_of, open_one, run_options, setting_options
from moola_train.commands.outputs import require_output
from moola_train.commands.running import exit_if_stopped, print_outcome, running
from moola_train.errors import ConfigError
from moola_train.pretrain_config import OBJECTIVES, PretrainConfig

if TYPE_CHECKING:
    from moola_train.pretrain import PretrainReport


@command
@click.argument("store", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Encoder file (.safetensors).")
@click.option("--objective", type=click.Choice(OBJECTIVES), help="What is learnt; mae.")
@click.option("--stride", type=int, help="Bars from one window to the next; 52 when left out.")
@click.option("--split", "split_path", type=PATH, help="Read its training period only.")
@click.option("--labels", type=PATH, help="Labels that the split was made of.")
@click.option("--fold", type=int, default=0, show_default=True)
@run_options
@setting_options
@json_option
def pretrain(
    store: Path,
    output: Path,
    split_path: Path | None,
    labels: Path | None,
    fold: int,
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
    """Pretrain an encoder on windows of STORE that need no labels."""
    resolved = config_of(PretrainConfig, config, settings, flags)
    if print_config:
        click.echo(resolved.to_toml(), nl=False)
        return
    if (split_path is None) != (labels is None):
        raise click.UsageError("--split and --labels belong together: give both or neither")
    from moola_train.pretrain import TrainingPeriod
    from moola_train.pretrain import pretrain as pretrain_encoder

    _require_encoder(output, run_path, store=store, labels=labels, split=split_path, config=config)
    opened = open_one(store)
    assert opened is not None
    period = None
    if split_path is not None and labels is not None:
        period = TrainingPeriod.of(
            opened, labels, split_path, fold, classes=resolved.data.class_names
        )
    with running(resolved, run_path, tensorboard=tensorboard, mlflow=mlflow) as (world, report):
        found = pretrain_encoder(
            opened, output, run_path, resolved,
            period=period, resume=resume == "auto", report=report, world=world,
        )  # fmt: skip
    if world.writes:
        print_json(found.to_dict()) if as_json else _print_pretrain(found)
    exit_if_stopped(found.outcome)


def _require_encoder(output: Path, run_path: Path, **inputs: Path | None) -> None:
    """Refuse an encoder file that, or whose card, would lie over what is read or of the run."""
    from moola_train.runs import OWN_FILES
    from moola_train.transfer import card_path, encoder_path

    card = card_path(encoder_path(output))
    require_output(output, (".safetensors",), called="output", **inputs)
    require_output(card, (".json",), called="the card beside the output", **inputs)
    for file in (output, card):
        if file.name in OWN_FILES and file.parent.resolve() == run_path.resolve():
            raise ConfigError(
                f"output is {str(output)!r}, but {str(file)!r} is a file of the run itself; choose "
                "another name"
            )


def _print_pretrain(report: PretrainReport) -> None:
    print_outcome(report)
    if not report.columns:
        return
    best = report.outcome.best
    click.echo(f"\nHuber loss of masked steps at its best ({best['watch']}), epoch {best['epoch']}")
    kinds = ("loss", "mean_floor", "interpolation_floor")
    overall = {"column": "all", **{kind: best["metrics"][kind]["value"] for kind in kinds}}
    rows = []
    for entry in (overall, *report.columns):
        loss, *floors = (entry[kind] for kind in kinds)
        shown = (f"{value:.4f}" for value in (loss, *floors))
        rows.append((entry["column"], *shown, "yes" if loss < min(floors) else "no"))
    headers = ("column", "loss", "mean", "interpolation", "beats both")
    print_table(headers, rows, numbers=(1, 2, 3))
