"""One walk through a synthetic market: volatility that clusters, and moves that a script plants.

The random numbers come in ready-made, so the walk itself is deterministic. Between two prices a bar
is a Brownian bridge, and its extremes are drawn from their law rather than from a path.
"""

from __future__ import annotations

import math

from moola_features.kernels.compiled import f8, i8, inlined, kernel, matrix, vector

PRICE, CLUSTER, UNIT, ANCHOR = range(4)  # carried state
SCALE, PUSH, PULL = range(3)  # columns of a script

CLUSTER_PERSISTENCE = 0.994  # half-life of a volatility cluster: 115 bars
CLUSTER_SPREAD = 0.35  # standard deviation of its logarithm
BAR_SPREAD = 0.35  # the same of what is each bar's own: the fat tails
HOMING = 2e-6  # share of the way back home per bar: half-life 347,000 bars, about a year
SHIFTED_OPEN = 0.12  # share of bars that open a tick above the last close, and as many below


@kernel(
    matrix(f8), matrix(f8), matrix(f8), vector(f8), vector(f8), vector(f8), matrix(f8),
    i8, f8, f8, vector(f8, writable=True), vector(f8, writable=True), vector(f8, writable=True),
    vector(f8, writable=True), vector(f8, writable=True),
)  # fmt: skip
def walk(
    normals, exponentials, uniforms, volatility, stillness, shocks, script,
    session_bars, tick, home, state, open_, high, low, close,
):  # fmt: skip
    """Fill whole sessions of bars; normals and exponentials are [T, 4], uniforms [T, 2]."""
    price = state[PRICE]
    cluster = state[CLUSTER]
    unit = state[UNIT]
    anchor = state[ANCHOR]
    innovation = CLUSTER_SPREAD * math.sqrt(1.0 - CLUSTER_PERSISTENCE**2)
    for t in range(close.shape[0]):
        scale = script[t, SCALE]
        push = script[t, PUSH]
        pull = script[t, PULL]
        if scale == 0.0:
            # No script: volatility moves on. Under a script it stands, so that what the script
            # plants keeps its size in units of volatility.
            cluster = CLUSTER_PERSISTENCE * cluster + innovation * normals[t, 0]
            unit = price * volatility[t] * math.exp(cluster)
            scale = 1.0
        if pull == 0.0:
            anchor = 0.0
        elif anchor == 0.0:
            anchor = price

        opening = t % session_bars == 0
        if uniforms[t, 0] < stillness[t] and push == 0.0 and not opening:
            printed = on_grid(price, tick)
            open_[t] = printed
            high[t] = printed
            low[t] = printed
            close[t] = printed
            continue

        # E[exp(2 b z)] = exp(2 b b): the bar's own factor has a mean square of 1.
        deviation = unit * scale * math.exp(BAR_SPREAD * (normals[t, 1] - BAR_SPREAD))
        start = price
        jump = shocks[t] * unit
        if opening:  # the break's gap
            price = max(price + jump, 0.5 * price)
            start = price
            jump = 0.0
        elif uniforms[t, 1] < SHIFTED_OPEN:
            start += tick
        elif uniforms[t, 1] > 1.0 - SHIFTED_OPEN:
            start -= tick
        stop = price + deviation * normals[t, 2] + jump + push * unit + HOMING * (home - price)
        if anchor > 0.0:
            stop += pull * (anchor - price)
        stop = max(stop, 0.5 * price)  # whatever the numbers drawn, prices stay above 0

        # The bar's middle first, then the extremes of both halves: each extreme has its exact law,
        # and a bar with a high high tends to have a high low, as on a path.
        variance = 0.5 * deviation * deviation
        middle = 0.5 * (start + stop) + math.sqrt(0.5 * variance) * normals[t, 3]
        top = max(
            bridge_maximum(start, middle, variance, exponentials[t, 0]),
            bridge_maximum(middle, stop, variance, exponentials[t, 1]),
        )
        bottom = -max(
            bridge_maximum(-start, -middle, variance, exponentials[t, 2]),
            bridge_maximum(-middle, -stop, variance, exponentials[t, 3]),
        )
        open_[t] = on_grid(start, tick)
        high[t] = on_grid(max(top, start, stop), tick)
        low[t] = on_grid(min(bottom, start, stop), tick)
        close[t] = on_grid(stop, tick)
        price = stop
    state[PRICE] = price
    state[CLUSTER] = cluster
    state[UNIT] = unit
    state[ANCHOR] = anchor


@inlined
def bridge_maximum(start, stop, variance, exponential):
    """Highest point of a Brownian bridge: P(> h) = exp(-2 (h - start) (h - stop) / variance)."""
    return 0.5 * (start + stop + math.sqrt((stop - start) ** 2 + 2.0 * variance * exponential))


@inlined
def on_grid(price, tick):
    """Nearest multiple of the tick, at least one; it keeps the order of prices."""
    return max(math.floor(price / tick + 0.5), 1.0) * tick
