"""How far a run has come, how it ended, and what decides its random numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

FINISHED, STALE, OUT_OF_TIME, STOPPED = "finished", "early stop", "out of time", "stopped"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    status
        ``"finished"``, ``"early stop"``, ``"out of time"`` or ``"stopped"`` by a signal.
    step, epoch
        How far it came.
    best
        The watched metric at its best, and the metrics of that epoch.
    """

    status: str
    step: int
    epoch: int
    best: dict[str, Any]


@dataclass
class Progress:
    """What the loop remembers besides weights; all of it goes into a checkpoint.

    Attributes
    ----------
    step
        Steps done.
    best
        The watched metric at its best, as `Outcome` has it; empty before.
    stale_epochs
        Epochs since then.
    num_records
        Lines written to metrics.jsonl.
    """

    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    stale_epochs: int = 0
    num_records: int = 0


def step_seed(seed: int, step: int) -> int:
    """Seed of a step's random numbers, from 0 to 2**63 - 1.

    Mixed, since PyTorch's generator on a CPU reads the lower 32 bits only.

    Examples
    --------
    >>> step_seed(17, 0) & 0xFFFFFFFF != step_seed(13, 0) & 0xFFFFFFFF
    True
    """
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
