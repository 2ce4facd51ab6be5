"""Hypothesis profiles and the market data that several test files read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, settings

import moola_features as mf

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample.parquet"
REAL = ROOT.parent / "shared" / "data" / "btcusd_1m.parquet"

# A series of 400 bars against a loop in Python takes its time; that is no fault of the strategy.
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile("dev", max_examples=40, deadline=None, suppress_health_check=SLOW)
settings.register_profile("ci", settings.get_profile("dev"), max_examples=150, derandomize=True)
settings.register_profile("nightly", settings.get_profile("dev"), max_examples=3_000)
# Kernels as plain Python, under NUMBA_DISABLE_JIT=1.
settings.register_profile("nojit", settings.get_profile("dev"), max_examples=10, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session")
def sample_bars() -> mf.Bars:
    """The bars that the project ships."""
    assert SAMPLE.exists(), f"{SAMPLE} is part of the repository and is missing"
    return mf.read_bars(SAMPLE)


@pytest.fixture(scope="session")
def real_bars() -> mf.Bars:
    """Millions of real one-minute bars, where they lie beside the repository."""
    if not REAL.exists():
        pytest.skip("the real bars are not beside this repository")
    frame = pl.read_parquet(REAL, columns=["timestamp", "open", "high", "low", "close"])
    prices = {name: frame[name].to_numpy() for name in ("open", "high", "low", "close")}
    time = frame["timestamp"].dt.epoch("ns").to_numpy().astype(np.int64)
    return mf.Bars(time=time, **prices)
