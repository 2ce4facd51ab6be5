"""Temperature, reliability, the mask's threshold, and whether there is anything at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, log_loss

from moola_train import metrics
from moola_train.errors import LabelsError
from moola_train.evaluation.abstaining import abstaining_of
from moola_train.evaluation.bootstrap import Draws
from moola_train.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibrate,
    fit_temperature,
    reliability,
    tempered,
)
from moola_train.evaluation.threshold import choose_threshold, decodes_mask, spans_at
from moola_train.heads import HEADS, HeadSettings
from moola_train.presets import PRESETS


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities that are too sure by a temperature, and types drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet([1.0] * 3, count)
    types = np.array([rng.choice(3, p=shares) for shares in honest])
    return tempered(honest, 1 / temperature), types


class TestTemperature:
    def test_by_hand(self) -> None:
        """Says 0.9 and is right in 3 of 4: ln 9 / T = ln 3."""
        shares = np.array([[0.9, 0.1], [0.1, 0.9]] * 4)
        true = np.array([0, 1, 0, 1, 0, 1, 1, 0])
        assert fit_temperature(shares, true) == pytest.approx(2.0)
        np.testing.assert_allclose(tempered(shares, 2.0)[:2], [[0.75, 0.25], [0.25, 0.75]])

    @pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
    def test_what_was_put_on_is_found(self, temperature: float) -> None:
        shares, true = drawn(20_000, temperature)
        assert fit_temperature(shares, true) == pytest.approx(temperature, rel=0.05)

    def test_no_other_temperature_is_more_likely(self) -> None:
        shares, true = drawn(300, 1.7, seed=4)
        best = fit_temperature(shares, true)
        losses = {t: log_loss(true, tempered(shares, t)) for t in np.geomspace(0.05, 20, 400)}
        least = min(losses.values())
        assert log_loss(true, tempered(shares, best)) <= least
        assert best == pytest.approx(min(losses, key=lambda t: losses[t]), rel=0.02)

    def test_it_stays_within_bounds(self) -> None:
        shares = np.array([[0.9, 0.1], [0.2, 0.8]])
        assert fit_temperature(shares, np.array([0, 1])) == MIN_TEMPERATURE  # never wrong
        assert fit_temperature(shares, np.array([1, 0])) == MAX_TEMPERATURE  # never right
        certain = np.array([[1.0, 0.0], [0.0, 1.0]])
        assert np.isfinite(fit_temperature(certain, np.array([0, 0])))

    def test_no_window_is_refused(self) -> None:
        with pytest.raises(LabelsError, match="no window has a type"):
            fit_temperature(np.zeros((0, 2)), np.zeros(0, np.int64))


class TestCalibration:
    def test_it_is_fitted_on_one_part_and_judged_on_the_other(self) -> None:
        fitted, judged = drawn(4_000, 3.0), drawn(2_000, 3.0, seed=1)
        found = calibrate(fitted, judged, Draws.of(range(2_000), 50))
        assert found is not None
        assert found.temperature == fit_temperature(*fitted)
        assert found.num_fitted == 4_000
        for name in ("nll", "brier", "ece"):
            assert found.after[name] < found.before[name]
        assert found.before["ece"] == metrics.ece(*judged)
        assert found.before["brier"] == metrics.brier(*judged)
        assert found.before["nll"] == pytest.approx(log_loss(judged[1], judged[0]))
        other = drawn(2_000, 0.5, seed=2)
        again = calibrate(fitted, other, Draws.of(range(2_000), 50))
        assert again is not None
        assert again.temperature == found.temperature

    def test_windows_without_a_type_do_not_count(self) -> None:
        shares, true = drawn(500, 2.0)
        some = np.where(np.arange(500) % 3 == 0, -1, true)
        found = calibrate((shares, some), (shares, some), Draws.of(range(500), 20))
        rows = some >= 0
        expected = calibrate(
            (shares[rows], some[rows]), (shares[rows], some[rows]), Draws.of(range(500), 20)
        )
        assert found is not None
        assert expected is not None
        assert (found.temperature, found.after) == (expected.temperature, expected.after)
        assert sum(entry.num_windows for entry in found.bins) == rows.sum() == found.num_fitted
        nothing = np.full(500, -1)
        assert calibrate((shares, true), (shares, nothing), Draws.of(range(500), 20)) is None
        assert calibrate((shares, nothing), (shares, true), Draws.of(range(500), 20)) is None

    def test_bins_hold_equally_many_and_make_up_the_error(self) -> None:
        shares, true = drawn(1_500, 2.0)
        bins = reliability(shares, true, Draws.of(np.arange(1_500) // 5, 200))
        assert [entry.num_windows for entry in bins] == [100] * 15
        confidences = [entry.confidence for entry in bins]
        assert confidences == sorted(confidences)
        apart = sum(e.num_windows * abs(e.share_right - e.confidence) for e in bins) / 1_500
        assert apart == pytest.approx(metrics.ece(shares, true))
        assert all(entry.interval.low <= entry.share_right <= entry.interval.high for entry in bins)


class TestThreshold:
    def test_which_presets_decode_the_mask(self) -> None:
        found = {name for name, preset in PRESETS.items() if decodes_mask(preset.settings)}
        assert "jade-compact" in found
        assert found.isdisjoint({"jade-span", "jade", "simple-lstm"})
        crf = dataclasses.replace(PRESETS["jade-compact"].settings, heads=("span", "span_crf"))
        assert not decodes_mask(crf)

    @pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
    def test_spans_are_those_of_the_head(self, threshold: float) -> None:
        settings = HeadSettings(
            step_size=4, summary_size=0, num_features=3, num_classes=2, window_length=30,
            dropout=0.0, focal_gamma=0.0, class_weights=(), span_threshold=threshold,
        )  # fmt: skip
        head = HEADS["span"](settings)
        head.get_buffer("pos_weight").fill_(9.0)
        logits = 3 * torch.randn(200, 30, generator=torch.Generator().manual_seed(1))
        expected = head.decode(logits)
        start, end = spans_at(expected["span_probability"].numpy(), threshold)
        np.testing.assert_array_equal(start, expected["start"])
        np.testing.assert_array_equal(end, expected["end"])

    def test_the_best_on_validation_is_chosen(self) -> None:
        probability = np.full((40, 20), 0.02, np.float32)
        probability[:, 4:16] = 0.3  # about the expansion
        probability[:, 8:13] = 0.6  # the expansion
        truth = {"start": np.full(40, 8), "end": np.full(40, 12)}
        found = choose_threshold(probability, truth, 0.5)
        assert found is not None
        assert (found.value, found.own, found.scores[0.5]) == (0.5, 0.5, 1.0)  # of equals, its own
        truth = {"start": np.full(40, 4), "end": np.full(40, 15)}
        wide = choose_threshold(probability, truth, 0.5)
        assert wide is not None
        assert wide.value < 0.5
        assert wide.scores[wide.value] == 1.0 > wide.scores[0.5]
        assert list(wide.scores) == sorted(wide.scores)

    def test_windows_without_an_expansion_say_nothing(self) -> None:
        probability = np.full((2, 20), 0.9, np.float32)
        none = np.array([-1, -1])
        assert choose_threshold(probability, {"start": none, "end": none}, 0.5) is None


class TestAbstaining:
    def test_it_is_scikit_learns_average_precision(self) -> None:
        rng = np.random.default_rng(6)
        expands, known = rng.random(400) < 0.7, rng.random(400) < 0.9
        probability = np.clip(0.3 * expands + 0.7 * rng.random(400), 0, 1)
        move = rng.random(400)
        draws = Draws.of(np.arange(400) // 8, 300)
        found = abstaining_of(probability, expands, known, draws, rule_move=move)
        assert found is not None
        expected = average_precision_score(expands[known], probability[known])
        assert found.average_precision == pytest.approx(expected)
        assert found.rule == pytest.approx(average_precision_score(expands[known], move[known]))
        assert found.floor == pytest.approx(expands[known].mean())
        assert (found.num_with, found.num_without) == (
            (expands & known).sum(), (~expands & known).sum(),
        )  # fmt: skip
        assert found.interval.low < found.average_precision < found.interval.high
        assert found.over_rule.low > 0
        assert found.recall[0] == 0.0
        assert found.recall[-1] == 1.0
        assert list(found.recall) == sorted(found.recall)
        assert len(found.recall) == len(found.precision) <= 200

    def test_it_takes_windows_of_both_kinds(self) -> None:
        draws = Draws.of(range(4), 10)
        score, known = np.arange(4.0), np.array([True, True, True, False])
        for expands in (np.ones(4, bool), np.array([True, True, True, False])):
            assert abstaining_of(score, expands, known, draws, rule_move=score) is None
