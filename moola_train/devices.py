"""Where a run computes, in what precision, and how repeatably."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from moola_train.config import LoopConfig
from moola_train.distributed import ALONE, World
from moola_train.errors import ConfigError, RunError

_NOT_DETERMINISTIC = "does not have a deterministic implementation"  # says PyTorch


def uses_gpu(config: LoopConfig) -> bool:
    """Whether a run computes on a GPU.

    Raises
    ------
    ConfigError
        CUDA asked for where there is none.
    """
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise ConfigError("device is 'cuda', and PyTorch sees no GPU; give auto or cpu")
    return found and config.device != "cpu"


def prepare_device(config: LoopConfig, world: World = ALONE) -> torch.device:
    """Choose the device and set the process to the precision and determinism asked for.

    On a CPU a run is deterministic anyway, with one number of threads.

    Raises
    ------
    ConfigError
        CUDA asked for where there is none, or a precision or graph that the device does not have.
    """
    device = torch.device("cuda", world.local_rank) if uses_gpu(config) else torch.device("cpu")
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError("loop.precision is 'tf32', which only a GPU has; give fp32 or bf16")
    if config.cuda_graph and device.type != "cuda":
        raise ConfigError(
            "loop.cuda_graph is true, and the run would compute on the CPU, which has no graphs; "
            "give --device cuda, or set it to false"
        )
    if device.type == "cuda":
        _set_precisions("tf32" if config.precision == "tf32" else "ieee")
        if config.deterministic:
            # cuBLAS reads this when its first handle is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    return device


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Compute in whole float32 here, and as before afterwards.

    PyTorch rounds the factors of an LSTM or a convolution on a GPU to TF32 unless told otherwise.
    """
    before = [operations.fp32_precision for operations in _float32_operations()]
    _set_precisions("ieee")
    try:
        yield
    finally:
        for operations, precision in zip(_float32_operations(), before, strict=True):
            operations.fp32_precision = precision


def _set_precisions(precision: str) -> None:
    # All of them: cuDNN's older flag can not be read while its operations differ.
    for operations in _float32_operations():
        operations.fp32_precision = precision


def _float32_operations() -> tuple[Any, ...]:
    backends: Any = torch.backends  # its stubs know no precisions
    return backends.cudnn.rnn, backends.cudnn.conv, backends.cuda.matmul


@contextlib.contextmanager
def deterministic_or_refused() -> Iterator[None]:
    """Say in one line which operation has no deterministic form, where one was asked for.

    Raises
    ------
    RunError
        PyTorch refused an operation.
    """
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(f" {_NOT_DETERMINISTIC}")
        if not found:
            raise
        raise RunError(
            f"loop.deterministic: {operation.splitlines()[-1]} {_NOT_DETERMINISTIC} on this "
            "device; leave out what needs it, or set loop.deterministic = false"
        ) from error
