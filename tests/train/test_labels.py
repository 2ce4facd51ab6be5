"""Labels: every form is read alike, and every defect is named with row, column and value."""

from __future__ import annotations

import gzip
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import moola_features as mf
from moola_train.errors import LabelsError
from moola_train.labels import read_labels, require_members, store_fingerprint, summarise
from tests.train.labelled import anchored, at_bars, contained, prices

SAMPLE = Path(__file__).parents[2] / "data" / "sample_labels.parquet"
TIMES = ["2020-01-06 10:00", "2020-01-07 10:00", "2020-01-08 10:00"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sample_bars: mf.Bars) -> mf.Store:
    """The sample, cut into segments at its daily breaks."""
    path = tmp_path_factory.mktemp("labels") / "sample.zarr"
    opened: mf.Store = mf.open_store(
        mf.build(sample_bars, path, mf.FeatureConfig(max_gap="30min")).path
    )
    assert len(opened.segments) > 5
    return opened


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(LabelsError) as caught:
        read_labels(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is read ----------------------------------------------------------------------------


def test_the_sample_stands_in_its_store(store: mf.Store) -> None:
    labels = read_labels(SAMPLE, store=store)
    frame = pl.read_parquet(SAMPLE)
    assert labels.anchored
    assert labels.window_id == labels.base_id == tuple(frame["window_id"])
    assert labels.start_bar is not None
    assert labels.start_time is not None
    np.testing.assert_array_equal(store.time[labels.start_bar], labels.start_time)
    np.testing.assert_array_equal(labels.start, frame["expansion_start"])
    np.testing.assert_array_equal(labels.end, frame["expansion_end"])
    assert [labels.classes[index] for index in labels.type] == frame["label"].to_list()
    assert labels.warmup_bars == store.config.first_valid_index == 20
    assert labels.store == store_fingerprint(store)


@pytest.mark.parametrize("form", ["csv", "arrow", "pandas", "polars", "ipc", "dict"])
def test_every_form_says_the_same(form: str, tmp_path: Path, store: mf.Store) -> None:
    frame = pl.read_parquet(SAMPLE)
    rows = frame.with_columns(
        label=pl.Series([None, *frame["label"][1:]]),
        expansion_start=pl.Series([None, *frame["expansion_start"][1:]]),
        expansion_end=pl.Series([None, *frame["expansion_end"][1:]]),
    )
    expected = tmp_path / "labels.parquet"
    rows.write_parquet(expected)
    source: Any = rows
    if form == "csv":
        source = tmp_path / "labels.csv"
        rows.write_csv(source)
    elif form == "ipc":
        source = str(tmp_path / "labels.arrow")
        rows.write_ipc(source)
    elif form == "arrow":
        source = rows.to_arrow()
    elif form == "pandas":
        source = rows.to_pandas()
        assert source["expansion_start"].dtype == float  # as pandas has whole numbers with gaps
    elif form == "dict":
        source = rows.with_columns(pl.col("start_time").cast(pl.Int64)).to_dict(as_series=False)
    actual = read_labels(source, store=store)
    assert actual.sha256() == read_labels(expected, store=store).sha256()
    assert (actual.type[0], actual.start[0], actual.end[0]) == (-1, -1, -1)


@pytest.mark.parametrize("form", ["parquet", "csv", "array", "pandas"])
def test_windows_may_hold_their_own_prices(form: str, tmp_path: Path) -> None:
    frame = contained(3, base_window_id=["a", None, "a"])
    source: Any = frame
    if form == "parquet":
        source = tmp_path / "labels.parquet"
        frame.write_parquet(source)
    elif form == "csv":
        source = tmp_path / "labels.csv"
        texts = pl.Series([json.dumps(window) for window in frame["features"].to_list()])
        frame.with_columns(features=texts).write_csv(source)
    elif form == "array":
        source = frame.with_columns(features=pl.Series(prices(3)))
        assert isinstance(source["features"].dtype, pl.Array)
    elif form == "pandas":
        source = frame.to_arrow().to_pandas()
        source["features"] = frame["features"].to_list()
    labels = read_labels(source)
    assert not labels.anchored
    assert labels.base_id == ("a", "w1", "a")
    np.testing.assert_array_equal(labels.ohlc, prices(3))
    assert labels.start_bar is None
    assert labels.start_time is None
    assert labels.store is None


def test_classes_are_a_setting() -> None:
    frame = anchored(TIMES, label=["rally", "consolidation", "rally"])
    labels = read_labels(frame, classes=("rally", "consolidation"))
    assert labels.type.tolist() == [0, 1, 0]


def test_none_is_a_label_and_null_is_not() -> None:
    """Windows in which nothing expands, one that nobody labelled, and one that has a span only."""
    frame = anchored(
        [*TIMES, "2020-01-09"],
        label=["none", None, "none", None],
        expansion_start=[None, None, None, 40], expansion_end=[None, None, None, 47],
    )  # fmt: skip
    labels = read_labels(frame, classes=("consolidation", "retracement", "none"))
    assert labels.type.tolist() == [2, -1, 2, -1]
    assert labels.start.tolist() == [-1, -1, -1, 40]
    assert labels.end.tolist() == [-1, -1, -1, 47]
    found = summarise(labels)
    assert (found.class_counts["none"], found.num_unlabelled, found.num_expansions) == (2, 2, 1)
    assert "row 0: label is 'none'; the classes are consolidation, retracement;" in refusal(frame)


def test_none_has_no_span() -> None:
    frame = anchored(TIMES, label=["none", "consolidation", "none"])
    spans = {"expansion_start": [None, 40, 41], "expansion_end": [None, 47, 48]}
    frame = frame.with_columns(**{name: pl.Series(values) for name, values in spans.items()})
    message = refusal(frame, classes=("consolidation", "none"))
    assert "row 2: expansion_start is 41; but label is 'none'; leave the span empty" in message
    repaired = frame.with_columns(label=pl.Series(["none", "consolidation", "consolidation"]))
    assert read_labels(repaired, classes=("consolidation", "none")).type.tolist() == [1, 0, 0]


def test_rows_can_be_taken() -> None:
    labels = read_labels(contained(4))
    taken = labels.take([2, 0])
    assert taken.window_id == taken.base_id == ("w2", "w0")
    assert taken.start.tolist() == [42, 40]
    assert labels.ohlc is not None
    np.testing.assert_array_equal(taken.ohlc, labels.ohlc[[2, 0]])


@pytest.mark.parametrize(
    "change",
    [
        {"window_id": ["w0", "w1", "w9"]}, {"label": ["retracement"] * 3},
        {"expansion_start": [41, 40, 40]}, {"expansion_end": [47, 47, 48]},
        {"base_window_id": ["w0", "w0", "w2"]}, {"start_time": [*TIMES[:2], "2020-01-08 10:01"]},
    ],
)  # fmt: skip
def test_the_digest_knows_every_column(change: dict[str, Any]) -> None:
    before = read_labels(anchored(TIMES))
    assert before.sha256() == read_labels(anchored(TIMES)).sha256()
    assert before.sha256() != read_labels(anchored(**{"times": TIMES, **change})).sha256()


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"window_id": ["a", "b", "a"]}, "row 2: window_id is 'a'"),
        ({"window_id": ["a", None, "c"]}, "row 1: window_id is None"),
        ({"window_id": ["a", "", ""]}, "row 1: window_id is ''"),
        ({"window_id": ["a", "b", " "]}, "row 2: window_id is ' '; give every window a name"),
        ({"window_id": [1.5, 2.5, 3.5]}, "row 0: window_id is 1.5"),
        ({"label": ["retracement", "rally", None]}, "row 1: label is 'rally'; the classes are "),
        ({"label": ["x", "rally", "y"]}, "row 0: label is 'x'"),
        ({"expansion_start": [40, 105, 40]}, "row 1: expansion_start is 105; give a position"),
        ({"expansion_start": [40, 40, -2]}, "row 2: expansion_start is -2"),
        ({"expansion_end": [47, 47, 200]}, "row 2: expansion_end is 200; give a position from 0"),
        ({"expansion_start": [40, 48, 40]}, "row 1: expansion_start is 48; but expansion_end is"),
        ({"expansion_start": [None, 40, 40]}, "row 0: expansion_start is None; but expansion_end"),
        ({"expansion_end": [47, None, 47]}, "row 1: expansion_end is None; but expansion_start"),
        ({"expansion_end": [47.0, 47.5, 47.0]}, "row 1: expansion_end is 47.5; give a whole"),
        ({"expansion_end": ["47", "soon", "47"]}, "row 1: expansion_end is 'soon'"),
        ({"expansion_end": [True, True, True]}, "row 0: expansion_end is True"),
        ({"start_time": ["2020-01-06", "never", "2020-01-06"]}, "row 1: start_time is 'never'"),
        ({"start_time": [TIMES[0], None, TIMES[2]]}, "row 1: start_time is None; give it"),
        ({"start_time": [True, True, False]}, "start_time"),
    ],
)  # fmt: skip
def test_a_defect_is_named(columns: dict[str, Any], words: str) -> None:
    message = refusal(anchored(TIMES).with_columns(**{n: pl.Series(v) for n, v in columns.items()}))
    assert words in message
    assert "<polars frame>" in message


def test_a_defect_of_many_rows_says_how_many() -> None:
    assert "(2 more such rows)" in refusal(anchored(TIMES, expansion_start=[200] * 3))
    assert "more such" not in refusal(anchored(TIMES, expansion_start=[200, 1, 1]))


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("window_id", [b"\xff\xfe", b"a", b"b"], "b'\\xff\\xfe'; its type is Binary, give text"),
        ("label", [b"\xff"] * 3, "b'\\xff'; its type is Binary, give text"),
        ("base_window_id", [b"\xff"] * 3, "b'\\xff'; its type is Binary, give text"),
        ("expansion_start", [b"40"] * 3, "b'40'; its type is Binary, give whole numbers"),
        ("window_id", [timedelta(1)] * 3, "datetime.timedelta(days=1); its type is Duration("),
        ("label", [["a", "b\nc"]] * 3, "['a', 'b\\nc']; its type is List(String), give text"),
        ("label", [list(range(999))] * 3, f"{str(list(range(99)))[:200]}...; its type is List("),
        ("window_id", [{"a": [1, 2]}] * 3, "{'a': [1, 2]}; its type is Struct({'a': List("),
        ("expansion_end", [[1, 2]] * 3, "[1, 2]; its type is List(Int64), give whole numbers"),
    ],
)  # fmt: skip
def test_a_column_of_another_type_is_shown_in_one_line(
    column: str, values: list[Any], found: str
) -> None:
    message = refusal(anchored(TIMES).with_columns(pl.Series(column, values)))
    assert f"row 0: {column} is {found}" in message
    assert "(2 more such rows)" in message
    assert len(message) < 400


def test_categories_are_no_numbers() -> None:
    starts = pl.Series("expansion_start", ["40"] * 3, dtype=pl.Categorical)
    assert "row 0: expansion_start is '40'; its type is Categorical" in refusal(
        anchored(TIMES).with_columns(starts)
    )


def test_bytes_that_are_text_are_read() -> None:
    named = anchored(TIMES).with_columns(window_id=pl.Series([b"x", b"y", b"z"]))
    assert read_labels(named).window_id == ("x", "y", "z")


@pytest.mark.parametrize("form", ["csv", "bom", "semicolons", "gzip", "parquet", "arrow", "pandas"])
def test_a_column_that_stands_twice_is_refused(form: str, tmp_path: Path) -> None:
    text = "label,window_id,label,expansion_start,expansion_end,start_time,x,x\n" + (
        "retracement,a,consolidation,40,47,2020-01-06 10:00,1,2\n"
    )
    path = tmp_path / "labels.csv"
    source: Any = path
    names, *rows = [line.split(",") for line in text.splitlines()]
    table = pa.table([list(column) for column in zip(*rows, strict=True)], names=names)
    if form == "gzip":
        path.write_bytes(gzip.compress(text.encode()))
    elif form == "parquet":
        pq.write_table(table, path)
    elif form == "arrow":
        source = table
    elif form == "pandas":
        source = table.to_pandas()
    else:
        text = text.replace(",", ";") if form == "semicolons" else text
        path.write_text(text, encoding="utf-8-sig" if form == "bom" else "utf-8")
    assert "column 'label' stands there 2 times; keep one of them" in refusal(source)


def test_other_columns_may_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    head, row = "window_id,label,expansion_start,expansion_end,start_time,,", "a,,,,2020-01-06,,"
    path.write_text(f"{head}\n{row}\n")
    assert read_labels(path).window_id == ("a",)


def test_a_blank_base_is_none(tmp_path: Path) -> None:
    labels = read_labels(anchored(TIMES, base_window_id=[" ", "\t", "a "]))
    assert labels.base_id == ("w0", "w1", "a ")
    assert summarise(labels).num_bases == 3


def broken(position: tuple[int, ...], value: Any) -> pl.DataFrame:
    windows = prices(3).tolist()
    if len(position) == 2:
        windows[position[0]][position[1]] = value
    elif len(position) == 1:
        windows[position[0]] = value
    else:
        windows[position[0]][position[1]][position[2]] = value
    return contained(3, features=windows)


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        ((1,), [[1.0, 1.0, 1.0, 1.0]] * 104, "row 1: features is 'a list of 104'; give 105 bars"),
        ((2, 7), [1.0, 2.0, 3.0], "row 2: features is 'a list of 3 at bar 7'; give open, high"),
        ((2, 7), None, "row 2: features is 'a list of 0 at bar 7'"),
        (
            (0, 104, 3),
            float("nan"),
            "row 0: features is '[",
        ),
        ((0, 104, 0), None, "nan"),
        ((1, 3, 1), -1e9, "at bar 3'; the high is below the open or the close"),
        ((1, 3, 2), 1e9, "at bar 3'; the low is above the open or the close"),
        ((1, 3, 1), float("inf"), "at bar 3'; prices must be finite"),
    ],
)
def test_prices_are_checked(position: tuple[int, ...], value: Any, words: str) -> None:
    message = refusal(broken(position, value))
    assert words in message
    assert len(message) < 300


def test_prices_as_text_are_checked() -> None:
    texts = [json.dumps(window) for window in prices(2).tolist()]
    assert "row 1: features is '[[1, 2'" in refusal(contained(2, features=[texts[0], "[[1, 2"]))
    message = refusal(contained(2, features=[texts[0], "null"]))
    assert "row 1: features is 'empty'; give 105 bars" in message
    short = json.dumps(prices(1)[0, :104].tolist())
    message = refusal(contained(3, features=[texts[0], short, "null"]))
    assert "row 1: features is 'a list of 104'; give 105 bars" in message
    assert "List(List(String))" in refusal(contained(2, features=[[["a"]], [["b"]]]))


def test_the_two_kinds_do_not_mix(store: mf.Store) -> None:
    both = contained(3, start_time=TIMES)
    assert "row 0: start_time is '2020-01-06 10:00'; but features are given too" in refusal(both)
    windows = prices(3).tolist()
    mixed = contained(3, start_time=[None, TIMES[1], None], features=[windows[0], None, windows[2]])
    assert "row 1: start_time is 'given'; but row 0 gives its prices" in refusal(mixed)
    mixed = contained(3, start_time=[TIMES[0], TIMES[1], None], features=[None, None, windows[2]])
    assert "row 2: features is 'given'; but row 0 gives its time" in refusal(mixed)
    assert "hold their own prices" in refusal(contained(3), store=store)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "labels.parquet")
    (tmp_path / "empty.csv").write_text("")
    message = refusal(tmp_path / "empty.csv")
    assert "is empty" in message
    assert "bars" not in message
    (tmp_path / "cut.parquet").write_bytes(SAMPLE.read_bytes()[:900])
    assert "damaged or cut off" in refusal(tmp_path / "cut.parquet")
    assert "no column 'window_id'; the columns are a" in refusal(pl.DataFrame({"a": [1]}))
    assert "neither column 'start_time' nor 'features'" in refusal(contained(2).drop("features"))
    assert "no rows" in refusal(anchored(TIMES).clear())
    anchored(TIMES).clear().write_csv(tmp_path / "labels.csv")
    assert "no rows; label at least one window" in refusal(tmp_path / "labels.csv")
    assert "is a folder; give one file of labels" in refusal(tmp_path)


def test_windows_stand_inside_their_store(store: mf.Store) -> None:
    first = int(np.argmax(store.valid))
    boundary = int(store.segments[2, 0])
    good = [first, boundary - 105, len(store) - 105]
    labels = read_labels(at_bars(store, good), store=store)
    assert labels.start_bar is not None
    assert labels.start_bar.tolist() == good
    for bar, words in (
        (first - 1, "no valid features there yet"),
        (boundary - 104, "cross a gap"),
        (len(store) - 104, "reach past the end"),
    ):
        message = refusal(at_bars(store, [good[0], bar]), store=store)
        assert "row 1: start_time is '2020-01-" in message
        assert words in message


@pytest.mark.parametrize("time", ["2019-12-31", "2020-01-06 10:00:30", "2030-01-01"])
def test_a_time_without_a_bar_is_refused(store: mf.Store, time: str) -> None:
    message = refusal(anchored([time]), store=store)
    assert re.search(r"row 0: start_time is '\S+Z'; no bar of .*sample.zarr begins then", message)
    assert "2020-01-05T23:00:00Z to" in message


# --- what is counted -------------------------------------------------------------------------


def test_a_class_needs_two_members() -> None:
    labels = read_labels(anchored(TIMES))  # two consolidations, one retracement
    with pytest.raises(LabelsError, match="class 'retracement' has 1 of 3 windows"):
        require_members(labels)
    twice = read_labels(anchored([*TIMES, "2020-01-09"]))
    require_members(twice)
    with pytest.raises(LabelsError, match="class 'consolidation' has 1 of 3 windows"):
        require_members(twice, [0, 1, 3])
    with pytest.raises(LabelsError, match="class 'none' has 0 of 4"):
        require_members(
            read_labels(anchored([*TIMES, "2020-01-09"]), classes=(*twice.classes, "none"))
        )


def test_the_summary_counts(store: mf.Store) -> None:
    frame = at_bars(
        store, [100, 100, 204, 400],
        label=["retracement", None, "retracement", "consolidation"],
        expansion_start=[10, None, 20, 40], expansion_end=[13, None, 30, 40],
        base_window_id=["a", "a", None, None],
    )  # fmt: skip
    summary = summarise(read_labels(frame, store=store))
    assert summary.to_dict() == {
        "num_windows": 4, "num_bases": 3, "num_unlabelled": 1, "num_expansions": 3,
        "anchored": True, "class_counts": {"consolidation": 1, "retracement": 2},
        "span_length": (1, 4.0, 11), "span_start": (10, 20.0, 40), "bars_in_span": 16 / 420,
        "num_duplicates": 1, "num_overlapping": 3,
        "first_time": "2020-01-06T00:40:00Z", "last_time": "2020-01-06T05:40:00Z",
    }  # fmt: skip
    assert json.loads(json.dumps(summary.to_dict()))["span_start"] == [10, 20.0, 40]


def test_the_summary_of_windows_without_times() -> None:
    windows = prices(3)
    windows[2] = windows[0]
    summary = summarise(read_labels(contained(3, features=windows.tolist())))
    assert (summary.num_duplicates, summary.num_overlapping, summary.first_time) == (1, None, None)
    empty = contained(2).with_columns(
        expansion_start=pl.lit(None), expansion_end=pl.lit(None), label=pl.lit(None)
    )
    assert summarise(read_labels(empty)).span_length is None


def test_the_fingerprint_is_of_the_bars_not_of_the_features(
    store: mf.Store, tmp_path: Path, sample_bars: mf.Bars
) -> None:
    wide = mf.open_store(
        mf.build(sample_bars, tmp_path / "w.zarr", mf.FeatureConfig.profile("wide")).path
    )
    other = mf.open_store(mf.build(sample_bars[:19_000], tmp_path / "o.zarr").path)
    assert store_fingerprint(wide)["sha256"] == store_fingerprint(store)["sha256"]
    assert store_fingerprint(other)["sha256"] != store_fingerprint(store)["sha256"]
    assert store_fingerprint(wide)["name"] == "w.zarr"
