"""The package against its naive twins, on bars of every kind and under every configuration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf
from moola_features.windows import valid_starts
from tests import reference
from tests.strategies import (
    MOST_BARS,
    TickBars,
    config_name,
    configs,
    every_config,
    hostile,
    tick_bars,
    to_bars,
    to_ohlc,
    twin_settings,
)

# Float32 rounds a value of 16 to 30, the widest range there is, by up to 0.95e-6.
TOLERANCE = 1e-6

HOSTILE = hostile()
pytestmark = pytest.mark.kernels
all_configs = pytest.mark.parametrize("config", every_config(), ids=config_name)


def check_features(bars: mf.Bars, config: mf.FeatureConfig) -> None:
    """Values, validity, segments and names of a whole series."""
    ohlc = to_ohlc(bars)
    settings = twin_settings(config)
    expected = reference.features(bars.time, ohlc, **settings)
    actual = mf.compute(bars, config)
    assert actual.values.dtype == np.float32
    assert actual.valid.dtype == np.bool_
    assert actual.names == tuple(column.name for column in mf.columns(config))
    check_values(actual.values, expected, actual.names)
    np.testing.assert_array_equal(actual.valid, reference.valid(bars.time, ohlc, **settings))
    segments = reference.segments(bars.time, max_gap_ns=config.max_gap_ns)
    np.testing.assert_array_equal(actual.segments, segments)


def check_values(
    actual: NDArray[np.float32], expected: NDArray[np.float64], names: tuple[str, ...]
) -> None:
    """Compare [T, F] columns and name the first one that differs."""
    assert actual.shape == expected.shape
    for index, name in enumerate(names):
        np.testing.assert_allclose(
            actual[:, index].astype(np.float64),
            expected[:, index],
            rtol=0,
            atol=TOLERANCE,
            err_msg=name,
        )


def check_swings(bars: mf.Bars, config: mf.FeatureConfig) -> None:
    """Every swing, its bars and its price to the bit."""
    expected = reference.swings(bars.time, to_ohlc(bars), **twin_settings(config))
    actual = mf.swings(bars, config)
    assert actual.is_high.tolist() == [swing.is_high for swing in expected]
    assert actual.index.tolist() == [swing.index for swing in expected]
    assert actual.confirmed_index.tolist() == [swing.confirmed_index for swing in expected]
    assert actual.price.tolist() == [swing.price for swing in expected]


@given(drawn=tick_bars(), config=configs())
def test_compute(drawn: TickBars, config: mf.FeatureConfig) -> None:
    check_features(drawn.bars(), config)


@all_configs
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_compute_on_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    check_features(HOSTILE[name].bars(), config)


@given(drawn=tick_bars(), config=configs(family="relativity"))
def test_swings(drawn: TickBars, config: mf.FeatureConfig) -> None:
    check_swings(drawn.bars(), config)


@pytest.mark.parametrize("config", every_config("relativity"), ids=config_name)
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_swings_on_hostile_bars(name: str, config: mf.FeatureConfig) -> None:
    check_swings(HOSTILE[name].bars(), config)


@given(drawn=tick_bars(), period=st.sampled_from((1, 10, 30, 65)))
def test_swings_of_a_configuration_for_returns(drawn: TickBars, period: int) -> None:
    check_swings(drawn.bars(), mf.FeatureConfig(family="returns", atr_period=period))


@given(drawn=st.lists(tick_bars(), min_size=1, max_size=3), config=configs())
def test_transform_windows(drawn: list[TickBars], config: mf.FeatureConfig) -> None:
    length = min(len(bars) for bars in drawn)
    windows = np.stack([bars.ohlc()[:length] for bars in drawn])  # [N, K, 4]
    config = dataclasses.replace(config, window_length=length)
    actual = mf.transform_windows(windows, config)
    assert actual.dtype == np.float32
    no_gaps = np.arange(length)  # a window is one segment, whatever max_gap says
    for window, values in zip(windows, actual, strict=True):
        expected = reference.features(no_gaps, window, **twin_settings(config))
        check_values(values, expected, config.names)


@given(drawn=tick_bars(), config=configs(family="relativity"))
def test_prices_below_zero(drawn: TickBars, config: mf.FeatureConfig) -> None:
    highest = int(drawn.ticks.max())
    check_features(drawn.bars(shift=-2 * highest), config)


@all_configs
@pytest.mark.parametrize("factor", [1e-100, 1e-30, 1e30, 1e140])
def test_prices_of_absurd_size(factor: float, config: mf.FeatureConfig) -> None:
    check_features(HOSTILE["a market, then flat"].bars(factor=factor), config)


def test_times_at_both_ends_of_their_range() -> None:
    ends = np.iinfo(np.int64)
    time = np.array([ends.min + 1, ends.min + 2, 0, ends.max - 1, ends.max])
    check_features(
        to_bars(time, np.full((5, 4), 9.0)), mf.FeatureConfig(max_gap="4h", swing_rule="early")
    )
    two = time[[0, 4]]  # further apart than int64 can say
    check_features(to_bars(two, np.full((2, 4), 9.0)), mf.FeatureConfig(max_gap="4h"))


@all_configs
def test_sample(sample_bars: mf.Bars, config: mf.FeatureConfig) -> None:
    start = len(sample_bars) // 2
    part = sample_bars[start : start + 10 * MOST_BARS]
    check_features(part, config)
    if config.family == "relativity":
        check_swings(part, config)


@all_configs
@pytest.mark.parametrize("start", [0, 940_000, 2_400_000])
def test_real_bars(real_bars: mf.Bars, start: int, config: mf.FeatureConfig) -> None:
    part = real_bars[start : start + 10 * MOST_BARS]
    check_features(part, config)
    if config.family == "relativity":
        check_swings(part, config)


@given(drawn=tick_bars(), config=configs(), length=st.sampled_from((1, 2, 30, 105)))
def test_valid_windows(drawn: TickBars, config: mf.FeatureConfig, length: int) -> None:
    features = mf.compute(drawn.bars(), config)
    expected = reference.valid_window_starts(features.valid, features.segments, length=length)
    actual = valid_starts(features.valid, features.segments, length, 1)
    np.testing.assert_array_equal(actual, expected)
