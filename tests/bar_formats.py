"""The same bars in every format that can be read."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

import moola_features as mf
from moola_features.bars.checks import PRICES, BarCheck, DroppedBars

MINUTE_NS = 60 * 10**9
START_NS = 1_577_836_800 * 10**9  # 2020-01-01
NUM_BARS = 60


def make_bars(num_bars: int = NUM_BARS, seed: int = 0, step_ns: int = MINUTE_NS) -> mf.Bars:
    """Bars of whole prices, which every type of number holds exactly."""
    rng = np.random.default_rng(seed)
    close = 500 + rng.integers(-9, 10, num_bars).cumsum()
    open_ = close - rng.integers(-9, 10, num_bars)
    return mf.Bars(
        time=START_NS + np.arange(num_bars) * step_ns,
        open=open_,
        high=np.maximum(open_, close) + rng.integers(0, 3, num_bars),
        low=np.minimum(open_, close) - rng.integers(0, 3, num_bars),
        close=close,
    )


BARS = make_bars()


def as_frame(bars: mf.Bars = BARS) -> pl.DataFrame:
    """Bars with times in UTC, between columns that are none of our business."""
    columns = {name: getattr(bars, name) for name in PRICES}
    times = pl.Series(bars.time).cast(pl.Datetime("ns", "UTC"))
    other = pl.Series("volume", ["n/a"] * len(bars))
    return pl.DataFrame({"id": other, "time": times, **columns, "volume": other})


def assert_same(actual: mf.Bars, expected: mf.Bars) -> None:
    for left, right in zip(actual.arrays, expected.arrays, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def drop_bad_bars(time: Any, **prices: Any) -> tuple[mf.Bars, DroppedBars]:
    """The good rows of arrays in memory, all in one piece, and what was left out."""
    check = BarCheck(on_bad_bars="drop")
    arrays = check((time, *(prices[name] for name in PRICES)))
    check.require_bars()
    return mf.Bars.trusted(arrays), check.dropped


def csv_text(frame: pl.DataFrame, separator: str = ",") -> bytes:
    return frame.write_csv(separator=separator).encode()


def written(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


def parquet_file(frame: pl.DataFrame, folder: Path) -> Path:
    pyarrow.parquet.write_table(frame.to_arrow(), folder / "b.parquet", row_group_size=13)
    return folder / "b.parquet"


def arrow_stream(frame: pl.DataFrame, folder: Path) -> Path:
    table = frame.to_arrow()
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=17)
    return folder / "stream.arrow"


def feather_file(frame: pl.DataFrame, folder: Path) -> Path:
    pyarrow.feather.write_feather(frame.to_arrow(), folder / "b.feather", chunksize=17)
    return folder / "b.feather"


def polars_parquet(frame: pl.DataFrame, folder: Path) -> Path:
    frame.write_parquet(folder / "polars.parquet")
    return folder / "polars.parquet"


def polars_ipc(frame: pl.DataFrame, folder: Path) -> Path:
    frame.write_ipc(folder / "polars.ipc", compression="zstd")
    return folder / "polars.ipc"


def lazy_frame(frame: pl.DataFrame, folder: Path) -> pl.LazyFrame:
    return pl.scan_parquet(parquet_file(frame, folder))


def pandas_index(frame: pl.DataFrame, folder: Path) -> Any:
    """A pandas frame whose index, unnamed where it holds timestamps, is the time."""
    pandas = frame.to_pandas().set_index("time")
    if isinstance(frame.schema["time"], pl.Datetime):
        pandas.index.name = None
    return pandas


# Takes a frame and a folder to write to, and returns a source.
Form = Callable[[pl.DataFrame, Path], Any]
FILES: dict[str, Form] = {
    "parquet": parquet_file,
    "polars parquet": polars_parquet,
    "csv": lambda frame, folder: written(csv_text(frame), folder / "b.csv"),
    "csv ;": lambda frame, folder: written(csv_text(frame, ";"), folder / "b.txt"),
    "csv tabs": lambda frame, folder: written(csv_text(frame, "\t"), folder / "b.tsv"),
    "csv bom crlf": lambda frame, folder: written(
        b"\xef\xbb\xbf" + csv_text(frame).replace(b"\n", b"\r\n"), folder / "dos.csv"
    ),
    "csv gz": lambda frame, folder: written(gzip.compress(csv_text(frame)), folder / "b.csv.gz"),
    "gz without suffix": lambda frame, folder: written(
        gzip.compress(csv_text(frame)), folder / "bars"
    ),
    "csv zstd": lambda frame, folder: written(
        pa.compress(csv_text(frame), "zstd", asbytes=True), folder / "b.csv.zst"
    ),
    "csv bz2": lambda frame, folder: written(bz2.compress(csv_text(frame)), folder / "b.csv.bz2"),
    "feather": feather_file,
    "polars ipc": polars_ipc,
    "arrow stream": arrow_stream,
}
FRAMES: dict[str, Form] = {
    "polars": lambda frame, folder: frame,
    "lazy": lazy_frame,
    "arrow": lambda frame, folder: frame.to_arrow(),
    "pandas": lambda frame, folder: frame.to_pandas(),
    "pandas index": pandas_index,
    "series": lambda frame, folder: frame.to_dict(as_series=True),
    "lists": lambda frame, folder: frame.to_dict(as_series=False),
}
FORMATS = FILES | FRAMES
