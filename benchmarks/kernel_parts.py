"""Where the kernel's time goes, part by part: `python benchmarks/kernel_parts.py`.

Each part is called over all bars in blocks, as the kernel calls it, on what the parts before it
made; so the parts read from the memory what the kernel keeps in the first-level cache, and add up
to more than the whole. Writes the table into docs/kernel.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees its own folder only

import numba  # noqa: E402
import numpy as np  # noqa: E402

import moola_features as mf  # noqa: E402
from benchmarks.report import replace_block  # noqa: E402
from moola_features.feature_pass import FeaturePass, history_depth  # noqa: E402
from moola_features.kernels import recurrences, relativity, volatility  # noqa: E402
from moola_features.kernels.compiled import OPTIONS  # noqa: E402
from moola_features.kernels.layout import BLOCK, restart, transpose  # noqa: E402

DOCUMENT = ROOT / "docs" / "kernel.md"
REAL = ROOT.parent / "shared" / "data" / "btcusd_1m.parquet"
TURNS = 9
NEVER = 1e6  # a threshold in ATR that no move reaches


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a driver with the kernels' own options."""
    driver: Callable[..., None] = numba.njit(**OPTIONS)(function)
    return driver


@compiled
def true_ranges(high: Any, low: Any, close: Any, depth: Any, work: Any, out: Any) -> None:
    """Copy each block behind its history, and take its true ranges."""
    volatility.start_history(work, depth, high[0], low[0], close[0])
    for begin in range(0, close.shape[0], BLOCK):
        end = min(begin + BLOCK, close.shape[0])
        piece = slice(begin, end)
        volatility.take_block(work, depth, high[piece], low[piece], close[piece], begin == 0)
        out[piece] = work[volatility.TRUE_RANGE, depth : depth + end - begin]
        volatility.keep_history(work, depth, end - begin)


@compiled
def averages(ranges: Any, period: Any, out: Any) -> None:
    """Sum the last true ranges afresh at every bar; the first block has no history."""
    for begin in range(BLOCK, out.shape[0], BLOCK):
        end = min(begin + BLOCK, out.shape[0])
        piece = ranges[begin - period : end]
        volatility.average(piece, period, period, begin, out[begin:end])


@compiled
def zigzag(p: Any, s: Any, high: Any, low: Any, close: Any, atr: Any, rows: Any) -> None:
    """Carry the mean range and the zigzag over all bars."""
    restart(s[0])
    for begin in range(0, close.shape[0], BLOCK):
        piece = slice(begin, min(begin + BLOCK, close.shape[0]))
        size = piece.stop - begin
        recurrences.advance(
            p[0], s[0], high[piece], low[piece], close[piece], atr[piece], rows[:, :size]
        )
        s[0].index += size


@compiled
def candles(p: Any, s: Any, open_: Any, high: Any, low: Any, close: Any, rows: Any) -> None:
    """Six candle columns and the proxy, of one block's swings again and again."""
    columns = np.empty((relativity.NUM_COLUMNS, BLOCK), np.float32)
    for begin in range(0, close.shape[0] - BLOCK, BLOCK):
        piece = slice(begin, begin + BLOCK)
        top, bottom = high[piece], low[piece]
        for t in range(BLOCK):
            rows[relativity.RANGES, t] = top[t] - bottom[t]
        relativity.fill_candles(p[0], open_[piece], top, bottom, close[piece], rows, columns)


@compiled
def swing_columns(p: Any, close: Any, atr: Any, rows: Any) -> None:
    """Distances to the last swings, and bars since, of one block's swings again and again."""
    columns = np.empty((relativity.NUM_COLUMNS, BLOCK), np.float32)
    high_index, low_index = rows[recurrences.HIGH_INDEX], rows[recurrences.LOW_INDEX]
    for begin in range(0, close.shape[0] - BLOCK, BLOCK):
        c, a = close[begin : begin + BLOCK], atr[begin : begin + BLOCK]
        relativity.fill_distance(
            p[0].distance_clip, 1.0, rows[recurrences.SWING_HIGH], high_index, c, a, columns[6]
        )
        relativity.fill_distance(
            p[0].distance_clip, -1.0, rows[recurrences.SWING_LOW], low_index, c, a, columns[7]
        )
        relativity.fill_since(p[0].window_length, float(begin), high_index, columns[8])
        relativity.fill_since(p[0].window_length, float(begin), low_index, columns[9])


@compiled
def turned(columns: Any, out: Any) -> None:
    """Turn one block's columns into the rows of every block."""
    for begin in range(0, out.shape[0] - BLOCK, BLOCK):
        transpose(columns, out[begin : begin + BLOCK])


def nanoseconds(run: Callable[[], object], num_bars: int) -> float:
    """Nanoseconds a bar, the median over some turns."""
    run()
    taken = []
    for _ in range(TURNS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)) / num_bars * 1e9


def measure(bars: mf.Bars) -> dict[str, float]:
    """Nanoseconds a bar of each part, and of the whole."""
    config, size = mf.FeatureConfig(), len(bars)
    whole, never = FeaturePass(config), FeaturePass(mf.FeatureConfig(k=NEVER)).parameters
    p, s = whole.parameters, whole.carried.copy()
    high, low, close = bars.high, bars.low, bars.close
    depth = history_depth(config)
    ranges, atr = np.empty(size), np.zeros(size)
    work, whole_rows = (
        np.empty((4, depth + BLOCK)),
        np.zeros((relativity.SWINGS + recurrences.NUM_ROWS, BLOCK)),
    )
    rows = whole_rows[relativity.SWINGS :]
    columns = np.zeros((relativity.NUM_COLUMNS, BLOCK), np.float32)
    out = np.zeros((size, relativity.NUM_COLUMNS), np.float32)
    valid = np.zeros(size, np.bool_)
    period, starts = config.atr_period, np.zeros(1, np.int64)
    prices = bars.open, high, low, close
    parts: dict[str, Callable[[], object]] = {
        "true ranges": lambda: true_ranges(high, low, close, depth, work, ranges),
        f"ATR: {period} sums a bar": lambda: averages(ranges, period, atr),
        "mean range and zigzag": lambda: zigzag(p, s, high, low, close, atr, rows),
        "the same where no leg ever turns": lambda: zigzag(never, s, high, low, close, atr, rows),
        "six candle columns and the proxy": lambda: candles(
            p, s, bars.open, high, low, close, whole_rows
        ),
        "four swing columns": lambda: swing_columns(p, close, atr, rows),
        "transpose into rows": lambda: turned(columns, out),
        "**the whole kernel**, into a warm buffer": lambda: whole.run(*prices, starts, out, valid),
        "**the whole kernel**, into fresh pages": lambda: whole.run(
            *prices, starts, np.empty_like(out), np.empty_like(valid)
        ),
    }
    return {name: nanoseconds(run, size) for name, run in parts.items()}


def main() -> int:
    """Measure, and write the table."""
    bars = mf.read_bars(REAL) if REAL.exists() else mf.synthesise(2_000_000).bars
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((x.split(": ")[1] for x in names if x.startswith("model name")), "unknown")
    what = "real bars" if REAL.exists() else "synthetic bars"
    lines = [
        f"{len(bars):,} {what}, one thread, median of {TURNS} turns, {cpu}.", "",
        "| part | ns a bar |", "| --- | --: |",
    ]  # fmt: skip
    lines += [f"| {name} | {taken:.1f} |" for name, taken in measure(bars).items()]
    replace_block(DOCUMENT, "\n".join(lines))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
