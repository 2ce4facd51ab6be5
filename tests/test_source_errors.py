"""Sources that cannot be read, and the memory that reading takes."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

import moola_features as mf
from moola_features.bars.checks import PRICES
from moola_features.bars.sources import open_source
from moola_features.errors import BarsError, BarsNotFoundError, MoolaError
from tests.bar_formats import (
    BARS,
    FILES,
    FORMATS,
    MINUTE_NS,
    NUM_BARS,
    START_NS,
    as_frame,
    assert_same,
    make_bars,
    parquet_file,
    polars_parquet,
    written,
)

# --- what cannot be read ----------------------------------------------------------------------


def message_of(source: Any, **options: Any) -> str:
    with pytest.raises(MoolaError) as caught:
        list(open_source(source, **options).batches())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BarsNotFoundError, match=r"nq.parquet: no such file"):
        mf.read_bars(tmp_path / "nq.parquet")
    with pytest.raises(FileNotFoundError):
        mf.read_bars(str(tmp_path / "nowhere" / "nq.csv"))


@pytest.mark.parametrize(
    "symbols", [[["A"]] * NUM_BARS, [{"a": 1}] * NUM_BARS, [b"\xff"] * NUM_BARS]
)
def test_symbols_that_are_no_text(symbols: list[Any], tmp_path: Path) -> None:
    frame = as_frame().with_columns(symbol=pl.Series(symbols))
    frame.write_parquet(tmp_path / "nq.parquet")
    for source in (frame, tmp_path / "nq.parquet"):
        message = message_of(source)
        assert f"symbol is column 'symbol' of type {frame['symbol'].dtype} such as" in message
        assert message.endswith("not text; convert it, or map symbol to another column")


def test_a_folder(tmp_path: Path) -> None:
    assert message_of(tmp_path).endswith("is a folder; give one file of bars")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_file(as_frame(), tmp_path)

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the permissions themselves do not stop root
    assert "may not be read; change its permissions" in message_of(path)


@pytest.mark.parametrize("data", [b"", b"\n\n  \n", gzip.compress(b"", mtime=0)])
@pytest.mark.parametrize("name", ["b.csv", "b.parquet"])
def test_an_empty_file(name: str, data: bytes, tmp_path: Path) -> None:
    assert "is empty" in message_of(written(data, tmp_path / name))


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_without_rows(kind: str, tmp_path: Path) -> None:
    source = FORMATS[kind](as_frame().clear(), tmp_path)
    assert message_of(source).endswith("there are no bars; give at least one")


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_header_alone(end: bytes, tmp_path: Path) -> None:
    path = written(b"time,open,high,low,close" + end, tmp_path / "b.csv")
    assert message_of(path).endswith("there are no bars; give at least one")


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("b.parquet", b"time,open\n1,2\n", "is not Parquet, it begins with b'time,open"),
        ("b.feather", b"FEA1....", "is not Arrow IPC, it begins with b'FEA1"),
        ("b.arrow", b"nothing", "is not Arrow IPC"),
        ("b.csv", b"PK\x03\x04\x00\x00", "is neither Parquet, Arrow nor CSV text in UTF-8"),
        ("b.csv", "time,open\n".encode("utf-16"), "is neither Parquet, Arrow nor CSV text"),
        ("b.csv", b"PAR1 and no more", "damaged or cut off"),
        (
            "b.gz",
            gzip.compress(b"PAR1 and more", mtime=0),
            "is parquet packed with gzip; unpack it",
        ),
        ("b.csv.gz", b"\x1f\x8bnothing", "damaged or cut off"),
        ("b.csv", b"time,open,high,low,close\n1,1,1,1\n", "damaged or cut off: CSV parse error"),
        ("b.csv", b"time,open,high,low,close\n1,\xff,1,1,1\n", "invalid UTF8"),
        ("b.csv", b"1577836800,1,1,1,1\n1577836860,1,1,1,1\n", "is no header; add one"),
    ],
)
def test_files_that_are_not_what_they_seem(
    name: str, data: bytes, text: str, tmp_path: Path
) -> None:
    path = written(data, tmp_path / name)
    message = message_of(path)
    assert message.startswith(f"{path}: ")
    assert text in message


@pytest.mark.parametrize("name", ["b.csv", "b.dat", "b"])
def test_content_is_told_by_the_first_bytes(name: str, tmp_path: Path) -> None:
    for kind in ("parquet", "feather", "arrow stream", "csv gz"):
        data = FILES[kind](as_frame(), tmp_path).read_bytes()
        assert_same(mf.read_bars(written(data, tmp_path / name)), BARS)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["parquet", "polars parquet", "csv gz", "feather", "polars ipc"])
def test_files_that_were_cut_off(kind: str, share: float, tmp_path: Path) -> None:
    path = FILES[kind](as_frame(make_bars(2_000)), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "damaged or cut off" in message_of(path)


def test_damage_inside_a_file(tmp_path: Path) -> None:
    path = polars_parquet(as_frame(make_bars(2_000)).drop("id"), tmp_path)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\x55" * 56  # the header of the first page
    path.write_bytes(data)
    assert "damaged or cut off" in message_of(path)


def test_damaged_text_in_arrow_files(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 5, 1 << 30, 15], np.int32))
    names = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"NQ" * 8))
    table = as_frame(make_bars(3)).to_arrow().append_column("symbol", names)
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_batch(table.to_batches()[0])
    assert "damaged or cut off" in message_of(tmp_path / "b.arrow")


@pytest.mark.parametrize("kind", ["parquet", "polars", "lists", "pandas"])
@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["abc"] * NUM_BARS, r"open is column 'open' of type String such as 'abc', not numbers"),
        (["1.5"] * NUM_BARS, r"of type String such as '1.5', not numbers; convert it to float64"),
        ([True] * NUM_BARS, r"open is column 'open' of type Boolean such as True, not numbers"),
        ([None] * NUM_BARS, r"row 0 .*: open is None, not a finite number"),
        ([float("nan")] * NUM_BARS, r"row 0 .*: open is (nan|None), not a finite number"),
    ],
)
def test_columns_that_are_not_numbers(
    kind: str, values: list[Any], text: str, tmp_path: Path
) -> None:
    frame = as_frame().with_columns(pl.Series("open", values))
    with pytest.raises(BarsError, match=text):
        mf.read_bars(FORMATS[kind](frame, tmp_path))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (42, "source is a int; give a path, a Polars or pandas frame"),
        ({"time": [1, 2], "open": [1.0], **{x: [1.0, 1.0] for x in PRICES[1:]}}, "lengths differ"),
        ({"time": [1], "open": [[1.0]], **{x: [1.0] for x in PRICES[1:]}}, "of type List"),
        ({"time": [1, "x"], **{x: [1.0, 1.0] for x in PRICES}}, "column 'time' cannot be read"),
        ({"time": 5, **{x: [1.0] for x in PRICES}}, "column 'time' cannot be read"),
        ({"time": [2**70], **{x: [1.0] for x in PRICES}}, "column 'time' cannot be read"),
        (pl.LazyFrame({"a": [1]}).select("b"), "<polars lazyframe>: damaged .*unable to find col"),
    ],
)
def test_things_that_are_no_source(source: Any, text: str) -> None:
    with pytest.raises(BarsError, match=text):
        mf.read_bars(source)


def test_a_mode_that_does_not_exist() -> None:
    with pytest.raises(BarsError, match="on_bad_bars is 'skip'; choose one of error, drop"):
        mf.read_bars(BARS, on_bad_bars="skip")


# --- memory -----------------------------------------------------------------------------------

# Not ru_maxrss, which a new program inherits from the one that started it.
MEASURE = """
import re, sys
from pathlib import Path
from moola_features.bars.sources import open_source

def peak_kb_after_reading(path):
    for _ in open_source(path, batch_bars=16_384).batches():
        pass
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak_kb_after_reading(sys.argv[1])
print(peak_kb_after_reading(sys.argv[2]) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["parquet", "one group", "csv"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = []
    for name, num_bars in (("small", 300_000), ("large", 2_000_000)):
        price = rng.random(num_bars)  # random bits do not compress
        frame = pl.DataFrame({"time": START_NS + np.arange(num_bars) * MINUTE_NS})
        frame = frame.with_columns(pl.Series(column, price) for column in PRICES)
        paths.append(tmp_path / name)
        if kind == "csv":
            frame.write_csv(paths[-1])
        else:
            rows = num_bars if kind == "one group" else 65_536
            table = frame.to_arrow()
            pyarrow.parquet.write_table(table, paths[-1], row_group_size=rows)
    root = Path(mf.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    growth_bytes = int(done.stdout) * 1024
    extra_bytes = paths[1].stat().st_size - paths[0].stat().st_size
    assert growth_bytes < extra_bytes / 2
