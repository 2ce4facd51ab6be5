"""A slot is never refilled before its copy has finished, and the thread always ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from moola_train.ring import CopyStream, CpuCopyStream, CudaCopyStream, Ring
from tests.train.copies import (
    A_MOMENT,
    PATIENCE,
    HeedlessCopyStream,
    HeldCopyStream,
    gather_threads,
)

WINDOW = (3, 2)  # bars, features
SIZE = 4
NUM_SLOTS = 3


class Filler:
    """Fills the features of each window with its position, and counts the batches."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.num_filled = 0
        self.fails_at = fails_at

    def __call__(self, buffers: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> None:
        if self.num_filled == self.fails_at:
            raise MemoryError("nothing left")
        buffers["features"][:] = expected(rows)
        self.num_filled += 1


def expected(rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[T, B, F]"""
    values = rows[None, :, None] * 10 + np.arange(6).reshape(3, 1, 2)
    return values.astype(np.float32)


def batches(num_batches: int, last: int = SIZE) -> list[NDArray[np.int64]]:
    rows = [np.arange(SIZE) + SIZE * number for number in range(num_batches)]
    rows[-1] = rows[-1][:last]
    return rows


def ring_of(
    copies: CopyStream, fill: Filler, rows: Any, device_calls: threading.Lock | None = None
) -> Ring:
    slots = [copies.slot({"features": (WINDOW, torch.float32)}, SIZE) for _ in range(NUM_SLOTS)]
    return Ring(slots, fill, rows, copies, device_calls or threading.Lock())


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert gather_threads() == []


def test_batches_come_in_order_and_time_major() -> None:
    rows = batches(8, last=1)
    ring = ring_of(CpuCopyStream(), Filler(), rows)
    received = list(ring)
    ring.close()
    assert len(received) == 8
    for batch, of_batch in zip(received, rows, strict=True):
        assert batch["features"].is_contiguous()
        np.testing.assert_array_equal(batch["features"].numpy(), expected(of_batch))


def test_a_slot_is_not_refilled_while_its_copy_is_held_back() -> None:
    copies, fill, rows = HeldCopyStream(), Filler(), batches(8)
    ring = ring_of(copies, fill, rows)
    arriving = iter(ring)
    received = [next(arriving) for _ in range(NUM_SLOTS)]  # there is room for more
    for number in range(NUM_SLOTS, 8):
        # The thread waits for the copy out of the slot that is next, and has not touched it.
        oldest = copies.copies[number - NUM_SLOTS]
        assert oldest.awaited.wait(PATIENCE)
        assert fill.num_filled == len(copies.copies) == number
        held = oldest.source["features"].numpy()
        np.testing.assert_array_equal(held, expected(rows[number - NUM_SLOTS]))
        copies.let_go(1)
        received.append(next(arriving))
    copies.let_go(NUM_SLOTS)
    assert next(arriving, None) is None
    ring.close()
    for batch, of_batch in zip(received, rows, strict=True):
        np.testing.assert_array_equal(batch["features"].numpy(), expected(of_batch))


def test_values_would_show_a_slot_refilled_too_early() -> None:
    copies, rows = HeedlessCopyStream(), batches(8)
    ring = ring_of(copies, Filler(), rows)
    received = list(ring)
    ring.close()
    copies.let_go(8)
    wrong = [
        number
        for number, batch in enumerate(received)
        if not np.array_equal(batch["features"].numpy(), expected(rows[number]))
    ]
    assert wrong == list(range(8 - NUM_SLOTS))


def test_no_more_batches_are_made_than_there_are_slots_before_they_are_fetched() -> None:
    copies, fill = HeldCopyStream(), Filler()
    ring = ring_of(copies, fill, batches(8))
    copies.let_go(NUM_SLOTS)
    assert copies.stays_at(NUM_SLOTS)
    arriving = iter(ring)
    next(arriving)
    copies.let_go(1)
    assert copies.stays_at(NUM_SLOTS + 1)
    assert fill.num_filled == NUM_SLOTS + 1
    ring.close()


def test_an_exception_in_the_thread_is_raised_after_the_batches_before_it() -> None:
    ring = ring_of(CpuCopyStream(), Filler(fails_at=2), batches(8))
    arriving = iter(ring)
    next(arriving)
    next(arriving)
    with pytest.raises(MemoryError, match="nothing left"):
        next(arriving)
    ring.close()


def test_an_exception_in_the_order_is_raised_too() -> None:
    def rows() -> Iterator[NDArray[np.int64]]:
        yield np.arange(SIZE)
        raise LookupError("no such batch")

    ring = ring_of(CpuCopyStream(), Filler(), rows())
    with pytest.raises(LookupError, match="no such batch"):
        list(ring)
    ring.close()


@pytest.mark.parametrize("num_received", [0, 1, 8])
def test_closing_ends_the_thread(num_received: int) -> None:
    ring = ring_of(CpuCopyStream(), Filler(), batches(8))
    arriving = iter(ring)
    for _ in range(num_received):
        next(arriving)
    ring.close()


def test_closing_waits_for_a_copy_under_way() -> None:
    copies = HeldCopyStream()
    ring = ring_of(copies, Filler(), batches(8))
    arriving = iter(ring)
    next(arriving)  # room for a fourth batch, whose slot is still being copied
    assert copies.copies[0].awaited.wait(PATIENCE)
    closing = threading.Thread(target=ring.close)
    closing.start()
    closing.join(A_MOMENT)
    assert closing.is_alive()
    copies.let_go(1)
    closing.join(PATIENCE)
    assert not closing.is_alive()


def test_a_pause_keeps_the_thread_from_the_device() -> None:
    copies, fill, device_calls = HeldCopyStream(), Filler(), threading.Lock()
    with device_calls:
        ring = ring_of(copies, fill, batches(8), device_calls)
        assert copies.stays_at(0)
    copies.wait_for(NUM_SLOTS)
    copies.let_go(NUM_SLOTS)
    with device_calls:
        arriving = iter(ring)
        for _ in range(NUM_SLOTS):
            next(arriving)  # what has been sent can be had
        assert copies.stays_at(NUM_SLOTS)
    copies.wait_for(NUM_SLOTS + 1)
    copies.let_go(1)
    ring.close()


def test_a_pause_that_begins_while_a_slot_is_filled_keeps_it_from_being_sent() -> None:
    copies, device_calls = HeldCopyStream(), threading.Lock()
    filling, may_end = threading.Event(), threading.Event()

    class SlowFiller(Filler):
        def __call__(self, *arguments: Any) -> None:
            filling.set()
            assert may_end.wait(PATIENCE)
            super().__call__(*arguments)

    ring = ring_of(copies, SlowFiller(), batches(2), device_calls)
    assert filling.wait(PATIENCE)
    with device_calls:
        may_end.set()
        assert copies.stays_at(0)
    copies.wait_for(2)
    ring.close()


def test_copies_to_a_gpu_are_queued_on_their_stream_and_waited_for_by_the_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is called, and in which order, where there is no GPU to show that it works.
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: Any) -> None:
            calls.append(f"{self.name} waits for {event.name}")

    class Event:
        name = "the event"

        def __init__(self, *, blocking: bool) -> None:
            assert blocking

        def record(self, stream: Stream) -> None:
            calls.append(f"{self.name} recorded on {stream.name}")

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        calls.append(f"begin on {stream.name}")
        yield
        calls.append(f"end on {stream.name}")

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool) -> Tensor:
        assert non_blocking
        calls.append("copy")
        return tensor.clone()

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        calls.append(f"memory kept for {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("the copy stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("the caller's stream"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)

    copies = CudaCopyStream(torch.device("cuda:0"))
    features = torch.arange(24.0).reshape(3, 4, 2)
    batch, copied = copies.send({"features": features, "index": torch.arange(4)})
    assert calls == [
        "begin on the copy stream", "copy", "copy", "the event recorded on the copy stream",
        "end on the copy stream",
    ]  # fmt: skip
    assert batch["features"].is_contiguous()
    assert torch.equal(batch["features"], features)
    calls.clear()
    copies.receive(batch, copied)
    assert calls == [
        "the caller's stream waits for the event",
        *["memory kept for the caller's stream"] * 2,
    ]
