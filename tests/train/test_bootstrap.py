"""Intervals: draws by hand, every statistic beside its metric, coverage where truth is known."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from moola_train.errors import ConfigError
from moola_train.evaluation.bootstrap import MIN_BLOCKS, Draws, Interval, blocks_of
from moola_train.evaluation.scores import differences_of, scores_of
from moola_train.evaluation.statistics import (
    AveragePrecision,
    MeanOfRatios,
    Ratio,
    Resampled,
    statistics_of,
    with_draws,
)
from moola_train.metrics import evaluate
from tests.train.labelled import windows_at
from tests.train.test_metrics import drawn, priors_of

DAY = 1_440  # bars


class TestBlocks:
    def test_a_block_is_a_day(self) -> None:
        labels = windows_at([0, DAY - 1, DAY, 3 * DAY + 5, 3 * DAY + 9])
        assert blocks_of(labels).tolist() == [0, 0, 1, 2, 2]

    def test_a_base_stands_in_the_day_of_its_first_window(self) -> None:
        labels = windows_at([5 * DAY, 2 * DAY, 5 * DAY + 7, 2 * DAY], base_id=["a", "a", "b", "c"])
        assert blocks_of(labels).tolist() == [0, 0, 1, 0]

    def test_without_times_a_block_is_a_base(self) -> None:
        labels = windows_at([0, DAY, 2 * DAY], base_id=["x", "y", "x"])
        assert blocks_of(dataclasses.replace(labels, start_time=None)).tolist() == [0, 1, 0]

    def test_no_windows_make_no_blocks(self) -> None:
        assert blocks_of(windows_at([0]).take([])).tolist() == []


class TestDraws:
    def test_blocks_are_drawn_whole(self) -> None:
        blocks = np.array([0, 0, 1, 2, 2, 2])
        draws = Draws.of(blocks, 50, seed=3)
        for rows, counts in zip(draws.rows(), draws.counts.tolist(), strict=True):
            assert np.bincount(blocks[rows], minlength=3).tolist() == [
                2 * counts[0], counts[1], 3 * counts[2],
            ]  # fmt: skip
            assert sum(counts) == 3

    def test_the_same_seed_draws_the_same(self) -> None:
        first, second, third = (Draws.of(range(9), 20, seed=seed) for seed in (17, 17, 18))
        np.testing.assert_array_equal(first.counts, second.counts)
        assert (first.counts != third.counts).any()

    def test_draws_are_those_of_the_multinomial(self) -> None:
        counts = Draws.of(range(10), 20_000).counts
        assert counts.mean(axis=0) == pytest.approx(np.ones(10), abs=0.03)
        assert counts.var(axis=0) == pytest.approx(np.full(10, 0.9), abs=0.05)

    def test_sums_and_weights_are_those_of_the_rows(self) -> None:
        rng = np.random.default_rng(1)
        blocks, values = rng.integers(0, 7, 40), rng.normal(size=(40, 3))
        draws = Draws.of(blocks, 30)
        expected = np.stack([values[rows].sum(axis=0) for rows in draws.rows()])
        np.testing.assert_allclose(draws.sums(values), expected)
        np.testing.assert_allclose(draws.sums(values[:, 1]), expected[:, 1])
        weights = np.concatenate(list(draws.weights()))
        np.testing.assert_allclose(weights @ values, expected)

    def test_some_of_the_windows_keep_their_draws(self) -> None:
        draws = Draws.of([0, 0, 1, 2], 25)
        part = draws.take(np.array([3, 1]))
        np.testing.assert_array_equal(part.sums(np.array([1, 0])), draws.counts[:, 2])
        np.testing.assert_array_equal(part.sums(np.array([0, 1])), draws.counts[:, 0])

    def test_there_must_be_a_draw(self) -> None:
        with pytest.raises(ConfigError, match="num_draws is 0; it must be from 5 to 100,000"):
            Draws.of([0], 0)


class TestStatistics:
    """The law: a statistic of a draw is the metric of that draw's windows."""

    @settings(max_examples=20)
    @given(
        seed=st.integers(0, 10_000), count=st.integers(2, 60), none_share=st.sampled_from([0, 0.3])
    )
    def test_every_statistic_is_its_metric(self, seed: int, count: int, none_share: float) -> None:
        truth, predictions = drawn(count, seed=seed, none_share=none_share)
        truth["start"][0], truth["end"][0], truth["span"][0] = 30, 40, 0
        truth["span"][0, 30:41] = 1
        predictions["type_probability"] = np.round(predictions["type_probability"], 1)  # ties
        priors = priors_of(truth)
        draws = Draws.of(np.arange(count) // 3, 5, seed=seed)
        statistics = statistics_of(predictions, truth, 2)
        names = {"f1_0": "f1_consolidation", "f1_1": "f1_retracement"}
        found = {
            names.get(name, name): (statistic.drawn(draws), statistic.drawn(draws.once())[0])
            for name, statistic in statistics.items()
        }
        for position, rows in enumerate([*draws.rows(), np.arange(count)]):
            expected = evaluate(
                {name: values[rows] for name, values in predictions.items()},
                {name: values[rows] for name, values in truth.items()},
                priors,
            )
            for name, (values, whole) in found.items():
                actual = values[position] if position < len(values) else whole
                if name in expected:
                    assert actual == pytest.approx(expected[name].value, abs=1e-9), name
                elif position == len(values):
                    assert np.isnan(whole), name
            assert set(expected) <= set(found)

    def test_average_precision_is_scikit_learns(self) -> None:
        rng = np.random.default_rng(2)
        scores, is_class = np.round(rng.random(500), 2), rng.random(500) < 0.3
        draws = Draws.of(rng.integers(0, 60, 500), 40)
        known = rng.random(500) < 0.9
        actual = AveragePrecision(scores[:, None], is_class[:, None], known).drawn(draws)
        rows = [part[known[part]] for part in draws.rows()]
        expected = [average_precision_score(is_class[part], scores[part]) for part in rows]
        np.testing.assert_allclose(actual, expected, rtol=1e-12)

    def test_a_draw_without_what_is_asked_for_is_none(self) -> None:
        draws = Draws.of([0, 1], 64)
        found = Ratio(np.array([1, 0]), np.array([1, 0])).drawn(draws)
        lacking = draws.counts[:, 0] == 0
        assert lacking.any()
        assert np.isnan(found[lacking]).all()
        assert (found[~lacking] == 1).all()

    def test_intervals_of_a_test_part_take_a_second(self) -> None:
        truth, predictions = drawn(3_201)
        draws = Draws.of(np.arange(3_201) // 12)
        began = time.perf_counter()
        for statistic in statistics_of(predictions, truth, 2).values():
            statistic.drawn(draws)
        assert time.perf_counter() - began < 10.0  # it takes some 1.5 s


class TestScores:
    def test_what_a_model_has_over_the_rule_is_their_difference(self) -> None:
        truth, predictions = drawn(120, seed=1)
        rule = {name: values[::-1] for name, values in predictions.items() if name != "countdown"}
        priors, draws = priors_of(truth), Draws.of(np.arange(120) // 6, 100)
        scores = scores_of(predictions, truth, priors, draws, rule=rule)
        apart = differences_of(predictions, rule, truth, priors, draws)
        assert set(apart) == set(scores) - {"countdown_mae"}
        for name, difference in apart.items():
            score = scores[name]
            assert score.over_rule == difference.interval, name
            assert score.value - (score.rule or 0.0) == pytest.approx(difference.difference), name
        assert scores["hit_at_3"].over_rule is not None
        assert scores["hit_at_3"].over_rule.low > 0
        assert scores["hit_at_3"].beats_rule == "yes"
        assert scores["countdown_mae"].rule is None

    def test_some_of_the_metrics(self) -> None:
        truth, predictions = drawn(60)
        priors, draws = priors_of(truth), Draws.of(np.arange(60) // 6, 50)
        every = scores_of(predictions, truth, priors, draws)
        some = scores_of(predictions, truth, priors, draws, names=["ece", "hit_at_3", "no_such"])
        assert some == {name: every[name] for name in ("ece", "hit_at_3")}


class TestIntervals:
    def test_by_hand(self) -> None:
        """Two blocks with means 0 and 1: draws are 0, 1/2 or 1 with chances 1/4, 1/2, 1/4."""
        draws = Draws.of([0, 1], 4_000)
        means = Ratio(np.array([0.0, 1.0]), np.ones(2)).drawn(draws)
        values, counts = np.unique(means, return_counts=True)
        assert values.tolist() == [0.0, 0.5, 1.0]
        assert counts / 4_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
        assert Interval.of(means) == Interval(0.0, 1.0)
        assert Interval.of(means, 0.4) == Interval(0.5, 0.5)

    def test_percentiles(self) -> None:
        found = Interval.of(np.append(np.arange(1_001.0), [np.nan, np.inf]))
        assert (found.low, found.high) == pytest.approx((25, 975))
        nothing = Interval.of(np.array([np.nan]))
        assert np.isnan([nothing.low, nothing.high]).all()

    @pytest.mark.parametrize("days", [1, MIN_BLOCKS - 1, MIN_BLOCKS])
    def test_a_few_blocks_tell_nothing_of_their_spread(self, days: int) -> None:
        """One day is the same in every draw, and would look certain."""
        truth, predictions = drawn(120, seed=1)
        truth = {**truth, "type": np.arange(120) % 2}
        rule = {name: values[::-1] for name, values in predictions.items() if name != "countdown"}
        draws, enough = Draws.of(np.arange(120) % days, 100), days == MIN_BLOCKS
        scores = scores_of(predictions, truth, priors_of(truth), draws, rule=rule)
        for name, score in scores.items():
            assert score.interval.is_known == enough, name
            assert (score.beats_floor is None) == (not enough or score.floor is None), name
            assert enough or score.beats_rule is None, name
        apart = differences_of(predictions, rule, truth, priors_of(truth), draws)
        assert any(difference.verdict for difference in apart.values()) == enough
        assert all(difference.interval.is_known == enough for difference in apart.values())

    def test_only_blocks_that_count_are_counted(self) -> None:
        counted = np.arange(24) < MIN_BLOCKS - 1
        draws = Draws.of(np.arange(len(counted)), 50)
        for statistic in (
            Ratio(counted, counted), MeanOfRatios(counted[:, None], counted[:, None]),
            Resampled(lambda rows: 1.0, counted),
            AveragePrecision(np.ones((24, 1)), counted[:, None], counted),
        ):  # fmt: skip
            found = with_draws(statistic, draws)
            assert found[0] == 1.0
            assert np.isnan(found[1:]).all()

    def test_draws_that_say_nothing_leave_no_interval(self) -> None:
        """All positives stand in one of thirty days, which a third of the draws lack."""
        first = np.arange(30) == 0
        positives = AveragePrecision(np.ones((30, 1)), first[:, None], np.ones(30, bool))
        assert not Interval.of(with_draws(positives, Draws.of(np.arange(30)))[1:]).is_known

    def test_a_negative_seed(self) -> None:
        with pytest.raises(ConfigError, match="seed is -1; it must be at least 0"):
            Draws.of([0, 1], 5, -1)

    @pytest.mark.parametrize("by_block", [True, False])
    def test_coverage(self, by_block: bool) -> None:
        """Days differ: 95 % of the intervals hold the mean, and fewer where days are ignored."""
        rng = np.random.default_rng(17)
        held, trials = 0, 300
        blocks = np.repeat(np.arange(60), 10)
        for trial in range(trials):
            values = np.repeat(rng.normal(size=60), 10) + rng.normal(size=600)
            drawn_blocks: Any = blocks if by_block else np.arange(600)
            draws = Draws.of(drawn_blocks, 200, seed=trial)
            found = Interval.of(Ratio(values, np.ones(600)).drawn(draws))
            held += found.low <= 0 <= found.high
        if by_block:
            assert 0.89 <= held / trials <= 0.98
        else:
            assert held / trials < 0.7
