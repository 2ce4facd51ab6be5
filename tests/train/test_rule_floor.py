"""The rule floor, against a naive twin and on windows made by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from moola_train.errors import LabelsError
from moola_train.metrics import f1_macro
from moola_train.rule_floor import RuleFloor, rule_spans
from tests.train.labelled import prices


def naive(window: NDArray[np.float64]) -> tuple[int, float, float]:
    """Start, move and box of one window, from the definition."""
    _, high, low, close = window.T
    moves = [abs(close[s + 7] - close[s - 1]) for s in range(1, len(window) - 7)]
    start = 1 + moves.index(max(moves))
    true_ranges = [
        max(high[t], close[t - 1]) - min(low[t], close[t - 1]) for t in range(1, len(window))
    ]
    unit = sum(true_ranges) / len(true_ranges)
    before = slice(max(start - 15, 0), start)
    return start, max(moves) / unit, (max(high[before]) - min(low[before])) / unit


def test_spans_are_those_of_the_definition() -> None:
    windows = prices(60)
    spans = rule_spans(windows)
    for row, window in enumerate(windows):
        start, move, box = naive(window)
        assert (spans.start[row], spans.end[row]) == (start, start + 7)
        assert spans.move[row] == pytest.approx(move)
        assert spans.box[row] == pytest.approx(box)
    assert (spans.start < 15).any(), "a box that begins with the window"


@pytest.mark.parametrize("factor", [1e-8, 0.25, 3.0, 1e8])
def test_scale_and_direction_change_nothing(factor: float) -> None:
    windows = prices(60)
    spans = rule_spans(windows)
    turned = 1_000 - windows[:, :, [0, 2, 1, 3]]
    for other in (rule_spans(windows * factor), rule_spans(turned)):
        assert np.array_equal(other.start, spans.start)
        assert np.allclose(other.move, spans.move)
        assert np.allclose(other.box, spans.box)


def test_flat_windows_have_a_span_and_no_move() -> None:
    spans = rule_spans(np.full((2, 105, 4), 7.0))
    assert spans.start.tolist() == [1, 1]
    assert spans.move.tolist() == spans.box.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [0.2, 0.5])
@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_that_of_the_highest_macro_f1(
    wrong: float, share: float, seed: int
) -> None:
    windows = prices(80)
    box = rule_spans(windows).box
    random = np.random.default_rng(seed)
    # Half of them wrong: the box says nothing, and one type on both sides may be the best there is.
    types = ((box > np.quantile(box, 1 - share)) ^ (random.random(80) < wrong)).astype(np.int64)
    types[:5] = -1
    floor = RuleFloor.fit(windows, types, np.full(80, -1), 2)
    known = types >= 0

    def score(threshold: float, low: int, high: int) -> float:
        return f1_macro(np.where(box > threshold, high, low)[known], types[known])

    best = max(
        score(threshold, low, high)
        for threshold in [0.0, *box]
        for low, high in itertools.product(range(2), repeat=2)
    )
    chosen = floor.predict(windows)["type_probability"].argmax(axis=1)
    assert f1_macro(chosen[known], types[known]) == pytest.approx(best)
    if wrong < 0.5:
        assert (floor.low_type, floor.high_type) == (0, 1)


def test_predictions_are_what_metrics_want() -> None:
    windows = prices(10)
    found = RuleFloor(threshold=3.0, low_type=2, high_type=0, num_classes=3).predict(windows)
    spans = rule_spans(windows)
    assert np.array_equal(found["start"], spans.start)
    assert np.array_equal(found["end"], spans.end)
    assert np.array_equal(found["type_probability"].argmax(1), np.where(spans.box > 3.0, 0, 2))
    assert (found["type_probability"].sum(axis=1) == 1).all()


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(LabelsError, match=r"shape \[4, 8, 4\]; .* at least 9"):
        rule_spans(np.zeros((4, 8, 4)))
    with pytest.raises(LabelsError, match="no window of the training part has a type"):
        RuleFloor.fit(prices(3), np.full(3, -1), np.full(3, 20), 2)


def test_runs_start_where_expansions_of_the_training_part_do() -> None:
    windows = prices(60)
    types, starts = np.arange(60) % 2, np.full(60, -1)
    starts[:3] = 31, 40, 62
    floor = RuleFloor.fit(windows, types, starts, 2)
    assert (floor.first_start, floor.last_start) == (31, 62)
    found = floor.predict(windows)["start"]
    for row, window in enumerate(windows):
        close = window[:, 3]
        moves = {s: abs(close[s + 7] - close[s - 1]) for s in range(31, 63)}
        assert found[row] == max(moves, key=lambda s: (moves[s], -s))
    starts[:2] = 0, 104  # neither has eight bars behind a close
    floor = RuleFloor.fit(windows, types, starts, 2)
    assert (floor.first_start, floor.last_start) == (1, 97)
    assert np.array_equal(floor.predict(windows)["start"], rule_spans(windows).start)
