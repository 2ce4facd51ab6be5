"""Where a run computes, in what precision, and how repeatably."""

from __future__ import annotations

import os
from typing import Any

import torch

from moola_train.config import LoopConfig
from moola_train.distributed import ALONE, World
from moola_train.errors import ConfigError


def uses_gpu(config: LoopConfig) -> bool:
    """Whether a run computes on a GPU."""
    return torch.cuda.is_available() and config.device != "cpu"


def prepare_device(config: LoopConfig, world: World = ALONE) -> torch.device:
    """Choose the device and set the process to the precision and determinism asked for.

    On a CPU a run is deterministic anyway, with one number of threads.

    Raises
    ------
    ConfigError
        CUDA asked for where there is none, or a precision that the device does not have.
    """
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise ConfigError("loop.device is 'cuda', and PyTorch sees no GPU; give auto or cpu")
    device = torch.device("cuda", world.local_rank) if uses_gpu(config) else torch.device("cpu")
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError("loop.precision is 'tf32', which only a GPU has; give fp32 or bf16")
    if device.type == "cuda":
        precision = "tf32" if config.precision == "tf32" else "ieee"
        backends: Any = torch.backends  # its stubs know no precisions
        backends.cudnn.rnn.fp32_precision = precision
        backends.cuda.matmul.fp32_precision = precision
        if config.deterministic:
            # cuBLAS reads this when its first handle is made.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    return device
