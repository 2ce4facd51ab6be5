"""The folder of a run: what was asked, on what, in which environment, and what came of it."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from moola_features.errors import OutputError
from moola_features.files import replaced_file, require_folder
from moola_train.config import RunConfig
from moola_train.errors import RunError

CONFIG, ENVIRONMENT, DATA = "config.toml", "environment.json", "data.json"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
LATEST, BEST, WEIGHTS = "latest.pt", "best.pt", "weights.safetensors"
MLFLOW_RUN = "mlflow.json"  # where it is tracked, for a run that goes on
OWN_FILES = (CONFIG, ENVIRONMENT, DATA, METRICS, SUMMARY, LATEST, BEST, WEIGHTS, MLFLOW_RUN)
PATHS = "paths"  # what data.json calls where files lay; a copy of one is as good

_logger = logging.getLogger(__name__)


class RunFolder:
    """A run's files.

    Parameters
    ----------
    path
        Made if its parent is there.
    store
        What the run reads; its folder must not be written into.
    writes
        False in every process but the first of a distributed run: then nothing is written.

    Raises
    ------
    RunError
        No path, one of a file, or one in the store.
    OutputError
        A parent that is missing or cannot be written.
    """

    def __init__(self, path: str | Path, *, store: Path | None = None, writes: bool = True) -> None:
        if not str(path):
            raise RunError("the run folder is ''; name one, such as runs/first")
        self.path = Path(path)
        self.writes = writes
        if store is not None:
            _require_outside(self.path, store)
        if writes:
            require_folder(self.path.absolute().parent, self.path)
            _make(self.path)

    def file(self, name: str) -> Path:
        """Path of one of the run's files."""
        return self.path / name

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing into the folder meanwhile.

        The folder itself is locked, so a crash leaves no lock behind.

        Raises
        ------
        RunError
            Another process is at it.
        """
        if not self.writes:  # the first process holds it for all of them
            yield
            return
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is being written by another run; wait for it, stop it first, or "
                    "name another folder"
                ) from None
            yield
        finally:
            os.close(handle)

    def begin(self, config: RunConfig, data: dict[str, Any], *, resume: bool) -> None:
        """Keep the configuration and what it is run on; a run that is resumed must be the same.

        What a run left that ended before its first checkpoint gives way.

        Raises
        ------
        RunError
            The folder holds another run, or one that was not to be resumed.
        """
        known = self.file(DATA)
        if self.writes and not self._holds_run():
            for name in (METRICS, MLFLOW_RUN):
                self.file(name).unlink(missing_ok=True)
        elif self.writes:
            if not resume:
                raise RunError(
                    f"{self.path} holds a run; go on with --resume auto, or name another"
                )
            before = _read_json(known)
            saved = type(config).from_toml(self.file(CONFIG))
            _require_same(saved, config, self.path)
            for name, value in data.items():
                if name != PATHS and before.get(name) != value:
                    raise RunError(
                        f"{self.path} was run on {name} = {before.get(name)!r}, not {value!r}; "
                        "name another folder"
                    )
        self.write_text(CONFIG, config.to_toml())
        self.write_json(ENVIRONMENT, environment())
        self.write_json(DATA, data)

    def _holds_run(self) -> bool:
        """Whether there is anything that took steps to make."""
        return any(self.file(name).exists() for name in (LATEST, BEST, WEIGHTS, SUMMARY))

    def write_text(self, name: str, text: str) -> None:
        """Write one of the run's files in one step."""
        if self.writes:
            with replaced_file(self.file(name)) as beside:
                beside.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the run's files as JSON."""
        self.write_text(name, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl.

        Raises
        ------
        OutputError
            A full disk, no permission.
        """
        if not self.writes:
            return
        line = json.dumps(_plain(record), allow_nan=False) + "\n"
        try:
            with self.file(METRICS).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise OutputError(
                f"{self.file(METRICS)} cannot be written: {what}; free some space or give "
                "permission, then go on with --resume auto"
            ) from error

    def records(self) -> Iterator[dict[str, Any]]:
        """Lines of metrics.jsonl; one that is damaged, or was cut off, is passed over."""
        return _records(self._lines())

    def keep_records(self, count: int, *, last_step: int = 0) -> int:
        """Drop what a resumed run logs again: all but the first lines of metrics.jsonl.

        Parameters
        ----------
        count
            Lines that the run had logged where it goes on.
        last_step
            The step at which it goes on; where lines are lost, later ones move up.

        Returns
        -------
        int
            Lines that are kept. If they are fewer, that is warned of.
        """
        if not self.writes:
            return count
        first = _records(self._lines()[:count])
        kept = [json.dumps(record) for record in first if record["step"] <= last_step]
        if len(kept) < count:
            _logger.warning(
                "%s has %d of the %d good lines that were written by step %d; the run goes on, "
                "the others are lost",
                self.file(METRICS), len(kept), count, last_step,
            )  # fmt: skip
        self.write_text(METRICS, "".join(f"{line}\n" for line in kept))
        return len(kept)

    def _lines(self) -> list[str]:
        try:
            # One byte that is none of UTF-8 spoils its own line, not the others.
            return self.file(METRICS).read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []


def _records(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


def _make(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise RunError(f"the run folder {path} is no folder; name another") from None
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise OutputError(
            f"the run folder {path} cannot be made: {what}; name one that you may write to"
        ) from error


def _require_outside(path: Path, store: Path) -> None:
    # By what the system says: a link or another spelling leads to the same folder.
    place = path.resolve()
    for folder in (place, *place.parents):
        if os.path.exists(folder) and folder.samefile(store):  # False of a name too long
            raise RunError(
                f"the run folder {path} is, or lies in, the store {store} that is read; name "
                "another folder"
            )


# What may differ between a run and its resumption: how long it goes on and how it is watched.
_MAY_CHANGE = {
    "loop": {"epochs", "max_steps", "max_minutes", "checkpoint_steps", "log_steps", "patience"}
}


def _require_same(saved: RunConfig, asked: RunConfig, path: Path) -> None:
    before, now = saved.to_dict(), asked.to_dict()
    for section, settings in before.items():
        for name, value in settings.items():
            same = now[section][name] == value
            if not same and name not in _MAY_CHANGE.get(section, set()):
                raise RunError(
                    f"{path} was run with {section}.{name} = {value!r}, not "
                    f"{now[section][name]!r}; name another folder, or leave the setting as it was"
                )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}), though a run lies beside it; name another "
            "run folder"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is no JSON: {error}; name another run folder") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no JSON object; name another run folder")
    return values


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null instead."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment() -> dict[str, Any]:
    """Versions, device and revision that a result depends on."""
    packages = ("moola", "torch", "numpy", "numba", "zarr", "polars", "scikit-learn", "safetensors")
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    found["revision"] = _revision()
    return found


def _revision() -> str | None:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None  # installed without its history
    return done.stdout.strip()
