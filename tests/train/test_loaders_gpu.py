"""The same on a GPU, with its own streams, events and pinned memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moola_features.windows import Windows
from moola_train.loaders import WindowLoader
from moola_train.order import BatchOrder
from moola_train.ring import CudaCopyStream, Event
from moola_train.table import Batch
from tests.train.copies import NoWait, gather_threads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]

CYCLES = 50_000_000  # some 30 ms on a GPU of 2020 to 2025


class SlowCopyStream(CudaCopyStream):
    """The device's own, each copy held back by a kernel that spins before it."""

    def send(self, filled: Batch) -> tuple[Batch, Event]:
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        return super().send(filled)


class HeedlessCopyStream(SlowCopyStream):
    """One whose slots are refilled at once: what the test must notice."""

    def send(self, filled: Batch) -> tuple[Batch, Any]:
        batch, copied = super().send(filled)
        self.copied = copied
        return batch, NoWait()

    def receive(self, batch: Batch, copied: Any) -> None:
        torch.cuda.current_stream().wait_stream(self.stream)


@pytest.fixture
def windows() -> Windows:
    table = np.random.default_rng(5).random((5_000, 11)).astype(np.float32)
    return Windows(table, np.arange(4_896), 105)


@pytest.fixture
def targets(windows: Windows) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(6)
    return {
        "type": rng.integers(-1, 3, len(windows)),
        "span": rng.random((len(windows), 105)).astype(np.float32),
    }


def loader_of(windows: Windows, **options: Any) -> WindowLoader:
    order = BatchOrder(len(windows), 256, seed=17)
    return WindowLoader(windows, order, device="cuda", **options)


def are_right(
    loader: WindowLoader, windows: Windows, targets: dict[str, NDArray[Any]]
) -> list[bool]:
    """Whether each batch of an epoch holds what it should; looked at when all have been made."""
    batches = list(loader)
    torch.cuda.synchronize()
    right = []
    for step, batch in enumerate(batches):
        rows = loader.order.batch(0, step)
        expected = {
            "features": windows.gather(rows).transpose(1, 0, 2),
            **{name: target[rows] for name, target in targets.items()},
            "index": rows,
        }
        assert batch["features"].is_contiguous()
        assert {tensor.device.type for tensor in batch.values()} == {"cuda"}
        right.append(
            all(np.array_equal(batch[name].cpu().numpy(), expected[name]) for name in expected)
        )
    return right


@pytest.mark.parametrize("placement", ["auto", "device", "host"])
def test_values_are_those_of_the_windows_to_the_bit(
    windows: Windows, targets: dict[str, NDArray[Any]], placement: str
) -> None:
    loader = loader_of(windows, placement=placement, targets=targets)
    assert loader.placement == ("host" if placement == "host" else "device")
    assert are_right(loader, windows, targets) == [True] * len(loader)


def test_a_slot_is_not_refilled_while_its_copy_is_held_back(
    windows: Windows, targets: dict[str, NDArray[Any]]
) -> None:
    copies = SlowCopyStream(torch.device("cuda", torch.cuda.current_device()))
    loader = loader_of(windows, placement="host", targets=targets, copies=copies)
    assert are_right(loader, windows, targets) == [True] * len(loader)
    assert gather_threads() == []


def test_values_would_show_a_slot_refilled_too_early(
    windows: Windows, targets: dict[str, NDArray[Any]]
) -> None:
    copies = HeedlessCopyStream(torch.device("cuda", torch.cuda.current_device()))
    loader = loader_of(windows, placement="host", targets=targets, copies=copies)
    assert not all(are_right(loader, windows, targets))


def test_batches_survive_work_on_the_stream_that_computes(
    windows: Windows, targets: dict[str, NDArray[Any]]
) -> None:
    # A batch that has been let go of is not overwritten while work on it is still queued.
    loader = loader_of(windows, placement="host", targets=targets)
    sums = []
    for batch in loader:
        torch.cuda._sleep(CYCLES // 10)  # type: ignore[no-untyped-call]
        sums.append(batch["features"].sum(dtype=torch.float64))
        del batch
    expected = [
        windows.gather(loader.order.batch(0, step)).sum(dtype=np.float64)
        for step in range(len(loader))
    ]
    np.testing.assert_allclose([float(total) for total in sums], expected, rtol=1e-9)


def test_slots_are_pinned_and_copies_queued(windows: Windows) -> None:
    copies = SlowCopyStream(torch.device("cuda", torch.cuda.current_device()))
    filled = copies.slot({"features": ((105, 11), torch.float32)}, 4).room(4)
    assert filled["features"].is_pinned()
    _, copied = copies.send(filled)
    assert not copied.query()  # type: ignore[attr-defined]
    copied.synchronize()


def test_a_graph_can_be_captured_while_the_loader_is_paused(
    windows: Windows, targets: dict[str, NDArray[Any]]
) -> None:
    loader = loader_of(windows, placement="host", targets=targets)
    arriving = iter(loader)
    batch = next(arriving)
    fixed = batch["features"].clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with loader.paused(), torch.cuda.graph(graph):
        doubled = fixed * 2
    for batch in arriving:
        fixed.copy_(batch["features"])
        graph.replay()
        assert torch.equal(doubled, batch["features"] * 2)
