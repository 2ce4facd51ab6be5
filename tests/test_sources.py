"""Sources: every format, time and number gives the same bars, whole, streamed or by symbol."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moola_features as mf
from moola_features.bars.checks import FIELDS, PRICES
from moola_features.bars.sources import open_source
from moola_features.errors import BarsError
from tests.bar_formats import (
    BARS,
    FILES,
    FORMATS,
    FRAMES,
    NUM_BARS,
    START_NS,
    as_frame,
    assert_same,
    drop_bad_bars,
    make_bars,
    parquet_file,
)


def joined(source: Any, batch_bars: int, **options: Any) -> mf.Bars:
    """The bars of a source with one symbol, put together from its batches."""
    pieces = [bars for _, bars in open_source(source, batch_bars=batch_bars, **options).batches()]
    assert all(0 < len(piece) <= batch_bars for piece in pieces)
    columns = zip(*(piece.arrays for piece in pieces), strict=True)
    return mf.Bars(*(np.concatenate(column) for column in columns))


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


PAIRS = [
    (kind, form)
    for kind in FORMATS
    for form, columns in TIMES.items()
    if len(columns) == 1 or kind != "pandas index"  # an index is one column
]


@pytest.mark.parametrize(("kind", "form"), PAIRS)
def test_every_time_in_every_format(kind: str, form: str, tmp_path: Path) -> None:
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


def test_an_index_that_is_a_column_too_counts_once() -> None:
    pandas = as_frame().to_pandas()
    assert_same(mf.read_bars(pandas.set_index("time", drop=False)), BARS)
    unnamed = pandas.set_index("time", drop=False).rename_axis(None)
    assert_same(mf.read_bars(unnamed), BARS)


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


# --- streaming --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_bars", [1, 7, 1_000])
@pytest.mark.parametrize("kind", FORMATS)
def test_streaming_gives_the_same_bars(kind: str, batch_bars: int, tmp_path: Path) -> None:
    assert_same(joined(FORMATS[kind](as_frame(), tmp_path), batch_bars), BARS)


@pytest.mark.parametrize(
    ("group_rows", "batch_bars", "lengths"),
    [
        (100, 60, [60, 40, 60, 40, 50]),  # large groups: no batch goes from one into the next
        (100, 100, [100, 100, 50]),
        (30, 70, [60, 60, 60, 70]),  # small ones: as many whole groups as a batch holds
        (250, 1_000, [250]),
    ],
)
def test_batches_end_where_row_groups_do(
    group_rows: int, batch_bars: int, lengths: list[int], tmp_path: Path
) -> None:
    bars = make_bars(250)
    path = tmp_path / "bars.parquet"
    as_frame(bars).write_parquet(path, row_group_size=group_rows)
    source = open_source(path, batch_bars=batch_bars)
    assert [len(piece) for _, piece in source.batches()] == lengths
    assert_same(joined(path, batch_bars), bars)


@pytest.mark.parametrize("group_rows", [1, 7, 100])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_part_of_a_parquet_file(group_rows: int, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    if not path.exists():
        as_frame().write_parquet(path, row_group_size=group_rows)
    start = data.draw(st.integers(0, NUM_BARS - 1))
    stop = data.draw(st.integers(start + 1, NUM_BARS))
    part = open_source(path, batch_bars=data.draw(st.integers(1, 30))).part(start, stop)
    assert part is not None
    assert part.num_rows == stop - start
    pieces = [piece for _, piece in part.batches()]
    assert part.rows_read == stop
    columns = zip(*(piece.arrays for piece in pieces), strict=True)
    assert_same(mf.Bars(*(np.concatenate(column) for column in columns)), BARS[start:stop])


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


def test_times_are_shown_as_times() -> None:
    frame = as_frame().with_columns(TIME.dt.convert_time_zone("Asia/Tokyo"))
    message = r"row 60 \(2020-01-01T00:59:00Z\): time is '2020-01-01T00:59:00Z', the same as"
    with pytest.raises(BarsError, match=message):
        mf.read_bars(pl.concat([frame, frame[-1:]]))


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


def test_spaces_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    text = "\n\n time , open , high , low , close \n\n 2020-01-01 , 1 , +2 , 1e0 , 1.5 \n\n"
    path.write_text(text)
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


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Binary])
def test_categories_and_bytes_are_symbols(dtype: Any, tmp_path: Path) -> None:
    frame = several(interleaved=True).with_columns(pl.col("symbol").cast(dtype))
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
