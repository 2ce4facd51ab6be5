"""A synthetic market with known truth: realistic bars, and patterns planted where labels say.

The calendar is that of an index future in winter time, all year: a session runs from 23:00 to
22:00 UTC (1,380 one-minute bars), five a week, the first of the week on Sunday evening; there is no
bar in the daily break from 22:00 to 23:00 nor from Friday 22:00 to Sunday 23:00. Volatility rises
at London's open (08:00) and is U-shaped between the cash open (14:30) and close (21:00).

What is planted is a window of 105 bars: a consolidation or a retracement, then an expansion. It is
labelled only where the finished bars, ticks and all, bear it out.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moola_features.bars import Bars
from moola_features.errors import ConfigError, OutputError
from moola_features.files import replaced_file
from moola_features.store.layout import require_outside
from moola_features.synth.planting import (
    WINDOW_LENGTH,
    Plan,
    between,
    borne_out,
    draw_plan,
    labels_of,
    script_of,
)

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

MINUTE_NS = 60_000_000_000
SESSION_BARS = 1_380
FIRST_SESSION_NS = 1_578_265_200_000_000_000  # Sunday 2020-01-05 23:00 UTC
SESSIONS_PER_WEEK = 5
DAY_NS = 1_440 * MINUTE_NS
LONDON_OPEN, CASH_OPEN, CASH_CLOSE = 540, 930, 1_320  # bar of the session

MIN_BARS, MAX_BARS = WINDOW_LENGTH, 50_000_000  # 139 years; int64 nanoseconds end in 2262
MIN_TICKS, MAX_TICKS = 100, 10**12  # of the start price

VOLATILITY = 3e-4  # of a minute in an average session; with jumps and clusters about 23 % a year
SESSION_SPREAD = 0.25  # standard deviation of a session's log volatility
SESSION_PERSISTENCE = 0.9
JUMPS_PER_SESSION = 3
JUMP = 6.0  # their standard deviation, in standard deviations of a minute
GAP, WEEKEND_GAP = 6.0, 15.0  # at a session's first bar, in standard deviations of a minute
MAX_STILLNESS = 0.12  # share of flat bars in the quietest minutes
BLOCK_SESSIONS = 128  # 18 MB of random numbers at a time


@dataclass(frozen=True, eq=False)
class SyntheticMarket:
    """Bars and what was planted in them.

    Attributes
    ----------
    bars
        One-minute bars on a tick grid.
    labels
        One row for each planted window, in order of time: ``window_id``; ``label``,
        ``"consolidation"`` or ``"retracement"``; ``expansion_start`` and ``expansion_end``, int64
        positions 0 to 104 in the window, both inclusive; ``start_time``, the window's first bar.
    """

    bars: Bars
    labels: pl.DataFrame


def synthesise(
    num_bars: int = 1_800_000, *, seed: int = 17, tick: float = 0.25, start_price: float = 15_000.0
) -> SyntheticMarket:
    """Make a market from a seed.

    The same arguments give the same bits (with one NumPy version on one kind of machine), and a
    longer market begins with the shorter one. Log volatility is the sum of a session's level, a
    cluster with a half-life of 115 bars, and each bar's own factor; prices are drawn home to the
    start price with a half-life of about a year. Before they are rounded to ticks, a bar's high and
    low each follow the law of the extremes of a Brownian bridge exactly: given the ends a and b,
    P(max >= h) = exp(-2 (h - a)(h - b) / variance) (Glasserman, Monte Carlo Methods in Financial
    Engineering, 2004, section 6.4). They are drawn for both halves of the bar, which makes them
    depend on each other nearly as they do on a path: the mean squared range is 0.4 % too large.

    How well a model finds what was planted tells that its machinery works, nothing
    about markets.

    Parameters
    ----------
    num_bars
        Length of the market, from 105 to 50,000,000 bars; 1,800,000 are five years.
    seed
        Whole number from 0 to 2**63 - 1.
    tick
        Grid of all prices, above 0.
    start_price
        First price, and the level that prices are drawn home to: 100 to 1e12 ticks. Below some
        10,000 ticks the grid blurs the patterns, and fewer windows are labelled.

    Returns
    -------
    SyntheticMarket
        Bars and labels; about eight labels for ten sessions, half of each kind.

    Raises
    ------
    ConfigError
        A parameter out of bounds.

    Examples
    --------
    >>> market = synthesise(20_000, seed=17)
    >>> len(market.bars), market.labels.columns[:3]
    (20000, ['window_id', 'label', 'expansion_start'])
    """
    _require_whole("num_bars", num_bars, MIN_BARS, MAX_BARS)
    _require_whole("seed", seed, 0, 2**63 - 1)
    _require_prices(tick, start_price)
    num_sessions = -(-num_bars // SESSION_BARS)
    # A stream for each kind of number, drawn in order of time: a longer market begins alike.
    seeds = np.random.SeedSequence(seed).spawn(6)
    streams = [np.random.Generator(np.random.PCG64(child)) for child in seeds]
    plan = draw_plan(streams[0], num_sessions, _activity())
    levels, shocks = _draw_sessions(streams[1], streams[2], plan, num_sessions)
    prices = _walk(
        streams[3:], levels, shocks, plan, tick=float(tick), start_price=float(start_price)
    )
    time = _session_times(num_sessions).reshape(-1)
    bars = Bars(time[:num_bars], *(price[:num_bars] for price in prices))
    kept = plan.take(plan.last_bar < num_bars)
    kept = kept.take(borne_out(bars, kept))
    return SyntheticMarket(bars=bars, labels=labels_of(kept, bars.time, seed))


def write_market(
    path: str | Path,
    *,
    labels_path: str | Path | None = None,
    num_bars: int = 1_800_000,
    seed: int = 17,
    tick: float = 0.25,
    start_price: float = 15_000.0,
) -> SyntheticMarket:
    """Make a market and write it to files, each of which appears whole or not at all.

    Parameters
    ----------
    path
        Where the bars go: ``.parquet`` (zstd; ``timestamp``, ns UTC, and ``open``, ``high``,
        ``low``, ``close``) or ``.csv`` (the same columns, times as ``2020-01-05T23:00:00Z``).
    labels_path
        Where the labels go, ``.parquet`` or ``.csv``; None writes none.
    num_bars, seed, tick, start_price
        As :func:`synthesise` takes them.

    Returns
    -------
    SyntheticMarket
        What was written.

    Raises
    ------
    ConfigError
        A parameter out of bounds, another suffix, or one path for both files.
    OutputError
        A file that cannot be written: no such folder, no permission, a full disk.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     market = write_market(f"{folder}/bars.parquet", num_bars=5_000, seed=3)
    ...     pl.read_parquet(f"{folder}/bars.parquet").shape
    (5000, 5)
    """
    targets = [Path(target) for target in (path, labels_path) if target is not None]
    for target in targets:
        if target.suffix.lower() not in (".parquet", ".csv"):
            raise ConfigError(f"{target}: suffix is {target.suffix!r}; give .parquet or .csv")
        require_outside(target)
    if len({target.resolve() for target in targets}) < len(targets):
        raise ConfigError(f"{path}: bars and labels go to one path; give two")
    market = synthesise(num_bars, seed=seed, tick=tick, start_price=start_price)
    bars = market.bars
    frame = pl.DataFrame(
        {
            "timestamp": pl.Series(bars.time).cast(pl.Datetime("ns", "UTC")),
            "open": bars.open,
            "high": bars.high,
            "low": bars.low,
            "close": bars.close,
        }
    )
    with contextlib.ExitStack() as files:
        for target, table in zip(targets, (frame, market.labels), strict=False):
            _write_table(table, files.enter_context(replaced_file(target)), target)
    return market


def _write_table(table: pl.DataFrame, path: Path, target: Path) -> None:
    try:
        if target.suffix.lower() == ".csv":
            table.write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%SZ")
        else:
            # Not Polars' own writer: a full disk must surface as an OSError.
            pq.write_table(table.to_arrow(), path, compression="zstd")
    except OSError as error:
        # Polars gives no errno, so that only its text tells what went wrong.
        raise OutputError(
            f"{target} cannot be written: {error}; free some space or choose another folder"
        ) from error


def _activity() -> Float64:
    """Volatility by minute of the session, with a mean square of 1; ``[1380]``."""
    minute = np.arange(SESSION_BARS)
    activity = np.full(SESSION_BARS, 0.45)
    london = minute[LONDON_OPEN:CASH_OPEN] - LONDON_OPEN
    activity[LONDON_OPEN:CASH_OPEN] = 0.7 + 0.35 * np.exp(-london / 40.0)
    since_open = minute[CASH_OPEN:CASH_CLOSE] - CASH_OPEN
    to_close = CASH_CLOSE - minute[CASH_OPEN:CASH_CLOSE]
    activity[CASH_OPEN:CASH_CLOSE] = (
        1.15 + 1.5 * np.exp(-since_open / 30.0) + 0.6 * np.exp(-to_close / 20.0)
    )
    scaled: Float64 = activity / np.sqrt(np.mean(activity**2))
    return scaled


def _draw_sessions(
    for_normals: np.random.Generator,
    for_uniforms: np.random.Generator,
    plan: Plan,
    num_sessions: int,
) -> tuple[Float64, Float64]:
    """Volatility of each session ``[S]``; in units of it, its bars' gap and jumps ``[S, 1380]``."""
    normals = for_normals.standard_normal((num_sessions, 2 + JUMPS_PER_SESSION))
    uniforms = for_uniforms.random((num_sessions, JUMPS_PER_SESSION))
    level = np.empty(num_sessions)
    innovation = SESSION_SPREAD * math.sqrt(1.0 - SESSION_PERSISTENCE**2)
    last = 0.0
    for session, normal in enumerate(normals[:, 0].tolist()):
        last = SESSION_PERSISTENCE * last + innovation * normal
        level[session] = last
    shocks = np.zeros((num_sessions, SESSION_BARS))
    places = between(1, SESSION_BARS - 1, uniforms)
    np.put_along_axis(shocks, places, JUMP * normals[:, 2:], axis=1)
    for stretch in plan.stretches:
        shocks.reshape(-1)[stretch] = 0.0
    shocks[:, 0] = GAP * normals[:, 1]
    shocks[::SESSIONS_PER_WEEK, 0] *= WEEKEND_GAP / GAP
    return VOLATILITY * np.exp(level), shocks


def _walk(
    streams: list[np.random.Generator],
    levels: Float64,
    shocks: Float64,
    plan: Plan,
    *,
    tick: float,
    start_price: float,
) -> list[Float64]:
    """Open, high, low, close of whole sessions; blocks bound the memory, and change no bit."""
    from moola_features.kernels.market import walk

    for_normals, for_exponentials, for_uniforms = streams
    num_sessions = len(levels)
    prices = [np.empty(num_sessions * SESSION_BARS) for _ in range(4)]
    state = np.array([start_price, 0.0, 0.0, 0.0])
    activity = _activity()
    calm = np.maximum(0.0, activity.mean() - activity)
    stillness = MAX_STILLNESS * calm / calm.max()
    for session in range(0, num_sessions, BLOCK_SESSIONS):
        block = slice(session, min(session + BLOCK_SESSIONS, num_sessions))
        bars = slice(block.start * SESSION_BARS, block.stop * SESSION_BARS)
        num_bars = bars.stop - bars.start
        walk.load()(
            for_normals.standard_normal((num_bars, 4)),
            for_exponentials.standard_exponential((num_bars, 4)),
            for_uniforms.random((num_bars, 2)),
            np.outer(levels[block], activity).reshape(-1),
            np.tile(stillness, block.stop - block.start),
            shocks[block].reshape(-1),
            script_of(plan, bars),
            SESSION_BARS,
            tick,
            start_price,
            state,
            *(price[bars] for price in prices),
        )
    return prices


def _session_times(num_sessions: int) -> Int64:
    """List the starts of all bars in ns; ``[S, 1380]``."""
    week, day = np.divmod(np.arange(num_sessions), SESSIONS_PER_WEEK)
    start = FIRST_SESSION_NS + (7 * week + day) * DAY_NS
    times: Int64 = start[:, None] + np.arange(SESSION_BARS) * MINUTE_NS
    return times


def _require_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def _require_prices(tick: float, start_price: float) -> None:
    for name, value in (("tick", tick), ("start_price", start_price)):
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value <= 0:
            raise ConfigError(f"{name} is {value!r}; it must be a finite number above 0")
    if not MIN_TICKS <= start_price / tick <= MAX_TICKS:
        raise ConfigError(
            f"start_price is {start_price!r}, {start_price / tick:g} ticks of {tick!r}; "
            f"it must be from {MIN_TICKS} to {MAX_TICKS:g} ticks"
        )
