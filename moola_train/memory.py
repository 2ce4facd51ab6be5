"""Out of memory: which batch would have fitted, said in one line in place of a trace."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from moola_train.distributed import together
from moola_train.errors import RunError

# PyTorch has an error of its own for its allocator of GPU memory, and a RuntimeError that says one
# of these for the host's memory and for what cuDNN and cuBLAS allocate.
_SENTENCES = ("can't allocate memory", "STATUS_ALLOC_FAILED")


def fits(run: Callable[[], None]) -> bool:
    """Run something; False if the memory did not suffice for it.

    What it had allocated is free again afterwards.

    Examples
    --------
    >>> def too_much() -> None:
    ...     raise torch.OutOfMemoryError("CUDA out of memory")
    >>> fits(too_much), fits(lambda: None)
    (False, True)
    """
    try:
        run()
        return True
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    # Only now is the error's trace gone, and with it what the frames in it held.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


@contextlib.contextmanager
def enough(doing: str, remedy: str) -> Iterator[None]:
    """Say in one line what ran out of memory, and what to do about it.

    Raises
    ------
    RunError
        In place of the error of whoever could not allocate.

    Examples
    --------
    >>> with enough("moving the model", "choose a smaller preset"):
    ...     raise torch.OutOfMemoryError("CUDA out of memory")
    Traceback (most recent call last):
    moola_train.errors.RunError: moving the model ran out of memory; choose a smaller preset
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise RunError(f"{doing} ran out of memory; {remedy}") from error


def largest_fitting(size: int, fits_with: Callable[[int], bool]) -> int:
    """Halve a size until it fits; 0 if nothing does.

    Examples
    --------
    >>> largest_fitting(100, lambda size: size <= 30), largest_fitting(100, lambda size: False)
    (25, 0)
    """
    while (size := size // 2) and not fits_with(size):
        pass
    return size


def out_of_memory(
    batch: Mapping[str, Tensor],
    probe: Callable[[Mapping[str, Tensor]], None],
    *,
    step: int,
    checkpoint: Path,
) -> RunError:
    """Make the error of a step that did not fit, having tried which batch would.

    Parameters
    ----------
    batch
        The step's, ``features`` ``[T, B, F]`` and rows ``[B, ...]``.
    probe
        Goes forward and backward through a batch, without learning anything.
    step
        The step's number.
    checkpoint
        The run's last one, whether or not it was written yet.

    Returns
    -------
    RunError
        With the batch size that fitted, and what stands. Processes that train together cannot
        try one by one, so that they say half of what did not fit.
    """
    size = batch["features"].shape[1]
    if together():
        fitted = size // 2
        found = f"try --batch-size {fitted}" if fitted else ""
    else:
        fitted = largest_fitting(size, lambda count: fits(lambda: probe(first_rows(batch, count))))
        found = f"{fitted} fitted, so give --batch-size {fitted}" if fitted else ""
    found = found or "not even 1 fits, so choose a smaller preset, or --device cpu"
    device = batch["features"].device
    return RunError(
        f"step {step} ran out of memory on {device} with {size} windows in a batch: {found} and "
        f"another --run-folder; {what_stands(checkpoint)}"
    )


def what_stands(checkpoint: Path) -> str:
    """Say that a run which failed lost nothing, and where its last checkpoint is, if any."""
    if checkpoint.exists():
        return f"nothing is lost, {checkpoint} stands"
    return "no checkpoint was written yet, nothing is lost"


def first_rows(batch: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the first windows of a batch.

    Examples
    --------
    >>> batch = {"features": torch.zeros(105, 8, 11), "type": torch.arange(8)}
    >>> few = first_rows(batch, 2)
    >>> tuple(few["features"].shape), few["type"].tolist()
    ((105, 2, 11), [0, 1])
    """
    return {
        name: rows[:, :count].contiguous() if name == "features" else rows[:count]
        for name, rows in batch.items()
    }


def _is_out_of_memory(error: BaseException) -> bool:
    by_name = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_name or any(sentence in str(error) for sentence in _SENTENCES)
