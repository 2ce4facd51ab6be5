"""Reviews to talk to: a small store, servers in this process or in one that can be killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import moola_features as mf
from moola_features.synth import synthesise
from moola_train.review.candidates import store_windows
from moola_train.review.record import Record, output_of
from moola_train.review.server import ReviewServer
from moola_train.review.session import Session
from moola_train.review.start import ReviewSettings, open_review
from tests.train.labelled import at_bars

Reply = tuple[int, dict[str, Any]]


def rule_labels(store: mf.Store, path: Path) -> Path:
    """Six windows that a rule has labelled, in an order of their own."""
    bars = store.windows(105, 400).starts[[3, 0, 5, 1, 2, 4]].tolist()
    frame = at_bars(
        store, bars, source=["rule"] * 6, score=[0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
        base_window_id=["b0", "b0", "b1", "b1", "b2", "b2"],
    )  # fmt: skip
    frame.write_parquet(path)
    return path


def make_store(folder: Path, num_bars: int = 6_000) -> mf.Store:
    """A synthetic market."""
    mf.build(synthesise(num_bars, seed=5).bars, folder / "bars.zarr")
    store = mf.open_store(folder / "bars.zarr")
    assert isinstance(store, mf.Store)
    return store


@dataclass
class Page:
    """One page, as far as the server can tell."""

    address: str
    name: str = "page-one"

    def __post_init__(self) -> None:
        self.host = urllib.parse.urlsplit(self.address).netloc
        self.path = urllib.parse.urlsplit(self.address).path
        self.connection = http.client.HTTPConnection(self.host, timeout=20)

    def send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        """Send a request just so; underscores in names of headers stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, named)
        response = self.connection.getresponse()
        return response.status, response.read(), response.headers

    def post(self, action: str, **values: Any) -> Reply:
        body = json.dumps({"page": self.name, **values}).encode()
        path = f"{self.path}api/{action}"
        status, content, _ = self.send("POST", path, body, Content_Type="application/json")
        return status, json.loads(content)

    def next(self, *have: str) -> dict[str, Any]:
        status, reply = self.post("next", have=list(have))
        assert status == 200, reply
        window: dict[str, Any] = reply["next"]
        return window

    def answer(self, window: dict[str, Any], **changes: Any) -> Reply:
        said = {"label": "retracement", "start": 40, "end": 47, **changes}
        return self.post("answer", id=window["id"], version=window["version"], **said)

    def close(self) -> None:
        self.connection.close()


@contextlib.contextmanager
def serving(
    store: mf.Store, labels: Path, output: Path | None = None, **settings: Any
) -> Iterator[ReviewServer]:
    """Serve a review from a thread of this process."""
    with open_review(store, labels, output, ReviewSettings(**settings)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Process:
    """A review as a user starts it."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "moola_train", "review", *map(str, arguments), "--no-open"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal; gives exit code, the rest of stdout, and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[Process]:
    """Start a review; it is gone at the end, whatever happened."""
    started = Process(*arguments)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end(signal.SIGKILL)


ONE, TWO = "page-one", "page-two"
CLASSES = ("consolidation", "retracement")
SPAN = {"label": "retracement", "start": 40, "end": 47}


class Review:
    """A session on a record, with a clock that stands still unless it is told to move."""

    def __init__(self, store: mf.Store, labels: Path, sample: int | None = None) -> None:
        self.now = 0.0
        self.record = Record(output_of(labels, None), labels, store, CLASSES)
        if sample is not None:
            self.record.add_windows(store_windows(store, stride=None, sample=sample, seed=1))
        queue = np.arange(len(self.record))
        self.session = Session(
            self.record, queue, CLASSES, lambda bar: {"bar": bar}, self.record.original,
            clock=lambda: self.now,
        )  # fmt: skip

    def next(self, page: str, *have: str) -> dict[str, Any]:
        window: dict[str, Any] = self.session.next({"page": page, "have": list(have)})["next"]
        return window

    def answer(self, by: str, window: dict[str, Any], **changes: Any) -> dict[str, Any]:
        named = {"page": by, "id": window["id"], "version": window["version"]}
        return self.session.answer({**named, **SPAN, **changes})

    def skip(self, page: str, window: dict[str, Any], **more: Any) -> dict[str, Any]:
        named = {"page": page, "id": window["id"], "version": window["version"]}
        return self.session.skip({**named, **more})

    def undo(self, page: str) -> dict[str, Any]:
        window: dict[str, Any] = self.session.undo({"page": page})["window"]
        return window


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    """Rows of a labels file by window."""
    # One read: Polars opens a path twice, and a server may replace the file between the two.
    frame = pl.read_parquet(path.read_bytes())
    return {row["window_id"]: row for row in frame.to_dicts()}
