"""Several threads on one series: what they gain, and how often a guess is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

import moola_features as mf
from benchmarks.comparison import Contender, compare
from moola_features.engine import STRETCH_BARS, compute_at_once

WORKERS = 2


def test_two_threads(benchmark: Any, bars: mf.Bars) -> None:
    config = mf.FeatureConfig()
    values = np.zeros((len(bars), len(config.names)), np.float32)
    valid = np.zeros(len(bars), np.bool_)
    size = min(STRETCH_BARS, len(bars) // 4)
    tried = compute_at_once(bars, config, values, valid, workers=WORKERS, size=size)
    guessed, redone = (sum(getattr(x, name) for x in tried) for name in ("guessed", "redone"))
    told = f"{len(tried)} stretches, {guessed} begun from a guess, {redone} computed again"
    ours = Contender(
        name=f"11 columns, rule atr, {WORKERS} threads ({told})",
        run=lambda: compute_at_once(bars, config, values, valid, workers=WORKERS, size=size),
        amount=len(bars),
    )
    one = Contender(
        name="the same with one thread",
        run=lambda: compute_at_once(bars, config, values, valid, workers=1, size=size),
        amount=len(bars),
        is_rival=False,
    )
    compare(benchmark, ours, one, unit="bars/s", rounds=9)
    expected = mf.compute(bars, config)
    np.testing.assert_array_equal(values.view(np.uint32), expected.values.view(np.uint32))
    np.testing.assert_array_equal(valid, expected.valid)


def test_two_threads_into_fresh_pages(benchmark: Any, bars: mf.Bars) -> None:
    ours = Contender(
        name=f"11 columns, rule atr, {WORKERS} threads, into fresh pages",
        run=lambda: mf.compute(bars, workers=WORKERS), amount=len(bars),
    )  # fmt: skip
    one = Contender(
        name="the same with one thread", run=lambda: mf.compute(bars), amount=len(bars),
        is_rival=False,
    )  # fmt: skip
    found, expected = compare(benchmark, ours, one, unit="bars/s", rounds=9, fresh_pages=True)
    np.testing.assert_array_equal(found.values.view(np.uint32), expected.values.view(np.uint32))
