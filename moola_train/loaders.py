"""Batches of windows on the device: gathered there from a table, or sent through a host ring."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moola_features.windows import Windows
from moola_train.errors import LoaderError
from moola_train.order import BatchOrder
from moola_train.ring import CopyStream, CpuCopyStream, CudaCopyStream, Ring
from moola_train.table import (
    Batch,
    DeviceTable,
    Targets,
    choose_placement,
    compact,
    num_bytes,
    stacked,
    torch_dtype,
)

STATE_VERSION = 1

_SAMPLED_WINDOWS = 256  # read for the fingerprint


class WindowLoader:
    """Batches of windows on the device, an epoch at a time.

    Placed on the device, the table is uploaded once and windows are gathered there; placed on
    the host, a thread gathers them into pinned slots, from which a copy stream takes them while
    the model computes. The batches are the same, to the bit. There are no worker processes.

    Iterating yields the batches of the current epoch and then moves on to the next one; an
    iteration that was left early begins its epoch again. After :meth:`load_state_dict` the first
    iteration yields what was left of the epoch. Iterate once at a time.

    Parameters
    ----------
    source
        Windows of a store, N of them, or an array of windows, float32 ``[N, K, F]``.
    order
        Which windows make up which batch.
    device
        Where the batches go: "cpu", "cuda" or "cuda:1".
    placement
        "device", "host", or "auto", which chooses by the device's free memory.
    targets
        Arrays ``[N, ...]`` that come along with the windows, by name.
    slots
        Host buffers of the ring.
    copies
        The way from the slots to the device; the device's own when None.

    Attributes
    ----------
    placement, reason
        Where the windows are gathered, and why there.
    epoch, step
        The current epoch, and how many of its batches have been handed out.
    waited_seconds
        Time spent in handing out batches so far.

    Raises
    ------
    LoaderError
        No such device or placement, or an order or targets for another number of windows.

    Examples
    --------
    >>> windows = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    >>> order = BatchOrder(4, 2, seed=17, shuffle=False)
    >>> loader = WindowLoader(windows, order, device="cpu", targets={"type": np.arange(4) % 2})
    >>> for batch in loader:
    ...     print(batch["index"].tolist(), batch["type"].tolist(), list(batch["features"].shape))
    [0, 1] [0, 1] [3, 2, 2]
    [2, 3] [0, 1] [3, 2, 2]
    >>> loader.epoch, loader.placement
    (1, 'host')
    """

    def __init__(
        self,
        source: Windows | NDArray[np.float32],
        order: BatchOrder,
        *,
        device: str | torch.device,
        placement: str = "auto",
        targets: Targets | None = None,
        slots: int = 3,
        copies: CopyStream | None = None,
    ) -> None:
        windows = source if isinstance(source, Windows) else stacked(source)
        if order.num_items != len(windows):
            raise LoaderError(
                f"the order is for {order.num_items} windows, there are {len(windows)}; "
                "make it with num_items=len(windows)"
            )
        if slots < 1:
            raise LoaderError(f"slots is {slots}; give at least 1, better 3")
        self.order = order
        self.device = _known_device(device)
        self.epoch = 0
        self.step = 0
        self.waited_seconds = 0.0
        self._targets = _checked_targets(targets or {}, len(windows))
        self._windows = compact(windows)
        self._fingerprint = _fingerprint(self._windows)
        self._resumed = False
        self._num_slots = slots
        self._device_calls = threading.Lock()
        self.placement, self.reason = choose_placement(
            placement, self.device, num_bytes(self._windows, self._targets)
        )
        self._table: DeviceTable | None = None
        if self.placement == "device":
            self._table = DeviceTable(self._windows, self._targets, self.device)
        elif copies is None:
            on_gpu = self.device.type == "cuda"
            copies = CudaCopyStream(self.device) if on_gpu else CpuCopyStream()
        self._copies = copies

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.order.num_batches

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        self.step = self.step if self._resumed else 0
        self._resumed = False
        with contextlib.closing(self._batches(epoch, self.step)) as batches:
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                self.waited_seconds += time.perf_counter() - began
                if batch is None:
                    break
                self.step += 1
                yield batch
        self.epoch, self.step = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; if it is the current one, nothing changes."""
        if epoch != self.epoch:
            self.epoch, self.step, self._resumed = epoch, 0, False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the gather thread from calling the device: for the capture of a CUDA graph.

        Do not ask for a batch meanwhile: it may be one that the thread has not been able to send.
        """
        with self._device_calls:
            yield

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, as plain values: the same on all ranks and placements."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "step": self.step,
            "order": self.order.identity(),
            "windows": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader stood: the next iteration yields the rest of its epoch.

        An order that may be shuffled in any blocks takes those of the state.

        Parameters
        ----------
        state
            What :meth:`state_dict` returned.

        Raises
        ------
        LoaderError
            What is no state, or one of another version, of other windows, or of another order:
            world size, seed, batch size and all else that decides the batches.
        """
        if not isinstance(state, dict):
            raise LoaderError(f"the loader's state is {state!r}; start a new run")
        version = state.get("version")
        if version != STATE_VERSION:
            raise LoaderError(
                f"the loader's state has version {version!r}, this moola reads {STATE_VERSION}; "
                "resume with the moola that saved it"
            )
        own = self.state_dict()
        if set(state) != set(own) or not isinstance(state["order"], dict):
            raise LoaderError(f"the loader's state has {sorted(state)}, not {sorted(own)}")
        if self.order.any_block and state["order"].get("block") != self.order.block:
            self.order = self.order.in_blocks(state["order"].get("block"))
            own = self.state_dict()
        for name, wanted in own["order"].items():
            found = state["order"].get(name)
            if found != wanted:
                raise LoaderError(
                    f"the loader's state was saved with {name} = {found!r}, here it is "
                    f"{wanted!r}; resume with the same, or start a new run"
                )
        if state["windows"] != self._fingerprint:
            raise LoaderError(
                f"the loader's state belongs to other windows ({state['windows']}, here "
                f"{self._fingerprint}); resume with the same store and split, or start a new run"
            )
        epoch, step = state["epoch"], state["step"]
        if not isinstance(epoch, int) or not isinstance(step, int) or epoch < 0 or step < 0:
            raise LoaderError(f"the loader's state is at epoch {epoch!r}, step {step!r}")
        if step > self.order.num_batches:
            raise LoaderError(
                f"the loader's state is at step {step} of {self.order.num_batches} in an epoch; "
                "start a new run"
            )
        self.epoch, self.step, self._resumed = epoch, step, True

    def _batches(self, epoch: int, first: int) -> Generator[Batch]:
        steps = range(first, self.order.num_batches)
        rows = (self.order.batch(epoch, step) for step in steps)
        return self._through_ring(rows) if self._table is None else self._from(self._table, rows)

    def _from(self, table: DeviceTable, batches: Iterator[NDArray[np.int64]]) -> Generator[Batch]:
        on_gpu = self.device.type == "cuda"
        for rows in batches:
            positions = torch.from_numpy(rows)
            # A copy from pinned memory is queued, any other one would wait for the computing. This
            # buffer is not written again, and PyTorch keeps it until it has been copied.
            positions = positions.pin_memory() if on_gpu else positions
            yield table.gather(positions.to(self.device, non_blocking=True))

    def _through_ring(self, batches: Iterator[NDArray[np.int64]]) -> Generator[Batch]:
        assert self._copies is not None
        window = (self._windows.length, self._windows.features.shape[1])
        kinds = {name: (t.shape[1:], torch_dtype(t)) for name, t in self._targets.items()}
        shapes = {"features": (window, torch.float32), **kinds, "index": ((), torch.int64)}
        size = self.order.batch_size
        slots = [self._copies.slot(shapes, size) for _ in range(self._num_slots)]
        ring = Ring(slots, self._fill, batches, self._copies, self._device_calls)
        try:
            yield from ring
        finally:
            ring.close()

    def _fill(self, buffers: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> None:
        self._windows.gather(rows, out=buffers["features"], time_major=True)
        for name, target in self._targets.items():
            # Rows are known to be good; "raise" would take the detour of another buffer.
            np.take(target, rows, axis=0, out=buffers[name], mode="clip")
        buffers["index"][:] = rows


def _known_device(name: str | torch.device) -> torch.device:
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise LoaderError(f"device is {device}; give cpu or cuda")
    if not torch.cuda.is_available():
        raise LoaderError(f"device is {device}, and PyTorch sees no GPU; give cpu")
    # "cuda" alone means whichever device is current, which is each thread's own.
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def _checked_targets(targets: Targets, num_windows: int) -> dict[str, NDArray[Any]]:
    checked = {}
    for name, target in targets.items():
        if name in {"features", "index"}:
            raise LoaderError(f"a target is called {name!r}, as the loader's own; rename it")
        array = np.ascontiguousarray(target)
        if len(array) != num_windows:
            raise LoaderError(
                f"target {name!r} has {len(array)} rows for {num_windows} windows; give as many"
            )
        if array.dtype.kind not in "biuf":
            raise LoaderError(f"target {name!r} is {array.dtype}; give numbers")
        checked[name] = array
    return checked


def _fingerprint(windows: Windows) -> str:
    """Digest of which windows there are, and of what a sample of them holds."""
    digest = hashlib.sha256(f"{windows.length} {windows.features.shape[1]}".encode())
    digest.update(windows.starts.tobytes())
    sample = np.linspace(0, len(windows) - 1, min(len(windows), _SAMPLED_WINDOWS)).astype(np.int64)
    digest.update(windows.gather(sample).tobytes())
    return digest.hexdigest()[:16]
