"""Several pages at one review: who is asked what, and whose answer stands."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import moola_features as mf
from moola_train.review.marks import RequestError
from moola_train.review.session import HOLD_SECONDS
from tests.train.reviewing import ONE, SPAN, TWO, Review, make_store, rows_of, rule_labels


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    return make_store(tmp_path_factory.mktemp("review"))


@pytest.fixture
def labels(store: mf.Store, tmp_path: Path) -> Path:
    return rule_labels(store, tmp_path / "rule.parquet")


def test_two_pages_are_asked_for_different_windows(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    mine = review.next(ONE)
    theirs = review.next(TWO)
    assert [mine["place"], theirs["place"]] == [1, 2]
    assert review.next(ONE)["id"] == mine["id"]  # a page that was loaded again
    assert review.next(ONE, mine["id"])["place"] == 3
    reply = review.answer(TWO, theirs)
    assert reply["next"]["place"] == 4
    assert reply["progress"] == {"total": 6, "answered": 1, "skipped": 0}


def test_suggestions_come_with_the_window(store: mf.Store, labels: Path) -> None:
    window = Review(store, labels).next(ONE)
    said = {"label": "consolidation", "start": 40, "end": 47, "source": "rule", "comment": None}
    assert window["suggestion"] == said
    assert window["draft"] is None


def test_an_answer_that_comes_too_late_changes_nothing(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    review.now += HOLD_SECONDS + 1
    assert review.next(TWO)["id"] == window["id"]
    review.answer(TWO, window, start=10, end=15)
    late = review.answer(ONE, window, start=70, end=75)
    assert "answered on another page" in late["error"]
    assert late["next"]["id"] != window["id"]
    assert rows_of(review.session.path)[window["id"]]["expansion_start"] == 10
    # The very same answer again is one that was written but never acknowledged.
    again = review.answer(ONE, window, start=10, end=15)
    assert "error" not in again
    assert review.session.progress()["answered"] == 1


def test_a_page_that_is_behind_is_told(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    shown = {"page": ONE, "id": window["id"], "version": window["version"]}
    assert review.session.state(shown)["behind"] is False
    review.now += HOLD_SECONDS + 1
    assert review.next(TWO)["id"] == window["id"]
    assert review.session.state(shown)["behind"] is True  # another page holds it now
    review.answer(TWO, window)
    assert review.session.state(shown)["behind"] is True  # and has answered it
    assert "behind" in review.session.state({"page": ONE})


def test_a_page_that_slept_keeps_its_window_if_nobody_took_it(
    store: mf.Store, labels: Path
) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    shown = {"page": ONE, "id": window["id"], "version": window["version"]}
    review.now += 10 * HOLD_SECONDS
    assert review.session.state(shown)["behind"] is False
    assert review.next(TWO)["id"] != window["id"]


def test_what_a_page_held_is_free_once_it_leaves(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    assert review.next(TWO)["id"] != window["id"]
    review.session.leave({"page": ONE})
    assert review.next("page-three")["id"] == window["id"]


def test_undo_takes_back_what_the_same_page_did_last(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    mine, theirs = review.next(ONE), review.next(TWO)
    review.answer(ONE, mine, comment="sure?")
    review.answer(TWO, theirs, start=60, end=61)
    back = review.undo(ONE)
    assert back["id"] == mine["id"]
    assert back["draft"] == {**SPAN, "source": "hand", "comment": "sure?"}
    assert back["version"] == ""
    rows = rows_of(review.session.path)
    original = {**pl.read_parquet(labels).to_dicts()[0], "comment": None, "reviewed_at": None}
    assert rows[mine["id"]] == original
    assert rows[theirs["id"]]["expansion_start"] == 60
    with pytest.raises(RequestError, match="nothing to undo on this page"):
        review.undo(ONE)
    # It is this page's again, and can be put right.
    assert review.next("page-three")["id"] != mine["id"]
    review.answer(ONE, back, start=41)
    assert rows_of(review.session.path)[mine["id"]]["expansion_start"] == 41


def test_undo_goes_back_across_windows_and_restarts(
    store: mf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hand.parquet"
    review = Review(store, path, sample=6)
    windows = []
    for _ in range(4):
        windows.append(review.next(ONE, *(window["id"] for window in windows)))
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)  # a clock that is not fine enough
    for number in (2, 0, 3, 1):
        review.answer(ONE, windows[number])
    again = Review(store, path, sample=6)
    undone = [again.undo(TWO)["id"] for _ in range(4)]
    assert undone == [windows[number]["id"] for number in (1, 3, 0, 2)]
    assert rows_of(path) == {}
    assert Review(store, path, sample=6).next(ONE)["id"] == windows[0]["id"]


def test_what_a_page_that_is_gone_did_can_be_undone_by_another(
    store: mf.Store, labels: Path
) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    review.answer(ONE, window)
    with pytest.raises(RequestError, match="nothing to undo"):
        review.undo(TWO)
    review.session.leave({"page": ONE})
    assert review.undo(TWO)["id"] == window["id"]


def test_skipped_windows_are_asked_for_again_on_request(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    names = []
    for number in range(6):
        window = review.next(ONE)
        names.append(window["id"])
        if number % 2:
            review.answer(ONE, window)
        else:
            review.skip(ONE, window)
    assert review.next(ONE) is None
    reply = review.session.reopen({"page": ONE})
    assert reply["next"]["id"] == names[0]
    assert reply["progress"] == {"total": 6, "answered": 3, "skipped": 0}
    assert review.undo(ONE)["id"] == names[5]


def test_many_pages_at_once_lose_nothing(store: mf.Store, tmp_path: Path) -> None:
    path = tmp_path / "hand.parquet"
    review = Review(store, path, sample=40)
    done: list[tuple[str, int]] = []

    def work(page: str) -> None:
        while window := review.next(page):
            start = window["place"] % 90
            reply = review.answer(page, window, start=start, end=start + 3)
            assert "saved" in reply, reply
            assert rows_of(path)[window["id"]]["expansion_start"] == start
            done.append((window["id"], start))

    threads = [threading.Thread(target=work, args=(f"page-number-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(set(done)) == 40
    assert {name: row["expansion_start"] for name, row in rows_of(path).items()} == dict(done)


def test_nothing_is_taken_once_the_review_is_closed(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    review.session.close()
    with pytest.raises(RequestError, match="the review is ending") as caught:
        review.answer(ONE, window)
    assert caught.value.status == 503
    assert not review.session.path.exists()


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"page": None}, 400, "page is missing"),
        ({"page": "x"}, 400, "page is missing"),
        ({"page": "x" * 65}, 400, "page is missing"),
        ({"id": "absent"}, 404, "there is no window 'absent' in this review"),
        ({"id": None}, 404, "there is no window"),
        ({"have": "all"}, 400, "have is no list of windows"),
        ({"have": [1]}, 400, "have is no list of windows"),
        ({"end": 105}, 400, "end is 105"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    store: mf.Store, labels: Path, changes: dict[str, Any], status: int, message: str
) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    with pytest.raises(RequestError, match=message) as caught:
        review.answer(ONE, window, **changes)
    assert caught.value.status == status
    assert review.session.progress()["answered"] == 0
