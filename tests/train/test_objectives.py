"""What a validation's loss is: the same however its windows are batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moola_train.heads import HEADS
from moola_train.loaders import WindowLoader
from moola_train.models import PRESETS, Model, build
from moola_train.objectives import predict
from moola_train.order import BatchOrder
from tests.train.loops import LENGTH, NUM_FEATURES, windows

NUM_WINDOWS = 30
OF_LABELS = sorted(set(HEADS) - {"reconstruction", "expansion", "swing", "candle"})


def partly_labelled() -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """Windows of which the first third has no type, and the last half no expansion."""
    features, targets = windows(NUM_WINDOWS, seed=3)
    targets["type"] = np.where(np.arange(NUM_WINDOWS) < 10, -1, targets["type"])
    for name in ("start", "end"):
        targets[name] = np.where(np.arange(NUM_WINDOWS) < 15, targets[name], -1)
    for name in ("span", "pointers", "countdown"):
        targets[name] = np.array(targets[name], np.float32)
        targets[name][15:] = np.nan
    targets["span"][2, 5] = np.nan  # a bar that nobody knows, in a window that is marked
    return features, targets


def loss_of(model: Model, batch_size: int) -> float:
    features, targets = partly_labelled()
    order = BatchOrder(NUM_WINDOWS, batch_size, seed=0, shuffle=False, drop_last=False)
    return predict(model, WindowLoader(features, order, device="cpu", targets=targets))[2]


def model_with(*heads: str) -> Model:
    torch.manual_seed(0)
    return build(
        "jade-span", heads=heads, num_features=NUM_FEATURES, num_classes=2,
        window_length=LENGTH, hidden_size=4, log_sigmas=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", OF_LABELS)
def test_the_loss_of_a_part_does_not_depend_on_its_batches(name: str) -> None:
    model = model_with(*HEADS[name].needs, name)
    whole = loss_of(model, NUM_WINDOWS)
    assert whole > 0
    for size in (1, 4, 7, 16):
        assert loss_of(model, size) == pytest.approx(whole, rel=1e-5)


def test_the_loss_of_one_batch_is_what_the_model_says() -> None:
    model = model_with(*PRESETS["jade-span"].settings.heads)
    features, targets = partly_labelled()
    batch = {name: torch.from_numpy(values) for name, values in targets.items()}
    batch["features"] = torch.from_numpy(features).transpose(0, 1)
    model.eval()
    with torch.no_grad():
        terms = model.losses(model(batch), batch)
    assert loss_of(model, NUM_WINDOWS) == pytest.approx(float(sum(terms.values())), rel=1e-6)


def test_a_term_that_nothing_is_labelled_for_is_none() -> None:
    features, targets = windows(4, seed=0)
    targets["type"][:] = -1
    order = BatchOrder(4, 3, seed=0, shuffle=False, drop_last=False)
    loader = WindowLoader(features, order, device="cpu", targets=targets)
    assert predict(model_with("type"), loader)[2] == 0.0
