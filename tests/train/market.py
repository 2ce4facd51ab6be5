"""A synthetic market labelled in hindsight: small, and with something in it to be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

import moola_features as mf
from moola_features.synth import synthesise
from moola_train.config import RunConfig
from moola_train.labelling import label_store
from moola_train.labels import read_labels
from moola_train.splits import forward_chain, write_split
from tests.train.small import Task

FITTING = RunConfig.from_dict(
    {
        "model": {"preset": "jade-span", "hidden": 16, "input_dropout": 0.0},
        "data": {"batch_size": 32},
        "optimiser": {"learning_rate": 1e-2},
        "loop": {"epochs": 5, "device": "cpu"},
    }
)


def make_market(folder: Path, *, num_bars: int = 40_000) -> Task:
    """A store, hindsight labels of its windows, and a split."""
    mf.build(synthesise(num_bars, seed=5).bars, folder / "bars.zarr")
    store = mf.open_store(folder / "bars.zarr")
    path = folder / "labels.parquet"
    kept = ("consolidation", "retracement")
    label_store(store, path, stride=26, start=None, stop=None, keep=kept)
    return split_again(Task(store, path, folder / "split.json"), val_share=0.25, test_share=0.15)


def with_shuffled_labels(task: Task, folder: Path) -> Task:
    """The same windows, each with the label of another one."""
    frame = pl.read_parquet(task.labels)
    order = np.random.default_rng(0).permutation(len(frame)).tolist()
    told = ("label", "expansion_start", "expansion_end")
    shuffled = frame.with_columns(frame[name].gather(order) for name in told)
    return relabelled(task, folder, shuffled, val_share=0.25, test_share=0.15)


def relabelled(
    task: Task,
    folder: Path,
    frame: pl.DataFrame,
    *,
    classes: tuple[str, ...] = ("consolidation", "retracement"),
    val_share: float = 0.2,
    test_share: float = 0.2,
) -> Task:
    """Other labels of the same store, and a split of them."""
    frame.write_parquet(folder / "labels.parquet")
    changed = Task(task.store, folder / "labels.parquet", folder / "split.json")
    return split_again(changed, classes=classes, val_share=val_share, test_share=test_share)


def split_again(
    task: Task,
    *,
    classes: tuple[str, ...] = ("consolidation", "retracement"),
    val_share: float,
    test_share: float,
) -> Task:
    """Write the task's split."""
    labels = read_labels(task.labels, classes=classes, store=task.store)
    write_split(forward_chain(labels, val_share=val_share, test_share=test_share), task.split)
    return task
