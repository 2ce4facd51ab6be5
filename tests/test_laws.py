"""The laws that every column obeys, over the registry of columns, so that no new one skips any."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf
from moola_features.feature_pass import FeaturePass
from moola_features.segments import segment_starts
from tests.strategies import (
    MOST_BARS,
    POWERS_OF_TWO,
    SCALE_FACTORS,
    TickBars,
    config_name,
    configs,
    every_config,
    factors,
    hostile,
    scaled,
    tick_bars,
    to_bars,
    to_ohlc,
)

SCALE_TOLERANCE = 1e-6
SHIFT_TOLERANCE = 1e-5
RULES = ("atr", "early", "same_bar")

HOSTILE = hostile()
all_configs = pytest.mark.parametrize("config", every_config(), ids=config_name)
on_hostile_bars = pytest.mark.parametrize("name", sorted(HOSTILE))


# --- how results are compared ----------------------------------------------------------------


def assert_close(
    config: mf.FeatureConfig,
    actual: mf.Features,
    expected: mf.Features,
    tolerance: float,
) -> None:
    """Every column of the registry within a tolerance, and the same rows valid."""
    registry = mf.columns(config)
    assert expected.values.shape[1] == len(registry)
    for index, column in enumerate(registry):
        far = np.abs(actual.values[:, index] - expected.values[:, index]) > tolerance
        assert not far.any(), f"{column.name} differs in {far.sum()} rows, from {far.argmax()} on"
    np.testing.assert_array_equal(actual.valid, expected.valid)


def assert_same_bits(
    config: mf.FeatureConfig, actual: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    """Every column of the registry bit for bit; 0 and -0 are two things."""
    registry = mf.columns(config)
    assert actual.shape == expected.shape == (len(expected), len(registry))
    differs = actual.view(np.uint32) != expected.view(np.uint32)
    for index, column in enumerate(registry):
        rows = np.flatnonzero(differs[:, index])
        assert not len(rows), f"{column.name} differs in {len(rows)} rows, from {rows[:1]} on"


def assert_in_range(config: mf.FeatureConfig, values: NDArray[np.float32]) -> None:
    """Every value finite and inside its column's range."""
    assert np.isfinite(values).all()
    for index, column in enumerate(mf.columns(config)):
        # Bounds as a float32 column can hold them: 0.4 is no float32.
        low, high = np.float32(column.low), np.float32(column.high)
        inside = (values[:, index] >= low) & (values[:, index] <= high)
        assert inside.all(), f"{column.name} leaves [{low}, {high}] in row {inside.argmin()}"


def in_chunks(
    bars: mf.Bars, config: mf.FeatureConfig, cuts: Iterable[int], *, through_json: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Run one pass over pieces of the bars; between them its state may travel as JSON."""
    values = np.empty((len(bars), len(mf.columns(config))), np.float32)
    valid = np.empty(len(bars), np.bool_)
    last_time = None
    carried = FeaturePass(config)
    edges = [0, *sorted(cuts), len(bars)]
    for start, stop in itertools.pairwise(edges):
        piece = bars[start:stop]
        starts = segment_starts(piece.time, config.max_gap_ns, last_time)
        last_time = int(bars.time[stop - 1]) if stop else None
        carried.run(
            piece.open, piece.high, piece.low, piece.close, starts,
            values[start:stop], valid[start:stop],
        )  # fmt: skip
        if through_json:
            carried = FeaturePass.from_state(config, json.loads(json.dumps(carried.state())))
    return values, valid


def streamed(
    bars: mf.Bars, config: mf.FeatureConfig, *, saved_before: Iterable[int] = ()
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Feed a stream bar by bar; before some bars it is saved as JSON and made anew."""
    stream = mf.Stream(config)
    values = np.empty((len(bars), len(mf.columns(config))), np.float32)
    valid = np.empty(len(bars), np.bool_)
    saves = set(saved_before)
    rows = zip(*(array.tolist() for array in bars.arrays), strict=True)
    for i, row in enumerate(rows):
        if i in saves:
            stream = mf.Stream.from_state(json.loads(json.dumps(stream.state())))
        values[i] = stream.update(*row)
        valid[i] = stream.valid
    return values, valid


# --- scale -----------------------------------------------------------------------------------


@pytest.mark.kernels
@given(drawn=tick_bars(), config=configs(), factor=factors())
def test_scale(drawn: TickBars, config: mf.FeatureConfig, factor: float) -> None:
    expected = mf.compute(drawn.bars(), config)
    actual = mf.compute(scaled(drawn.bars(), factor), config)
    assert_close(config, actual, expected, SCALE_TOLERANCE)


@pytest.mark.kernels
@given(drawn=tick_bars(), config=configs(), factor=st.sampled_from(POWERS_OF_TWO))
def test_scale_by_powers_of_two(drawn: TickBars, config: mf.FeatureConfig, factor: float) -> None:
    expected = mf.compute(drawn.bars(), config)
    actual = mf.compute(scaled(drawn.bars(), factor), config)
    assert_same_bits(config, actual.values, expected.values)
    np.testing.assert_array_equal(actual.valid, expected.valid)


@all_configs
@on_hostile_bars
def test_scale_on_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    bars = HOSTILE[name].bars()
    expected = mf.compute(bars, config)
    for factor in SCALE_FACTORS:
        actual = mf.compute(scaled(bars, factor), config)
        assert_close(config, actual, expected, SCALE_TOLERANCE)
    for factor in POWERS_OF_TWO:
        actual = mf.compute(scaled(bars, factor), config)
        assert_same_bits(config, actual.values, expected.values)


@given(drawn=tick_bars(), config=configs(family="relativity"), factor=factors())
def test_scale_moves_no_swing(drawn: TickBars, config: mf.FeatureConfig, factor: float) -> None:
    expected = mf.swings(drawn.bars(), config)
    actual = mf.swings(scaled(drawn.bars(), factor), config)
    np.testing.assert_array_equal(actual.is_high, expected.is_high)
    np.testing.assert_array_equal(actual.index, expected.index)
    np.testing.assert_array_equal(actual.confirmed_index, expected.confirmed_index)
    np.testing.assert_array_equal(actual.price, expected.price * factor)


# --- shift -----------------------------------------------------------------------------------


def assert_shift_free(drawn: TickBars, config: mf.FeatureConfig, shift: int) -> None:
    expected = mf.compute(drawn.bars(), config)
    actual = mf.compute(drawn.bars(shift=shift), config)
    assert_close(config, actual, expected, SHIFT_TOLERANCE)


@pytest.mark.kernels
@given(drawn=tick_bars(), config=configs(family="relativity"), data=st.data())
def test_shift(drawn: TickBars, config: mf.FeatureConfig, data: st.DataObject) -> None:
    # By whole ticks, each price made from its own number of ticks: adding b to rounded prices
    # would change their differences, and with them ties, before the features see them. Downwards
    # a quarter of every price is left, as the tie margin is a share of the close.
    lowest, highest = int(drawn.ticks.min()), int(drawn.ticks.max())
    shift = data.draw(st.integers(-(lowest * 3 // 4), highest))
    assume(shift != 0)
    assert_shift_free(drawn, config, shift)


@pytest.mark.parametrize("config", every_config("relativity"), ids=config_name)
@on_hostile_bars
def test_shift_on_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    drawn = HOSTILE[name]
    for shift in (1, 997, int(drawn.ticks.max())):
        assert_shift_free(drawn, config, shift)


@pytest.mark.parametrize("config", every_config("relativity"), ids=config_name)
def test_shift_of_the_sample(sample_bars: mf.Bars, config: mf.FeatureConfig) -> None:
    expected = mf.compute(sample_bars, config)
    for shift in (0.25, -9_000.5, float(sample_bars.high.max())):  # on the grid of 0.25: exact
        moved = to_bars(sample_bars.time, to_ohlc(sample_bars) + shift)
        assert_close(config, mf.compute(moved, config), expected, SHIFT_TOLERANCE)


# --- causal ----------------------------------------------------------------------------------


def assert_causal(bars: mf.Bars, config: mf.FeatureConfig, lengths: Iterable[int]) -> None:
    whole = mf.compute(bars, config)
    for length in lengths:
        part = mf.compute(bars[:length], config)
        assert_same_bits(config, part.values, whole.values[:length])
        np.testing.assert_array_equal(part.valid, whole.valid[:length])


@pytest.mark.kernels
@given(drawn=tick_bars(most=160), config=configs())
def test_causal(drawn: TickBars, config: mf.FeatureConfig) -> None:
    assert_causal(drawn.bars(), config, range(1, len(drawn)))


@all_configs
@on_hostile_bars
def test_causal_on_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    assert_causal(HOSTILE[name].bars(), config, range(1, len(HOSTILE[name])))


@given(drawn=tick_bars(), config=configs(family="relativity"), data=st.data())
def test_swings_are_causal(drawn: TickBars, config: mf.FeatureConfig, data: st.DataObject) -> None:
    bars = drawn.bars()
    whole = mf.swings(bars, config)
    length = data.draw(st.integers(1, len(drawn)))
    part = mf.swings(bars[:length], config)
    known = whole.confirmed_index < length
    np.testing.assert_array_equal(part.index, whole.index[known])
    np.testing.assert_array_equal(part.price, whole.price[known])


# --- chunk-free ------------------------------------------------------------------------------


def assert_chunk_free(bars: mf.Bars, config: mf.FeatureConfig, cuts: Iterable[int]) -> None:
    whole = mf.compute(bars, config)
    for through_json in (False, True):
        values, valid = in_chunks(bars, config, cuts, through_json=through_json)
        assert_same_bits(config, values, whole.values)
        np.testing.assert_array_equal(valid, whole.valid)


@pytest.mark.kernels
@given(drawn=tick_bars(), config=configs(), data=st.data())
def test_chunk_free(drawn: TickBars, config: mf.FeatureConfig, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(drawn)), max_size=8))  # twice the same: no bars
    assert_chunk_free(drawn.bars(), config, cuts)


@all_configs
@on_hostile_bars
def test_chunk_free_on_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    bars = HOSTILE[name].bars()
    assert_chunk_free(bars, config, range(1, len(bars)))  # one bar at a time
    assert_chunk_free(bars, config, range(7, len(bars), 7))


@all_configs
@pytest.mark.parametrize("workers", [1, 2])
def test_no_bars_make_no_features(config: mf.FeatureConfig, workers: int) -> None:
    bars = HOSTILE[next(iter(HOSTILE))].bars()[:0]
    found = mf.compute(bars, config, workers=workers)
    assert found.values.shape == (0, len(config.names))
    assert found.valid.shape == (0,)
    assert found.segments.shape == (0, 2)
    swings = mf.swings(bars, config)
    assert [len(x) for x in (swings.is_high, swings.index, swings.confirmed_index)] == [0, 0, 0]
    assert swings.price.dtype == np.float64


# --- stream ----------------------------------------------------------------------------------


@pytest.mark.kernels
@given(drawn=tick_bars(), config=configs(), data=st.data())
def test_stream(drawn: TickBars, config: mf.FeatureConfig, data: st.DataObject) -> None:
    bars = drawn.bars()
    saved_before = data.draw(st.lists(st.integers(0, len(drawn) - 1), max_size=4))
    values, valid = streamed(bars, config, saved_before=saved_before)
    whole = mf.compute(bars, config)
    assert_same_bits(config, values, whole.values)
    np.testing.assert_array_equal(valid, whole.valid)


@all_configs
@on_hostile_bars
def test_stream_on_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    bars = HOSTILE[name].bars()
    values, valid = streamed(bars, config, saved_before=range(0, len(bars), 13))
    whole = mf.compute(bars, config)
    assert_same_bits(config, values, whole.values)
    np.testing.assert_array_equal(valid, whole.valid)


# --- range -----------------------------------------------------------------------------------


@pytest.mark.kernels
@given(drawn=tick_bars(), config=configs())
def test_range(drawn: TickBars, config: mf.FeatureConfig) -> None:
    assert_in_range(config, mf.compute(drawn.bars(), config).values)


@pytest.mark.kernels
@all_configs
@on_hostile_bars
@pytest.mark.parametrize("factor", [1.0, 1e-200, 1e140])
def test_range_on_hostile_bars(name: str, config: mf.FeatureConfig, factor: float) -> None:
    assert_in_range(config, mf.compute(HOSTILE[name].bars(factor=factor), config).values)


# --- local -----------------------------------------------------------------------------------


def assert_local(bars: mf.Bars, config: mf.FeatureConfig) -> int:
    """Each segment by itself gives what it gives among the others; returns their number."""
    whole = mf.compute(bars, config)
    for start, stop in whole.segments.tolist():
        alone = mf.compute(bars[start:stop], config)
        assert_same_bits(config, alone.values, whole.values[start:stop])
        np.testing.assert_array_equal(alone.valid, whole.valid[start:stop])
    return len(whole.segments)


@pytest.mark.kernels
@given(drawn=tick_bars(), config=configs())
def test_local(drawn: TickBars, config: mf.FeatureConfig) -> None:
    assert_local(drawn.bars(), config)


@pytest.mark.parametrize("config", every_config(), ids=config_name)
@pytest.mark.parametrize(
    ("name", "num_segments"), [("one long gap", 2), ("a gap at every bar", 140)]
)
def test_local_on_bars_with_gaps(name: str, num_segments: int, config: mf.FeatureConfig) -> None:
    cut = mf.FeatureConfig.from_dict({**config.to_dict(), "max_gap": "4h"})
    assert assert_local(HOSTILE[name].bars(), cut) == num_segments


# --- the same on long markets ----------------------------------------------------------------


@pytest.fixture(params=["sample", "real"])
def market(request: pytest.FixtureRequest) -> mf.Bars:
    """Bars that the project ships, and real ones where they are to be had."""
    bars: mf.Bars = request.getfixturevalue(f"{request.param}_bars")
    return bars


@pytest.mark.parametrize("rule", RULES)
def test_scale_on_a_market(market: mf.Bars, rule: str) -> None:
    config = mf.FeatureConfig(swing_rule=rule)
    expected = mf.compute(market, config)
    for factor in SCALE_FACTORS:
        actual = mf.compute(scaled(market, factor), config)
        assert_close(config, actual, expected, SCALE_TOLERANCE)
    for factor in (0.5, 2.0**20):
        actual = mf.compute(scaled(market, factor), config)
        assert_same_bits(config, actual.values, expected.values)


@all_configs
def test_range_on_a_market(market: mf.Bars, config: mf.FeatureConfig) -> None:
    assert_in_range(config, mf.compute(market, config).values)


@all_configs
def test_chunk_free_on_a_market(market: mf.Bars, config: mf.FeatureConfig) -> None:
    part = market[-300_000:]
    cuts = [1, 2, 9_000, 9_001, 65_536, 65_537, 131_072, 200_001]
    assert_chunk_free(part, config, [cut for cut in cuts if cut < len(part)])


@all_configs
def test_a_build_is_chunk_free(market: mf.Bars, config: mf.FeatureConfig, tmp_path: Path) -> None:
    part = market[-150_000:]  # of the real bars, three chunk files of the store
    mf.build(part, tmp_path / "bars.zarr", config)
    store = mf.open_store(tmp_path / "bars.zarr")
    whole = mf.compute(part, config)
    assert_same_bits(config, np.asarray(store.features), whole.values)
    np.testing.assert_array_equal(store.valid, whole.valid)
    np.testing.assert_array_equal(store.segments, whole.segments)


@all_configs
def test_stream_on_a_market(market: mf.Bars, config: mf.FeatureConfig) -> None:
    part = market[-20 * MOST_BARS :]
    values, valid = streamed(part, config, saved_before=[1, 500, 501, 1_000])
    whole = mf.compute(part, config)
    assert_same_bits(config, values, whole.values)
    np.testing.assert_array_equal(valid, whole.valid)


@all_configs
def test_causal_on_a_market(market: mf.Bars, config: mf.FeatureConfig) -> None:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 60_000, 20).tolist()
    assert_causal(market[:60_000], config, lengths)


@all_configs
def test_local_on_a_market(market: mf.Bars, config: mf.FeatureConfig) -> None:
    cut = mf.FeatureConfig.from_dict({**config.to_dict(), "max_gap": "30min"})
    assert assert_local(market[:100_000], cut) > 1
