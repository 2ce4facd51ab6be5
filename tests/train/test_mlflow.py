"""Runs are tracked by a real MLflow server, which may also be absent, or go away."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moola_train.config import RunConfig
from moola_train.errors import ConfigError
from moola_train.runs import METRICS, MLFLOW_RUN
from moola_train.trackers import mlflow as tracked
from moola_train.trackers import numbers
from tests.train.command_line import Moola
from tests.train.small import FLAGS, Task, make_contained_task
from tests.train.tracking import free_port, tracking_server

for _package in ("mlflow", "aiohttp", "alembic", "flask", "flask_cors", "sqlalchemy"):
    pytest.importorskip(_package)

RECORDS = [
    {"step": 3, "epoch": 0, "part": "train", "terms": {"type": 0.75}, "gradient_norm": 1.5},
    {"step": 5, "epoch": 1, "part": "val", "metrics": {"f1.a(b)": {"value": 0.25, "floor": None}}},
]
CONFIG = RunConfig().override({"optimiser.learning_rate": 0.002})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri
    assert is_gone(uri), "the server was left behind"


def is_gone(uri: str) -> bool:
    """Whether nothing listens there any more, a moment after it was killed."""
    address = ("127.0.0.1", int(uri.rpartition(":")[2]))
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(address):
                return True
        time.sleep(0.1)
    return False


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither settings of whoever runs the tests, nor what the tracker sets for good."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_contained_task(tmp_path_factory.mktemp("mlflow"))


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def run_in(uri: str, folder: Path) -> Any:
    """The run that a folder's run is in MLflow."""
    known = json.loads((folder / MLFLOW_RUN).read_text())
    assert known["tracking_uri"] == uri
    return client_of(uri).get_run(known["run_id"])


def history(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    found = client_of(uri).get_metric_history(run.info.run_id, name)
    return [(metric.step, metric.value) for metric in found]


class TestTracker:
    def test_metrics_and_settings_arrive(self, server: str, tmp_path: Path) -> None:
        with tracked(server, CONFIG, tmp_path) as report:
            assert not (tmp_path / MLFLOW_RUN).exists()  # the run may yet be refused
            for record in RECORDS:
                report(record)
        run = run_in(server, tmp_path)
        assert (run.info.status, run.info.run_name) == ("FINISHED", tmp_path.name)
        assert client_of(server).get_experiment(run.info.experiment_id).name == "moola"
        assert run.data.params["optimiser.learning_rate"] == "0.002"
        assert run.data.params["loop.seed"] == "17"
        settings = CONFIG.to_dict()
        flat = {
            f"{s}.{n}": str(v) for s in settings for n, v in settings[s].items() if v is not None
        }
        assert run.data.params == flat
        assert history(server, run, "train/terms/type") == [(3, 0.75)]
        assert history(server, run, "val/metrics/f1.a_b_/value") == [(5, 0.25)]
        assert len(run.data.metrics) == sum(len(numbers(record)) for record in RECORDS)

    def test_a_run_that_goes_on_goes_on_there(self, server: str, tmp_path: Path) -> None:
        for record, epochs in zip(RECORDS, (20, 99), strict=True):
            config = CONFIG.override({"loop.epochs": epochs})
            with tracked(server, config, tmp_path) as report:
                report(record)
        run = run_in(server, tmp_path)
        assert run.info.status == "FINISHED"
        assert history(server, run, "train/terms/type") == [(3, 0.75)]
        assert history(server, run, "val/epoch") == [(5, 1.0)]
        assert run.data.params["loop.epochs"] == "20"

    @pytest.mark.parametrize(
        "text", ["{", "{}", "[]", '{"run_id": 3, "tracking_uri": "x"}', "\xff"]
    )
    def test_a_damaged_note_begins_another(
        self, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
    ) -> None:
        (tmp_path / MLFLOW_RUN).write_text(text, encoding="latin-1")
        with tracked(server, CONFIG, tmp_path) as report:
            report(RECORDS[0])
        assert run_in(server, tmp_path).info.status == "FINISHED"
        (message,) = caplog.messages
        assert message.endswith("mlflow.json is damaged; what follows is a new run in MLflow")

    @pytest.mark.parametrize(
        ("error", "status"), [(KeyboardInterrupt, "KILLED"), (ZeroDivisionError, "FAILED")]
    )
    def test_how_it_ended_is_told(
        self, server: str, tmp_path: Path, error: type[BaseException], status: str
    ) -> None:
        def run() -> None:
            with tracked(server, CONFIG, tmp_path) as report:
                report(RECORDS[0])
                raise error

        with pytest.raises(error):
            run()
        assert run_in(server, tmp_path).info.status == status

    def test_a_run_that_was_refused_is_none(self, server: str, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), tracked(server, CONFIG, tmp_path):
            raise ZeroDivisionError
        assert not list(tmp_path.iterdir())

    def test_the_environment_names_server_and_experiment(
        self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
        with tracked("", CONFIG, tmp_path) as report:
            report(RECORDS[0])
        run = run_in(server, tmp_path)
        assert client_of(server).get_experiment(run.info.experiment_id).name == "another"

    def test_a_server_that_fails_is_warned_of_once(
        self, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, logger="moola_train")
        with tracked(server, CONFIG, tmp_path) as report:
            report(RECORDS[0])
            client_of(server).delete_run(run_in(server, tmp_path).info.run_id)
            for _ in range(3):
                report(RECORDS[1])
        (message,) = caplog.messages
        assert message.startswith(f"MLflow at {server} failed (")
        assert message.endswith("; the run goes on without it, metrics.jsonl has all")


class TestRefused:
    def refused(self, uri: str, folder: Path) -> str:
        with pytest.raises(ConfigError) as raised, tracked(uri, CONFIG, folder):
            pass
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def test_no_server(self, tmp_path: Path) -> None:
        uri = f"http://127.0.0.1:{free_port()}"
        message = self.refused(uri, tmp_path)
        assert message == (
            f"--mlflow {uri} does not answer (Connection refused); start the server, or leave it "
            "out"
        )

    def test_no_uri(self, tmp_path: Path) -> None:
        message = self.refused("", tmp_path)
        assert message == "--mlflow has no URI; give --mlflow URI, or set MLFLOW_TRACKING_URI"

    def test_an_argument_taken_for_it(self, tmp_path: Path) -> None:
        assert "'bars.zarr', which is no tracking server" in self.refused("bars.zarr", tmp_path)

    def test_no_mlflow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlflow", None)
        message = self.refused("http://127.0.0.1:1", tmp_path)
        assert message == "--mlflow needs mlflow; pip install 'moola[mlflow]'"


def fit_of(task: Task, folder: Path, *more: Any) -> tuple[Any, ...]:
    given = ("fit", "--labels", task.labels, "--split", task.split, *FLAGS)
    return (*given, "--run-folder", folder, *more)


class TestFit:
    def test_all_of_metrics_jsonl_is_there(
        self, moola: Moola, server: str, task: Task, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        done = moola(*fit_of(task, folder, "--mlflow", server, "--json"))
        assert done.code == 0, done.err
        assert json.loads(done.out)["status"] == "finished"
        run = run_in(server, folder)
        expected: dict[str, list[tuple[int, float]]] = {}
        for line in (folder / METRICS).read_text().splitlines():
            record = json.loads(line)
            for name, value in numbers(record):
                expected.setdefault(name, []).append((record["step"], value))
        assert len(expected) > 20
        assert run.data.metrics == {name: points[-1][1] for name, points in expected.items()}
        for name in ("train/terms/type", "train/balance/sigma/span", "val/metrics/loss/value"):
            assert len(expected[name]) > 1
            assert history(server, run, name) == expected[name]

    def test_the_last_argument_needs_no_value(
        self, moola: Moola, server: str, task: Task, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        done = moola(*fit_of(task, tmp_path / "run", "--mlflow"))
        assert done.code == 0, done.err
        assert run_in(server, tmp_path / "run").info.status == "FINISHED"

    def test_no_server_is_said_before_anything_is_read(
        self, moola: Moola, task: Task, tmp_path: Path
    ) -> None:
        uri = f"http://127.0.0.1:{free_port()}"
        done = moola(*fit_of(task, tmp_path / "run", "--mlflow", uri))
        assert done.code == 2
        (line,) = done.err.strip().splitlines()
        assert f"--mlflow {uri} does not answer" in line
        assert not (tmp_path / "run").exists()
