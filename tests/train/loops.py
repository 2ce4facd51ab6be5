"""A loop over a few made-up windows, small enough for a hundred steps a second.

Run as a program it trains and kills itself: what a test of resuming needs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moola_train.balance import make_balance
from moola_train.config import RunConfig
from moola_train.loaders import WindowLoader
from moola_train.loop import Loop, Report
from moola_train.metrics import Metric
from moola_train.models import Model, build
from moola_train.objectives import Supervised
from moola_train.order import BatchOrder
from moola_train.runs import RunFolder
from moola_train.targets import TargetPriors, countdown_of, pointers_of

LENGTH, NUM_FEATURES, NUM_TRAIN, NUM_VALIDATION, BATCH = 24, 3, 24, 10, 4
CLASSES = ("consolidation", "retracement")
STEPS_PER_EPOCH = NUM_TRAIN // BATCH

EVERYTHING = {
    "optimiser.ema_decay": 0.9, "optimiser.schedule": "plateau", "optimiser.plateau_patience": 1,
    "optimiser.freeze_epochs": 1, "augment.jitter": 0.5, "augment.magnitude_warp": 0.5,
    "augment.window_warp": 0.5, "augment.time_warp": 0.5, "augment.mixup": 0.5,
    "loop.epochs": 10, "loop.max_steps": 40, "loop.checkpoint_steps": 5, "loop.log_steps": 7,
}  # fmt: skip


def config_of(**changes: Any) -> RunConfig:
    small = {
        "model.preset": "jade-compact", "model.hidden": 4, "data.batch_size": BATCH,
        "loop.device": "cpu", "loop.epochs": 2,
    }  # fmt: skip
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return RunConfig().override({**small, **given})


def windows(count: int, *, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Windows whose expansion stands out in column 0, and their targets."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, LENGTH, NUM_FEATURES)).astype(np.float32)
    start = random.integers(4, 14, count)
    end = start + random.integers(2, 8, count)
    position = np.arange(LENGTH)
    span = (position >= start[:, None]) & (position <= end[:, None])
    kind = random.integers(0, 2, count)
    features[..., 0] += 4 * span
    features[..., 1] += 2 * kind[:, None]
    return features, {
        "type": kind, "start": start, "end": end, "span": span.astype(np.float32),
        "pointers": pointers_of(start, end, LENGTH), "countdown": countdown_of(start, LENGTH),
    }  # fmt: skip


def model_of(config: RunConfig, **settings: Any) -> Model:
    torch.manual_seed(config.loop.seed)
    kendall = config.loss.balance == "kendall"
    if config.model.preset == "jade-compact":
        settings = {"head_dropout": 0.3, **settings}  # something that a step draws
    model = build(
        config.model.preset, num_features=NUM_FEATURES, num_classes=2, window_length=LENGTH,
        hidden_size=config.model.hidden, log_sigmas=kendall, **settings,
    )  # fmt: skip
    model.initialise(priors_of())
    return model


def priors_of() -> TargetPriors:
    return TargetPriors.of(windows(NUM_TRAIN, seed=1)[1], CLASSES)


def loader_of(
    part: str, config: RunConfig, *, device: str = "cpu", placement: str = "auto"
) -> WindowLoader:
    train = part == "train"
    features, targets = windows(NUM_TRAIN if train else NUM_VALIDATION, seed=1 if train else 2)
    order = BatchOrder(len(features), BATCH, seed=config.loop.seed, shuffle=train, drop_last=train)
    return WindowLoader(features, order, device=device, placement=placement, targets=targets)


def loop_of(
    path: Path,
    config: RunConfig,
    *,
    objective: Any = None,
    report: Report | None = None,
    model: Model | None = None,
    device: str = "cpu",
    placement: str = "auto",
) -> Loop:
    model = (model or model_of(config)).to(device)
    balance = make_balance(config.loss.balance, model.heads, log_sigmas=model.log_sigmas)
    run = RunFolder(path)
    run.begin(config, {"windows": "made up"}, resume=True)
    return Loop(
        model=model,
        objective=objective or Supervised(priors_of()),
        balance=balance.to(device),
        train=loader_of("train", config, device=device, placement=placement),
        validation=loader_of("val", config, device=device),
        config=config, run=run, device=torch.device(device), report=report,
    )  # fmt: skip


class Changed(Supervised):
    """An objective whose losses or metrics a test replaces."""

    def __init__(self, losses: Any = None, scores: Any = None) -> None:
        super().__init__(priors_of())
        self._change = losses
        self._scores = iter(scores or ())
        self.num_calls = 0

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.num_calls += 1
        found = super().losses(model, batch)
        return self._change(self.num_calls - 1, found, model) if self._change else found

    def score(self, model: Model, loader: WindowLoader) -> dict[str, Metric]:
        value = next(self._scores, None)
        if value is None:
            return super().score(model, loader)
        return {"loss": Metric(value, None, "lower"), "accuracy": Metric(-value, None, "higher")}


def main() -> None:
    """Train everything at once, and die at a step."""
    path, seed, step, number = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    torch.set_num_threads(1)

    def report(record: dict[str, Any]) -> None:
        if record["part"] == "train" and record["step"] >= step:
            os.kill(os.getpid(), signal.Signals(number))

    outcome = loop_of(path, config_of(**EVERYTHING, **{"loop.seed": seed}), report=report).run()
    print(outcome.status)


if __name__ == "__main__":
    main()
