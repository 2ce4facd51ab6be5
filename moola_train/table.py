"""The table of features on the device, and windows gathered there in the layout a model wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moola_features.windows import Windows
from moola_train.errors import LoaderError

Batch: TypeAlias = dict[str, Tensor]
Targets: TypeAlias = Mapping[str, NDArray[Any]]

DEVICE_SHARE = 0.6  # of the free memory; the rest is for weights, activations and batches

_STAGING_BYTES = 1 << 26


class DeviceTable:
    """Features, starts and targets on a device, from which batches are gathered there.

    Parameters
    ----------
    windows
        The windows to gather; their whole table is uploaded, so see :func:`compact`.
    targets
        Arrays ``[N, ...]``, a row for each window.
    device
        Where to.

    Raises
    ------
    LoaderError
        The device has not enough memory.

    Examples
    --------
    >>> windows = Windows(np.arange(8, dtype=np.float32).reshape(4, 2), np.array([0, 1, 2]), 2)
    >>> table = DeviceTable(windows, {"type": np.array([1, 0, -1])}, torch.device("cpu"))
    >>> batch = table.gather(torch.tensor([2, 0]))
    >>> batch["features"].shape, batch["features"][0].tolist(), batch["type"].tolist()
    (torch.Size([2, 2, 2]), [[4.0, 5.0], [0.0, 1.0]], [-1, 1])
    """

    def __init__(self, windows: Windows, targets: Targets, device: torch.device) -> None:
        try:
            self._features = _upload(windows.features, device)
            self._starts = _upload(windows.starts, device)
            self._targets = {name: _upload(array, device) for name, array in targets.items()}
            self._steps = torch.arange(windows.length, device=device)[:, None]  # [T, 1]
        except torch.cuda.OutOfMemoryError as error:
            needed = num_bytes(windows, targets) / 1e9
            raise LoaderError(
                f"the table of {needed:.2f} GB does not fit on {device}; use placement='host'"
            ) from error

    def gather(self, rows: Tensor) -> Batch:
        """Gather one batch.

        Parameters
        ----------
        rows
            int64 ``[B]`` on the device: positions of windows.

        Returns
        -------
        dict
            ``features`` float32 ``[T, B, F]``, contiguous; each target ``[B, ...]``; ``index``,
            the rows themselves.
        """
        bars = self._starts[rows] + self._steps  # [T, B]
        features = self._features.index_select(0, bars.view(-1))  # [T * B, F]
        batch = {name: target.index_select(0, rows) for name, target in self._targets.items()}
        return {"features": features.view(*bars.shape, -1), **batch, "index": rows}


def compact(windows: Windows) -> Windows:
    """Cut the table down to what the windows need.

    Parameters
    ----------
    windows
        Windows of any table.

    Returns
    -------
    Windows
        The same windows: over the bars from the first to the last one that they touch, or, where
        fewer bars are in the windows than lie between those two, over a table of the windows.

    Examples
    --------
    >>> table = np.arange(100, dtype=np.float32).reshape(50, 2)
    >>> few = compact(Windows(table, np.array([40, 7]), 3))
    >>> len(few.features), few.starts.tolist()
    (6, [0, 3])
    >>> many = compact(Windows(table, np.arange(7, 41), 3))
    >>> len(many.features), many.starts.tolist() == list(range(34))
    (36, True)
    """
    first = int(windows.starts.min())
    stop = int(windows.starts.max()) + windows.length
    if len(windows) * windows.length < stop - first:
        return stacked(windows.gather(np.arange(len(windows))))
    return Windows(windows.features[first:stop], windows.starts - first, windows.length)


def stacked(values: NDArray[np.float32]) -> Windows:
    """Take an array of windows for what it is: a table with the windows end to end.

    Parameters
    ----------
    values
        float32 ``[N, K, F]``.

    Returns
    -------
    Windows
        N windows of K bars; no copy of values that are C-contiguous.

    Raises
    ------
    LoaderError
        An array of another type or number of dimensions.

    Examples
    --------
    >>> windows = stacked(np.arange(12, dtype=np.float32).reshape(2, 3, 2))
    >>> windows.starts.tolist(), windows.length, windows[1].tolist()
    ([0, 3], 3, [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]])
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 3:
        found = (
            f"{values.dtype} {list(values.shape)}"
            if isinstance(values, np.ndarray)
            else type(values).__name__
        )
        raise LoaderError(f"windows are {found}; give float32 [N, K, F]")
    num_windows, length, num_features = values.shape
    table = values.reshape(-1, num_features)
    return Windows(table, np.arange(num_windows, dtype=np.int64) * length, length)


def num_bytes(windows: Windows, targets: Targets) -> int:
    """Size on a device of a table with its starts and targets."""
    arrays: list[NDArray[Any]] = [windows.features, windows.starts, *targets.values()]
    return sum(array.nbytes for array in arrays)


def choose_placement(
    placement: str, device: torch.device, needed_bytes: int, free_bytes: int | None = None
) -> tuple[str, str]:
    """Choose where batches are gathered.

    Parameters
    ----------
    placement
        "device", "host", or "auto": on the device if it has a memory of its own and the table
        takes up no more than 60 % of what is free there.
    device
        Where the model is.
    needed_bytes
        Size of the table, see :func:`num_bytes`.
    free_bytes
        Free memory of the device; asked of it when None.

    Returns
    -------
    tuple of str
        The placement and, in words, the reason.

    Raises
    ------
    LoaderError
        Another placement.

    Examples
    --------
    >>> choose_placement("auto", torch.device("cuda:0"), 116 * 10**6, free_bytes=140 * 10**9)
    ('device', 'a table of 0.12 GB fits in 60 % of the 140.00 GB free on cuda:0')
    """
    if placement not in {"auto", "device", "host"}:
        raise LoaderError(f"placement is {placement!r}; give 'auto', 'device' or 'host'")
    if placement != "auto":
        return placement, "as asked for"
    if device.type == "cpu":
        return "host", "the device is the CPU, which reads the table where it is"
    if free_bytes is None:
        free_bytes, _ = torch.cuda.mem_get_info(device)
    fits = needed_bytes <= DEVICE_SHARE * free_bytes
    reason = (
        f"a table of {needed_bytes / 1e9:.2f} GB {'fits' if fits else 'does not fit'} in "
        f"{DEVICE_SHARE * 100:.0f} % of the {free_bytes / 1e9:.2f} GB free on {device}"
    )
    return "device" if fits else "host", reason


def torch_dtype(array: NDArray[Any]) -> torch.dtype:
    """PyTorch's name for the type of an array."""
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device, by way of a small pinned buffer when that is a GPU.

    Mapped arrays are read-only, which PyTorch warns of, and cannot be pinned where they are.
    """
    uploaded = torch.empty(array.shape, dtype=torch_dtype(array), device=device)
    num_rows = max(_STAGING_BYTES // array[:1].nbytes, 1)
    staging = torch.empty(
        (min(num_rows, len(array)), *array.shape[1:]),
        dtype=uploaded.dtype,
        pin_memory=device.type == "cuda",
    )
    for first in range(0, len(array), num_rows):
        rows = array[first : first + num_rows]
        part = staging[: len(rows)]
        np.copyto(part.numpy(), rows)
        uploaded[first : first + len(rows)].copy_(part)  # blocks, so that staging can be reused
    return uploaded
