"""A run is judged: what is known beforehand comes out, and what changed since is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import moola_features as mf
from moola_features.errors import StoreError
from moola_features.synth import synthesise
from moola_train.config import RunConfig
from moola_train.errors import ConfigError, ModelError, RunError
from moola_train.evaluation import control, evaluate
from moola_train.evaluation.bootstrap import Interval, blocks_of
from moola_train.evaluation.evaluate import Evaluation, evaluate_run
from moola_train.evaluation.looks import LOOKS, looks_at, record_look
from moola_train.evaluation.names import MEANING
from moola_train.evaluation.page import draw_page
from moola_train.evaluation.slices import tercile_edges, volatility_of
from moola_train.evaluation.subject import Subject, open_subject
from moola_train.fit import fit
from moola_train.inference import Predictions, Predictor
from moola_train.labels import read_labels
from moola_train.metrics import evaluate as metrics_of
from moola_train.rule_floor import RuleFloor
from moola_train.runs import WEIGHTS
from moola_train.splits import forward_chain, read_split, write_split
from moola_train.targets import TargetPriors, countdown_of, make_targets
from tests.train.labelled import at_bars, prices
from tests.train.market import FITTING, make_market, relabelled, with_shuffled_labels
from tests.train.small import SETTINGS, Task, make_bars, make_contained_task, make_task

SMALL = RunConfig.from_dict(SETTINGS)
DRAWS = 60


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("evaluate"))


def fitted(task: Task, folder: Path, **changes: Any) -> Path:
    config = SMALL.override({name.replace("__", "."): value for name, value in changes.items()})
    return fit(task.store, task.labels, task.split, folder, config).run


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(task, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(scope="module")
def other(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(task, tmp_path_factory.mktemp("evaluated") / "other", model__preset="jade-span")


@pytest.fixture(scope="module")
def found(run: Path, other: Path) -> Evaluation:
    return evaluate_run(run, against=other, num_draws=DRAWS)


@pytest.fixture(scope="module")
def abstainer(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows windows without an expansion."""
    folder = tmp_path_factory.mktemp("abstaining")
    frame = pl.read_parquet(task.labels)
    empty = pl.col("label") == "consolidation"
    frame = frame.with_columns(
        label=pl.when(empty).then(pl.lit("none")).otherwise("label"),
        expansion_start=pl.when(empty).then(None).otherwise("expansion_start"),
        expansion_end=pl.when(empty).then(None).otherwise("expansion_end"),
    )
    known = relabelled(task, folder, frame, classes=("retracement", "none"))
    return fitted(
        known, folder / "run", model__preset="jade-span", data__classes="retracement,none"
    )


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder / source.name))


def refusal(error: type[Exception], action: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


class Oracle(Predictor):
    """A model that is told the answer, for the windows that it knows by their first bar."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject.predictor.model, subject.data, torch.device("cpu"))
        assert subject.labels.start_bar is not None
        self._row = {bar: row for row, bar in enumerate(subject.labels.start_bar.tolist())}
        self._targets = subject.targets

    def predict(self, store: Any, starts: Any, *, batch_size: int = 256) -> Predictions:
        rows = [self._row[start] for start in np.asarray(starts).tolist()]
        told = {name: self._targets[name][rows] for name in ("type", "start", "end", "span")}
        expands = told["start"] >= 0
        return {
            "type_probability": np.eye(len(self.data.classes))[told["type"]],
            "start": told["start"],
            "end": told["end"],
            "span_probability": told["span"].clip(0.01, 0.99),
            "countdown": np.nan_to_num(countdown_of(told["start"])),
            "expansion_probability": expands.astype(np.float32),
        }


class TestWhatComesOut:
    def test_a_model_that_is_told_the_answer_is_perfect(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def opened(path: Any, **options: Any) -> Subject:
            subject = open_subject(path, **options)
            return dataclasses.replace(subject, predictor=Oracle(subject))

        monkeypatch.setattr(evaluate, "open_subject", opened)
        found = evaluate_run(run, num_draws=DRAWS)
        for name, score in found.scores.items():
            best = {"higher": 1.0, "lower": 0.0, None: 0.0}[score.better]
            assert score.value == pytest.approx(best, abs=1e-6), name
            if name == "f1_retracement" and not score.interval.is_known:
                assert score.beats_floor is None  # its few windows are of too few days
                continue
            assert (score.interval.low, score.interval.high) == pytest.approx((best, best)), name
            if score.better is not None:
                assert score.beats_floor == "yes", name
        for part in found.slices:
            assert part.scores["accuracy"].value == 1.0
        assert found.lags[20] == sum(found.lags) == found.num_windows

    def test_it_learns_from_labels_and_not_from_shuffled_ones(self, tmp_path: Path) -> None:
        names = ("accuracy", "hit_at_3", "center_hit_at_3", "span_iou", "start_mae", "end_mae")
        market = make_market(tmp_path)
        (tmp_path / "shuffled").mkdir()
        shuffled = with_shuffled_labels(market, tmp_path / "shuffled")
        honest, lost = (
            evaluate_run(
                fit(task.store, task.labels, task.split, tmp_path / name, FITTING).run,
                num_draws=200,
            )
            for name, task in (("honest", market), ("lost", shuffled))
        )
        assert [n for n in names[1:] if honest.scores[n].beats_floor != "yes"] == []
        assert [n for n in names if lost.scores[n].beats_floor == "yes"] == []
        # What it learnt is the order of the bars: little is left where that is gone.
        assert honest.scores["hit_at_3"].value > 0.3
        assert honest.control["hit_at_3"].interval.high < honest.scores["hit_at_3"].value / 2

    def test_scores_are_the_metrics_of_the_run(self, run: Path, found: Evaluation) -> None:
        subject = open_subject(run)
        rows = subject.rows("val")
        assert found.threshold is not None
        predicted = subject.predict(rows)
        expected = metrics_of(predicted, subject.truth(rows), subject.priors)
        lags = {"lead_lag_q1", "lead_lag_median", "lead_lag_q3"}  # where any span is found
        assert set(found.scores) - lags == set(expected) - lags
        for name in ("accuracy", "pr_auc", "brier", "ece", "countdown_mae"):
            assert found.scores[name].value == pytest.approx(expected[name].value)
        for name, metric in expected.items():
            assert found.scores[name].floor == metric.floor, name
        assert found.threshold.scores[found.threshold.own] == pytest.approx(
            expected["span_f1"].value
        )
        assert found.threshold.scores[found.threshold.value] == pytest.approx(
            found.scores["span_f1"].value
        )

    def test_the_same_again_has_the_same_bits(
        self, run: Path, other: Path, found: Evaluation
    ) -> None:
        again = evaluate_run(run, against=other, num_draws=DRAWS)
        assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())
        drawn = evaluate_run(run, against=other, num_draws=DRAWS, seed=18)
        assert drawn.scores["accuracy"].value == found.scores["accuracy"].value
        assert drawn.to_dict() != found.to_dict()

    def test_it_is_plain_json_and_says_what_it_means(self, run: Path, found: Evaluation) -> None:
        told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert told["meaning"] == MEANING
        assert told["part"] == "val"
        assert told["preset"] == "jade-compact"
        assert told["scores"]["hit_at_3"].keys() == {
            "value", "interval", "floor", "better", "rule", "over_rule",
        }  # fmt: skip
        assert MEANING.startswith("Recognition, not forecasting")

    def test_windows_are_drawn_by_day(self, run: Path, found: Evaluation) -> None:
        subject = open_subject(run)
        blocks = blocks_of(subject.labels.take(subject.rows("val")))
        assert found.num_blocks == len(np.unique(blocks)) < found.num_windows

    def test_the_rule_and_the_terciles_know_the_training_part_only(
        self, task: Task, run: Path, found: Evaluation
    ) -> None:
        subject = open_subject(run)
        volatility = volatility_of(subject.prices(np.arange(len(subject.labels))))
        low, high = tercile_edges(volatility[subject.rows("train")])
        judged = volatility[subject.rows("val")]
        expected = {
            "quiet": int((judged < low).sum()),
            "middle": int(((judged >= low) & (judged < high)).sum()),
            "wild": int((judged >= high).sum()),
        }
        counted = {s.name: s.num_windows for s in found.slices if s.by == "volatility"}
        assert counted == {name: number for name, number in expected.items() if number}
        by_class = [s for s in found.slices if s.by == "class"]
        assert sum(s.num_windows for s in by_class) == found.num_windows
        recalls = sum(s.scores["accuracy"].value * s.num_windows for s in by_class)
        assert recalls / found.num_windows == pytest.approx(found.scores["accuracy"].value)

    def test_the_control_reads_the_same_windows(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        subject = open_subject(run)
        rows = subject.rows("val")
        expected = subject.predict(rows)
        shuffled = control.predict_shuffled(subject, rows)
        assert (shuffled["type_probability"] != expected["type_probability"]).all()
        monkeypatch.setattr(control, "shuffle_bars", lambda ohlc, *_a, **_k: np.array(ohlc))
        in_order = control.predict_shuffled(subject, rows)
        for name, values in expected.items():
            np.testing.assert_allclose(in_order[name], values, atol=1e-6, err_msg=name)

    def test_windows_that_hold_their_own_prices(self, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        run = fit(None, task.labels, task.split, tmp_path / "run", SMALL).run
        found = evaluate_run(run, num_draws=DRAWS)
        assert found.num_blocks == found.num_windows
        assert [text for text in found.cautions if "nothing could be purged" in text]
        assert {part.by for part in found.slices} == {"class", "volatility"}
        assert set(found.control) <= set(found.scores)

    @pytest.mark.parametrize("preset", ["jade", "simple-lstm"])
    def test_models_that_say_less_are_judged_by_less(
        self, task: Task, tmp_path: Path, preset: str
    ) -> None:
        changes = {"model__preset": preset, "loss__balance": "fixed", "loop__epochs": 1}
        run = fitted(task, tmp_path / "run", **changes)
        found = evaluate_run(run, num_draws=DRAWS)
        assert found.threshold is None
        assert found.calibration is not None
        assert ("hit_at_3" in found.scores) == (preset == "jade") == bool(found.lags)
        assert set(found.control) <= set(found.scores)
        assert "Is there an expansion?" not in draw_page(found)

    def test_rule_and_terciles_are_fitted_to_so_many_windows(
        self, run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def fit_rule(ohlc: Any, types: Any, starts: Any, num_classes: int) -> RuleFloor:
            seen.append(len(ohlc))
            return RuleFloor(1.0, 0, 1, num_classes)

        monkeypatch.setattr(RuleFloor, "fit", fit_rule)
        num_train = len(open_subject(run).rows("train"))
        for most, expected in ((num_train, num_train), (10, num_train // 3)):
            monkeypatch.setattr(evaluate, "MOST_PRICED", most)
            evaluate_run(run, num_draws=5)
            assert seen[-1] in (expected, expected + 1)
            assert seen[-1] <= most

    def test_abstaining_is_judged_where_there_is_something_to_abstain_from(
        self, abstainer: Path, found: Evaluation
    ) -> None:
        assert found.abstaining is None
        judged = evaluate_run(abstainer, num_draws=DRAWS)
        assert judged.classes == ("retracement", "none")
        told = judged.abstaining
        assert told is not None
        subject = open_subject(abstainer)
        starts = subject.targets["start"][subject.rows("val")]
        assert (told.num_with, told.num_without) == ((starts >= 0).sum(), (starts < 0).sum())
        assert told.floor == pytest.approx(told.num_with / judged.num_windows)
        assert 0 <= told.interval.low <= told.interval.high <= 1


class TestComparison:
    def test_differences_are_those_of_the_two(
        self, run: Path, other: Path, found: Evaluation
    ) -> None:
        comparison = found.comparison
        assert comparison is not None
        assert (comparison.num_windows, comparison.num_left_out) == (found.num_windows, 0)
        assert comparison.preset == "jade-span"
        alone = evaluate_run(other, num_draws=DRAWS)
        assert set(comparison.differences) == set(found.scores) & set(alone.scores)
        for name, apart in comparison.differences.items():
            assert apart.first == pytest.approx(found.scores[name].value), name
            assert apart.second == pytest.approx(alone.scores[name].value), name
            assert apart.difference == pytest.approx(apart.first - apart.second), name

    def test_a_run_is_no_different_from_itself(self, run: Path) -> None:
        comparison = evaluate_run(run, against=run, num_draws=DRAWS).comparison
        assert comparison is not None
        for apart in comparison.differences.values():
            assert (apart.difference, apart.interval) == (0.0, Interval(0.0, 0.0))
            assert apart.verdict is None

    def test_windows_are_paired_by_id(self, task: Task, run: Path, tmp_path: Path) -> None:
        """The other run's labels stand in another order, and its part begins later."""
        frame = pl.read_parquet(task.labels)[::-1]
        other = fitted(relabelled(task, tmp_path, frame, val_share=0.1), tmp_path / "run")
        comparison = evaluate_run(run, against=other, num_draws=DRAWS).comparison
        assert comparison is not None
        subjects = open_subject(run), open_subject(other)
        names = [[s.labels.window_id[row] for row in s.rows("val")] for s in subjects]
        shared = [name for name in names[0] if name in names[1]]
        assert 0 < comparison.num_windows == len(shared) < len(names[0])
        assert comparison.num_left_out == len(names[0]) - len(shared)
        for subject, value in zip(subjects, ("first", "second"), strict=True):
            rows = np.array([subject.labels.window_id.index(name) for name in shared])
            expected = metrics_of(subject.predict(rows), subject.truth(rows), subject.priors)
            actual = getattr(comparison.differences["accuracy"], value)
            assert actual == pytest.approx(expected["accuracy"].value)

    def test_other_labels_are_refused(self, task: Task, run: Path, tmp_path: Path) -> None:
        frame = pl.read_parquet(task.labels)
        longer = frame.with_columns(expansion_end=frame["expansion_end"] + 1)
        other = fitted(relabelled(task, tmp_path, longer), tmp_path / "run")
        message = refusal(RunError, lambda: evaluate_run(run, against=other))
        assert "has another end in the labels of" in message


class TestSeal:
    def test_looks_at_the_test_part_are_counted(self, run: Path, tmp_path: Path) -> None:
        run = copied(run, tmp_path)
        assert not (run / LOOKS).exists()
        first = evaluate_run(run, part="test", num_draws=DRAWS)
        assert len(first.looks) == 1
        second = evaluate_run(run, part="test", num_draws=DRAWS)
        assert second.looks[:1] == first.looks
        assert looks_at(run) == second.looks

    def test_what_is_chosen_is_chosen_on_validation(self, run: Path, tmp_path: Path) -> None:
        run = copied(run, tmp_path)
        test, val = (evaluate_run(run, part=part, num_draws=DRAWS) for part in ("test", "val"))
        assert val.looks == test.looks == looks_at(run)  # told again, and not counted
        assert test.threshold == val.threshold
        assert test.calibration is not None
        assert val.calibration is not None
        assert test.calibration.temperature == val.calibration.temperature
        assert test.calibration.num_fitted == val.num_windows
        assert test.calibration.before != val.calibration.before

    def test_a_look_that_fails_was_a_look(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = copied(run, tmp_path)

        def fails(*_: Any) -> None:
            raise RuntimeError("out of power")

        monkeypatch.setattr(evaluate, "predict_part", fails)
        with pytest.raises(RuntimeError):
            evaluate_run(run, part="test")
        assert len(looks_at(run)) == 1

    def test_both_runs_of_a_comparison_were_looked_at(
        self, run: Path, other: Path, tmp_path: Path
    ) -> None:
        run, other = copied(run, tmp_path), copied(other, tmp_path)
        evaluate_run(run, part="test", against=other, num_draws=DRAWS)
        assert (len(looks_at(run)), len(looks_at(other))) == (1, 1)
        evaluate_run(run, part="test", against=run, num_draws=DRAWS)
        assert len(looks_at(run)) == 2

    def test_the_record_is_not_made_again_in_silence(self, tmp_path: Path) -> None:
        record_look(tmp_path)
        for text, words in (("[", "cannot be read"), ('{"a": 1}', "is no list of times")):
            (tmp_path / LOOKS).write_text(text)
            for action in (looks_at, record_look):
                message = refusal(RunError, lambda act=action: act(tmp_path))
                assert words in message
                assert "mend it" in message

    def test_fitting_and_stopping_never_read_the_test_part(
        self, task: Task, run: Path, tmp_path: Path
    ) -> None:
        """Other labels, and features of nothing but NaN: the weights are the same to the bit."""
        assert task.store is not None
        labels = read_labels(task.labels, store=task.store)
        rows = read_split(task.split, labels).part("test")
        frame = pl.read_parquet(task.labels).with_row_index()
        tested = pl.col("index").is_in(rows.tolist())
        frame = frame.with_columns(
            expansion_start=pl.when(tested).then(1).otherwise("expansion_start"),
            label=pl.when(tested).then(pl.lit("retracement")).otherwise("label"),
        ).drop("index")
        store = mf.open_store(task.store.path)
        spoilt = np.array(store.features)
        assert labels.start_bar is not None
        for start in labels.start_bar[rows]:
            spoilt[start : start + 105] = np.nan
        store.features = spoilt
        changed = relabelled(Task(store, task.labels, task.split), tmp_path, frame)
        assert read_labels(changed.labels, store=store).sha256() != labels.sha256()
        again = fitted(changed, tmp_path / "run")
        weights = [load_file(path / WEIGHTS) for path in (run, again)]
        for name, tensor in weights[0].items():
            assert torch.equal(tensor, weights[1][name]), name


class TestRefusals:
    def test_files_that_were_moved_are_asked_for(
        self, task: Task, run: Path, tmp_path: Path
    ) -> None:
        run = copied(run, tmp_path)
        data = json.loads((run / "data.json").read_text())
        data["paths"] = {name: str(tmp_path / "gone" / name) for name in data["paths"]}
        (run / "data.json").write_text(json.dumps(data))
        given: dict[str, Any] = {}
        for name, value in (
            ("labels", task.labels), ("split", task.split), ("store", task.store),
        ):  # fmt: skip
            message = refusal(RunError, lambda: evaluate_run(run, num_draws=DRAWS, **given))
            assert f"was trained on {name} at" in message
            assert f"put it back, or give --{name}" in message
            given[name] = value
        assert evaluate_run(run, num_draws=DRAWS, **given).num_windows > 0

    @pytest.mark.parametrize("what", ["labels", "split", "store"])
    def test_what_changed_since_training_is_named(
        self, task: Task, run: Path, tmp_path: Path, what: str
    ) -> None:
        assert task.store is not None
        given: dict[str, Any] = {"labels": task.labels, "split": task.split, "store": task.store}
        if what == "labels":
            frame = pl.read_parquet(task.labels)
            frame = frame.with_columns(expansion_end=frame["expansion_end"] + 1)
            frame.write_parquet(tmp_path / "labels.parquet")
            given["labels"] = tmp_path / "labels.parquet"
        elif what == "split":
            labels = read_labels(task.labels, store=task.store)
            write_split(
                forward_chain(labels, val_share=0.1, test_share=0.2), tmp_path / "split.json"
            )
            given["split"] = tmp_path / "split.json"
        else:
            bars = synthesise(6_000, seed=6).bars
            given["store"] = mf.open_store(mf.build(bars, tmp_path / "other.zarr").path)
        message = refusal(RunError, lambda: evaluate_run(run, **given))
        assert message.startswith(f"the {what} changed since {run} was trained")
        assert f"give --{what} with those of the training" in message
        assert looks_at(run) == ()

    def test_what_cannot_be_read_any_more_has_changed(
        self, task: Task, run: Path, abstainer: Path, tmp_path: Path
    ) -> None:
        others = open_subject(abstainer)
        labels, split = (others.data.paths[name] for name in ("labels", "split"))
        message = refusal(RunError, lambda: evaluate_run(run, labels=labels))
        assert message.startswith(f"the labels changed since {run} was trained: ")
        assert "label is 'none'" in message
        message = refusal(RunError, lambda: evaluate_run(run, split=split))
        assert message.startswith(f"the split changed since {run} was trained: ")
        assert "made from other labels" in message

    def test_a_store_that_was_tampered_with(self, task: Task, run: Path, tmp_path: Path) -> None:
        assert task.store is not None
        Path(shutil.copytree(task.store.path, tmp_path / "bars.zarr"))
        for chunk in (tmp_path / "bars.zarr" / "features" / "c").rglob("*"):
            if chunk.is_file():
                chunk.write_bytes(np.full(chunk.stat().st_size // 4, 0.5, np.float32).tobytes())
        message = refusal(
            StoreError, lambda: evaluate_run(run, store=mf.open_store(tmp_path / "bars.zarr"))
        )
        assert "is not what was written" in message

    @pytest.mark.parametrize(
        ("changed", "error", "words"),
        [
            ({"warmup_bars": 500}, RunError, "the store changed since"),
            ({"max_gap": "9min"}, ModelError, "was built with max_gap = '9min'"),
        ],
    )
    def test_a_store_that_was_built_otherwise(
        self, run: Path, tmp_path: Path, changed: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        """It is the store that changed, though labels may no longer stand in it."""
        mf.build(make_bars(), tmp_path / "other.zarr", mf.FeatureConfig(**changed))
        store = mf.open_store(tmp_path / "other.zarr")
        assert words in refusal(error, lambda: evaluate_run(run, store=store))

    def test_settings_are_checked_before_a_look(self, run: Path, tmp_path: Path) -> None:
        run = copied(run, tmp_path)
        assert "num_draws is 0" in refusal(
            ConfigError, lambda: evaluate_run(run, part="test", num_draws=0)
        )
        assert looks_at(run) == ()

    def test_a_store_with_other_features(self, task: Task, run: Path, tmp_path: Path) -> None:
        wide = tmp_path / "wide.zarr"
        mf.build(make_bars(), wide, mf.FeatureConfig.profile("wide"))
        message = refusal(ModelError, lambda: evaluate_run(run, store=mf.open_store(wide)))
        assert "was built with k = 3.0, the model was trained with 1.2" in message

    def test_parts_that_cannot_be_judged(self, task: Task, run: Path, tmp_path: Path) -> None:
        message = refusal(ConfigError, lambda: evaluate_run(run, part="train"))
        assert "part is 'train'; choose one of val, test" in message
        labels = read_labels(task.labels, store=task.store)
        write_split(forward_chain(labels, test_share=0.0), tmp_path / "split.json")
        open_end = fitted(Task(task.store, task.labels, tmp_path / "split.json"), tmp_path / "run")
        message = refusal(RunError, lambda: evaluate_run(open_end, part="test"))
        assert "has no window in part 'test'" in message
        assert looks_at(open_end) == ()

    def test_a_part_without_a_label_is_not_looked_at(self, task: Task, tmp_path: Path) -> None:
        frame = pl.read_parquet(task.labels)
        seen = pl.int_range(len(frame)) < round(0.8 * len(frame))
        told = ("label", "expansion_start", "expansion_end")
        bare = frame.with_columns(pl.when(seen).then(pl.col(name)).alias(name) for name in told)
        run = fitted(relabelled(task, tmp_path, bare), tmp_path / "run")
        message = refusal(RunError, lambda: evaluate_run(run, part="test"))
        assert "windows of part 'test'" in message
        assert "is labelled; label some" in message
        assert looks_at(run) == ()

    def test_windows_of_other_bars_are_not_compared(
        self, task: Task, run: Path, tmp_path: Path
    ) -> None:
        """Names and labels are the same, the windows begin three bars later."""
        assert task.store is not None
        frame = pl.read_parquet(task.labels)
        starts = read_labels(task.labels, store=task.store).start_bar
        assert starts is not None
        later = frame.with_columns(start_time=at_bars(task.store, starts + 3)["start_time"])
        other = fitted(relabelled(task, tmp_path, later), tmp_path / "later")
        run = copied(run, tmp_path)
        message = refusal(RunError, lambda: evaluate_run(run, against=other, part="test"))
        assert "has other bars in the labels of" in message
        assert looks_at(run) == looks_at(other) == ()

    def test_a_gpu_that_is_not_there(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        message = refusal(ConfigError, lambda: evaluate_run(run, device="cuda"))
        assert message == "device is 'cuda', and PyTorch sees no GPU; give auto or cpu"

    def test_other_classes_are_not_compared(
        self, run: Path, abstainer: Path, tmp_path: Path
    ) -> None:
        run = copied(run, tmp_path)
        message = refusal(RunError, lambda: evaluate_run(run, against=abstainer, part="test"))
        assert looks_at(run) == looks_at(abstainer) == ()
        assert f"{abstainer} has the classes retracement, none, {run} consolidation" in message
        assert "compare runs of the same classes" in message

    def test_runs_without_a_window_in_common(self, task: Task, run: Path, tmp_path: Path) -> None:
        frame = pl.read_parquet(task.labels)
        renamed = frame.with_columns(window_id="x" + frame["window_id"])
        other = fitted(relabelled(task, tmp_path, renamed), tmp_path / "run")
        message = refusal(RunError, lambda: evaluate_run(run, against=other))
        assert "have no window in common in part 'val'" in message


def test_volatility_by_hand() -> None:
    bars = prices(3)
    high, low, close = bars[:, :, 1], bars[:, :, 2], bars[:, :, 3]
    expected = []
    for w in range(3):
        ranges = [
            max(high[w, t], close[w, t - 1]) - min(low[w, t], close[w, t - 1])
            for t in range(1, 105)
        ]
        expected.append(np.mean(ranges) / np.mean(close[w]))
    assert volatility_of(bars) == pytest.approx(expected)
    assert volatility_of(bars * 1e6) == pytest.approx(expected)
    assert volatility_of(np.zeros((1, 105, 4))).tolist() == [0.0]
    assert tercile_edges(np.arange(7.0)) == (2.0, 4.0)


def test_the_floors_are_those_of_the_training_part(task: Task, run: Path) -> None:
    subject = open_subject(run)
    labels = read_labels(task.labels, store=task.store)
    split = read_split(task.split, labels)
    expected = TargetPriors.of(make_targets(labels), labels.classes, split.part("train"))
    np.testing.assert_array_equal(subject.priors.class_counts, expected.class_counts)
    assert subject.priors.best.hit_span == expected.best.hit_span
