"""Sums up to each place, the same bits on every run of every device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def running_sum(values: Tensor, dim: int) -> Tensor:
    """Sum of all values up to each place along a dimension, in the shape and dtype of the values.

    CUDA adds up floating-point numbers by ``torch.cumsum`` in an order that differs from run to
    run, and PyTorch refuses it where deterministic algorithms are asked for. Here each of log2(n)
    rounds adds what lies twice as far back (Hillis and Steele, CACM 1986).

    Examples
    --------
    >>> import torch
    >>> running_sum(torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 1.0]]), dim=1).tolist()
    [[1.0, 3.0, 6.0], [10.0, 10.0, 11.0]]
    """
    sums = values.movedim(dim, -1)
    reach = 1
    while reach < sums.shape[-1]:
        sums = sums + functional.pad(sums[..., :-reach], (reach, 0))
        reach *= 2
    return sums.movedim(-1, dim)
