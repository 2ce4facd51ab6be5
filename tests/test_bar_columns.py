"""Which column is which: usual names, maps, and what cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import moola_features as mf
from moola_features.bars.checks import FIELDS, PRICES
from moola_features.bars.columns import find_columns
from moola_features.errors import BarsError, ConfigError
from tests.bar_formats import BARS, as_frame, assert_same
from tests.markets import frame, walk


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


@pytest.mark.parametrize(
    ("column_map", "text"),
    [
        ({"opn": "open"}, "column_map (--map) has 'opn'; its fields are time, open, high, low, "),
        ("open", "column_map is 'open'; give column by field, such as {'open': 'px_open'}"),
        ([("open", "px")], "column_map is [('open', 'px')]; give column by field"),
    ],
)
def test_maps_that_fit_no_columns(column_map: Any, text: str, tmp_path: Path) -> None:
    frame(walk(200)).write_parquet(tmp_path / "nq.parquet")
    for use in (
        lambda: find_columns(["time", *PRICES], column_map, "nq.csv"),
        lambda: mf.read_bars(walk(20), column_map=column_map),
        lambda: mf.build([tmp_path / "nq.parquet"], tmp_path / "u.zarr", column_map=column_map),
    ):
        with pytest.raises(ConfigError) as caught:
            use()
        assert str(caught.value).startswith(text)


def test_a_column_that_is_mapped_is_not_found_twice() -> None:
    frame = as_frame().rename({"close": "open_price"})
    assert_same(mf.read_bars(frame, column_map={"close": "open_price"}), BARS)


def test_columns_that_are_not_needed_are_not_read() -> None:
    columns: dict[str, Any] = {**dict(zip(FIELDS, BARS.arrays, strict=True)), "note": object()}
    assert_same(mf.read_bars(columns), BARS)
