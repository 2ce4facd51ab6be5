"""A ring of host buffers that a thread fills with windows while earlier ones travel to the device.

A buffer, called a slot, may be refilled only once the copy out of it has finished. PyTorch's
pinned allocator waits for copies before it gives freed memory away, but knows nothing of memory
that is written again: that is what each slot's event is for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moola_train.table import Batch


class Event(Protocol):
    """Something that will have happened."""

    def synchronize(self) -> None:
        """Block until it has; other threads go on meanwhile."""


class CopyStream(Protocol):
    """The way from host buffers to the device: copies in the order they were sent."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory to send from."""

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        """Start copying rows ``[B, ...]``, features turned from ``[B, T, F]`` to ``[T, B, F]``.

        Returns the batch to be, and the event of its having been copied.
        """

    def receive(self, batch: Batch, copied: Event) -> None:
        """Make the caller's work on a batch come after its copy."""


class CudaCopyStream:
    """Copies from pinned buffers on a stream of their own, beside the computing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Pinned memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        """Queue the copies; nothing waits."""
        # A wait for it leaves the core to others.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.stream):
            batch = {
                name: tensor.to(self.device, non_blocking=True) for name, tensor in filled.items()
            }
            batch["features"] = batch["features"].transpose(0, 1).contiguous()
            copied.record(self.stream)
        return batch, copied

    def receive(self, batch: Batch, copied: Any) -> None:
        """Let the current stream wait for the copy, and keep the memory while it is in use."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in batch.values():
            tensor.record_stream(current)


class CpuCopyStream:
    """Copies within the host's memory, done when :meth:`send` returns."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Plain memory."""
        return torch.empty(shape, dtype=dtype)

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        """Copy.

        NumPy does it: a PyTorch operation would start a second team of threads, to compete with
        the training's own for the cores.
        """
        batch = {
            name: torch.from_numpy(_time_major(rows) if name == "features" else rows.copy())
            for name, rows in ((name, tensor.numpy()) for name, tensor in filled.items())
        }
        return batch, _Done()

    def receive(self, batch: Batch, copied: Event) -> None:
        """Nothing to wait for."""


class _Done:
    """An event in the past."""

    def synchronize(self) -> None:
        """Return at once."""


@dataclass
class Slot:
    """Host buffers for one batch, and the event of their last copy."""

    buffers: Batch
    copied: Event

    @classmethod
    def of(
        cls, copies: CopyStream, rows: Mapping[str, tuple[tuple[int, ...], torch.dtype]], size: int
    ) -> Slot:
        """Allocate buffers for so many rows of the given shapes and types."""
        buffers = {
            name: copies.buffer((size, *shape), dtype) for name, (shape, dtype) in rows.items()
        }
        return cls(buffers, _Done())


class Ring:
    """Batches, gathered into slots by one thread and sent on by it, in order.

    Parameters
    ----------
    slots
        Host buffers, filled in turn.
    fill
        Writes the windows at the given positions into buffers ``[B, ...]``.
    batches
        Positions of the windows of each batch, int64 ``[B]``; asked for in the thread.
    copies
        The way to the device.
    device_calls
        Held by the thread whenever it calls the device.

    Notes
    -----
    Iterate it once, and close it whatever happens: the thread ends with the last batch, with an
    exception, which is raised where the batch is asked for, or with :meth:`close`.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        fill: Callable[[dict[str, NDArray[Any]], NDArray[np.int64]], None],
        batches: Iterable[NDArray[np.int64]],
        copies: CopyStream,
        device_calls: threading.Lock,
    ) -> None:
        self._slots = slots
        self._fill = fill
        self._batches = batches
        self._copies = copies
        self._device_calls = device_calls
        self._sent: queue.SimpleQueue[tuple[Batch, Event] | BaseException | None]
        self._sent = queue.SimpleQueue()
        # As many batches may wait on the device as there are slots.
        self._room = threading.Semaphore(len(slots))
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="moola-gather", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (sent := self._sent.get()) is not None:
            if isinstance(sent, BaseException):
                raise sent
            self._room.release()
            batch, copied = sent
            self._copies.receive(batch, copied)
            yield batch

    def close(self) -> None:
        """End the thread, wherever it is."""
        self._closed = True
        self._room.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
            self._sent.put(None)
        except BaseException as error:
            self._sent.put(error)

    def _work(self) -> None:
        for number, rows in enumerate(self._batches):
            self._room.acquire()
            if self._closed:
                return
            slot = self._slots[number % len(self._slots)]
            with self._device_calls:
                slot.copied.synchronize()
            filled = {name: buffer[: len(rows)] for name, buffer in slot.buffers.items()}
            self._fill({name: buffer.numpy() for name, buffer in filled.items()}, rows)
            with self._device_calls:
                batch, slot.copied = self._copies.send(filled)
            self._sent.put((batch, slot.copied))


def _time_major(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy windows ``[B, T, F]`` to ``[T, B, F]``."""
    size, length, num_features = windows.shape
    turned = np.empty((length, size, num_features), np.float32)
    # Moving a bar as one item of its size is twice as fast as moving numbers.
    bar = np.dtype((np.void, num_features * turned.itemsize))
    np.copyto(turned.view(bar), windows.view(bar).transpose(1, 0, 2))
    return turned
