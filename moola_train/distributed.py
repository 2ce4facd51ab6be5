"""Several processes that train one model: as one process would on the joint batch.

`torchrun --nproc-per-node=2 -m moola_train fit ...` starts them. Each holds the whole model and
its share of every batch. A loss is divided by the joint number of labelled items, so that the mean
of the processes' gradients is the gradient of the joint batch, whoever got the labels.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as processes

from moola_train.errors import ConfigError, RunError

PATIENCE = timedelta(minutes=10)  # for the others; validation of a large part may take a while


@dataclass(frozen=True)
class World:
    """Which process this is.

    Attributes
    ----------
    rank, size
        Of how many.
    local_rank
        Among those on this machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        """Whether it is the one that writes files and reports."""
        return self.rank == 0


ALONE = World()


@contextlib.contextmanager
def joined(*, on_gpu: bool) -> Iterator[World]:
    """Join the other processes that torchrun started; alone, nothing is done.

    Yields
    ------
    World
        This process's place among them.

    Raises
    ------
    RunError
        Another process ended, or did not answer in ten minutes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    try:
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is {size} but {error} is not set; start by torchrun"
        ) from None
    if on_gpu:
        torch.cuda.set_device(local_rank)
    try:
        processes.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
        yield World(rank, size, local_rank)
    except (processes.DistBackendError, processes.DistNetworkError) as error:
        raise _lost(rank, error) from error
    except RuntimeError as error:
        # Gloo has no error of its own.
        if "gloo" not in str(error) and "Connection" not in str(error):
            raise
        raise _lost(rank, error) from error
    finally:
        if processes.is_initialized():
            processes.destroy_process_group()


def _lost(rank: int, error: BaseException) -> RunError:
    first = str(error).strip().splitlines()[0][:120]
    return RunError(
        f"rank {rank} lost the other processes ({first}); the last checkpoint stands, start all "
        "of them again with --resume auto"
    )


def together() -> bool:
    """Whether there are other processes."""
    return processes.is_available() and processes.is_initialized()


def own_rank() -> int:
    """Rank of this process; 0 alone."""
    return processes.get_rank() if together() else 0


def any_process(flag: bool) -> bool:
    """Whether any process says so: all of them leave off at the same step, or none."""
    if not together():
        return flag
    device = "cuda" if processes.get_backend() == "nccl" else "cpu"
    joint = torch.tensor(float(flag), device=device)
    processes.all_reduce(joint)
    return bool(joint.item() > 0)


def share_of_count(count: Tensor) -> Tensor:
    """Joint count of labelled items over the number of processes; alone the count itself.

    Dividing a local sum by it makes the mean over the processes the mean over all items.
    """
    if not together():
        return count
    joint = count.to(torch.float32)
    processes.all_reduce(joint)
    return joint / processes.get_world_size()


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of each value over the processes; alone the values themselves."""
    if not together():
        return values
    joint = values.clone()
    processes.all_reduce(joint)
    return joint / processes.get_world_size()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange.

    A parameter that got a gradient on one process gets one on all: the losses are the same
    functions everywhere.
    """
    if not together():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    processes.all_reduce(flat)
    flat /= processes.get_world_size()
    for gradient, piece in zip(
        gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(piece.view_as(gradient))
