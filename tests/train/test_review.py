"""Answers, and the labels file they go to."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

import moola_features as mf
from moola_features import errors
from moola_features.errors import OutputError
from moola_features.times import time_text
from moola_train.errors import ConfigError, LabelsError
from moola_train.hindsight import window_names
from moola_train.labels import read_labels
from moola_train.review import record as records
from moola_train.review.marks import Mark, RequestError, parse_answer
from moola_train.review.record import Record, held, output_of
from moola_train.review.start import ReviewSettings, open_review
from tests.train.labelled import at_bars, contained
from tests.train.reviewing import CLASSES, ONE, SPAN, Review, make_store, rows_of, rule_labels


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    return make_store(tmp_path_factory.mktemp("review"))


@pytest.fixture
def labels(store: mf.Store, tmp_path: Path) -> Path:
    return rule_labels(store, tmp_path / "rule.parquet")


# ---- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "mark"),
    [
        (SPAN, Mark(label="retracement", start=40, end=47, source="hand")),
        ({"label": None, "start": 0, "end": 104}, Mark(start=0, end=104, source="hand")),
        (
            {"label": "none", "start": None, "end": None, "comment": " flat \n all day "},
            Mark(label="none", source="hand", comment="flat all day"),
        ),
        ({"label": "none", "comment": "  "}, Mark(label="none", source="hand")),
    ],
)
def test_an_answer_that_makes_sense_is_taken(request_: dict[str, Any], mark: Mark) -> None:
    assert parse_answer(request_, CLASSES) == mark


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "triangle"}, "label is 'triangle'; choose one of consolidation, retracement"),
        ({"label": 1}, "label is 1; choose"),
        ({"label": ["retracement"]}, "label is ['retracement']; choose"),
        ({"label": "none"}, "label is 'none', but start is 40; send no span"),
        ({"start": None}, "start is None; give a bar of the window, 0 to 104"),
        ({"start": -1}, "start is -1; give a bar"),
        ({"end": 105}, "end is 105; give a bar"),
        ({"end": 47.0}, "end is 47.0; give a bar"),
        ({"end": True}, "end is True; give a bar"),
        ({"start": 48}, "start is 48, after end, which is 47"),
        ({"comment": 5}, "comment is 5; give text"),
        ({"comment": "x" * 501}, "the comment has 501 characters; 500 fit"),
        ({"label": "x" * 900}, "..."),
    ],
)
def test_an_answer_that_makes_none_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_answer({**SPAN, **changes}, CLASSES)
    assert message in str(caught.value)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


# ---- the labels file --------------------------------------------------------------------------


def test_other_rows_and_columns_stay_as_they_were(store: mf.Store, labels: Path) -> None:
    before = labels.read_bytes()
    given = pl.read_parquet(labels)
    review = Review(store, labels)
    window = review.next(ONE)
    review.answer(ONE, window, start=50, end=53, comment="clear")
    assert labels.read_bytes() == before
    written = pl.read_parquet(labels.with_name("rule.reviewed.parquet"))
    assert written.columns == [*given.columns, "comment", "reviewed_at"]
    answered = written["window_id"] == window["id"]
    assert written.filter(~answered).select(given.columns).equals(given.filter(~answered))
    assert written.filter(~answered)["reviewed_at"].null_count() == 5
    others = ["window_id", "start_time", "score", "base_window_id"]
    assert written.select(others).equals(given.select(others))
    row = written.filter(answered).to_dicts()[0]
    said = ("label", "expansion_start", "expansion_end", "source", "comment")
    assert [row[name] for name in said] == ["retracement", 50, 53, "hand", "clear"]


def test_windows_of_the_store_are_in_the_file_once_they_are_answered(
    store: mf.Store, tmp_path: Path
) -> None:
    path = tmp_path / "hand.parquet"
    review = Review(store, path, sample=5)
    windows = [review.next(ONE)]
    review.answer(ONE, windows[0])
    windows.append(review.next(ONE))
    review.answer(ONE, windows[1], label="none", start=None, end=None)
    found = read_labels(path, classes=(*CLASSES, "none"), store=store)
    assert found.window_id == tuple(window["id"] for window in windows)
    assert found.type.tolist() == [1, 2]
    assert found.start.tolist() == [40, -1]
    assert found.start_bar is not None
    assert found.start_bar.tolist() == [window["bar"] for window in windows]


def test_an_answer_survives_and_its_time_is_that_of_the_answer(
    store: mf.Store, tmp_path: Path
) -> None:
    path = tmp_path / "hand.parquet"
    review = Review(store, path, sample=3)
    first = review.next(ONE)
    saved = review.answer(ONE, first)["saved"]
    again = Review(store, path, sample=3)
    row = again.record.row(first["id"])
    assert row is not None
    assert again.record.mark(row).version == saved
    assert again.session.progress() == {"total": 3, "answered": 1, "skipped": 0}
    assert again.next(ONE)["id"] != first["id"]


def test_a_skipped_window_is_remembered_and_is_no_labelled_one(
    store: mf.Store, labels: Path
) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    review.skip(ONE, window, comment="two of them")
    path = labels.with_name("rule.reviewed.parquet")
    row = rows_of(path)[window["id"]]
    assert (row["source"], row["comment"], row["reviewed_at"]) == ("rule", None, None)
    again = Review(store, labels)
    assert again.session.progress() == {"total": 6, "answered": 0, "skipped": 1}
    number = again.record.row(window["id"])
    assert number is not None
    assert again.record.mark(number).comment == "two of them"
    assert again.undo(ONE)["id"] == window["id"]
    assert Review(store, labels).session.progress()["skipped"] == 0


def test_labels_of_text_are_reviewed_too(store: mf.Store, labels: Path, tmp_path: Path) -> None:
    path = tmp_path / "rule.csv"
    frame = pl.read_parquet(labels).with_columns(number=pl.int_range(6))
    numbered = frame.drop("window_id").rename({"number": "window_id"})
    numbered.write_csv(path)
    review = Review(store, path, sample=4)
    window = review.next(ONE)
    review.answer(ONE, window)
    found = read_labels(tmp_path / "rule.reviewed.parquet", store=store)
    assert found.window_id == tuple("012345")
    assert found.start_bar is not None
    assert found.start_bar[0] == window["bar"]
    assert Review(store, path, sample=4).session.progress()["answered"] == 1


def test_a_window_that_is_there_already_is_not_added_again(
    store: mf.Store, labels: Path, tmp_path: Path
) -> None:
    bars = store.windows(105, 105).starts[:3].tolist()
    at_bars(store, bars).write_parquet(tmp_path / "few.parquet")
    review = Review(store, tmp_path / "few.parquet", sample=10_000)
    assert review.record.start_bar[:3] == bars
    assert sorted(review.record.start_bar) == store.windows(105, 105).starts.tolist()


def test_a_file_of_a_review_is_gone_on_with(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    review.answer(ONE, review.next(ONE))
    path = labels.with_name("rule.reviewed.parquet")
    assert output_of(labels, None) == path
    assert output_of(path, None) == path
    again = Review(store, path)
    again.answer(ONE, again.next(ONE))
    assert Review(store, labels).session.progress()["answered"] == 2
    assert not labels.with_name("rule.reviewed.reviewed.parquet").exists()


def test_undo_in_a_later_review_brings_rows_back_as_they_were(
    store: mf.Store, labels: Path, tmp_path: Path
) -> None:
    comments = pl.Series("comment", ["thin", None, None, "late", None, None])
    given = pl.read_parquet(labels).with_columns(comments)
    given.write_parquet(labels)
    review = Review(store, labels, sample=2)
    while window := review.next(ONE):
        review.answer(ONE, window, label="none", start=None, end=None, comment="flat")
    path = review.session.path
    copy = tmp_path / "copy.parquet"
    # Every answer is taken back in a review of its own, which knows of the file alone.
    for number in range(8):
        again = Review(store, path)
        assert again.session.progress()["answered"] == 8 - number
        again.undo(ONE)
        written = pl.read_parquet(path)
        assert written.height == max(8 - number - 1, 6)  # the two of the store leave the file
        if number == 4:
            Record(copy, path, store, CLASSES).change({})
    assert written.drop("reviewed_at").equals(given)
    assert written["reviewed_at"].null_count() == 6
    # A review that began with the file of another knows as much.
    path.unlink()
    for _ in range(3):
        assert Review(store, copy).undo(ONE)["id"] in given["window_id"]
    assert pl.read_parquet(copy).equals(written)


def test_undo_tells_given_windows_from_those_of_the_store(store: mf.Store, tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    bars = store.windows(105, 105).starts[:2]
    names = window_names(store.time[bars])
    given = at_bars(store, bars.tolist(), window_id=names)
    given.write_parquet(path)
    review = Review(store, path, sample=3)
    while window := review.next(ONE):
        review.answer(ONE, window)
    path = review.session.path
    while (again := Review(store, path)).session.progress()["answered"]:
        again.undo(ONE)
    assert pl.read_parquet(path).select(given.columns).equals(given)


def test_a_suggestion_of_the_labels_comes_back_with_its_window(
    store: mf.Store, labels: Path
) -> None:
    review = Review(store, labels)
    window = review.next(ONE)
    review.answer(ONE, window, start=60, end=61)
    back = Review(store, review.session.path).undo(ONE)
    assert back["suggestion"] == window["suggestion"]
    assert back["draft"]["start"] == 60


def test_undo_keeps_rows_whose_file_does_not_say_what_they_said(
    store: mf.Store, labels: Path
) -> None:
    # Told from windows of the store by their columns, or else by their names.
    given = pl.read_parquet(labels)
    named = given.with_columns(pl.Series("window_id", window_names(given["start_time"].to_numpy())))
    bare = at_bars(store, [2_500], window_id=["mine"])
    pl.concat([named, bare], how="diagonal").write_parquet(labels)
    review = Review(store, labels, sample=2)
    while window := review.next(ONE):
        review.answer(ONE, window)
    path = review.session.path
    answered = pl.read_parquet(path)
    answered.write_parquet(path)  # by a program that drops the metadata
    for _ in range(2 + 7):
        Review(store, path).undo(ONE)
    written = pl.read_parquet(path)
    said = ["label", "expansion_start", "expansion_end", "source", "comment", "reviewed_at"]
    assert written.drop(said).equals(answered.drop(said).head(7))
    assert written.select(said).null_count().row(0) == (7,) * len(said)


@pytest.mark.parametrize("name", ["moola_review_before", "moola_review_skipped"])
@pytest.mark.parametrize("text", ["[", "{}", "[[1]]", '["w0"]', '[["w0", {}, 1, 2, null, null]]'])
def test_metadata_that_no_review_writes_is_refused(
    store: mf.Store, labels: Path, name: str, text: str
) -> None:
    review = Review(store, labels)
    review.answer(ONE, review.next(ONE))
    path = review.session.path
    table = pq.read_table(path)
    changed = {**table.schema.metadata, name.encode(): text.encode()}
    pq.write_table(table.replace_schema_metadata(changed), path)
    with pytest.raises(LabelsError, match=f"rule.reviewed.parquet: metadata {name} is ") as caught:
        Review(store, path)
    assert "\n" not in str(caught.value)


def test_what_a_review_cannot_use_is_refused(store: mf.Store, labels: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], *parts: str, **arguments: Any) -> None:
        given = {"store": store, "labels": labels, **arguments}
        settings = ReviewSettings(**given.pop("settings", {}))
        with pytest.raises(kind) as caught, open_review(settings=settings, **given):
            pass
        assert "\n" not in str(caught.value)
        for part in parts:
            assert part in str(caught.value)

    own, other = tmp_path / "own.parquet", tmp_path / "other.parquet"
    contained(4).write_parquet(own)
    refused(LabelsError, "own.parquet: no column 'start_time'", labels=own)
    refused(ConfigError, "rule.parquet was not written by a review", output=labels)
    refused(ConfigError, "output is", "x.csv", ".parquet", output=tmp_path / "x.csv")
    refused(LabelsError, "no such file", "--sample", labels=tmp_path / "absent.parquet")
    refused(LabelsError, "label is 'retracement'", settings={"classes": ("consolidation",)})
    refused(LabelsError, "no windows to review", settings={"start": "2090-01-01"})
    refused(errors.ConfigError, "from is 'soon'", settings={"start": "soon"})
    refused(OutputError, "there is no folder", output=tmp_path / "absent" / "x.parquet")
    at_bars(store, store.windows(105, 400).starts[:2].tolist()).with_columns(
        source=pl.Series([[1], [2]])
    ).write_parquet(other)
    refused(LabelsError, "source is of type List(Int64); give text", labels=other)
    with pytest.raises(ConfigError, match="order is 'sideways'; choose one of given, random"):
        ReviewSettings(order="sideways")
    with pytest.raises(ConfigError, match="order is 'uncertain', but by names no run"):
        ReviewSettings(order="uncertain")
    with pytest.raises(ConfigError, match="seed is -1; it must be a whole number from 0 to"):
        ReviewSettings(order="random", seed=-1)


def test_a_name_that_means_two_windows_is_refused(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    review.answer(ONE, review.next(ONE))
    bars = store.windows(105, 400).starts[6:12].tolist()
    at_bars(store, bars).write_parquet(labels)
    with pytest.raises(LabelsError, match="row 0: window_id is 'w0', which begins at another"):
        Review(store, labels)
    path = labels.with_name("named.parquet")
    first = time_text(int(store.time[store.windows(105, 105).starts[0]]))
    at_bars(store, bars[:1], window_id=[f"h-{first}"]).write_parquet(path)
    with pytest.raises(LabelsError, match="begins elsewhere; rename it"):
        Review(store, path, sample=10_000)


def test_what_somebody_else_wrote_is_not_overwritten(store: mf.Store, labels: Path) -> None:
    review = Review(store, labels)
    review.answer(ONE, review.next(ONE))
    path = review.session.path
    pl.read_parquet(path).head(2).write_parquet(path)
    theirs = path.read_bytes()
    window = review.next(ONE)
    with pytest.raises(OutputError, match="was changed by another program; stop this review"):
        review.answer(ONE, window)
    assert path.read_bytes() == theirs
    assert review.session.progress()["answered"] == 1


def test_an_answer_that_cannot_be_written_is_no_answer(
    store: mf.Store, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = Review(store, labels)
    review.answer(ONE, review.next(ONE))
    before = review.session.path.read_bytes()
    window = review.next(ONE)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records.pq, "write_table", full)
        with pytest.raises(OutputError, match="free some space"):
            review.answer(ONE, window)
    assert review.session.path.read_bytes() == before
    assert review.session.progress()["answered"] == 1
    assert review.next(ONE) == window
    assert "saved" in review.answer(ONE, window)
    assert rows_of(review.session.path)[window["id"]]["source"] == "hand"
    assert sorted(p.name for p in labels.parent.iterdir()) == [
        "rule.parquet", "rule.reviewed.parquet",
    ]  # fmt: skip


def test_one_review_of_a_file_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "hand.parquet"
    (tmp_path / "link.parquet").symlink_to(path)
    with held(path):
        for name in ("hand.parquet", "link.parquet"):
            with pytest.raises(OutputError, match="is under review by another process") as caught:
                held(tmp_path / name).__enter__()
            assert "\n" not in str(caught.value)
        with held(tmp_path / "another.parquet"):
            pass
    with held(path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["link.parquet"]
