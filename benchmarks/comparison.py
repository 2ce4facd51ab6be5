"""Timing ours against others in one run, turn by turn, and the rows of figures that come of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TOUCHED_BYTES = 1 << 29  # more than a turn of any contender takes


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure to reach."""

    value: float
    at_least: bool

    def reached_by(self, value: float) -> bool:
        """Whether a value is on the right side of the goal."""
        return value >= self.value if self.at_least else value <= self.value


def at_least(value: float) -> Goal:
    """Goal for rates and their ratios."""
    return Goal(value, at_least=True)


def at_most(value: float) -> Goal:
    """Goal for times, sizes and their ratios."""
    return Goal(value, at_least=False)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: medians in one unit.

    A row with another's figure has its goal for the ratio, ours over theirs; a row without has its
    goal for our figure. ``unit`` is "s", "B" or a rate such as "bars/s".
    """

    what: str
    unit: str
    ours: float
    beside: str | None = None
    theirs: float | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    goal: Goal | None = None
    is_rival: bool = True
    headline: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the goal was reached; None where there is none."""
        if self.goal is None:
            return None
        return self.goal.reached_by(self.ours if self.ratio is None else self.ratio)

    @property
    def lost(self) -> bool:
        """Whether a rival comes out ahead."""
        if self.ratio is None or not self.is_rival:
            return False
        return self.ratio < 1 if self.unit.endswith("/s") else self.ratio > 1

    @classmethod
    def of(
        cls,
        what: str,
        unit: str,
        ours: Sequence[float],
        theirs: Sequence[float] | None = None,
        **rest: Any,
    ) -> Row:
        """Make a row of figures taken turn by turn; its ratio is the median of their ratios."""
        if theirs is None:
            return cls(what=what, unit=unit, ours=statistics.median(ours), **rest)
        return cls(
            what=what, unit=unit, ours=statistics.median(ours),
            theirs=statistics.median(theirs), ratio=_ratio(ours, theirs), **rest,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """Make a row of what ``dataclasses.asdict`` made of one."""
        goal = values["goal"]
        return cls(**{**values, "goal": None if goal is None else Goal(**goal)})


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to be timed.

    ``amount`` is how many bars, windows or updates one call deals with. ``goal`` is for our figure,
    or, with one of the others, for the ratio to it. One that is no rival, such as a copy of the
    result, shows how fast the job could be at best. One that does not work in this process alone
    has CPU time that is not seen here.
    """

    name: str
    run: Callable[[], Any]
    amount: int = 1
    goal: Goal | None = None
    is_rival: bool = True
    in_process: bool = True
    headline: bool = False


class _Timed:
    """A contender, what its calls took, and what the last one returned."""

    def __init__(self, contender: Contender, *, fresh_pages: bool) -> None:
        self.contender = contender
        self._fresh_pages = fresh_pages
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.result: Any = None

    def __call__(self) -> None:
        if self._fresh_pages:
            np.ones(TOUCHED_BYTES, np.uint8)  # off the clock, and freed at once
        wall, cpu = time.perf_counter(), time.process_time()
        result = self.contender.run()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        self.result = result  # lets go of the last one, off the clock

    def figures(self, taken: Sequence[float], unit: str) -> list[float]:
        amount = self.contender.amount
        if unit.endswith("/s"):
            return [amount / seconds for seconds in taken]
        return [seconds / amount for seconds in taken]


def compare(
    benchmark: Any,
    ours: Contender,
    *others: Contender,
    unit: str,
    rounds: int,
    warmup_rounds: int = 1,
    fresh_pages: bool = False,
) -> list[Any]:
    """Time contenders, taking turns, and keep the rows; return what each of them returned.

    The others run in the benchmark's set-up, so that a turn of ours follows a turn of theirs. With
    benchmarks disabled everything runs once.

    With ``fresh_pages``, for contenders that return new arrays, memory is touched and freed before
    every turn: what was left alone for seconds a virtual machine has to get from its host again,
    which takes several times as long as computing what goes into it, and hits one turn or another.
    """
    timed = [
        _Timed(contender, fresh_pages=fresh_pages and benchmark.enabled)
        for contender in (ours, *others)
    ]

    def run_others() -> None:
        for other in timed[1:]:
            other()

    benchmark.pedantic(timed[0], setup=run_others, rounds=rounds, warmup_rounds=warmup_rounds)
    keep_rows(benchmark, _rows(timed, unit, rounds))
    return [contender.result for contender in timed]


def keep_rows(benchmark: Any, rows: Sequence[Row]) -> None:
    """Leave rows for the report in the benchmark's JSON."""
    benchmark.extra_info["rows"] = [asdict(row) for row in rows]


def _rows(timed: Sequence[_Timed], unit: str, rounds: int) -> list[Row]:
    first, others = timed[0], timed[1:]
    ours = first.figures(first.wall[-rounds:], unit)
    own = first.contender
    rows = []
    if own.goal is not None or not others:
        rows.append(Row.of(own.name, unit, ours, goal=own.goal, headline=own.headline))
    for other in others:
        contender = other.contender
        cpu_ratio = None
        if contender.in_process:
            cpu_ratio = _ratio(
                first.figures(first.cpu[-rounds:], unit), other.figures(other.cpu[-rounds:], unit)
            )
        rows.append(
            Row.of(
                own.name, unit, ours, other.figures(other.wall[-rounds:], unit),
                beside=contender.name, cpu_ratio=cpu_ratio, goal=contender.goal,
                is_rival=contender.is_rival, headline=contender.headline,
            )
        )  # fmt: skip
    return rows


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(mine / other for mine, other in pairs)
