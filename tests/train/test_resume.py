"""A run that was stopped, or killed, ends with the bits of one that was not."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moola_train.checkpoint import load_checkpoint, save_checkpoint
from moola_train.errors import CheckpointError
from moola_train.outcome import Progress
from moola_train.runs import BEST, LATEST, METRICS
from tests.train.loops import EVERYTHING, STEPS_PER_EPOCH, config_of, loop_of, model_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, nested."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and bool(
            torch.equal(first.view(-1).view(torch.uint8), second.view(-1).view(torch.uint8))
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def records(path: Path) -> list[dict[str, Any]]:
    lines = (path / METRICS).read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "timing"} for line in lines]


def assert_same_runs(first: Path, second: Path) -> None:
    states = [load_checkpoint(path / LATEST) for path in (first, second)]
    assert set(states[0]) >= {"model", "optimiser", "loader", "average", "schedule", "progress"}
    for name in states[0]:
        assert same(states[0][name], states[1][name]), name
    assert records(first) == records(second)
    assert {"train", "val"} == {record["part"] for record in records(first)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    assert loop_of(path, config_of(**EVERYTHING)).run().step == 40
    return path


def in_a_process(path: Path, step: int, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.train.loops", str(path), "17", str(step), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_killed_and_resumed_is_the_same_to_the_bit(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    died = in_a_process(path, 28, signal.SIGKILL)
    assert died.returncode == -signal.SIGKILL, died.stderr
    saved = load_checkpoint(path / LATEST)
    assert saved["progress"]["step"] == 25, "killed between two checkpoints"
    assert saved["loader"]["step"] % STEPS_PER_EPOCH, "in the middle of an epoch"
    assert len(records(path)) > saved["progress"]["num_records"], "with a line to take back"
    loop = loop_of(path, config_of(**EVERYTHING))
    assert loop.resume()
    assert loop.run().step == 40
    assert_same_runs(whole, path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_rest_is_the_same(
    whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "run"
    before = signal.getsignal(number)

    def report(record: dict[str, Any]) -> None:
        if record["step"] == 21:
            signal.raise_signal(number)

    stopped = loop_of(path, config_of(**EVERYTHING), report=report).run()
    assert (stopped.status, stopped.step) == ("stopped", 21)
    assert signal.getsignal(number) is before
    assert load_checkpoint(path / LATEST)["progress"]["step"] == 21
    loop = loop_of(path, config_of(**EVERYTHING))
    assert loop.resume()
    assert loop.run().status == "finished"
    assert_same_runs(whole, path)


def test_sigterm_from_outside_ends_cleanly(tmp_path: Path) -> None:
    done = in_a_process(tmp_path / "run", 7, signal.SIGTERM)
    assert (done.returncode, done.stdout.strip()) == (0, "stopped"), done.stderr
    assert load_checkpoint(tmp_path / "run" / LATEST)["progress"]["step"] == 7


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    def report(_record: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop_of(tmp_path / "run", config_of(loop__log_steps=1), report=report).run()
    assert not (tmp_path / "run" / LATEST).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.balance": "running-mean", "loss.pcgrad": True},
        {"loss.balance": "fixed", "optimiser.schedule": "cosine"},
        {"model.preset": "jade-span"},
    ],
)
@pytest.mark.parametrize("step", [3, STEPS_PER_EPOCH])
def test_stopping_anywhere_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], step: int
) -> None:
    config = config_of(**{"loop.max_steps": 9, "loop.log_steps": 4, **changes})
    loop_of(tmp_path / "whole", config).run()
    assert loop_of(tmp_path / "parts", config.override({"loop.max_steps": step})).run().step == step
    loop = loop_of(tmp_path / "parts", config)
    assert loop.resume()
    loop.run()
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_same_seed_same_bits_and_another_seed_others(whole: Path, tmp_path: Path) -> None:
    loop_of(tmp_path / "again", config_of(**EVERYTHING)).run()
    assert_same_runs(whole, tmp_path / "again")


def test_seeds_differ_in_what_steps_draw_alone(tmp_path: Path) -> None:
    # The same weights and the same batches: what is left of the seed is dropout.
    weights = []
    for seed in (17, 13):
        config = config_of(**{"loop.seed": seed, "loop.max_steps": 2})
        loop = loop_of(tmp_path / str(seed), config, model=model_of(config_of()))
        loop._train.order = loop._train.order.__class__(24, 4, seed=1)
        loop.run()
        weights.append(copy.deepcopy(loop.model.state_dict()))
    assert not same(weights[0], weights[1])


@pytest.mark.parametrize("limit", [{"loop.max_steps": 4}, {"loop.epochs": 1}])
def test_a_run_that_is_over_takes_no_step_more(tmp_path: Path, limit: dict[str, Any]) -> None:
    first = loop_of(tmp_path / "run", config_of(**limit)).run()
    loop = loop_of(tmp_path / "run", config_of(**limit))
    assert loop.resume()
    assert loop.run() == first


def test_no_checkpoint_starts_anew_and_forgets_what_was_logged(tmp_path: Path) -> None:
    loop = loop_of(tmp_path / "run", config_of())
    loop._run.log({"step": 5, "part": "train"})
    assert not loop.resume()
    assert records(tmp_path / "run") == []


def test_a_log_that_lost_lines_counts_what_is_left(tmp_path: Path) -> None:
    path, config = tmp_path / "run", config_of(**{"loop.log_steps": 1, "loop.max_steps": 5})
    loop_of(path, config).run()
    lines = (path / METRICS).read_bytes().splitlines(keepends=True)
    (path / METRICS).write_bytes(b"".join([lines[0], b"\xff\n", *lines[2:]]))
    loop = loop_of(path, config.override({"loop.max_steps": 8}))
    assert loop.resume()
    loop.run()
    found = records(path)
    assert [record["step"] for record in found] == [1, 3, 4, 5, 6, 6, 7, 8]  # 6 ends an epoch
    assert load_checkpoint(path / LATEST)["progress"]["num_records"] == len(found)


class TestBest:
    """The weights that a run ends with are those of its best validation, or it says why not."""

    CONFIG = config_of(**{"loop.epochs": 2})

    def refused(self, path: Path) -> str:
        messages = []
        loop = loop_of(path, self.CONFIG)
        loop._progress = Progress(**load_checkpoint(path / LATEST)["progress"])
        for read in (loop.load_best, loop_of(path, self.CONFIG).resume):
            with pytest.raises(CheckpointError) as raised:
                read()
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        assert "\n" not in messages[0]
        assert str(path / BEST) in messages[0]
        assert "another run folder" in messages[0]
        return messages[0]

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        assert loop_of(tmp_path / "run", self.CONFIG).run().best
        return tmp_path / "run"

    def test_it_is_loaded(self, path: Path) -> None:
        loop = loop_of(path, self.CONFIG)
        assert loop.resume()
        loop.load_best()
        assert same(dict(loop.model.state_dict()), load_checkpoint(path / BEST)["model"])

    def test_no_best_yet_loads_nothing(self, tmp_path: Path) -> None:
        loop = loop_of(tmp_path / "run", self.CONFIG)
        save_checkpoint(tmp_path / "run" / BEST, {"model": None})  # what an earlier run left
        loop.load_best()
        assert same(dict(loop.model.state_dict()), dict(model_of(self.CONFIG).state_dict()))

    def test_missing(self, path: Path) -> None:
        (path / BEST).unlink()
        assert "is missing, the weights of the best validation" in self.refused(path)

    def test_of_another_model(self, path: Path, tmp_path: Path) -> None:
        wider = config_of(model__hidden=5, loop__epochs=1)
        loop_of(tmp_path / "other", wider).run()
        shutil.copy(tmp_path / "other" / BEST, path / BEST)
        assert "hidden_size = 5, not 4" in self.refused(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: None, "is None there and ["),
            (lambda weights: {**weights, "mask_vector": torch.zeros(3)}, "mask_vector is [3]"),
            (lambda weights: {**weights, "log_sigmas.span": torch.zeros(2)}, "span is [2] there"),
            (lambda weights: {**weights, "log_sigmas.span": None}, "span is None there and []"),
        ],
    )
    def test_with_other_weights(self, path: Path, change: Any, message: str) -> None:
        state = load_checkpoint(path / BEST)
        state["model"] = change(state["model"])
        save_checkpoint(path / BEST, {k: v for k, v in state.items() if k != "version"})
        assert message in self.refused(path)


class TestRefused:
    def refused(self, path: Path, state: dict[str, Any], **changes: Any) -> str:
        loop = loop_of(path, config_of(**changes))
        save_checkpoint(path / LATEST, {k: v for k, v in state.items() if k != "version"})
        with pytest.raises(CheckpointError) as raised:
            loop.resume()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def test_another_preset(self, whole: Path, tmp_path: Path) -> None:
        state = load_checkpoint(whole / LATEST)
        message = self.refused(tmp_path / "run", state, model__preset="jade-span")
        assert "preset = 'jade-compact', not 'jade-span'" in message

    def test_another_width(self, whole: Path, tmp_path: Path) -> None:
        state = load_checkpoint(whole / LATEST)
        assert "hidden_size = 4, not 5" in self.refused(tmp_path / "run", state, model__hidden=5)

    def test_another_order(self, whole: Path, tmp_path: Path) -> None:
        state = load_checkpoint(whole / LATEST)
        message = self.refused(tmp_path / "run", state, **{**EVERYTHING, "loop.seed": 5})
        assert "seed = 17" in message

    def test_another_average(self, whole: Path, tmp_path: Path) -> None:
        state = load_checkpoint(whole / LATEST)
        assert "this run 0" in self.refused(tmp_path / "run", state)

    @pytest.mark.parametrize("name", ["model", "optimiser", "loader", "progress", "tally"])
    def test_a_part_that_is_missing(self, whole: Path, tmp_path: Path, name: str) -> None:
        state = load_checkpoint(whole / LATEST)
        del state[name]
        assert name in self.refused(tmp_path / "run", state, **EVERYTHING)

    @pytest.mark.parametrize(
        "name", ["model", "balance", "optimiser", "loader", "schedule", "average", "tally"]
    )
    @pytest.mark.parametrize("value", [None, "x", 3])
    def test_a_part_that_is_none(
        self, whole: Path, tmp_path: Path, name: str, value: object
    ) -> None:
        state = {**load_checkpoint(whole / LATEST), name: value}
        assert "does not fit" in self.refused(tmp_path / "run", state, **EVERYTHING)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("step", "x"), ("step", -1), ("step", True), ("stale_epochs", 0.5),
            ("num_records", None), ("best", None), ("best", {"epoch": 1}), ("steps", 3),
        ],
    )  # fmt: skip
    def test_progress_that_no_run_made(
        self, whole: Path, tmp_path: Path, name: str, value: object
    ) -> None:
        state = load_checkpoint(whole / LATEST)
        state["progress"] = {**state["progress"], name: value}
        assert name in self.refused(tmp_path / "run", state, **EVERYTHING)

    @pytest.mark.parametrize(
        ("name", "value"), [("value", "x"), ("epoch", None), ("metrics", {"loss": 3})]
    )
    def test_a_best_that_no_run_made(
        self, whole: Path, tmp_path: Path, name: str, value: object
    ) -> None:
        state = load_checkpoint(whole / LATEST)
        state["progress"]["best"][name] = value
        assert "progress.best is" in self.refused(tmp_path / "run", state, **EVERYTHING)

    def test_no_progress(self, whole: Path, tmp_path: Path) -> None:
        state = {**load_checkpoint(whole / LATEST), "progress": None}
        assert "progress is None" in self.refused(tmp_path / "run", state, **EVERYTHING)

    def test_a_step_beyond_the_epoch(self, whole: Path, tmp_path: Path) -> None:
        state = load_checkpoint(whole / LATEST)
        state["loader"]["step"] = 99
        message = self.refused(tmp_path / "run", state, **EVERYTHING)
        assert f"at step 99 of {STEPS_PER_EPOCH} in an epoch" in message

    def test_a_model_that_lost_a_tensor(self, whole: Path, tmp_path: Path) -> None:
        state = load_checkpoint(whole / LATEST)
        del state["model"]["log_sigmas.span"]
        assert "does not fit" in self.refused(tmp_path / "run", state, **EVERYTHING)
