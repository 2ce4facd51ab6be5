"""From labels and a split to a run folder."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import moola_features as mf
from moola_train.checkpoint import load_checkpoint
from moola_train.config import RunConfig
from moola_train.errors import ConfigError, LabelsError, ModelError, RunError, SplitError
from moola_train.fit import FitReport, fit
from moola_train.inference import Predictor
from moola_train.labels import read_labels
from moola_train.runs import BEST, CONFIG, DATA, ENVIRONMENT, LATEST, METRICS, SUMMARY, WEIGHTS
from moola_train.splits import read_split
from tests.train.labelled import anchored, contained
from tests.train.small import SETTINGS, Task, make_contained_task, make_task

SMALL = RunConfig.from_dict(SETTINGS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def fitted(task: Task, tmp_path_factory: pytest.TempPathFactory) -> FitReport:
    return run(task, tmp_path_factory.mktemp("fitted") / "run")


def run(task: Task, folder: Path, config: RunConfig = SMALL, **settings: Any) -> FitReport:
    return fit(task.store, task.labels, task.split, folder, config, **settings)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def records(folder: Path, part: str) -> list[dict[str, Any]]:
    lines = (folder / METRICS).read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["part"] == part]


class TestFolder:
    def test_it_holds_all_of_a_run(self, fitted: FitReport) -> None:
        names = {path.name for path in fitted.run.iterdir()}
        assert names >= {CONFIG, ENVIRONMENT, DATA, METRICS, SUMMARY, LATEST, BEST, WEIGHTS}

    def test_the_settings_come_back(self, fitted: FitReport) -> None:
        assert RunConfig.from_toml(fitted.run / CONFIG) == SMALL

    def test_the_environment_names_versions(self, fitted: FitReport) -> None:
        found = read(fitted.run, ENVIRONMENT)
        assert found["torch"] == torch.__version__
        assert found["numpy"] == np.__version__

    def test_the_data_has_its_fingerprints(self, fitted: FitReport, task: Task) -> None:
        found = read(fitted.run, DATA)
        labels = read_labels(task.labels, store=task.store)
        assert found["labels_sha256"] == labels.sha256()
        assert found["store"].pop("values_sha256")  # of features too, which labels do not know
        assert found["store"] == labels.store
        assert found["fold"] == 0
        assert len(found["split_sha256"]) == 64
        assert found["encoder_sha256"] is None

    def test_the_summary_is_the_report(self, fitted: FitReport, task: Task) -> None:
        assert read(fitted.run, SUMMARY) == json.loads(json.dumps(fitted.to_dict()))
        assert fitted.outcome.status == "finished"
        assert fitted.outcome.epoch == 2
        split = json.loads(task.split.read_text())["parts"][0]
        assert fitted.parts == {name: len(split[name]) for name in ("train", "val")}
        assert fitted.outcome.step == 2 * (fitted.parts["train"] // 8)

    def test_metrics_stand_beside_their_floors(self, fitted: FitReport) -> None:
        validations = records(fitted.run, "val")
        assert [record["epoch"] for record in validations] == [1, 2]
        for name in ("accuracy", "brier", "span_f1", "start_mae", "countdown_mae"):
            metric = validations[-1]["metrics"][name]
            assert metric["floor"] is not None
            assert np.isfinite(metric["value"])
        losses = [record["metrics"]["loss"]["value"] for record in validations]
        assert fitted.outcome.best["value"] == min(losses)

    def test_training_is_logged(self, fitted: FitReport) -> None:
        for record in records(fitted.run, "train"):
            assert set(record["terms"]) == {"type", "pointers", "span", "countdown"}
            assert record["learning_rate"] > 0
            assert record["gradient_norm"] > 0
            assert record["timing"]["windows_per_second"] > 0
            assert 0 <= record["timing"]["waiting_share"] <= 1
            assert record["step"] % 2 == 0

    def test_the_weights_are_those_of_the_best_validation(self, fitted: FitReport) -> None:
        weights, best = load_file(fitted.run / WEIGHTS), load_checkpoint(fitted.run / BEST)["model"]
        assert set(weights) == set(best)
        assert all(torch.equal(tensor, best[name]) for name, tensor in weights.items())

    def test_every_record_is_reported(self, task: Task, tmp_path: Path) -> None:
        told: list[dict[str, Any]] = []
        run(task, tmp_path / "run", report=told.append)
        lines = (tmp_path / "run" / METRICS).read_text().splitlines()
        assert told == [json.loads(line) for line in lines]


class TestData:
    def test_only_training_and_validation_are_read(self, task: Task, tmp_path: Path) -> None:
        assert task.store is not None
        store = mf.open_store(task.store.path)
        assert isinstance(store, mf.Store)
        labels = read_labels(task.labels, store=store)
        tested = json.loads(task.split.read_text())["parts"][0]["test"]
        features = np.array(store.features)
        rows = [labels.window_id.index(name) for name in tested]
        assert labels.start_bar is not None
        for start in labels.start_bar[rows]:
            features[start : start + 105] = np.nan
        clean = run(task, tmp_path / "clean")
        store.features = features
        spoilt = run(Task(store, task.labels, task.split), tmp_path / "spoilt")
        assert spoilt.outcome == clean.outcome

    def test_windows_with_their_own_prices_need_no_store(self, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        found = run(task, tmp_path / "run")
        assert found.outcome.status == "finished"
        assert read(tmp_path / "run", DATA)["store"] is None
        assert found.num_parameters == run_parameters(11)

    def test_their_features_are_a_choice(self, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        config = mf.FeatureConfig.profile("wide")
        found = run(task, tmp_path / "run", feature_config=config)
        assert found.num_parameters == run_parameters(len(config.names))

    def test_balanced_draws_are_drawn(self, task: Task, tmp_path: Path, fitted: FitReport) -> None:
        found = run(task, tmp_path / "run", SMALL.override({"data.balanced": True}))
        assert found.outcome.step == fitted.outcome.step
        assert found.outcome.best["metrics"] != fitted.outcome.best["metrics"]

    def test_a_class_of_one_is_refused(self, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        kinds = ["consolidation"] * 29
        contained(30, label=["retracement", *kinds]).write_parquet(task.labels)
        task.split.unlink()
        again = remake_split(task)
        with pytest.raises(LabelsError, match="class 'retracement' has 1 of"):
            run(again, tmp_path / "run")

    def test_a_validation_part_without_a_label_is_refused(self, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        frame = pl.read_parquet(task.labels)
        val = read_split(task.split, read_labels(task.labels)).part("val")
        told = ("label", "expansion_start", "expansion_end")
        seen = ~pl.int_range(len(frame)).is_in(val.tolist())
        bare = (pl.when(seen).then(pl.col(name)).alias(name) for name in told)
        frame.with_columns(bare).write_parquet(task.labels)
        task.split.unlink()
        again = remake_split(task)
        with pytest.raises(LabelsError, match="windows of the validation part is labelled"):
            run(again, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_another_split_is_refused(self, task: Task, tmp_path: Path) -> None:
        other = make_contained_task(tmp_path)
        with pytest.raises(SplitError, match="made from other labels"):
            fit(task.store, task.labels, other.split, tmp_path / "run", SMALL)
        with pytest.raises(SplitError, match="fold is 1"):
            run(task, tmp_path / "run", fold=1)

    def test_anchored_labels_need_their_store(self, task: Task, tmp_path: Path) -> None:
        with pytest.raises(SplitError, match=r"made with the store .* no store is given"):
            fit(None, task.labels, task.split, tmp_path / "run", SMALL)

    def test_labels_outside_the_store_are_named(self, task: Task, tmp_path: Path) -> None:
        labels = tmp_path / "labels.parquet"
        anchored(["1999-01-04 10:00", "1999-01-05 10:00"]).write_parquet(labels)
        with pytest.raises(LabelsError, match=r"no bar of .* begins then; it has 2020"):
            fit(task.store, labels, task.split, tmp_path / "run", SMALL)


def run_parameters(num_features: int) -> int:
    """Of jade-compact with 8 units and two classes."""
    from moola_train.models import build

    return build(
        "jade-compact", num_features=num_features, num_classes=2, hidden_size=8
    ).num_parameters


def remake_split(task: Task) -> Task:
    from moola_train.splits import forward_chain, write_split

    labels = read_labels(task.labels, store=task.store)
    write_split(forward_chain(labels, val_share=0.2, test_share=0.2), task.split)
    return task


class TestRuns:
    def test_the_same_seed_gives_the_same_bits(
        self, task: Task, fitted: FitReport, tmp_path: Path
    ) -> None:
        run(task, tmp_path / "again")
        assert (tmp_path / "again" / WEIGHTS).read_bytes() == (fitted.run / WEIGHTS).read_bytes()
        run(task, tmp_path / "other", SMALL.override({"loop.seed": 13}))
        assert (tmp_path / "other" / WEIGHTS).read_bytes() != (fitted.run / WEIGHTS).read_bytes()

    def test_a_run_that_is_stopped_before_its_first_validation_has_no_weights(
        self, task: Task, tmp_path: Path
    ) -> None:
        def stop(_record: dict[str, Any]) -> None:
            signal.raise_signal(signal.SIGINT)

        config = SMALL.override({"loop.validate_epochs": 2})
        report = run(task, tmp_path / "run", config, report=stop)
        assert (report.outcome.status, report.outcome.best) == ("stopped", {})
        assert not (tmp_path / "run" / WEIGHTS).exists()
        with pytest.raises(RunError, match="let the run end first"):
            Predictor.open(tmp_path / "run")
        run(task, tmp_path / "run", config, resume=True)
        run(task, tmp_path / "whole", config)
        weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("run", "whole")]
        assert weights[0] == weights[1]

    def test_a_folder_that_holds_a_run_is_left_alone(self, task: Task, fitted: FitReport) -> None:
        before = (fitted.run / METRICS).read_bytes()
        with pytest.raises(RunError, match="holds a run; go on with --resume auto"):
            run(task, fitted.run)
        with pytest.raises(RunError, match=r"with data\.batch_size = 8, not 4"):
            run(task, fitted.run, SMALL.override({"data.batch_size": 4}), resume=True)
        assert (fitted.run / METRICS).read_bytes() == before

    @pytest.mark.parametrize("preset", ["jade-mae", "multitask"])
    def test_a_preset_that_learns_from_bars_is_refused(
        self, task: Task, tmp_path: Path, preset: str
    ) -> None:
        with pytest.raises(ModelError, match=r"is for pretraining, .* choose one of jade-compact"):
            run(task, tmp_path / "run", SMALL.override({"model.preset": preset}))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("preset", "balance"),
        [
            ("jade", "kendall"),
            ("jade-span", "kendall"),
            ("jade-span", "running-mean"),
            ("simple-lstm", "fixed"),
        ],
    )
    def test_every_other_preset_fits(
        self, task: Task, tmp_path: Path, preset: str, balance: str
    ) -> None:
        settings = {"model.preset": preset, "loss.balance": balance, "loop.epochs": 1}
        assert run(task, tmp_path / "run", SMALL.override(settings)).outcome.best

    def test_a_preset_without_sigmas_asks_for_another_balance(
        self, task: Task, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=r"'simple-lstm' has no log sigmas to learn"):
            run(task, tmp_path / "run", SMALL.override({"model.preset": "simple-lstm"}))

    def test_settings_reach_the_model(self, task: Task, tmp_path: Path) -> None:
        config = SMALL.override(
            {
                "model.layers": 2, "model.recurrent_dropout": 0.2, "model.position": True,
                "model.head_dropout": 0.1, "loss.type_loss": "focal", "loop.epochs": 1,
                "loss.class_weights": "1, 1.17",
            }
        )  # fmt: skip
        run(task, tmp_path / "run", config)
        settings = load_checkpoint(tmp_path / "run" / LATEST)["settings"]
        assert settings["num_layers"] == 2
        assert settings["hidden_size"] == 8
        assert settings["recurrent_dropout"] == 0.2
        assert settings["position"] is True
        assert settings["head_dropout"] == 0.1
        assert settings["focal_gamma"] == 2.0
        assert settings["class_weights"] == (1.0, 1.17)
        assert settings["num_classes"] == 2

    def test_window_ids_may_be_anything(self, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        frame = pl.read_parquet(task.labels)
        frame.with_columns(window_id=pl.format("Fenster {} \N{RIGHTWARDS ARROW}", "window_id")
        ).write_parquet(task.labels)  # fmt: skip
        assert run(remake_split(task), tmp_path / "run").outcome.status == "finished"
