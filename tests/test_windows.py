"""Windows: which are valid, by their definition, and gathering them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moola_features as mf
from moola_features.errors import ConfigError, WindowError, WindowIndexError
from moola_features.windows import valid_starts
from tests.markets import CHUNK, walk
from tests.strategies import MINUTE_NS, START_NS

NUM_BARS = 70_000  # two chunk files
CONFIG = mf.FeatureConfig(max_gap="2h")
kernels = pytest.mark.kernels


def naive_starts(valid, segments, length, stride, first=0, stop=None) -> list[int]:
    """Every start whose bars are valid and in one segment, from the first one by the stride."""
    found = []
    for bounds in segments:
        begin, end = np.clip(bounds, first, len(valid) if stop is None else stop)
        starts = range(begin, end - length + 1)
        good = [start for start in starts if all(valid[start : start + length])]
        found += [start for start in good if (start - good[0]) % stride == 0]
    return found


@st.composite
def stretches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Segments with a head that is not valid: some of it, none of it, or all."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    valid = [i >= head for n in sizes for head in [draw(st.integers(0, n))] for i in range(n)]
    stops = np.cumsum(sizes)
    return np.array(valid), np.column_stack((stops - sizes, stops)).astype(np.int64)


def as_store(valid: np.ndarray, segments: np.ndarray, length: int = 105) -> Any:
    """As much of a store as windows look at."""
    num_bars = len(valid)
    return SimpleNamespace(
        valid=valid, segments=segments, num_bars=num_bars,
        time=START_NS + MINUTE_NS * np.arange(num_bars),
        features=np.arange(num_bars * 2, dtype=np.float32).reshape(-1, 2),
        config=mf.FeatureConfig(window_length=length),
    )  # fmt: skip


def windows_of(store: Any, length: int | None = None, stride: int = 1, **options: Any):
    given = {"start": None, "stop": None, "segment": None, **options}
    return mf.Windows.of(store, length, stride, **given)


class TestStarts:
    @given(stretches(), st.integers(1, 12), st.integers(1, 7))
    def test_by_definition(self, drawn, length, stride):
        valid, segments = drawn
        actual = valid_starts(valid, segments, length, stride)
        assert actual.dtype == np.int64
        assert actual.tolist() == naive_starts(valid, segments, length, stride)

    @given(stretches(), st.integers(1, 6), st.integers(1, 3), st.data())
    def test_ranges_of_time(self, drawn, length, stride, data):
        store = as_store(*drawn)
        edge = st.integers(-2, store.num_bars + 2)
        first, stop = data.draw(edge), data.draw(edge)
        offset = data.draw(st.sampled_from((-1, 0, 1)))  # ns
        # A bar is in [start, stop) by the time at which it starts.
        times = START_NS + MINUTE_NS * np.array([first, stop]) + offset
        inside = np.searchsorted(store.time, times)
        found = windows_of(store, length, stride, start=int(times[0]), stop=int(times[1]))
        expected = naive_starts(*drawn, length, stride, int(inside[0]), int(inside[1]))
        assert found.starts.tolist() == expected

    @given(stretches(), st.integers(1, 6), st.data())
    def test_one_segment(self, drawn, length, data):
        valid, segments = drawn
        segment = data.draw(st.integers(0, len(segments) - 1))
        found = windows_of(as_store(valid, segments), length, segment=segment)
        expected = naive_starts(valid, segments[segment : segment + 1], length, 1)
        assert found.starts.tolist() == expected

    def test_of_a_real_store(self, store):
        for length, stride in ((None, 1), (105, 105), (1, 1), (500, 7), (40_000, 1)):
            found = store.windows(length, stride)
            assert found.length == (length or 105)
            expected = []
            for start, stop in store.segments.tolist():
                head = start + int(np.argmax(store.valid[start:stop]))
                expected += range(head, stop - found.length + 1, stride)
            assert found.starts.tolist() == expected
            assert len(found) == len(expected)
        assert len(store.windows(NUM_BARS)) == 0

    def test_length_of_the_configuration(self):
        store = as_store(np.ones(20, bool), np.array([[0, 20]]), length=16)
        assert windows_of(store).starts.tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("value", "bar"),
        [
            (START_NS + 60 * MINUTE_NS, 60),
            (np.int64(START_NS + 60 * MINUTE_NS), 60),
            (START_NS + 60 * MINUTE_NS + 1, 61),
            (np.datetime64("2020-09-13T13:26:40"), 60),
            (np.datetime64("2020-09-13"), 0),
            ("2020-09-13 13:26:40", 60),
            ("2020-09-13T13:26:40Z", 60),
            ("2020-09-13T15:26:40+02:00", 60),
            ("2020-09-14", 100),
            (datetime(2020, 9, 13, 13, 26, 40), 60),
            (datetime(2020, 9, 13, 15, 26, 40, 1, tzinfo=timezone(timedelta(hours=2))), 61),
            ("1700-01-01", 0),
            (datetime(2261, 1, 1, tzinfo=UTC), 100),
        ],
    )
    def test_forms_of_time(self, value, bar):
        store = as_store(np.ones(100, bool), np.array([[0, 100]]))
        assert windows_of(store, 1, start=value).starts.tolist() == list(range(bar, 100))
        assert windows_of(store, 1, stop=value).starts.tolist() == list(range(bar))


class TestRefused:
    @pytest.mark.parametrize("value", [0, -1, 1.0, "105", True, 2**63, 2**70])
    def test_lengths_and_strides(self, store, value):
        with pytest.raises(WindowError, match=f"length is {value!r}; it must be a whole number"):
            store.windows(length=value)
        with pytest.raises(WindowError, match=f"stride is {value!r}; it must be a whole number"):
            store.windows(stride=value)

    @pytest.mark.parametrize("value", [-1, 4, 10**30, "0", 1.0])
    def test_segments(self, store, value):
        with pytest.raises(WindowError) as caught:
            store.windows(segment=value)
        assert str(caught.value) == f"segment is {value!r}, the store has 4; give 0 to 3"

    @pytest.mark.parametrize("value", ["yesterday", "", 1.5, True, np.datetime64("NaT"), [1]])
    def test_no_times(self, store, value):
        with pytest.raises(ConfigError, match=r"start is .*; give a time such as '20"):
            store.windows(start=value)

    @pytest.mark.parametrize("value", ["1600-01-01", "9999-12-31", 2**63, np.datetime64("9999")])
    def test_times_that_no_bar_can_have(self, store, value):
        with pytest.raises(ConfigError, match=r"stop is .*; give a time of the years 1678 to 2261"):
            store.windows(stop=value)

    @pytest.mark.parametrize(
        ("starts", "length"), [([-1], 2), ([0, 9], 2), ([2**62], 2), ([0], 11)]
    )
    def test_starts_outside_the_table(self, starts, length):
        table = np.zeros((10, 2), np.float32)
        with pytest.raises(WindowError, match=f"windows of {length} bars fit into 10 bars from 0"):
            mf.Windows(table, np.array(starts), length)

    @pytest.mark.parametrize(
        "table",
        [np.zeros((10, 2)), np.zeros((10, 4), np.float32)[:, ::2], np.zeros(10, np.float32), [[1]]],
    )
    def test_tables_of_another_kind(self, table):
        with pytest.raises(WindowError, match="features are not C-contiguous float32"):
            mf.Windows(table, np.array([0]), 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Any:
    """Four segments, the second of them across two chunk files."""
    path: Path = tmp_path_factory.mktemp("windows") / "x.zarr"
    mf.build(walk(NUM_BARS, gaps=[20_000, 69_850, 69_900]), path, CONFIG)
    return mf.open_store(path)


@pytest.fixture
def small() -> mf.Windows:
    """Ten windows of three bars, two features, 1, 2, 3, ..."""
    table = np.arange(24, dtype=np.float32).reshape(12, 2)
    return mf.Windows(table, np.arange(10), 3)


def fancy(windows: mf.Windows, rows: Any) -> np.ndarray:
    """What gathering means, in numpy's words."""
    starts = windows.starts[np.asarray(rows, dtype=np.int64)]
    return windows.features[starts[:, None] + np.arange(windows.length)]


class TestIndexing:
    def test_is_a_view(self, store):
        windows = store.windows()
        for i in (0, 1, len(windows) - 1, -1, -len(windows), np.int64(7)):
            start = windows.starts[i]
            np.testing.assert_array_equal(windows[i], store.features[start : start + 105])
            assert np.shares_memory(windows[i], store.features)

    def test_across_chunk_files(self, store):
        windows = store.windows()
        rows = np.flatnonzero((windows.starts < CHUNK) & (windows.starts + 105 > CHUNK))
        assert len(rows) == 104
        expected = np.array(store.features)
        for row in rows.tolist():
            start = windows.starts[row]
            np.testing.assert_array_equal(windows[row], expected[start : start + 105])
        np.testing.assert_array_equal(windows.gather(rows), fancy(windows, rows))

    @pytest.mark.parametrize("index", [-11, 10, 10**30, -(10**30)])
    def test_outside(self, small, index):
        with pytest.raises(WindowIndexError) as caught:
            small[index]
        assert isinstance(caught.value, IndexError)
        assert str(caught.value) == (
            f"window {index} is outside the 10 windows there are; give -10 to 9"
        )

    @pytest.mark.parametrize("index", [1.0, "1", None, [1, 2], np.array([1, 2]), (1, 2)])
    def test_no_index(self, small, index):
        kind = type(index).__name__
        with pytest.raises(WindowIndexError, match=f"not {kind}; use gather"):
            small[index]

    def test_iterates(self, small):
        assert len(list(small)) == 10
        assert [window[0, 0] for window in small] == list(range(0, 20, 2))

    def test_in_words(self, small, store):
        assert repr(small) == "<Windows: 10 of 3 bars, 2 features>"
        assert repr(store.windows()).startswith("<Windows: 69,")


class TestGather:
    @kernels
    @given(
        st.lists(st.integers(-10, 9), max_size=40),
        st.sampled_from((np.int64, np.int32, np.int8, list)),
    )
    def test_as_fancy_indexing(self, rows, kind):
        table = np.random.default_rng(1).random((12, 2), np.float32)
        windows = mf.Windows(table, np.arange(10), 3)
        given_rows = rows if kind is list else np.array(rows, dtype=kind)
        found = windows.gather(given_rows)
        assert (found.dtype, found.shape) == (np.float32, (len(rows), 3, 2))
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, fancy(windows, rows))
        turned = windows.gather(given_rows, time_major=True)
        assert turned.flags.c_contiguous
        np.testing.assert_array_equal(turned, fancy(windows, rows).transpose(1, 0, 2))

    @kernels
    @pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
    def test_time_major_in_whole_blocks_and_parts_of_them(self, count):
        table = np.random.default_rng(7).random((200, 3), np.float32)
        windows = mf.Windows(table, np.random.default_rng(8).integers(0, 190, 64), 10)
        rows = np.random.default_rng(9).integers(-64, 64, count)
        out = np.full((10, count, 3), np.nan, np.float32)
        assert windows.gather(rows, out, time_major=True) is out
        np.testing.assert_array_equal(out, fancy(windows, rows).transpose(1, 0, 2))
        with pytest.raises(WindowError, match=rf"contiguous float32 \[10, {count + 1}, 3\]"):
            windows.gather([*rows, 0], out, time_major=True)

    @kernels
    @given(*[st.none() | st.integers(-14, 14) for _ in range(2)], st.integers(-4, 4))
    def test_slices(self, start, stop, step):
        table = np.random.default_rng(2).random((12, 2), np.float32)
        windows = mf.Windows(table, np.arange(10), 3)
        rows = slice(start, stop, step or None)
        np.testing.assert_array_equal(windows[rows], fancy(windows, np.arange(10)[rows]))

    def test_unsigned_rows(self, small):
        rows = np.array([9, 0], np.uint64)
        np.testing.assert_array_equal(small.gather(rows), fancy(small, rows))

    def test_from_a_store(self, store):
        windows = store.windows()
        rows = np.random.default_rng(3).integers(-len(windows), len(windows), 300)
        np.testing.assert_array_equal(windows.gather(rows), fancy(windows, rows))
        rows.flags.writeable = False
        np.testing.assert_array_equal(windows.gather(rows[::-3]), fancy(windows, rows[::-3]))

    @pytest.mark.parametrize(
        "starts", [np.arange(20)[::2], np.arange(10, dtype=">i8"), np.arange(10, dtype=np.uint8)]
    )
    def test_starts_of_any_layout(self, starts):
        windows = mf.Windows(np.random.default_rng(4).random((24, 2), np.float32), starts, 3)
        for rows in (np.arange(10), np.broadcast_to(np.int64(7), (5,)), np.array([3, -1], ">i4")):
            np.testing.assert_array_equal(windows.gather(rows), fancy(windows, rows))

    @kernels
    def test_into_a_buffer(self, small):
        out = np.full((2, 3, 2), np.nan, np.float32)
        assert small.gather([3, 4], out=out) is out
        np.testing.assert_array_equal(out, fancy(small, [3, 4]))
        part = np.zeros((4, 3, 2), np.float32)
        small.gather([3, 4], out=part[1:3])
        np.testing.assert_array_equal(part[1:3], out)
        assert not part[[0, 3]].any()

    @pytest.mark.parametrize(
        ("out", "found"),
        [
            (np.zeros((2, 3, 3), np.float32), r"float32 \[2, 3, 3\]"),
            (np.zeros((3, 3, 2), np.float32), r"float32 \[3, 3, 2\]"),
            (np.zeros((2, 3, 2)), r"float64 \[2, 3, 2\]"),
            (np.zeros((2, 3, 2), ">f4"), r">f4 \[2, 3, 2\]"),
            (np.zeros((2, 2, 3), np.float32).swapaxes(1, 2), r"float32 \[2, 3, 2\]"),
            (np.zeros((2, 3, 4), np.float32)[:, :, ::2], r"float32 \[2, 3, 2\]"),
            (np.frombuffer(bytes(48), np.float32).reshape(2, 3, 2), r"float32 \[2, 3, 2\]"),
            ([[0.0]], "list"),
        ],
    )
    def test_buffers_that_will_not_do(self, small, out, found):
        with pytest.raises(
            WindowError, match=rf"out is {found}; give writable, C-contiguous float32 \[2, 3, 2\]"
        ):
            small.gather([3, 4], out=out)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([0, 10], "rows[1] = 10 is outside the 10 windows there are; give -10 to 9"),
            ([0, 3, -11, 12], "rows[2] = -11 is outside"),
            (np.array([2**64 - 1], np.uint64), "rows[0] = 18446744073709551615 is outside"),
            (np.array([-128], np.int8), "rows[0] = -128 is outside"),
        ],
    )
    def test_rows_outside(self, small, rows, message):
        with pytest.raises(WindowIndexError) as caught:
            small.gather(rows)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        "rows", [[0.0], [True], [[0]], [[]], 3, None, ["0"], [[1], [1, 2]], slice(3)]
    )
    def test_rows_of_another_kind(self, small, rows):
        with pytest.raises(WindowError, match=r"rows are .*; give whole numbers, \[B\]"):
            small.gather(rows)

    @kernels
    def test_nothing(self, small):
        assert small.gather([]).shape == (0, 3, 2)
        assert small.gather([], time_major=True).shape == (3, 0, 2)
        assert small[3:3].shape == (0, 3, 2)
        assert small.gather([], out=np.empty((0, 3, 2), np.float32)).shape == (0, 3, 2)

    def test_of_no_windows(self, store):
        none = store.windows(NUM_BARS)
        assert len(none) == 0
        assert none.gather([]).shape == (0, NUM_BARS, 11)
        assert list(none) == []
        for look in (lambda: none[0], lambda: none[-1], lambda: none.gather([0])):
            with pytest.raises(WindowIndexError, match="does not exist: there are no windows"):
                look()

    def test_two_threads_at_once(self, store):
        windows = store.windows()
        rng = np.random.default_rng(5)
        rows = [rng.integers(0, len(windows), 500) for _ in range(16)]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(windows.gather, rows))
        for actual, asked in zip(found, rows, strict=True):
            np.testing.assert_array_equal(actual, fancy(windows, asked))
