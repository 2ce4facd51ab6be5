"""Copying windows out of a table of bars."""

from __future__ import annotations

import numba

from moola_features.kernels.compiled import i8, kernel, matrix, vector


@kernel(vector(numba.float32), vector(i8), i8, matrix(numba.float32, writable=True))
def gather(table, offsets, size, out):
    """Copy ``size`` consecutive values from each offset of ``table`` into a row of ``out``."""
    for b in range(offsets.shape[0]):
        source = table[offsets[b] : offsets[b] + size]
        target = out[b]
        for j in range(size):
            target[j] = source[j]
