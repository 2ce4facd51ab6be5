"""Prices turned upside down: the registry says what becomes of each column, and models see both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import moola_features as mf
from moola_train.augment import Augment
from moola_train.config import AugmentConfig
from moola_train.errors import ConfigError
from moola_train.mirror import MirrorImage
from tests.strategies import config_name, every_config

NUM_BARS, SETTLED = 1_200, 400
CENTER = 4_096.0  # that prices are turned about

CONFIGS = every_config()
all_configs = pytest.mark.parametrize("config", CONFIGS, ids=config_name)


def prices(*, seed: int = 3) -> NDArray[np.float64]:
    """A walk in eighths about 4,096, a tenth of the bars flat: doubles that turn exactly."""
    random = np.random.default_rng(seed)
    close = np.cumsum(random.integers(-8, 9, NUM_BARS))
    close -= np.linspace(close[0], close[-1], NUM_BARS).astype(np.int64)
    opened = np.concatenate([close[:1], close[:-1]])
    high = np.maximum(opened, close) + random.integers(0, 5, NUM_BARS)
    low = np.minimum(opened, close) - random.integers(0, 5, NUM_BARS)
    flat = random.random(NUM_BARS) < 0.1
    ohlc = np.stack([opened, high, low, close], axis=1)
    ohlc[flat] = close[flat, None]
    return CENTER + ohlc / 8


def features(config: mf.FeatureConfig, ohlc: NDArray[np.float64]) -> NDArray[np.float32]:
    columns = [np.ascontiguousarray(ohlc[:, column]) for column in range(4)]
    time = np.arange(len(ohlc)) * 60_000_000_000
    return mf.compute(mf.Bars(time, *columns), config).values


@all_configs
def test_features_of_mirrored_prices_are_mirrored_features(config: mf.FeatureConfig) -> None:
    ohlc = prices()
    turned = 2 * CENTER - ohlc[:, [0, 2, 1, 3]]
    up, down = features(config, ohlc), features(config, turned)
    place = {name: index for index, name in enumerate(config.names)}
    for index, column in enumerate(mf.columns(config)):
        mirror = column.mirror
        wanted = mirror.sign * up[:, place[mirror.column]]
        if mirror.offset:
            wanted = wanted + mirror.offset * (up[:, place["range_z"]] > 0)
        tolerance = 1e-6
        if column.group == "return":  # ln is straight only near the price they turn about
            far = np.abs(ohlc / CENTER - 1).max()
            assert far < 0.02
            tolerance = 3 * far * float(np.abs(up[:, index]).max())
        found = down[SETTLED:, index]
        assert np.abs(found - wanted[SETTLED:]).max() <= tolerance, column.name
        assert np.abs(found).max() > 0, f"{column.name}: nothing was compared"


@all_configs
def test_the_image_of_the_image_is_the_window_again(config: mf.FeatureConfig) -> None:
    image = MirrorImage(mf.columns(config))
    values = torch.from_numpy(features(config, prices()))
    assert torch.allclose(image(image(values)), values, atol=1e-6)
    assert not torch.allclose(image(values), values, atol=1e-2)


@all_configs
def test_images_stay_in_the_ranges_of_the_columns(config: mf.FeatureConfig) -> None:
    values = MirrorImage(mf.columns(config))(torch.from_numpy(features(config, prices())))
    for index, column in enumerate(mf.columns(config)):
        low, high = values[:, index].min().item(), values[:, index].max().item()
        assert column.low - 1e-6 <= low <= high <= column.high + 1e-6, column.name


def batch_of(count: int = 40) -> dict[str, Tensor]:
    table = torch.from_numpy(features(mf.FeatureConfig(), prices()))
    windows = torch.stack([table[first : first + 105] for first in range(100, 100 + count)], dim=1)
    return {"features": windows, "start": torch.full((count,), 7), "end": torch.full((count,), 9)}


def test_a_batch_is_turned_window_by_window_and_nothing_else_changes() -> None:
    columns = mf.columns(mf.FeatureConfig())
    batch, image = batch_of(), MirrorImage(columns)
    torch.manual_seed(0)
    out = Augment(AugmentConfig(mirror=0.5), columns)(batch)
    turned = [
        torch.equal(out["features"][:, window], image(batch["features"][:, window]))
        for window in range(40)
    ]
    kept = [
        torch.equal(out["features"][:, window], batch["features"][:, window])
        for window in range(40)
    ]
    assert all(one != other for one, other in zip(turned, kept, strict=True))
    assert 8 < sum(turned) < 32
    assert out["start"] is batch["start"]
    assert out["end"] is batch["end"]


def test_columns_that_are_not_known_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment\.mirror needs .*; set augment\.mirror = 0"):
        MirrorImage(mf.columns(mf.FeatureConfig())[:7])
    with pytest.raises(ConfigError, match="columns are not known"):
        Augment(AugmentConfig(mirror=0.5))


def test_targets_that_know_up_from_down_are_refused() -> None:
    augment = Augment(AugmentConfig(mirror=0.5), mf.columns(mf.FeatureConfig()))
    batch = batch_of() | {"candle": torch.zeros(40, 105, dtype=torch.int64)}
    with pytest.raises(ConfigError, match=r"augment\.mirror .*'candle'"):
        augment(batch)
