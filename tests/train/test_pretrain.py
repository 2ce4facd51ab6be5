"""From a store to an encoder file, and from there into a model."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moola_features as mf
from moola_features.errors import OutputError
from moola_train.checkpoint import load_checkpoint
from moola_train.config import RunConfig
from moola_train.errors import (
    CheckpointError,
    ConfigError,
    LabelsError,
    ModelError,
    RunError,
    TrainError,
)
from moola_train.fit import fit
from moola_train.labels import read_labels, store_fingerprint
from moola_train.pretrain import PretrainReport, TrainingPeriod, pretrain, pretraining_windows
from moola_train.pretrain_config import PretrainConfig
from moola_train.runs import BEST, LATEST
from moola_train.splits import read_split
from moola_train.transfer import read_encoder
from tests.train.small import SETTINGS, Task, make_contained_task, make_task

CONFIG = PretrainConfig.from_dict(
    {
        **SETTINGS,
        "model": {**SETTINGS["model"], "preset": "jade-compact"},
        "data": {"batch_size": 32},
        "pretrain": {"stride": 13},
    }
)
FIT = RunConfig.from_dict(SETTINGS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("pretrain"))


@pytest.fixture
def store(task: Task) -> mf.Store:
    """Opened anew, for a test may spoil it."""
    assert task.store is not None
    opened = mf.open_store(task.store.path)
    assert isinstance(opened, mf.Store)
    return opened


@pytest.fixture(scope="module")
def pretrained(task: Task, tmp_path_factory: pytest.TempPathFactory) -> PretrainReport:
    folder = tmp_path_factory.mktemp("encoder")
    assert task.store is not None
    return pretrain(task.store, folder / "encoder.safetensors", folder / "run", CONFIG)


def with_settings(config: Any, **values: Any) -> Any:
    return config.override({name.replace("__", "."): value for name, value in values.items()})


class TestWindows:
    @pytest.mark.parametrize("stride", [1, 7, 52])
    @pytest.mark.parametrize("stop_bar", [None, 4_000])
    def test_validation_comes_after_training_and_a_purge(
        self, store: mf.Store, stride: int, stop_bar: int | None
    ) -> None:
        config = with_settings(CONFIG, pretrain__stride=stride)
        parts = pretraining_windows(store, config, stop_bar)
        read_before = parts["val"].starts.min() - store.config.first_valid_index
        assert parts["train"].starts.max() + 105 <= read_before
        if stop_bar is not None:
            assert parts["val"].starts.max() + 105 <= stop_bar
        total = len(parts["train"]) + len(parts["val"])
        assert len(parts["val"]) / total == pytest.approx(0.1, abs=0.06)

    def test_their_length_is_a_setting(self, store: mf.Store) -> None:
        config = with_settings(CONFIG, pretrain__window_length=60)
        assert {part.length for part in pretraining_windows(store, config).values()} == {60}

    def test_too_few_are_refused(self, store: mf.Store) -> None:
        config = with_settings(CONFIG, pretrain__stride=1_000, pretrain__val_share=0.01)
        with pytest.raises(RunError, match=r"has \d+ windows of 105 bars .* is left for val"):
            pretraining_windows(store, config)

    def test_a_split_gives_its_training_period(self, task: Task, store: mf.Store) -> None:
        period = TrainingPeriod.of(store, task.labels, task.split, 0)
        labels = read_labels(task.labels, store=store)
        split = read_split(task.split, labels)
        assert labels.start_bar is not None
        assert period.stop_bar == labels.start_bar[split.part("train")].max() + 105
        assert period.stop_bar <= labels.start_bar[split.part("val")].min()
        assert period.data["labels_sha256"] == labels.sha256()
        assert set(period.data) == {"labels_sha256", "split_sha256", "fold"}

    def test_labels_without_a_store_know_no_period(self, store: mf.Store, tmp_path: Path) -> None:
        other = make_contained_task(tmp_path)
        with pytest.raises(LabelsError, match="windows hold their own prices"):
            TrainingPeriod.of(store, other.labels, other.split, 0)


class TestPeriod:
    def test_nothing_behind_the_training_period_is_read(
        self, task: Task, store: mf.Store, tmp_path: Path
    ) -> None:
        period = TrainingPeriod.of(store, task.labels, task.split, 0)
        clean = pretrain(store, tmp_path / "a.safetensors", tmp_path / "a", CONFIG, period=period)
        features = np.array(store.features)
        features[period.stop_bar :] = np.nan
        store.features = features
        spoilt = pretrain(store, tmp_path / "b.safetensors", tmp_path / "b", CONFIG, period=period)
        assert clean.outcome == spoilt.outcome
        assert (
            read_encoder(tmp_path / "a.safetensors")[1]
            == read_encoder(tmp_path / "b.safetensors")[1]
        )  # digest of the weights among it
        with pytest.raises(TrainError, match="nan"):
            pretrain(store, tmp_path / "c.safetensors", tmp_path / "c", CONFIG)

    def test_the_period_is_kept_with_the_run_and_the_encoder(
        self, task: Task, store: mf.Store, tmp_path: Path
    ) -> None:
        period = TrainingPeriod.of(store, task.labels, task.split, 0)
        pretrain(store, tmp_path / "e.safetensors", tmp_path / "run", CONFIG, period=period)
        kept = json.loads((tmp_path / "run" / "data.json").read_text())
        assert kept == read_encoder(tmp_path / "e.safetensors")[1].data
        assert kept["split_sha256"] == period.data["split_sha256"]
        assert kept["last_time"] < kept_time(store, period)


def kept_time(store: mf.Store, period: TrainingPeriod) -> str:
    assert period.stop_bar is not None
    return mf.times.time_text(int(store.time[period.stop_bar]))


class TestRun:
    def test_the_card_says_what_the_encoder_is(
        self, task: Task, pretrained: PretrainReport
    ) -> None:
        assert pretrained.encoder is not None
        assert task.store is not None
        _, card = read_encoder(pretrained.encoder)
        assert card.objective == "mae"
        assert card.columns == task.store.names
        assert card.window_length == 105
        assert card.warm is True
        assert card.data["store_sha256"] == store_fingerprint(task.store)["sha256"]
        best = pretrained.outcome.best["metrics"]
        assert card.metrics == {name: metric["value"] for name, metric in best.items()}

    def test_the_encoder_is_that_of_the_best_validation(self, pretrained: PretrainReport) -> None:
        assert pretrained.encoder is not None
        tensors, _ = read_encoder(pretrained.encoder)
        best = load_checkpoint(pretrained.run / BEST)["model"]
        assert set(tensors) == {n for n in best if n.startswith("encoder.") or n == "mask_vector"}
        for name, tensor in tensors.items():
            assert torch.equal(tensor, best[name])

    def test_every_column_stands_beside_both_floors(self, pretrained: PretrainReport) -> None:
        summary = json.loads((pretrained.run / "summary.json").read_text())
        assert [entry["column"] for entry in summary["columns"]] == list(
            read_encoder(str(pretrained.encoder))[1].columns
        )
        for entry in summary["columns"]:
            assert set(entry) == {"column", "loss", "mean_floor", "interpolation_floor"}
        best = pretrained.outcome.best["metrics"]
        assert best["loss"]["value"] < best["mean_floor"]["value"]  # neighbours do tell
        assert best["loss"]["floor"] == best["interpolation_floor"]["value"]
        errors = [entry["loss"] for entry in summary["columns"]]
        assert np.mean(errors) == pytest.approx(best["loss"]["value"])

    def test_training_starts_at_the_mean(self, pretrained: PretrainReport) -> None:
        lines = (pretrained.run / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        floor = pretrained.outcome.best["metrics"]["mean_floor"]["value"]
        first = next(r for r in records if r["part"] == "train")
        assert first["terms"]["reconstruction"] == pytest.approx(floor, rel=0.5)

    def test_the_settings_come_back(self, pretrained: PretrainReport) -> None:
        assert PretrainConfig.from_toml(pretrained.run / "config.toml") == CONFIG

    def test_the_same_seed_gives_the_same_file(
        self, store: mf.Store, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        again = pretrain(store, tmp_path / "e.safetensors", tmp_path / "run", CONFIG)
        assert again.encoder is not None
        assert pretrained.encoder is not None
        assert again.encoder.read_bytes() == pretrained.encoder.read_bytes()
        other = with_settings(CONFIG, loop__seed=13)
        seeded = pretrain(store, tmp_path / "o.safetensors", tmp_path / "other", other)
        assert seeded.encoder is not None
        assert seeded.encoder.read_bytes() != pretrained.encoder.read_bytes()

    def test_a_run_goes_on_to_the_same_bits(
        self, store: mf.Store, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        part = with_settings(CONFIG, loop__max_steps=pretrained.outcome.step // 2 + 1)
        target, folder = tmp_path / "e.safetensors", tmp_path / "run"
        pretrain(store, target, folder, part)
        pretrain(store, target, folder, CONFIG, resume=True)
        assert pretrained.encoder is not None
        assert target.read_bytes() == pretrained.encoder.read_bytes()

    def test_a_run_that_is_stopped_writes_no_encoder_until_it_is_over(
        self, store: mf.Store, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        def stop(record: dict[str, Any]) -> None:
            if record["step"] == 4:
                signal.raise_signal(signal.SIGTERM)

        target, folder = tmp_path / "e.safetensors", tmp_path / "run"
        stopped = pretrain(store, target, folder, CONFIG, report=stop)
        assert (stopped.outcome.status, stopped.outcome.step) == ("stopped", 4)
        assert stopped.encoder is None
        assert not target.exists()
        assert pretrain(store, target, folder, CONFIG, resume=True).encoder == target
        assert pretrained.encoder is not None
        assert target.read_bytes() == pretrained.encoder.read_bytes()

    @pytest.mark.parametrize("masking", ["block", "patch"])
    def test_other_masks_make_other_encoders(
        self, store: mf.Store, pretrained: PretrainReport, tmp_path: Path, masking: str
    ) -> None:
        config = with_settings(CONFIG, pretrain__masking=masking, loop__epochs=1)
        found = pretrain(store, tmp_path / "e.safetensors", tmp_path / "run", config)
        assert found.outcome.best["metrics"] != pretrained.outcome.best["metrics"]

    def test_mistakes_are_found_before_anything_is_trained(
        self, store: mf.Store, tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=r"must be a name that ends in \.safetensors"):
            pretrain(store, tmp_path / "encoder.pt", tmp_path / "run", CONFIG)
        with pytest.raises(OutputError, match="there is no folder"):
            pretrain(store, tmp_path / "none" / "e.safetensors", tmp_path / "run", CONFIG)
        config = with_settings(CONFIG, model__preset="jade-giant")
        with pytest.raises(ConfigError, match="there is no preset 'jade-giant'"):
            pretrain(store, tmp_path / "e.safetensors", tmp_path / "run", config)
        assert not (tmp_path / "run").exists()

    def test_another_run_is_not_gone_on_with(
        self, store: mf.Store, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        target = tmp_path / "e.safetensors"
        config = with_settings(CONFIG, pretrain__masking="block")
        with pytest.raises(RunError, match=r"pretrain\.masking = 'random', not 'block'"):
            pretrain(store, target, pretrained.run, config, resume=True)
        with pytest.raises(RunError, match="holds a run; go on with --resume auto"):
            pretrain(store, target, pretrained.run, CONFIG)


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("objective", "gpt", "choose one of mae"),
            ("masking", "holes", "choose one of random, block, patch"),
            ("mask_ratio", 1.0, "from 0.01 to 0.9"),
            ("stride", 0, "whole number from 1"),
            ("val_share", 0.9, "from 0.001 to 0.5"),
            ("window_length", 1, "whole number from 2"),
        ],
    )
    def test_what_is_out_of_bounds_is_named(self, name: str, value: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=rf"pretrain\.{name} is .*{message}"):
            PretrainConfig.from_dict({"pretrain": {name: value}})

    def test_defaults_fill_a_section_that_is_given_in_part(self) -> None:
        config = PretrainConfig.from_dict({"model": {"hidden": 32}, "loop": {"seed": 3}})
        assert config.model.preset == "jade-mae"
        assert (config.loop.epochs, config.data.batch_size) == (50, 1_024)
        with pytest.raises(ConfigError, match=r"unknown section \[pretraining\]"):
            PretrainConfig.from_dict({"pretraining": {}})


class TestTransfer:
    def run(self, task: Task, folder: Path, encoder: Path | None, **settings: Any) -> Any:
        config = with_settings(FIT, **settings)
        return fit(task.store, task.labels, task.split, folder, config, encoder=encoder)

    def encoder_of(self, folder: Path) -> dict[str, torch.Tensor]:
        weights = load_checkpoint(folder / LATEST)["model"]
        return {n: tensor for n, tensor in weights.items() if n.startswith("encoder.")}

    def test_frozen_weights_stay_still_and_move_afterwards(
        self, task: Task, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        assert pretrained.encoder is not None
        given, _ = read_encoder(pretrained.encoder)
        still = {"optimiser__freeze_epochs": 2, "loop__epochs": 2}
        found = self.run(task, tmp_path / "still", pretrained.encoder, **still)
        frozen = self.encoder_of(tmp_path / "still")
        assert all(torch.equal(tensor, given[name]) for name, tensor in frozen.items())
        assert found.transfer.loaded == tuple(frozen)
        assert found.transfer.refused == {"mask_vector": "no part of the encoder"}
        plain = self.run(task, tmp_path / "plain", None)
        assert plain.transfer is None
        assert found.num_parameters == plain.num_parameters  # frozen ones among them

        self.run(task, tmp_path / "moves", pretrained.encoder, **{**still, "loop__epochs": 3})
        moved = self.encoder_of(tmp_path / "moves")
        assert not any(torch.equal(tensor, given[name]) for name, tensor in moved.items())

    def test_heads_learn_while_the_encoder_is_frozen(
        self, task: Task, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        frozen = {"optimiser__freeze_epochs": 2}
        self.run(task, tmp_path / "run", pretrained.encoder, **frozen)
        self.run(task, tmp_path / "first", pretrained.encoder, **frozen, loop__max_steps=1)
        later, first = (
            load_checkpoint(tmp_path / name / LATEST)["model"] for name in ("run", "first")
        )
        assert not torch.equal(later["heads.type.output.weight"], first["heads.type.output.weight"])

    def test_a_run_remembers_its_encoder(
        self, task: Task, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        assert pretrained.encoder is not None
        self.run(task, tmp_path / "run", pretrained.encoder)
        kept = json.loads((tmp_path / "run" / "data.json").read_text())
        assert kept["encoder_sha256"] == read_encoder(pretrained.encoder)[1].weights_sha256
        with pytest.raises(RunError, match=r"was run on encoder_sha256 = .*, not None"):
            fit(task.store, task.labels, task.split, tmp_path / "run", FIT, resume=True)

    def test_an_encoder_of_another_size_names_both_shapes(
        self, task: Task, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        message = re.escape("is [32, 11], the model's is [48, 11]")
        with pytest.raises(ModelError, match=message):
            self.run(task, tmp_path / "run", pretrained.encoder, model__hidden=12)
        assert not (tmp_path / "run").exists()

    def test_an_encoder_of_other_columns_names_them(
        self, task: Task, pretrained: PretrainReport, tmp_path: Path
    ) -> None:
        other = make_contained_task(tmp_path)
        config = mf.FeatureConfig(family="returns")
        with pytest.raises(ModelError, match="read other columns: this run lacks open_norm, "):
            fit(
                None, other.labels, other.split, tmp_path / "run", FIT,
                encoder=pretrained.encoder, feature_config=config,
            )  # fmt: skip

    def test_a_cold_start_warns(self, pretrained: PretrainReport, tmp_path: Path) -> None:
        other = make_contained_task(tmp_path)
        with pytest.warns(UserWarning, match="windows of a store and now reads windows from a"):
            fit(
                None, other.labels, other.split, tmp_path / "run",
                with_settings(FIT, loop__epochs=1), encoder=pretrained.encoder,
            )  # fmt: skip

    def test_another_window_length_warns(self, task: Task, store: mf.Store, tmp_path: Path) -> None:
        short = with_settings(CONFIG, pretrain__window_length=60, loop__max_steps=1)
        pretrain(store, tmp_path / "e.safetensors", tmp_path / "short", short)
        with pytest.warns(UserWarning, match="windows of 60 bars and now reads 105"):
            self.run(task, tmp_path / "run", tmp_path / "e.safetensors", loop__max_steps=1)
