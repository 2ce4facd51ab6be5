"""Times as files have them: text of many kinds, epoch numbers, dates with a clock."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moola_features.bars.times import TimeReader
from moola_features.errors import BarsError
from tests.bar_formats import MINUTE_NS, START_NS


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
