"""A review over HTTP: what its pages may ask, who else is turned away, and what a kill leaves."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moola_features as mf
from moola_train.errors import ConfigError
from moola_train.labels import read_labels
from moola_train.review.server import MAX_BODY, ReviewServer
from moola_train.review.start import open_review
from tests.train.reviewing import TWO, Page, make_store, process, rows_of, rule_labels, serving

JSON = {"Content_Type": "application/json"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    return make_store(tmp_path_factory.mktemp("review"))


@pytest.fixture
def server(store: mf.Store, tmp_path: Path) -> Iterator[ReviewServer]:
    with serving(store, rule_labels(store, tmp_path / "rule.parquet")) as found:
        yield found


@pytest.fixture
def page(server: ReviewServer) -> Iterator[Page]:
    found = Page(server.address)
    yield found
    found.close()


def test_answers_skips_and_undoes(server: ReviewServer, page: Page) -> None:
    first = page.next()
    assert first["suggestion"]["label"] == "consolidation"
    assert first["length"] == 105
    assert len(first["open"]) == first["before"] + 105 + 30
    status, reply = page.answer(first, comment="clear")
    assert status == 200
    assert reply["progress"] == {"total": 6, "answered": 1, "skipped": 0}
    row = rows_of(server.session.path)[first["id"]]
    assert (row["label"], row["expansion_end"], row["comment"]) == ("retracement", 47, "clear")
    second = reply["next"]
    status, reply = page.post("skip", id=second["id"], version=second["version"])
    assert (status, reply["progress"]["skipped"]) == (200, 1)
    assert page.post("undo")[1]["window"]["id"] == second["id"]
    assert page.post("undo")[1]["window"]["draft"]["comment"] == "clear"
    assert page.post("undo") == (409, {"error": "there is nothing to undo on this page"})
    assert rows_of(server.session.path)[first["id"]]["source"] == "rule"


def test_two_pages_in_turn(server: ReviewServer, page: Page) -> None:
    other = Page(server.address, TWO)
    said: dict[str, int] = {}
    mine, theirs = page.next(), other.next()
    for turn in range(3):
        for who, window in ((page, mine), (other, theirs)):
            start = 10 * turn + (who is other)
            status, reply = who.answer(window, start=start, end=start + 5)
            assert status == 200, reply
            said[window["id"]] = start
            assert rows_of(server.session.path)[window["id"]]["expansion_start"] == start
            mine, theirs = (reply["next"], theirs) if who is page else (mine, reply["next"])
    assert (mine, theirs) == (None, None)
    rows = rows_of(server.session.path)
    assert {name: row["expansion_start"] for name, row in rows.items()} == said
    other.close()


def test_an_answer_for_another_version_is_refused(server: ReviewServer, page: Page) -> None:
    window = page.next()
    page.answer(window)
    status, reply = page.answer(window, start=1)
    assert status == 409
    assert "answered on another page" in reply["error"]
    assert rows_of(server.session.path)[window["id"]]["expansion_start"] == 40


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"end": 105}, 400, "end is 105; give a bar of the window, 0 to 104"),
        ({"label": "triangle"}, 400, "label is 'triangle'; choose one of"),
        ({"comment": ["x"]}, 400, "comment is ['x']; give text"),
    ],
)
def test_bad_answers_are_refused_in_one_line(
    server: ReviewServer, page: Page, changes: dict[str, Any], status: int, message: str
) -> None:
    found, reply = page.answer(page.next(), **changes)
    assert found == status
    assert message in reply["error"]
    assert "\n" not in reply["error"]
    assert not server.session.path.exists()


def test_other_hosts_tokens_and_origins_are_refused(server: ReviewServer, page: Page) -> None:
    path = page.path + "api/next"
    body = json.dumps({"page": page.name}).encode()
    port = page.host.partition(":")[2]

    def refused(status: int, message: str, method: str, where: str, **headers: str) -> None:
        sent = body if method == "POST" else None
        found, content, _ = page.send(method, where, sent, **headers)
        assert found == status, content
        assert message in json.loads(content)["error"]

    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.x:{port}", ""):
        refused(403, "open the address that was printed", "GET", page.path, Host=host)
        refused(403, "open the address that was printed", "POST", path, Host=host, **JSON)
    for where in ("/", "/page.js", page.path[:-2] + "/", "/%00/", "/" + "x" * 5_000 + "/"):
        refused(403, "the token is not that of this review", "GET", where)
    refused(403, "the token is not", "POST", "/wrong/api/next", **JSON)
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", "http://127.0.0.1"):
        refused(403, "is not this page", "POST", path, Origin=origin, **JSON)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        refused(415, "send JSON", "POST", path, Content_Type=kind)
    for host in (page.host, f"localhost:{port}"):
        found, _, _ = page.send("POST", path, body, Host=host, Origin=f"http://{host}", **JSON)
        assert found == 200


def test_requests_that_cannot_be_read_are_refused(server: ReviewServer, page: Page) -> None:
    path = page.path + "api/next"
    for body, status, message in (
        (b"{", 400, "the request is no JSON"),
        (b"\xff\xfe", 400, "the request is no JSON"),
        (b"[" * 9_000, 400, "the request is no JSON"),
        (b"[1]", 400, "the request is no JSON object"),
        (b" " * (MAX_BODY + 1), 413, "bytes; 16,384 fit"),
    ):
        found, content, headers = page.send("POST", path, body, **JSON)
        assert (found, headers["Connection"]) == (status, "close")
        assert message in json.loads(content)["error"]
    for name in ("api/drop", "api/close", "api/__init__", "other/next", "api"):
        found, content, _ = page.send("POST", page.path + name, b"{}", **JSON)
        assert (found, "there is nothing called" in content.decode()) == (404, True)
    for name in ("absent.js", "../page.js", "..%2f..%2fetc/passwd", "api/next", "server.py"):
        assert page.send("GET", page.path + name)[0] == 404
    # A length is asked for; one that is huge is not waited for.
    for header, status in (("Content-Length: x", 411), ("Content-Length: 99999999999", 413)):
        with socket.create_connection(("127.0.0.1", int(page.host.partition(":")[2]))) as raw:
            lines = (
                f"POST {path} HTTP/1.1",
                f"Host: {page.host}",
                "Content-Type: application/json",
            )
            raw.sendall("\r\n".join([*lines, header, "", ""]).encode())
            response = http.client.HTTPResponse(raw)
            response.begin()
            assert response.status == status
            response.close()
    assert page.next()["place"] == 1


def test_the_page_is_complete_and_asks_nobody_else(server: ReviewServer, page: Page) -> None:
    status, content, headers = page.send("GET", page.path)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")
    names = re.findall(r'(?:src|href)="([^"]+)"', content.decode())
    linked = {name for name in names if not name.startswith("data:")}
    assert linked == {"page.css", "palette.css", "page.js"}
    for name in (*linked, "chart.js", "marking.js", "settings.json"):
        status, text, _ = page.send("GET", page.path + name)
        assert (status, b"://" in text) == (200, False)
    settings = json.loads(page.send("GET", page.path + "settings.json")[1])
    file = "rule.reviewed.parquet"
    classes = ["consolidation", "retracement"]
    assert settings == {"classes": classes, "store": "bars.zarr", "file": file}


def test_an_answer_that_cannot_be_written_is_not_acknowledged(
    server: ReviewServer, page: Page
) -> None:
    window = page.next()
    page.answer(window)
    server.session.path.unlink()
    window = page.next()
    status, reply = page.answer(window)
    assert status == 500
    assert "not saved: " in reply["error"]
    assert "was changed by another program" in reply["error"]


def test_a_port_that_is_taken_is_named(
    store: mf.Store, server: ReviewServer, tmp_path: Path
) -> None:
    labels = rule_labels(store, tmp_path / "more.parquet")
    for port, reason in ((server.server_address[1], "address already in use"), (70_000, "port")):
        with (
            pytest.raises(ConfigError, match=f"port is {port}: .*{reason}.*; choose another one"),
            open_review(store, labels, port=port),
        ):
            pass


def test_a_review_from_start_to_end(store: mf.Store, tmp_path: Path) -> None:
    path = tmp_path / "hand.parquet"
    with process(store.path, "--labels", path, "--sample", 8, "--classes", "a,b") as started:
        page = Page(started.address)
        page.answer(page.next(), label="b")
        with process(store.path, "--labels", path, "--sample", 8) as second:
            assert second.address == ""
            code, _, err = second.end(signal.SIGINT)
        assert code == 1
        assert err.count("\n") == 1
        assert "hand.parquet is under review by another process; use its page" in err
        page.post("skip", id=(window := page.next())["id"], version=window["version"])
        page.close()
        code, out, err = started.end(signal.SIGINT)
    assert (code, out) == (0, f"{path}: 1 of 8 answered, 1 skipped\n")
    assert "Traceback" not in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["hand.parquet"]
    assert read_labels(path, classes=("a", "b"), store=store).type.tolist() == [1]


def _answer_until_killed(page: Page, kept: dict[str, int], sent: dict[str, int]) -> None:
    with contextlib.suppress(http.client.HTTPException, OSError):
        while window := page.next():
            start = len(kept) % 90
            sent[window["id"]] = start
            if page.answer(window, start=start, end=start + 4)[0] == 200:
                kept[window["id"]] = start


def test_a_kill_loses_at_most_what_was_not_acknowledged(store: mf.Store, tmp_path: Path) -> None:
    path = tmp_path / "hand.parquet"
    arguments = (store.path, "--labels", path, "--stride", 26)
    kept: dict[str, int] = {}
    for moment in (0.05, 0.11):
        with process(*arguments) as started:
            sent: dict[str, int] = {}
            page = Page(started.address)
            before = len(kept)
            worker = threading.Thread(target=_answer_until_killed, args=(page, kept, sent))
            worker.start()
            while len(kept) < before + 3:
                time.sleep(0.001)
            time.sleep(moment)
            started.end(signal.SIGKILL)
            worker.join()
            page.close()
        written = {name: row["expansion_start"] for name, row in rows_of(path).items()}
        assert kept.items() <= written.items()
        assert written.items() <= (kept | sent).items()
        assert len(written) - len(kept) <= 1
        kept = written
    with process(*arguments) as started:
        page = Page(started.address)
        windows = store.windows(105, 26).starts
        window = page.next()
        assert window["place"] == len(kept) + 1  # the first one that is not answered
        assert window["time"][window["before"]] * 10**6 == store.time[windows[len(kept)]]
        page.close()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--sample", 0), 2, "sample is 0; draw at least 1 window"),
        (("--sample", 5, "--seed", -1), 2, "seed is -1; it must be a whole number from 0 to"),
        (("--order", "uncertain", "--sample", 3), 2, "but by names no run; say whose model"),
        ((), 1, "no such file; draw windows of the store with --sample"),
    ],
)
def test_mistakes_on_the_command_line_take_one_line(
    store: mf.Store, tmp_path: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    with process(store.path, "--labels", tmp_path / "hand.parquet", *arguments) as started:
        found, _, err = started.end(signal.SIGCONT)
    assert found == code
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
