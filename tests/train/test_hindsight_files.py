"""Labels of a store, made in hindsight: written, counted, refused, and never a feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import moola_features as mf
from moola_features.windows import Windows
from moola_train.config import RunConfig
from moola_train.errors import ConfigError, LabelsError
from moola_train.fit import fit
from moola_train.hindsight import LABELS, HindsightSettings, label_windows
from moola_train.labelling import LabellingReport, label_store
from moola_train.labels import read_labels
from moola_train.loaders import WindowLoader
from moola_train.order import BatchOrder
from moola_train.runs import WEIGHTS
from moola_train.splits import forward_chain, write_split
from moola_train.targets import make_targets
from tests.markets import tree
from tests.strategies import to_bars, to_ohlc
from tests.train.small import SETTINGS

LENGTH = 105
CLASSES = ("consolidation", "retracement", "none")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sample_bars: mf.Bars) -> mf.Store:
    return build(sample_bars, tmp_path_factory.mktemp("hindsight") / "sample.zarr")


def build(bars: mf.Bars, path: Path) -> mf.Store:
    opened = mf.open_store(mf.build(bars, path).path)
    assert isinstance(opened, mf.Store)
    return opened


def write(store: mf.Store, path: Path, **options: Any) -> tuple[LabellingReport, pl.DataFrame]:
    found = label_store(store, path, **{"stride": 13, **options})
    return found, pl.read_parquet(path)


# --- what is written --------------------------------------------------------------------------


def test_a_file_holds_what_the_labeller_says(store: mf.Store, tmp_path: Path) -> None:
    found, table = write(store, tmp_path / "labels.parquet", keep=LABELS)
    starts = store.windows(LENGTH, 13).starts
    expected = label_windows(store.time, store.ohlc, starts)
    used = expected.label >= 0
    assert table.columns == [
        "window_id", "label", "expansion_start", "expansion_end", "start_time", "source",
        "direction", "score",
    ]  # fmt: skip
    assert table["label"].to_list() == [LABELS[index] for index in expected.label[used]]
    for column, values in (("start", expected.start), ("end", expected.end)):
        np.testing.assert_array_equal(table[f"expansion_{column}"].fill_null(-1), values[used])
    np.testing.assert_array_equal(table["start_time"].cast(pl.Int64), store.time[starts[used]])
    np.testing.assert_array_equal(table["direction"], expected.direction[used])
    np.testing.assert_array_equal(table["score"], expected.score[used])
    assert set(table["source"]) == {"hindsight"}
    assert table["window_id"][0] == f"h-{table['start_time'][0].strftime('%Y-%m-%dT%H:%M:%SZ')}"
    assert (found.num_windows, sum(found.labels.values())) == (len(starts), used.sum())
    assert found.kept == found.labels == expected.counts()
    assert found.skipped == expected.skip_counts()


def test_what_is_kept_reads_back(store: mf.Store, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    found, table = write(store, path)
    labels = read_labels(path, store=store)
    assert labels.start_bar is not None
    again = label_windows(store.time, store.ohlc, labels.start_bar)
    for name, values in (("label", labels.type), ("start", labels.start), ("end", labels.end)):
        np.testing.assert_array_equal(getattr(again, name), values)
    assert set(table["label"]) == set(found.kept) == {"consolidation", "retracement"}
    assert sum(found.kept.values()) == len(table)


def test_none_reads_back_as_a_class_of_its_own(store: mf.Store, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    found, _ = write(store, path, keep=("none", "consolidation", "retracement"))
    labels = read_labels(path, classes=CLASSES, store=store)
    assert found.kept["none"] == (labels.type == 2).sum() > 10
    np.testing.assert_array_equal(labels.type == 2, labels.start == -1)


def test_the_same_store_gives_the_same_bytes(store: mf.Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(store, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_period_and_a_stride_choose_windows(store: mf.Store, tmp_path: Path) -> None:
    start, stop = "2020-01-08", "2020-01-15 12:00"
    every, table = write(store, tmp_path / "a.parquet", stride=1)
    some, within = write(store, tmp_path / "b.parquet", stride=1, start=start, stop=stop)
    windows = store.windows(LENGTH, 1, start=start, stop=stop)
    assert 0 < some.num_windows == len(windows) < every.num_windows
    inside = table["start_time"].cast(pl.Int64).is_in(store.time[windows.starts].tolist())
    assert within.equals(table.filter(inside))


def test_limits_count_what_they_skip(store: mf.Store, tmp_path: Path) -> None:
    found, table = write(store, tmp_path / "a.parquet", stride=1, keep=LABELS)
    assert found.skipped["gap"] > 500  # the market pauses every day
    assert found.skipped["edge"] == 10
    wide = HindsightSettings(max_gap_minutes=1e6, max_span_minutes=1e6)
    lax, more = write(store, tmp_path / "b.parquet", stride=1, keep=LABELS, settings=wide)
    assert lax.skipped == {"gap": 0, "span": 0, "edge": 10}
    assert lax.num_windows == found.num_windows == sum(found.skipped.values()) + len(table)
    assert len(more) == lax.num_windows - 10


def test_progress_ends_with_all(store: mf.Store, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    found, _ = write(
        store, tmp_path / "a", progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1] == (found.num_windows, found.num_windows)


def test_batches_leave_no_trace(
    store: mf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, tmp_path / "a")
    monkeypatch.setattr("moola_train.labelling._BATCH", 7)
    write(store, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"keep": ("rally",)}, ConfigError, "keep names 'rally'; the labels are consolidation, "),
        ({"start": "2031-01-01"}, LabelsError, "has no valid window of 105 bars there; give"),
        (
            {"settings": HindsightSettings(max_span_minutes=1)}, LabelsError,
            "windows of .*sample.zarr is labelled consolidation or retracement; keep more",
        ),
        ({"stride": 0}, mf.MoolaError, "stride is 0"),
    ],
)  # fmt: skip
def test_nothing_is_written_when_refused(
    store: mf.Store, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    path = tmp_path / "labels.parquet"
    path.write_text("as it was")
    with pytest.raises(error, match=words) as caught:
        label_store(store, path, **options)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "as it was"
    assert [file.name for file in tmp_path.iterdir()] == ["labels.parquet"]


# --- what is said in hindsight reaches no feature ---------------------------------------------


def test_what_decides_a_label_afterwards_is_in_no_feature(
    store: mf.Store, sample_bars: mf.Bars, tmp_path: Path
) -> None:
    """Bars behind a window turn its label; its features, rebuilt, keep every bit."""
    starts = store.windows(LENGTH, 13).starts
    before = label_windows(store.time, store.ohlc, starts)
    late = (before.label == 0) & (before.direction == 1) & (before.end >= 95)
    first = int(starts[np.flatnonzero(late)[-1]])
    ohlc = to_ohlc(sample_bars)
    ohlc[first + LENGTH :] *= 0.5
    changed = build(to_bars(sample_bars.time, ohlc), tmp_path / "changed.zarr")
    after = label_windows(changed.time, changed.ohlc, [first])
    assert LABELS[after.label[0]] == "none"
    np.testing.assert_array_equal(
        changed.features[: first + LENGTH].view(np.uint32),
        store.features[: first + LENGTH].view(np.uint32),
    )


def test_a_loader_yields_the_columns_of_the_store_and_no_others(
    store: mf.Store, tmp_path: Path
) -> None:
    path = tmp_path / "labels.parquet"
    files = tree(store.path)
    write(store, path)
    assert tree(store.path) == files
    labels = read_labels(path, store=store)
    assert labels.start_bar is not None
    loader = WindowLoader(
        Windows(store.features, labels.start_bar, LENGTH),
        BatchOrder(len(labels), len(labels), seed=17, shuffle=False),
        device="cpu", targets=make_targets(labels),
    )  # fmt: skip
    (batch,) = loader
    bars = labels.start_bar + np.arange(LENGTH)[:, None]
    assert batch["features"].shape[2] == len(store.config.names)
    np.testing.assert_array_equal(batch["features"].numpy(), store.features[bars])


def test_a_model_is_fitted_to_the_same_inputs_whatever_else_the_file_says(
    store: mf.Store, tmp_path: Path
) -> None:
    """Direction and score tell the future: a fit that saw them would end with other weights."""
    torch.set_num_threads(1)
    path, told = tmp_path / "labels.parquet", tmp_path / "told.parquet"
    _, table = write(store, path, stride=208, keep=CLASSES)
    table.with_columns(direction=-pl.col("direction"), score=pl.lit(7.0)).write_parquet(told)
    labels = read_labels(path, classes=CLASSES, store=store)
    write_split(forward_chain(labels, val_share=0.2, test_share=0.1), tmp_path / "split.json")
    config = RunConfig.from_dict(
        {**SETTINGS, "data": {"batch_size": 8, "classes": ",".join(CLASSES)}, "loop": {"epochs": 1}}
    )
    weights = []
    for source in (path, told):
        run = tmp_path / source.stem
        fit(store, source, tmp_path / "split.json", run, config)
        weights.append((run / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]
