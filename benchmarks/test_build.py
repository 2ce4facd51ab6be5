"""A whole build, start to exit, beside a script that does the bare minimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import moola_features as mf
from benchmarks.comparison import Row, at_most, keep_rows
from benchmarks.processes import ROOT, Took, measure

PAIRS = 9
BARE = "a bare script: read, one kernel call, plain writes"


def test_build(benchmark: Any, bar_file: Path, tmp_path: Path) -> None:
    store, bare = tmp_path / "bars.zarr", tmp_path / "bare"
    bare.mkdir()
    build_command = ("-m", "moola_features", "build", bar_file, "-o", store, "--force")
    bare_command = (ROOT / "benchmarks" / "bare_build.py", bar_file, bare)
    ours: list[Took] = []
    theirs: list[Took] = []
    benchmark.pedantic(
        lambda: ours.append(measure(build_command)),
        setup=lambda: theirs.append(measure(bare_command)),
        rounds=PAIRS,
        warmup_rounds=1,  # fills the cache of kernels
    )
    keep_rows(benchmark, _rows(ours[-PAIRS:], theirs[-PAIRS:]))

    opened = mf.open_store(store)
    for name in ("features", "time", "valid", "ohlc"):
        stored = getattr(opened, name)
        written = np.fromfile(bare / name, stored.dtype).reshape(stored.shape)
        np.testing.assert_array_equal(stored, written)


def _rows(ours: list[Took], theirs: list[Took]) -> list[Row]:
    what = "a whole build, start to exit"
    peaks = [took.peak_bytes for took in ours]
    return [
        Row.of(
            what, "s", [took.wall for took in ours], [took.wall for took in theirs],
            beside=BARE, goal=at_most(1.6), is_rival=False, headline=True,
        ),
        Row.of(
            f"{what}: CPU time", "s", [took.cpu for took in ours], [took.cpu for took in theirs],
            beside=BARE, is_rival=False,
        ),
        Row.of(f"{what}: peak memory", "B", peaks, goal=at_most(600e6), headline=True),
        Row.of(
            f"{what}: peak memory", "B", peaks, [took.peak_bytes for took in theirs],
            beside=BARE, is_rival=False,
        ),
    ]  # fmt: skip
