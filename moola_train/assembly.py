"""What fitting and pretraining put together alike: loaders, a model, a run, and its report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from moola_features.files import replaced_file
from moola_features.spec import Column
from moola_features.windows import Windows
from moola_train.balance import make_balance
from moola_train.config import DataConfig, RunConfig
from moola_train.distributed import ALONE, World
from moola_train.errors import ConfigError
from moola_train.loaders import WindowLoader
from moola_train.loop import Loop, Outcome, Report
from moola_train.memory import enough
from moola_train.models import Model, build
from moola_train.objectives import Objective
from moola_train.order import BLOCK_ITEMS, BatchOrder, shuffle_block
from moola_train.presets import PRESETS
from moola_train.runs import WEIGHTS, RunFolder
from moola_train.table import Targets, choose_placement, compact, num_bytes, stacked

VALIDATION_BATCH = 256

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes
    ----------
    run
        The run's folder.
    outcome
        How it ended, with the watched metric at its best beside the floors.
    num_parameters
        Trainable parameters of the model.
    parts
        Windows in the training and the validation part.
    """

    run: Path
    outcome: Outcome
    num_parameters: int
    parts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {
            "run": str(self.run),
            **dataclasses.asdict(self.outcome),
            "num_parameters": self.num_parameters,
            "parts": self.parts,
        }


def make_loaders(
    parts: Mapping[str, Windows | NDArray[np.float32]],
    config: RunConfig,
    device: torch.device,
    *,
    targets: Mapping[str, Targets] | None = None,
    weights: ArrayLike | None = None,
    world: World = ALONE,
) -> dict[str, WindowLoader]:
    """Make the loaders of a training and a validation part, and log where they gather.

    Parameters
    ----------
    parts
        Windows to train on and to validate on, ``"train"`` and ``"val"``.
    config
        Settings of the run.
    device
        Where the batches go.
    targets
        Of each part, arrays ``[N, ...]``.
    weights
        To draw the training windows by, ``[N]``; shuffled when None.
    world
        Which of several processes this is; all of them validate on everything.

    Returns
    -------
    dict of WindowLoader
        By the names of the parts.
    """
    windows = {
        name: compact(part if isinstance(part, Windows) else stacked(part))
        for name, part in parts.items()
    }
    targets = targets or {}
    size = num_bytes(windows["train"], targets.get("train", {}))
    placement, _ = choose_placement(config.data.placement, device, size)
    block = None
    if weights is None:
        block = _block(config.data, placement, windows["train"].features.nbytes)
    orders = {
        "train": training_order(
            len(windows["train"]), config, weights=weights, block=block, world=world
        ),
        "val": validation_order(len(windows["val"]), config),
    }
    loaders = {
        name: WindowLoader(
            part, orders[name], device=device, placement=config.data.placement,
            targets=targets.get(name),
        )
        for name, part in windows.items()
    }  # fmt: skip
    # Mostly both parts are gathered at the same place, for the same reason.
    for loader in {loader.placement: loader for loader in reversed(loaders.values())}.values():
        _logger.info("windows are gathered on the %s: %s", loader.placement, loader.reason)
    return loaders


def _block(config: DataConfig, placement: str, table_bytes: int) -> int | None:
    """Choose what is shuffled at a time: all windows, or blocks of so many."""
    if config.shuffle == "full" or (config.shuffle == "auto" and placement == "device"):
        return None
    block = BLOCK_ITEMS if config.shuffle == "blocks" else shuffle_block(table_bytes)
    if block is not None:
        size = table_bytes / 1e9
        _logger.info("a table of %.2f GB is shuffled in blocks of %d windows", size, block)
    return block


def training_order(
    num_windows: int,
    config: RunConfig,
    *,
    weights: ArrayLike | None = None,
    block: int | None = None,
    world: World = ALONE,
) -> BatchOrder:
    """Shuffled batches, or draws by weight; one batch an epoch where there are too few windows."""
    size = max(1, min(config.data.batch_size, num_windows // world.size))
    return BatchOrder(
        num_windows, size, seed=config.loop.seed,
        weights=weights, block=block, any_block=weights is None and config.data.shuffle == "auto",
        rank=world.rank, world_size=world.size,
    )  # fmt: skip


def validation_order(num_windows: int, config: RunConfig) -> BatchOrder:
    """All windows as they stand."""
    size = min(VALIDATION_BATCH, num_windows)
    return BatchOrder(num_windows, size, seed=config.loop.seed, shuffle=False, drop_last=False)


def make_model(config: RunConfig, num_features: int, **settings: Any) -> Model:
    """Build the preset with what the settings override, from the run's seed.

    Parameters
    ----------
    config
        Settings of the run.
    num_features
        Columns of the input.
    settings
        More fields of ``ModelSettings``; they have the last word.

    Raises
    ------
    ModelError
        A setting that the preset cannot have.
    ConfigError
        No such preset, or sigmas are to be learned and it has none.
    """
    asked = {
        "hidden_size": config.model.hidden,
        "num_layers": config.model.layers,
        "input_dropout": config.model.input_dropout,
        "head_dropout": config.model.head_dropout,
    }
    overrides: dict[str, Any] = {name: v for name, v in asked.items() if v is not None}
    if config.model.layers == 1:
        overrides["layer_dropout"] = 0.0  # there is nothing between layers where there is one
    if config.model.recurrent_dropout:
        overrides["recurrent_dropout"] = config.model.recurrent_dropout
    if config.model.position:
        overrides["position"] = True
    if config.loss.type_loss == "focal":
        overrides["focal_gamma"] = config.loss.focal_gamma
        overrides["class_weights"] = config.loss.weights
    if config.loss.balance != "kendall":
        overrides["log_sigmas"] = False
    if config.model.preset not in PRESETS:
        raise ConfigError(
            f"there is no preset {config.model.preset!r}; choose one of {', '.join(PRESETS)}"
        )
    torch.manual_seed(config.loop.seed)
    model = build(config.model.preset, num_features=num_features, **{**overrides, **settings})
    if config.loss.balance == "kendall" and len(model.log_sigmas) == 0:
        raise ConfigError(
            f"loss.balance is 'kendall', and preset {config.model.preset!r} has no log sigmas to "
            "learn; give --set loss.balance=fixed"
        )
    return model


def train(
    model: Model,
    objective: Objective,
    loaders: Mapping[str, WindowLoader],
    run: RunFolder,
    config: RunConfig,
    *,
    device: torch.device,
    data: dict[str, Any],
    resume: bool,
    report: Report | None,
    columns: Sequence[Column] = (),
) -> RunReport:
    """Train a model in a run's folder, or go on with it, and load its best weights.

    Parameters
    ----------
    model, objective
        What is trained, for what.
    loaders
        Of the parts ``"train"`` and ``"val"``.
    run
        The run's folder.
    config
        Settings of the run.
    device
        Where it computes.
    data
        What the run is trained on, to be kept with it.
    resume
        Whether to go on from the folder's latest checkpoint, if there is one.
    report
        Called with every record that is logged.
    columns
        Of the features, for the augmentations that must know them.

    Raises
    ------
    TrainError
        A folder that holds another run, a run that cannot go on, or best weights that are gone;
        the message says which.
    """
    with enough(f"moving the model to {device}", "choose a smaller preset, or --device cpu"):
        num_parameters = model.to(device).num_parameters  # before any of them is frozen
    balance = make_balance(config.loss.balance, model.heads, log_sigmas=model.log_sigmas)
    run.begin(config, data, resume=resume)
    loop = Loop(
        model=model, objective=objective, balance=balance.to(device),
        train=loaders["train"], validation=loaders["val"],
        config=config, run=run, device=device, report=report, columns=columns,
    )  # fmt: skip
    if resume:
        loop.resume()
    outcome = loop.run()
    if run.writes:
        loop.load_best()
    parts = {name: loader.order.num_items for name, loader in loaders.items()}
    return RunReport(run.path, outcome, num_parameters, parts)


def write_weights(model: Model, run: RunFolder) -> None:
    """Write a model's weights into its run's folder, as safetensors."""
    from safetensors.torch import save

    if run.writes:
        weights: dict[str, Tensor] = {
            name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
        }
        with replaced_file(run.file(WEIGHTS)) as beside:
            beside.write_bytes(save(weights))
