"""PCGrad: where two losses pull against each other, neither gets what hurts the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def pcgrad(losses: Sequence[Tensor], parameters: Iterable[Tensor], *, seed: int) -> None:
    """Add the gradients of several losses to ``.grad``, conflicts between them projected away.

    Each loss's gradient g_i loses its part along every other loss's gradient g_j that it
    conflicts with, one after the other in random order: where g_i . g_j < 0,
    g_i <- g_i - (g_i . g_j) / |g_j|^2 g_j, with g_j as it was. The results are added up. Only
    parameters that two losses or more depend on take part; a head's own keep their gradient.

    Parameters
    ----------
    losses
        Scalars, weighted already.
    parameters
        What to differentiate with respect to; those without ``requires_grad`` are passed over.
    seed
        Decides the order; the same seed gives the same bits.

    Notes
    -----
    Yu, Kumar, Gupta, Levine, Hausman, Finn, Gradient Surgery for Multi-Task Learning, NeurIPS
    2020, algorithm 1. It calls ``torch.autograd.grad``, so that hooks which wait for ``backward``,
    such as those of ``DistributedDataParallel``, do not run.

    Examples
    --------
    >>> x = torch.zeros(2, requires_grad=True)
    >>> pcgrad([x[0], -x[0] + x[1]], [x], seed=0)
    >>> x.grad.tolist()  # (1/2, 1/2) and (0, 1)
    [0.5, 1.5]
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    found = [
        torch.autograd.grad(loss, trained, retain_graph=loss is not losses[-1], allow_unused=True)
        for loss in losses
    ]
    num_users = [sum(g is not None for g in column) for column in zip(*found, strict=True)]
    shared = [index for index, count in enumerate(num_users) if count > 1]
    combined = _surgery([_flat(gradients, trained, shared) for gradients in found], seed)
    sizes = [trained[index].numel() for index in shared]
    pieces = dict(zip(shared, torch.split(combined, sizes), strict=True))
    for index, parameter in enumerate(trained):
        if num_users[index] == 0:
            continue
        if index in pieces:
            gradient = pieces[index].view_as(parameter)
        else:
            gradient = next(g[index] for g in found if g[index] is not None)
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient


def _flat(
    gradients: Sequence[Tensor | None], trained: Sequence[Tensor], chosen: Sequence[int]
) -> Tensor:
    """One loss's gradients of the chosen parameters as one vector, 0 where it has none."""
    pieces = [trained[0].new_zeros(0)]
    for index in chosen:
        gradient = gradients[index]
        pieces.append(
            (torch.zeros_like(trained[index]) if gradient is None else gradient).flatten()
        )
    return torch.cat(pieces)


def _surgery(gradients: Sequence[Tensor], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(gradients[0])
    for index, gradient in enumerate(gradients):
        projected = gradient
        for other in torch.randperm(len(gradients), generator=generator).tolist():
            if other == index:
                continue
            against = gradients[other]
            # Clamped rather than asked: the host need not wait to learn whether they conflict.
            conflict = (projected @ against).clamp(max=0.0)
            norm = (against @ against).clamp(min=torch.finfo(against.dtype).tiny)
            projected = projected - conflict / norm * against
        total = total + projected
    return total
