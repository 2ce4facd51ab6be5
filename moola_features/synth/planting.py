"""What is planted in a synthetic market: where, how the walk is pushed, and whether it came out.

A planted window holds a prelude and an expansion. The prelude is a consolidation (price is pulled
to one level) or a retracement (a leg, and a pullback out of it); the expansion is a push over 3 to
12 bars, after which price is held for a while where it has come to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moola_features.bars import Bars

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

WINDOW_LENGTH = 105
PLANTED_SHARE = 0.95  # of the sessions
WARM_BARS = 150  # from the session's first bar to a window's first
EARLIEST_START, LATEST_START = 20, 90  # of an expansion in its window
MIN_LENGTH, MAX_LENGTH = 3, 12
HOLD_BARS = 12  # for which price is held after an expansion
HELD_BARS = 10  # for which it must have held
REACH_BARS = 60  # more than any script, or what is asked of it, reaches back before an expansion
MAX_ACTIVITY_CHANGE = 0.5  # log of the largest over the smallest around a window
TRUE_RANGE = 1.6  # mean true range in standard deviations: sqrt(8 / pi) for Brownian motion

LABELS_SCHEMA = pl.Schema(
    {
        "window_id": pl.String(),
        "label": pl.String(),
        "expansion_start": pl.Int64(),
        "expansion_end": pl.Int64(),
        "start_time": pl.Datetime("ns", "UTC"),
    }
)


class Plan(NamedTuple):
    """Planted windows, one value each, in order of time; ``[N]`` all.

    Bars are counted from the market's first; moves are in mean true ranges.
    """

    session: Int64
    window: Int64  # first bar of the window
    start: Int64  # first bar of the expansion
    length: Int64
    direction: Int64  # +1 up, -1 down
    retraced: NDArray[np.bool_]
    move: Float64
    prelude: Int64  # bars of the box, or of the leg
    leg: Float64
    pullback: Int64  # bars
    depth: Float64

    @property
    def stretches(self) -> list[slice]:
        """Bars of each window, with what leads to it and what holds after it."""
        after = WINDOW_LENGTH + HOLD_BARS
        return [slice(bar - REACH_BARS, bar + after) for bar in self.window.tolist()]

    @property
    def last_bar(self) -> Int64:
        """Last bar that decides whether the window is what it claims."""
        last: Int64 = np.maximum(
            self.window + WINDOW_LENGTH - 1, self.start + self.length - 1 + HELD_BARS
        )
        return last

    def take(self, rows: NDArray[Any]) -> Plan:
        """Choose some of the windows."""
        return Plan(*(values[rows] for values in self))


def draw_plan(random: np.random.Generator, num_sessions: int, activity: Float64) -> Plan:
    """Decide what to plant, at most one window a session.

    Parameters
    ----------
    random
        Where the draws come from; a longer market begins with the same ones.
    num_sessions
        Number of sessions, counted from bar 0.
    activity
        float64 ``[S]``, volatility by bar of the session; windows keep clear of its steps.

    Returns
    -------
    Plan
        About 95 windows for 100 sessions, half of each kind and half upwards.
    """
    draws = random.random((num_sessions, 11))
    session = np.flatnonzero(draws[:, 0] < PLANTED_SHARE)
    u = draws[session].T  # [11, N]
    places = _window_places(activity)
    window = session * len(activity) + places[between(0, len(places) - 1, u[1])]
    length = between(MIN_LENGTH, MAX_LENGTH, u[2])
    retraced = u[3] < 0.5
    return Plan(
        session=session,
        window=window,
        start=window + between(EARLIEST_START, LATEST_START, u[4]),
        length=length,
        direction=np.where(u[5] < 0.5, 1, -1),
        retraced=retraced,
        move=6.0 + 0.4 * length + 3.0 * u[6],  # a longer expansion goes further
        prelude=np.where(retraced, between(14, 22, u[7]), between(18, 35, u[7])),
        leg=6.0 + 2.0 * u[8],
        pullback=between(5, 8, u[9]),
        depth=3.6 + 1.2 * u[10],
    )


def between(low: int, high: int, uniform: Float64) -> Int64:
    """Turn uniform numbers in [0, 1) into whole ones from low to high."""
    return low + (uniform * (high - low + 1)).astype(np.int64)


def _window_places(activity: Float64) -> Int64:
    """Bars of a session at which a window may begin: warm, and clear of the opens and closes."""
    last = len(activity) - WINDOW_LENGTH - HOLD_BARS
    places = []
    for place in range(WARM_BARS, last + 1):
        around = activity[place - REACH_BARS : place + WINDOW_LENGTH + HOLD_BARS]
        if np.log(around.max() / around.min()) < MAX_ACTIVITY_CHANGE:
            places.append(place)
    return np.array(places)


def script_of(plan: Plan, bars: slice) -> Float64:
    """Tell the walk, bar by bar, the scale of its noise, a push, a pull to an anchor; ``[T, 3]``.

    Pushes are in standard deviations of a minute. A scale of 0 leaves the bar alone.
    """
    script = np.zeros((bars.stop - bars.start, 3))
    first, last = np.searchsorted(plan.start, (bars.start, bars.stop))
    for row in range(first, last):
        start = plan.start[row] - bars.start
        stop = start + plan.length[row]
        toward = plan.direction[row] * TRUE_RANGE
        if plan.retraced[row]:
            turn = start - plan.pullback[row]
            leg = toward * plan.leg[row] / plan.prelude[row]
            script[turn - plan.prelude[row] : turn] = (0.95, leg, 0.0)
            script[turn:start] = (0.85, -toward * plan.depth[row] / plan.pullback[row], 0.0)
        else:
            script[start - plan.prelude[row] : start] = (0.8, 0.0, 0.3)
        script[start:stop] = (0.95, toward * plan.move[row] / plan.length[row], 0.0)
        script[stop : stop + HOLD_BARS] = (1.0, 0.0, 0.15)
        script[stop, 1] = -0.4 * toward  # a pause marks the end
    return script


def borne_out(bars: Bars, plan: Plan) -> NDArray[np.bool_]:
    """Tell whether finished bars meet the definition of an expansion and of what stands before it.

    The net move is at least 5 units of volatility and half of its path, and a quarter of it holds
    for 10 bars; the 15 bars before are a box of at most 4 units, or else a retracement of at least
    1.5 units within its leg. The unit is the mean of two mean true ranges: of the 20 bars before,
    and of the window.
    """
    offset = np.arange(-REACH_BARS, MAX_LENGTH + HELD_BARS)
    near = np.minimum(plan.start[:, None] + offset, len(bars) - 1)  # [N, 82]
    up = plan.direction[:, None] > 0
    high = np.where(up, bars.high[near], -bars.low[near])
    low = np.where(up, bars.low[near], -bars.high[near])
    close = np.where(up, bars.close[near], -bars.close[near])
    true_range = _true_range(bars, near)
    in_window = _true_range(bars, plan.window[:, None] + np.arange(WINDOW_LENGTH))
    before = (offset >= -20) & (offset < 0)
    unit = (true_range[:, before].mean(axis=1) + in_window.mean(axis=1)) / 2.0

    length = plan.length[:, None]
    base = close[:, REACH_BARS - 1]
    gain = close - base[:, None]
    move = gain[np.arange(len(gain)), REACH_BARS + plan.length - 1]
    path = np.sum(true_range, axis=1, where=(offset >= 0) & (offset < length))
    after = (offset >= length) & (offset < length + HELD_BARS)
    holds = np.min(gain, axis=1, where=after, initial=np.inf) >= 0.25 * move
    expands = (move >= 5.0 * unit) & (move >= 0.5 * path) & holds

    prelude = slice(REACH_BARS - 15, REACH_BARS)
    top = high[:, prelude].max(axis=1)
    box = top - low[:, prelude].min(axis=1)
    peak = -1 - np.argmax(high[:, prelude][:, ::-1], axis=1)[:, None]  # the last of equals
    leg = top - np.min(low, axis=1, where=(offset > peak - 40) & (offset <= peak), initial=np.inf)
    depth = top - base
    # Not so close to 4 units that rounding would decide.
    wide = box > 4.0 * unit * (1.0 + 1e-9)
    retraces = wide & (depth >= 1.5 * unit) & (depth <= leg)
    found: NDArray[np.bool_] = expands & np.where(plan.retraced, retraces, box <= 4.0 * unit)
    return found


def _true_range(bars: Bars, index: Int64) -> Float64:
    last = bars.close[index - 1]
    return np.maximum(bars.high[index], last) - np.minimum(bars.low[index], last)


def labels_of(plan: Plan, time: Int64, seed: int) -> pl.DataFrame:
    """Write windows down as labels; ``time`` is the market's."""
    return pl.DataFrame(
        {
            "window_id": [f"seed{seed}-session{session:06d}" for session in plan.session],
            "label": np.where(plan.retraced, "retracement", "consolidation").tolist(),
            "expansion_start": plan.start - plan.window,
            "expansion_end": plan.start - plan.window + plan.length - 1,
            "start_time": time[plan.window],
        },
        schema=LABELS_SCHEMA,
    )
