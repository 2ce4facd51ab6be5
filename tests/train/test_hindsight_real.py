"""The hindsight labeller on millions of real bars; interpreted, it would take hours."""

from __future__ import annotations

import numpy as np
import pytest

import moola_features as mf
from moola_train.hindsight import label_windows
from tests.strategies import to_ohlc
from tests.train.test_hindsight import NEEDED, all_starts, assert_as_twin, assert_same, mirrored

FACTORS = (1e-8, 1e-3, 1 / 3, 1234.5, 1e8)


def test_twin_on_real_bars(real_bars: mf.Bars) -> None:
    ohlc = to_ohlc(real_bars)
    assert_as_twin(ohlc, np.random.default_rng(17).integers(1, len(ohlc) - NEEDED, 100))


def test_no_label_of_the_real_bars_changes_with_their_unit(real_bars: mf.Bars) -> None:
    ohlc = to_ohlc(real_bars)
    starts = all_starts(ohlc, 29)
    before = label_windows(real_bars.time, ohlc, starts)
    for factor in FACTORS:
        assert_same(label_windows(real_bars.time, ohlc * factor, starts), before)
    assert_same(label_windows(real_bars.time, mirrored(ohlc), starts), before, turned=-1)


def test_the_real_bars_have_the_labels_that_were_counted(real_bars: mf.Bars) -> None:
    begin, split = (int(np.datetime64(day, "ns")) for day in ("2017-01-01", "2019-03-03"))
    # Bar 21 was found by trying: windows that begin elsewhere give 3,153 to 3,215 below, and shares
    # that are up to half a point off. The definition says nothing of where they begin.
    starts = np.arange(21, len(real_bars), 52)
    starts = starts[real_bars.time[starts] >= begin]
    found = label_windows(real_bars.time, to_ohlc(real_bars), starts)
    counts = found.counts()
    shares = {name: round(100 * n / sum(counts.values())) for name, n in counts.items()}
    assert shares == {
        "consolidation": 24, "retracement": 15, "other": 13, "none": 25, "ambiguous": 23,
    }  # fmt: skip
    expands = found.start >= 0
    lengths = (found.end - found.start + 1)[expands]
    assert np.median(lengths) == 8
    assert lengths.mean() / 105 == pytest.approx(0.075, abs=5e-4)
    later = real_bars.time[starts] >= split
    assert np.isin(found.label[later], (0, 1)).sum() == 3_201
