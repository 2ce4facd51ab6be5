"""What code asks of tensors, seen from inside."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

# Of torch.use_deterministic_algorithms: what it refuses on a GPU, as far as sequences may need it.
REFUSED = (
    "cumsum", "histc", "median", "put", "put_", "nll_loss2d_forward",
    "upsample_linear1d_backward", "reflection_pad1d_backward", "max_unpool2d",
)  # fmt: skip


class Repeatable(TorchDispatchMode):
    """Fail where PyTorch has no kernel for a GPU that gives the same bits on every run."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        counts = name == "cumsum" and not args[0].is_floating_point()
        weighted = name == "bincount" and len(args) > 1 and args[1] is not None
        refused = (name in REFUSED and not counts) or weighted
        assert not refused, f"{name} has no deterministic form on a GPU"
        return func(*args, **(kwargs or {}))


class NoHostSync(TorchDispatchMode):
    """Fail where a GPU would have to tell the host a value, or how many of something there are."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        assert name not in WAITING, f"{name} waits for the device"
        assert not by_mask, f"{name} by a mask waits for the device"
        return func(*args, **(kwargs or {}))
