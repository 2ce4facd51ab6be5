"""Windows of 105 bars out of the table, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import moola_features as mf
from benchmarks import window_peers as peers
from benchmarks.comparison import Contender, Goal, at_least, compare

BATCH = 1_024
NUM_BY_ZARR = 256  # windows that zarr-python reads in a turn
GATHER = "gather of 1,024 random windows into a reused buffer"


@pytest.fixture(scope="module")
def windows(store: mf.Store) -> mf.Windows:
    return store.windows()


@pytest.fixture(scope="module")
def batches(full: bool, windows: mf.Windows) -> NDArray[np.int64]:
    """Rows of many batches: with one alone, its windows would stay in the processor's cache."""
    shape = (64 if full else 2, BATCH)
    return np.random.default_rng(17).integers(0, len(windows), shape)


@pytest.fixture(scope="module")
def table_file(store: mf.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "features.npy"
    np.save(path, store.features)
    return path


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def each(batches: NDArray[np.int64], take: Callable[[Any], Any]) -> Callable[[], Any]:
    """Take every batch in turn; the last one is what is returned."""

    def run() -> Any:
        for rows in batches:
            taken = take(rows)
        return taken

    return run


def gather(windows: mf.Windows, batches: NDArray[np.int64], goal: Goal | None = None) -> Contender:
    buffer = np.zeros((BATCH, windows.length, windows.features.shape[1]), np.float32)
    return Contender(
        name=GATHER, run=each(batches, lambda rows: windows.gather(rows, out=buffer)),
        amount=batches.size, goal=goal, headline=True,
    )  # fmt: skip


def test_gather_beside_numpy(
    benchmark: Any, windows: mf.Windows, batches: NDArray[np.int64]
) -> None:
    table, starts, length = windows.features, windows.starts, windows.length
    steps = np.arange(length)
    sliding = sliding_window_view(table, (length, table.shape[1]))[:, 0]
    buffer = np.zeros((BATCH, length, table.shape[1]), np.float32)

    def take_out(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        # With mode "raise" NumPy would take into a buffer of its own and copy that.
        index = starts[rows][:, None] + steps
        return np.take(table, index, axis=0, out=buffer, mode="clip")

    fancy = Contender(
        name="NumPy fancy indexing", amount=batches.size, goal=at_least(3), headline=True,
        run=each(batches, lambda rows: table[starts[rows][:, None] + steps]),
    )  # fmt: skip
    viewed = Contender(
        name="NumPy sliding_window_view, indexed", amount=batches.size, headline=True,
        run=each(batches, lambda rows: sliding[starts[rows]]),
    )  # fmt: skip
    taken = Contender(
        name="numpy.take into a reused buffer", amount=batches.size, headline=True,
        run=each(batches, take_out),
    )  # fmt: skip
    ours = gather(windows, batches, at_least(1.5e6))
    results = compare(benchmark, ours, fancy, viewed, taken, unit="windows/s", rounds=15)
    for theirs in results[1:]:
        np.testing.assert_array_equal(theirs, results[0])


@pytest.mark.usefixtures("one_torch_thread")
def test_gather_beside_torch(
    benchmark: Any, windows: mf.Windows, batches: NDArray[np.int64], table_file: Path
) -> None:
    import torch

    table = torch.from_numpy(peers.map_table(table_file))
    unfolded = table.unfold(0, windows.length, 1).transpose(1, 2)
    starts = torch.from_numpy(windows.starts)
    indexed = Contender(
        name="torch unfold, indexed, one thread", amount=batches.size, headline=True,
        run=each(
            batches, lambda rows: unfolded[starts[torch.from_numpy(rows)]].contiguous()
        ),
    )  # fmt: skip
    results = compare(benchmark, gather(windows, batches), indexed, unit="windows/s", rounds=15)
    np.testing.assert_array_equal(results[1].numpy(), results[0])


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_gather_beside_data_loader(
    benchmark: Any,
    windows: mf.Windows,
    batches: NDArray[np.int64],
    table_file: Path,
    num_workers: int,
) -> None:
    starts = windows.starts[batches.reshape(-1)]
    loader = peers.data_loader(
        peers.MappedWindows(table_file, starts, windows.length), num_workers, BATCH
    )
    loading = Contender(
        name=f"torch DataLoader over a mapped array, {num_workers} workers", amount=len(starts),
        run=lambda: sum(float(batch[:, 0, 5].sum()) for batch in loader),
        goal=at_least(5), in_process=num_workers == 0, headline=True,
    )  # fmt: skip
    ours = gather(windows, batches)
    _, total = compare(benchmark, ours, loading, unit="windows/s", rounds=7)
    assert total == pytest.approx(float(windows.features[starts, 5].sum(dtype=np.float64)))


@pytest.mark.parametrize("copied", [False, True])
def test_single_windows(
    benchmark: Any,
    store: mf.Store,
    windows: mf.Windows,
    batches: NDArray[np.int64],
    copied: bool,
) -> None:
    import zarr

    array = zarr.open_array(store.path / "features", mode="r")
    rows = batches[:4].reshape(-1).tolist()
    starts = windows.starts[rows[:NUM_BY_ZARR]].tolist()
    length = windows.length
    view = Contender(
        name="one window, w[i]: a view of the mapped file", amount=len(rows),
        run=lambda: [windows[row] for row in rows],
    )  # fmt: skip
    copy = Contender(
        name="one window, copied out of the mapped file", amount=len(rows),
        run=lambda: [windows[row].copy() for row in rows],
    )  # fmt: skip
    theirs = Contender(
        name="zarr-python, reading the same store", amount=NUM_BY_ZARR,
        run=lambda: [array[start : start + length] for start in starts],
        goal=None if copied else at_least(300), headline=True,
    )  # fmt: skip
    ours = copy if copied else view
    results = compare(benchmark, ours, theirs, unit="windows/s", rounds=7)
    np.testing.assert_array_equal(np.stack(results[0][:NUM_BY_ZARR]), np.stack(results[1]))
