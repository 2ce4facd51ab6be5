"""A step that is recorded and replayed is the step itself, or the run is refused.

On a CPU a tape stands in for the graph; test_graph_gpu.py does the same with real ones.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moola_train import graph
from moola_train.checkpoint import load_checkpoint
from moola_train.config import OptimiserConfig
from moola_train.errors import ConfigError, RunError
from moola_train.graph import GraphedStep, require_recordable
from moola_train.loop import Loop
from moola_train.mae import MaskedAutoencoder
from moola_train.models import Model, build
from moola_train.objectives import Supervised
from moola_train.optimiser import ENCODER, HEADS, make_optimiser
from moola_train.runs import LATEST
from moola_train.tally import Tally
from tests.train.loops import (
    EVERYTHING,
    LENGTH,
    NUM_FEATURES,
    Changed,
    config_of,
    loader_of,
    loop_of,
    model_of,
    priors_of,
)
from tests.train.tape import TapeRecorder
from tests.train.test_resume import assert_same_runs, same

GRAPH = {"loop.cuda_graph": True}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def without_graph(path: Path, **given: Any) -> Loop:
    """The same loop, each step made anew; told of what is not finite when it asks, as on a GPU."""
    loop = loop_of(path, given.pop("config", config_of(**GRAPH)), **given)
    loop._step.tally = Tally(asks_always=False)
    loop._take = loop._step
    return loop


def on_tape(path: Path, *, recorder: Any = None, **given: Any) -> Loop:
    loop = without_graph(path, **given)
    loop._take = GraphedStep(loop._step, recorder or TapeRecorder(), loop._train.paused)
    return loop


@pytest.mark.parametrize(
    "settings",
    [EVERYTHING, {"loss.balance": "running-mean", "loop.precision": "bf16", "loop.log_steps": 4}],
)
def test_a_replayed_run_is_the_run_to_the_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = config_of(**settings, **GRAPH)
    recorder = TapeRecorder()
    first = without_graph(tmp_path / "first", config=config).run()
    second = on_tape(tmp_path / "second", config=config, recorder=recorder).run()
    assert first == second
    assert_same_runs(tmp_path / "first", tmp_path / "second")
    # Once with the encoder frozen, once thawed.
    assert recorder.num_recorded == (2 if "optimiser.freeze_epochs" in settings else 1)


HEADS_TOO = {
    "heads": ("type", "pointers", "span_crf", "countdown", "edges", "type_at_span"),
    "recurrent_dropout": 0.2, "position": True,
}  # fmt: skip
MODELS = {
    "all heads": ("jade-compact", HEADS_TOO),
    "jade": ("jade", {"layer_dropout": 0.0}),
    "jade-span": ("jade-span", {}),
    "simple-lstm": ("simple-lstm", {"attention_heads": 2}),
    "jade-mae": ("jade-mae", {"log_sigmas": True}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_recorded(tmp_path: Path, name: str) -> None:
    preset, settings = MODELS[name]
    balance = "fixed" if preset == "simple-lstm" else "kendall"
    config = config_of(**GRAPH, **{"model.preset": preset, "loss.balance": balance})
    objective: Any = Supervised(priors_of())
    if preset == "jade-mae":
        objective = MaskedAutoencoder(("a", "b", "c"), np.zeros(3), masking="patch")
    first, second = (
        make(tmp_path / make.__name__, config=config, objective=objective,
             model=bare_model(preset, settings))
        for make in (without_graph, on_tape)
    )  # fmt: skip
    for number, batch in enumerate(itertools.islice(loader_of("train", config), 2)):
        first._take(batch, number)
        second._take(batch, number)
    assert same(first._step.tensors(), second._step.tensors())


def bare_model(preset: str, settings: dict[str, Any]) -> Model:
    torch.manual_seed(3)
    given = {"num_features": NUM_FEATURES, "num_classes": 2, "window_length": LENGTH}
    return build(preset, **{**given, "hidden_size": 4, **settings})


@pytest.mark.parametrize("stop", [3, 9])
def test_a_stopped_run_records_again_and_ends_the_same(tmp_path: Path, stop: int) -> None:
    config = config_of(**EVERYTHING, **GRAPH).override({"loop.max_steps": 14})
    without_graph(tmp_path / "whole", config=config).run()
    part = config.override({"loop.max_steps": stop})
    assert on_tape(tmp_path / "parts", config=part).run().step == stop
    loop = on_tape(tmp_path / "parts", config=config)
    assert loop.resume()
    loop.run()
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_recording_leaves_no_trace(tmp_path: Path) -> None:
    first, second = without_graph(tmp_path / "first"), on_tape(tmp_path / "second")
    batch = next(iter(loader_of("train", config_of())))
    for loop in (first, second):
        loop._take(batch, 0)
    expected, actual = first._step.tensors(), second._step.tensors()
    assert same(expected, actual)
    steps = [tensor.item() for name, tensor in actual.items() if name.endswith(".step")]
    assert set(steps) == {1.0}
    assert actual["tally.count"].item() == 1


def test_batches_are_copied_to_memory_that_stays(tmp_path: Path) -> None:
    loop = on_tape(tmp_path / "run")
    places = set()
    for number, batch in enumerate(itertools.islice(loader_of("train", config_of()), 3)):
        loop._take(batch, number)
        places.add(tuple(buffer.data_ptr() for buffer in loop._take._buffers.values()))
        assert same(loop._take._buffers, batch)
        assert not places & {tuple(rows.data_ptr() for rows in batch.values())}
    assert len(places) == 1


def test_other_threads_leave_the_device_alone_meanwhile(tmp_path: Path) -> None:
    paused: list[bool] = []

    class Asking(TapeRecorder):
        def record(self, run: graph.Run) -> graph.Run:
            assert paused == [True]
            return super().record(run)

    @contextlib.contextmanager
    def pause() -> Iterator[None]:
        paused.append(True)
        yield
        paused.append(False)

    step = without_graph(tmp_path / "run")._step
    GraphedStep(step, Asking(), pause)(next(iter(loader_of("train", config_of()))), 0)
    assert paused == [True, False]


class OnTheHost(Changed):
    """Its losses depend on a number that Python counts, which a graph would keep."""

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = super().losses(model, batch)
        return {**found, "span": found["span"] * (1 + self.num_calls)}


class Waiting(Changed):
    """It asks the device for a value."""

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = super().losses(model, batch)
        return {**found, "span": found["span"] * max(found["span"].item(), 1.0)}


class Forgetful(TapeRecorder):
    """Its replay does nothing."""

    def record(self, run: graph.Run) -> graph.Run:
        super().record(run)
        return lambda: None


class Reseeding(TapeRecorder):
    """Its replay draws other random numbers."""

    def record(self, run: graph.Run) -> graph.Run:
        replay = super().record(run)
        return lambda: (torch.manual_seed(1), replay())[1]


class Stuck(TapeRecorder):
    """Its replay reads what was in the buffers when it was recorded."""

    def record(self, run: Any) -> graph.Run:
        graphed = run.__self__
        frozen = {name: rows.clone() for name, rows in graphed._buffers.items()}
        return super().record(lambda: graphed._step.compute(frozen))


class TestWhatIsNotTheStep:
    def refused(self, path: Path, **given: Any) -> str:
        with pytest.raises(RunError) as raised:
            on_tape(path / "run", **given).run()
        message = str(raised.value)
        assert message.startswith("loop.cuda_graph: ")
        assert message.endswith("; set loop.cuda_graph = false")
        assert "\n" not in message
        return message

    def test_a_number_of_the_host(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, objective=OnTheHost())
        assert "the replayed step has 'span'" in message

    def test_a_replay_that_does_nothing(self, tmp_path: Path) -> None:
        assert "has 'type' 0, without" in self.refused(tmp_path, recorder=Forgetful())

    def test_other_random_numbers(self, tmp_path: Path) -> None:
        assert "without a graph it is" in self.refused(tmp_path, recorder=Reseeding())

    def test_another_batch(self, tmp_path: Path) -> None:
        assert "without a graph it is" in self.refused(tmp_path, recorder=Stuck())

    def test_a_rate_that_is_no_tensor(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, config=config_of())
        assert "leaves weights" in message
        assert "which moved by" in message

    def test_what_asks_the_device(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, objective=Waiting())
        assert "step 0 cannot be recorded (operation not permitted" in message

    def test_no_checkpoint_is_written_of_it(self, tmp_path: Path) -> None:
        self.refused(tmp_path, objective=OnTheHost())
        assert not (tmp_path / "run" / LATEST).exists()

    def test_tolerances(self) -> None:
        sums = torch.tensor([2.0, 3.0], dtype=torch.float64)
        before = {"model.a": torch.zeros(4), "tally.sums": sums}
        expected = {"model.a": torch.full((4,), 0.1), "tally.sums": sums + 1}
        names = ("type", "span")
        for loss, weight, good in (
            (1.0009, 0.109, True), (1.0011, 0.1, False), (1.0, 0.111, False),
            (float("nan"), 0.1, False), (1.0, float("nan"), False),
        ):  # fmt: skip
            replayed = {
                "model.a": torch.full((4,), weight),
                "tally.sums": sums + torch.tensor([1.0, loss]),
            }
            context = contextlib.nullcontext() if good else pytest.raises(RunError)
            with context:
                graph.require_same(before, expected, replayed, names)

    def test_what_is_not_finite_either_way_is_for_the_tally_to_say(self, tmp_path: Path) -> None:
        def nan(_call: int, found: dict[str, Tensor], _model: Any) -> dict[str, Tensor]:
            return {**found, "span": found["span"] * float("nan")}

        with pytest.raises(RunError, match="step 0: 'span' is nan; nothing was updated"):
            on_tape(tmp_path / "run", objective=Changed(losses=nan)).run()


class TestRefused:
    def test_with_pcgrad(self) -> None:
        with pytest.raises(ConfigError, match=r"loss\.pcgrad = true with loop\.cuda_graph = true"):
            config_of(**GRAPH, **{"loss.pcgrad": True, "loss.balance": "fixed"})

    def test_with_dropout_that_cudnn_draws(self) -> None:
        with pytest.raises(ConfigError, match=r"dropout of 0\.65 between LSTM layers"):
            require_recordable(build("jade"))
        require_recordable(build("jade", recurrent_dropout=0.1))  # which draws for itself
        require_recordable(build("jade-mae"))

    def test_several_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph, "together", lambda: True)
        with pytest.raises(ConfigError, match=r"loop\.cuda_graph with several processes"):
            require_recordable(build("jade-compact"))

    def test_a_run_that_goes_on_without(self, tmp_path: Path) -> None:
        on_tape(tmp_path / "run", config=config_of(**GRAPH, **{"loop.max_steps": 2})).run()
        with pytest.raises(RunError, match=r"was run with loop\.cuda_graph = True, not False"):
            loop_of(tmp_path / "run", config_of())


class TestRates:
    def make(self, *, capturable: bool) -> Any:
        model = model_of(config_of())
        return make_optimiser(model, torch.nn.Module(), OptimiserConfig(), capturable=capturable)

    def test_tensors_keep_their_place(self) -> None:
        optimiser = self.make(capturable=True)
        before = [group["lr"] for group in optimiser.param_groups]
        optimiser.set_rates({ENCODER: 0.25, HEADS: 0.5})
        for group, rate in zip(optimiser.param_groups, before, strict=True):
            assert group["lr"] is rate
            assert rate.item() == (0.25 if group["part"] == ENCODER else 0.5)
        assert len({id(rate) for rate in before}) == len(before)

    def test_numbers_stay_numbers(self) -> None:
        optimiser = self.make(capturable=False)
        optimiser.set_rates({ENCODER: 1e-3, HEADS: 2e-3})
        assert {group["lr"] for group in optimiser.param_groups} == {1e-3, 2e-3}

    def test_they_come_back_from_a_checkpoint_as_tensors(self, tmp_path: Path) -> None:
        config = config_of(**GRAPH, **{"loop.max_steps": 2})
        on_tape(tmp_path / "run", config=config).run()
        saved = load_checkpoint(tmp_path / "run" / LATEST)["optimiser"]["param_groups"]
        loop = on_tape(tmp_path / "run", config=config)
        assert loop.resume()
        for group, kept in zip(loop._step.optimiser.param_groups, saved, strict=True):
            assert isinstance(group["lr"], Tensor)
            assert torch.equal(group["lr"], kept["lr"])
            assert group["capturable"]
