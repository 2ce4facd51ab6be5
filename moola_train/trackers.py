"""Sending a run's records elsewhere as well: each tracker is a function of a record."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moola_features.files import replaced_file
from moola_train.config import RunConfig
from moola_train.errors import ConfigError
from moola_train.loop import Report
from moola_train.runs import MLFLOW_RUN

TRACKING_URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"  # MLflow's own

_USUAL_EXPERIMENT = "moola"
_PARAMETERS_A_CALL = 100  # MLflow's limit
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nobody but the tracking server hears of a run
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # where the result goes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's 7 retries hold a run up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Report]:
    """Write every number of a run's records as TensorBoard events.

    Parameters
    ----------
    folder
        Where the event files go; `tensorboard --logdir` shows them.

    Yields
    ------
    Report
        To be called with every record of the loop.

    Raises
    ------
    ConfigError
        TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs {error.name}; pip install 'moola[tensorboard]'"
        ) from error
    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def write(record: dict[str, Any]) -> None:
            if not opened:  # not before there is something to write: a run may be refused
                opened.append(stack.enter_context(SummaryWriter(str(folder))))
            for name, value in numbers(record):
                opened[0].add_scalar(name, value, record["step"])

        yield write


@contextlib.contextmanager
def mlflow(uri: str, config: RunConfig, folder: Path) -> Iterator[Report]:
    """Log settings and every number of a run's records to an MLflow tracking server.

    A server that fails later on is warned of once, and the run goes on without it.

    Parameters
    ----------
    uri
        The server's, such as ``http://127.0.0.1:5000``; the value of ``MLFLOW_TRACKING_URI`` when
        empty.
    config
        Settings of the run, logged as parameters.
    folder
        The run's folder, after which it is called. A run that goes on there goes on in MLflow.

    Yields
    ------
    Report
        To be called with every record of the loop.

    Raises
    ------
    ConfigError
        MLflow is not installed, no URI, or no server that answers there.
    """
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    uri = _tracking_uri(uri)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=uri)
        experiment = _experiment(client)
    except ImportError as error:
        raise ConfigError(f"--mlflow needs {error.name}; pip install 'moola[mlflow]'") from error
    except (MlflowException, OSError) as error:
        raise ConfigError(
            f"--mlflow {uri} does not answer ({_reason(error)}); start the server, or leave it out"
        ) from error
    tracked = _Tracked(client, experiment, config, folder, uri)
    try:
        yield tracked.write
    except BaseException as error:
        tracked.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracked.end("FINISHED")


class _Tracked:
    """A run in MLflow, begun with its first record: before that it may still be refused."""

    def __init__(
        self, client: Any, experiment: str, config: RunConfig, folder: Path, uri: str
    ) -> None:
        self._client = client
        self._experiment = experiment
        self._config = config
        self._folder = folder
        self._uri = uri
        self._run: str | None = None
        self._lost = False

    def write(self, record: dict[str, Any]) -> None:
        """Log a record's numbers."""
        if self._lost:
            return
        with self._sending():
            from mlflow.entities import Metric

            if self._run is None:
                self._run = self._begin()
            now = int(1000 * time.time())
            metrics = [
                Metric(re.sub(r"[^\w\-. :/]", "_", name), value, now, record["step"])
                for name, value in numbers(record)
            ]
            self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: str) -> None:
        """Say how the run ended, if it ever began."""
        if self._run is not None and not self._lost:
            with self._sending():
                self._client.set_terminated(self._run, status)

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            self._lost = True
            _logger.warning(
                "MLflow at %s failed (%s); the run goes on without it, metrics.jsonl has all",
                self._uri, _reason(error),
            )  # fmt: skip

    def _begin(self) -> str:
        """Go on with the folder's run in MLflow, or make one with the settings as parameters."""
        from mlflow.entities import Param

        kept = self._folder / MLFLOW_RUN
        known = _known_run(kept, self._uri)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            return known
        run = self._client.create_run(self._experiment, run_name=self._folder.absolute().name)
        settings = [
            Param(f"{section}.{name}", str(value))
            for section, values in self._config.to_dict().items()
            for name, value in values.items()
            if value is not None
        ]
        for first in range(0, len(settings), _PARAMETERS_A_CALL):
            part = settings[first : first + _PARAMETERS_A_CALL]
            self._client.log_batch(run.info.run_id, params=part)
        with replaced_file(kept) as beside:
            text = json.dumps({"tracking_uri": self._uri, "run_id": run.info.run_id})
            beside.write_text(text + "\n", encoding="utf-8")
        return str(run.info.run_id)


def _known_run(kept: Path, uri: str) -> str | None:
    """The run that a folder is tracked as; None at another server, or where it cannot be read."""
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        known = None
    run_id = known.get("run_id") if isinstance(known, dict) else None
    if not isinstance(known, dict) or not isinstance(run_id, str) or "tracking_uri" not in known:
        _logger.warning("%s is damaged; what follows is a new run in MLflow", kept)
        return None
    return run_id if known["tracking_uri"] == uri else None


def _tracking_uri(uri: str) -> str:
    found = uri or os.environ.get(TRACKING_URI, "")
    if not found:
        raise ConfigError(f"--mlflow has no URI; give --mlflow URI, or set {TRACKING_URI}")
    if "://" not in found and not found.startswith("databricks"):
        raise ConfigError(
            f"--mlflow is {found!r}, which is no tracking server's URI; give one such as "
            f"http://127.0.0.1:5000, or set {TRACKING_URI} and put --mlflow behind all arguments"
        )
    return found


def _experiment(client: Any) -> str:
    name = os.environ.get(EXPERIMENT, _USUAL_EXPERIMENT)
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def _reason(error: BaseException) -> str:
    """What the system said, if that is at the bottom of it; else the error's own first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def numbers(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Every finite number of a record under the name of its place.

    Examples
    --------
    >>> numbers({"step": 4, "part": "train", "terms": {"span": 0.5}})
    [('train/terms/span', 0.5)]
    >>> numbers({"step": 4, "part": "val", "metrics": {"loss": {"value": 2.0, "floor": None}}})
    [('val/metrics/loss/value', 2.0)]
    """
    found: list[tuple[str, float]] = []

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                visit(f"{prefix}/{name}", inner)
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((prefix, float(value)))

    for name, value in record.items():
        if name not in ("part", "step"):
            visit(f"{record['part']}/{name}", value)
    return found
