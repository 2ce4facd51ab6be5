"""Measure long builds beside others: `python benchmarks/sustained.py --bars 200000000`.

Every contender is a process of its own on the same file, one after the other, turn by turn: reading
alone, writing alone, Polars with the six candle columns only, and the whole build with all eleven.
Needs 120 bytes of disk a bar below --folder. Writes the table into docs/sustained.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees its own folder only

from benchmarks.processes import Took, measure  # noqa: E402 - the path comes first
from benchmarks.report import quantity, replace_block  # noqa: E402

DOCUMENT = ROOT / "docs" / "sustained.md"
REAL = ROOT.parent / "shared" / "data" / "btcusd_1m.parquet"
SHORT_BARS = 2_630_217  # as many as the real bars
ROW_GROUP = 131_072
PRICES = ("open", "high", "low", "close")


def write_bars(path: Path, num_bars: int) -> None:
    """Write a long series: the real bars, or a synthetic market, again and again."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    import moola_features as mf

    bars = mf.read_bars(REAL) if REAL.exists() else mf.synthesise(SHORT_BARS).bars
    span = int(bars.time[-1] - bars.time[0]) + 60 * 10**9
    writer = None
    for first in range(0, num_bars, len(bars)):
        # Times begin in 1700, so that five hundred years of bars fit in.
        shift = first // len(bars) * span - 8_520_336_000 * 10**9
        time = bars.time - bars.time[0] + shift
        columns = {"timestamp": pa.array(time.astype(np.int64).view("M8[ns]"))}
        columns |= {name: pa.array(getattr(bars, name)) for name in PRICES}
        table = pa.table(columns)[: num_bars - first]
        if writer is None:
            writer = pq.ParquetWriter(
                path, table.schema, compression="zstd", use_dictionary=False,
                use_byte_stream_split=list(PRICES),
            )  # fmt: skip
        writer.write_table(table, row_group_size=ROW_GROUP)
    if writer is not None:
        writer.close()


def read_alone(source: Path) -> None:
    """Read and check every bar, as a build does, and forget it."""
    from moola_features.bars.sources import open_source

    for _ in open_source(source).batches():
        pass


def write_alone(folder: Path, num_bars: int) -> None:
    """Write as many bytes as the build's chunk files have, by its own writer, in two threads."""
    from concurrent.futures import ThreadPoolExecutor

    from moola_features.files import replaced_folder
    from moola_features.store.layout import num_chunks
    from moola_features.store.writer import Rows, write_chunk

    buffers = [Rows.empty_chunk(11) for _ in range(2)]
    for buffer in buffers:
        buffer.features[...] = 0.5
        buffer.ohlc[...] = 1.5
    with replaced_folder(folder) as beside, ThreadPoolExecutor(2) as threads:
        for start in range(2):
            indices = range(start, num_chunks(num_bars), 2)
            threads.submit(lambda indices=indices, buffer=buffers[start]: [
                write_chunk(beside, index, buffer) for index in indices
            ])  # fmt: skip


def polars_alone(source: Path, target: Path) -> None:
    """Compute the six candle columns by expressions and sink them into a Parquet file."""
    import polars as pl

    from benchmarks.feature_peers import candle_expressions

    pl.scan_parquet(source).select(candle_expressions()).sink_parquet(target)


def run_contenders(source: Path, num_bars: int, folder: Path, turns: int) -> dict[str, list[Took]]:
    """Take turns; every contender is a process of its own."""
    script = [Path(__file__), "--contender"]
    store, plain, candles = folder / "bars.zarr", folder / "plain", folder / "candles.parquet"
    build = ["-m", "moola_features", "build", source, "-o", store, "--force"]
    commands: dict[str, Callable[[], list[str | Path]]] = {
        "read": lambda: [*script, "read", source],
        "write": lambda: [*script, "write", plain, str(num_bars)],
        "polars": lambda: [*script, "polars", source, candles],
        "build": lambda: build,
        "build 2": lambda: [*build, "--workers", "2"],
        "build 1": lambda: [*build, "--workers", "1"],
    }
    took: dict[str, list[Took]] = {name: [] for name in commands}
    for _ in range(turns):
        for name, command in commands.items():
            took[name].append(measure([str(part) for part in command()]))
            print(name, took[name][-1], flush=True)
            for path in (plain, store):
                _remove(path)
            candles.unlink(missing_ok=True)
    return took


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def table_of(results: dict[int, dict[str, list[Took]]]) -> str:
    """One line for each length and contender."""
    from moola_features.engine import resolve_workers

    workers = resolve_workers(None, waiting=1)
    names = {
        "read": "reading and checking alone",
        "write": "writing as many bytes alone, 2 threads",
        "polars": "Polars, the six candle columns, `sink_parquet`",
        "build": f"**the whole build, all 11 columns**, {workers} workers as by default",
        "build 2": "the same, 2 workers",
        "build 1": "the same, 1 worker",
    }
    lines = [
        "| bars | what | start to exit | bars/s | CPU time | peak memory |",
        "| --: | --- | --: | --: | --: | --: |",
    ]
    for num_bars, took in results.items():
        for name, each in took.items():
            wall, cpu, peak = (
                statistics.median(getattr(x, part) for x in each)
                for part in ("wall", "cpu", "peak_bytes")
            )
            lines.append(
                f"| {num_bars:,} | {names[name]} | {quantity(wall, 's')} | "
                f"{quantity(num_bars / wall, 'bars/s')} | {quantity(cpu, 's')} | "
                f"{quantity(peak, 'B')} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Measure, or be one of those that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", type=int, default=200_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--contender", nargs="+")
    arguments = parser.parse_args()
    if arguments.contender:
        name, first, *rest = arguments.contender
        if name == "read":
            read_alone(Path(first))
        elif name == "write":
            write_alone(Path(first), int(rest[0]))
        else:
            polars_alone(Path(first), Path(rest[0]))
        return 0
    results: dict[int, dict[str, list[Took]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for num_bars in (SHORT_BARS, arguments.bars):
            source = Path(folder) / "bars.parquet"
            write_bars(source, num_bars)
            results[num_bars] = run_contenders(source, num_bars, Path(folder), arguments.turns)
    replace_block(DOCUMENT, table_of(results))
    print(f"{DOCUMENT.relative_to(ROOT)} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
