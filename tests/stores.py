"""Stores to verify and to damage, and how tests read what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

import moola_features as mf
from moola_features.store.layout import CHUNK_BARS, bar_arrays, chunk_path
from moola_features.times import time_text
from moola_features.verification import Check
from tests.strategies import to_bars

CHECKS = [
    "checksums", "bars", "segments", "recompute", "state", "attributes", "range",
    "causal", "local", "scale", "valid share", "density",
]  # fmt: skip
INPUT_CHECKS = ["input digest", "input bars"]


def frame_of(bars: mf.Bars, **columns: Any) -> pl.DataFrame:
    time = pl.Series(bars.time).cast(pl.Datetime("ns", "UTC"))
    prices = {name: getattr(bars, name) for name in ("open", "high", "low", "close")}
    return pl.DataFrame({"time": time, **prices, **columns})


def chunk_of(store: Path, name: str, bar: int = 0) -> NDArray[Any]:
    """A chunk file of a store as an array that writes through."""
    array = bar_arrays(11)[name]
    path = chunk_path(store, name, bar // CHUNK_BARS, array)
    return np.memmap(path, array.dtype, "r+", shape=array.chunk_shape)


def edit_attributes(store: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((store / "zarr.json").read_text())
    edit(document["attributes"])
    (store / "zarr.json").write_text(json.dumps(document))


def by_name(verification: mf.Verification) -> dict[str, Check]:
    return {check.name: check for check in verification.checks}


def failed(verification: mf.Verification) -> set[str]:
    """Checks that failed, but for the one of checksums, which any damage fails."""
    found = {check.name for check in verification.checks if check.passed is False}
    assert verification.passed is (not found)
    return found - {"checksums"}


def detail_of_failure(verification: mf.Verification, name: str) -> str:
    check = by_name(verification)[name]
    assert check.passed is False
    assert "\n" not in check.detail
    return check.detail


def place(store: Path, bar: int) -> str:
    return f"bar {bar:,} ({time_text(int(mf.open_store(store).time[bar]))})"


def bars_in(store: Path) -> mf.Bars:
    opened = mf.open_store(store)
    return to_bars(opened.time, np.asarray(opened.ohlc))
