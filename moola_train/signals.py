"""Ctrl-C and SIGTERM as a request to stop, answered when the present step is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request; the second one acts at once.

    Outside the main thread, where signals do not arrive, nothing is changed.

    Yields
    ------
    threading.Event
        Set once a stop was asked for.

    Examples
    --------
    >>> with stop_requests() as stopping:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stopping.is_set()
    True
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, ask)
        yield asked
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
