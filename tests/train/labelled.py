"""Labelled windows made by hand, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

import moola_features as mf
from moola_train.targets import LabelledWindows

CLASSES = ("consolidation", "retracement")
LENGTH = 105


def windows_at(
    start_bars: Sequence[int], *, base_id: Sequence[str] | None = None, warmup_bars: int = 20
) -> LabelledWindows:
    """Anchored windows w0, w1, ... that begin at these bars of a store."""
    count = len(start_bars)
    names = tuple(f"w{row}" for row in range(count))
    return LabelledWindows(
        window_id=names,
        base_id=names if base_id is None else tuple(base_id),
        type=np.arange(count) % 2,
        start=np.full(count, 40),
        end=np.full(count, 47),
        classes=CLASSES,
        length=LENGTH,
        start_time=np.asarray(start_bars, np.int64) * 60_000_000_000,
        start_bar=np.asarray(start_bars, np.int64),
        warmup_bars=warmup_bars,
        store={"name": "bars.zarr", "sha256": "5" * 64},
    )


def prices(count: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Windows of bars that hold together, float64 [N, 105, 4]."""
    rng = np.random.default_rng(seed)
    close = 100 + np.cumsum(rng.normal(size=(count, LENGTH)), axis=1)
    opened = close + rng.normal(size=close.shape)
    high = np.maximum(opened, close) + rng.random(close.shape)
    low = np.minimum(opened, close) - rng.random(close.shape)
    return np.stack([opened, high, low, close], axis=-1)


def contained(count: int, **columns: Any) -> pl.DataFrame:
    """A table of windows that hold their own prices."""
    table: dict[str, Any] = {
        "window_id": [f"w{row}" for row in range(count)],
        "label": [CLASSES[row % 2] for row in range(count)],
        "expansion_start": [40 + row % 10 for row in range(count)],
        "expansion_end": [50 + row % 10 for row in range(count)],
        "features": prices(count).tolist(),
    }
    return pl.DataFrame({**table, **columns})


def anchored(times: Sequence[Any] | pl.Series, **columns: Any) -> pl.DataFrame:
    """A table of windows that begin at these times."""
    table: dict[str, Any] = {
        "window_id": [f"w{row}" for row in range(len(times))],
        "label": [CLASSES[row % 2] for row in range(len(times))],
        "expansion_start": [40] * len(times),
        "expansion_end": [47] * len(times),
        "start_time": times,
    }
    return pl.DataFrame({**table, **columns})


def at_bars(store: mf.Store, bars: Sequence[int], **columns: Any) -> pl.DataFrame:
    """A table of windows that begin at these bars of a store."""
    return anchored(store.time[np.asarray(bars, np.int64)].tolist(), **columns)
