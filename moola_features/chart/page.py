"""A scene as a page that needs nothing else: plotly.js, the data and a script, all inside it.

The script draws only the bars in view, and joins several into one candle in a wide view, because
a browser is slow on tens of thousands of candles.
"""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from moola_features.chart import theme
from moola_features.chart.scene import DAY_RANK, Panel, Scene

VIEW_BARS = 400  # in view when the page opens
MINUTE_NS = 60 * 10**9


def draw_page(scene: Scene) -> str:
    """Return the HTML text of the page."""
    parts = {
        "title": html.escape(scene.name),
        "period": html.escape(scene.period),
        "summary": html.escape(scene.summary),
        "first_time": _picker_time(scene.time[0]),
        "last_time": _picker_time(scene.time[-1]),
        "picker_step": "60" if (scene.time % MINUTE_NS == 0).all() else "1",
        "style": _palette() + _asset("page.css"),
        # "</script>" inside a name must not end the element.
        "data": json.dumps(payload(scene), separators=(",", ":")).replace("<", "\\u003c"),
        "plotly": get_plotlyjs(),
        "script": _asset("page.js"),
    }
    pieces = _asset("page.html").split("%%")
    # Every second piece is the name of a part; replacing in turn would look into the parts.
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces)


def payload(scene: Scene) -> dict[str, Any]:
    """Everything that the script draws, as plain JSON types; positions count in the store."""
    swings = scene.swings
    return {
        "first": scene.first,
        "time": (scene.time / 1e6).tolist(),  # milliseconds, as the browser counts
        **dict(zip(("open", "high", "low", "close"), scene.ohlc.T.tolist(), strict=True)),
        "invalid": scene.invalid_runs,
        "panels": [_panel(panel) for panel in scene.panels],
        "swings": {name: swings[name].tolist() for name in swings.dtype.names or ()},
        "boundaries": scene.boundaries.tolist(),
        "gap_texts": scene.gap_texts,
        "focus": scene.focus,
        "tick_rank": scene.tick_rank.tolist(),
        "tick_text": scene.tick_text,
        "day_rank": DAY_RANK,
        "decimals": scene.decimals,
        "view_bars": VIEW_BARS,
        "max_candles": theme.MAX_CANDLES,
        "max_swings": theme.MAX_SWINGS,
        "colours": theme.COLOURS,
        "invalid_opacity": theme.INVALID_OPACITY,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "name": panel.column.name,
        "meaning": panel.column.meaning,
        "low": panel.low,
        "high": panel.high,
        "ticks": panel.ticks,
        "stems": theme.is_stems(panel.column),
        "colour": theme.line_colour(panel.column),
        "values": _short(panel.values),
    }


def _short(values: NDArray[np.float32]) -> list[float]:
    # Nine digits tell every float32 apart; its value as a double would be written with seventeen.
    return [float(f"{value:.9g}") for value in values.tolist()]


def _picker_time(time_ns: np.int64) -> str:
    return str(np.datetime64(int(time_ns), "ns").astype("datetime64[s]"))


def _palette() -> str:
    colours = ";".join(f"--{name.replace('_', '-')}:{c}" for name, c in theme.COLOURS.items())
    return f":root{{{colours}}}\n"


def _asset(name: str) -> str:
    return (files("moola_features.chart") / name).read_text(encoding="utf-8")
