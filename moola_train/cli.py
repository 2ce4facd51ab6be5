"""The command line of the training layer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moola_features import __version__
from moola_features.command import CONTEXT, command_of, json_option, run
from moola_features.terminal import count, print_fields, print_json, print_table
from moola_train.config import DEVICES, PRECISIONS, RunConfig
from moola_train.pretrain_config import OBJECTIVES, PretrainConfig

if TYPE_CHECKING:
    from moola_features.store import Store
    from moola_train.distributed import World
    from moola_train.fit import FitReport
    from moola_train.loop import Outcome, Report
    from moola_train.pretrain import PretrainReport

_PATH = click.Path(path_type=Path)


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="moola-train")
def cli() -> None:
    """Train small recurrent models on the windows of a feature store."""


_command = command_of(cli)


def _run_options(function: Callable[..., None]) -> Callable[..., None]:
    resume = click.option(
        "--resume", type=click.Choice(["never", "auto"]), default="never", show_default=True,
        help="auto: go on from the folder's last checkpoint, if there is one.",
    )  # fmt: skip
    # Not --run: torchrun would take it for a short form of its own --run-path.
    folder = click.option(
        "--run-folder",
        "run_path",
        type=_PATH,
        default="run",
        show_default=True,
        help="Folder of the run.",
    )
    events = click.option(
        "--tensorboard", is_flag=True, help="Write TensorBoard events into the run's folder too."
    )
    return folder(resume(events(function)))


@_command
@json_option
def models(as_json: bool) -> None:
    """List the presets with their parameters and output shapes."""
    import dataclasses

    from moola_train.models import describe

    found = describe()
    if as_json:
        print_json([dataclasses.asdict(description) for description in found])
        return
    rows = [
        (
            description.name,
            count(description.num_parameters),
            str(description.num_features),
            ", ".join(
                f"{head} [{', '.join(map(str, shape))}]"
                for head, shape in description.outputs.items()
            ),
            description.what,
        )
        for description in found
    ]
    print_table(("preset", "parameters", "F", "outputs", "what"), rows, numbers=(1, 2))


@_command
@click.option("--labels", type=_PATH, required=True, help="Labelled windows.")
@click.option("--store", type=_PATH, help="Store that anchored labels point into.")
@click.option("-o", "--output", type=_PATH, required=True, help="Where to write the split (.json).")
@click.option("--method", type=click.Choice(["forward-chain"]), default="forward-chain")
@click.option("--folds", type=int, default=1, show_default=True)
@click.option("--val-share", type=float, default=0.15, show_default=True)
@click.option("--test-share", type=float, default=0.15, show_default=True)
@click.option("--purge-bars", type=int, help="At least a window less one; that when left out.")
@click.option("--embargo-bars", type=int, default=0, show_default=True)
@json_option
def split(
    labels: Path, store: Path | None, output: Path, method: str, as_json: bool, **settings: Any
) -> None:
    """Divide labelled windows into training, validation and test parts, purged in bars."""
    from moola_train.labels import read_labels
    from moola_train.splits import forward_chain, write_split

    made = forward_chain(read_labels(labels, store=_open(store)), name=method, **settings)
    write_split(made, output)
    if as_json:
        print_json({"split": str(output), "folds": made.counts()})
        return
    headers = ("fold", "train", "val", "test", "left out")
    rows = [
        (str(fold), *(count(sizes[name]) for name in ("train", "val", "test", "left_out")))
        for fold, sizes in enumerate(made.counts())
    ]
    print_table(headers, rows, numbers=range(5))
    gaps = made.purge_bars, made.embargo_bars, made.warmup_bars
    click.echo(f"{output}: purge {gaps[0]}, embargo {gaps[1]}, warm-up {gaps[2]} bars")


def _setting_options(function: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--config", type=_PATH, help="TOML file with settings."),
        click.option(
            "--set", "settings", multiple=True, metavar="SECTION.NAME=VALUE", callback=_parse_set,
            help="Override one setting; may be repeated.",
        ),
        click.option("--preset", help="Same as --set model.preset=..."),
        click.option("--epochs", type=int, help="Same as --set loop.epochs=..."),
        click.option("--batch-size", type=int, help="Same as --set data.batch_size=..."),
        click.option("--seed", type=int, help="Same as --set loop.seed=...; 17 when left out."),
        click.option("--device", type=click.Choice(DEVICES)),
        click.option("--precision", type=click.Choice(PRECISIONS)),
        click.option("--deterministic", is_flag=True, default=None, help="Same bits on a GPU too."),
        click.option("--max-minutes", type=float, help="Stop and save after so long."),
        click.option("--print-config", is_flag=True, help="Print the settings as TOML and exit."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _parse_set(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or "." not in name:
            raise click.BadParameter(f"{value!r} is not SECTION.NAME=VALUE, such as loop.epochs=5")
        pairs[name.strip()] = text.strip()
    return pairs


_FLAGS = {
    "preset": "model.preset", "epochs": "loop.epochs", "batch_size": "data.batch_size",
    "seed": "loop.seed", "device": "loop.device", "precision": "loop.precision",
    "deterministic": "loop.deterministic", "max_minutes": "loop.max_minutes",
    "freeze_epochs": "optimiser.freeze_epochs", "unfreeze_lr_scale": "optimiser.unfreeze_lr_scale",
    "objective": "pretrain.objective", "stride": "pretrain.stride",
}  # fmt: skip

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def _config_of(
    kind: type[AnyConfig], path: Path | None, settings: dict[str, str], flags: dict[str, Any]
) -> AnyConfig:
    config = kind() if path is None else kind.from_toml(path)
    given = {_FLAGS[name]: value for name, value in flags.items() if value is not None}
    return config.override({**settings, **given})


@_command
@click.argument("store", type=_PATH, required=False)
@click.option("--labels", type=_PATH, required=True, help="Labelled windows.")
@click.option("--split", "split_path", type=_PATH, required=True, help="Split of the labels.")
@click.option("--fold", type=int, default=0, show_default=True)
@click.option("--encoder", type=_PATH, help="Encoder file of `pretrain` to start from.")
@click.option("--freeze-epochs", type=int, help="Train the heads alone for so many epochs.")
@click.option("--unfreeze-lr-scale", type=float, help="Learning rate of the encoder afterwards.")
@_run_options
@_setting_options
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
    config: Path | None,
    settings: dict[str, str],
    print_config: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Fit a model to labelled windows of STORE, or to windows that hold their own prices."""
    resolved = _config_of(RunConfig, config, settings, flags)
    if print_config:
        click.echo(resolved.to_toml(), nl=False)
        return
    from moola_train.fit import fit as fit_model

    with _running(resolved, run_path, tensorboard=tensorboard) as (world, report):
        found = fit_model(
            _open(store), labels, split_path, run_path, resolved,
            fold=fold, encoder=encoder, resume=resume == "auto", report=report, world=world,
        )  # fmt: skip
    if world.writes:
        print_json(found.to_dict()) if as_json else _print_fit(found)
    _exit_if_stopped(found.outcome)


@_command
@click.argument("store", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="Encoder file (.safetensors).")
@click.option("--objective", type=click.Choice(OBJECTIVES), help="What is learnt; mae.")
@click.option("--stride", type=int, help="Bars from one window to the next; 52 when left out.")
@click.option("--split", "split_path", type=_PATH, help="Read its training period only.")
@click.option("--labels", type=_PATH, help="Labels that the split was made of.")
@click.option("--fold", type=int, default=0, show_default=True)
@_run_options
@_setting_options
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
    config: Path | None,
    settings: dict[str, str],
    print_config: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Pretrain an encoder on windows of STORE that need no labels."""
    resolved = _config_of(PretrainConfig, config, settings, flags)
    if print_config:
        click.echo(resolved.to_toml(), nl=False)
        return
    if (split_path is None) != (labels is None):
        raise click.UsageError("--split and --labels belong together: give both or neither")
    from moola_train.pretrain import TrainingPeriod
    from moola_train.pretrain import pretrain as pretrain_encoder

    opened = _open(store)
    assert opened is not None
    period = None
    if split_path is not None and labels is not None:
        period = TrainingPeriod.of(opened, labels, split_path, fold)
    with _running(resolved, run_path, tensorboard=tensorboard) as (world, report):
        found = pretrain_encoder(
            opened, output, run_path, resolved,
            period=period, resume=resume == "auto", report=report, world=world,
        )  # fmt: skip
    if world.writes:
        print_json(found.to_dict()) if as_json else _print_pretrain(found)
    _exit_if_stopped(found.outcome)


@contextlib.contextmanager
def _running(
    config: RunConfig, run_path: Path, *, tensorboard: bool
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
            listeners.append(stack.enter_context(training_progress(config.loop.epochs)))

        def report(record: dict[str, Any]) -> None:
            for listener in listeners:
                listener(record)

        yield world, report


def _exit_if_stopped(outcome: Outcome) -> None:
    if outcome.status == "stopped":
        click.echo(f"stopped at step {outcome.step}; go on with --resume auto", err=True)
        sys.exit(1)


def _print_pretrain(report: PretrainReport) -> None:
    _print_outcome(report)
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


def _print_outcome(report: FitReport | PretrainReport) -> None:
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


def _print_fit(report: FitReport) -> None:
    _print_outcome(report)
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


def _open(path: Path | None) -> Store | None:
    from moola_features.store import Store, open_store
    from moola_train.errors import ConfigError

    if path is None:
        return None
    opened = open_store(path)
    if not isinstance(opened, Store):
        names = ", ".join(list(opened)[:20])
        raise ConfigError(f"{path} holds several instruments; give the folder of one of {names}")
    return opened


def main() -> None:
    """Run the command line."""
    run(cli, "moola-train", "interrupted; the last checkpoint stands")


if __name__ == "__main__":
    main()
