"""What others would write: windows by PyTorch's DataLoader. Its workers import this file only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MappedWindows:
    """A dataset for PyTorch's DataLoader: windows of a memory-mapped .npy file, one at a time."""

    def __init__(self, path: Path, starts: NDArray[np.int64], length: int) -> None:
        self.path = path
        self.starts = starts
        self.length = length
        self._table: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        if self._table is None:  # each worker maps the file itself
            self._table = map_table(self.path)
        start = self.starts[row]
        return self._table[start : start + self.length]


def map_table(path: Path) -> NDArray[np.float32]:
    """Map a .npy file; copy on write, because PyTorch warns of arrays that it may not write to."""
    # A plain array: slicing a numpy.memmap costs more.
    return np.asarray(np.load(path, mmap_mode="c"))


def data_loader(dataset: MappedWindows, num_workers: int, batch_size: int) -> Any:
    """PyTorch's loader as its documentation has it: shuffled, collated by default."""
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,  # type: ignore[arg-type]  # a dataset is whatever has a length and items
        batch_size=batch_size,
        shuffle=True,
        num_workers=num_workers,
        # Workers are not forked from a process that has started threads, and live on.
        multiprocessing_context="spawn" if num_workers else None,
        persistent_workers=num_workers > 0,
    )
