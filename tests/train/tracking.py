"""An MLflow tracking server on the loopback device, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 120.0  # seconds for its start, which takes ten on a machine with nothing else to do

# Ends with whoever started it, however that ends: then the pipe closes. Itself it is waited for by
# its starter; the server's processes are of its group.
_WATCH = """
import os, signal, subprocess, sys
command = [sys.executable, "-m", "mlflow", "server", *sys.argv[1:]]
subprocess.Popen(command, stdin=subprocess.DEVNULL)
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""


@contextlib.contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """Start a server that keeps its runs in a folder, and give its URI."""
    port = free_port()
    given = (
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'runs.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    )  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-c", _WATCH, *given], cwd=folder, env={**os.environ, **quiet},
            stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
        ) as watch,
    ):  # fmt: skip
        try:
            uri = f"http://127.0.0.1:{port}"
            assert _answers(uri, watch), log.read_text()
            yield uri
        finally:
            assert watch.stdin is not None
            watch.stdin.close()
            watch.wait(PATIENCE)


def free_port() -> int:
    """A port of the loopback device on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(uri: str, watch: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and watch.poll() is None:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False
