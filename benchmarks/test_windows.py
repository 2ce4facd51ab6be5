"""Windows of 105 bars out of the table, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import moola_features as mf
from benchmarks import window_peers as peers
from benchmarks.comparison import Contender, at_least, compare

BATCH = 1_024
NUM_SINGLE = 256  # windows read one by one in a turn
GATHER = "gather of 1,024 random windows into a reused buffer"


@pytest.fixture(scope="module")
def windows(store: mf.Store) -> mf.Windows:
    return store.windows()


@pytest.fixture(scope="module")
def rows(windows: mf.Windows) -> NDArray[np.int64]:
    return np.random.default_rng(17).integers(0, len(windows), BATCH)


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


@pytest.fixture
def gather(windows: mf.Windows, rows: NDArray[np.int64]) -> Contender:
    buffer = np.zeros((BATCH, windows.length, windows.features.shape[1]), np.float32)
    return Contender(
        name=GATHER, run=lambda: windows.gather(rows, out=buffer), amount=BATCH,
        goal=at_least(1.5e6), headline=True,
    )  # fmt: skip


def test_gather_beside_numpy(
    benchmark: Any, gather: Contender, windows: mf.Windows, rows: NDArray[np.int64]
) -> None:
    table, starts, length = windows.features, windows.starts, windows.length
    steps = np.arange(length)
    sliding = sliding_window_view(table, (length, table.shape[1]))[:, 0]
    fancy = Contender(
        name="NumPy fancy indexing", run=lambda: table[starts[rows][:, None] + steps],
        amount=BATCH, goal=at_least(3), headline=True,
    )  # fmt: skip
    viewed = Contender(
        name="NumPy sliding_window_view, indexed", run=lambda: sliding[starts[rows]],
        amount=BATCH, headline=True,
    )  # fmt: skip
    results = compare(benchmark, gather, fancy, viewed, unit="windows/s", rounds=300)
    for taken in results[1:]:
        np.testing.assert_array_equal(taken, results[0])


@pytest.mark.usefixtures("one_torch_thread")
def test_gather_beside_torch(
    benchmark: Any,
    gather: Contender,
    windows: mf.Windows,
    rows: NDArray[np.int64],
    table_file: Path,
) -> None:
    import torch

    table = torch.from_numpy(peers.map_table(table_file))
    unfolded = table.unfold(0, windows.length, 1).transpose(1, 2)
    starts = torch.from_numpy(windows.starts[rows])
    indexed = Contender(
        name="torch unfold, indexed, one thread", amount=BATCH, headline=True,
        run=lambda: unfolded[starts].contiguous(),
    )  # fmt: skip
    ours, theirs = compare(benchmark, gather, indexed, unit="windows/s", rounds=300)
    np.testing.assert_array_equal(theirs.numpy(), ours)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_gather_beside_data_loader(
    benchmark: Any,
    full: bool,
    gather: Contender,
    windows: mf.Windows,
    table_file: Path,
    num_workers: int,
) -> None:
    num_windows = 64 * BATCH if full else 2 * BATCH
    random = np.random.default_rng(18)
    starts = windows.starts[random.integers(0, len(windows), num_windows)]
    loader = peers.data_loader(
        peers.MappedWindows(table_file, starts, windows.length), num_workers, BATCH
    )
    loading = Contender(
        name=f"torch DataLoader over a mapped array, {num_workers} workers", amount=num_windows,
        run=lambda: sum(float(batch[:, 0, 5].sum()) for batch in loader),
        goal=at_least(5), headline=True,
    )  # fmt: skip
    results = compare(benchmark, gather, loading, unit="windows/s", rounds=7)
    assert results[1] == pytest.approx(float(windows.features[starts, 5].sum(dtype=np.float64)))


def test_single_windows(
    benchmark: Any, store: mf.Store, windows: mf.Windows, rows: NDArray[np.int64]
) -> None:
    import zarr

    array = zarr.open_array(store.path / "features", mode="r")
    some = rows[:NUM_SINGLE].tolist()
    starts = windows.starts[some].tolist()
    length = windows.length
    read = Contender(
        name="one window at a time, copied", amount=NUM_SINGLE, headline=True,
        run=lambda: [windows[row].copy() for row in some],
    )  # fmt: skip
    by_zarr = Contender(
        name="zarr-python, reading the same store", amount=NUM_SINGLE, goal=at_least(300),
        run=lambda: [array[start : start + length] for start in starts], headline=True,
    )  # fmt: skip
    ours, theirs = compare(benchmark, read, by_zarr, unit="windows/s", rounds=7)
    np.testing.assert_array_equal(np.stack(ours), np.stack(theirs))
