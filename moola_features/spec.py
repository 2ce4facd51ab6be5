"""The registry of columns: what each is called, where its values lie, what it means.

Tests, documentation, stores and charts iterate over it, so a new column cannot skip any of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moola_features.config import FeatureConfig

FAMILIES = ("relativity", "returns")
SWING_RULES = ("atr", "early", "same_bar")

BARS_SINCE_CLIP = 3.0  # in window lengths
CONTEXT_PERIOD = 60  # bars of the slow volatility that the context columns are measured in
CONTEXT_CLIP = 10.0
CONTEXT_DISTANCE_CLIP = 30.0
ZSCORE_PERIOD = 20
ZSCORE_CLIP = 10.0


@dataclass(frozen=True, slots=True)
class Mirror:
    """What a column is once prices are turned upside down: ``offset + sign * column``.

    Attributes
    ----------
    column
        Name of the column that the values come from, often the column itself.
    sign
        1 or -1.
    offset
        Added where ``range_z`` is above 0: at flat bars all candle columns are 0, and stay it.
    """

    column: str
    sign: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One feature column.

    Attributes
    ----------
    name
        Name in stores, files and charts.
    family
        ``"relativity"`` or ``"returns"``.
    group
        What the column describes: ``candle``, ``swing``, ``expansion``, ``consolidation``,
        ``context``, ``return`` or ``zscore``.
    low, high
        Bounds of its values, both inclusive; infinite where a column has none.
    look_back
        Position in its segment of the first bar whose look-back is full.
    needs_swings
        Whether its values say something only once a swing high and a swing low are known.
    meaning
        One line for people.
    mirror
        What it is once prices are turned upside down, p -> c - p. Swing columns obey that from
        the first swings on that both zigzags share, since every segment begins with an up leg;
        log returns obey it where prices are near c / 2, since ln is no straight line.
    """

    name: str
    family: str
    group: str
    low: float
    high: float
    look_back: int
    needs_swings: bool
    meaning: str
    mirror: Mirror


def _mirrors() -> dict[str, Mirror]:
    """Every column that turning prices upside down changes: highs and lows change places."""
    prices = ("open", "high", "low", "close")
    flipped = {price: price for price in prices} | {"high": "low", "low": "high"}
    swapped = (
        ("upper_wick_pct", "lower_wick_pct"), ("upper_wick_ratio", "lower_wick_ratio"),
        ("dist_to_prev_SH", "dist_to_prev_SL"), ("bars_since_SH_norm", "bars_since_SL_norm"),
        ("below_high_20", "above_low_20"), ("below_high_60", "above_low_60"),
    )  # fmt: skip
    found = {name: Mirror(name, -1, 1) for name in ("open_norm", "close_norm")}
    found |= {name: Mirror(name, -1) for name in ("body_pct", "move_atr", "efficiency_10")}
    for kind in ("log_return", "zscore"):
        found |= {f"{kind}_{price}": Mirror(f"{kind}_{flipped[price]}", -1) for price in prices}
    for one, other in swapped:
        found |= {one: Mirror(other), other: Mirror(one)}
    return found


_MIRRORS = _mirrors()


def _mirror(name: str) -> Mirror:
    return _MIRRORS.get(name, Mirror(name))


def columns(config: FeatureConfig) -> tuple[Column, ...]:
    """Columns that a configuration yields, in the order of the feature matrix.

    Parameters
    ----------
    config
        The configuration; its clips set the ranges, its periods the look-backs.

    Returns
    -------
    tuple of Column
        11 columns, one more with ``consol_proxy`` and eight more with ``context``.

    Examples
    --------
    >>> import moola_features as mf
    >>> [column.name for column in mf.columns(mf.FeatureConfig())][:3]
    ['open_norm', 'close_norm', 'body_pct']
    """
    if config.family == "returns":
        return _returns()
    chosen = _relativity(config)
    if config.consol_proxy:
        chosen += _consolidation()
    if config.context:
        chosen += _context(config)
    return chosen


def _relativity(config: FeatureConfig) -> tuple[Column, ...]:
    def candle(name: str, low: float, high: float, meaning: str) -> Column:
        return Column(
            name=name, family="relativity", group="candle", low=low, high=high,
            look_back=0, needs_swings=False, meaning=meaning, mirror=_mirror(name),
        )  # fmt: skip

    def swing(name: str, low: float, high: float, meaning: str) -> Column:
        return Column(
            name=name, family="relativity", group="swing", low=low, high=high,
            look_back=config.atr_period, needs_swings=True, meaning=meaning, mirror=_mirror(name),
        )  # fmt: skip

    reach = config.distance_clip
    return (
        candle("open_norm", 0, 1, "where the open lies between low and high"),
        candle("close_norm", 0, 1, "where the close lies between low and high"),
        candle("body_pct", -1, 1, "body as a share of the bar's range, signed"),
        candle("upper_wick_pct", 0, 1, "upper wick as a share of the bar's range"),
        candle("lower_wick_pct", 0, 1, "lower wick as a share of the bar's range"),
        candle("range_z", 0, config.range_clip, "range over its exponential mean"),
        swing("dist_to_prev_SH", -reach, reach, "last swing high minus close, in ATR"),
        swing("dist_to_prev_SL", -reach, reach, "close minus last swing low, in ATR"),
        swing("bars_since_SH_norm", 0, BARS_SINCE_CLIP, "window lengths since the last swing high"),
        swing("bars_since_SL_norm", 0, BARS_SINCE_CLIP, "window lengths since the last swing low"),
        Column(
            name="expansion_proxy", family="relativity", group="expansion",
            low=-config.proxy_clip, high=config.proxy_clip, look_back=config.atr_period,
            needs_swings=True, meaning="range_z times leg direction times body_pct",
            mirror=_mirror("expansion_proxy"),
        ),
    )  # fmt: skip


def _consolidation() -> tuple[Column, ...]:
    return (
        Column(
            name="consol_proxy", family="relativity", group="consolidation", low=0, high=3,
            look_back=0, needs_swings=True, meaning="small, undecided bars long after both swings",
            mirror=_mirror("consol_proxy"),
        ),
    )  # fmt: skip


def _context(config: FeatureConfig) -> tuple[Column, ...]:
    def context(name: str, low: float, high: float, meaning: str) -> Column:
        return Column(
            name=name, family="relativity", group="context", low=low, high=high,
            look_back=max(CONTEXT_PERIOD, config.atr_period), needs_swings=False, meaning=meaning,
            mirror=_mirror(name),
        )  # fmt: skip

    far = CONTEXT_DISTANCE_CLIP
    return (
        context("move_atr", -CONTEXT_CLIP, CONTEXT_CLIP, "close-to-close move in slow ATR"),
        context("below_high_20", 0, far, "how far below the highest high of 20 bars, in slow ATR"),
        context("above_low_20", 0, far, "how far above the lowest low of 20 bars, in slow ATR"),
        context("below_high_60", 0, far, "how far below the highest high of 60 bars, in slow ATR"),
        context("above_low_60", 0, far, "how far above the lowest low of 60 bars, in slow ATR"),
        context("volatility_ratio", 0, CONTEXT_CLIP, "ATR over slow ATR"),
        context("efficiency_10", -1, 1, "net move over path length, last 10 steps"),
        context("box_15", 0, far, "height of the last 15 bars in slow ATR"),
    )


def _returns() -> tuple[Column, ...]:
    def column(group: str, name: str, reach: tuple[float, float], first: int, text: str) -> Column:
        return Column(
            name=name, family="returns", group=group, low=reach[0], high=reach[1],
            look_back=first, needs_swings=False, meaning=text, mirror=_mirror(name),
        )  # fmt: skip

    prices = ("open", "high", "low", "close")
    unbounded = (-math.inf, math.inf)
    clipped = (-ZSCORE_CLIP, ZSCORE_CLIP)
    return (
        *(
            column("return", f"log_return_{x}", unbounded, 1, f"log of {x} over the {x} before")
            for x in prices
        ),
        column("candle", "body_ratio", (0, 1), 0, "body as a share of the bar's range"),
        column("candle", "upper_wick_ratio", (0, 1), 0, "upper wick as a share of the range"),
        column("candle", "lower_wick_ratio", (0, 1), 0, "lower wick as a share of the range"),
        *(
            column("zscore", f"zscore_{x}", clipped, ZSCORE_PERIOD - 1, f"{x} against 20 bars")
            for x in prices
        ),
    )
