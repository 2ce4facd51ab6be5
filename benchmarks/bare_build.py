"""The least that a build could be: read the bars, run the kernel once, write the bytes.

No checks, no bounded memory, no metadata, no provenance, nothing flushed, nothing atomic.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numba  # noqa: F401 - a build imports what it uses, and so does this
import numpy as np
import polars as pl
import zarr  # noqa: F401

from moola_features.config import FeatureConfig
from moola_features.feature_pass import FeaturePass

PRICES = ("open", "high", "low", "close")


def bare_build(source: Path, folder: Path) -> None:
    """Read Parquet with timestamp, open, high, low, close; write four files of plain values."""
    frame = pl.read_parquet(source, columns=["timestamp", *PRICES])
    open_, high, low, close = prices = [frame[name].to_numpy() for name in PRICES]
    time = frame["timestamp"].dt.epoch("ns").to_numpy()
    values = np.empty((len(frame), 11), np.float32)
    valid = np.empty(len(frame), np.bool_)
    start = np.zeros(1, np.int64)
    FeaturePass(FeatureConfig()).run(open_, high, low, close, start, values, valid)
    arrays = {"features": values, "time": time, "valid": valid, "ohlc": np.column_stack(prices)}
    for name, array in arrays.items():
        with open(folder / name, "wb", buffering=0) as file:
            file.write(array.data)


if __name__ == "__main__":
    bare_build(Path(sys.argv[1]), Path(sys.argv[2]))
