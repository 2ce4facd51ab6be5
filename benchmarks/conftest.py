"""The data that is measured on, and what a report needs to know of the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import pytest

import moola_features as mf
from benchmarks.processes import ROOT
from moola_features.synth import write_market

REAL = ROOT.parent / "shared" / "data" / "btcusd_1m.parquet"
NUM_BARS = 2_630_217  # as many as the real bars
QUICK_BARS = 6_000
PACKAGES = ("numba", "numpy", "pandas", "polars", "pyarrow", "TA-Lib", "torch", "zarr")


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether to measure; else everything runs once, on little data."""
    return bool(pytestconfig.getoption("benchmark_enable"))


@pytest.fixture(scope="session")
def bar_file(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bars in a Parquet file."""
    if full and REAL.exists():
        return REAL
    path = tmp_path_factory.mktemp("bars") / "bars.parquet"
    write_market(path, num_bars=NUM_BARS if full else QUICK_BARS)
    return path


@pytest.fixture(scope="session")
def bars(bar_file: Path) -> mf.Bars:
    """The same bars in memory."""
    return mf.read_bars(bar_file)


@pytest.fixture(scope="session")
def store(bar_file: Path, tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    """A store of them."""
    path = tmp_path_factory.mktemp("store") / "bars.zarr"
    mf.build(bar_file, path)
    opened = mf.open_store(path)
    assert isinstance(opened, mf.Store)
    return opened


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Add what the report names beside its figures."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine_info["report"] = {
        "cpu": machine_info["cpu"].get("brand_raw", platform.processor()),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"moola": mf.__version__, "Python": platform.python_version(), **versions},
        "data": f"{NUM_BARS:,} "
        + (
            "real one-minute bars of BTC/USD (Bitfinex, 2013 to 2019, 18 % of them flat)"
            if REAL.exists()
            else "bars of the synthetic market (seed 17)"
        ),
    }
