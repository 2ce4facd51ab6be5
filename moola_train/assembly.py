"""What fitting and pretraining put together alike: orders, models, and weights to keep."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from moola_features.files import replaced_file
from moola_train.checkpoint import load_checkpoint
from moola_train.config import RunConfig
from moola_train.distributed import ALONE, World
from moola_train.models import Model, build
from moola_train.order import BatchOrder
from moola_train.runs import BEST, WEIGHTS, RunFolder

VALIDATION_BATCH = 256


def training_order(
    num_windows: int,
    config: RunConfig,
    weights: ArrayLike | None = None,
    world: World = ALONE,
) -> BatchOrder:
    """Shuffled batches, or draws by weight; one batch an epoch where there are too few windows."""
    size = max(1, min(config.data.batch_size, num_windows // world.size))
    return BatchOrder(
        num_windows, size,
        seed=config.loop.seed, weights=weights, rank=world.rank, world_size=world.size,
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
    """
    asked = {
        "hidden_size": config.model.hidden,
        "num_layers": config.model.layers,
        "input_dropout": config.model.input_dropout,
        "head_dropout": config.model.head_dropout,
    }
    overrides: dict[str, Any] = {name: v for name, v in asked.items() if v is not None}
    if config.model.recurrent_dropout:
        overrides["recurrent_dropout"] = config.model.recurrent_dropout
    if config.model.position:
        overrides["position"] = True
    if config.loss.type_loss == "focal":
        overrides["focal_gamma"] = config.loss.focal_gamma
    if config.loss.balance != "kendall":
        overrides["log_sigmas"] = False
    torch.manual_seed(config.loop.seed)
    return build(config.model.preset, num_features=num_features, **{**overrides, **settings})


def load_best(model: Model, run: RunFolder) -> bool:
    """Load the weights of the best validation into a model; False if there was none yet."""
    path = run.file(BEST)
    if not path.exists():
        return False
    model.load_state_dict(load_checkpoint(path)["model"])
    return True


def write_weights(model: Model, run: RunFolder) -> None:
    """Write a model's weights into its run's folder, as safetensors."""
    from safetensors.torch import save

    if run.writes:
        weights: dict[str, Tensor] = {
            name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
        }
        with replaced_file(run.file(WEIGHTS)) as beside:
            beside.write_bytes(save(weights))
