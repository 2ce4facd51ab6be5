"""Copying windows out of a table of bars."""

from __future__ import annotations

import numba

from moola_features.kernels.compiled import i8, kernel, matrix, vector
from moola_features.kernels.prefetch import prefetch

AHEAD, FAR_AHEAD = 2, 16  # windows
PIECE = 128  # values copied in one go
LINE = 16  # values in a cache line
BLOCK = 16  # windows that are read side by side; 32 took 1.6 times as long with 19 columns


@kernel(
    vector(numba.float32), vector(i8), vector(i8), vector(i8), i8, i8,
    matrix(numba.float32, writable=True),
)  # fmt: skip
def gather(table, starts, rows, places, size, width, out):
    """Copy ``size`` values, from bar ``starts[rows[b]]`` of ``table`` on, to ``out[places[b]]``.

    Between one piece of a window and the next, the same piece of a window ahead is asked for, and
    farther ahead where a window starts: windows lie wherever the shuffle has put them.
    """
    last = rows.shape[0] - 1
    for b in range(rows.shape[0]):
        prefetch(starts, rows[min(b + FAR_AHEAD, last)])
        here = starts[rows[b]] * width
        ahead = starts[rows[min(b + AHEAD, last)]] * width
        target = out[places[b]]
        for first in range(0, size, PIECE):
            stop = min(first + PIECE, size)
            for j in range(first, stop, LINE):
                prefetch(table, ahead + j)
            source = table[here + first : here + stop]
            piece = target[first:stop]
            for j in range(stop - first):
                piece[j] = source[j]


@kernel(vector(numba.float32), vector(i8), i8, matrix(numba.float32, writable=True))
def gather_time_major(table, offsets, width, out):
    """Copy rows of ``width`` values from each offset of ``table`` into ``out``, bar by bar.

    ``out`` is ``[K, B * width]``: its row t holds the t-th bar of every window. While a bar is
    copied, that of the next block of windows is on its way from the memory, and so is the place
    of this window's next one: windows lie wherever the shuffle has put them, and the memory is far.
    """
    num_windows, num_rows = offsets.shape[0], out.shape[0]
    for first in range(0, num_windows, BLOCK):
        stop = min(first + BLOCK, num_windows)
        for t in range(num_rows):
            row = out[t]
            below = min(t + 1, num_rows - 1) * row.shape[0]
            for b in range(first, stop):
                ahead = min(b + BLOCK, num_windows - 1)
                prefetch(table, offsets[ahead] + t * width)
                prefetch(out, below + b * width)
                source = offsets[b] + t * width
                for j in range(width):
                    row[b * width + j] = table[source + j]
