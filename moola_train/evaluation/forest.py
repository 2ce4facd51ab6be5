"""Scores as rows of marks on one scale: plain HTML, so that text keeps its size on any screen."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from moola_train.evaluation.bootstrap import Interval

_STEPS = 4  # at most about so many, on a scale that is not given


@dataclass(frozen=True)
class Scale:
    """A stretch of numbers across a row's width."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def share(cls) -> Scale:
        """From 0 to 1."""
        return cls(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))

    @classmethod
    def around(cls, values: Sequence[float]) -> Scale:
        """A round stretch that holds all values, and 0.

        Examples
        --------
        >>> Scale.around([3.2, 18.7]).ticks
        (0.0, 5.0, 10.0, 15.0, 20.0)
        """
        known = [0.0, *(value for value in values if math.isfinite(value))]
        low, high = min(known), max(known)
        if low == high:
            high = 1.0
        step = _round_step((high - low) / _STEPS)
        first, last = math.floor(low / step), math.ceil(high / step)
        ticks = tuple(round(step * place, 10) for place in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    def place(self, value: float) -> float:
        """Where a value lies, 0 to 100; what lies outside is put at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One value in a row: ``kind`` is the class that the page's style draws."""

    kind: str
    value: float | None
    name: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a forest.

    Attributes
    ----------
    label, note
        What it is, and what stands at its end.
    interval
        Drawn as a bar, of the class ``band`` if there is one.
    marks
        Drawn upon it, the first one below the others.
    """

    label: str
    note: str
    interval: Interval | None
    marks: tuple[Mark, ...]
    band: str = ""


def forest(rows: Sequence[Row], scale: Scale, *, unit: str = "") -> str:
    """Rows of marks above a scale.

    Parameters
    ----------
    rows
        From top to bottom.
    scale
        Common to all.
    unit
        Written behind the scale's last number.
    """
    lines = "".join(f'<i style="left:{scale.place(tick)}%"></i>' for tick in scale.ticks)
    ticks = "".join(
        f'<span style="left:{scale.place(tick)}%">{tick:g}</span>' for tick in scale.ticks
    )
    body = "".join(_row(row, scale, lines) for row in rows)
    axis = f'<div class="axis"><b></b><div>{ticks}</div><em>{html.escape(unit)}</em></div>'
    return f'<div class="forest">{body}{axis}</div>'


def _row(row: Row, scale: Scale, lines: str) -> str:
    inside = [f'<div class="grid">{lines}</div>']
    said = [row.note]
    if row.interval is not None and math.isfinite(row.interval.low):
        low, high = scale.place(row.interval.low), scale.place(row.interval.high)
        kind = f"interval {row.band}".strip()
        inside.append(f'<i class="{kind}" style="left:{low}%;width:{high - low:.2f}%"></i>')
    for mark in row.marks:
        if mark.value is not None and math.isfinite(mark.value):
            said.append(f"{mark.name} {mark.value:.3f}")
            place = f"left:{scale.place(mark.value)}%"
            inside.append(f'<i class="mark {mark.kind}" style="{place}"></i>')
    title = html.escape(f"{row.label}: {', '.join(said)}")
    return (
        f'<div class="row" title="{title}"><b>{html.escape(row.label)}</b>'
        f'<div class="track">{"".join(inside)}</div><em>{html.escape(row.note)}</em></div>'
    )


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step)
