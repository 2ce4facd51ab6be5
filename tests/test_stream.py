"""Streams: what they refuse without moving, and states that carry every bit."""

from __future__ import annotations

import copy
import io
import json
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

import moola_features as mf
from moola_features.bars.checks import MAX_PRICE
from moola_features.errors import StreamError
from moola_features.kernels.compiled import Kernel
from moola_features.live import follow
from tests.markets import as_bits, walk
from tests.strategies import MINUTE_NS, START_NS, config_name, every_config

pytestmark = pytest.mark.kernels

GOOD = (10.0, 12.0, 9.0, 11.0)


def bar(bars: mf.Bars, i: int) -> tuple[int, float, float, float, float]:
    time, open_, high, low, close = (array[i].item() for array in bars.arrays)
    return time, open_, high, low, close


def fed(config: mf.FeatureConfig, bars: mf.Bars) -> mf.Stream:
    stream = mf.Stream(config)
    for i in range(len(bars)):
        stream.update(*bar(bars, i))
    return stream


@pytest.mark.parametrize("config", every_config(), ids=config_name)
def test_the_kernel_is_given_the_declared_types(config, monkeypatch):
    bars = walk(60, seed=3, gaps=[30])
    unchecked = fed(config, bars)
    # Numba's own entry raises TypeError for anything else; a stream goes past it.
    monkeypatch.setattr(Kernel, "load_unchecked", Kernel.load)
    checked = fed(config, bars)
    resumed = mf.Stream.from_state(unchecked.state())
    resumed.update(bars.time[-1].item() + MINUTE_NS, *GOOD)
    assert checked.state() == unchecked.state()


class TestState:
    @pytest.mark.parametrize("config", every_config(), ids=config_name)
    def test_survives_json_at_every_bar(self, config):
        bars = walk(130, seed=3, gaps=[70, 71])
        whole, resumed = mf.Stream(config), mf.Stream(config)
        for i in range(len(bars)):
            text = json.dumps(resumed.state(), allow_nan=False)
            resumed = mf.Stream.from_state(json.loads(text))
            assert json.dumps(resumed.state()) == text
            assert (resumed.num_bars, resumed.valid) == (i, whole.valid)
            expected, actual = whole.update(*bar(bars, i)), resumed.update(*bar(bars, i))
            np.testing.assert_array_equal(as_bits(actual), as_bits(expected))
            assert resumed.valid == whole.valid
        assert whole.state() == resumed.state()

    def test_is_a_copy(self):
        bars = walk(60)
        stream = fed(mf.FeatureConfig(), bars[:50])
        state = stream.state()
        kept = copy.deepcopy(state)
        resumed = mf.Stream.from_state(state)
        for i in range(50, 60):
            stream.update(*bar(bars, i))
            resumed.update(*bar(bars, i))
        assert state == kept
        assert stream.state() == resumed.state() != kept

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            (None, "state has version 'NoneType', this moola reads 1; pass what"),
            ("{}", "state has version 'str'"),
            ({}, "state has version None"),
            ({"version": 2}, "state has version 2, this moola reads 1"),
            ({"version": 1}, "state cannot be read: KeyError('config')"),
        ],
    )
    def test_garbage(self, state, message):
        with pytest.raises(StreamError) as caught:
            mf.Stream.from_state(state)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["config", "num_bars", "last_time", "valid", "pass"])
    def test_without_a_part(self, name):
        state = fed(mf.FeatureConfig(), walk(30)).state()
        del state[name]
        with pytest.raises(
            StreamError, match=f"state cannot be read: KeyError\\('{name}'\\); pass"
        ):
            mf.Stream.from_state(state)

    def test_without_a_part_of_the_pass(self):
        for name in fed(mf.FeatureConfig(), walk(30)).state()["pass"]:
            state = fed(mf.FeatureConfig(), walk(30)).state()
            del state["pass"][name]
            with pytest.raises(StreamError, match=f"state lacks '{name}'; pass what state"):
                mf.Stream.from_state(state)

    @pytest.mark.parametrize(
        ("way", "value"),
        [
            (("config",), {"k": -1}),
            (("config",), {"new": 1}),
            (("config",), None),
            (("num_bars",), "many"),
            (("num_bars",), math.nan),
            (("num_bars",), -30),
            (("num_bars",), 29),
            (("num_bars",), 30.0),
            (("last_time",), None),
            (("last_time",), math.inf),
            (("last_time",), [1]),
            (("pass",), None),
            (("pass", "leg"), "up"),
            (("pass", "leg"), None),
            (("pass", "leg"), 2),
            (("pass", "index"), -1),
            (("pass", "index"), 2**63 - 1),
            (("pass", "extreme_index"), 2**70),
            (("pass", "extreme_index"), -5),
            (("pass", "extreme_index"), 31),
            (("pass", "swing_low_index"), 30),
            (("pass", "swing_high_index"), -2),
            (("pass", "mean_range"), -1.0),
            (("pass", "mean_range"), math.nan),
            (("pass", "swing_high"), math.inf),
            (("pass", "history"), []),
            (("pass", "history"), [[1.0], [2.0, 3.0]]),
            (("pass", "history"), [[None] * 10] * 4),
            (("pass", "history"), [[math.nan] * 10] * 4),
            (("pass", "history"), [["x"] * 10] * 4),
        ],
    )
    def test_a_part_that_is_wrong(self, way, value):
        state = fed(mf.FeatureConfig(), walk(30)).state()
        part = state
        for key in way[:-1]:
            part = part[key]
        part[way[-1]] = value
        with pytest.raises(StreamError) as caught:
            mf.Stream.from_state(state)
        assert "\n" not in str(caught.value)

    def test_of_another_configuration(self):
        state = fed(mf.FeatureConfig(), walk(30)).state()
        state["config"]["atr_period"] = 14
        with pytest.raises(StreamError, match=r"history of shape \[4, 10\], .* needs \[4, 14\]"):
            mf.Stream.from_state(state)


class TestRefusals:
    @pytest.mark.parametrize(
        ("prices", "found"),
        [
            ((10.0, 9.5, 9.0, 9.0), "open 10.0, high 9.5"),
            ((10.0, 12.0, 11.0, 11.5), "low 11.0"),
            ((10.0, 12.0, 9.0, 13.0), "close 13.0"),
            ((math.nan, 12.0, 9.0, 11.0), "open nan"),
            ((10.0, math.nan, 9.0, 11.0), "high nan"),
            ((10.0, 12.0, math.nan, 11.0), "low nan"),
            ((10.0, 12.0, 9.0, math.nan), "close nan"),
            ((10.0, math.inf, 9.0, 11.0), "high inf"),
            ((10.0, 12.0, -math.inf, 11.0), "low -inf"),
            ((10.0, 2 * MAX_PRICE, 9.0, 11.0), "high 2e+150"),
            ((None, 12.0, 9.0, 11.0), "open None"),
            (("10", "12", "09", "11"), "open 10, high 12"),
            ((10.0, 12.0, 9.0, 11j), "close 11j"),
        ],
    )
    def test_bars_that_contradict_themselves(self, prices, found):
        stream = fed(mf.FeatureConfig(), walk(50))
        before = stream.state()
        time = before["last_time"] + MINUTE_NS
        with pytest.raises(StreamError) as caught:
            stream.update(time, *prices)
        message = str(caught.value)
        assert "2020-09-13T13:17:40Z: " in message
        assert found in message
        assert message.endswith("low at the bottom; leave it out, or mend it")
        assert stream.state() == before

    @pytest.mark.parametrize("low", [0.0, -1.0])
    def test_prices_without_a_logarithm(self, low):
        stream = fed(mf.FeatureConfig(family="returns"), walk(50))
        before = stream.state()
        with pytest.raises(StreamError, match="needs prices above 0 for family 'returns'"):
            stream.update(before["last_time"] + 1, 10.0, 12.0, low, 11.0)
        assert stream.state() == before
        mf.Stream().update(0, 10.0, 12.0, low, 11.0)

    @pytest.mark.parametrize("step", [0, -1, -MINUTE_NS])
    def test_times_that_do_not_come_after(self, step):
        stream = fed(mf.FeatureConfig(), walk(50))
        before = stream.state()
        with pytest.raises(StreamError) as caught:
            stream.update(before["last_time"] + step, *GOOD)
        assert "is not after the last one, 2020-09-13T13:16:40Z; leave out" in str(caught.value)
        assert stream.state() == before

    @pytest.mark.parametrize("num_bars", [0, 50])
    @pytest.mark.parametrize(
        "time",
        [
            None, "2020-01-01", math.nan, math.inf, 1.7e18, np.float64(1.7e18), Decimal(3),
            np.datetime64("2030-01-01", "ns"), 2**63, -(2**63), 2**80,
        ],
    )  # fmt: skip
    def test_no_times(self, time, num_bars):
        stream = fed(mf.FeatureConfig(), walk(60)[:num_bars]) if num_bars else mf.Stream()
        before = stream.state()
        with pytest.raises(StreamError) as caught:
            stream.update(time, *GOOD)
        assert str(caught.value) == f"time is {time!r}; give whole nanoseconds since 1970 UTC"
        assert stream.state() == before

    def test_goes_on_as_if_nothing_had_been(self):
        bars = walk(200)
        expected = mf.compute(bars)
        stream = mf.Stream()
        for i in range(len(bars)):
            time, open_, high, low, close = bar(bars, i)
            for wrong in (
                (time, high + 1, high, low, close),
                (math.nan, open_, high, low, close),
                (time, open_, high, low, None),
                (bars.time[i - 1] if i else 0.5, open_, high, low, close),
            ):
                with pytest.raises(StreamError):
                    stream.update(*wrong)
            actual = stream.update(time, open_, high, low, close)
            np.testing.assert_array_equal(as_bits(actual), as_bits(expected.values[i]))
            assert stream.valid == expected.valid[i]


class TestUpdates:
    def test_highest_and_lowest_prices(self):
        """What bars may hold, a stream takes."""
        prices = (0.0, MAX_PRICE, -MAX_PRICE, 1.0)
        bars = mf.Bars([0, 1], *([price, price] for price in prices))
        expected = mf.compute(bars).values
        stream = mf.Stream()
        for i in range(2):
            actual = stream.update(*bar(bars, i))
            np.testing.assert_array_equal(as_bits(actual), as_bits(expected[i]))

    @pytest.mark.parametrize("kind", [int, np.int64, np.float32, np.float64, Decimal])
    def test_kinds_of_numbers(self, kind):
        stream, plain = mf.Stream(), mf.Stream()
        for i, close in enumerate((10, 11, 9, 12, 8)):
            prices = (10, 13, 7, close)
            time = np.int64(i + 1) if kind is np.int64 else i + 1
            actual = stream.update(time, *map(kind, prices))
            np.testing.assert_array_equal(actual, plain.update(i + 1, *map(float, prices)))
        assert stream.state() == plain.state()
        json.dumps(stream.state())

    def test_rows_are_the_callers(self):
        bars = walk(40)
        stream = mf.Stream()
        rows = [stream.update(*bar(bars, i)) for i in range(len(bars))]
        np.testing.assert_array_equal(np.stack(rows), mf.compute(bars).values)
        rows[-1][:] = 99
        assert not np.shares_memory(rows[-1], rows[-2])

    @pytest.mark.parametrize("family", ["relativity", "returns"])
    @pytest.mark.parametrize(("step", "fresh"), [(0, False), (1, True)])
    def test_max_gap(self, family, step, fresh):
        """A gap of just max_gap goes on, a nanosecond more begins afresh."""
        config = mf.FeatureConfig(family=family, max_gap="4h")
        bars = walk(120)
        stream = fed(config, bars[:80])
        assert stream.valid
        time = int(bars.time[79]) + config.max_gap_ns + step - int(bars.time[80])
        first = stream.update(time + int(bars.time[80]), *bar(bars, 80)[1:])
        cold = mf.Stream(config)
        same = np.array_equal(cold.update(*bar(bars, 80)), first)
        assert same == fresh
        assert stream.valid != fresh
        assert stream.num_bars == 81
        if fresh:
            for i in range(81, 120):
                _, *prices = bar(bars, i)
                actual = stream.update(time + int(bars.time[i]), *prices)
                np.testing.assert_array_equal(as_bits(actual), as_bits(cold.update(*bar(bars, i))))
                assert stream.valid == cold.valid
            assert stream.valid

    def test_both_ends_of_time(self):
        stream = mf.Stream(mf.FeatureConfig(max_gap="4h"))
        for time in (-(2**63) + 1, 2**63 - 1):
            stream.update(time, *GOOD)
        assert stream.state()["pass"]["index"] == 1
        assert json.loads(json.dumps(stream.state()))["last_time"] == 2**63 - 1

    def test_begins_with_nothing(self):
        stream = mf.Stream()
        assert (stream.num_bars, stream.valid, stream.config) == (0, False, mf.FeatureConfig())
        first = stream.update(START_NS, *GOOD)
        assert (first.dtype, first.shape) == (np.float32, (11,))
        with pytest.raises(StreamError, match="is not after the last one"):
            stream.update(START_NS, *GOOD)


def test_errors_are_values(sample_bars: Any):
    """A stream's refusal is a ValueError, so that callers need not know of moola."""
    with pytest.raises(ValueError, match="is not after"):
        fed(mf.FeatureConfig(), sample_bars[:30]).update(int(sample_bars.time[3]), *GOOD)


HEADER = "time,open,high,low,close"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{HEADER}\n5,1,1,1,1\ngarbage,1,1,1,1\n", "row 1: 'garbage,1,1,1,1' is no bar: its time"),
        (f"{HEADER},ticker\n5,1,1,1,1,A\n6,1,1,1,1,B\n", "those before are of 'A', a stream is of"),
        ("time,open,high,low\n5,1,1,1\n", "no column for close; give a header line time,open,high"),
        (f"{HEADER}\n5,1_0,10,10,10\n", "row 0: '5,1_0,10,10,10' is no bar: '1_0' is no number"),
        (f"{HEADER}\n5,1,1,1,1,9\n", "it has 6 cells for 5 columns"),
        (f"{HEADER}\n5,1,1,1\n", "'5,1,1,1' is no bar: it has 4 cells for 5 columns"),
        (f"{HEADER}\n{'1' * 140_000},1,1,1,1\n", "line 2: field larger than field limit"),
        ("", "stdin is empty"),
    ],
)
def test_lines_that_are_no_bars_are_named(text: str, words: str) -> None:
    stream, sink = mf.Stream(), io.StringIO()
    with pytest.raises(StreamError, match=r"^stdin") as caught:
        follow(stream, io.StringIO(text), sink)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sink.getvalue().count("\n") - bool(sink.getvalue()) == stream.num_bars  # those before


def test_a_line_may_end_before_columns_that_nobody_reads() -> None:
    stream = mf.Stream()
    follow(stream, io.StringIO(f"{HEADER},volume\n5,1,1,1,1,9\n6,1,1,1,1\n"), io.StringIO())
    assert stream.num_bars == 2
