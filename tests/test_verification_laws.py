"""Verification sees features that break a law, though they are stored as they were computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import moola_features as mf
from moola_features.feature_pass import FeaturePass
from tests.stores import (
    detail_of_failure,
    failed,
)

NUM_BARS = 4_000


@pytest.fixture(scope="module")
def bars() -> mf.Bars:
    return mf.synthesise(NUM_BARS, seed=3).bars


def broken_store(
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., None],
    bars: mf.Bars,
    path: Path,
) -> mf.Verification:
    """What is found of a store that was built and is verified by another pass than the true one."""
    monkeypatch.setattr(FeaturePass, "run", run)
    return mf.verify(mf.build(bars, path, mf.FeatureConfig(max_gap="30min")).path)


TRUE_RUN = FeaturePass.run


def test_a_look_ahead_is_seen(
    bars: mf.Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: FeaturePass, *arrays: NDArray[Any]) -> None:
        TRUE_RUN(self, *arrays)
        values = arrays[5]
        values[:-1, 6] = values[1:, 6]  # the next bar's

    found = broken_store(monkeypatch, run, bars, tmp_path / "s.zarr")
    assert {"causal"} <= failed(found) <= {"causal", "local"}
    assert "dist_to_prev_SH is" in detail_of_failure(found, "causal")


def test_a_look_ahead_that_happens_to_change_nothing_is_seen(
    bars: mf.Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bar of this market jumps so far, but those of another future do."""

    def run(self: FeaturePass, *arrays: NDArray[Any]) -> None:
        TRUE_RUN(self, *arrays)
        close, values = arrays[3], arrays[5]
        jump = np.abs(close[1:] / close[:-1] - 1) > 0.2
        values[:-1, 2] = np.where(jump, 0, values[:-1, 2])

    found = broken_store(monkeypatch, run, bars, tmp_path / "s.zarr")
    assert failed(found) == {"causal"}
    assert "body_pct is" in detail_of_failure(found, "causal")


def test_state_carried_into_the_next_segment_is_seen(
    bars: mf.Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: FeaturePass, *arrays: NDArray[Any]) -> None:
        fresh = self.carried["index"][0] == 0
        starts = arrays[4][:1] if fresh else arrays[4][:0]
        TRUE_RUN(self, *arrays[:4], starts, *arrays[5:])

    found = broken_store(monkeypatch, run, bars, tmp_path / "s.zarr")
    assert failed(found) == {"local"}
    assert "when its segment stands alone" in detail_of_failure(found, "local")


def test_an_epsilon_is_seen(bars: mf.Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: FeaturePass, *arrays: NDArray[Any]) -> None:
        TRUE_RUN(self, *arrays)
        open_, high, low, values = arrays[0], arrays[1], arrays[2], arrays[5]
        values[:, 0] = (open_ - low) / (high - low + 1e-6)

    found = broken_store(monkeypatch, run, bars, tmp_path / "s.zarr")
    assert failed(found) == {"scale"}
    told = detail_of_failure(found, "scale")
    assert "open_norm is" in told
    assert "with all prices times 7.77e-09" in told


def test_a_factor_of_two_must_leave_every_bit(
    bars: mf.Bars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: FeaturePass, *arrays: NDArray[Any]) -> None:
        TRUE_RUN(self, *arrays)
        values = arrays[5]
        values[:, 10] = np.where(arrays[3] < 1_000, np.nextafter(values[:, 10], 0), values[:, 10])

    found = broken_store(monkeypatch, run, bars, tmp_path / "s.zarr")
    assert failed(found) == {"scale"}
    # Decimal factors are allowed a rounding, so only a power of two gives this away.
    assert "with all prices times 9.53674e-07" in detail_of_failure(found, "scale")
