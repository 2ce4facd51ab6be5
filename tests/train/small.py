"""A store, labels and a split that are small enough to train on within a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

import moola_features as mf
from moola_features.synth import synthesise
from moola_train.labels import read_labels
from moola_train.splits import forward_chain, write_split
from tests.train.labelled import at_bars, contained

SETTINGS: dict[str, Any] = {
    # The preset of the most heads, and something to draw.
    "model": {
        "preset": "jade-compact", "hidden": 8, "input_dropout": 0.0, "head_dropout": 0.3,
    },
    "data": {"batch_size": 8},
    "loop": {"epochs": 2, "device": "cpu", "log_steps": 2},
}  # fmt: skip
FLAGS = (
    "--preset", "jade-compact", "--set", "model.hidden=8", "--set", "model.input_dropout=0.0",
    "--set", "model.head_dropout=0.3",
    "--batch-size", 8, "--epochs", 2, "--device", "cpu", "--set", "loop.log_steps=2",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a run reads; without a store where windows hold their own prices."""

    store: mf.Store | None
    labels: Path
    split: Path


def make_bars(num_bars: int = 6_000) -> mf.Bars:
    """A synthetic market in bars of eight minutes: few of them are many days."""
    bars = synthesise(num_bars, seed=5).bars
    prices = {name: getattr(bars, name) for name in ("open", "high", "low", "close")}
    return mf.Bars(time=bars.time[0] + 8 * (bars.time - bars.time[0]), **prices)


def make_task(folder: Path, *, num_bars: int = 6_000) -> Task:
    """A synthetic market as a store, and labels all over it."""
    mf.build(make_bars(num_bars), folder / "bars.zarr")
    store = mf.open_store(folder / "bars.zarr")
    assert isinstance(store, mf.Store)
    starts = store.windows(105, 130).starts.tolist()
    return _write(folder, at_bars(store, starts, **_spans(len(starts))), store)


def make_contained_task(folder: Path) -> Task:
    """Windows that hold their own prices."""
    return _write(folder, contained(30), None)


def _spans(count: int) -> dict[str, Any]:
    starts = [30 + 7 * row % 40 for row in range(count)]
    return {
        "expansion_start": starts,
        "expansion_end": [start + 4 + row % 6 for row, start in enumerate(starts)],
    }


def _write(folder: Path, frame: pl.DataFrame, store: mf.Store | None) -> Task:
    labels, split = folder / "labels.parquet", folder / "split.json"
    frame.write_parquet(labels)
    windows = read_labels(labels, store=store)
    write_split(forward_chain(windows, val_share=0.2, test_share=0.2), split)
    return Task(store, labels, split)
