"""The hindsight labeller: its twin, its laws, and cases that can be checked by eye."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf
from moola_train.errors import ConfigError, LabelsError
from moola_train.hindsight import (
    LABELS,
    SKIPPED,
    Hindsight,
    HindsightSettings,
    label_windows,
    window_names,
)
from tests.reference import hindsight as reference
from tests.strategies import MINUTE_NS, TickBars, factors, hostile, tick_bars, to_ohlc

pytestmark = pytest.mark.kernels

Ohlc = NDArray[np.float64]

NEEDED = 116  # bars that a label looks at
NEVER = HindsightSettings(max_gap_minutes=1e7, max_span_minutes=1e7)


def times(count: int) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * MINUTE_NS


def label(ohlc: Ohlc, starts: Any) -> Hindsight:
    return label_windows(times(len(ohlc)), ohlc, starts, NEVER)


def one(ohlc: Ohlc, start: int = 1) -> tuple[str, int, int, int]:
    found = label(ohlc, [start])
    return LABELS[found.label[0]], *(
        int(values[0]) for values in (found.start, found.end, found.direction)
    )


def mirrored(ohlc: Ohlc) -> Ohlc:
    return -ohlc[:, [0, 2, 1, 3]]


def assert_same(actual: Hindsight, expected: Hindsight, *, turned: int = 1) -> None:
    for name in ("label", "skipped", "start", "end"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)
    np.testing.assert_array_equal(actual.direction, turned * expected.direction)


@st.composite
def markets(draw: st.DrawFn) -> TickBars:
    """Series with room for a window and what it looks at."""
    return draw(tick_bars().filter(lambda bars: len(bars) >= NEEDED))


def all_starts(ohlc: Ohlc, step: int = 1) -> NDArray[np.int64]:
    return np.arange(1, len(ohlc) - NEEDED + 2, step, dtype=np.int64)


def planted(count: int, *, seed: int = 17) -> list[Ohlc]:
    """Windows on a tick grid in which something expands after a climb, a rest or both."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        steps = rng.integers(-1, 2, NEEDED) * rng.integers(0, 2)
        first, (length, other) = rng.integers(20, 96), rng.integers(3, 13, 2)
        height, rival = rng.integers(2, 9, 2) * (1, rng.choice((-1, 1)))
        where = rng.choice((length, -other)) + rng.integers(-1, 2)
        for gap, size, reach in (
            (0, height, length),  # the expansion
            (-rng.integers(1, 16), -rng.integers(0, 5), 4),  # what was given back before it
            (-rng.integers(4, 40), rng.integers(0, 5), 5),  # the climb that led there
            (where, rival, other),  # a rival beside it
        ):
            begin = max(first + gap + 1, 0)
            steps[begin : begin + reach] += size
        close = 3_000 + np.cumsum(steps) * rng.choice((-1, 1))
        before = np.concatenate([close[:1], close[:-1]])
        high = np.maximum(before, close) + rng.integers(0, 2, NEEDED)
        low = np.minimum(before, close) - rng.integers(0, 2, NEEDED)
        low[0] -= 50  # of the bar before the window the close alone counts
        found.append(np.stack([before, high, low, close], axis=1) * 0.01)
    return found


# --- its twin --------------------------------------------------------------------------------


def assert_as_twin(ohlc: Ohlc, starts: NDArray[np.int64]) -> None:
    found = label(ohlc, starts)
    for row, begin in enumerate(starts.tolist()):
        expected = reference.label_window(ohlc, begin)
        actual = (
            LABELS[found.label[row]], found.start[row], found.end[row], found.direction[row],
            found.score[row],
        )  # fmt: skip
        assert actual == tuple(expected), begin


@given(markets())
def test_twin(bars: TickBars) -> None:
    ohlc = bars.ohlc()
    assert_as_twin(ohlc, all_starts(ohlc, 97))


def test_twin_where_something_expands() -> None:
    labels = []
    for ohlc in planted(700):
        assert_as_twin(ohlc, np.array([1]))
        labels.append(int(label(ohlc, [1]).label[0]))
    assert np.bincount(labels).min() > 20  # every label occurs


@pytest.mark.parametrize("name", sorted(name for name, bars in hostile().items() if len(bars) > 2))
def test_twin_on_hostile_bars(name: str) -> None:
    ohlc = hostile()[name].ohlc()
    assert_as_twin(ohlc, all_starts(ohlc, 6))


def test_twin_on_the_sample(sample_bars: mf.Bars) -> None:
    ohlc = to_ohlc(sample_bars)
    starts = all_starts(ohlc, 167)
    assert_as_twin(ohlc, starts)
    assert min(label(ohlc, starts).counts().values()) > 2  # every label occurs


# --- its laws --------------------------------------------------------------------------------


@given(markets(), factors())
def test_the_unit_of_prices_changes_no_label(bars: TickBars, factor: float) -> None:
    plain, scaled = bars.ohlc(), bars.ohlc(factor=factor)
    starts = all_starts(plain, 5)
    before, after = label(plain, starts), label(scaled, starts)
    assert_same(after, before)
    np.testing.assert_allclose(after.score, before.score, rtol=1e-6)


@given(markets())
def test_direction_changes_its_own_sign_only(bars: TickBars) -> None:
    ohlc = bars.ohlc()
    starts = all_starts(ohlc, 5)
    before, after = label(ohlc, starts), label(mirrored(ohlc), starts)
    assert_same(after, before, turned=-1)
    np.testing.assert_array_equal(after.score, before.score)


def test_bars_around_change_nothing() -> None:
    for ohlc in planted(300, seed=13):
        poisoned = np.full((NEEDED + 2, 4), np.nan)
        poisoned[1:-1, 1:] = ohlc[:, 1:]  # the bars before and behind, and every open
        poisoned[-11:-1, 1:3] = np.nan  # highs and lows behind the window
        poisoned[1, 1:3] = np.nan  # of the bar before it the close alone counts
        found = label(poisoned, [2])
        assert_same(found, label(ohlc, [1]))
        assert np.isfinite(found.score).all()


def test_bars_around_do_change_their_own_windows() -> None:
    ohlc = steps([0] * 60, [1] * 6, [0] * 60)
    assert one(ohlc)[0] == "consolidation"
    for bar in (0, 75):  # the close before the window, and the last one that must hold
        changed = ohlc.copy()
        changed[bar] -= 100
        assert one(changed)[0] == "none"


# --- cases made by hand ----------------------------------------------------------------------

RANGE = 0.5  # half a bar's range, in the moves of a step
Change = Callable[[Ohlc], None]


def steps(*pieces: list[float]) -> Ohlc:
    """Bars behind a flat one at 1,000 whose closes move by these steps."""
    close = 1_000 + np.concatenate([[0.0], *pieces]).cumsum()
    return np.stack([close, close + RANGE, close - RANGE, close], axis=1)


CALM = [0.0] * 59
UP = [6.0] * 6
RISE, FALL = [1.0] * 12, [-1.0] * 4


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # Flat, then 36 points in six bars: from the bar after the flat ones on.
        ((CALM, UP, CALM), ("consolidation", 59, 64, 1)),
        ((CALM, [-6.0] * 6, CALM), ("consolidation", 59, 64, -1)),
        # A climb of 12, a third of it given back, then the expansion.
        (([0.0] * 43, [4.0] * 4, [-2.0] * 4, UP, CALM), ("retracement", 51, 56, 1)),
        (([0.0] * 43, [-4.0] * 4, [2.0] * 4, [-6.0] * 6, CALM), ("retracement", 51, 56, -1)),
        # More is given back than the climb had brought.
        (([0.0] * 43, [1.0] * 4, [-4.0] * 4, UP, CALM), ("other", 51, 56, 1)),
        # Nothing is given back: the expansion goes on where a climb before it had paused.
        (([0.0] * 41, [4.0] * 4, [0.0] * 6, UP, CALM), ("other", 51, 56, 1)),
        # Nothing moves; everything moves a little; what had moved comes back at once.
        (([0.0] * 124,), ("none", -1, -1, 0)),
        (([1.0, -1.0] * 62,), ("none", -1, -1, 0)),
        ((CALM, UP, [-6.0] * 5, CALM), ("none", -1, -1, 0)),
        # The same once more, twenty bars later.
        ((CALM[:40], UP, [0.0] * 20, UP, CALM), ("ambiguous", -1, -1, 0)),
        # Once more, but not as far: 36 and 24 points.
        ((CALM[:40], UP, [0.0] * 20, [4.0] * 6, CALM), ("consolidation", 40, 45, 1)),
        # A rival may be the bars right behind the span, or the three right before it.
        (([0.0] * 40, [8.0] * 12, [13.0] * 12, CALM), ("ambiguous", -1, -1, 0)),
        (([0.0] * 40, [8.0] * 12, [12.5] * 12, CALM), ("consolidation", 40, 51, 1)),
        (([0.0] * 47, [-11.9] * 3, [6.0] * 12, CALM), ("ambiguous", -1, -1, 0)),
        (([0.0] * 47, [-11.5] * 3, [6.0] * 12, CALM), ("other", 50, 61, 1)),
        # The leg is that of 40 bars: the low from which it rose is the first of them, or too old.
        (([0.0] * 17, [10.0], [0.0] * 38, [-3.0] * 2, [6.0] * 10), ("retracement", 58, 67, 1)),
        (([0.0] * 16, [10.0], [0.0] * 39, [-3.0] * 2, [6.0] * 10), ("other", 58, 67, 1)),
        # What moves before position 20 is no candidate, and a span has twelve bars at most.
        (([9.0] * 3, [0.0] * 57, UP, CALM), ("consolidation", 60, 65, 1)),
        (([0.0] * 50, [3.0] * 20, CALM), ("consolidation", 50, 61, 1)),
    ],
)  # fmt: skip
def test_cases_that_can_be_checked_by_eye(
    pieces: tuple[list[float], ...], expected: tuple[str, int, int, int]
) -> None:
    ohlc = steps(*pieces, [0.0] * NEEDED)
    assert one(ohlc) == expected
    assert tuple(reference.label_window(ohlc, 1))[:4] == expected


@pytest.mark.parametrize("factor", [1.0, 0.1, 1 / 3, 1e-8, 7e7])
@pytest.mark.parametrize(("first", "span"), [(59, (53, 64)), (22, (20, 27)), (99, (93, 104))])
def test_of_equals_the_earliest_counts_in_any_unit(
    factor: float, first: int, span: tuple[int, int]
) -> None:
    ohlc = steps([0.0] * first, UP, CALM, CALM)
    ohlc[:, 1:3] = ohlc[:, 3:]  # bars without a range add nothing to what is travelled
    assert one(ohlc * factor)[1:] == (*span, 1)
    assert reference.label_window(ohlc * factor, 1)[1:3] == span


def test_a_window_without_any_range_has_no_score() -> None:
    flat = np.full((NEEDED, 4), 7.0)
    found = label(flat, [1])
    assert (LABELS[found.label[0]], found.score[0], found.skipped[0]) == ("none", 0.0, 0)


# --- what is skipped -------------------------------------------------------------------------


def skipped(time: NDArray[np.int64], start: int = 1, **settings: float) -> str:
    ohlc = steps(CALM, UP, [0.0] * (len(time) - 66))
    found = label_windows(time, ohlc, [start], HindsightSettings(**settings))
    cause = SKIPPED[found.skipped[0]]
    assert (found.label[0] == -1) == bool(cause) == np.isnan(found.score[0])
    return cause


@pytest.mark.parametrize(
    ("bar", "minutes", "cause"),
    [(50, 10, ""), (50, 11, "gap"), (1, 11, ""), (2, 11, "gap"), (105, 11, "gap"), (106, 11, "")],
)
def test_a_gap_inside_is_skipped(bar: int, minutes: int, cause: str) -> None:
    time = times(NEEDED)
    time[bar:] += (minutes - 1) * MINUTE_NS
    assert skipped(time) == cause
    assert skipped(time, max_gap_minutes=minutes) == ""
    assert skipped(time, max_gap_minutes=minutes - 0.5) == ("gap" if 2 <= bar <= 105 else "")


def test_a_window_that_spans_too_long_is_skipped() -> None:
    time = times(NEEDED)
    time[1:106] += np.arange(105) * MINUTE_NS * 76 // 104
    time[106:] += 100 * MINUTE_NS
    assert skipped(time) == ""  # 180 minutes
    time[105] += 1
    assert skipped(time) == "span"
    assert skipped(time, max_span_minutes=181) == ""


def test_a_gap_of_centuries_is_one() -> None:
    time = times(NEEDED)
    time[:50] -= 2**62 + 2**61
    time[50:] += 2**62 + 2**61  # the difference is more than int64 holds
    assert skipped(time) == "gap"


@pytest.mark.parametrize(("start", "cause"), [(0, "edge"), (1, ""), (2, "edge"), (60, "edge")])
def test_windows_need_the_bar_before_and_ten_behind(start: int, cause: str) -> None:
    assert skipped(times(NEEDED), start) == cause


# --- what is refused, and what it is made of --------------------------------------------------


@pytest.mark.parametrize(
    ("time", "ohlc", "starts", "words"),
    [
        (times(5), np.ones((4, 4)), [0], r"time is \[5\] and ohlc \[4, 4\]; give \[T\] and"),
        (times(5), np.ones((5, 3)), [0], r"ohlc \[5, 3\]"),
        (times(5), np.ones((5, 4)), [[0]], r"starts are \[1, 1\]; give one dimension"),
        (times(5), np.ones((5, 4)), [0, 5], r"starts\[1\] is 5, and there are 5 bars; .* 0 to 4"),
        (times(5), np.ones((5, 4)), [-1], r"starts\[0\] is -1"),
    ],
)
def test_arrays_are_checked(time: Any, ohlc: Any, starts: Any, words: str) -> None:
    with pytest.raises(LabelsError, match=words):
        label_windows(time, ohlc, starts)


@pytest.mark.parametrize("name", ["max_gap_minutes", "max_span_minutes"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "10", True])
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*; it must be a number from"):
        HindsightSettings(**{name: value})


def test_no_window_has_no_label() -> None:
    found = label(np.ones((3, 4)), [])
    assert len(found) == 0
    assert sum(found.counts().values()) == sum(found.skip_counts().values()) == 0


def test_rows_can_be_taken_and_joined() -> None:
    ohlc = steps(CALM, UP, [0.0] * 70)
    found = label(ohlc, [0, 1, 2, 3])
    assert found.counts()["consolidation"] == 3
    assert found.skip_counts() == {"gap": 0, "span": 0, "edge": 1}
    again = Hindsight.joined([found.take([3, 2]), found.take([0])])
    assert again.start.tolist() == [57, 58, -1]
    assert again.skipped.tolist() == [0, 0, 3]


def test_names_tell_windows_apart_by_their_time() -> None:
    time = np.array([0, 1, MINUTE_NS], np.int64)
    assert window_names(time) == [
        "h-1970-01-01T00:00:00Z", "h-1970-01-01T00:00:00.000000001Z", "h-1970-01-01T00:01:00Z",
    ]  # fmt: skip
