"""Targets of windows whose expansions have moved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moola_train.targets import COUNTDOWN_REACH


def with_edges(batch: Mapping[str, Tensor], start: Tensor, end: Tensor) -> dict[str, Tensor]:
    """Targets as :func:`moola_train.targets.make_targets` would make them of other edges.

    Parameters
    ----------
    batch
        ``features`` ``[T, B, F]``, already moved, and of the targets those that there are.
    start, end
        int64 ``[B]``, first and last bar of the expansions by now; -1 where there is none.

    Returns
    -------
    dict of Tensor
        The batch with these edges; targets of windows whose edges stay are left as they are.
    """
    length = batch["features"].shape[0]
    edges = {"start": start, "end": end}
    first, last = start.unsqueeze(1), end.unsqueeze(1)  # [B, 1]
    stays = (first == batch["start"].unsqueeze(1)) & (last == batch["end"].unsqueeze(1))
    position = torch.arange(length, device=start.device)
    ahead = (first - position).clamp(-COUNTDOWN_REACH, COUNTDOWN_REACH).double()
    made = {
        "pointers": torch.cat([(first + last).double() / 2, (last - first).double()], 1)
        / (length - 1),
        "span": (position >= first) & (position <= last),
        "countdown": (ahead + COUNTDOWN_REACH) / (2 * COUNTDOWN_REACH),
    }
    targets = {
        name: torch.where(stays, batch[name], values.to(batch[name].dtype))
        for name, values in made.items()
        if name in batch
    }
    return {**batch, **edges, **targets}
