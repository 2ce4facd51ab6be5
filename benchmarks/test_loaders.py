"""Epochs of shuffled batches of 1,024 windows on the CPU, in the layout that the model wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

import moola_features as mf
from benchmarks import window_peers as peers
from benchmarks.comparison import Contender, Goal, at_least, compare

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 1_024
NUM_BY_ZARR = 256  # windows that zarr-python reads in a turn


@pytest.fixture(scope="module")
def some(full: bool, store: mf.Store) -> mf.Windows:
    """Windows of the whole store, for so many whole batches."""
    every = store.windows()
    starts = np.random.default_rng(17).choice(every.starts, (64 if full else 2) * BATCH)
    return mf.Windows(every.features, starts, every.length)


@pytest.fixture(scope="module")
def table_file(store: mf.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "features.npy"
    np.save(path, store.features)
    return path


def ours(windows: mf.Windows, placement: str = "host", **options: Any) -> Contender:
    """The loader with either placement; on a CPU, the device's memory is the host's."""
    from moola_train.loaders import WindowLoader
    from moola_train.order import BatchOrder

    order = BatchOrder(len(windows), BATCH, seed=17)
    loader = WindowLoader(windows, order, device="cpu", placement=placement)
    where = {"host": "through the ring", "device": "out of an uploaded table"}[placement]
    return Contender(
        name=f"WindowLoader, {where}", amount=len(windows),
        run=lambda: total(batch["features"] for batch in loader), **options,
    )  # fmt: skip


def total(batches: Iterable[Tensor], first_bar: Callable[[Tensor], Tensor] | None = None) -> float:
    """Use each batch a little, as ``[B, F]`` of its windows' first bars."""
    at = first_bar or (lambda features: features[0])
    return sum(float(at(features)[:, 5].sum()) for features in batches)


def expected(windows: mf.Windows) -> Any:
    return pytest.approx(float(windows.features[windows.starts, 5].sum(dtype=np.float64)), rel=1e-4)


def by_numpy(windows: mf.Windows, goal: Goal) -> Contender:
    import torch

    steps = np.arange(windows.length)[:, None]
    random = np.random.default_rng(17)

    def epoch() -> Iterable[Tensor]:
        rows: NDArray[np.int64]
        for rows in random.permutation(len(windows)).reshape(-1, BATCH):
            yield torch.from_numpy(windows.features[windows.starts[rows] + steps])

    return Contender(
        name="NumPy fancy indexing", amount=len(windows), goal=goal, run=lambda: total(epoch())
    )


@pytest.mark.parametrize("placement", ["host", "device"])
def test_epoch_beside_numpy(benchmark: Any, some: mf.Windows, placement: str) -> None:
    results = compare(
        benchmark, ours(some, placement), by_numpy(some, at_least(1)), unit="windows/s", rounds=7
    )
    assert results == [expected(some)] * 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_beside_data_loader(
    benchmark: Any, some: mf.Windows, table_file: Path, num_workers: int
) -> None:
    loader = peers.data_loader(
        peers.MappedWindows(table_file, some.starts, some.length), num_workers, BATCH
    )
    theirs = Contender(
        name=f"torch DataLoader over a mapped array, {num_workers} workers", amount=len(some),
        run=lambda: total(loader, lambda features: features[:, 0]),
        goal=at_least(3), in_process=num_workers == 0, headline=True,
    )  # fmt: skip
    results = compare(benchmark, ours(some), theirs, unit="windows/s", rounds=7)
    assert results == [expected(some)] * 2


def test_epoch_beside_zarr(benchmark: Any, store: mf.Store, some: mf.Windows) -> None:
    import torch
    import zarr

    array = zarr.open_array(store.path / "features", mode="r")
    few = mf.Windows(some.features, some.starts[:NUM_BY_ZARR], some.length)

    def batch() -> Tensor:
        windows = [array[start : start + few.length] for start in few.starts.tolist()]
        return torch.from_numpy(np.stack(windows, axis=1))

    theirs = Contender(
        name="zarr-python, reading the same store", amount=len(few),
        run=lambda: total([batch()]), goal=at_least(100),
    )  # fmt: skip
    results = compare(benchmark, ours(some), theirs, unit="windows/s", rounds=7)
    assert results == [expected(some), expected(few)]


@pytest.mark.parametrize("placement", ["host", "device"])
def test_bytes_beside_a_plain_copy(benchmark: Any, some: mf.Windows, placement: str) -> None:
    import torch

    num_features = some.features.shape[1]
    batch = torch.zeros(some.length, BATCH, num_features)
    num_batches = len(some) // BATCH

    def copies() -> Iterable[Tensor]:
        for _ in range(num_batches):
            yield torch.from_numpy(batch.numpy().copy())

    plain = Contender(
        name="a plain copy of as many batches", amount=num_batches * batch.nbytes,
        run=lambda: total(copies()), is_rival=False,
    )  # fmt: skip
    loading = ours(some, placement)
    sized = Contender(name=loading.name, run=loading.run, amount=plain.amount)
    results = compare(benchmark, sized, plain, unit="bytes/s", rounds=7)
    assert results == [expected(some), 0]
