"""Colours and roles that the page and the image share."""

from __future__ import annotations

from moola_features.spec import Column

COLOURS = {
    "background": "#131722",
    "grid": "#1f2431",
    "frame": "#2f3546",
    "text": "#d6d9e2",
    "faint_text": "#8b91a3",
    "rising": "#26a69a",
    "falling": "#ef5350",
    "swing_high": "#ffb454",  # whatever speaks of highs, in the price and in the panels
    "swing_low": "#5aa9ff",
    "zigzag": "#7d86a3",
    "neutral": "#a9b1c9",
    "focus": "#c792ea",
    "boundary": "#6b7390",
    "invalid": "#ffffff",
}
INVALID_OPACITY = 0.07
MAX_CANDLES = 1_000  # above this many in a view, several bars share one candle
# So many swings in a view leave the candles visible below each kind of mark.
MAX_SWINGS = {"confirmation": 150, "triangle": 300, "zigzag": 400}


def is_stems(column: Column) -> bool:
    """Whether a column speaks of single bars (stems from zero) or of a level (a line)."""
    return column.group in ("candle", "expansion", "return")


def line_colour(column: Column) -> str:
    """Colour of a column's line: that of highs, that of lows, or neither."""
    words = set(column.name.split("_"))
    if words & {"SH", "high"}:
        return COLOURS["swing_high"]
    return COLOURS["swing_low"] if words & {"SL", "low"} else COLOURS["neutral"]


def value_colour(column: Column, value: float) -> str:
    """Colour of one value: signed stems rise and fall like candles."""
    if is_stems(column) and column.low < 0:
        return COLOURS["rising" if value >= 0 else "falling"]
    return line_colour(column)
