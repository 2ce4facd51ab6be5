"""Epochs of shuffled batches of 1,024 windows for training, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import moola_features as mf
from benchmarks import window_peers as peers
from benchmarks.comparison import Contender, at_least, compare

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 1_024
NUM_BY_ZARR = 256  # windows that zarr-python reads in a turn


@pytest.fixture(scope="module")
def some(full: bool, store: mf.Store) -> mf.Windows:
    """Windows from all over the store, for so many whole batches."""
    every = store.windows()
    starts = np.random.default_rng(17).choice(every.starts, (64 if full else 2) * BATCH)
    return mf.Windows(every.features, starts, every.length)


@pytest.fixture(scope="module")
def table_file(store: mf.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "features.npy"
    np.save(path, store.features)
    return path


def ours(windows: mf.Windows, amount: int | None = None) -> Contender:
    from moola_train.loaders import WindowLoader
    from moola_train.order import BatchOrder

    loader = WindowLoader(windows, BatchOrder(len(windows), BATCH, seed=17), device="cpu")
    return Contender(
        name="epoch of WindowLoader, one gather thread, [T, B, F]", amount=amount or len(windows),
        run=lambda: total(batch["features"] for batch in loader), headline=amount is None,
    )  # fmt: skip


def total(batches: Iterable[Tensor], first: Callable[[Tensor], Tensor] | None = None) -> float:
    """Use each batch a little; ``first`` takes the first bars, ``[B, F]``, out of it."""
    if first is None:
        return sum(float(batch[0, :, 5].sum()) for batch in batches)
    return sum(float(first(batch)[:, 5].sum()) for batch in batches)


def expected(windows: mf.Windows) -> Any:
    return pytest.approx(float(windows.features[windows.starts, 5].sum(dtype=np.float64)), rel=1e-4)


def test_epoch_beside_numpy(benchmark: Any, some: mf.Windows) -> None:
    import torch

    steps = np.arange(some.length)[:, None]
    random = np.random.default_rng(17)

    def epoch() -> Iterable[Tensor]:
        for rows in random.permutation(len(some)).reshape(-1, BATCH):
            yield torch.from_numpy(some.features[some.starts[rows] + steps])

    theirs = Contender(
        name="NumPy fancy indexing, [T, B, F]", amount=len(some), run=lambda: total(epoch()),
        goal=at_least(3), headline=True,
    )  # fmt: skip
    results = compare(benchmark, ours(some), theirs, unit="windows/s", rounds=7)
    assert results == [expected(some)] * 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_beside_data_loader(
    benchmark: Any, some: mf.Windows, table_file: Path, num_workers: int
) -> None:
    loader = peers.data_loader(
        peers.MappedWindows(table_file, some.starts, some.length), num_workers, BATCH
    )
    theirs = Contender(
        name=f"torch DataLoader over a mapped array, {num_workers} workers, [B, T, F]",
        amount=len(some), run=lambda: total(loader, lambda batch: batch[:, 0]),
        in_process=num_workers == 0, headline=True,
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
        name="zarr-python, reading the same store, [T, B, F]", amount=len(few),
        run=lambda: total([batch()]), headline=True,
    )  # fmt: skip
    results = compare(benchmark, ours(some), theirs, unit="windows/s", rounds=7)
    assert results == [expected(some), expected(few)]


def test_bytes_beside_a_plain_copy(benchmark: Any, some: mf.Windows) -> None:
    num_batches = len(some) // BATCH
    rows = some.length * BATCH
    pieces = [
        np.resize(some.features[rows * piece : rows * (piece + 1)], (rows, some.features.shape[1]))
        for piece in range(min(num_batches, len(some.features) // rows) or 1)
    ]

    def copies() -> float:
        return sum(float(pieces[step % len(pieces)].copy()[0, 5]) for step in range(num_batches))

    num_bytes = num_batches * pieces[0].nbytes
    plain = Contender(
        name="a plain copy of as many bars", amount=num_bytes, run=copies, is_rival=False
    )
    results = compare(benchmark, ours(some, num_bytes), plain, unit="bytes/s", rounds=7)
    firsts = [float(pieces[step % len(pieces)][0, 5]) for step in range(num_batches)]
    assert results == [expected(some), pytest.approx(sum(firsts))]
