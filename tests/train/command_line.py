"""What a command of moola-train leaves behind, and how a test runs one; see conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Moola = Callable[..., Outcome]
