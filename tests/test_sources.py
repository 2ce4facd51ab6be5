"""Sources: every format, time and number gives the same bars; streaming changes nothing; errors."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moola_features as mf
from moola_features.bar_checks import FIELDS, PRICES
from moola_features.bar_columns import find_columns
from moola_features.bar_times import TimeReader
from moola_features.bars import drop_bad_bars
from moola_features.errors import BarsError, BarsNotFoundError, MoolaError
from moola_features.sources import open_source

MINUTE_NS = 60 * 10**9
START_NS = 1_577_836_800 * 10**9  # 2020-01-01
NUM_BARS = 60


def make_bars(num_bars: int = NUM_BARS, seed: int = 0, step_ns: int = MINUTE_NS) -> mf.Bars:
    """Bars of whole prices, which every type of number holds exactly."""
    rng = np.random.default_rng(seed)
    close = 500 + rng.integers(-9, 10, num_bars).cumsum()
    open_ = close - rng.integers(-9, 10, num_bars)
    return mf.Bars(
        time=START_NS + np.arange(num_bars) * step_ns,
        open=open_,
        high=np.maximum(open_, close) + rng.integers(0, 3, num_bars),
        low=np.minimum(open_, close) - rng.integers(0, 3, num_bars),
        close=close,
    )


BARS = make_bars()


def as_frame(bars: mf.Bars = BARS) -> pl.DataFrame:
    """Bars with times in UTC, between columns that are none of our business."""
    columns = {name: getattr(bars, name) for name in PRICES}
    times = pl.Series(bars.time).cast(pl.Datetime("ns", "UTC"))
    other = pl.Series("volume", ["n/a"] * len(bars))
    return pl.DataFrame({"id": other, "time": times, **columns, "volume": other})


def assert_same(actual: mf.Bars, expected: mf.Bars) -> None:
    for left, right in zip(actual.arrays, expected.arrays, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def joined(source: Any, batch_bars: int, **settings: Any) -> mf.Bars:
    """The bars of a source with one symbol, put together from its batches."""
    pieces = [bars for _, bars in open_source(source, batch_bars=batch_bars, **settings).batches()]
    assert all(0 < len(piece) <= batch_bars for piece in pieces)
    columns = zip(*(piece.arrays for piece in pieces), strict=True)
    return mf.Bars(*(np.concatenate(column) for column in columns))


# --- ways to hand over a frame ----------------------------------------------------------------


def csv_text(frame: pl.DataFrame, separator: str = ",") -> bytes:
    return frame.write_csv(separator=separator).encode()


def written(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


def parquet_file(frame: pl.DataFrame, folder: Path) -> Path:
    pyarrow.parquet.write_table(frame.to_arrow(), folder / "b.parquet", row_group_size=13)
    return folder / "b.parquet"


def arrow_stream(frame: pl.DataFrame, folder: Path) -> Path:
    table = frame.to_arrow()
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=17)
    return folder / "stream.arrow"


def feather_file(frame: pl.DataFrame, folder: Path) -> Path:
    pyarrow.feather.write_feather(frame.to_arrow(), folder / "b.feather", chunksize=17)
    return folder / "b.feather"


def polars_parquet(frame: pl.DataFrame, folder: Path) -> Path:
    frame.write_parquet(folder / "polars.parquet")
    return folder / "polars.parquet"


def polars_ipc(frame: pl.DataFrame, folder: Path) -> Path:
    frame.write_ipc(folder / "polars.ipc", compression="zstd")
    return folder / "polars.ipc"


def lazy_frame(frame: pl.DataFrame, folder: Path) -> pl.LazyFrame:
    return pl.scan_parquet(parquet_file(frame, folder))


def pandas_index(frame: pl.DataFrame, folder: Path) -> Any:
    """A pandas frame whose index, unnamed where it holds timestamps, is the time."""
    pandas = frame.to_pandas().set_index("time")
    if isinstance(frame.schema["time"], pl.Datetime):
        pandas.index.name = None
    return pandas


Form = Callable[[pl.DataFrame, Path], Any]
FILES: dict[str, Form] = {
    "parquet": parquet_file,
    "polars parquet": polars_parquet,
    "csv": lambda frame, folder: written(csv_text(frame), folder / "b.csv"),
    "csv ;": lambda frame, folder: written(csv_text(frame, ";"), folder / "b.txt"),
    "csv tabs": lambda frame, folder: written(csv_text(frame, "\t"), folder / "b.tsv"),
    "csv bom crlf": lambda frame, folder: written(
        b"\xef\xbb\xbf" + csv_text(frame).replace(b"\n", b"\r\n"), folder / "dos.csv"
    ),
    "csv gz": lambda frame, folder: written(gzip.compress(csv_text(frame)), folder / "b.csv.gz"),
    "gz without suffix": lambda frame, folder: written(
        gzip.compress(csv_text(frame)), folder / "bars"
    ),
    "csv bz2": lambda frame, folder: written(bz2.compress(csv_text(frame)), folder / "b.csv.bz2"),
    "feather": feather_file,
    "polars ipc": polars_ipc,
    "arrow stream": arrow_stream,
}
FRAMES: dict[str, Form] = {
    "polars": lambda frame, folder: frame,
    "lazy": lazy_frame,
    "arrow": lambda frame, folder: frame.to_arrow(),
    "pandas": lambda frame, folder: frame.to_pandas(),
    "pandas index": pandas_index,
    "series": lambda frame, folder: frame.to_dict(as_series=True),
    "lists": lambda frame, folder: frame.to_dict(as_series=False),
}
FORMATS = FILES | FRAMES

TIME = pl.col("time")
TIMES: dict[str, list[pl.Expr]] = {
    "utc ns": [TIME],
    "utc ms": [TIME.cast(pl.Datetime("ms", "UTC"))],
    "new york": [TIME.dt.convert_time_zone("America/New_York")],
    "naive us": [TIME.cast(pl.Datetime("us"))],
    "epoch s": [TIME.dt.epoch("s")],
    "epoch ms": [TIME.dt.epoch("ms")],
    "epoch us": [TIME.dt.epoch("us")],
    "epoch ns": [TIME.dt.epoch("ns")],
    "epoch s float": [TIME.dt.epoch("s").cast(pl.Float64)],
    "epoch s small": [TIME.dt.epoch("s").cast(pl.UInt32)],
    "epoch text": [TIME.dt.epoch("ms").cast(pl.String)],
    "iso T": [TIME.dt.strftime("%Y-%m-%dT%H:%M:%S")],
    "iso space": [TIME.dt.strftime("%Y-%m-%d %H:%M")],
    "iso Z": [TIME.dt.strftime("%Y-%m-%dT%H:%M:%S.%3fZ")],
    "iso UTC": [TIME.dt.strftime("%Y-%m-%d %H:%M:%S UTC")],
    "iso offset": [
        TIME.dt.convert_time_zone("Asia/Kolkata").dt.strftime("%Y-%m-%dT%H:%M:%S%:z"),
    ],
    "dots": [TIME.dt.strftime("%Y.%m.%d %H:%M")],
    "date and time": [
        TIME.dt.strftime("%Y-%m-%d").alias("Date"),
        TIME.dt.strftime("%H:%M:%S").alias("Time"),
    ],
    "compact date and time": [
        TIME.dt.strftime("%Y%m%d").alias("<DATE>"),
        TIME.dt.strftime("%H%M%S").alias("<TIME>"),
    ],
    "typed date and time": [TIME.dt.date().alias("date"), TIME.dt.time().alias("time")],
}
NUMBERS: dict[str, pl.DataType] = {
    "int64": pl.Int64(),
    "uint16": pl.UInt16(),
    "float32": pl.Float32(),
    "decimal": pl.Decimal(38, 9),
}


@pytest.mark.parametrize("form", TIMES)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_time_in_every_format(kind: str, form: str, tmp_path: Path) -> None:
    if kind == "pandas index" and len(TIMES[form]) == 2:
        pytest.skip("an index is one column")
    frame = as_frame().select(*TIMES[form], pl.exclude("time"))
    assert_same(mf.read_bars(FORMATS[kind](frame, tmp_path)), BARS)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_number_in_every_format(kind: str, number: str, tmp_path: Path) -> None:
    frame = as_frame().with_columns(pl.col(PRICES).cast(NUMBERS[number]))
    assert_same(mf.read_bars(FORMATS[kind](frame, tmp_path)), BARS)


def test_bars_are_a_source() -> None:
    assert_same(mf.read_bars(BARS), BARS)
    assert np.shares_memory(mf.read_bars(BARS).open, BARS.open)


def test_numpy_arrays_are_a_source() -> None:
    columns: dict[str, Any] = dict(zip(FIELDS, BARS.arrays, strict=True))
    assert_same(mf.read_bars(columns), BARS)
    for unit in ("m", "s", "ns"):
        columns["time"] = BARS.time.view("datetime64[ns]").astype(f"datetime64[{unit}]")
        assert_same(mf.read_bars(columns), BARS)


@pytest.mark.parametrize("form", ["date", "iso", "compact", "number"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "polars", "pandas"])
def test_days_are_times(kind: str, form: str, tmp_path: Path) -> None:
    daily = make_bars(step_ns=86_400 * 10**9)
    text = TIME.dt.strftime("%Y%m%d")
    forms = {
        "date": TIME.dt.date(),
        "iso": TIME.dt.strftime("%Y-%m-%d"),
        "compact": text,
        "number": text.cast(pl.Int32),
    }
    frame = as_frame(daily).with_columns(forms[form].alias("time"))
    assert_same(mf.read_bars(FORMATS[kind](frame, tmp_path)), daily)


@pytest.mark.parametrize("kind", ["parquet", "csv", "lists"])
def test_decimal_prices_are_rounded_correctly(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    text = [f"{whole}.{part:05d}" for whole, part in rng.integers(1, 10**5, (500, 2)).tolist()]
    price = pl.Series(text).cast(pl.Decimal(20, 5))
    frame = pl.DataFrame({"time": range(500), **dict.fromkeys(PRICES, price)})
    bars = mf.read_bars(FORMATS[kind](frame, tmp_path))
    assert bars.open.tolist() == [float(cell) for cell in text]


# --- times in detail --------------------------------------------------------------------------


def read_times(*columns: Any) -> list[int]:
    """Seconds since 2020 of what can be read, else -1."""
    times = TimeReader()([pl.Series(column) for column in columns])
    missing = np.iinfo(np.int64).min
    return [-1 if time == missing else (time - START_NS) / 10**9 for time in times.tolist()]


LOOSE_TIMES = {
    "2020-01-01": 0,
    "2020-01-01T00": 0,
    "2020-01-01 00:01": 60,
    "2020-01-01 0:01": 60,
    "2020/01/01 00:01:00": 60,
    "20200101 0001": 60,
    "20200101T000100Z": 60,
    " 2020-01-01 00:01:00 ": 60,
    "2020-01-01 00:00:00.5": 0.5,
    "2020-01-01 00:00:00,500000000999": 0.5,
    "2020-01-01T00:01:00Z": 60,
    "2020-01-01T01:01:00+01:00": 60,
    "2020-01-01T01:31:00+0130": 60,
    "2019-12-31T19:01:00-05": 60,
    "2020-01-01 00:01:00 UTC": 60,
    "2020-01-01 01:01:00 +01:00": 60,
    "2020-02-30": -1,
    "2020-01-01 24:00": -1,
    "2020-01-01 00:60": -1,
    "2020-01-01 09:30 PM": -1,
    "01/02/2020": -1,
    "2500-01-01": -1,
    "1500-01-01": -1,
    "soon": -1,
    "": -1,
}


def test_loose_times_are_read_or_refused_cell_by_cell() -> None:
    assert read_times(list(LOOSE_TIMES)) == list(LOOSE_TIMES.values())
    for text, seconds in LOOSE_TIMES.items():
        assert read_times([text]) == [seconds], text


@given(st.lists(st.datetimes(datetime(1700, 1, 1), datetime(2260, 1, 1)), min_size=1, max_size=5))
def test_well_formed_text_is_read_as_loose_text_is(times: list[datetime]) -> None:
    texts = [time.isoformat() for time in times]
    fast = TimeReader()([pl.Series(texts)]).tolist()
    loose = TimeReader()([pl.Series([*texts, "no time"])]).tolist()
    assert fast == loose[:-1]
    micros = pl.Series(times, dtype=pl.Datetime("us")).to_physical().to_list()
    assert fast == [micro * 1_000 for micro in micros]


@pytest.mark.parametrize(
    ("first", "unit_ns"),
    [
        (99_999_999_999 // 20, 10**9),
        (100_000_000_000, 10**6),
        (99_999_999_999_999 // 20, 10**6),
        (100_000_000_000_000, 10**3),
        (99_999_999_999_999_999 // 20, 10**3),
        (100_000_000_000_000_000, 1),
        (0, 10**9),
        (-60, 10**9),
    ],
)
@pytest.mark.parametrize("kind", [pl.Int64, pl.String, pl.Float64])
def test_epoch_units_are_told_by_magnitude(first: int, unit_ns: int, kind: Any) -> None:
    times = TimeReader()([pl.Series([first, first + 1], dtype=pl.Int64).cast(kind)]).tolist()
    step = 16 if kind == pl.Float64 and first > 2**53 else 0  # what float64 can tell apart
    assert times == pytest.approx([first * unit_ns, (first + 1) * unit_ns], rel=0, abs=step)


def test_one_unit_holds_for_the_whole_file() -> None:
    read = TimeReader()
    assert read([pl.Series([None, 1_577_836_800_000])]).tolist()[1] == START_NS
    assert read([pl.Series([60_000])]).tolist() == [60 * 10**9]
    seconds = TimeReader()
    assert seconds([pl.Series([0])]).tolist() == [0]
    missing = [np.iinfo(np.int64).min]
    assert seconds([pl.Series([MINUTE_NS])]).tolist() == missing, "a minute in ns is no second"


def test_fractions_of_seconds_are_read_to_the_microsecond() -> None:
    assert read_times([1577836800.1, 1577836800.000001]) == [0.1, 0.000001]
    assert read_times(["1577836800.25", "1577836801"]) == [0.25, 1]
    assert read_times([1577836800000.5, None, float("nan")]) == [0.0005, -1, -1]


def test_nanoseconds_in_text_are_exact() -> None:
    text = ["1577836800000000001", "x", "1577836800000000002"]
    assert TimeReader()([pl.Series(text)]).tolist()[::2] == [START_NS + 1, START_NS + 2]


def test_a_date_and_a_clock_are_joined() -> None:
    clocks = [time(0, 1), time(0, 2, 3, 500_000), None]
    assert read_times([date(2020, 1, 1)] * 3, clocks) == [60, 123.5, -1]
    assert read_times(["2020-01-01"], ["0:01"]) == [60]


@pytest.mark.parametrize("column", [[True], [time(1)], [b"2020"], [[1]]])
def test_types_without_times_are_refused(column: Any) -> None:
    with pytest.raises(BarsError, match=r"time is column 't' of type .*; give timestamps"):
        TimeReader()([pl.Series("t", column)])


# --- finding columns --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["timestamp", "open", "high", "low", "close", "volume"],
        ["Datetime", "Open", "High", "Low", "Close", "Adj Close", "Volume"],
        ["ts_event", "rtype", "publisher_id", "o", "h", "l", "c"],
        ["open_time", "open", "high", "low", "close", "close_time"],
        ["Open Time", "OPEN", "HIGH", "LOW", "CLOSE"],
        ["<DATE>", "<TIME>", "<OPEN>", "<HIGH>", "<LOW>", "<CLOSE>", "<TICKVOL>"],
        ["date", "open_price", "high_price", "low_price", "close_price"],
        ["t", "v", "o", "c", "h", "l"],
        ["px_close", "px_low", "px_high", "px_open", "time"],
    ],
)
def test_usual_names_are_recognised(names: list[str]) -> None:
    columns = find_columns(names)
    assert set(columns.time) <= set(names)
    found = [getattr(columns, name) for name in PRICES]
    assert [name.strip("<>").lower().removeprefix("px_")[0] for name in found] == list("ohlc")


def test_a_map_comes_before_names() -> None:
    frame = as_frame().rename({"open": "first"}).with_columns(open=pl.lit(7.0))
    assert_same(mf.read_bars(frame, column_map={"open": "first"}), BARS)


def test_a_map_decides_between_two() -> None:
    frame = as_frame().with_columns(ts_event=pl.lit("junk"), px_open=pl.lit("junk"))
    with pytest.raises(BarsError, match=r"'time' and 'ts_event' could each be time; .*--map time="):
        mf.read_bars(frame)
    with pytest.raises(BarsError, match=r"'open' and 'px_open' could each be open; .*--map open="):
        mf.read_bars(frame, column_map={"time": "time"})
    assert_same(mf.read_bars(frame, column_map={"time": "time", "open": "open"}), BARS)


@pytest.mark.parametrize(
    ("names", "column_map", "text"),
    [
        (
            ["time", "open", "high", "lo", "close"],
            {},
            "no column for low; the columns are time, open, high, lo, close; name it with "
            "column_map={'low': 'COLUMN'} (--map low=COLUMN)",
        ),
        (["a", "b"], {}, "no column for time, open, high, low, close; the columns are a, b"),
        ([], {}, "the columns are none"),
        ([f"c{i}" for i in range(30)], {}, "c19 and 10 more"),
        (["1577836800", "1", "2", "0.5", "1e3"], {}, "is no header; add one: time,open,high,"),
        (["time", "open"], {"opn": "open"}, "column_map has 'opn'; its fields are time, open"),
        (["time", "open"], {"high": "hi"}, "no column 'hi' for high; the columns are time, open"),
        (["time", "open", "Open", "high", "low", "close"], {}, "'open' and 'Open' could each"),
        (["time", "open", "open", "high", "low", "close"], {}, "'open' and 'open' have one name"),
        (["date", "time", "ts", *PRICES], {}, "'date' and 'time' and 'ts' could each be time"),
        (["time", *PRICES, "symbol", "ticker"], {}, "'symbol' and 'ticker' could each be symbol"),
    ],
)
def test_columns_that_cannot_be_told(
    names: list[str], column_map: dict[str, str], text: str
) -> None:
    with pytest.raises(BarsError) as caught:
        find_columns(names, column_map, "nq.csv")
    assert str(caught.value).startswith("nq.csv: ")
    assert text in str(caught.value)


def test_columns_that_are_not_needed_are_not_read() -> None:
    columns: dict[str, Any] = {**dict(zip(FIELDS, BARS.arrays, strict=True)), "note": object()}
    assert_same(mf.read_bars(columns), BARS)


# --- streaming --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_bars", [1, 7, 1_000])
@pytest.mark.parametrize("kind", FORMATS)
def test_streaming_gives_the_same_bars(kind: str, batch_bars: int, tmp_path: Path) -> None:
    assert_same(joined(FORMATS[kind](as_frame(), tmp_path), batch_bars), BARS)


SPOILT_ROWS = {
    "open": (41, None, r"open is (None|''), not a finite number"),
    "high": (17, 1.0, r"high is (1.0|'1.0'), below (open|close) \d+.0"),
    "low": (59, float("nan"), r"low is (nan|None|'NaN'), not a finite number"),
}


@pytest.mark.parametrize("batch_bars", [1, 7, 1_000])
@pytest.mark.parametrize("column", SPOILT_ROWS)
@pytest.mark.parametrize("kind", FORMATS)
def test_bad_rows_are_named_by_their_row(
    kind: str, column: str, batch_bars: int, tmp_path: Path
) -> None:
    row, value, text = SPOILT_ROWS[column]
    is_row = pl.int_range(pl.len()) == row
    frame = as_frame().with_columns(
        pl.when(is_row).then(pl.lit(value, pl.Float64)).otherwise(pl.col(column)).alias(column)
    )
    source = FORMATS[kind](frame, tmp_path)
    minute = f"2020-01-01T00:{row}:00Z"
    with pytest.raises(BarsError, match=rf": row {row} \({minute}\): {text}"):
        joined(source, batch_bars)
    kept = np.delete(np.arange(NUM_BARS), row)
    opened = open_source(source, batch_bars=batch_bars, on_bad_bars="drop")
    times = np.concatenate([bars.time for _, bars in opened.batches()])
    np.testing.assert_array_equal(times, BARS.time[kept])
    assert opened.dropped[None].total == 1
    assert opened.dropped[None].examples[0].row == row
    json.dumps(opened.dropped[None].to_dict())


@pytest.mark.parametrize("batch_bars", [1, 7, 1_000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{},abc,2,1,1", r"row 5 \(2020-01-01T00:05:00Z\): open is 'abc', not a finite number"),
        ("{},1,2,1,", r"row 5 .*: close is '', not a finite number"),
        ('{},1,2,"1,5",1', r"row 5 .*: low is '1,5', not a finite number"),
        ("soon,1,2,1,1", r"row 5 \(no time\): time is 'soon', not a time from 1678 to 2261"),
        (",1,2,1,1", r"row 5 \(no time\): time is '', not a time"),
        ("2020-01-01T00:00Z,1,2,1,1", r"row 5 .* before 2020-01-01T00:04:00Z of an earlier bar"),
        ("2020-01-01 00:04,1,2,1,1", r"row 5 .* the same as that of the bar before it"),
        ("{},1,nan,1,1", r"row 5 .*: high is 'nan', not a finite number"),
        ("{},1,1e200,1,1", r"row 5 .*: high is '1e200', beyond 1e\+150"),
    ],
)
def test_bad_cells_of_csv_are_quoted(
    text: str, message: str, batch_bars: int, tmp_path: Path
) -> None:
    times = [f"2020-01-01T00:{minute:02d}Z" for minute in range(30)]
    rows = [f"{time},1,2,1,1" for time in times]
    rows[5] = text.format(times[5])
    path = tmp_path / "b.csv"
    path.write_text("\n".join(["time,open,high,low,close", *rows, ""]))
    with pytest.raises(BarsError, match=message) as caught:
        joined(path, batch_bars)
    assert str(caught.value).startswith(f"{path}: row 5")
    assert len(joined(path, batch_bars, on_bad_bars="drop")) == 29


def test_cells_may_have_spaces_around_them(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text(" time , open , high , low , close \n 2020-01-01 , 1 , +2 , 1e0 , 1.5 \n\n")
    bars = mf.read_bars(path)
    assert [array.tolist() for array in bars.arrays] == [[START_NS], [1], [2], [1], [1.5]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), batch_bars=st.integers(1, 80))
def test_messy_bars_are_dropped_alike_in_any_batches(
    seed: int, batch_bars: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    frame = as_frame()
    for column in PRICES:
        frame = frame.with_columns(
            pl.when(pl.Series(rng.random(NUM_BARS) < 0.05))
            .then(pl.lit(float(rng.choice([np.nan, np.inf, 1.0, 900.0]))))
            .otherwise(pl.col(column))
            .alias(column)
        )
    order = np.where(rng.random(NUM_BARS) < 0.1, rng.integers(0, NUM_BARS, NUM_BARS), -1)
    frame = frame[np.where(order < 0, np.arange(NUM_BARS), order).tolist()]
    prices = {name: frame[name].to_numpy() for name in PRICES}
    time = frame["time"].to_physical().to_numpy()
    expected, lost = drop_bad_bars(time, **prices)
    for form in (parquet_file, FILES["csv"]):
        opened = open_source(form(frame, tmp_path), batch_bars=batch_bars, on_bad_bars="drop")
        times = np.concatenate([bars.time for _, bars in opened.batches()])
        np.testing.assert_array_equal(times, expected.time)
        assert opened.dropped[None].counts == lost.counts
        assert [x.row for x in opened.dropped[None].examples] == [x.row for x in lost.examples]


def test_a_source_can_be_read_again(tmp_path: Path) -> None:
    opened = open_source(FILES["csv"](as_frame(), tmp_path), batch_bars=7)
    first = [bars.time.tolist() for _, bars in opened.batches()]
    assert [bars.time.tolist() for _, bars in opened.batches()] == first


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_source_tells_of_itself(kind: str, tmp_path: Path) -> None:
    source = FORMATS[kind](as_frame(), tmp_path)
    opened = open_source(source, batch_bars=20)
    unknown = "csv" in kind or "gz" in kind or kind in ("lazy", "arrow stream")
    assert opened.num_rows == (None if unknown else NUM_BARS)
    assert opened.symbols == ()
    assert opened.description == (str(source) if kind in FILES else opened.description)
    assert opened.description.startswith("<") == (kind in FRAMES)
    for _ in opened.batches():
        pass
    assert opened.rows_read == NUM_BARS
    assert opened.progress() == (None if kind in ("lazy", "arrow stream") else 1.0)
    assert opened.dropped[None].total == 0


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    frame = as_frame(make_bars(20_000))
    for kind in ("csv", "csv gz", "parquet"):
        opened = open_source(FILES[kind](frame, tmp_path), batch_bars=1_000)
        assert opened.progress() == 0.0
        shares = [opened.progress() or 0.0 for _ in opened.batches()]
        assert shares == sorted(shares)
        assert 0 < shares[0] <= shares[-1] <= opened.progress() == 1.0  # type: ignore[operator]


@pytest.mark.parametrize("batch_bars", [0, -1, 2.5, True, "7"])
def test_a_batch_holds_a_bar_at_least(batch_bars: Any) -> None:
    with pytest.raises(BarsError, match=r"batch_bars is .*; give a whole number from 1"):
        open_source(BARS, batch_bars=batch_bars)


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = FILES["csv gz"](as_frame(), tmp_path)
    assert open_source(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_of_a_frame_is_that_of_its_values() -> None:
    arrays = [array.tobytes() for array in BARS.arrays] + [b""]
    digests = b"".join(hashlib.sha256(data).digest() for data in arrays)
    expected = hashlib.sha256(digests).hexdigest()
    for form in ("polars", "lists", "pandas"):
        source = FRAMES[form](as_frame(), Path())
        assert open_source(source, batch_bars=7).sha256() == expected
    assert open_source(BARS).sha256() == expected
    assert open_source(make_bars(seed=1)).sha256() != expected
    symbols = as_frame().with_columns(symbol=pl.lit("NQ"))
    assert open_source(symbols).sha256() != expected


# --- several symbols --------------------------------------------------------------------------

SYMBOLS = {"NQ": make_bars(seed=1), "ES": make_bars(40, seed=2), "6E": make_bars(25, seed=3)}


def several(*, interleaved: bool) -> pl.DataFrame:
    frames = [as_frame(bars).with_columns(symbol=pl.lit(name)) for name, bars in SYMBOLS.items()]
    frame = pl.concat(frames)
    return frame.sort("time", maintain_order=True) if interleaved else frame


@pytest.mark.parametrize("batch_bars", [1, 7, 1_000])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "csv", "feather", "polars", "lazy", "pandas"])
def test_symbols_are_told_apart(
    kind: str, interleaved: bool, batch_bars: int, tmp_path: Path
) -> None:
    source = FORMATS[kind](several(interleaved=interleaved), tmp_path)
    opened = open_source(source, batch_bars=batch_bars)
    assert opened.symbols == ("NQ", "ES", "6E")
    pieces: dict[str | None, list[mf.Bars]] = {name: [] for name in SYMBOLS}
    for name, bars in opened.batches():
        pieces[name].append(bars)
    for name, expected in SYMBOLS.items():
        columns = zip(*(piece.arrays for piece in pieces[name]), strict=True)
        assert_same(mf.Bars(*(np.concatenate(column) for column in columns)), expected)
        assert_same(mf.read_bars(source, symbol=name), expected)


def test_categories_are_symbols(tmp_path: Path) -> None:
    frame = several(interleaved=True).with_columns(pl.col("symbol").cast(pl.Categorical))
    for form in (parquet_file, FRAMES["polars"], FRAMES["pandas"]):
        assert_same(mf.read_bars(form(frame, tmp_path), symbol="ES"), SYMBOLS["ES"])


def test_one_symbol_needs_no_name(tmp_path: Path) -> None:
    source = FILES["csv"](as_frame().with_columns(ticker=pl.lit("NQ")), tmp_path)
    assert {name for name, _ in open_source(source).batches()} == {None}
    assert_same(mf.read_bars(source), BARS)
    assert_same(mf.read_bars(source, symbol="NQ"), BARS)


def test_symbols_have_to_be_chosen_among() -> None:
    frame = several(interleaved=True)
    with pytest.raises(BarsError, match=r"holds 3 symbols \(NQ, ES, 6E\); choose one with symbol="):
        mf.read_bars(frame)
    with pytest.raises(BarsError, match="no symbol 'nq'; choose one of NQ, ES, 6E"):
        mf.read_bars(frame, symbol="nq")
    with pytest.raises(BarsError, match="symbol is 'NQ', but there is no symbol column"):
        mf.read_bars(as_frame(), symbol="NQ")


@pytest.mark.parametrize("batch_bars", [1, 7, 1_000])
def test_rows_of_several_symbols_are_numbered_as_in_the_file(batch_bars: int) -> None:
    frame = several(interleaved=True)
    row = 31
    name = frame["symbol"][row]
    bad = frame.with_columns(
        high=pl.when(pl.int_range(pl.len()) == row).then(None).otherwise(pl.col("high"))
    )
    opened = open_source(bad, batch_bars=batch_bars)
    with pytest.raises(BarsError, match=rf"<polars frame> \[{name}\]: row {row} .*high is None"):
        list(opened.batches())
    opened = open_source(bad, batch_bars=batch_bars, on_bad_bars="drop")
    list(opened.batches())
    assert {key: lost.total for key, lost in opened.dropped.items()} == {
        key: int(key == name) for key in SYMBOLS
    }
    assert opened.dropped[name].examples[0].row == row
    other = next(key for key in SYMBOLS if key != name)
    assert_same(mf.read_bars(bad, symbol=other), SYMBOLS[other])


@pytest.mark.parametrize("value", [None, "", "  "])
def test_every_row_needs_its_symbol(value: str | None) -> None:
    frame = as_frame().with_columns(
        symbol=pl.when(pl.int_range(pl.len()) == 33).then(pl.lit(value)).otherwise(pl.lit("NQ"))
    )
    with pytest.raises(BarsError, match="row 33: symbol is missing"):
        list(open_source(frame, batch_bars=10).batches())


def test_a_symbol_without_good_bars_is_refused() -> None:
    frame = several(interleaved=True).with_columns(
        open=pl.when(pl.col("symbol") == "ES").then(float("nan")).otherwise(pl.col("open"))
    )
    with pytest.raises(BarsError, match=r"\[ES\]: no good bar is left, 40 dropped"):
        list(open_source(frame, on_bad_bars="drop").batches())


# --- what cannot be read ----------------------------------------------------------------------


def message_of(source: Any, **settings: Any) -> str:
    with pytest.raises(MoolaError) as caught:
        list(open_source(source, **settings).batches())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BarsNotFoundError, match=r"nq.parquet: no such file"):
        mf.read_bars(tmp_path / "nq.parquet")
    with pytest.raises(FileNotFoundError):
        mf.read_bars(str(tmp_path / "nowhere" / "nq.csv"))


def test_a_folder(tmp_path: Path) -> None:
    assert message_of(tmp_path).endswith("is a folder; give one file of bars")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_file(as_frame(), tmp_path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the permissions themselves do not stop root
    assert "may not be read; change its permissions" in message_of(path)


@pytest.mark.parametrize("data", [b"", b"\n\n  \n", gzip.compress(b"")])
@pytest.mark.parametrize("name", ["b.csv", "b.parquet"])
def test_an_empty_file(name: str, data: bytes, tmp_path: Path) -> None:
    assert "is empty" in message_of(written(data, tmp_path / name))


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_without_rows(kind: str, tmp_path: Path) -> None:
    source = FORMATS[kind](as_frame().clear(), tmp_path)
    assert message_of(source).endswith("there are no bars; give at least one")


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_header_alone(end: bytes, tmp_path: Path) -> None:
    path = written(b"time,open,high,low,close" + end, tmp_path / "b.csv")
    assert message_of(path).endswith("there are no bars; give at least one")


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("b.parquet", b"time,open\n1,2\n", "is not Parquet, it begins with b'time,open"),
        ("b.feather", b"FEA1....", "is not Arrow IPC, it begins with b'FEA1"),
        ("b.arrow", b"nothing", "is not Arrow IPC"),
        ("b.csv", b"PK\x03\x04\x00\x00", "is neither Parquet, Arrow nor CSV text in UTF-8"),
        ("b.csv", "time,open\n".encode("utf-16"), "is neither Parquet, Arrow nor CSV text"),
        ("b.csv", b"PAR1 and no more", "damaged or cut off"),
        ("b.gz", gzip.compress(b"PAR1 and more"), "is parquet packed with gzip; unpack it"),
        ("b.csv.gz", b"\x1f\x8bnothing", "damaged or cut off"),
        ("b.csv", b"time,open,high,low,close\n1,1,1,1\n", "damaged or cut off: CSV parse error"),
        ("b.csv", b"time,open,high,low,close\n1,\xff,1,1,1\n", "invalid UTF8"),
        ("b.csv", b"1577836800,1,1,1,1\n1577836860,1,1,1,1\n", "is no header; add one"),
    ],
)
def test_files_that_are_not_what_they_seem(
    name: str, data: bytes, text: str, tmp_path: Path
) -> None:
    path = written(data, tmp_path / name)
    message = message_of(path)
    assert message.startswith(f"{path}: ")
    assert text in message


@pytest.mark.parametrize("name", ["b.csv", "b.dat", "b"])
def test_content_is_told_by_the_first_bytes(name: str, tmp_path: Path) -> None:
    for kind in ("parquet", "feather", "arrow stream", "csv gz"):
        data = FILES[kind](as_frame(), tmp_path).read_bytes()
        assert_same(mf.read_bars(written(data, tmp_path / name)), BARS)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["parquet", "polars parquet", "csv gz", "feather", "polars ipc"])
def test_files_that_were_cut_off(kind: str, share: float, tmp_path: Path) -> None:
    path = FILES[kind](as_frame(make_bars(2_000)), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "damaged or cut off" in message_of(path)


def test_damage_inside_a_file(tmp_path: Path) -> None:
    path = polars_parquet(as_frame(make_bars(2_000)).drop("id"), tmp_path)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\x55" * 56  # the header of the first page
    path.write_bytes(data)
    assert "damaged or cut off" in message_of(path)


@pytest.mark.parametrize("kind", ["parquet", "polars", "lists", "pandas"])
@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["abc"] * NUM_BARS, r"open is column 'open' of type String such as 'abc', not numbers"),
        (["1.5"] * NUM_BARS, r"of type String such as '1.5', not numbers; convert it to float64"),
        ([True] * NUM_BARS, r"open is column 'open' of type Boolean such as True, not numbers"),
        ([None] * NUM_BARS, r"row 0 .*: open is None, not a finite number"),
        ([float("nan")] * NUM_BARS, r"row 0 .*: open is (nan|None), not a finite number"),
    ],
)
def test_columns_that_are_not_numbers(
    kind: str, values: list[Any], text: str, tmp_path: Path
) -> None:
    frame = as_frame().with_columns(pl.Series("open", values))
    with pytest.raises(BarsError, match=text):
        mf.read_bars(FORMATS[kind](frame, tmp_path))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (42, "source is a int; give a path, a Polars or pandas frame"),
        ({"time": [1, 2], "open": [1.0], **{x: [1.0, 1.0] for x in PRICES[1:]}}, "lengths differ"),
        ({"time": [1], "open": [[1.0]], **{x: [1.0] for x in PRICES[1:]}}, "of type List"),
        ({"time": [1, "x"], **{x: [1.0, 1.0] for x in PRICES}}, "column 'time' cannot be read"),
        ({"time": 5, **{x: [1.0] for x in PRICES}}, "column 'time' cannot be read"),
        ({"time": [2**70], **{x: [1.0] for x in PRICES}}, "column 'time' cannot be read"),
        (pl.scan_parquet("nowhere.parquet"), "<polars lazyframe>: no such file"),
    ],
)
def test_things_that_are_no_source(source: Any, text: str) -> None:
    with pytest.raises(BarsError, match=text):
        mf.read_bars(source)


def test_a_mode_that_does_not_exist() -> None:
    with pytest.raises(BarsError, match="on_bad_bars is 'skip'; choose one of error, drop"):
        mf.read_bars(BARS, on_bad_bars="skip")


# --- memory -----------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from moola_features.sources import open_source

def read(path):
    for _ in open_source(path, batch_bars=16_384).batches():
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = read(sys.argv[1])
print(read(sys.argv[2]) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux only")
@pytest.mark.parametrize("kind", ["parquet", "one group", "csv"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for name, num_bars in (("small", 200_000), ("large", 1_600_000)):
        price = rng.random(num_bars)  # random bits do not compress
        frame = pl.DataFrame({"time": START_NS + np.arange(num_bars) * MINUTE_NS})
        frame = frame.with_columns(pl.Series(column, price) for column in PRICES)
        paths.append(tmp_path / name)
        if kind == "csv":
            frame.write_csv(paths[-1])
        else:
            rows = num_bars if kind == "one group" else 65_536
            table = frame.to_arrow()
            pyarrow.parquet.write_table(table, paths[-1], row_group_size=rows)
    root = Path(mf.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    growth_bytes = int(done.stdout) * 1024
    extra_bytes = paths[1].stat().st_size - paths[0].stat().st_size
    assert growth_bytes < extra_bytes / 3
