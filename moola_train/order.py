"""Which windows make up which batch: a pure function of seed, epoch and step."""

from __future__ import annotations

import copy
import hashlib
import os
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_train.errors import LoaderError

# A chunk file's bars: in a block shuffle the disk is read in stretches no shorter than that.
BLOCK_ITEMS = 65_536

_BLOCKS_MIXED = 16  # blocks shuffled together, so that a batch holds more than one period
_MEMORY_SHARE = 0.6  # of the host's memory, for a table that is read in random order

# What a random stream is for, so that no two of them coincide.
_BLOCK_ORDER, _ITEM_ORDER, _DRAWS = range(3)


class BatchOrder:
    """Which windows make up which batch: a pure function of seed, epoch and step.

    The ranks' batches of one step are, joined in order, the batch that one process would have
    made with ``batch_size`` times ``world_size``: no item twice in an epoch, none left out.

    Parameters
    ----------
    num_items
        Windows to choose from, N.
    batch_size
        Windows in a rank's batch, B.
    seed
        Whole number from 0 to 2**64 - 1.
    shuffle
        Whether each epoch has an order of its own; else windows come as they stand.
    drop_last
        Whether windows that do not fill a batch on every rank are left out of the epoch. Without,
        the ranks share them evenly, and some may have one batch fewer than others.
    weights
        ``[N]``, finite and not negative: N draws an epoch, with replacement, in proportion to
        them, as PyTorch's ``WeightedRandomSampler`` does.
    block
        Items in a block, for tables beyond the memory: blocks in random order, and the items of
        16 neighbours in that order shuffled. None shuffles all items; see :func:`shuffle_block`.
    any_block
        Whether `block` was chosen by what fits, so that an order that goes on from another may
        take that one's.
    rank, world_size
        Which of how many processes this is.

    Attributes
    ----------
    num_batches
        Batches of an epoch on this rank.

    Raises
    ------
    LoaderError
        A setting that is out of bounds or contradicts another, or windows that make no batch.

    Examples
    --------
    >>> order = BatchOrder(7, 3, seed=17)
    >>> order.num_batches
    2
    >>> first, second = order.batch(0, 0), order.batch(0, 1)
    >>> len(set(first.tolist()) | set(second.tolist()))
    6
    >>> BatchOrder(7, 3, seed=17, shuffle=False, drop_last=False).batch(0, 2).tolist()
    [6]
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        weights: ArrayLike | None = None,
        block: int | None = None,
        any_block: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_items = _whole("num_items", num_items, 1)
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.seed = _whole("seed", seed, 0, 2**64 - 1)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.block = None if block is None else _whole("block", block, 1)
        self.any_block = any_block
        self.world_size = _whole("world_size", world_size, 1)
        self.rank = _whole("rank", rank, 0, self.world_size - 1)
        if not shuffle and (weights is not None or block is not None):
            setting = "weights" if weights is not None else "block"
            raise LoaderError(f"{setting} is given and shuffle is False; leave out one of them")
        if weights is not None and block is not None:
            raise LoaderError(
                "weights and block are both given; draws know no blocks, leave it out"
            )
        self._shares = None if weights is None else _cumulative_shares(weights, num_items)
        self._shuffled: _Shuffle | None = None
        self.num_batches = self._count_batches()

    def __repr__(self) -> str:
        return (
            f"<BatchOrder: {self.num_batches:,} batches of {self.batch_size} "
            f"out of {self.num_items:,}, rank {self.rank} of {self.world_size}>"
        )

    def in_blocks(self, block: int | None) -> Self:
        """Return the same order with another block.

        Raises
        ------
        LoaderError
            A block that is none.
        """
        other = copy.copy(self)
        other.block = None if block is None else _whole("block", block, 1)
        other._shuffled = None
        return other

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Positions of the windows of one batch.

        Parameters
        ----------
        epoch
            Epoch, from 0.
        step
            Batch of the epoch, from 0.

        Returns
        -------
        ndarray
            int64 ``[B]``, the caller's own; shorter only for the last batch without ``drop_last``.

        Raises
        ------
        LoaderError
            A negative epoch, or a step outside the epoch.
        """
        _whole("epoch", epoch, 0, 2**64 - 1)
        _whole("step", step, 0, self.num_batches - 1)
        first, stop = self._bounds(step)
        if self._shares is not None:
            begin = step * self._joint_size
            drawn = self._draw(epoch, step, self._shares)
            return drawn[first - begin : stop - begin].copy()
        if not self.shuffle:
            return np.arange(first, stop)
        shuffled = self._shuffled  # one read: another thread may be at another epoch
        if shuffled is None or shuffled.epoch != epoch:
            block = self.num_items if self.block is None else self.block
            shuffled = self._shuffled = _Shuffle(self.num_items, block, self.seed, epoch)
        return shuffled.items(first, stop)

    def identity(self) -> dict[str, Any]:
        """All that decides the batches of the joint run, as plain values: the same on all ranks."""
        shares = self._shares
        return {
            "seed": self.seed,
            "num_items": self.num_items,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "block": self.block,
            "weights": None if shares is None else hashlib.sha256(shares.tobytes()).hexdigest(),
        }

    @property
    def _joint_size(self) -> int:
        return self.batch_size * self.world_size

    def _bounds(self, step: int) -> tuple[int, int]:
        """[first, stop) of this rank in the epoch's order."""
        begin = step * self._joint_size
        size = min(self._joint_size, self.num_items - begin)
        first, stop = (size * share // self.world_size for share in (self.rank, self.rank + 1))
        return begin + first, begin + stop

    def _count_batches(self) -> int:
        whole, rest = divmod(self.num_items, self._joint_size)
        if self.drop_last and not whole:
            raise LoaderError(
                f"{self.num_items} windows make no batch of {self.batch_size} on each of "
                f"{self.world_size} ranks; lower batch_size, or set drop_last to False"
            )
        if self.drop_last or not rest:
            return whole
        first, stop = self._bounds(whole)
        return whole + (stop > first)

    def _draw(self, epoch: int, step: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
        size = min(self._joint_size, self.num_items - step * self._joint_size)
        raw = _stream(self.seed, _DRAWS, epoch, step).random_raw(size)
        uniform = (raw >> np.uint64(11)) * 2.0**-53  # [0, 1), as NumPy and C make doubles of bits
        return np.searchsorted(shares, uniform, side="right")


class _Shuffle:
    """One epoch's order of all items, worked out one group of blocks at a time."""

    def __init__(self, num_items: int, block: int, seed: int, epoch: int) -> None:
        self.epoch = epoch
        self._num_items = num_items
        self._block = block
        self._seed = seed
        num_blocks = -(-num_items // block)
        self._blocks = _permutation(num_blocks, _stream(seed, _BLOCK_ORDER, epoch, 0))
        sizes = np.minimum(block, num_items - self._blocks * block)
        in_groups = np.add.reduceat(sizes, np.arange(0, num_blocks, _BLOCKS_MIXED))
        self._edges = np.concatenate([[0], np.cumsum(in_groups)])
        self._latest: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def items(self, first: int, stop: int) -> NDArray[np.int64]:
        """The items at positions [first, stop) of the epoch."""
        group = int(np.searchsorted(self._edges, first, side="right")) - 1
        parts = []
        while first < stop:
            begin, end = self._edges[group : group + 2].tolist()
            parts.append(self._group(group)[first - begin : stop - begin])
            first, group = end, group + 1
        return np.concatenate(parts)

    def _group(self, group: int) -> NDArray[np.int64]:
        latest, items = self._latest
        if latest != group:
            blocks = self._blocks[group * _BLOCKS_MIXED : (group + 1) * _BLOCKS_MIXED]
            begins = (blocks * self._block).tolist()
            ranges = [np.arange(b, min(b + self._block, self._num_items)) for b in begins]
            items = np.concatenate(ranges)
            stream = _stream(self._seed, _ITEM_ORDER, self.epoch, group)
            items = items[_permutation(len(items), stream)]
            self._latest = (group, items)
        return items


def inverse_class_counts(classes: ArrayLike) -> NDArray[np.float64]:
    """Weights by which every class is drawn equally often: 1 / members of the item's class.

    Parameters
    ----------
    classes
        Class of each item, ``[N]``; items without a label (-1) are a class of their own.

    Returns
    -------
    ndarray
        float64 ``[N]``.

    Examples
    --------
    >>> inverse_class_counts([0, 1, 1, 1, 1]).tolist()
    [1.0, 0.25, 0.25, 0.25, 0.25]
    """
    _, inverse, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    return (1.0 / counts)[inverse]


def shuffle_block(num_bytes: int, memory_bytes: int | None = None) -> int | None:
    """Choose the ``block`` of a :class:`BatchOrder`: None while the table fits in memory.

    Parameters
    ----------
    num_bytes
        Size of the table of features.
    memory_bytes
        The host's memory; asked of the system when None.

    Returns
    -------
    int or None
        None for a full shuffle: the table takes up no more than 60 % of the memory, so that it
        stays there once read. Else items in a block, which the disk delivers in one stretch.

    Examples
    --------
    >>> shuffle_block(116 * 10**6, memory_bytes=24 * 2**30)
    >>> shuffle_block(44 * 10**9, memory_bytes=24 * 2**30)
    65536
    """
    if memory_bytes is None:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None if num_bytes <= _MEMORY_SHARE * memory_bytes else BLOCK_ITEMS


def _stream(seed: int, purpose: int, epoch: int, part: int) -> np.random.Philox:
    """A random stream that depends on nothing else; counters this far apart never meet."""
    return np.random.Philox(
        key=np.array([seed, purpose], np.uint64), counter=np.array([0, 0, part, epoch], np.uint64)
    )


def _permutation(num_items: int, stream: np.random.Philox) -> NDArray[np.int64]:
    # NumPy promises to keep the raw bits, but not what Generator.permutation makes of them. Each
    # key carries its item in its low bits: sorting is as fast, and the same by every algorithm.
    low_bits = np.uint64((1 << num_items.bit_length()) - 1)
    keys = (stream.random_raw(num_items) & ~low_bits) | np.arange(num_items, dtype=np.uint64)
    keys.sort()
    return (keys & low_bits).view(np.int64)


def _cumulative_shares(weights: ArrayLike, num_items: int) -> NDArray[np.float64]:
    """Upper edge of each item's stretch of [0, 1)."""
    values = np.asarray(weights, np.float64)
    if values.shape != (num_items,):
        raise LoaderError(f"weights are {list(values.shape)}; give one for each of {num_items}")
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        worst = int(np.argmax(bad))
        raise LoaderError(f"weights[{worst}] is {values[worst]}; give finite ones of at least 0")
    largest = values.max()
    if largest == 0:
        raise LoaderError("weights are all 0, so nothing could be drawn; give one above 0")
    sums: NDArray[np.float64] = np.cumsum(values / largest)
    sums /= sums[-1]
    return sums


def _whole(name: str, value: int, least: int, most: int | None = None) -> int:
    number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not number or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise LoaderError(f"{name} is {value!r}; give a whole number {bounds}")
    return int(value)
