"""What came of each instrument of a build of many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BUILT, UNCHANGED, FAILED, KEPT, REMOVED = "built", "unchanged", "failed", "kept", "removed"
COUNTS = ("num_chunks", "num_guessed", "num_redone", "num_resumed")


@dataclass(frozen=True)
class Outcome:
    """What came of one instrument.

    Attributes
    ----------
    symbol
        The instrument.
    status
        ``"built"``; ``"unchanged"``, its store was already what was asked for; ``"failed"``, its
        bars will not do, and if there was an earlier store of it that stays, unless it is of
        another configuration and was to be pruned; ``"kept"``, it is there, but its input was
        not given; ``"removed"``, such a one that was to be pruned.
    detail
        What is wrong with it, "" where nothing is.
    seconds
        Time by stage that its build took.
    num_chunks, num_guessed, num_redone, num_resumed
        As in a report of one instrument.
    """

    symbol: str
    status: str
    detail: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    num_chunks: int = 0
    num_guessed: int = 0
    num_redone: int = 0
    num_resumed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return symbol, status, detail and times as plain JSON types."""
        told = ("symbol", "status", "detail", "seconds")
        return {name: getattr(self, name) for name in told}
