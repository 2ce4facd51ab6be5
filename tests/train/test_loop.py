"""The loop learns, stops when it should, and keeps its promises on the way."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moola_train.loop as loop_module
import moola_train.step as step_module
from moola_features import transform_windows
from moola_features.config import FeatureConfig
from moola_train.checkpoint import load_checkpoint
from moola_train.config import RunConfig
from moola_train.errors import LoaderError, RunError
from moola_train.first_batch import check_batch
from moola_train.fit import fit
from moola_train.labels import read_labels
from moola_train.loaders import WindowLoader
from moola_train.metrics import Metric
from moola_train.models import Model
from moola_train.objectives import COLLAPSE_SHARE, Supervised, predict
from moola_train.optimiser import ENCODER, HEADS
from moola_train.order import BatchOrder
from moola_train.outcome import step_seed
from moola_train.runs import BEST, LATEST, METRICS
from moola_train.splits import forward_chain, write_split
from moola_train.tally import Tally
from moola_train.targets import TargetPriors, make_targets
from tests.train.dispatch import NoHostSync
from tests.train.labelled import contained, prices
from tests.train.loops import (
    BATCH,
    CLASSES,
    STEPS_PER_EPOCH,
    Changed,
    config_of,
    loader_of,
    loop_of,
    model_of,
    priors_of,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Watched(Changed):
    """Keeps the weights as they were at every step; changes the losses of one step."""

    def __init__(self, step: int | None = None, change: Any = None, **given: Any) -> None:
        super().__init__(**given)
        self.weights: list[dict[str, Tensor]] = []
        self._step = step
        self._of_step = change

    def losses(self, model: Model, batch: Any) -> dict[str, Tensor]:
        found = super().losses(model, batch)
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return self._of_step(found, model) if len(self.weights) - 1 == self._step else found


def equal(first: dict[str, Tensor], second: dict[str, Tensor], part: str = "") -> list[bool]:
    return [torch.equal(first[name], second[name]) for name in first if name.startswith(part)]


def nan_span(found: dict[str, Tensor], _model: Model) -> dict[str, Tensor]:
    return {**found, "span": found["span"] * math.nan}


def bad_gradient(found: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    # The root of 0 is 0, and its slope is not finite.
    root = (model.encoder.lstm.weight_hh_l0.sum() * 0).sqrt()
    return {**found, "span": found["span"] + root}


class TestNotFinite:
    @pytest.mark.parametrize(
        ("change", "what"), [(nan_span, "'span' is nan"), (bad_gradient, "'gradient norm' is nan")]
    )
    @pytest.mark.parametrize("settings", [{}, {"loss.balance": "fixed", "loss.pcgrad": True}])
    def test_a_cpu_stops_before_the_update(
        self, tmp_path: Path, change: Any, what: str, settings: dict[str, Any]
    ) -> None:
        objective = Watched(3, change)
        loop = loop_of(tmp_path / "run", config_of(**settings), objective=objective)
        with pytest.raises(RunError, match=f"step 3: {what}; nothing was updated"):
            loop.run()
        assert all(equal(objective.weights[3], dict(loop.model.named_parameters())))

    @pytest.mark.parametrize("change", [nan_span, bad_gradient])
    def test_a_device_leaves_the_update_out_and_tells_at_the_next_line(
        self, tmp_path: Path, change: Any
    ) -> None:
        objective = Watched(3, change)
        loop = loop_of(tmp_path / "run", config_of(loop__log_steps=6), objective=objective)
        loop._step.tally = Tally(asks_always=False)
        with pytest.raises(RunError, match="step 3: "):
            loop.run()
        assert len(objective.weights) == 6
        assert all(equal(objective.weights[3], objective.weights[4]))
        assert not any(equal(objective.weights[4], objective.weights[5], "heads."))
        assert all(weight.isfinite().all() for weight in objective.weights[-1].values())

    def test_no_checkpoint_is_younger_than_a_failure(self, tmp_path: Path) -> None:
        config = config_of(loop__log_steps=100, loop__checkpoint_steps=2)
        loop = loop_of(tmp_path / "run", config, objective=Watched(2, nan_span))
        loop._step.tally = Tally(asks_always=False)
        with pytest.raises(RunError, match="step 2: "):
            loop.run()
        assert load_checkpoint(tmp_path / "run" / LATEST)["progress"]["step"] == 2


def test_only_a_line_of_the_log_asks_the_device(tmp_path: Path) -> None:
    every = {f"augment.{name}": 0.5 for name in ("jitter", "magnitude_warp", "window_warp")}
    config = config_of(
        **every, **{"augment.time_warp": 0.5, "augment.mixup": 0.5, "optimiser.ema_decay": 0.9}
    )
    loop = loop_of(tmp_path / "run", config)
    loop._step.tally = Tally(asks_always=False)
    for batch in loader_of("train", config):
        with NoHostSync():
            loop._make_step(batch)
    with pytest.raises(AssertionError, match="waits for the device"), NoHostSync():
        loop._log_training()


class TestTally:
    def test_means_begin_anew(self) -> None:
        tally = Tally(asks_always=False)
        for step, value in enumerate((1.0, 2.0)):
            tally.add(step, {"a": torch.tensor(value), "b": torch.tensor(-value)})
        assert tally.means() == {"a": 1.5, "b": -1.5}
        tally.add(2, {"a": torch.tensor(8.0), "b": torch.tensor(0.0)})
        assert tally.means() == {"a": 8.0, "b": 0.0}

    def test_the_first_failure_is_told(self) -> None:
        tally = Tally(asks_always=False)
        verdicts = [
            tally.add(step, {"a": torch.tensor(a), "b": torch.tensor(b)}).item()
            for step, (a, b) in enumerate(
                [(1.0, 1.0), (2.0, math.inf), (math.nan, 1.0), (1.0, 1.0)]
            )
        ]
        assert verdicts == [0.0, 1.0, 1.0, 0.0]
        with pytest.raises(RunError, match="step 1: 'b' is inf"):
            tally.means()

    def test_goes_on(self) -> None:
        first, second = Tally(asks_always=True), Tally(asks_always=True)
        first.add(0, {"a": torch.tensor(0.1)})
        second.load_state_dict(first.state_dict())
        for tally in (first, second):
            tally.add(1, {"a": torch.tensor(0.7)})
        assert first.means() == second.means()


class TestFreezing:
    def test_frozen_weights_stay_still_and_move_afterwards(self, tmp_path: Path) -> None:
        config = config_of(
            optimiser__freeze_epochs=1, optimiser__weight_decay=0.5, optimiser__ema_decay=0.9
        )
        objective = Watched()
        loop = loop_of(tmp_path / "run", config, objective=objective)
        loop.run()
        weights = [*objective.weights, dict(loop.model.named_parameters())]
        assert len(weights) == 2 * STEPS_PER_EPOCH + 1
        for step in range(2 * STEPS_PER_EPOCH):
            still = equal(weights[step], weights[step + 1], "encoder.")
            assert all(still) if step < STEPS_PER_EPOCH else not any(still)
            assert not all(equal(weights[step], weights[step + 1], "heads."))
        rates = {group["part"]: group["lr"] for group in loop._step.optimiser.param_groups}
        assert rates[ENCODER] == pytest.approx(0.3 * rates[HEADS])
        for parameter in loop.model.encoder.parameters():
            # Moments that began with the thaw, not with zeros of before.
            assert loop._step.optimiser.state[parameter]["step"] == STEPS_PER_EPOCH

    def test_a_run_that_ends_frozen_leaves_a_model_that_is_not(self, tmp_path: Path) -> None:
        loop = loop_of(tmp_path / "run", config_of(optimiser__freeze_epochs=9))
        loop.run()
        assert all(parameter.requires_grad for parameter in loop.model.parameters())


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    loop = loop_of(tmp_path / "run", config_of(optimiser__clip_norm=1e-3, loop__epochs=1))
    step = loop._step.optimiser.step

    def watched() -> None:
        gradients = [p.grad.flatten() for p in loop.model.parameters() if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        step()

    monkeypatch.setattr(loop._step.optimiser, "step", watched)
    loop.run()
    assert norms == pytest.approx([1e-3] * STEPS_PER_EPOCH, rel=1e-3)


def test_what_is_validated_and_best_is_the_average(tmp_path: Path) -> None:
    loop = loop_of(tmp_path / "run", config_of(optimiser__ema_decay=0.9, loop__epochs=1))
    loop.run()
    best, latest = (load_checkpoint(tmp_path / "run" / name) for name in (BEST, LATEST))
    names = [name for name, _ in loop.model.named_parameters()]
    for name, average in zip(names, latest["average"], strict=True):
        assert torch.equal(best["model"][name], average)
    assert not all(equal(best["model"], latest["model"], "encoder."))


class TestStopping:
    def outcome(self, path: Path, scores: list[float], **settings: Any) -> Any:
        config = config_of(**{"loop.epochs": 9, "loop.patience": 2, **settings})
        return loop_of(path / "run", config, objective=Changed(scores=scores)).run()

    def test_early_on_the_loss(self, tmp_path: Path) -> None:
        found = self.outcome(tmp_path, [3.0, 2.0, 2.5, 2.0, 1.0])
        assert (found.status, found.epoch) == ("early stop", 4)
        assert (found.best["value"], found.best["epoch"]) == (2.0, 2)
        best = load_checkpoint(tmp_path / "run" / BEST)["progress"]["best"]
        assert best == found.best
        improved = [
            json.loads(line)["improved"]
            for line in (tmp_path / "run" / METRICS).read_text().splitlines()
            if '"val"' in line
        ]
        assert improved == [True, True, False, False]

    def test_only_every_third_epoch_and_after_the_last_is_validated(self, tmp_path: Path) -> None:
        every = {"loop.validate_epochs": 3, "loop.epochs": 8}
        found = self.outcome(tmp_path, [3.0, 2.0, 1.0], **every)
        lines = (tmp_path / "run" / METRICS).read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines if '"val"' in line]
        assert epochs == [3, 6, 8]
        assert (found.status, found.epoch) == ("finished", 8)
        assert (found.best["value"], found.best["epoch"]) == (1.0, 8)

    def test_early_on_a_named_metric_that_is_better_higher(self, tmp_path: Path) -> None:
        found = self.outcome(tmp_path, [3.0, 2.0, 4.0, 5.0], **{"loop.watch": "accuracy"})
        assert (found.best["watch"], found.best["value"]) == ("accuracy", -2.0)
        assert found.epoch == 4

    def test_nan_is_never_best(self, tmp_path: Path) -> None:
        found = self.outcome(tmp_path, [math.nan, 3.0, math.nan, 4.0])
        assert (found.best["value"], found.epoch) == (3.0, 4)

    def test_a_metric_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"loop\.watch is 'f1'; choose one of loss, accuracy"):
            self.outcome(tmp_path, [1.0], **{"loop.watch": "f1"})

    def test_out_of_time(self, tmp_path: Path) -> None:
        config = config_of(loop__epochs=100_000, loop__max_minutes=0.005)
        found = loop_of(tmp_path / "run", config).run()
        assert found.status == "out of time"
        assert load_checkpoint(tmp_path / "run" / LATEST)["progress"]["step"] == found.step

    def test_a_run_of_less_than_an_epoch_is_validated_at_its_end(self, tmp_path: Path) -> None:
        config = config_of(**{"loop.max_steps": 4, "optimiser.ema_decay": 0.5})
        loop = loop_of(tmp_path / "run", config)
        found = loop.run()
        assert (found.status, found.step, found.epoch) == ("finished", 4, 0)
        assert found.best["step"] == 4
        scores = Supervised(priors_of()).score
        last = scores(loop.model, loader_of("val", config))["loss"].value
        loop.load_best()
        best = scores(loop.model, loader_of("val", config))["loss"].value
        assert best == found.best["value"] == found.best["metrics"]["loss"]["value"] != last
        lines = (tmp_path / "run" / METRICS).read_text().splitlines()
        parts = [json.loads(line)["part"] for line in lines]
        assert parts == ["val"]
        # A run that goes on has not been cut off: nothing of that is in its checkpoint.
        assert load_checkpoint(tmp_path / "run" / LATEST)["progress"]["best"] == {}

    def test_a_run_without_time_is_validated_at_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seconds = itertools.count()
        monkeypatch.setattr(loop_module.time, "monotonic", lambda: next(seconds))
        found = loop_of(tmp_path / "run", config_of(loop__max_minutes=3 / 60)).run()
        assert (found.status, found.epoch, found.best["step"]) == ("out of time", 0, found.step)

    def test_a_run_that_was_validated_is_not_so_again(self, tmp_path: Path) -> None:
        found = self.outcome(tmp_path, [math.nan], **{"loop.max_steps": 6 + 2})
        assert (found.step, found.best) == (6 + 2, {})


class TestCollapse:
    def test_a_model_that_knows_one_class_is_called_out(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = config_of()
        with caplog.at_level(logging.WARNING):
            Supervised(priors_of()).score(model_of(config), loader_of("val", config))
        assert "takes 10 of 10 validation predictions" in caplog.text
        assert any(name in caplog.text for name in CLASSES)

    @pytest.mark.parametrize(("count", "warns"), [(90, False), (91, True)])
    def test_above_nine_in_ten(
        self, caplog: pytest.LogCaptureFixture, count: int, warns: bool
    ) -> None:
        probability = np.zeros((100, 2))
        probability[:count, 1] = probability[count:, 0] = 1.0
        assert COLLAPSE_SHARE == 0.9
        with caplog.at_level(logging.WARNING):
            Supervised(priors_of())._watch_collapse({"type_probability": probability})
        assert bool(caplog.records) == warns


def test_pcgrad_draws_by_seed_and_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = step_module.pcgrad

    def watched(losses: Any, parameters: Any, *, seed: int) -> None:
        assert len(losses) == 4
        seeds.append(seed)
        real(losses, parameters, seed=seed)

    monkeypatch.setattr(step_module, "pcgrad", watched)
    for seed in (17, 13):
        given = {"loss.pcgrad": True, "loss.balance": "running-mean", "loop.max_steps": 3}
        loop_of(tmp_path / str(seed), config_of(**given, **{"loop.seed": seed})).run()
    assert seeds == [step_seed(seed, step) for seed in (17, 13) for step in range(3)]
    assert len(set(seeds)) == 6


def test_bf16_trains_in_float32_weights(tmp_path: Path) -> None:
    loop = loop_of(tmp_path / "run", config_of(loop__precision="bf16", loop__max_steps=3))
    assert loop.run().step == 3
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}


def test_records_say_how_it_goes(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    loop_of(tmp_path / "run", config_of(loop__log_steps=3), report=seen.append).run()
    assert [(r["part"], r["step"]) for r in seen] == [
        ("train", 3), ("train", 6), ("val", 6), ("train", 9), ("train", 12), ("val", 12),
    ]  # fmt: skip
    first = seen[0]
    assert set(first["terms"]) == {"type", "pointers", "span", "countdown"}
    assert set(first["balance"]) == {f"sigma/{name}" for name in first["terms"]}
    assert first["gradient_norm"] > 0
    assert first["timing"]["windows_per_second"] > 0
    assert 0 <= first["timing"]["waiting_share"] <= 1
    assert Metric(**seen[2]["metrics"]["loss"]).better == "lower"
    lines = (tmp_path / "run" / METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [r["step"] for r in seen]


BAD = {
    "features": (
        lambda b: b["features"][:, :, :2], "'features' has shape [24, 4, 2], not [24, 4, 3]",
    ),
    "flat": (lambda b: b["features"][0], "'features' has shape [4, 3]"),
    "dtype": (lambda b: b["features"].double(), "'features' is torch.float64"),
    "nan": (lambda b: b["features"].clone().index_fill_(0, torch.tensor(5), math.nan), "at bar 5"),
    "type": (lambda b: b["type"] + 2, "'type' holds"),
    "start": (lambda b: b["start"] * 0 + 24, "'start' holds 24, it must lie in -1..23"),
    "end": (lambda b: b["end"] * 0, "are no span"),
    "half": (lambda b: b["end"] * 0 - 1, "are no span"),
    "span": (lambda b: b["span"] * 3, "'span' holds 3, it must lie in 0..1"),
    "pointers": (lambda b: b["pointers"] * 24, "'pointers' holds"),
    "countdown": (lambda b: b["countdown"] - 1, "'countdown' holds -"),
    "index": (lambda b: b["index"].float(), "'index' is torch.float32"),
}  # fmt: skip
KEYS = {"flat": "features", "dtype": "features", "nan": "features", "half": "end"}


class TestFirstBatch:
    def batch(self) -> dict[str, Tensor]:
        return next(iter(loader_of("train", config_of())))

    def test_a_good_one(self) -> None:
        settings = model_of(config_of()).settings
        batch = self.batch()
        check_batch(batch, settings)
        check_batch({"features": batch["features"], "anything": torch.zeros(1)}, settings)
        batch["countdown"][0] = math.nan
        batch["type"][1] = -1
        check_batch(batch, settings)

    @pytest.mark.parametrize("name", BAD)
    def test_what_is_wrong_is_named(self, name: str) -> None:
        change, message = BAD[name]
        batch = self.batch()
        batch[KEYS.get(name, name)] = change(batch)
        with pytest.raises(LoaderError) as raised:
            check_batch(batch, model_of(config_of()).settings)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_no_features(self) -> None:
        with pytest.raises(LoaderError, match="no 'features' among type"):
            check_batch({"type": torch.zeros(4)}, model_of(config_of()).settings)

    def test_a_run_looks_before_its_first_step(self, tmp_path: Path) -> None:
        objective = Changed()
        loop = loop_of(tmp_path / "run", config_of(), objective=objective)
        order = BatchOrder(8, BATCH, seed=1)
        windows = np.full((8, 24, 3), np.inf, np.float32)
        loop._train = WindowLoader(windows, order, device="cpu")
        with pytest.raises(LoaderError, match="'features' holds inf"):
            loop.run()
        assert objective.num_calls == 0


def expanding(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prices whose expansions stand out, after a calm or a pullback by the window's type."""
    bars = prices(count, seed=4)
    random = np.random.default_rng(8)
    start = random.integers(30, 80, count)
    end = start + random.integers(3, 12, count)
    for row in range(count):
        drift = np.zeros(105)
        drift[start[row] : end[row] + 1] = 6.0
        if row % 2:
            drift[start[row] - 12 : start[row]] = -2.0
        bars[row] += np.cumsum(drift)[:, None] + 100
    return bars, start, end


def test_overfits_32_windows_through_fit(tmp_path: Path) -> None:
    bars, start, end = expanding(40)
    frame = contained(
        40, expansion_start=start.tolist(), expansion_end=end.tolist(), features=bars.tolist()
    )
    frame.write_parquet(tmp_path / "labels.parquet")
    labels = read_labels(tmp_path / "labels.parquet")
    split = forward_chain(labels, val_share=0.1, test_share=0.1)
    write_split(split, tmp_path / "split.json")
    train = split.part("train", 0)
    assert len(train) == 32
    config = RunConfig().override({
        "model.preset": "jade-span", "model.hidden": 32, "model.input_dropout": 0.0,
        "model.head_dropout": 0.0, "data.batch_size": 32, "loop.epochs": 120, "loop.device": "cpu",
        "loss.balance": "fixed", "optimiser.learning_rate": 0.02, "optimiser.warmup_epochs": 5.0,
        "optimiser.weight_decay": 0.0, "loop.log_steps": 40,
    })  # fmt: skip
    fit(None, tmp_path / "labels.parquet", tmp_path / "split.json", tmp_path / "run", config)
    state = load_checkpoint(tmp_path / "run" / LATEST)
    features = transform_windows(bars, FeatureConfig())[train]
    targets = {name: values[train] for name, values in make_targets(labels).items()}
    model = Model(model_settings(state))
    model.load_state_dict(state["model"])
    order = BatchOrder(32, 32, seed=0, shuffle=False)
    loader = WindowLoader(features, order, device="cpu", targets=targets)
    found = Supervised(TargetPriors.of(targets, labels.classes)).score(model, loader)
    assert found["accuracy"].value == 1.0
    assert found["span_f1"].value > 0.95
    assert found["span_f1"].value > found["span_f1"].floor
    assert predict(model, loader)[2] < 1.0


def model_settings(state: dict[str, Any]) -> Any:
    from moola_train.presets import ModelSettings

    return ModelSettings(**state["settings"])
