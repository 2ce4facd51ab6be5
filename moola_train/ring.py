"""A ring of host buffers that a thread fills with windows while earlier ones travel to the device.

A buffer, called a slot, may be refilled only once the copy out of it has finished. PyTorch's
pinned allocator waits for copies before it gives freed memory away, but knows nothing of memory
that is written again: that is what each slot's event is for.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from moola_train.table import Batch

# Of one window: shape and type by name; features are [T, F].
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Event(Protocol):
    """Something that will have happened."""

    def synchronize(self) -> None:
        """Block until it has; other threads go on meanwhile."""


class Slot:
    """Room on the host for one batch, and the event of the last copy out of it.

    Parameters
    ----------
    shapes
        Of one window.
    size
        Most windows in a batch.
    pinned
        Whether copies to a GPU are to run beside its computing.
    """

    def __init__(self, shapes: Shapes, size: int, *, pinned: bool = False) -> None:
        self.copied: Event = Done()
        self._shapes = shapes
        self._buffers = {
            name: torch.empty(size * math.prod(shape), dtype=dtype, pin_memory=pinned)
            for name, (shape, dtype) in shapes.items()
        }

    def room(self, count: int) -> Batch:
        """Return contiguous tensors for so many windows: features [T, B, F], others [B, ...]."""
        found = {}
        for name, (shape, _) in self._shapes.items():
            flat = self._buffers[name][: count * math.prod(shape)]
            found[name] = flat.view(_of_batch(name, shape, count))
        return found


class FreshSlot(Slot):
    """A slot whose room is new memory every time, and stays whoever's batch it becomes."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(shapes, 0)
        self._dtypes = {name: buffer.numpy().dtype for name, buffer in self._buffers.items()}

    def room(self, count: int) -> Batch:
        """Return new tensors; see :meth:`Slot.room`."""
        # Of NumPy's memory: it asks Linux for large pages, and a tenth more windows a second come.
        return {
            name: torch.from_numpy(np.empty(_of_batch(name, shape, count), self._dtypes[name]))
            for name, (shape, _) in self._shapes.items()
        }


class CopyStream(Protocol):
    """The way from host buffers to the device: copies in the order they were sent."""

    def slot(self, shapes: Shapes, size: int) -> Slot:
        """Room to send from, for so many windows."""

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        """Start copying; return the batch to be, and the event of its having been copied."""

    def receive(self, batch: Batch, copied: Event) -> None:
        """Make the caller's work on a batch come after its copy."""


class CudaCopyStream:
    """Copies from pinned buffers on a stream of their own, beside the computing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def slot(self, shapes: Shapes, size: int) -> Slot:
        """Pinned memory."""
        return Slot(shapes, size, pinned=True)

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        """Queue the copies; nothing waits."""
        # A wait for it leaves the core to others.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.stream):
            batch = {
                name: tensor.to(self.device, non_blocking=True) for name, tensor in filled.items()
            }
            copied.record(self.stream)
        return batch, copied

    def receive(self, batch: Batch, copied: Any) -> None:
        """Let the current stream wait for the copy, and keep the memory while it is in use."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in batch.values():
            tensor.record_stream(current)


class CpuCopyStream:
    """No copies at all: on the host, what was filled is the batch."""

    def slot(self, shapes: Shapes, size: int) -> Slot:
        """Plain memory, new for every batch."""
        return FreshSlot(shapes)

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        """Pass it on."""
        return filled, Done()

    def receive(self, batch: Batch, copied: Event) -> None:
        """Nothing to wait for."""


class Done:
    """An event in the past."""

    def synchronize(self) -> None:
        """Return at once."""


class Ring:
    """Batches, gathered into slots by one thread and sent on by it, in order.

    Parameters
    ----------
    slots
        Host buffers, filled in turn.
    fill
        Writes the windows at the given positions into features ``[T, B, F]`` and rows ``[B, ...]``.
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
            filled = slot.room(len(rows))
            self._fill({name: buffer.numpy() for name, buffer in filled.items()}, rows)
            with self._device_calls:
                batch, slot.copied = self._copies.send(filled)
            self._sent.put((batch, slot.copied))


def _of_batch(name: str, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    return (shape[0], count, *shape[1:]) if name == "features" else (count, *shape)
