"""How much a score would vary: a bootstrap over blocks of windows that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_train.errors import ConfigError
from moola_train.targets import Float64, Int64, LabelledWindows

NUM_DRAWS = 1_000
SEED = 17
LEVEL = 0.95
MIN_DRAWS, MOST_DRAWS = 5, 100_000  # fewer have no percentiles, more no room
MIN_BLOCKS = 5  # fewer say too little of what others would be like
MOST_SILENT = 0.05  # of the draws, that may say nothing
DAY_NS = 86_400 * 10**9

_CELLS = 1 << 22  # weights held at once, [draws, windows]


def blocks_of(labels: LabelledWindows) -> Int64:
    """Which windows are drawn together, int64 ``[N]``, counted from 0.

    Windows of one day share their market, and windows of one base their bars: a block is a UTC
    day, to which a base belongs whole by its first window. Windows without times are grouped by
    base alone.

    Examples
    --------
    >>> from moola_train.labels import read_labels
    >>> labels = read_labels({
    ...     "window_id": ["a", "b", "c"], "label": [None] * 3, "expansion_start": [None] * 3,
    ...     "expansion_end": [None] * 3, "base_window_id": ["a", "b", "a"],
    ...     "start_time": ["2020-01-06 10:00", "2020-01-07 10:00", "2020-01-07 11:00"],
    ... })
    >>> blocks_of(labels)
    array([0, 1, 0])
    """
    _, base = np.unique(labels.base_id, return_inverse=True)
    keys = base
    if labels.start_time is not None:
        first = np.full(base.max(initial=-1) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, base, labels.start_time // DAY_NS)
        keys = first[base]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Interval:
    """Where a number probably lies; NaN where there was too little to draw."""

    low: float
    high: float

    @classmethod
    def of(cls, drawn: Float64, level: float = LEVEL) -> Self:
        """Percentiles of draws ``[D]``, NaN where more than a few of them are not finite.

        Examples
        --------
        >>> Interval.of(np.arange(101.0), 0.5)
        Interval(low=25.0, high=75.0)
        """
        finite = drawn[np.isfinite(drawn)]
        if len(finite) == 0 or len(finite) < (1 - MOST_SILENT) * len(drawn):
            return cls(float("nan"), float("nan"))
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2]).tolist()
        return cls(low, high)

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return not np.isnan(self.low)


@dataclass(frozen=True, eq=False)
class Draws:
    """Samples of N windows, drawn block by block with replacement.

    Attributes
    ----------
    block
        int64 ``[N]``: the block of each window, 0 to G - 1.
    counts
        uint16 ``[D, G]``: how often each draw holds each block.
    """

    block: Int64
    counts: NDArray[np.uint16]

    @classmethod
    def of(cls, blocks: ArrayLike, num_draws: int = NUM_DRAWS, seed: int = SEED) -> Self:
        """Draw as many blocks as there are, again and again.

        Parameters
        ----------
        blocks
            ``[N]``: anything that tells blocks apart.
        num_draws
            Number of draws, D.
        seed
            The same seed and blocks give the same draws.

        Raises
        ------
        ConfigError
            Too few draws or too many, or a seed below 0.

        Notes
        -----
        Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 1979; whole
        clusters as in Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8.

        Examples
        --------
        >>> draws = Draws.of(["mon", "mon", "tue"], num_draws=5)
        >>> draws.counts.sum(axis=1)
        array([2, 2, 2, 2, 2], dtype=uint64)
        """
        if not MIN_DRAWS <= num_draws <= MOST_DRAWS:
            raise ConfigError(
                f"num_draws is {num_draws}; it must be from {MIN_DRAWS} to {MOST_DRAWS:,}"
            )
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it must be at least 0")
        names, block = np.unique(np.asarray(blocks), return_inverse=True)
        size = len(names)
        random = np.random.default_rng(seed)
        counts = np.empty((num_draws, size), np.uint16)
        for row in counts:
            row[:] = np.bincount(random.integers(0, size, size), minlength=size) if size else 0
        return cls(block.astype(np.int64), counts)

    @property
    def num_blocks(self) -> int:
        """Blocks there are, G."""
        return int(self.counts.shape[1])

    def __len__(self) -> int:
        return len(self.counts)

    def num_blocks_of(self, counted: NDArray[np.bool_]) -> int:
        """Blocks with a window among the counted ones, bool ``[N]``."""
        return len(np.unique(self.block[counted]))

    def take(self, rows: NDArray[Any]) -> Draws:
        """Return the same draws of some of the windows."""
        return Draws(self.block[rows], self.counts)

    def once(self) -> Draws:
        """Return the sample itself as the only draw."""
        return Draws(self.block, np.ones((1, self.num_blocks), np.uint16))

    def sums(self, values: NDArray[Any]) -> Float64:
        """Sum over the windows of each draw: ``[N]`` to float64 ``[D]``, ``[N, C]`` to ``[D, C]``.

        Notes
        -----
        Within a block first, so that the work does not grow with draws times windows.
        """
        columns = np.asarray(values, np.float64).reshape(len(self.block), -1)
        by_block = np.zeros((self.num_blocks, columns.shape[1]))
        np.add.at(by_block, self.block, columns)
        step = max(1, _CELLS // max(self.num_blocks, 1))
        parts = [
            self.counts[first : first + step].astype(np.float64) @ by_block
            for first in range(0, len(self), step)
        ]
        total: Float64 = np.concatenate(parts)
        return total[:, 0] if np.ndim(values) == 1 else total

    def weights(self) -> Iterator[Float64]:
        """How often each draw holds each window: float64 ``[d, N]``, some draws at a time."""
        step = max(1, _CELLS // max(len(self.block), 1))
        for first in range(0, len(self), step):
            yield self.counts[first : first + step].astype(np.float64)[:, self.block]

    def rows(self) -> Iterator[Int64]:
        """Windows of each draw, int64 ``[M]``: a window that is drawn twice stands there twice."""
        positions = np.arange(len(self.block))
        for counts in self.counts:
            yield np.repeat(positions, counts[self.block])
