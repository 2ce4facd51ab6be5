"""How far a run has come, how it ended, and what decides its random numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Self

FINISHED, STALE, OUT_OF_TIME, STOPPED = "finished", "early stop", "out of time", "stopped"

# What a best validation is made of.
_BEST: dict[str, type | tuple[type, ...]] = {
    "watch": str,
    "value": (int, float),
    "epoch": int,
    "step": int,
    "metrics": dict,
}
_METRIC = {"value", "floor", "better"}


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

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read it from a checkpoint; ValueError for what a loop has never saved."""
        if not isinstance(values, dict):
            raise ValueError(f"progress is {values!r}")
        found = cls(**values)
        for name in ("step", "stale_epochs", "num_records"):
            count = getattr(found, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"progress.{name} is {count!r}")
        if not _is_best(found.best):
            raise ValueError(f"progress.best is {str(found.best)[:80]!r}")
        return found


def _is_best(best: Any) -> bool:
    """Whether it is empty, or the metrics of a validation and when that was."""
    if not isinstance(best, dict) or (best and set(best) != set(_BEST)):
        return False
    if not all(isinstance(value, _BEST[name]) for name, value in best.items()):
        return False
    metrics = best.get("metrics", {}).values()
    return all(isinstance(metric, dict) and set(metric) == _METRIC for metric in metrics)


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
