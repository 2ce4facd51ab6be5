"""Starting, compiling, opening, checking, and making a market."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import moola_features as mf
from benchmarks.comparison import Contender, Row, compare, keep_rows
from benchmarks.processes import measure, run_python

LOAD_KERNELS = """
import importlib, json, sys, time
took = {}
for name in sys.argv[1:]:
    kernel = getattr(importlib.import_module(f"moola_features.kernels.{name}"), name)
    began = time.perf_counter()
    kernel.load()
    took[name] = time.perf_counter() - began, kernel.was_compiled
print(json.dumps(took))
"""
PAIRS = 9
MARKET_BARS = 1_800_000  # five years


def test_compilation(benchmark: Any, full: bool, tmp_path: Path) -> None:
    names = ("relativity", "returns", "gather") if full else ("gather",)
    loads: list[dict[str, tuple[float, bool]]] = []

    def load() -> None:
        printed = run_python(["-c", LOAD_KERNELS, *names], MOOLA_CACHE_DIR=str(tmp_path))
        loads.append(json.loads(printed))

    load()
    benchmark.pedantic(load, rounds=5)
    cold, *cached = loads
    rows = []
    for name in names:
        seconds, was_compiled = cold[name]
        assert was_compiled
        assert not any(again[name][1] for again in cached)
        what = f"kernel {name}, compiled: once for each machine and version"
        rows.append(Row.of(what, "s", [seconds], headline=name == "relativity"))
        taken = [again[name][0] for again in cached]
        rows.append(Row.of(f"kernel {name}, read from the cache", "s", taken))
    keep_rows(benchmark, rows)


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("import moola_features", ("-c", "import moola_features")),
        ("moola-features --help", ("-m", "moola_features", "--help")),
    ],
)
def test_process(benchmark: Any, what: str, arguments: tuple[str, ...]) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    benchmark.pedantic(
        lambda: ours.append(measure(arguments).wall),
        setup=lambda: theirs.append(measure(("-c", "pass")).wall),
        rounds=PAIRS,
        warmup_rounds=1,
    )
    row = Row.of(
        f"{what}, start to exit", "s", ours[-PAIRS:], theirs[-PAIRS:],
        beside="an empty Python process", is_rival=False,
    )  # fmt: skip
    keep_rows(benchmark, [row])


def test_open_store(benchmark: Any, store: mf.Store) -> None:
    import zarr

    def open_by_zarr() -> list[Any]:
        group = zarr.open_group(store.path, mode="r")
        return [group[name] for name in ("features", "time", "valid", "ohlc", "segments")]

    ours = Contender(name="opening a store", run=lambda: mf.open_store(store.path), headline=True)
    theirs = Contender(name="zarr-python, opening its five arrays", run=open_by_zarr)
    opened, arrays = compare(benchmark, ours, theirs, unit="s", rounds=50)
    assert opened.features.shape == arrays[0].shape


def test_verify(benchmark: Any, store: mf.Store, bar_file: Path) -> None:
    ours = Contender(
        name="verifying the store against its bars", run=lambda: mf.verify(store.path, bar_file)
    )
    (report,) = compare(benchmark, ours, unit="s", rounds=3, warmup_rounds=0)
    assert report.passed


def test_synthesise(benchmark: Any, full: bool) -> None:
    num_bars = MARKET_BARS if full else 20_000
    ours = Contender(
        name=f"making a synthetic market of {num_bars:,} bars",
        run=lambda: mf.synthesise(num_bars),
    )
    (market,) = compare(benchmark, ours, unit="s", rounds=5)
    assert len(market.bars) == num_bars
