"""From the bars of a window to the window: pools over valid steps, and the shared summary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from moola_train.encoder import Encoded

Pool = Literal["mean", "last"]


def mean_pool(encoded: Encoded) -> Tensor:
    """Mean over the valid steps, [B, S]; zero for a window that has none.

    Examples
    --------
    >>> steps = torch.tensor([[[1.0]], [[3.0]], [[8.0]]])  # [T, B, S]
    >>> mean_pool(Encoded(steps, torch.tensor([[True], [True], [False]]))).tolist()
    [[2.0]]
    """
    if encoded.valid is None:
        return encoded.steps.mean(dim=0)
    return weighted_pool(encoded, encoded.valid.to(encoded.steps.dtype))


def weighted_pool(encoded: Encoded, weights: Tensor) -> Tensor:
    """Mean over the valid steps under weights [T, B] of at least zero, [B, S]."""
    if encoded.valid is not None:
        weights = weights * encoded.valid
    total = weights.sum(dim=0)  # [B]
    share = weights / total.clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.einsum("tb,tbs->bs", share, encoded.steps)


def max_pool(encoded: Encoded) -> Tensor:
    """Maximum over the valid steps, [B, S]; zero for a window that has none."""
    if encoded.valid is None:
        return encoded.steps.amax(dim=0)
    valid = encoded.valid.unsqueeze(2)  # [T, B, 1]
    largest = encoded.steps.masked_fill(~valid, float("-inf")).amax(dim=0)
    return largest.masked_fill(~valid.any(dim=0), 0.0)


def last_step(encoded: Encoded) -> Tensor:
    """The last valid step, [B, S]; the first step for a window that has none."""
    if encoded.valid is None:
        return encoded.steps[-1]
    length = encoded.steps.shape[0]
    times = torch.arange(length, device=encoded.steps.device).unsqueeze(1)
    last = (times * encoded.valid).amax(dim=0)  # [B]
    index = last[None, :, None].expand(1, -1, encoded.steps.shape[2])
    return encoded.steps.gather(0, index).squeeze(0)


class Summary(nn.Module):
    """One vector a window, shared by all heads that read the window as a whole.

    Parameters
    ----------
    step_size
        Width of a step, S.
    size
        Width of the projection, with a ReLU behind it; 0 for the pool itself.
    pool
        ``"mean"`` over the valid steps, or the ``"last"`` of them.
    """

    def __init__(self, step_size: int, size: int, pool: Pool) -> None:
        super().__init__()
        self._pool = {"mean": mean_pool, "last": last_step}[pool]
        self.projection = nn.Linear(step_size, size) if size else None
        self.output_size = size or step_size

    def forward(self, encoded: Encoded) -> Tensor:
        """Summarise: [B, ``output_size``]."""
        pooled = self._pool(encoded)
        return pooled if self.projection is None else self.projection(pooled).relu()
