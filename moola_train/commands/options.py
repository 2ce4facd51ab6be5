"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moola_train.config import DEVICES, PRECISIONS, DataConfig, RunConfig, class_names

if TYPE_CHECKING:
    from moola_features.store import Store

PATH = click.Path(path_type=Path)


class _RunPath(click.Path):
    """A folder that has a name: an empty one would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty; name a folder, such as runs/first", param, ctx)
        return super().convert(value, param, ctx)


def run_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add what says where a run is kept and whether it goes on."""
    resume = click.option(
        "--resume", type=click.Choice(["never", "auto"]), default="never", show_default=True,
        help="auto: go on from the folder's last checkpoint, if there is one.",
    )  # fmt: skip
    # Not --run: torchrun would take it for a short form of its own --run-path.
    folder = click.option(
        "--run-folder",
        "run_path",
        type=_RunPath(path_type=Path),
        default="run",
        show_default=True,
        help="Folder of the run.",
    )
    events = click.option(
        "--tensorboard", is_flag=True, help="Write TensorBoard events into the run's folder too."
    )
    tracking = click.option(
        "--mlflow", is_flag=False, flag_value="", metavar="[URI]",
        help="Log to an MLflow tracking server too; the one of MLFLOW_TRACKING_URI without URI.",
    )  # fmt: skip
    return folder(resume(events(tracking(function))))


def setting_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the settings of a run: a file, any leaf by its name, and flags for the usual ones."""
    options = (
        click.option("--config", type=PATH, help="TOML file with settings."),
        click.option(
            "--set", "settings", multiple=True, metavar="SECTION.NAME=VALUE", callback=_parse_set,
            help="Override one setting; may be repeated.",
        ),
        click.option("--preset", help="Same as --set model.preset=..."),
        click.option("--epochs", type=int, help="Same as --set loop.epochs=..."),
        click.option("--batch-size", type=int, help="Same as --set data.batch_size=..."),
        click.option("--classes", help="Same as --set data.classes=..., with commas between them."),
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


def classes_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add --classes, for a command that reads labels and has no other settings."""
    return click.option(
        "--classes", default=DataConfig().classes, show_default=True, callback=_parse_classes,
        help="Labels that may stand there, with commas between them.",
    )(function)  # fmt: skip


def _parse_classes(
    _context: click.Context, _option: click.Parameter, value: str
) -> tuple[str, ...]:
    return class_names("--classes", value)


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
    "classes": "data.classes",
    "seed": "loop.seed", "device": "loop.device", "precision": "loop.precision",
    "deterministic": "loop.deterministic", "max_minutes": "loop.max_minutes",
    "freeze_epochs": "optimiser.freeze_epochs", "unfreeze_lr_scale": "optimiser.unfreeze_lr_scale",
    "objective": "pretrain.objective", "stride": "pretrain.stride",
}  # fmt: skip

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def config_of(
    kind: type[AnyConfig], path: Path | None, settings: dict[str, str], flags: dict[str, Any]
) -> AnyConfig:
    """Resolve the settings: the file first, then --set, then flags."""
    config = kind() if path is None else kind.from_toml(path)
    given = {_FLAGS[name]: value for name, value in flags.items() if value is not None}
    return config.override({**settings, **given})


def open_one(path: Path | None) -> Store | None:
    """Open the store of one instrument; None for None."""
    from moola_features.store import Store, open_store
    from moola_train.errors import ConfigError

    if path is None:
        return None
    opened = open_store(path)
    if not isinstance(opened, Store):
        names = ", ".join(list(opened)[:20])
        raise ConfigError(f"{path} holds several instruments; give the folder of one of {names}")
    return opened
