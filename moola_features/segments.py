"""Where a run of bars ends and state starts afresh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def segment_starts(
    time: NDArray[np.int64], max_gap_ns: int | None, previous_time: int | None
) -> NDArray[np.int64]:
    """Positions in a batch at which a segment begins.

    Parameters
    ----------
    time
        int64 ``[n]``, ns, strictly increasing.
    max_gap_ns
        Longest time between two bars of one segment; None for no limit.
    previous_time
        Time of the bar before the batch; None when there is none.

    Returns
    -------
    ndarray
        int64, ascending.

    Examples
    --------
    >>> segment_starts(np.array([0, 1, 9]), 5, None)
    array([0, 2])
    """
    first = previous_time is None
    if max_gap_ns is None or len(time) == 0:
        return np.zeros(1 if first and len(time) else 0, np.int64)
    begins = np.empty(len(time), bool)
    begins[0] = first or int(time[0]) - int(previous_time or 0) > max_gap_ns
    np.greater(steps(time), max_gap_ns, out=begins[1:])
    return np.flatnonzero(begins)


def steps(time: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Differences of increasing times, unsigned: one of three hundred years overflows int64.

    Examples
    --------
    >>> steps(np.array([-(2**62), 2**62, 2**63 - 1])).tolist()
    [9223372036854775808, 4611686018427387903]
    """
    unsigned: NDArray[np.uint64] = np.ascontiguousarray(time).view(np.uint64)
    return unsigned[1:] - unsigned[:-1]


def segment_bounds(starts: NDArray[np.int64], num_bars: int) -> NDArray[np.int64]:
    """Turn starts into ``[S, 2]`` rows of [start, stop).

    Examples
    --------
    >>> segment_bounds(np.array([0, 2]), 3).tolist()
    [[0, 2], [2, 3]]
    >>> segment_bounds(np.array([], np.int64), 0).shape
    (0, 2)
    """
    return np.column_stack([starts, np.append(starts, num_bars)[1:]]).astype(np.int64)
