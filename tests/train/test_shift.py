"""Windows that begin earlier or later: bars and targets move together, and no purge is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moola_features as mf
from moola_features.synth import synthesise
from moola_train.augment import Augment
from moola_train.config import AugmentConfig, RunConfig
from moola_train.errors import ConfigError
from moola_train.fit import fit
from moola_train.loaders import WindowLoader
from moola_train.order import BatchOrder
from moola_train.shift import SHIFT_KEYS, as_labelled, shifted, with_room
from moola_train.targets import LabelledWindows, make_targets
from tests.train.labelled import CLASSES, windows_at
from tests.train.small import SETTINGS, make_contained_task, make_task

LENGTH, REACH = 105, 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    path = tmp_path_factory.mktemp("shift") / "bars.zarr"
    mf.build(synthesise(3_000, seed=5).bars, path, mf.FeatureConfig(max_gap="30min"))
    opened = mf.open_store(path)
    assert isinstance(opened, mf.Store)
    return opened


def labels_of(begin: Any, start: Any, end: Any) -> LabelledWindows:
    names = tuple(f"w{row}" for row in range(len(begin)))
    return LabelledWindows(
        window_id=names, base_id=names, type=np.zeros(len(begin), np.int64),
        start=np.asarray(start), end=np.asarray(end), classes=CLASSES, length=LENGTH,
        start_bar=np.asarray(begin),
    )  # fmt: skip


def some_labels(store: mf.Store) -> LabelledWindows:
    random = np.random.default_rng(0)
    begin = store.windows(LENGTH, 31).starts
    start = random.integers(20, 80, len(begin))
    end = start + random.integers(2, 12, len(begin))
    start[::5] = end[::5] = -1
    return labels_of(begin, start, end)


def batch_of(store: mf.Store, labels: LabelledWindows) -> tuple[dict[str, Tensor], Any]:
    assert labels.start_bar is not None
    windows, room = with_room(
        store, labels.start_bar, labels.start, labels.end, length=LENGTH, reach=REACH
    )
    order = BatchOrder(len(windows), len(windows), seed=1, shuffle=False)
    loader = WindowLoader(windows, order, device="cpu", targets={**make_targets(labels), **room})
    return next(iter(loader)), room


def test_bars_and_targets_are_those_of_the_shifted_window(store: mf.Store) -> None:
    labels = some_labels(store)
    assert labels.start_bar is not None
    batch, room = batch_of(store, labels)
    torch.manual_seed(0)
    out = shifted(batch, REACH)
    moved = np.where(labels.start >= 0, labels.start - out["start"].numpy(), 0)  # the shift
    assert (moved >= room["shift_low"]).all()
    assert (moved <= room["shift_high"]).all()
    assert len(np.unique(moved)) > REACH
    begin = labels.start_bar + moved
    for row, first in enumerate(begin.tolist()):
        bars = store.features[first : first + LENGTH]
        assert np.array_equal(out["features"][:, row].numpy(), bars), row
    expands = labels.start >= 0
    wanted = make_targets(
        labels_of(
            begin, np.where(expands, labels.start - moved, -1),
            np.where(expands, labels.end - moved, -1),
        )
    )  # fmt: skip
    for name, values in wanted.items():
        assert np.array_equal(out[name].numpy(), values, equal_nan=name != "type"), name
    assert not set(SHIFT_KEYS) & set(out)


def test_shifted_windows_keep_to_the_part_to_valid_bars_and_to_usual_places(
    store: mf.Store,
) -> None:
    labels = some_labels(store)
    begin = labels.start_bar
    assert begin is not None
    _, room = batch_of(store, labels)
    segment = np.zeros(store.num_bars, np.int64)
    for number, (first, stop) in enumerate(store.segments):
        segment[first:stop] = number
    assert len(store.segments) > 1
    expands = labels.start >= 0
    for shift in (room["shift_low"], room["shift_high"]):
        bars = (begin + shift)[:, None] + np.arange(LENGTH)
        assert store.valid[bars].all()
        assert (segment[bars] == segment[begin][:, None]).all()
        assert (begin + shift >= begin.min()).all()
        assert (begin + shift <= begin.max()).all()
        start, end = (labels.start - shift)[expands], (labels.end - shift)[expands]
        assert start.min() >= labels.start[expands].min()
        assert start.max() <= labels.start[expands].max()
        assert end.max() <= labels.end.max()
        assert (np.abs(shift) <= REACH).all()
        assert (shift[~expands] == 0).all(), "without an expansion a window stays"
    # Not tighter than it must be: one bar further would break one of these rules.
    free = (room["shift_low"] == -REACH) & (room["shift_high"] == REACH)
    assert free.sum() > 10
    assert room["shift_low"][0] == 0
    assert room["shift_high"][-1] == 0


def test_as_labelled_is_the_window_itself(store: mf.Store) -> None:
    labels = some_labels(store)
    assert labels.start_bar is not None
    batch, _ = batch_of(store, labels)
    out = as_labelled(batch, REACH)
    bars = labels.start_bar[:, None] + np.arange(LENGTH)
    assert np.array_equal(out["features"].transpose(0, 1).numpy(), store.features[bars])
    for name, values in make_targets(labels).items():
        assert np.array_equal(out[name].numpy(), values, equal_nan=name != "type"), name
    plain = {"features": torch.zeros(LENGTH, 2, 3)}
    assert as_labelled(plain, REACH) == plain


def test_every_distance_is_drawn_alike(store: mf.Store) -> None:
    begin = store.windows(LENGTH, 1, segment=0).starts[200:300]
    labels = labels_of(begin, np.r_[20, np.full(98, 50), 80], np.r_[25, np.full(98, 55), 85])
    batch, room = batch_of(store, labels)
    row = 50
    assert room["shift_low"][row] == -REACH
    assert room["shift_high"][row] == REACH
    torch.manual_seed(0)
    drawn = [50 - int(shifted(batch, REACH)["start"][row]) for _ in range(500)]
    counts = np.bincount(np.array(drawn) + REACH, minlength=2 * REACH + 1)
    assert counts.min() > 5, "20 each, in the mean"
    assert counts.max() < 42


def test_a_run_with_shifts_and_mirror_resumes_to_the_bit(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    config = RunConfig.from_dict(SETTINGS).override(
        {"augment.shift": 8, "augment.mirror": 0.5, "model.preset": "jade-span"}
    )
    whole = fit(task.store, task.labels, task.split, tmp_path / "whole", config)
    part = config.override({"loop.max_steps": 3})
    fit(task.store, task.labels, task.split, tmp_path / "part", part)
    fit(task.store, task.labels, task.split, tmp_path / "part", config, resume=True)
    first, second = (
        (tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "part")
    )
    assert first == second
    assert whole.outcome.status == "finished"


def test_windows_without_bars_around_them_are_refused(tmp_path: Path) -> None:
    task = make_contained_task(tmp_path)
    config = RunConfig.from_dict(SETTINGS).override({"augment.shift": 8})
    with pytest.raises(ConfigError, match=r"augment\.shift is 8, but windows that hold their own"):
        fit(None, task.labels, task.split, tmp_path / "run", config)
    with pytest.raises(ConfigError, match="only labelled windows of a store"):
        Augment(AugmentConfig(shift=8))({"features": torch.zeros(LENGTH, 2, 3)})


def test_a_store_that_is_too_short_is_refused(store: mf.Store) -> None:
    labels = windows_at([30])
    assert labels.start_bar is not None
    with pytest.raises(ConfigError, match=r"augment\.shift is 2000, but .* has 3000 bars"):
        with_room(store, labels.start_bar, labels.start, labels.end, length=LENGTH, reach=2_000)
