"""What others offer for the same job: how fast, with how much memory, and what they cannot compute.

Run as a script it measures the peak memory of one of them: ``python benchmarks/alternatives.py
NAME BARS`` prints by how many bytes the process grew, at its largest, while it computed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script sees its own folder

import numpy as np
import polars as pl
import talib
from numpy.typing import NDArray

import moola_features as mf
from benchmarks import feature_peers as peers
from moola_features.engine import resolve_workers

ATR_PERIOD, MEAN_PERIOD = 10, 20
CANDLE_PATTERNS = (
    talib.CDLDOJI, talib.CDLENGULFING, talib.CDLHAMMER, talib.CDLMARUBOZU, talib.CDLSPINNINGTOP,
)  # fmt: skip
LOOP_BARS = 20_000


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A way to compute something of bars.

    Attributes
    ----------
    name, computes, lacks
        What it is, what of ours it computes, and what it has no means to compute.
    run
        From bars to whatever it returns.
    max_bars
        How many bars it is given, where all of them would take too long.
    """

    name: str
    computes: str
    lacks: str
    run: Callable[[mf.Bars], Any]
    max_bars: int | None = None


def talib_atr(bars: mf.Bars) -> NDArray[np.float64]:
    """Wilder's average true range, float64 [T]."""
    return np.asarray(talib.ATR(bars.high, bars.low, bars.close, timeperiod=ATR_PERIOD))


def talib_mean(bars: mf.Bars) -> NDArray[np.float64]:
    """Exponential mean of the bars' ranges, float64 [T]."""
    return np.asarray(talib.EMA(bars.high - bars.low, timeperiod=MEAN_PERIOD))


def talib_candles(bars: mf.Bars) -> list[NDArray[np.int32]]:
    """Five candle patterns, int32 [T] each."""
    prices = bars.open, bars.high, bars.low, bars.close
    return [np.asarray(pattern(*prices)) for pattern in CANDLE_PATTERNS]


_NO_SWINGS = "swings: each turn depends on the one before it"

OURS = Alternative(
    name="moola, one thread", computes="11 columns, validity, segments", lacks="", run=mf.compute
)
OTHERS = (
    Alternative(
        name=f"moola, {resolve_workers(None)} threads", computes="the same, bit for bit", lacks="",
        run=lambda bars: mf.compute(bars, workers=None),
    ),
    Alternative(
        name="a plain loop by itertuples", computes="11 columns", lacks="nothing but speed",
        run=peers.loop_by_tuples, max_bars=LOOP_BARS,
    ),
    Alternative(
        name=f"Polars, {pl.thread_pool_size()} threads", computes="the six candle columns",
        lacks=f"{_NO_SWINGS}, and so the proxy",
        run=lambda bars: peers.polars_candles(peers.frame_of(bars)),
    ),
    Alternative(
        name="NumPy", computes="the six candle columns",
        lacks=f"{_NO_SWINGS}, and so the proxy", run=peers.numpy_candles,
    ),
    Alternative(
        name="TA-Lib, ATR", computes="Wilder's ATR: another mean, an input of ours",
        lacks="a scale-free column", run=talib_atr,
    ),
    Alternative(
        name="TA-Lib, EMA", computes="the mean range, an input of ours",
        lacks="a scale-free column", run=talib_mean,
    ),
    Alternative(
        name="TA-Lib, five candle patterns", computes="yes or no by shape",
        lacks="shares of a bar, swings, the proxy", run=talib_candles,
    ),
)  # fmt: skip
ALTERNATIVES = {alternative.name: alternative for alternative in (OURS, *OTHERS)}


def head(bars: mf.Bars, alternative: Alternative) -> mf.Bars:
    """As many of the bars as it is given."""
    return bars if alternative.max_bars is None else bars[: alternative.max_bars]


def peak_growth(run: Callable[[], Any]) -> int:
    """Bytes by which this process grows, at its largest, while something runs."""
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
    run()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    """Print how many bytes the process grew while one of them computed."""
    alternative = ALTERNATIVES[sys.argv[1]]
    bars = head(mf.read_bars(sys.argv[2]), alternative)
    alternative.run(bars[:1_000])  # what is compiled or loaded once is not its own
    print(peak_growth(lambda: alternative.run(bars)))


if __name__ == "__main__":
    main()
