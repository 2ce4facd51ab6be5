"""Bars: conversion, the checks against a loop that reads like the rules, leaving rows out."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf
from moola_features.bars import Bars
from moola_features.bars.checks import FIELDS, MISSING_TIME, PRICES, BarArrays, BarCheck
from moola_features.errors import BarsError, MoolaError
from moola_features.times import time_text
from tests.bar_formats import drop_bad_bars

MINUTE_NS = 60 * 10**9
START_NS = 1_577_836_800 * 10**9  # 2020-01-01


def arrays(num_bars: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Good bars as a dict of arrays."""
    rng = np.random.default_rng(seed)
    close = 100 + rng.integers(-4, 5, num_bars).cumsum() * 0.25
    open_ = close - rng.integers(-4, 5, num_bars) * 0.25
    return {
        "time": START_NS + np.arange(num_bars) * MINUTE_NS,
        "open": open_,
        "high": np.maximum(open_, close) + 0.25,
        "low": np.minimum(open_, close) - 0.25,
        "close": close,
    }


def assert_same(actual: Bars, expected: Bars) -> None:
    for left, right in zip(actual.arrays, expected.arrays, strict=True):
        np.testing.assert_array_equal(left, right)


# --- construction -----------------------------------------------------------------------------


def test_fitting_arrays_are_held_as_read_only_views() -> None:
    given = arrays(50)
    bars = Bars(**given)
    for name, held in zip(FIELDS, bars.arrays, strict=True):
        assert np.shares_memory(held, given[name])
        assert held.flags.c_contiguous
        assert not held.flags.writeable
        assert given[name].flags.writeable, "the caller's array stays writeable"
    assert bars.time.dtype == np.int64
    assert bars.open.dtype == np.float64


@pytest.mark.parametrize(
    "convert",
    [
        lambda price: price.tolist(),
        lambda price: [Decimal(str(value)) for value in price],
        lambda price: price.astype(np.float32),
        lambda price: price.astype(">f8"),
        lambda price: np.repeat(price, 2)[::2],
        pl.Series,
        pd.Series,
        lambda price: tuple(price.astype(object)),
    ],
    ids=["list", "decimal", "float32", "big-endian", "strided", "polars", "pandas", "object"],
)
def test_prices_of_any_type_give_the_same_bits(convert: Any) -> None:
    given = arrays(20)
    bars = Bars(**{**given, **{name: convert(given[name]) for name in PRICES}})
    assert_same(bars, Bars(**given))
    assert all(held.flags.c_contiguous for held in bars.arrays)


def test_whole_numbers_are_prices() -> None:
    bars = Bars(time=[1, 2], open=[5, 6], high=np.array([7, 7], np.uint8), low=[5, 6], close=[5, 7])
    assert bars.high.tolist() == [7.0, 7.0]


@pytest.mark.parametrize("unit", ["m", "s", "ms", "us", "ns"])
def test_datetime64_of_any_unit_gives_the_same_times(unit: str) -> None:
    given = arrays(20)
    time = given["time"].view("datetime64[ns]").astype(f"datetime64[{unit}]")
    assert_same(Bars(**{**given, "time": time}), Bars(**given))


def test_datetimes_of_any_zone_give_the_same_times() -> None:
    given = arrays(3)
    naive = [datetime(2020, 1, 1) + timedelta(minutes=minute) for minute in range(3)]
    utc = [time.replace(tzinfo=UTC) for time in naive]
    east = [time.astimezone(timezone(timedelta(hours=5, minutes=30))) for time in utc]
    zoned = pd.DatetimeIndex(given["time"].view("datetime64[ns]"), tz="UTC")
    new_york = zoned.tz_convert("America/New_York")
    forms: list[Any] = [naive, utc, east, new_york, pd.Series(new_york)]
    for time in forms:
        assert_same(Bars(**{**given, "time": time}), Bars(**given))


def test_times_keep_every_nanosecond() -> None:
    time = [START_NS + 1, START_NS + 2, 2**62]
    price = [1.0, 1.0, 1.0]
    assert Bars(time, price, price, price, price).time.tolist() == time


def test_prices_may_be_flat_negative_or_large() -> None:
    price = np.array([0.0, -37.63, 1e150, -1e150, 5e-324])
    bars = Bars(time=range(5), open=price, high=price, low=price, close=price)
    np.testing.assert_array_equal(bars.low, price)


# --- slices -----------------------------------------------------------------------------------


def test_slices_are_views() -> None:
    bars = Bars(**arrays(30))
    part = bars[5:-5]
    assert isinstance(part, Bars)
    assert len(part) == 20
    assert np.shares_memory(part.high, bars.high)
    assert part.time.tolist() == bars.time[5:25].tolist()
    assert len(bars[:0]) == 0
    assert not part.close.flags.writeable


@pytest.mark.parametrize("rows", [3, slice(None, None, 2), slice(None, None, -1), [1, 2]])
def test_only_plain_slices_are_taken(rows: Any) -> None:
    with pytest.raises(BarsError, match="by a slice such as bars"):
        Bars(**arrays(30))[rows]


def test_bars_are_not_iterated_over() -> None:
    with pytest.raises(BarsError, match="by a slice"):
        list(Bars(**arrays(3)))  # type: ignore[call-overload]


# --- refusals ---------------------------------------------------------------------------------


def spoil(given: dict[str, NDArray[Any]], row: int, **values: float) -> dict[str, NDArray[Any]]:
    spoilt = {name: array.copy() for name, array in given.items()}
    for name, value in values.items():
        spoilt[name][row] = value
    return spoilt


SPOILT: dict[str, tuple[dict[str, float], str]] = {
    "nan": ({"open": math.nan}, "open is nan, not a finite number; mend the row"),
    "infinite": ({"high": math.inf}, "high is inf, not a finite number"),
    "negative infinite": ({"low": -math.inf}, "low is -inf, not a finite number"),
    "nan close": ({"close": math.nan}, "close is nan, not a finite number"),
    "too large": ({"high": 1.1e150}, "high is 1.1e+150, beyond 1e+150"),
    "too low": ({"low": -1.1e150}, "low is -1.1e+150, beyond 1e+150"),
    "high below": (
        {"open": 9, "high": 10, "low": 8, "close": 11},
        "high is 10.0, below close 11.0",
    ),
    "high below open": ({"open": 11, "high": 10, "low": 8, "close": 9}, "below open 11.0"),
    "low above": ({"open": 9, "high": 12, "low": 10, "close": 11}, "low is 10.0, above open 9.0"),
    "low above close": ({"open": 11, "high": 12, "low": 10, "close": 9}, "above close 9.0"),
    "no time": ({"time": MISSING_TIME}, "time is no time, not a time from 1678 to 2261"),
}


@pytest.mark.parametrize("row", [0, 17, 16_383, 16_384, 39_999])
@pytest.mark.parametrize("what", SPOILT)
def test_a_bad_row_is_named(what: str, row: int) -> None:
    values, text = SPOILT[what]
    with pytest.raises(BarsError) as caught:
        Bars(**spoil(arrays(40_000), row, **values))
    message = str(caught.value)
    time = "no time" if what == "no time" else time_text(START_NS + row * MINUTE_NS)
    assert message.startswith(f"row {row} ({time}")
    assert text in message
    assert message.endswith("or pass on_bad_bars='drop' (--on-bad-bars drop)")
    assert "\n" not in message


@pytest.mark.parametrize("row", [1, 17, 16_384, 39_999])
def test_times_out_of_order_are_named(row: int) -> None:
    given = arrays(40_000)
    before = given["time"][row - 1]
    with pytest.raises(BarsError, match=rf"^row {row} \(.*Z, the same as that of the bar before"):
        Bars(**spoil(given, row, time=before))
    with pytest.raises(BarsError, match=rf"^row {row} \(2019-12-31.*; sort the bars by time"):
        Bars(**spoil(given, row, time=START_NS - 1))


def test_the_first_bad_row_is_the_one_named() -> None:
    given = spoil(spoil(arrays(100), 60, high=math.nan), 40, low=math.nan)
    with pytest.raises(BarsError, match=r"^row 40 .* low is nan"):
        Bars(**given)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"open": [1.0]}, "lengths differ: time 3, open 1, high 3"),
        ({"open": ["1", "2", "3"]}, "open holds <U1 such as '1', not numbers"),
        ({"open": [1, "x", 3]}, "open holds <U"),
        ({"open": np.array([1, "x", 3], object)}, "row 1: open is 'x', not a number"),
        ({"open": [True, False, True]}, "open holds bool such as True"),
        ({"open": np.array([1, True, 3], object)}, "row 1: open is True, not a number"),
        ({"open": [1j, 2, 3]}, "not numbers"),
        ({"open": [[1.0], [2.0], [3.0]]}, r"open has shape \[3, 1\]"),
        ({"high": [[1.0], [2.0, 3.0], 4]}, "high is no array"),
        ({"open": 5.0}, r"open has shape \[\]"),
        ({"open": [1, None, 3]}, r"row 1 .*: open is nan"),
        ({"time": [1.0, 2.0, 3.0]}, "time holds float64 such as 1.0; give whole nanoseconds"),
        ({"time": ["a", "b", "c"]}, "time holds <U1"),
        ({"time": np.array([1, 2.5, 3], object)}, "row 1: time is 2.5"),
        ({"time": np.array([1, True, 3], object)}, "row 1: time is True"),
        ({"time": [1, None, 3]}, r"row 1 \(no time\)"),
        ({"time": np.array([1, 2, 2**64 - 1], np.uint64)}, "beyond int64"),
        ({"time": [1, 2, 2**70]}, "row 2: time is 1180591620717411303424"),
        ({"time": np.array(["2020", "NaT", "2021"], "M8[D]")}, r"row 1 \(no time\)"),
        ({"time": np.array(["2020", "2021", "2400"], "M8[D]")}, "2400-01-01 does not fit"),
        ({"time": np.array(["1500", "2020", "2021"], "M8[s]")}, "1500-01-01.* does not fit"),
    ],
)
def test_what_is_no_bars_is_refused(changes: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {"time": [1, 2, 3], **{name: [5.0] * 3 for name in PRICES}}
    if "open" in changes and len(np.shape(changes["open"])) == 1:
        given |= {"high": [9.0] * 3, "low": [0.0] * 3}
    with pytest.raises(BarsError, match=text) as caught:
        Bars(**{**given, **changes})
    assert isinstance(caught.value, MoolaError)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_no_bars_at_all_are_refused() -> None:
    for use in (mf.compute, mf.swings):
        with pytest.raises(BarsError, match=r"bars is a dict; give Bars, as read_bars\(\.\.\.\)"):
            use({"open": [1.0]})
    with pytest.raises(BarsError, match="there are no bars"):
        Bars([], [], [], [], [])


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BarsError, match="on_bad_bars is 'ignore'; choose one of error, drop"):
        BarCheck(on_bad_bars="ignore")


# --- leaving bad rows out ---------------------------------------------------------------------


def test_dropping_counts_and_shows_what_it_drops() -> None:
    given = arrays(40_000)
    given = spoil(given, 10, high=math.nan)
    given = spoil(given, 20, time=START_NS)
    given = spoil(given, 30, time=given["time"][29])
    given = spoil(given, 20_000, low=math.inf)
    given = spoil(given, 39_999, low=1e9)
    bars, dropped = drop_bad_bars(**given)
    kept = np.delete(np.arange(40_000), [10, 20, 30, 20_000, 39_999])
    assert_same(bars, Bars(**{name: array[kept] for name, array in given.items()}))
    assert dropped.total == 5
    assert dropped.counts == {
        "price not a finite number": 2,
        "time out of order": 1,
        "time repeated": 1,
        "low above open or close": 1,
    }
    assert [fault.row for fault in dropped.examples] == [10, 20, 30, 20_000, 39_999]
    report = json.loads(json.dumps(dropped.to_dict()))
    assert report["total"] == 5
    assert report["examples"][0] == {
        "row": 10,
        "time": "2020-01-01T00:10:00Z",
        "column": "high",
        "value": "nan",
        "reason": "price not a finite number",
        "detail": "row 10 (2020-01-01T00:10:00Z): high is nan, not a finite number",
    }


def test_only_the_first_five_are_shown() -> None:
    given = arrays(100)
    given["open"][::2] = math.nan
    _, dropped = drop_bad_bars(**given)
    assert dropped.total == 50
    assert [fault.row for fault in dropped.examples] == [0, 2, 4, 6, 8]


def test_good_bars_lose_nothing() -> None:
    bars, dropped = drop_bad_bars(**arrays(100))
    assert_same(bars, Bars(**arrays(100)))
    assert (dropped.total, str(dropped)) == (0, "none dropped")


def test_dropping_everything_is_refused() -> None:
    given = arrays(10)
    given["open"][:] = math.nan
    with pytest.raises(BarsError, match=r"no good bar is left, 10 dropped .* row 0 .*open is nan"):
        drop_bad_bars(**given)


# --- the checks against a loop, whole and in pieces -------------------------------------------

MESSY_PRICE = st.sampled_from([1.0, 2.0, 3.0, math.nan, math.inf, -math.inf, 1e151, -1e151])
MESSY_ROW = st.tuples(
    st.one_of(st.integers(0, 12), st.just(MISSING_TIME)),
    *(st.one_of(st.sampled_from([1.0, 2.0]), MESSY_PRICE) for _ in PRICES),
)
GOOD_ROW = st.builds(lambda time: (time, 2.0, 3.0, 1.0, 2.0), st.integers(0, 12))


def loop_over(rows: list[tuple[float, ...]]) -> tuple[list[int], list[str]]:
    """Positions of the good rows, and the reason for every row, "good" among them."""
    kept: list[int] = []
    reasons = []
    latest: float = -math.inf
    for row, (time, *prices) in enumerate(rows):
        open_, high, low, close = prices
        if time == MISSING_TIME:
            reason = "time missing"
        elif not all(math.isfinite(price) for price in prices):
            reason = "price not a finite number"
        elif any(abs(price) > 1e150 for price in prices):
            reason = "price too large"
        elif high < max(open_, close):
            reason = "high below open or close"
        elif low > min(open_, close):
            reason = "low above open or close"
        elif time == latest:
            reason = "time repeated"
        elif time < latest:
            reason = "time out of order"
        else:
            reason, latest = "good", time
            kept.append(row)
        reasons.append(reason)
    return kept, reasons


def as_arrays(rows: list[tuple[float, ...]]) -> BarArrays:
    time, *prices = zip(*rows, strict=True)
    open_, high, low, close = (np.array(price, np.float64) for price in prices)
    return np.array(time, np.int64), open_, high, low, close


@given(st.lists(st.one_of(GOOD_ROW, MESSY_ROW), min_size=1, max_size=30), st.data())
def test_checks_agree_with_a_loop_in_any_pieces(rows: list[Any], data: st.DataObject) -> None:
    kept, reasons = loop_over(rows)
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4).map(sorted))
    bounds = list(zip([0, *cuts], [*cuts, len(rows)], strict=True))

    check = BarCheck(on_bad_bars="drop")
    pieces = [
        check(as_arrays(rows[start:stop]), first_row=start)
        for start, stop in bounds
        if stop > start
    ]
    expected = [array[kept] for array in as_arrays(rows)]
    for field, array in enumerate(expected):
        np.testing.assert_array_equal(np.concatenate([piece[field] for piece in pieces]), array)
    bad = [row for row, reason in enumerate(reasons) if reason != "good"]
    assert check.num_bars == len(kept)
    assert [fault.row for fault in check.dropped.examples] == bad[:5]
    assert [fault.reason for fault in check.dropped.examples] == [reasons[row] for row in bad[:5]]
    assert check.dropped.counts == {
        reason: reasons.count(reason) for reason in set(reasons) - {"good"}
    }

    strict = BarCheck()
    if bad:
        for start, stop in bounds:
            if stop > bad[0]:
                break
            if stop > start:
                strict(as_arrays(rows[start:stop]), first_row=start)
        with pytest.raises(BarsError, match=rf"^row {bad[0]} "):
            strict(as_arrays(rows[start:stop]), first_row=start)
    else:
        strict(as_arrays(rows))
        assert strict.last_time == rows[-1][0]


def test_a_check_goes_on_from_a_given_time() -> None:
    given = Bars(**arrays(10)).arrays
    with pytest.raises(BarsError, match=r"^nq.csv: row 5 .* the same as that of the bar before it"):
        BarCheck(name="nq.csv", last_time=START_NS)(given, first_row=5)
    assert len(BarCheck(last_time=START_NS - 1)(given)[0]) == 10
