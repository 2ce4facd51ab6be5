"""Hypothesis strategies: bars on a tick grid with everything a market does to them, and configs.

Bars are drawn as a few pieces (a walk, a trend, a flat run, ...) and one seed rather than price
by price: drawing is cheap, and a failure shrinks to few and short pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf

MINUTE_NS = 60 * 10**9
START_NS = 1_600_000_000 * 10**9

MOST_BARS = 400  # more than a block of the kernels, and a few full look-backs

TICKS = (0.25, 0.01, 1e-5, 1.0, 0.1)
PRICE_SCALES = (1.0, 1e-8, 1e8, 1e-3)
LEVELS = (40, 3_000, 250_000)  # ticks; the price that a series starts at

SCALE_FACTORS = (7.77e-9, 1e-6, 0.1, 1 / 3, 1.3, 1e6, 3.3e7)
POWERS_OF_TWO = tuple(2.0**power for power in (-26, -10, -1, 1, 3, 26))


@dataclass(frozen=True)
class TickBars:
    """Bars in whole ticks: int64 [T, 4] of open, high, low, close, and the price of one tick."""

    time: NDArray[np.int64]  # [T]
    ticks: NDArray[np.int64]  # [T, 4]
    tick: float

    def __len__(self) -> int:
        return len(self.time)

    def ohlc(self, *, factor: float = 1.0, shift: int = 0) -> NDArray[np.float64]:
        """Prices [T, 4], moved by whole ticks, then multiplied, as a data vendor would."""
        return (self.ticks + shift).astype(np.float64) * self.tick * factor

    def bars(self, *, factor: float = 1.0, shift: int = 0) -> mf.Bars:
        """The same as checked bars."""
        return to_bars(self.time, self.ohlc(factor=factor, shift=shift))


def to_bars(time: NDArray[np.int64], ohlc: NDArray[np.float64]) -> mf.Bars:
    """Bars from times [T] and prices [T, 4]."""
    columns = [np.ascontiguousarray(ohlc[:, column]) for column in range(4)]
    return mf.Bars(time=time, open=columns[0], high=columns[1], low=columns[2], close=columns[3])


def to_ohlc(bars: mf.Bars) -> NDArray[np.float64]:
    """Prices [T, 4] of bars."""
    return np.column_stack((bars.open, bars.high, bars.low, bars.close))


def scaled(bars: mf.Bars, factor: float) -> mf.Bars:
    """Bars with every price multiplied."""
    return to_bars(bars.time, to_ohlc(bars) * factor)


# --- pieces of a series: [n, 4] ticks, starting from the close before ------------------------


def _walk(rng: np.random.Generator, length: int, close: int, *, step: int) -> NDArray[np.int64]:
    """A random walk; small steps make ties and the odd flat bar."""
    bodies = rng.integers(-step, step + 1, length)
    gaps = rng.integers(-step, step + 1, length) * (rng.random(length) < 0.2)
    closes = close + np.cumsum(bodies + gaps)
    opens = closes - bodies
    highs = np.maximum(opens, closes) + rng.integers(0, step + 1, length)
    lows = np.minimum(opens, closes) - rng.integers(0, step + 1, length)
    return np.column_stack((opens, highs, lows, closes))


def _trend(
    rng: np.random.Generator, length: int, close: int, *, direction: int
) -> NDArray[np.int64]:
    """A climb or fall that closes every bar at its extreme, so that no swing confirms."""
    bodies = rng.integers(1, 8, length) * direction
    closes = close + np.cumsum(bodies)
    opens = closes - bodies
    return np.column_stack((opens, np.maximum(opens, closes), np.minimum(opens, closes), closes))


def _flat(rng: np.random.Generator, length: int, close: int) -> NDArray[np.int64]:
    """Bars without a range at one price, sometimes another one than before."""
    price = close + int(rng.integers(-2, 3))
    return np.full((length, 4), price)


def _steps(rng: np.random.Generator, length: int, close: int) -> NDArray[np.int64]:
    """Flat bars at ever new prices: no bar has a range, every pair of bars has one."""
    closes = close + np.cumsum(rng.integers(-3, 4, length))
    return np.column_stack((closes,) * 4)


PIECES = {
    "walk": lambda rng, length, close: _walk(rng, length, close, step=20),
    "quiet": lambda rng, length, close: _walk(rng, length, close, step=1),
    "wild": lambda rng, length, close: _walk(rng, length, close, step=900),
    "up": lambda rng, length, close: _trend(rng, length, close, direction=1),
    "down": lambda rng, length, close: _trend(rng, length, close, direction=-1),
    "flat": _flat,
    "steps": _steps,
}


def _join(rng: np.random.Generator, plan: list[tuple[str, int]], level: int) -> NDArray[np.int64]:
    close, pieces = level, []
    for kind, length in plan:
        piece = PIECES[kind](rng, length, close)
        close = int(piece[-1, 3])
        pieces.append(piece)
    ticks = np.concatenate(pieces)
    return ticks + max(0, 1 - int(ticks.min()))  # every price at least one tick above 0


def _times(rng: np.random.Generator, num_bars: int, gap_share: float) -> NDArray[np.int64]:
    steps = np.full(num_bars, MINUTE_NS, dtype=np.int64)
    gaps = rng.random(num_bars) < gap_share
    steps[gaps] *= rng.integers(2, 3 * 24 * 60, int(gaps.sum()))
    return START_NS + np.cumsum(steps)


@st.composite
def tick_bars(draw: st.DrawFn, *, most: int = MOST_BARS) -> TickBars:
    """Between 1 and ``most`` bars: ties, flat bars, flat runs, trends, gaps, any price scale."""
    kinds = st.sampled_from(sorted(PIECES))
    lengths = st.sampled_from((1, 2, 5, 12, 25, 40, 61, 75, 130))
    num_pieces = draw(st.integers(1, 8))  # a list of its own accord would mostly be short
    plan = [(draw(kinds), draw(lengths)) for _ in range(num_pieces)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ticks = _join(rng, plan, draw(st.sampled_from(LEVELS)))[:most]
    gap_share = draw(st.sampled_from((0.0, 0.02, 0.3)))
    tick = draw(st.sampled_from(TICKS)) * draw(st.sampled_from(PRICE_SCALES))
    return TickBars(_times(rng, len(ticks), gap_share), ticks, tick)


def factors() -> st.SearchStrategy[float]:
    """Price factors of the scale law."""
    exponents = st.floats(-8, 8, allow_nan=False)
    return st.one_of(st.sampled_from(SCALE_FACTORS), exponents.map(lambda power: 10.0**power))


@st.composite
def configs(draw: st.DrawFn, *, family: str | None = None) -> mf.FeatureConfig:
    """Configurations of both families: profiles, all rules, optional columns, odd periods."""
    chosen = family or draw(st.sampled_from(("relativity", "relativity", "returns")))
    max_gap = draw(st.sampled_from((None, "1min", "4h")))
    warmup_bars = draw(st.sampled_from((20, 0, 3, 70)))
    if chosen == "returns":
        return mf.FeatureConfig(family=chosen, max_gap=max_gap, warmup_bars=warmup_bars)
    settings: dict[str, Any] = {
        "swing_rule": draw(st.sampled_from(("atr", "early", "same_bar"))),
        "max_gap": max_gap,
        "warmup_bars": warmup_bars,
        "consol_proxy": draw(st.booleans()),
        "context": draw(st.booleans()),
    }
    if draw(st.booleans()):  # half of the time the named numbers, half of the time others
        return mf.FeatureConfig.profile(draw(st.sampled_from(("standard", "wide"))), **settings)
    return mf.FeatureConfig(
        **settings,
        range_period=draw(st.sampled_from((1, 2, 20, 50))),
        atr_period=draw(st.sampled_from((1, 2, 7, 14, 65))),
        k=draw(st.sampled_from((0.2, 0.7, 1.0, 2.5, 6.0))),
        early_lookback=draw(st.integers(0, 9)),
        early_retrace=draw(st.sampled_from((0.1, 0.25, 1.0, 1.6))),
        distance_clip=draw(st.sampled_from((0.5, 3.0, 7.0))),
        range_clip=draw(st.sampled_from((0.75, 3.0, 5.0))),
        proxy_clip=draw(st.sampled_from((0.4, 2.0, 6.0))),
        window_length=draw(st.sampled_from((1, 9, 105, 300))),
    )


def every_config(family: str | None = None) -> list[mf.FeatureConfig]:
    """Return a fixed list that holds every rule, profile, optional column and family."""
    relativity = [
        mf.FeatureConfig(),
        mf.FeatureConfig(swing_rule="early", consol_proxy=True, context=True),
        mf.FeatureConfig.profile("faithful", context=True),
        mf.FeatureConfig.profile("wide", consol_proxy=True, max_gap="1min"),
    ]
    returns = [mf.FeatureConfig(family="returns"), mf.FeatureConfig(family="returns", max_gap="4h")]
    return {"relativity": relativity, "returns": returns}.get(family or "", relativity + returns)


def config_name(config: mf.FeatureConfig) -> str:
    """Short name of a configuration, for the names of parametrised tests."""
    extras = [name for name in ("consol_proxy", "context") if getattr(config, name)]
    gap = [f"gap_{config.max_gap}"] if config.max_gap else []
    rule = [config.swing_rule] if config.family == "relativity" else []
    return "-".join([config.family, *rule, f"k{config.k}", *extras, *gap])


def twin_settings(config: mf.FeatureConfig) -> dict[str, Any]:
    """Configuration as keyword parameters of the naive twins."""
    settings = {**config.to_dict(), "max_gap_ns": config.max_gap_ns}
    del settings["max_gap"]
    return settings


# --- hostile series, made by hand -----------------------------------------------------------


def hostile() -> dict[str, TickBars]:
    """Series that sit on the definitions' edges, by name."""
    rng = np.random.default_rng(11)
    ramp = np.arange(1, 141)
    one_gap = np.full(140, MINUTE_NS, dtype=np.int64)
    one_gap[70] *= 600
    cases: dict[str, NDArray[Any]] = {
        "one bar": _walk(rng, 1, 500, step=9),
        "one flat bar": np.full((1, 4), 500),
        "two bars": _walk(rng, 2, 500, step=9),
        "all flat": np.full((150, 4), 777),
        "flat, then a market": np.concatenate((np.full((80, 4), 90), _walk(rng, 70, 90, step=5))),
        "a market, then flat": np.concatenate(
            (_walk(rng, 70, 5_000, step=50), np.full((80, 4), 5_011))
        ),
        "one jump between flats": np.concatenate((np.full((70, 4), 50), np.full((80, 4), 51))),
        "only up": np.column_stack((ramp, ramp + 1, ramp, ramp + 1)),
        "only down": np.column_stack((ramp + 1, ramp + 1, ramp, ramp))[::-1],
        "one tick up and down": _join(rng, [("quiet", 150)], 30),
        "ties of highs": np.tile([[10, 12, 8, 11], [11, 12, 8, 9]], (70, 1)),
        "a spike": np.insert(_walk(rng, 140, 4_000, step=2), 80, (4_000, 900_000, 1, 4_000), 0),
        "fades to nothing": np.concatenate(
            [np.tile([[2**n, 2**n + 2**n // 2, 2**n, 2**n]], (9, 1)) for n in range(16, 0, -1)]
        ),
    }  # fmt: skip
    found = {}
    for name, ticks in cases.items():
        time = START_NS + np.arange(len(ticks), dtype=np.int64) * MINUTE_NS
        lifted = ticks + max(0, 1 - int(ticks.min()))
        found[name] = TickBars(time, np.ascontiguousarray(lifted, dtype=np.int64), 0.01)
    walk = _walk(rng, 140, 70_000, step=30)
    found["one long gap"] = TickBars(START_NS + np.cumsum(one_gap), walk, 0.25)
    every_bar = START_NS + np.arange(140, dtype=np.int64) * 5 * 24 * 60 * MINUTE_NS
    found["a gap at every bar"] = TickBars(every_bar, walk, 0.25)
    return found
