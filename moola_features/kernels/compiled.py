"""Every Numba option, and the on-disk cache of compiled kernels.

A kernel is declared with one signature and compiled at its first :meth:`Kernel.load`, so that
importing costs nothing. Compiled code is kept in a folder of our own, named after the package's
version, the text of all kernels, the Python and Numba versions and the CPU: Numba itself would
not notice a change in a function that a kernel calls from another file. One process compiles at
a time, the others wait and then load what it left.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types

# No fastmath: it would let the compiler reorder sums, and the laws hold to the bit.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}

_SETTINGS: Any = numba.config

f8 = types.float64
i8 = types.int64


def vector(dtype: Any, *, writable: bool = False) -> types.Array:
    """Type of a contiguous 1-D array."""
    return types.Array(dtype, 1, "C", readonly=not writable)


def matrix(dtype: Any, *, writable: bool = False) -> types.Array:
    """Type of a C-contiguous 2-D array."""
    return types.Array(dtype, 2, "C", readonly=not writable)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a helper as a part of the kernels that call it."""
    compiled: Callable[..., Any] = numba.njit(**OPTIONS)(function)
    return compiled


class Kernel:
    """A function with one signature, compiled or read from the cache when first asked for.

    Attributes
    ----------
    was_compiled
        Whether this process had to compile it: False while it is not loaded, or was read from
        the cache.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.function = function
        self.signature = signature
        self.was_compiled = False
        self._compiled: Callable[..., Any] | None = None
        self._guard = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether :meth:`load` has nothing left to do."""
        return self._compiled is not None

    def load(self) -> Callable[..., Any]:
        """Return the compiled function; it takes exactly the declared types."""
        if self._compiled is None:
            with self._guard:
                if self._compiled is None:
                    self._compiled = self._compile()
        return self._compiled

    def load_unchecked(self) -> Callable[..., Any]:
        """Return the same without Numba's look at the types of what it is given.

        That look takes 0.6 of the 2.0 µs of a call with eleven arrays. Who calls this answers for
        the declared types: 64-bit floats given for integers would be read as integers.
        """
        checked = self.load()
        if _SETTINGS.DISABLE_JIT:
            return checked
        compiled: Callable[..., Any] = checked.overloads[self.signature.args].entry_point  # type: ignore[attr-defined]
        return compiled

    def _compile(self) -> Callable[..., Any]:
        if _SETTINGS.DISABLE_JIT:
            return _interpreted(self.function)
        with _cache_folder() as folder:
            try:
                return self._compile_in(folder)
            except Exception:  # a damaged cache file raises whatever unpickling meets
                if folder is None:
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(exist_ok=True, mode=0o700)
                return self._compile_in(folder)

    def _compile_in(self, folder: Path | None) -> Callable[..., Any]:
        dispatcher = numba.njit(**OPTIONS)(self.function)
        if folder is not None:
            _keep_in(folder, dispatcher)
        try:
            dispatcher.compile(self.signature)
        except Exception as error:
            if not dispatcher.overloads:
                raise
            # Compiled, but could not be saved (a full disk): it works for this process.
            warnings.warn(f"compiled kernels were not cached: {error}", stacklevel=5)
        self.was_compiled = not dispatcher.stats.cache_hits
        dispatcher.disable_compile()
        compiled: Callable[..., Any] = dispatcher
        return compiled


def kernel(*arguments: types.Type) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel by the types of its arguments; it returns nothing and fills ``out``."""

    def declare(function: Callable[..., Any]) -> Kernel:
        return Kernel(function, types.void(*arguments))

    return declare


def _interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a kernel as plain Python, where records need to be asked for to have attributes."""

    def run(*arguments: Any) -> None:
        with np.errstate(all="ignore"):  # as compiled code does
            function(
                *(
                    argument.view(np.recarray)
                    if isinstance(argument, np.ndarray) and argument.dtype.names
                    else argument
                    for argument in arguments
                )
            )

    return run


def cache_root() -> Path:
    """Folder under which compiled kernels are kept: ``MOOLA_CACHE_DIR`` or the user's cache."""
    named = os.environ.get("MOOLA_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "moola"


@functools.cache
def cache_key() -> str:
    """Name of the cache's folder: whatever decides what compiled code looks like."""
    here = Path(__file__).parent
    text = hashlib.sha256()
    for source in sorted(here.glob("*.py")):
        text.update(source.read_bytes())
    cpu = llvmlite.binding.get_host_cpu_name()
    features = llvmlite.binding.get_host_cpu_features().flatten()
    text.update(f"{cpu} {features} {here}".encode())
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return f"kernels-{python}-numba{numba.__version__}-{platform.machine()}-{text.hexdigest()[:16]}"


@contextlib.contextmanager
def _cache_folder() -> Iterator[Path | None]:
    """Hold the cache's lock; None where no folder of our own can be written."""
    folder: Path | None
    with contextlib.ExitStack() as stack:
        try:
            folder = cache_root() / cache_key()
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The lock stands beside the folder, which whoever holds it may delete and make anew.
            name = folder.with_name(f"{folder.name}.lock")
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder.mkdir(exist_ok=True, mode=0o700)
            folder = folder if _is_ours(folder) else None
        except (OSError, RuntimeError):  # RuntimeError: no home folder can be determined
            folder = None
        yield folder


def _is_ours(folder: Path) -> bool:
    """Whether nobody else could have put code there: compiled code is run, not read."""
    status = folder.stat()
    foreign = status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not foreign and os.access(folder, os.W_OK)


def _keep_in(folder: Path, dispatcher: Any) -> None:
    # Numba reads its cache folder from one global; ours must not become everyone's.
    before = _SETTINGS.CACHE_DIR
    _SETTINGS.CACHE_DIR = str(folder)
    try:
        dispatcher.enable_caching()
    finally:
        _SETTINGS.CACHE_DIR = before
