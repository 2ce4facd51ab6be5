"""Targets: pointers that come back exactly, masks, countdowns, and what is known beforehand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moola_train.errors import LabelsError
from moola_train.floors import BestConstants
from moola_train.targets import (
    LabelledWindows,
    TargetPriors,
    countdown_bars,
    countdown_of,
    make_targets,
    pointers_of,
    span_of,
)
from tests.train.labelled import CLASSES, LENGTH

EVERY_PAIR = np.array(np.triu_indices(LENGTH))  # [2, 5565]


def labelled(
    start: list[int], end: list[int], *, type: list[int] | None = None, length: int = LENGTH
) -> LabelledWindows:
    names = tuple(f"w{row}" for row in range(len(start)))
    return LabelledWindows(
        window_id=names,
        base_id=names,
        type=np.array(type or [0] * len(start)),
        start=np.array(start),
        end=np.array(end),
        classes=(*CLASSES, "none"),
        length=length,
        start_time=np.arange(len(start)),
    )


# --- encodings -------------------------------------------------------------------------------


def test_every_span_comes_back() -> None:
    start, end = EVERY_PAIR
    assert len(start) == 5_565
    pointers = pointers_of(start, end)
    assert pointers.dtype == np.float32
    assert 0 <= pointers.min() < pointers.max() <= 1
    for actual, expected in zip(span_of(pointers), (start, end), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("length", [2, 30, 257])
def test_spans_come_back_in_other_windows(length: int) -> None:
    start, end = np.array(np.triu_indices(length))
    for actual, expected in zip(
        span_of(pointers_of(start, end, length), length), (start, end), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


def test_pointers_by_hand() -> None:
    expected = [[45 / 104, 10 / 104], [math.nan, math.nan]]
    np.testing.assert_allclose(pointers_of([40, -1], [50, -1]), expected, rtol=1e-6)
    assert [part.tolist() for part in span_of([[0.5, 0.1], [math.nan, 0.1]])] == [
        [47, -1],
        [57, -1],
    ]


def test_predicted_pointers_stay_in_the_window() -> None:
    pointers = np.array([[0.0, 0.5], [1.0, 0.5], [0.5, -0.3], [0.5, 3.0]])
    start, end = span_of(pointers)
    assert start.tolist() == [0, 78, 52, 0]
    assert end.tolist() == [26, 104, 52, 104]


def test_targets_by_hand() -> None:
    targets = make_targets(labelled([1, -1, 2], [2, -1, 2], type=[1, 2, 0], length=4))
    assert {name: values.dtype.name for name, values in targets.items()} == {
        "type": "int64", "start": "int64", "end": "int64",
        "pointers": "float32", "span": "float32", "countdown": "float32",
    }  # fmt: skip
    assert targets["type"].tolist() == [1, 2, 0]
    assert targets["span"].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    np.testing.assert_allclose(
        targets["pointers"], [[1.5 / 3, 1 / 3], [math.nan] * 2, [2 / 3, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(
        targets["countdown"],
        [[21 / 40, 20 / 40, 19 / 40, 18 / 40], [math.nan] * 4, [22 / 40, 21 / 40, 0.5, 19 / 40]],
        rtol=1e-6,
    )


def test_nothing_is_known_of_the_bars_of_a_window_that_nobody_looked_at() -> None:
    """Without a span, "none" says that no bar expands; another type or no label says nothing."""
    span = make_targets(labelled([1, -1, -1, -1], [1, -1, -1, -1], type=[-1, 2, 0, -1]))["span"]
    assert span[0].sum() == 1
    assert not span[1].any()
    assert np.isnan(span[2:]).all()


@given(start=st.integers(0, LENGTH - 1))
def test_the_countdown_is_clipped_on_both_sides(start: int) -> None:
    expected = [max(-20, min(20, start - position)) for position in range(LENGTH)]
    actual = countdown_of(start)
    assert actual.min() >= 0
    assert actual.max() <= 1
    np.testing.assert_allclose(countdown_bars(actual), expected, atol=1e-5)


def test_targets_do_not_share_memory_with_the_labels() -> None:
    labels = labelled([1], [2])
    make_targets(labels)["start"][0] = 99
    assert labels.start[0] == 1


# --- what is known beforehand ----------------------------------------------------------------


def test_priors_by_hand() -> None:
    labels = labelled([1, 2, -1, 0], [2, 3, -1, 3], type=[1, 1, 0, -1], length=4)
    priors = TargetPriors.of(make_targets(labels), CLASSES)
    assert priors.class_counts.tolist() == [1, 2]
    np.testing.assert_allclose(priors.class_shares, [1 / 3, 2 / 3])
    assert priors.span_share == 8 / 12
    np.testing.assert_allclose(priors.mean_pointers, [1.5 / 3 * 2 / 3 + 2.5 / 9, 5 / 9], rtol=1e-6)
    starts = [1, 2, 0]
    mean = np.mean([start - position for start in starts for position in range(4)])
    assert priors.mean_countdown == pytest.approx((mean + 20) / 40, rel=1e-6)
    np.testing.assert_allclose(priors.start_share, np.array([2, 2, 2, 1]) / 7)
    np.testing.assert_allclose(priors.end_share, np.array([1, 1, 2, 3]) / 7)


def test_priors_see_only_their_rows() -> None:
    labels = labelled([1, 2, 50, 60], [2, 3, 70, 90], type=[1, 0, 0, 0])
    targets = make_targets(labels)
    actual = TargetPriors.of(targets, CLASSES, np.array([0, 1]))
    expected = TargetPriors.of(make_targets(labels.take([0, 1])), CLASSES)
    for field in dataclasses.fields(TargetPriors):
        found, wanted = getattr(actual, field.name), getattr(expected, field.name)
        if field.name == "best":
            assert found.hit_span == wanted.hit_span
        else:
            np.testing.assert_array_equal(found, wanted)
    assert actual.class_counts.tolist() == [1, 1]


def test_shares_never_reach_zero_or_one() -> None:
    priors = TargetPriors.of(make_targets(labelled([0], [3], length=4)), CLASSES)
    np.testing.assert_allclose(priors.class_shares, [2 / 3, 1 / 3])  # one, and half a window
    assert 0 < priors.span_share < 1
    unknown = TargetPriors.of(make_targets(labelled([0], [3], type=[-1], length=4)), CLASSES)
    assert unknown.class_shares.tolist() == [0.5, 0.5]


def test_priors_need_an_expansion() -> None:
    targets = make_targets(labelled([-1, 4], [-1, 9]))
    with pytest.raises(LabelsError, match="none of the 1 windows to train on has an expansion"):
        TargetPriors.of(targets, CLASSES, [0])


# --- the best constants, beside every constant there is --------------------------------------


def scored(score: Any, start: NDArray[Any], end: NDArray[Any], length: int) -> dict[Any, float]:
    return {
        (first, last): float(
            np.mean([score(first, last, s, e) for s, e in zip(start, end, strict=True)])
        )
        for first in range(length)
        for last in range(first, length)
    }


def hits(first: int, last: int, start: int, end: int) -> bool:
    return abs(first - start) <= 3 and abs(last - end) <= 3


def iou(first: int, last: int, start: int, end: int) -> float:
    one, other = set(range(first, last + 1)), set(range(start, end + 1))
    return len(one & other) / len(one | other)


@given(st.lists(st.tuples(st.integers(0, 13), st.integers(0, 13)), min_size=1, max_size=12))
def test_no_constant_is_better(pairs: list[tuple[int, int]]) -> None:
    length = 14
    start = np.array([min(pair) for pair in pairs])
    end = np.array([max(pair) for pair in pairs])
    best = BestConstants.of(start, end, countdown_of(start, length))
    for score, chosen in ((hits, best.hit_span), (iou, best.iou_span)):
        scores = scored(score, start, end, length)
        assert scores[chosen] == pytest.approx(max(scores.values()), abs=1e-12)
    centers = (start + end) / 2
    within = [np.mean(np.abs(centers - half / 2) <= 3) for half in range(2 * length - 1)]
    assert np.mean(np.abs(centers - best.hit_center) <= 3) == max(within)
    for values, constant in ((start, best.start), (end, best.end), (centers, best.center)):
        errors = [np.abs(values - half / 2).mean() for half in range(2 * length)]
        assert np.abs(values - constant).mean() == pytest.approx(min(errors), abs=1e-12)
    np.testing.assert_array_equal(best.countdown, np.median(countdown_of(start, length), axis=0))
