"""A copy stream whose copies are made when the test says so, and what threads are there."""

from __future__ import annotations

import threading
from collections import deque

import torch

from moola_train.ring import Event, Shapes, Slot
from moola_train.table import Batch

PATIENCE = 10.0  # seconds; only a failing test waits that long
A_MOMENT = 0.1  # seconds in which nothing is to happen


class HeldCopy:
    """A copy on its way, and the event of its end."""

    def __init__(self, source: Batch, target: Batch) -> None:
        self.source = source
        self.target = target
        self.made = threading.Event()
        self.awaited = threading.Event()

    def make(self) -> None:
        """Copy what the buffers hold now, as the device would."""
        for name, tensor in self.source.items():
            self.target[name].copy_(tensor)
        self.made.set()

    def synchronize(self) -> None:
        self.awaited.set()
        assert self.made.wait(PATIENCE), "waited for a copy that nobody lets go"


class HeldCopyStream:
    """A stand-in for a device's stream: its copies are queued, and made in order by `let_go`."""

    def __init__(self) -> None:
        self.copies: list[HeldCopy] = []
        self._waiting: deque[HeldCopy] = deque()
        self._changed = threading.Condition()

    def slot(self, shapes: Shapes, size: int) -> Slot:
        return Slot(shapes, size)

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        target = {name: torch.empty_like(tensor) for name, tensor in filled.items()}
        copy = HeldCopy(filled, target)
        with self._changed:
            self.copies.append(copy)
            self._waiting.append(copy)
            self._changed.notify_all()
        return target, copy

    def receive(self, batch: Batch, copied: Event) -> None:
        """As on a device: the caller is not kept waiting, only what it computes later is."""

    def wait_for(self, num_sent: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.copies) >= num_sent, PATIENCE)

    def stays_at(self, num_sent: int) -> bool:
        """Whether no more copies are sent for a moment."""
        with self._changed:
            more = self._changed.wait_for(lambda: len(self.copies) > num_sent, A_MOMENT)
            return not more and len(self.copies) == num_sent

    def let_go(self, num_copies: int) -> None:
        for _ in range(num_copies):
            with self._changed:
                assert self._changed.wait_for(lambda: self._waiting, PATIENCE)
                copy = self._waiting.popleft()
            copy.make()


class HeedlessCopyStream(HeldCopyStream):
    """One whose events have always happened: what the tests must notice."""

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        batch, _ = super().send(filled)
        return batch, NoWait()


class NoWait:
    """An event that nobody waits for."""

    def synchronize(self) -> None:
        pass


def gather_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "moola-gather"]
