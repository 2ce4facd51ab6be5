"""How much memory a build will take, foretold before it starts."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moola_features.building.crew import AHEAD
from moola_features.errors import ConfigError
from moola_features.store.layout import CHUNK_BARS, bar_arrays, chunk_bytes

_BAR_BYTES = 40  # time and four prices
_COPIES = 3  # of a batch while it is decoded: as the file has it, converted, and cut
_DECODED_BARS = 2 * CHUNK_BARS  # by which decoding is measured: of fewer it takes less
_THREAD_BYTES = 48_000_000  # of memory that allocators keep for one more thread that decodes
_LEAST_THREAD_BYTES = 16_000_000  # the same where it decodes next to nothing
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(value: Any) -> int:
    """Read a size: bytes as a whole number, or text such as ``"500MB"`` or ``"2 GiB"``.

    Raises
    ------
    ConfigError
        Anything else.

    Examples
    --------
    >>> parse_size("1.5 GB")
    1500000000
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*", str(value))
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit and not isinstance(value, bool) else 0
    if size < 1:
        raise ConfigError(f"max_memory is {value!r}; give a size such as '500MB' or '2GiB'")
    return size


def predicted_bytes(
    workers: int,
    *,
    num_columns: int,
    batch_bars: int,
    decoding_bytes: int,
    at_once: int = 1,
    num_bars: int | None = None,
) -> int:
    """Peak memory of this process in a build that is about to start.

    Parameters
    ----------
    workers
        Threads that compute and write.
    num_columns
        Number of features.
    batch_bars, decoding_bytes
        Bars that are decoded at a time, and what the decoder itself takes.
    at_once
        Instruments that are built at once, where there are workers for them.
    num_bars
        The most bars that one instrument has; None where nothing tells.
    """
    full = CHUNK_BARS if num_bars is None else min(CHUNK_BARS, num_bars)  # bars of one chunk
    batch = batch_bars if num_bars is None else min(batch_bars, num_bars)
    chunk = sum(chunk_bytes(array) for array in bar_arrays(num_columns).values())
    buffers = workers * chunk * full // CHUNK_BARS
    instruments = min(workers, at_once)
    waiting = (workers + instruments * (AHEAD + 1)) * full * _BAR_BYTES
    decoded = instruments * _COPIES * batch * _BAR_BYTES
    # The first to decode brings the libraries' own pages in, however few its bars.
    whole = decoding_bytes + _THREAD_BYTES
    share = 1.0 if num_bars is None else min(1.0, num_bars / _DECODED_BARS)
    more = max(int(share * whole), _LEAST_THREAD_BYTES)
    decoding = decoding_bytes + (instruments - 1) * more
    return resident_bytes() + decoding + buffers + waiting + decoded


def fitting_workers(workers: int, max_memory: int | None, **sizes: Any) -> tuple[int, int]:
    """Lower the number of workers until a build fits.

    Parameters
    ----------
    workers
        As many as asked for.
    max_memory
        Bytes; None for no limit.
    sizes
        As for :func:`predicted_bytes`.

    Returns
    -------
    workers, predicted
        As many as fit, and the bytes that they will take.

    Raises
    ------
    ConfigError
        Not even one fits.
    """
    while True:
        predicted = predicted_bytes(workers, **sizes)
        if max_memory is None or predicted <= max_memory:
            return workers, predicted
        if workers == 1:
            raise ConfigError(
                f"max_memory is {max_memory / 1e6:,.0f} MB, but with one worker this build takes "
                f"about {predicted / 1e6:,.0f} MB; allow as much"
            )
        workers -= 1


def allot(
    workers: int, max_memory: int | None, tell: Callable[[str], None] | None, **sizes: Any
) -> tuple[int, int]:
    """Lower the number of workers as :func:`fitting_workers` does, and tell what came of it."""
    workers, predicted = fitting_workers(workers, max_memory, **sizes)
    if tell is not None:
        threads = f"{workers} worker{'s' if workers > 1 else ''}"
        bound = "no limit" if max_memory is None else f"limit {max_memory / 1e6:,.0f} MB"
        tell(f"memory: about {predicted / 1e6:,.0f} MB with {threads}, {bound}")
    return workers, predicted


def resident_bytes() -> int:
    """Memory that this process has now; where the system does not tell, the most it has had."""
    return _told("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    # What getrusage tells under Linux may be the peak of the process that started this one.
    unit = 1 if sys.platform == "darwin" else 1024
    return _told("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _told(name: str) -> int:
    """Bytes that Linux tells of this process under some name; 0 where it tells none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
