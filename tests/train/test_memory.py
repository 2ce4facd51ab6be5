"""A step that does not fit ends the run in one line, which says what would have fitted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moola_train import memory
from moola_train.checkpoint import load_checkpoint
from moola_train.errors import RunError
from moola_train.loaders import WindowLoader
from moola_train.memory import enough, first_rows, fits, largest_fitting
from moola_train.metrics import Metric
from moola_train.models import Model
from moola_train.runs import LATEST
from tests.train.loops import BATCH, Changed, config_of, loader_of, loop_of


class Wide(Changed):
    """Runs out of memory with more than so many windows, from a step on: in going backward."""

    def __init__(self, most: int, step: int = 0) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._most = most
        self._step = step

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.sizes.append(batch["features"].shape[1])
        assert all(
            len(rows) == self.sizes[-1] for name, rows in batch.items() if name != "features"
        )
        found = super().losses(model, batch)
        if self.num_calls > self._step and self.sizes[-1] > self._most:
            found["span"] = Refusing.apply(found["span"])  # type: ignore[no-untyped-call]
        return found


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:  # type: ignore[override]
        return values.clone()

    @staticmethod
    def backward(_context: Any, *_gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.\nmore lines")


def refused(path: Path, objective: Any, **settings: Any) -> tuple[str, Any]:
    loop = loop_of(path, config_of(**settings), objective=objective)
    with pytest.raises(RunError) as raised:
        loop.run()
    assert "\n" not in str(raised.value)
    return str(raised.value), loop


def test_the_message_says_what_fitted_and_what_to_do(tmp_path: Path) -> None:
    objective = Wide(most=1)
    message, _ = refused(tmp_path / "run", objective)
    assert message == (
        "step 0 ran out of memory on cpu with 4 windows in a batch: 1 fitted, so give "
        "--batch-size 1 and another --run-folder; no checkpoint was written yet, nothing is lost"
    )
    assert objective.sizes == [4, 2, 1]


def test_the_largest_half_that_fits(tmp_path: Path) -> None:
    objective = Wide(most=3)
    message, _ = refused(tmp_path / "run", objective)
    assert "2 fitted, so give --batch-size 2" in message
    assert objective.sizes == [4, 2]


def test_nothing_fits(tmp_path: Path) -> None:
    message, _ = refused(tmp_path / "run", Wide(most=0))
    assert "not even 1 fits, so choose a smaller preset" in message


def test_what_was_learnt_stands(tmp_path: Path) -> None:
    path = tmp_path / "run"
    whole = loop_of(tmp_path / "whole", config_of(loop__max_steps=4))
    whole.run()
    message, loop = refused(path, Wide(most=2, step=5), loop__checkpoint_steps=4)
    assert f"step 5 ran out of memory on cpu with {BATCH} windows" in message
    assert message.endswith(f"nothing is lost, {path / LATEST} stands")
    saved, expected = (load_checkpoint(p / LATEST) for p in (path, tmp_path / "whole"))
    assert saved["progress"]["step"] == 4
    for name, tensor in expected["model"].items():
        assert torch.equal(saved["model"][name], tensor)
    assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_weights_stay_as_they_were(tmp_path: Path) -> None:
    loop = loop_of(tmp_path / "run", config_of(), objective=Wide(most=2))
    before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    with pytest.raises(RunError):
        loop.run()
    assert all(torch.equal(before[n], tensor) for n, tensor in loop.model.state_dict().items())


def test_processes_do_not_try_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "together", lambda: True)
    objective = Wide(most=1)
    message, _ = refused(tmp_path / "run", objective)
    assert "with 4 windows in a batch: try --batch-size 2 and another" in message
    assert objective.sizes == [4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_way_to_say_it(error: Exception) -> None:
    def run() -> None:
        raise error

    assert not fits(run)


def test_the_host_says_it_so() -> None:
    assert not fits(lambda: torch.empty(1 << 60, dtype=torch.uint8).zero_() and None)


def test_other_errors_pass() -> None:
    def run() -> None:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        fits(run)


def test_what_was_allocated_is_free_before_the_next_try() -> None:
    held: list[weakref.ref[Tensor]] = []

    def run() -> None:
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        assert not fits(run)
    finally:
        gc.enable()
    assert held[0]() is None


@pytest.mark.parametrize(("most", "found"), [(1000, 500), (499, 250), (1, 1), (0, 0)])
def test_halves(most: int, found: int) -> None:
    tried: list[int] = []
    assert largest_fitting(1000, lambda size: (tried.append(size), size <= most)[1]) == found
    assert tried == sorted(tried, reverse=True)


def test_first_rows_of_a_batch() -> None:
    batch = next(iter(loader_of("train", config_of())))
    few = first_rows(batch, 3)
    assert few.keys() == batch.keys()
    assert torch.equal(few["features"], batch["features"][:, :3])
    assert few["features"].is_contiguous()
    for name in set(batch) - {"features"}:
        assert torch.equal(few[name], batch[name][:3])


class WideAtValidation(Changed):
    """Runs out of memory when it is scored."""

    def score(self, model: Model, loader: WindowLoader) -> dict[str, Metric]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.\nmore lines")


def test_a_validation_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "run"
    message, loop = refused(path, WideAtValidation(), loop__checkpoint_steps=2)
    assert message.startswith("validation on cpu with ")
    assert "ran out of memory; choose a smaller preset, or --device cpu; nothing is lost" in message
    assert load_checkpoint(path / LATEST)["progress"]["step"] > 0
    assert loop.model.encoder.lstm.weight_ih_l0.requires_grad


def test_what_runs_out_is_named_and_other_errors_pass() -> None:
    named = r"^moving the model ran out of memory; buy more$"
    with pytest.raises(RunError, match=named), enough("moving the model", "buy more"):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    with pytest.raises(RuntimeError, match="sizes do not match"), enough("this", "that"):
        raise RuntimeError("sizes do not match")
