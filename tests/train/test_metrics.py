"""Metrics: by hand, beside scikit-learn, and beside floors that a model has to beat."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, f1_score, jaccard_score

from moola_train import metrics
from moola_train.errors import LabelsError
from moola_train.metrics import Metric, Spans, evaluate
from moola_train.targets import TargetPriors, countdown_of, make_targets
from tests.train.labelled import CLASSES, LENGTH, windows_at

Arrays = dict[str, NDArray[Any]]


def truth_of(start: Any, end: Any, type: Any = None) -> Arrays:
    start, end = np.asarray(start), np.asarray(end)
    position = np.arange(LENGTH)
    inside = (position >= start[:, None]) & (position <= end[:, None]) & (start[:, None] >= 0)
    return {
        "type": np.zeros(len(start), np.int64) if type is None else np.asarray(type),
        "start": start,
        "end": end,
        "span": inside.astype(np.float32),
        "countdown": countdown_of(start),
        "pointers": np.zeros((len(start), 2), np.float32),
    }


def drawn(count: int, *, seed: int = 0, none_share: float = 0.2) -> tuple[Arrays, Arrays]:
    """Truth, and predictions that know something of it."""
    rng = np.random.default_rng(seed)
    start = rng.integers(20, 90, count)
    end = start + rng.integers(2, 12, count)
    type = rng.integers(-1, 2, count)
    none = rng.random(count) < none_share
    truth = truth_of(np.where(none, -1, start), np.where(none, -1, end), type)
    truth["span"][none & (rng.random(count) < 0.5)] = np.nan
    guess = start + rng.integers(-5, 6, count)
    abstains = rng.random(count) < 0.1
    shares = rng.dirichlet([1.0, 1.0], count)
    predictions = {
        "type_probability": shares.astype(np.float32),
        "start": np.where(abstains, -1, guess),
        "end": np.where(abstains, -1, guess + rng.integers(1, 12, count)),
        "countdown": np.clip(countdown_of(guess) + rng.normal(0, 0.1, (count, LENGTH)), 0, 1),
    }
    return truth, predictions


def priors_of(truth: Arrays, rows: Any = None) -> TargetPriors:
    return TargetPriors.of(truth, CLASSES, rows)


def told(truth: Arrays) -> Arrays:
    """Predictions of a model that is told the answer."""
    return {
        "type_probability": np.eye(2)[np.maximum(truth["type"], 0)],
        "start": truth["start"],
        "end": truth["end"],
        "countdown": np.nan_to_num(truth["countdown"]),
    }


# --- by hand ---------------------------------------------------------------------------------

# Four windows with an expansion and one without; the third is missed, the last invented.
TRUE = truth_of([10, 50, 30, 90, -1], [19, 59, 34, 94, -1], [0, 1, 1, -1, 0])
FOUND: Arrays = {
    "start": np.array([12, 55, -1, 86, 7]),
    "end": np.array([16, 64, -1, 98, 9]),
}


def test_spans_by_hand() -> None:
    found = evaluate(FOUND, TRUE, priors_of(TRUE))
    values = {name: metric.value for name, metric in found.items()}
    # Shared bars: 5, 5, 0, 5; predicted 5, 10, 0, 13; true 10, 10, 5, 5.
    assert values == pytest.approx(
        {
            "hit_at_3": 1 / 4,
            "center_hit_at_3": 2 / 4,  # off by 0.5, 5, missed, 0
            "span_f1": (10 / 15 + 10 / 20 + 0 + 10 / 18) / 4,
            "span_f1_micro": 2 * 15 / (31 + 30),
            "span_iou": (5 / 10 + 5 / 15 + 0 + 5 / 13) / 4,
            "pointer_f1": 2 * 1 / (4 + 4),
            "start_mae": (2 + 5 + 104 + 4) / 4,
            "end_mae": (3 + 5 + 104 + 4) / 4,
            "center_mae": (0.5 + 5 + 104 + 0) / 4,
            "lead_lag_q1": -1.0,
            "lead_lag_median": 2.0,
            "lead_lag_q3": 3.5,
        }
    )


def test_windows_that_nobody_looked_at_count_nowhere() -> None:
    priors = priors_of(TRUE)
    expected = evaluate({name: values[:4] for name, values in FOUND.items()},
                        {name: values[:4] for name, values in TRUE.items()}, priors)  # fmt: skip
    unknown = TRUE["span"].copy()
    unknown[4] = np.nan  # the one with the invented span
    assert evaluate(FOUND, {**TRUE, "span": unknown}, priors) == expected
    assert evaluate(FOUND, TRUE, priors)["pointer_f1"] != expected["pointer_f1"]


def test_floors_of_spans_by_hand() -> None:
    # Training: three alike and one elsewhere. The floors use its constants on other windows.
    training = truth_of([20, 20, 20, 70], [29, 29, 29, 79])
    priors = priors_of(training)
    found = evaluate(FOUND, TRUE, priors)
    floors = {name: metric.floor for name, metric in found.items()}
    start, end = priors.best.hit_span
    assert abs(start - 20) <= 3
    assert abs(end - 29) <= 3
    assert priors.best.iou_span == (20, 29)
    assert floors == pytest.approx(
        {
            "hit_at_3": 0.0,
            "center_hit_at_3": 0.0,
            "span_f1": sum(2 * bars / (LENGTH + bars) for bars in (10, 10, 5, 5)) / 4,
            "span_f1_micro": 2 * 30 / (5 * LENGTH + 30),
            "span_iou": 0.0,
            "pointer_f1": 0.0,
            "start_mae": (10 + 30 + 10 + 70) / 4,
            "end_mae": (10 + 30 + 5 + 65) / 4,
            "center_mae": (10 + 30 + 7.5 + 67.5) / 4,
            "lead_lag_q1": None,
            "lead_lag_median": None,
            "lead_lag_q3": None,
        }
    )


def test_types_by_hand() -> None:
    shares = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.5, 0.5], [0.7, 0.3]])
    truth = truth_of([1] * 5, [2] * 5, [0, 1, 1, -1, 1])
    priors = priors_of(truth_of([1] * 4, [2] * 4, [1, 1, 1, 0]))
    found = evaluate({"type_probability": shares}, truth, priors)
    # Guessed 0, 0, 1, 0 for 0, 1, 1, 1; the majority of the training part is 1.
    expected = {
        "accuracy": (0.5, 0.75),
        "f1_macro": ((0.5 + 0.5) / 2, (0 + 6 / 7) / 2),
        "f1_consolidation": (0.5, 0.0),
        "f1_retracement": (0.5, 6 / 7),
        # Of class 0: shares 0.8 right, 0.7, 0.6, 0.1 wrong: 1. Of class 1: 0.9 right, 0.4 right,
        # 0.3 right, 0.2 wrong: 1. Constant: the classes' shares 1/4 and 3/4.
        "pr_auc": (1.0, 0.5),
        "brier": (
            (0.2**2 + 0.6**2 + 0.1**2 + 0.7**2) / 4,
            (0.75**2 + 0.25**2 * 3) / 4,
        ),
        # Every window in a bin of its own: 0.2, 0.6, 0.1, 0.7. Constant: one bin, 3/4 and 3/4.
        "ece": ((0.2 + 0.6 + 0.1 + 0.7) / 4, 0.0),
    }
    actual = {name: (metric.value, metric.floor) for name, metric in found.items()}
    assert actual.keys() == expected.keys()
    for name, pair in expected.items():
        assert actual[name] == pytest.approx(pair), name


def test_the_countdown_by_hand() -> None:
    training = truth_of([40, 50, 60], [45, 55, 65])
    truth = truth_of([50, -1], [52, -1])
    predicted = np.stack([countdown_of(53), countdown_of(0)])
    metric = evaluate({"countdown": predicted}, truth, priors_of(training))["countdown_mae"]
    bars = np.abs(
        np.clip(53 - np.arange(LENGTH), -20, 20) - np.clip(50 - np.arange(LENGTH), -20, 20)
    )
    assert metric.value == pytest.approx(bars.mean(), abs=1e-5)
    assert metric.floor == pytest.approx(0.0, abs=1e-5)  # the median start is this very one


def test_calibration_by_hand() -> None:
    top = np.array([0.9] * 10 + [0.6] * 5)
    shares = np.stack([top, 1 - top], axis=1)
    true = np.array([0] * 8 + [1] * 2 + [0] * 3 + [1] * 2)
    assert metrics.ece(shares, true) == pytest.approx((10 * abs(0.8 - 0.9) + 0) / 15)
    spread = np.linspace(0.5, 1, 30)
    shares = np.stack([spread, 1 - spread], axis=1)
    right = np.arange(30) % 3 > 0
    expected = sum(
        abs(right[2 * i : 2 * i + 2].sum() - spread[2 * i : 2 * i + 2].sum()) for i in range(15)
    )
    assert metrics.ece(shares, np.where(right, 0, 1)) == pytest.approx(expected / 30)


# --- beside scikit-learn ---------------------------------------------------------------------


def masks(spans: Spans) -> NDArray[np.bool_]:
    position = np.arange(LENGTH)
    inside: NDArray[np.bool_] = (position >= spans.start[:, None]) & (
        position <= spans.end[:, None]
    )
    return inside & spans.present[:, None]


def test_spans_are_scored_as_scikit_learn_scores_masks() -> None:
    truth, predictions = drawn(200)
    true = Spans(truth["start"], truth["end"])
    predicted = Spans(predictions["start"], np.minimum(predictions["end"], LENGTH - 1))
    found = evaluate({"start": predicted.start, "end": predicted.end}, truth, priors_of(truth))
    known = np.isfinite(truth["span"]).all(axis=1)
    assert 0 < (~known).sum() < (~true.present).sum()
    one, other = masks(true), masks(predicted)
    rows = np.flatnonzero(true.present)
    options: dict[str, Any] = {"zero_division": 0.0}
    by_window = [f1_score(one[row], other[row], **options) for row in rows]
    assert found["span_f1"].value == pytest.approx(np.mean(by_window))
    by_window = [jaccard_score(one[row], other[row], **options) for row in rows]
    assert found["span_iou"].value == pytest.approx(np.mean(by_window))
    assert found["span_f1_micro"].value == pytest.approx(
        f1_score(one[known].ravel(), other[known].ravel())
    )
    everywhere = np.ones(one[known].size, bool)
    assert found["span_f1_micro"].floor == pytest.approx(f1_score(one[known].ravel(), everywhere))


def test_brier_is_scikit_learns_over_the_classes() -> None:
    rng = np.random.default_rng(3)
    shares, true = rng.dirichlet([1.0] * 3, 50), rng.integers(0, 3, 50)
    summed = brier_score_loss(true, shares, labels=[0, 1, 2], scale_by_half=False)
    assert metrics.brier(shares, true) == pytest.approx(summed / 3)
    assert metrics.brier(shares[:, :2], true % 2) == pytest.approx(
        np.mean((shares[:, :2] - np.eye(2)[true % 2]) ** 2)
    )


# --- what must hold --------------------------------------------------------------------------


def test_a_model_that_is_told_the_answer_is_perfect() -> None:
    truth, _ = drawn(300)
    for name, metric in evaluate(told(truth), truth, priors_of(truth)).items():
        perfect = {"higher": 1.0, "lower": 0.0, None: 0.0}[metric.better]
        assert metric.value == pytest.approx(perfect, abs=1e-5), name
        assert metric.beats_floor is (None if metric.better is None else True), name


def test_the_best_constants_score_their_floors() -> None:
    truth, _ = drawn(300)
    priors = priors_of(truth)
    best = priors.best
    count = len(truth["type"])
    guess = {
        "type_probability": np.tile(priors.class_shares, (count, 1)),
        "start": np.full(count, best.hit_span[0]),
        "end": np.full(count, best.hit_span[1]),
        "countdown": np.tile(best.countdown, (count, 1)),
    }
    found = evaluate(guess, truth, priors)
    for name in (
        "accuracy", "f1_macro", "pr_auc", "brier", "ece", "hit_at_3", "pointer_f1", "countdown_mae",
    ):  # fmt: skip
        assert found[name].value == pytest.approx(found[name].floor, abs=1e-9), name
        assert found[name].beats_floor is False
    # No constant does better than the one that the floor is made of, on its own windows.
    for name in ("center_hit_at_3", "span_iou", "start_mae", "end_mae", "center_mae"):
        assert not found[name].beats_floor


def test_every_metric_is_there_with_its_direction() -> None:
    truth, predictions = drawn(50)
    found = evaluate(predictions, truth, priors_of(truth))
    higher = {
        "accuracy", "f1_macro", "f1_consolidation", "f1_retracement", "pr_auc", "hit_at_3",
        "center_hit_at_3", "span_f1", "span_f1_micro", "span_iou", "pointer_f1",
    }  # fmt: skip
    lower = {"brier", "ece", "start_mae", "end_mae", "center_mae", "countdown_mae"}
    neither = {"lead_lag_q1", "lead_lag_median", "lead_lag_q3"}
    assert {name for name, metric in found.items() if metric.better == "higher"} == higher
    assert {name for name, metric in found.items() if metric.better == "lower"} == lower
    assert {name for name, metric in found.items() if metric.floor is None} == neither
    assert found.keys() == higher | lower | neither
    assert all(type(metric.value) is float for metric in found.values())
    assert all(type(metric.floor) is float for n, metric in found.items() if n not in neither)


def test_the_order_of_the_windows_does_not_matter() -> None:
    truth, predictions = drawn(400)
    predictions["type_probability"] = np.round(predictions["type_probability"], 1)  # many ties
    priors = priors_of(truth)
    expected = evaluate(predictions, truth, priors)
    order = np.random.default_rng(5).permutation(400)
    shuffled = evaluate(
        {name: values[order] for name, values in predictions.items()},
        {name: values[order] for name, values in truth.items()},
        priors,
    )
    for name, metric in expected.items():
        assert shuffled[name].value == pytest.approx(metric.value, rel=1e-12, abs=1e-12), name
        if metric.floor is not None:
            assert shuffled[name].floor == pytest.approx(metric.floor, rel=1e-12, abs=1e-12), name


def test_only_what_is_known_is_scored() -> None:
    labels = windows_at([0, 1_000])
    priors = priors_of(make_targets(labels))
    unknown = truth_of([-1, -1], [-1, -1], [-1, -1])
    predictions = told(truth_of([10, 20], [15, 25]))
    assert evaluate(predictions, unknown, priors) == {}
    assert evaluate({}, truth_of([10, 20], [15, 25]), priors) == {}
    nothing = {"start": np.array([-1, -1]), "end": np.array([-1, -1])}
    found = evaluate(nothing, truth_of([10, 20], [15, 25]), priors)
    assert "lead_lag_median" not in found
    assert (found["span_f1"].value, found["start_mae"].value) == (0.0, 104.0)


def test_a_class_that_nobody_names_has_no_f1() -> None:
    truth = truth_of([1, 2], [3, 4], [0, 0])
    priors = TargetPriors.of(truth, (*CLASSES, "none"))
    shares = np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0]])
    found = evaluate({"type_probability": shares}, truth, priors)
    assert "f1_none" not in found
    assert found["f1_retracement"].value == 0.0
    assert found["f1_macro"].value == pytest.approx((2 / 3 + 0) / 2)


def test_what_does_not_fit_is_refused() -> None:
    truth, predictions = drawn(10)
    priors = priors_of(truth)
    with pytest.raises(LabelsError, match="start has 9 rows for 10 windows"):
        evaluate({**predictions, "start": predictions["start"][:9]}, truth, priors)
    wide = {"type_probability": np.full((10, 3), 1 / 3)}
    with pytest.raises(LabelsError, match="3 columns for 2 classes: consolidation, retracement"):
        evaluate(wide, truth, priors)


def test_a_floor_is_beaten_in_the_right_direction() -> None:
    assert Metric(0.6, 0.5, "higher").beats_floor
    assert not Metric(0.5, 0.5, "higher").beats_floor
    assert not Metric(0.6, 0.5, "lower").beats_floor
    assert Metric(math.pi, None, None).beats_floor is None


def test_an_epoch_of_windows_is_scored_in_passing() -> None:
    truth, predictions = drawn(5_000)
    priors = priors_of(truth)
    evaluate(predictions, truth, priors)
    began = time.perf_counter()
    evaluate(predictions, truth, priors)
    assert time.perf_counter() - began < 1.0  # it takes some 30 ms
