"""Splits forward in time, with a purge counted in bars between them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moola_features.errors import ConfigError

DEFAULT_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def split_windows(
    starts: NDArray[np.int64], purge_bars: int, shares: Mapping[str, float]
) -> dict[str, NDArray[np.int64]]:
    """Divide windows into splits, the earliest first.

    Parameters
    ----------
    starts
        int64 ``[M]``, ascending: first bar of each window.
    purge_bars
        The first window of a split starts more than this many bars after the start of the last
        window of the split before it; windows in between are left out. With a window's length
        less one, no two splits share a bar.
    shares
        Share of the windows by split, in order of time, before the purge. What they leave of 1
        is left out at the end.

    Returns
    -------
    dict of ndarray
        int64, ascending positions in ``starts`` by split; empty where too few windows are left.

    Raises
    ------
    ConfigError
        Shares that are not above 0 or sum to more than 1, or a name that no file can have.

    Examples
    --------
    >>> starts = np.arange(0, 100, 10)
    >>> split_windows(starts, 24, {"train": 0.5, "test": 0.5})
    {'train': array([0, 1, 2, 3, 4]), 'test': array([7, 8, 9])}
    """
    _require_shares(shares)
    edges = np.rint(np.cumsum([0.0, *shares.values()]) * len(starts)).astype(np.int64)
    splits = {}
    earliest = np.iinfo(np.int64).min
    for name, first, stop in zip(shares, edges[:-1], edges[1:], strict=True):
        begin = max(int(first), int(np.searchsorted(starts, earliest)))
        splits[name] = np.arange(begin, stop, dtype=np.int64)
        if len(splits[name]):
            earliest = int(starts[stop - 1]) + purge_bars + 1
    return splits


def _require_shares(shares: Mapping[str, float]) -> None:
    for name, share in shares.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ConfigError(f"split {name!r} names files; use letters, digits, '-' and '_'")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"split {name!r} has share {share!r}; it must be above 0, at most 1")
    total = sum(shares.values())
    if not shares or total > 1 + 1e-9:
        raise ConfigError(f"shares {dict(shares)} sum to {total:g}; they must sum to at most 1")
