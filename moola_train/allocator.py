"""What is freed stays with the process: the next training step asks for the same again."""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h: where the end of the heap is given back, and what never was part of the heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1
_CHOSEN_BY = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed() -> bool:
    """Tell glibc not to give memory back to the system; False where that was not done.

    A training step on a CPU frees large arrays and allocates them again. Unless told, glibc returns
    each of them to the system, which fills every page with zeros when it is asked for again: fits
    took 13 to 29 % longer, with as much memory at their peak. All of the process is told, so this
    is for programs, not for libraries. Where the environment chose an allocator or tuned it, that
    stands.
    """
    if sys.platform != "linux" or any(name.startswith(_CHOSEN_BY) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all([mallopt(_TRIM_THRESHOLD, _MOST), mallopt(_MMAP_THRESHOLD, _MOST)])
