"""Many chunk files of whole pages, mapped side by side: one array over all of them, no copy."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moola_features.errors import StoreError

_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


def map_files(paths: Sequence[Path], num_bytes: int) -> NDArray[np.uint8]:
    """Map files of one size behind each other.

    Parameters
    ----------
    paths
        The files, in order.
    num_bytes
        Size that each must have: a whole number of pages.

    Returns
    -------
    ndarray
        uint8 ``[len(paths) * num_bytes]``, read-only; the mapping lives as long as it does.
        Files that are replaced or deleted meanwhile keep serving what they held.

    Raises
    ------
    StoreError
        A file that is missing or has another size.
    """
    if num_bytes % mmap.PAGESIZE:
        raise StoreError(f"chunks of {num_bytes} bytes are not whole pages; rebuild the store")
    # An anonymous mapping reserves the addresses and owns them; the files go over it, page by
    # page, and when the owner is collected its unmapping takes them along.
    owner = mmap.mmap(
        -1,
        max(len(paths) * num_bytes, mmap.PAGESIZE),
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0),
        prot=mmap.PROT_READ,
    )
    reserved = np.frombuffer(owner, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for position, path in enumerate(paths):
        address = reserved.ctypes.data + position * num_bytes
        with _opened(path, num_bytes) as handle:
            mapped = libc.mmap(
                address, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED,
                handle.number, 0,
            )  # fmt: skip
        if mapped is None or mapped == _FAILED:
            code = ctypes.get_errno()
            raise StoreError(
                f"{path} cannot be mapped: {os.strerror(code).lower()}; "
                "raise the limit on mappings (vm.max_map_count)"
            )
    return reserved[: len(paths) * num_bytes]


class _opened:  # noqa: N801 - used like a function
    """An open file of the right size."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        try:
            self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreError(
                f"chunk file {path} is missing; rebuild the store with --force"
            ) from None
        except OSError as error:
            raise StoreError(
                f"chunk file {path} cannot be opened: {error.strerror}; mend its permissions, or "
                "rebuild the store with --force"
            ) from error
        size = os.fstat(self.number).st_size
        if size != num_bytes:
            os.close(self.number)
            raise StoreError(
                f"chunk file {path} has {size} bytes, not {num_bytes}; "
                "the store is damaged, rebuild it with --force"
            )

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.number)
