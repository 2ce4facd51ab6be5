"""Small pictures as SVG text, drawn in colours that the page's style names."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from moola_train.evaluation.calibration import Bin
from moola_train.evaluation.forest import Scale

WIDTH, HEIGHT = 360, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 40  # margins

Points = Sequence[tuple[float, float]]


@dataclass
class Picture:
    """A picture with two axes.

    Attributes
    ----------
    across, up
        Scales of the axes.
    names
        What the axes show.
    what
        Read out to those who do not see it.
    """

    across: Scale
    up: Scale
    names: tuple[str, str]
    what: str
    parts: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        """Across the picture."""
        return round(_LEFT + self.across.place(value) / 100 * (WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        """Down the picture."""
        return round(HEIGHT - _BOTTOM - self.up.place(value) / 100 * (HEIGHT - _TOP - _BOTTOM), 2)

    def line(self, points: Points, kind: str) -> None:
        """Join points."""
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def dot(self, x: float, y: float, kind: str, title: str) -> None:
        """Mark a point."""
        self.parts.append(
            f'<circle class="{kind}" cx="{self.x(x)}" cy="{self.y(y)}" r="4">'
            f"<title>{html.escape(title)}</title></circle>"
        )

    def bar(self, low: float, high: float, height: float, kind: str, title: str) -> None:
        """Stand a bar on the bottom."""
        left, top = self.x(low), self.y(height)
        width, tall = round(self.x(high) - left, 2), round(self.y(self.up.low) - top, 2)
        self.parts.append(
            f'<rect class="{kind}" x="{left}" y="{top}" width="{width}" height="{tall}">'
            f"<title>{html.escape(title)}</title></rect>"
        )

    def text(self) -> str:
        """The picture as SVG."""
        frame = []
        for tick in self.across.ticks:
            frame.append(
                f'<line class="grid" x1="{self.x(tick)}" x2="{self.x(tick)}" y1="{_TOP}" '
                f'y2="{HEIGHT - _BOTTOM}"/><text x="{self.x(tick)}" y="{HEIGHT - _BOTTOM + 15}" '
                f'class="middle">{tick:g}</text>'
            )
        for tick in self.up.ticks:
            frame.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{self.y(tick)}" '
                f'y2="{self.y(tick)}"/><text x="{_LEFT - 6}" y="{self.y(tick) + 4}" class="end">'
                f"{tick:g}</text>"
            )
        centre = (_LEFT + WIDTH - _RIGHT) / 2
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        names = (
            f'<text x="{centre}" y="{HEIGHT - 6}" class="middle name">{html.escape(self.names[0])}'
            f'</text><text transform="translate(11 {middle}) rotate(-90)" class="middle name">'
            f"{html.escape(self.names[1])}</text>"
        )
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{html.escape(self.what, quote=True)}">'
            f"{''.join(frame)}{names}{''.join(self.parts)}</svg>"
        )


def reliability_picture(bins: Sequence[Bin], what: str) -> str:
    """Share right against mean top probability, with its interval, beside the diagonal."""
    least = min((entry.confidence for entry in bins), default=0.0)
    across = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    if least >= 0.5:
        across = Scale(0.5, 1.0, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    picture = Picture(across, Scale.share(), ("mean top probability", "share right"), what)
    picture.line([(across.low, across.low), (1.0, 1.0)], "ideal")
    for entry in bins:
        if entry.interval.is_known:
            low, high = entry.interval.low, entry.interval.high
            picture.line([(entry.confidence, low), (entry.confidence, high)], "whisker")
    for entry in bins:
        title = f"{entry.num_windows} windows: {entry.confidence:.3f} said, {entry.share_right:.3f}"
        picture.dot(entry.confidence, entry.share_right, "model", f"{title} right")
    return picture.text()


def lag_picture(lags: Sequence[int]) -> str:
    """Windows by predicted minus true start; the outermost bars count what lies beyond."""
    reach = len(lags) // 2
    ticks = tuple(float(tick) for tick in range(-reach, reach + 1, 5))
    picture = Picture(
        across=Scale(-reach - 0.5, reach + 0.5, ticks),
        up=Scale.around([float(max(lags))]),
        names=("predicted minus true start, bars", "windows"),
        what=f"{max(lags)} of {sum(lags)} windows share the most frequent lag",
    )
    for place, number in enumerate(lags):
        lag = place - reach
        beyond = " or beyond" if abs(lag) == reach else ""
        picture.bar(
            lag - 0.42, lag + 0.42, number, "model", f"{lag} bars{beyond}: {number} windows"
        )
    return picture.text()


def curve_picture(
    curve: Points, names: tuple[str, str], what: str, *, level: float | None = None,
    marks: Sequence[tuple[float, float, str, str]] = (), up: Scale | None = None,
) -> str:  # fmt: skip
    """A line from 0 to 1.

    Parameters
    ----------
    curve
        Its points.
    names, what
        As `Picture` has them.
    level
        Where a floor is drawn across.
    marks
        Points of their own: across, up, kind and title.
    up
        From 0 to 1 when None.
    """
    picture = Picture(Scale.share(), up or Scale.share(), names, what)
    if level is not None:
        picture.line([(0.0, level), (1.0, level)], "ideal")
    picture.line(curve, "curve")
    for across, height, kind, title in marks:
        picture.dot(across, height, kind, title)
    return picture.text()
