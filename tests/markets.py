"""Random markets, files of them, stores to hold against them, and interpreters of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import moola_features as mf
from tests.strategies import MINUTE_NS, START_NS, to_bars

ROOT = Path(__file__).parents[1]
CHUNK = 65_536  # bars in a chunk file


def walk(num_bars: int, *, seed: int = 7, gaps: Any = (), minutes: int = 600) -> mf.Bars:
    """Bars of a random walk on a tick grid, with a gap of so many minutes before some of them."""
    rng = np.random.default_rng(seed)
    close = np.cumsum(rng.integers(-8, 9, num_bars))
    close += 400 - close.min()
    opened = np.concatenate([close[:1], close[:-1]])
    high = np.maximum(opened, close) + rng.integers(0, 4, num_bars)
    low = np.minimum(opened, close) - rng.integers(0, 4, num_bars)
    steps = np.full(num_bars, MINUTE_NS)
    steps[np.asarray(gaps, dtype=np.int64)] *= minutes
    return to_bars(START_NS + np.cumsum(steps), np.column_stack((opened, high, low, close)) * 0.1)


def frame(bars: mf.Bars, symbol: str | None = None) -> pl.DataFrame:
    """Bars as a table, with a column for their symbol if they have one."""
    table = pl.DataFrame(
        {
            "time": bars.time.view("datetime64[ns]"),
            "open": bars.open,
            "high": bars.high,
            "low": bars.low,
            "close": bars.close,
        }
    )
    return table if symbol is None else table.with_columns(symbol=pl.lit(symbol))


def write(bars: mf.Bars, path: Path) -> Path:
    """Bars as a Parquet file."""
    frame(bars).write_parquet(path)
    return path


def as_bits(values: NDArray[np.floating[Any]]) -> NDArray[np.unsignedinteger[Any]]:
    """The bits of floats, which tell 0 from -0."""
    return values.view(f"u{values.dtype.itemsize}")


def assert_store_holds(store: Any, bars: mf.Bars, config: mf.FeatureConfig) -> None:
    """A store is what computing in memory gives, bit for bit, beside the bars themselves."""
    expected = mf.compute(bars, config)
    assert store.config == config
    assert store.names == expected.names
    assert len(store) == len(bars)
    np.testing.assert_array_equal(as_bits(store.features), as_bits(expected.values))
    np.testing.assert_array_equal(store.valid, expected.valid)
    np.testing.assert_array_equal(store.segments, expected.segments)
    np.testing.assert_array_equal(store.time, bars.time)
    np.testing.assert_array_equal(store.ohlc, np.column_stack(bars.arrays[1:]))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with what it holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden things among it."""
    return sorted(path.name for path in folder.iterdir())


def seen(folder: Path, pattern: str) -> list[Path]:
    """What has a name like this in a folder that somebody else is at work in."""
    try:
        return list(folder.glob(pattern))
    except (
        FileNotFoundError
    ):  # something was listed, and got another name before it was looked into
        return []


def run_python(script: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, warnings being errors, and expect success."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        cwd=ROOT, env=environment(options.pop("env", {})),
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found


def environment(extra: dict[str, str]) -> dict[str, str]:
    """What an interpreter of its own needs to find the package."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def refused(error: type[Exception], *arguments: Any, **options: Any) -> str:
    """The one line in which a build is refused."""
    with pytest.raises(error) as caught:
        mf.build(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
