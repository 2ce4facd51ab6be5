"""A scene as a PNG, drawn by matplotlib's objects; no state of pyplot is touched."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from moola_features.chart import theme
from moola_features.chart.scene import (
    DAY_RANK,
    Panel,
    Scene,
    choose_notes,
    choose_ticks,
    short_time,
)
from moola_features.chart.theme import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 120
WIDTH = 16.0  # inches, as all lengths here
HEADER, FOOTER = 0.85, 0.42
LEFT, RIGHT = 0.25, 0.95
PRICE_HEIGHT, PANEL_HEIGHT = 4.65, 0.78
MAX_LABELS = 14
HEADROOM = 0.07  # of the price's height, above and below, for the swing marks
BODY_WIDTH = 0.7  # of a candle's place
MARK_OFFSET = 7.0  # points between an extreme and its triangle
# The font comes with matplotlib, so a picture is the same on every machine; a dollar sign in a
# name must not start a formula.
SMALL: dict[str, Any] = {"fontfamily": "DejaVu Sans", "fontsize": 8.5, "parse_math": False}


def draw_image(scene: Scene) -> bytes:
    """Draw the whole stretch and return the bytes of a PNG."""
    figure, axes = _make_axes(len(scene.panels))
    _write_header(figure, scene)
    ticks = choose_ticks(scene.tick_rank, _spacing(scene))
    for axis in axes:
        _style(axis, scene)
        axis.set_xticks([scene.first + i for i in ticks], [scene.tick_text[i] for i in ticks])
    _draw_price(axes[0], scene)
    for axis, panel in zip(axes[1:], scene.panels, strict=True):
        _draw_panel(axis, scene, panel)
    axes[-1].tick_params(axis="x", labelbottom=True, pad=6)
    for label, index in zip(axes[-1].get_xticklabels(), ticks, strict=True):
        if scene.tick_rank[index] >= DAY_RANK:
            label.set(color=COLOURS["text"], fontweight="bold")
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def _make_axes(num_panels: int) -> tuple[Figure, list[Axes]]:
    heights = [PRICE_HEIGHT, *[PANEL_HEIGHT] * num_panels]
    height = HEADER + sum(heights) + FOOTER
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=COLOURS["background"])
    axes = []
    bottom = height - HEADER
    for part in heights:
        bottom -= part
        place = (LEFT / WIDTH, bottom / height, (WIDTH - LEFT - RIGHT) / WIDTH, part / height)
        axes.append(figure.add_axes(place))
    return figure, axes


def _write_header(figure: Figure, scene: Scene) -> None:
    height = figure.get_figheight()
    title = {**SMALL, "fontsize": 15, "fontweight": "bold", "color": COLOURS["text"]}
    figure.text(LEFT / WIDTH, 1 - 0.36 / height, scene.name, **title)
    below = {**SMALL, "fontsize": 9, "color": COLOURS["faint_text"]}
    figure.text(LEFT / WIDTH, 1 - 0.64 / height, f"{scene.period} · {scene.summary}", **below)
    figure.legend(
        handles=_legend_handles(scene), ncols=6, frameon=False,
        loc="center right", bbox_to_anchor=(1 - RIGHT / WIDTH, 1 - 0.32 / height),
        labelcolor=COLOURS["faint_text"], prop={"family": "DejaVu Sans", "size": 8.5},
        handletextpad=0.4, columnspacing=1.6, borderaxespad=0,
    )  # fmt: skip


def _legend_handles(scene: Scene) -> list[Line2D | Patch]:
    def line(label: str, **style: Any) -> Line2D:
        return Line2D([], [], label=label, **{"linestyle": "none", **style})

    handles: list[Line2D | Patch] = []
    if _shows(scene, "zigzag"):
        handles.append(line("zigzag", linestyle="-", color=COLOURS["zigzag"], linewidth=1))
    if _shows(scene, "triangle"):
        handles += [
            line("swing high", marker="v", color=COLOURS["swing_high"], markersize=5),
            line("swing low", marker="^", color=COLOURS["swing_low"], markersize=5),
        ]
    if _shows(scene, "confirmation"):
        handles.append(
            line("confirmed here", marker="o", color=COLOURS["text"], markersize=4, mfc="none")
        )
    if not scene.valid.all():
        handles.append(Patch(label="not valid", color=COLOURS["invalid"], alpha=0.15, linewidth=0))
    if len(scene.boundaries):
        handles.append(line("new segment", linestyle="--", color=COLOURS["boundary"], linewidth=1))
    return handles


def _shows(scene: Scene, mark: str) -> bool:
    return 0 < len(scene.swings) <= theme.MAX_SWINGS[mark]


def _style(axis: Axes, scene: Scene) -> None:
    num_bars = len(scene.time)
    axis.set_facecolor(COLOURS["background"])
    axis.set_xlim(scene.first - 1, scene.first + num_bars + max(1.0, 0.01 * num_bars))
    axis.set_axisbelow(True)
    axis.grid(color=COLOURS["grid"], linewidth=0.8)
    axis.yaxis.tick_right()
    axis.tick_params(length=0, labelsize=8.5, labelcolor=COLOURS["faint_text"])
    axis.tick_params(labelfontfamily=SMALL["fontfamily"])
    axis.tick_params(axis="x", labelbottom=False)
    for spine in axis.spines.values():
        spine.set(color=COLOURS["frame"], linewidth=0.8)
    shade: dict[str, Any] = {
        "color": COLOURS["invalid"],
        "alpha": theme.INVALID_OPACITY,
        "linewidth": 0,
    }
    for start, stop in scene.invalid_runs:
        axis.axvspan(start - 0.5, stop - 0.5, **shade)
    for boundary in scene.boundaries.tolist():
        axis.axvline(boundary - 0.5, color=COLOURS["boundary"], linewidth=0.9, dashes=(4, 3))
    if scene.focus is not None:
        axis.axvline(scene.focus, color=COLOURS["focus"], linewidth=1, linestyle=(0, (1, 2)))


def _draw_price(axis: Axes, scene: Scene) -> None:
    low, high = float(scene.ohlc[:, 2].min()), float(scene.ohlc[:, 1].max())
    height = high - low or 0.01 * abs(high) or 1.0
    axis.set_ylim(low - HEADROOM * height, high + HEADROOM * height)
    close = float(scene.ohlc[-1, 3])
    unit = 10.0**-scene.decimals  # labels between two prices would be rounded to a wrong one
    locator = MaxNLocator(9, steps=[1, 2, 5, 10], integer=True)
    ticks = np.asarray(locator.tick_values(low / unit, high / unit)) * unit
    room = np.abs(ticks - close) > 0.03 * height  # for the tag of the last price
    axis.set_yticks(ticks[room & (ticks >= low) & (ticks <= high)])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.{scene.decimals}f}")
    _draw_candles(axis, scene)
    _draw_swings(axis, scene)
    colour = COLOURS["rising" if close >= scene.ohlc[-1, 0] else "falling"]
    axis.axhline(close, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
    _tag(axis, close, f"{close:,.{scene.decimals}f}", colour)
    places = scene.boundaries.tolist()
    for number in choose_notes(places, _spacing(scene), scene.focus):
        text = f"gap {scene.gap_texts[number]}"
        _note(axis, places[number] - 0.5, text, COLOURS["faint_text"])
    if scene.focus is not None:
        moment = short_time(scene.time[scene.focus - scene.first])
        _note(axis, scene.focus, moment, COLOURS["focus"])
    size = _bars_per_candle(scene)
    if size > 1:
        text = f"one candle = {size} bars, columns are their means"
        axis.text(0.006, 0.97, text, transform=axis.transAxes, va="top", color=COLOURS["focus"],
                  **SMALL)  # fmt: skip


def _spacing(scene: Scene) -> int:
    """Bars that a label or note takes up."""
    return max(1, len(scene.time) // MAX_LABELS)


def _bars_per_candle(scene: Scene) -> int:
    return -(-len(scene.time) // theme.MAX_CANDLES)


def _candle_starts(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Offset of every candle's first bar, and the candle's middle on the axis."""
    size = _bars_per_candle(scene)
    starts = np.arange(0, len(scene.time), size, dtype=np.int64)
    return starts, (scene.first + starts + (size - 1) / 2).astype(np.float64)


def _draw_candles(axis: Axes, scene: Scene) -> None:
    size = _bars_per_candle(scene)
    starts, middle = _candle_starts(scene)
    opens = scene.ohlc[starts, 0]
    highs = np.maximum.reduceat(scene.ohlc[:, 1], starts)
    lows = np.minimum.reduceat(scene.ohlc[:, 2], starts)
    closes = scene.ohlc[np.minimum(starts + size, len(scene.ohlc)) - 1, 3]
    left, right = middle - BODY_WIDTH * size / 2, middle + BODY_WIDTH * size / 2
    bodies = _paths((left, opens), (right, opens), (right, closes), (left, closes))
    wicks = _paths((middle, lows), (middle, highs))
    # The rim keeps bodies visible that are flat or narrower than a pixel.
    rim = float(np.clip(150 / len(starts), 0.2, 0.8))
    for name, rows in (("rising", closes >= opens), ("falling", closes < opens)):
        colour = COLOURS[name]
        _add_lines(axis, wicks[rows], colors=colour, linewidths=max(rim, 0.6))
        axis.add_collection(
            PolyCollection(list(bodies[rows]), fc=colour, ec=colour, linewidths=rim), autolim=False
        )


def _draw_swings(axis: Axes, scene: Scene) -> None:
    swings = scene.swings
    if _shows(scene, "zigzag"):
        for segment in np.unique(swings["segment"]):
            part = swings[swings["segment"] == segment]
            axis.plot(part["index"], part["price"], color=COLOURS["zigzag"], linewidth=1)
    for is_high, name, symbol in ((True, "swing_high", "v"), (False, "swing_low", "^")):
        part = swings[swings["is_high"] == is_high]
        if _shows(scene, "triangle"):
            offset = (MARK_OFFSET if is_high else -MARK_OFFSET) / 72
            lifted = axis.transData + ScaledTranslation(0, offset, axis.figure.dpi_scale_trans)
            axis.plot(
                part["index"], part["price"], linestyle="none", color=COLOURS[name],
                marker=symbol, markersize=4.5, markeredgewidth=0, transform=lifted,
            )  # fmt: skip
        if _shows(scene, "confirmation"):
            _draw_confirmations(axis, scene, part, COLOURS[name])


def _draw_confirmations(axis: Axes, scene: Scene, swings: NDArray[Any], colour: str) -> None:
    """Ring the close that made each swing known, and join it to the extreme."""
    swings = swings[swings["confirmed_index"] >= scene.first]
    bar = swings["confirmed_index"]
    close = scene.ohlc[bar - scene.first, 3]
    axis.plot(
        bar, close, linestyle="none", color=colour,
        marker="o", markersize=3.4, markerfacecolor="none", markeredgewidth=0.9,
    )  # fmt: skip
    paths = _paths((swings["index"], swings["price"]), (bar, close))
    _add_lines(axis, paths, colors=colour, linewidths=0.8, linestyles=[(0, (1, 2))])


def _draw_panel(axis: Axes, scene: Scene, panel: Panel) -> None:
    height = panel.high - panel.low
    axis.set_ylim(panel.low - 0.12 * height, panel.high + 0.28 * height)  # the name is at the top
    starts, middle = _candle_starts(scene)
    values = np.add.reduceat(panel.values, starts, dtype=np.float64)
    values /= np.diff(starts, append=len(panel.values))
    last = float(panel.values[-1]) + 0.0  # no minus before zero
    colour = theme.value_colour(panel.column, last)
    axis.axhline(0, color=COLOURS["frame"], linewidth=1)
    if theme.is_stems(panel.column):
        place = 72 * (WIDTH - LEFT - RIGHT) / len(starts)
        width = float(np.clip(0.65 * place, 0.4, 6))
        stems = _paths((middle, np.zeros(len(middle))), (middle, values))
        for rows, sign in ((values > 0, 1.0), (values < 0, -1.0)):
            shade = theme.value_colour(panel.column, sign)
            _add_lines(axis, stems[rows], colors=shade, linewidths=width, capstyle="butt")
    else:
        axis.plot(middle, values, color=colour, linewidth=1)
    ticks = [tick for tick in panel.ticks if abs(tick - last) > 0.25 * height]
    axis.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    _tag(axis, last, f"{last:.3f}" if abs(last) >= 0.01 or not last else f"{last:.3g}", colour)
    name = axis.annotate(
        panel.column.name, (0.006, 0.95), xycoords="axes fraction", va="top",
        color=theme.line_colour(panel.column), **SMALL,
    )  # fmt: skip
    axis.annotate(
        panel.column.meaning, (1, 1), xycoords=name, xytext=(8, 0), textcoords="offset points",
        va="top", color=COLOURS["faint_text"], **SMALL,
    )  # fmt: skip


def _paths(*points: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[np.float64]:
    """[N, P, 2] from P points of N paths."""
    return np.stack([np.column_stack(point) for point in points], axis=1).astype(np.float64)


def _add_lines(axis: Axes, paths: NDArray[np.float64], **style: Any) -> None:
    # autolim: the limits are ours, and finding them again takes most of the time.
    axis.add_collection(LineCollection(list(paths), **style), autolim=False)


def _tag(axis: Axes, value: float, text: str, colour: str) -> None:
    """Write the last value on the axis, as traders are used to."""
    axis.annotate(
        text, (1, value), xycoords=("axes fraction", "data"), xytext=(5, 0),
        textcoords="offset points", va="center", color=COLOURS["background"], fontweight="bold",
        bbox={"boxstyle": "square,pad=0.25", "facecolor": colour, "linewidth": 0}, **SMALL,
    )  # fmt: skip


def _note(axis: Axes, x: float, text: str, colour: str) -> None:
    axis.annotate(
        text, (x, 1), xycoords=("data", "axes fraction"), xytext=(4, -6),
        textcoords="offset points", va="top", color=colour, **SMALL,
    )  # fmt: skip
