"""This engine beside what others offer for the same job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import moola_features as mf
from benchmarks import alternatives
from benchmarks.comparison import Contender, compare
from benchmarks.processes import ROOT, run_python


def test_alternatives(benchmark: Any, bars: mf.Bars, bar_file: Path) -> None:
    rivals = [alternatives.OURS, *alternatives.OTHERS]
    given = {rival.name: alternatives.head(bars, rival) for rival in rivals}
    contenders = [
        Contender(
            name=rival.name, amount=len(given[rival.name]),
            run=lambda rival=rival: rival.run(given[rival.name]),
        )
        for rival in rivals
    ]  # fmt: skip
    results = compare(benchmark, *contenders, unit="bars/s", rounds=9, fresh_pages=True)
    rows = benchmark.extra_info["rows"]
    benchmark.extra_info["alternatives"] = [
        {
            "name": rival.name, "computes": rival.computes, "lacks": rival.lacks,
            "rate": rows[0]["ours"] if row is None else row["theirs"],
            "ratio": 1.0 if row is None else row["ratio"],
            "bytes_per_bar": peak_bytes(rival.name, bar_file) / len(given[rival.name]),
        }
        for rival, row in zip(rivals, [None, *rows], strict=True)
    ]  # fmt: skip
    by_name = dict(zip(given, results, strict=True))
    check_true_ranges(bars, by_name["TA-Lib, ATR"])


def peak_bytes(name: str, bar_file: Path) -> int:
    """Peak memory of one of them, in a process of its own."""
    return int(run_python([ROOT / "benchmarks" / "alternatives.py", name, bar_file]))


def check_true_ranges(bars: mf.Bars, atr: np.ndarray) -> None:
    """TA-Lib read the bars that we read: its first average is the plain mean of true ranges."""
    before = bars.close[:-1]
    true_range = np.maximum(bars.high[1:], before) - np.minimum(bars.low[1:], before)
    period = alternatives.ATR_PERIOD
    np.testing.assert_allclose(atr[period], true_range[:period].mean(), rtol=1e-12)


def test_peak_growth_sees_what_is_held_for_a_while() -> None:
    script = "import numpy as np; from benchmarks.alternatives import peak_growth; "
    grown = run_python(["-c", script + "print(peak_growth(lambda: np.ones(8_000_000).sum()))"])
    assert 60e6 < int(grown) < 90e6  # in its own process: others may have freed memory at hand
