"""The folder of a run keeps what it was, and refuses to become another."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moola_features.errors import OutputError
from moola_train.config import RunConfig
from moola_train.errors import RunError
from moola_train.runs import (
    BEST,
    CONFIG,
    DATA,
    ENVIRONMENT,
    LATEST,
    METRICS,
    MLFLOW_RUN,
    SUMMARY,
    WEIGHTS,
    RunFolder,
    environment,
)

DATA_OF = {"labels_sha256": "a", "fold": 0}


def refused(path: Path, config: RunConfig, data: dict[str, Any], *, resume: bool = True) -> str:
    with pytest.raises(RunError) as raised:
        RunFolder(path).begin(config, data, resume=resume)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def begun(path: Path, made: str = LATEST) -> RunFolder:
    """A run that has made something."""
    run = RunFolder(path)
    run.begin(RunConfig(), DATA_OF, resume=False)
    run.file(made).touch()
    return run


def test_begin_keeps_config_environment_and_data(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert RunConfig.from_toml(run.file(CONFIG)) == RunConfig()
    assert json.loads(run.file(DATA).read_text()) == DATA_OF
    kept = json.loads(run.file(ENVIRONMENT).read_text())
    assert kept["torch"] == torch.__version__
    assert kept["threads"] == torch.get_num_threads()
    assert set(kept) >= {"python", "numpy", "machine", "revision"}
    assert kept == environment()


@pytest.mark.parametrize("name", [LATEST, BEST, WEIGHTS, SUMMARY])
def test_a_folder_that_holds_a_run(tmp_path: Path, name: str) -> None:
    begun(tmp_path / "run", name)
    assert "--resume auto" in refused(tmp_path / "run", RunConfig(), DATA_OF, resume=False)
    RunFolder(tmp_path / "run").begin(RunConfig(), DATA_OF, resume=True)


def test_a_folder_where_a_run_made_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(RunConfig(), DATA_OF, resume=False)
    run.log({"step": 1})
    run.write_json(MLFLOW_RUN, {})
    other = RunConfig().override({"loop.watch": "accuracy"})
    RunFolder(tmp_path / "run").begin(other, {"fold": 3}, resume=False)
    assert RunConfig.from_toml(run.file(CONFIG)) == other
    assert json.loads(run.file(DATA).read_text()) == {"fold": 3}
    assert not run.file(METRICS).exists()
    assert not run.file(MLFLOW_RUN).exists()


def test_a_run_that_does_not_say_on_what(tmp_path: Path) -> None:
    begun(tmp_path / "run").file(DATA).unlink()
    assert "data.json cannot be read" in refused(tmp_path / "run", RunConfig(), DATA_OF)


def test_resuming_on_other_data(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    message = refused(tmp_path / "run", RunConfig(), {**DATA_OF, "labels_sha256": "b"})
    assert "labels_sha256 = 'a', not 'b'" in message


def test_resuming_with_other_settings(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    other = RunConfig().override({"optimiser.learning_rate": 0.5})
    assert "learning_rate = 0.001, not 0.5" in refused(tmp_path / "run", other, DATA_OF)
    longer = RunConfig().override({"loop.epochs": 99, "loop.max_steps": 5})
    RunFolder(tmp_path / "run").begin(longer, DATA_OF, resume=True)
    assert RunConfig.from_toml(tmp_path / "run" / CONFIG) == longer


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_data(tmp_path: Path, text: str) -> None:
    begun(tmp_path / "run").file(DATA).write_text(text)
    assert DATA in refused(tmp_path / "run", RunConfig(), DATA_OF)


def test_no_parent(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="make it first"):
        RunFolder(tmp_path / "none" / "run")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_path_that_is_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    path.touch() if kind == "file" else path.symlink_to("nowhere")
    with pytest.raises(RunError) as raised:
        RunFolder(path)
    assert str(raised.value) == f"the run folder {path} is no folder; name another"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ENAMETOOLONG])
def test_a_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def mkdir(path: Path, **_options: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OutputError) as raised:
        RunFolder(tmp_path / "run")
    assert str(raised.value) == (
        f"the run folder {tmp_path / 'run'} cannot be made: {os.strerror(code).lower()}; name one "
        "that you may write to"
    )


def test_no_path() -> None:
    with pytest.raises(RunError, match="run folder is ''; name one"):
        RunFolder("")


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", writes=False)
    run.begin(RunConfig(), DATA_OF, resume=False)
    run.log({"step": 1})
    run.keep_records(0)
    assert list(tmp_path.iterdir()) == []


class TestHeld:
    def test_a_second_process_is_refused(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "run")
        with run.held(), pytest.raises(RunError) as raised, RunFolder(tmp_path / "run").held():
            pytest.fail("both write")
        assert "is being written by another run; wait for it" in str(raised.value)
        with run.held():
            pass

    def test_only_the_first_process_holds(self, tmp_path: Path) -> None:
        with (
            RunFolder(tmp_path / "run").held(),
            RunFolder(tmp_path / "run", writes=False).held(),
        ):
            pass

    def test_a_crash_leaves_nothing_held(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, sys\n"
            "from moola_train.runs import RunFolder\n"
            "with RunFolder(sys.argv[1]).held():\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
        assert done.returncode == -signal.SIGKILL
        with RunFolder(tmp_path / "run").held():
            pass


class TestRecords:
    def test_kept_in_order(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "run")
        assert list(run.records()) == []
        for step in range(4):
            run.log({"step": step})
        assert run.keep_records(3, last_step=2) == 3
        run.log({"step": 9})
        assert [record["step"] for record in run.records()] == [0, 1, 2, 9]

    def test_a_line_that_was_cut_off(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "run")
        run.log({"step": 1})
        with run.file(METRICS).open("a") as file:
            file.write('{"step": 2, "pa')
        assert [record["step"] for record in run.records()] == [1]
        assert run.keep_records(5, last_step=1) == 1
        run.log({"step": 2})
        assert [record["step"] for record in run.records()] == [1, 2]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    def test_a_full_disk(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "run")
        run.file(METRICS).symlink_to("/dev/full")
        with pytest.raises(OutputError, match="no space left on device; free some space"):
            run.log({"step": 1})

    def test_json_has_no_nan(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "run")
        run.log({"metrics": {"pr_auc": float("nan")}, "list": [float("inf"), 1.5]})
        assert json.loads(run.file(METRICS).read_text(), parse_constant=pytest.fail) == {
            "metrics": {"pr_auc": None},
            "list": [None, 1.5],
        }

    @pytest.mark.parametrize(
        ("damage", "left"),
        [
            (lambda lines: [], []),
            (lambda lines: lines[:2], [0, 1]),
            (lambda lines: [lines[0], *lines[2:]], [0, 2]),
            (lambda lines: [lines[0], b"{", *lines[2:]], [0, 2]),
            (lambda lines: [lines[0], b"\xff\xfe", *lines[2:]], [0, 2]),
            (lambda lines: [b"5", b'{"step": "x"}', *lines[2:]], [2]),
        ],
    )
    def test_lines_that_are_lost_are_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, left: list[int]
    ) -> None:
        run = RunFolder(tmp_path / "run")
        for step in range(5):
            run.log({"step": step})
        file = run.file(METRICS)
        lines = damage(file.read_bytes().splitlines())
        file.write_bytes(b"".join(line + b"\n" for line in lines))
        with caplog.at_level(logging.WARNING, logger="moola_train"):
            assert run.keep_records(3, last_step=2) == len(left)
        assert [record["step"] for record in run.records()] == left
        (message,) = caplog.messages
        assert f"metrics.jsonl has {len(left)} of the 3 good lines" in message
        assert "\n" not in message

    def test_nothing_is_told_where_nothing_is_lost(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = RunFolder(tmp_path / "run")
        for step in range(5):
            run.log({"step": step})
        with caplog.at_level(logging.WARNING, logger="moola_train"):
            assert run.keep_records(3, last_step=2) == 3
        assert caplog.messages == []
