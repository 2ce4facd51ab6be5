"""On a GPU: a training step runs cuDNN's persistent LSTM kernels, and the check can tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks.train_steps import (
    GRAPH,
    LENGTH,
    NUM_FEATURES,
    Case,
    Effort,
    Step,
    is_persistent,
    make_windows,
    measure,
    recurrent_kernels,
)
from moola_train.config import LoopConfig
from moola_train.devices import prepare_device
from moola_train.table import Batch, DeviceTable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.fixture(autouse=True)
def _precision_as_before() -> Iterator[None]:
    yield
    prepare_device(LoopConfig())


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def batch_on(device: torch.device, num_windows: int) -> Batch:
    windows, targets = make_windows(num_windows, 1_000)
    rows = torch.arange(num_windows, device=device)
    return DeviceTable(windows, targets, device).gather(rows)


@pytest.mark.parametrize("batch", [64, 1_024])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("hidden", [96, 128])
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_step_runs_the_persistent_kernels(
    device: torch.device, precision: str, hidden: int, layers: int, batch: int
) -> None:
    prepare_device(LoopConfig(device="cuda", precision=precision))
    case = Case(hidden=hidden, layers=layers, batch=batch, precision=precision)
    step, fixed = Step(case, device), batch_on(device, batch)
    kernels = recurrent_kernels(lambda: step(fixed), device)
    assert is_persistent(kernels), kernels


def test_a_wide_lstm_runs_others(device: torch.device) -> None:
    # Past 192 hidden units PyTorch asks for the persistent kernels neither forward nor backward.
    lstm = nn.LSTM(NUM_FEATURES, 256, bidirectional=True).to(device)
    features = torch.randn(LENGTH, 64, NUM_FEATURES, device=device)
    kernels = recurrent_kernels(lambda: lstm(features)[0].sum().backward(), device)
    assert kernels
    assert not is_persistent(kernels)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_case_is_measured(device: torch.device, precision: str) -> None:
    case = Case(hidden=96, layers=1, batch=64, precision=precision)
    measured = measure(case, device, Effort(turn_seconds=0.05, rounds=1, num_bars=10_000))
    assert min(measured.rates.values()) > 0
    assert GRAPH in measured.rates
    assert measured.over_eager is not None
    assert measured.kernels
