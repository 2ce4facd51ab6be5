"""A run that is loaded again predicts what it predicted, and nothing that does not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import moola_features as mf
from moola_features.errors import WindowError
from moola_train.config import RunConfig
from moola_train.errors import ModelError, RunError
from moola_train.fit import FitReport, fit
from moola_train.inference import Predictor
from moola_train.labels import read_labels
from moola_train.metrics import evaluate
from moola_train.mirror import MirrorImage
from moola_train.models import build
from moola_train.run_data import RunData
from moola_train.runs import DATA, WEIGHTS
from moola_train.splits import read_split
from moola_train.targets import TargetPriors, make_targets
from tests.train.labelled import prices
from tests.train.small import SETTINGS, Task, make_contained_task, make_task

SMALL = RunConfig.from_dict(SETTINGS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("inference"))


@pytest.fixture(scope="module")
def store(task: Task) -> mf.Store:
    assert task.store is not None
    return task.store


@pytest.fixture(scope="module")
def fitted(task: Task, tmp_path_factory: pytest.TempPathFactory) -> FitReport:
    return fit(task.store, task.labels, task.split, tmp_path_factory.mktemp("runs") / "run", SMALL)


@pytest.fixture(scope="module")
def spans(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the preset with edges."""
    config = SMALL.override({"model.preset": "jade-span", "loop.epochs": 1})
    path = tmp_path_factory.mktemp("runs") / "spans"
    return fit(task.store, task.labels, task.split, path, config).run


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder / "copy")
    return folder / "copy"


def edited(run: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    path = copied(run, folder)
    document = json.loads((path / DATA).read_text())
    edit(document)
    (path / DATA).write_text(json.dumps(document))
    return path


def refusal(error: type[Exception], action: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestPredictions:
    def test_a_loaded_run_scores_what_it_scored_in_training(
        self, task: Task, store: mf.Store, fitted: FitReport
    ) -> None:
        labels = read_labels(task.labels, store=store)
        split = read_split(task.split, labels)
        targets = make_targets(labels)
        rows = split.part("val")
        assert labels.start_bar is not None
        found = Predictor.open(fitted.run).predict(store, labels.start_bar[rows])
        priors = TargetPriors.of(targets, labels.classes, split.part("train"))
        scores = evaluate(found, {name: v[rows] for name, v in targets.items()}, priors)
        best = fitted.outcome.best["metrics"]
        assert set(scores) == set(best) - {"loss"}
        for name, metric in scores.items():
            assert metric.value == pytest.approx(best[name]["value"], abs=1e-6), name

    def test_shapes_and_what_they_mean(self, store: mf.Store, spans: Path) -> None:
        starts = store.windows(105, 400).starts
        found = Predictor.open(spans).predict(store, starts)
        count = len(starts)
        assert found["type_probability"].shape == (count, 2)
        for name in ("start_probability", "end_probability", "span_probability"):
            assert found[name].shape == (count, 105)
        for name in ("type_probability", "start_probability", "end_probability"):
            np.testing.assert_allclose(found[name].sum(axis=1), 1.0, rtol=1e-5)
        assert found["start"].dtype == np.int64
        assert (found["end"] > found["start"]).all()
        np.testing.assert_array_equal(
            found["expansion_probability"], found["span_probability"].max(axis=1)
        )

    def test_batches_change_nothing(self, store: mf.Store, spans: Path) -> None:
        predictor = Predictor.open(spans)
        starts = store.windows(105, 300).starts
        expected = predictor.predict(store, starts)
        order = np.random.default_rng(3).permutation(len(starts))
        actual = predictor.predict(store, starts[order], batch_size=3)
        for name, values in expected.items():
            np.testing.assert_allclose(actual[name], values[order], atol=1e-6, err_msg=name)

    def test_a_model_that_learnt_both_ways_up_reads_both(
        self, task: Task, store: mf.Store, spans: Path, tmp_path: Path
    ) -> None:
        config = SMALL.override({"model.preset": "jade-span", "augment.mirror": 0.5})
        run = fit(store, task.labels, task.split, tmp_path / "run", config).run
        image = MirrorImage(mf.columns(store.config))
        upright = store.windows(105, 300).gather(np.arange(20))
        turned = image(torch.from_numpy(upright)).numpy()
        both, one = Predictor.open(run), Predictor.open(spans)
        found, other = both.predict_windows(upright), both.predict_windows(turned)
        for name, values in found.items():  # turned twice, 1 - (1 - x) is x but for the last bit
            np.testing.assert_allclose(values, other[name], atol=1e-6, err_msg=name)
        assert np.isfinite(found["start_probability"]).all()
        np.testing.assert_allclose(found["start_probability"].sum(axis=1), 1, rtol=1e-5)
        found, other = one.predict_windows(upright), one.predict_windows(turned)
        assert not np.array_equal(found["start_probability"], other["start_probability"])

    def test_nothing_is_rounded_to_tf32(
        self, store: mf.Store, spans: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        predictor = Predictor.open(spans)
        operations: Any = torch.backends.cudnn.rnn
        monkeypatch.setattr(operations, "fp32_precision", "tf32")
        seen = []
        predictor.model.register_forward_hook(lambda *_: seen.append(operations.fp32_precision))
        predictor.predict(store, store.windows(105, 300).starts[:3], batch_size=2)
        assert seen == ["ieee", "ieee"]

    def test_no_windows_are_no_predictions(self, store: mf.Store, spans: Path) -> None:
        found = Predictor.open(spans).predict(store, [])
        assert found["type_probability"].shape == (0, 2)
        assert found["start"].shape == (0,)

    def test_the_class_none_is_no_expansion(self, store: mf.Store, spans: Path) -> None:
        data = RunData.read(spans)
        data = dataclasses.replace(data, classes=("consolidation", "none"))
        predictor = Predictor(data.make_model(), data, torch.device("cpu"))
        found = predictor.predict(store, store.windows(105, 1_000).starts)
        np.testing.assert_array_equal(
            found["expansion_probability"], 1 - found["type_probability"][:, 1]
        )

    def test_a_model_without_spans_knows_no_expansion(self, store: mf.Store, spans: Path) -> None:
        model = build("jade", num_classes=2, hidden_size=4)
        data = dataclasses.replace(RunData.read(spans), settings=model.settings)
        predictor = Predictor(model, data, torch.device("cpu"))
        found = predictor.predict(store, store.windows(105, 1_000).starts)
        assert set(found) == {"type_probability", "start", "end"}

    def test_windows_that_hold_their_own_prices(self, store: mf.Store, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        run = fit(None, task.labels, task.split, tmp_path / "run", SMALL).run
        predictor = Predictor.open(run)
        windows = prices(5, seed=3)
        found = predictor.predict_prices(windows)
        again = predictor.predict_windows(mf.transform_windows(windows))
        np.testing.assert_array_equal(found["span_probability"], again["span_probability"])
        message = refusal(ModelError, lambda: predictor.predict(store, [30]))
        assert "trained on windows from a cold start" in message


class TestRefusals:
    def test_a_store_with_other_columns(
        self, spans: Path, tmp_path: Path, sample_bars: mf.Bars
    ) -> None:
        predictor = Predictor.open(spans)

        def built(name: str, **settings: Any) -> mf.Store:
            config = mf.FeatureConfig(**settings)
            found: mf.Store = mf.open_store(
                mf.build(sample_bars[:3_000], tmp_path / name, config).path
            )
            return found

        for store, words in (
            (built("a.zarr", family="returns"), "column 0 of"),
            (built("b.zarr", context=True), "columns, the model reads 11"),
            (built("c.zarr", k=2.0), "built with k = 2.0, the model was trained with 1.2"),
        ):
            message = refusal(ModelError, lambda s=store: predictor.predict(s, [500]))
            assert words in message
        later = built("d.zarr", warmup_bars=300)
        assert len(predictor.predict(later, [500])["start"]) == 1
        message = refusal(ModelError, lambda: predictor.predict(later, [500, 200]))
        assert "starts[1] = 200" in message

    def test_a_window_across_a_gap(self, spans: Path, tmp_path: Path) -> None:
        price = 100 + np.cumsum(np.random.default_rng(1).normal(size=2_000))
        time = np.arange(2_000) * 60_000_000_000
        time[1_000:] += 86_400_000_000_000
        bars = mf.Bars(time=time, open=price, high=price + 1, low=price - 1, close=price)
        config = mf.FeatureConfig(max_gap="4h")
        store = mf.open_store(mf.build(bars, tmp_path / "gap.zarr", config).path)
        predictor = Predictor.open(spans)
        # After a gap features begin anew: those of a store with other gaps are others.
        message = refusal(ModelError, lambda: predictor.predict(store, [895]))
        assert "was built with max_gap = '4h', the model was trained with None" in message
        predictor.data = dataclasses.replace(predictor.data, features=store.config)
        assert len(predictor.predict(store, [895])["start"]) == 1
        assert "starts[0] = 896" in refusal(ModelError, lambda: predictor.predict(store, [896]))
        with pytest.raises(WindowError, match="starts reach"):
            predictor.predict(store, [1_990])

    @pytest.mark.parametrize("starts", [[[100]], [100.7], "100", ["a"]])
    def test_starts_that_are_none(self, store: mf.Store, spans: Path, starts: Any) -> None:
        predictor = Predictor.open(spans)
        message = refusal(ModelError, lambda: predictor.predict(store, starts))
        assert message.endswith("give whole numbers, [N]")

    @pytest.mark.parametrize("size", [0, -1, 2.5, True])
    def test_batches_that_are_none(self, store: mf.Store, spans: Path, size: Any) -> None:
        predictor = Predictor.open(spans)
        message = refusal(ModelError, lambda: predictor.predict(store, [200], batch_size=size))
        assert message == f"batch_size is {size!r}; give a whole number from 1"

    def test_windows_of_another_shape(self, spans: Path) -> None:
        predictor = Predictor.open(spans)
        message = refusal(
            ModelError, lambda: predictor.predict_windows(np.zeros((2, 64, 11), np.float32))
        )
        assert "windows are [64, 11], the model reads [105, 11]" in message
        bad = np.zeros((2, 105, 11), np.float32)
        bad[1, 3, 4] = np.nan
        message = refusal(ModelError, lambda: predictor.predict_windows(bad))
        assert "not finite" in message
        message = refusal(ModelError, lambda: predictor.predict_prices(prices(1)))
        assert "windows of a store" in message

    def test_folders_that_are_no_run(self, fitted: FitReport, tmp_path: Path) -> None:
        assert "data.json cannot be read" in refusal(RunError, lambda: Predictor.open(tmp_path))
        (tmp_path / DATA).write_text("{")
        assert "is no JSON" in refusal(RunError, lambda: Predictor.open(tmp_path))
        (tmp_path / DATA).write_text('{"store": null}')
        message = refusal(RunError, lambda: Predictor.open(tmp_path))
        assert "has no classes; give another folder, or train again" in message
        running = copied(fitted.run, tmp_path)
        (running / WEIGHTS).unlink()
        assert "let the run end first" in refusal(RunError, lambda: Predictor.open(running))
        (running / WEIGHTS).write_bytes(b"no weights")
        assert "is no safetensors file" in refusal(RunError, lambda: Predictor.open(running))

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda d: d.update(fold="0"), "fold is '0'"),
            (lambda d: d["store"].pop("values_sha256"), "is of an earlier moola"),
            (lambda d: d["features"].update(depth=3), "is of another moola: unknown setting"),
            (lambda d: d["settings"].update(depth=3), "is of another moola"),
            (lambda d: d["settings"].update(hidden_size=9), "encoder.lstm.weight_ih_l0 is [32"),
        ],
    )
    def test_a_run_that_does_not_hold_together(
        self, fitted: FitReport, tmp_path: Path, edit: Callable[[dict[str, Any]], None], words: str
    ) -> None:
        path = edited(fitted.run, tmp_path, edit)
        assert words in refusal(RunError, lambda: Predictor.open(path))

    def test_weights_are_loaded_strictly(self, fitted: FitReport, tmp_path: Path) -> None:
        path = copied(fitted.run, tmp_path)
        weights = load_file(path / WEIGHTS)
        save_file({**weights, "stranger": torch.zeros(2)}, path / WEIGHTS)
        message = refusal(RunError, lambda: Predictor.open(path))
        assert "stranger is [2] in weights.safetensors and None in the model" in message


def test_what_a_run_was_trained_on_comes_back(task: Task, fitted: FitReport) -> None:
    data = RunData.read(fitted.run)
    assert data.to_dict() == json.loads((fitted.run / DATA).read_text())
    assert data.classes == ("consolidation", "retracement")
    assert data.columns == mf.FeatureConfig().names
    assert task.store is not None
    assert data.paths == {
        "labels": str(task.labels.resolve()),
        "split": str(task.split.resolve()),
        "store": str(task.store.path.resolve()),
    }


def test_a_run_goes_on_with_copies_of_its_files(
    task: Task, fitted: FitReport, tmp_path: Path
) -> None:
    run = copied(fitted.run, tmp_path)
    labels = Path(shutil.copy(task.labels, tmp_path / "copied.parquet"))
    found = fit(task.store, labels, task.split, run, SMALL, resume=True)
    assert found.outcome.epoch == fitted.outcome.epoch
    assert RunData.read(run).paths["labels"] == str(labels.resolve())
