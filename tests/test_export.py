"""Export: plain files that hold what the store holds, split so that nothing leaks."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import moola_features as mf
from moola_features import export
from moola_features.errors import ConfigError, OutputError, StoreNotFoundError, WindowError
from moola_features.export import export_store
from moola_features.splits import split_windows
from moola_features.times import time_text
from tests.strategies import to_bars, to_ohlc

NUM_BARS = 12_000
LENGTH = 105


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    """A store of several segments."""
    path = tmp_path_factory.mktemp("export") / "bars.zarr"
    bars = mf.synthesise(NUM_BARS, seed=2).bars
    opened: mf.Store = mf.open_store(
        mf.build(bars, path, mf.FeatureConfig(max_gap="30min", context=True)).path
    )
    assert len(opened.segments) > 5
    return opened


@pytest.fixture(scope="module")
def exported(store: mf.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "plain"
    return export_store(store, folder).path


def load(folder: Path, name: str) -> NDArray[Any]:
    return np.load(folder / name, allow_pickle=False)  # type: ignore[no-any-return]


def load_json(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())  # type: ignore[no-any-return]


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def grid_of(store: mf.Store, length: int, stride: int) -> list[int]:
    return [
        start
        for first, stop in store.segments.tolist()
        for start in range(first, stop - length + 1, stride)
    ]


# --- windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "stride"), [(105, 52), (30, 7), (105, 500)])
def test_windows_are_the_stores(store: mf.Store, tmp_path: Path, length: int, stride: int) -> None:
    report = export_store(store, tmp_path / "plain", length=length, stride=stride)
    features = load(report.path, "features_19d.npy")
    mask = load(report.path, "valid_mask.npy")
    starts = load(report.path, "starts.npy")
    assert starts.tolist() == grid_of(store, length, stride)
    assert starts.dtype == np.int64
    assert (features.shape, features.dtype) == ((len(starts), length, 19), np.float32)
    assert features.flags.c_contiguous
    assert (mask.shape, mask.dtype) == ((len(starts), length), np.bool_)
    for window, start in enumerate(starts.tolist()):
        bars = slice(start, start + length)
        np.testing.assert_array_equal(features[window], store.features[bars])
        np.testing.assert_array_equal(mask[window], store.valid[bars])
    np.testing.assert_array_equal(load(report.path, "start_time.npy"), store.time[starts])
    assert report.num_windows == len(starts)
    assert report.num_valid_windows == mask.all(axis=1).sum()
    assert 0 < report.num_valid_windows < report.num_windows


def test_all_valid_windows_are_in_the_stores_index(store: mf.Store, exported: Path) -> None:
    starts, mask = load(exported, "starts.npy"), load(exported, "valid_mask.npy")
    index = set(store.windows().starts.tolist())
    assert [start in index for start in starts.tolist()] == mask.all(axis=1).tolist()


def test_batches_do_not_show(
    store: mf.Store, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BATCH_BYTES", 3 * LENGTH * 19 * 4 + 1)
    again = export_store(store, tmp_path / "plain").path
    for path in exported.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_windows_mean_the_same_as_plain_numpy_files(exported: Path) -> None:
    """A reader without moola may map them."""
    mapped = np.load(exported / "features_19d.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(mapped, load(exported, "features_19d.npy"))


# --- splits ----------------------------------------------------------------------------------


def test_splits_hold_valid_windows_forward_in_time(exported: Path) -> None:
    told = load_json(exported, "splits.json")
    starts, mask = load(exported, "starts.npy"), load(exported, "valid_mask.npy")
    assert list(told["windows"]) == ["train", "val", "test"]
    in_order = [number for numbers in told["windows"].values() for number in numbers]
    assert in_order == sorted(set(in_order))
    assert mask[in_order].all()
    num_valid = mask.all(axis=1).sum()
    shares = [len(numbers) / num_valid for numbers in told["windows"].values()]
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.03)
    assert told["shares"] == {"train": 0.7, "val": 0.15, "test": 0.15}
    assert (np.diff(starts) > 0).all()


@pytest.mark.parametrize("stride", [1, 13, 52])
def test_splits_share_no_bar_and_no_warm_up(store: mf.Store, tmp_path: Path, stride: int) -> None:
    folder = export_store(store, tmp_path / "plain", stride=stride, bars=False).path
    told = load_json(folder, "splits.json")
    starts = load(folder, "starts.npy")
    warmup = store.config.first_valid_index
    assert told["purge_bars"] == LENGTH - 1 + warmup == 164
    assert "164 bars (window_length 105 - 1 + 60 bars of warm-up)" in told["purge_rule"]
    valid = load(folder, "valid_mask.npy").all(axis=1)
    splits = list(told["windows"].values())
    assert all(splits)
    for before, after in itertools.pairwise(splits):
        end_of_last = starts[before[-1]] + LENGTH
        assert starts[after[0]] - warmup >= end_of_last
        # Nothing is left out in vain: each valid window in between would break the rule.
        between = np.arange(before[-1] + 1, after[0])
        assert (starts[between[valid[between]]] - warmup < end_of_last).all()


def test_files_for_each_split(store: mf.Store, exported: Path, tmp_path: Path) -> None:
    report = export_store(store, tmp_path / "plain", per_split=True, bars=False)
    pairs = {
        f"{name}_{what}.npy"
        for name in ("train", "val", "test")
        for what in ("features_19d", "valid_mask")
    }
    rest = {"starts.npy", "start_time.npy", "splits.json", "metadata.json"}
    assert files_in(report.path) == pairs | rest
    whole = load(exported, "features_19d.npy")
    windows = load_json(report.path, "splits.json")["windows"]
    assert windows == load_json(exported, "splits.json")["windows"]
    for name, numbers in windows.items():
        features = load(report.path, f"{name}_features_19d.npy")
        np.testing.assert_array_equal(features, whole[numbers])
        mask = load(report.path, f"{name}_valid_mask.npy")
        assert mask.shape == features.shape[:2]
        assert mask.all()
        assert report.splits[name] == len(numbers)


def test_other_splits(store: mf.Store, tmp_path: Path) -> None:
    shares = {"past": 0.5, "future": 0.25}
    report = export_store(store, tmp_path / "plain", splits=shares, bars=False)
    windows = load_json(report.path, "splits.json")["windows"]
    assert list(windows) == ["past", "future"]
    # The last quarter is in neither.
    assert windows["future"][-1] < 0.8 * report.num_windows


def test_a_split_for_which_nothing_is_left(store: mf.Store, tmp_path: Path) -> None:
    few = mf.build(
        to_bars(store.time[:400], np.asarray(store.ohlc[:400])), tmp_path / "few.zarr"
    ).path
    report = export_store(few, tmp_path / "plain", per_split=True)
    assert report.splits == {"train": 4, "val": 0, "test": 0}
    assert load(report.path, "val_features_11d.npy").shape == (0, LENGTH, 11)
    assert load(report.path, "val_valid_mask.npy").shape == (0, LENGTH)


@given(
    steps=st.lists(st.integers(1, 60), min_size=1, max_size=120),
    purge=st.integers(0, 200),
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    used=st.floats(0.1, 1),
)
def test_splits_are_apart_whatever_the_windows(
    steps: list[int], purge: int, weights: list[float], used: float
) -> None:
    starts = np.cumsum(steps)
    shares = {f"s{i}": used * weight / sum(weights) for i, weight in enumerate(weights)}
    splits = split_windows(starts, purge, shares)
    assert list(splits) == list(shares)
    taken = [split for split in splits.values() if len(split)]
    for split in taken:
        assert (np.diff(split) == 1).all()
    for before, after in itertools.pairwise(taken):
        assert starts[after[0]] - starts[before[-1]] > purge
    assert sum(map(len, taken)) <= round(used * len(starts)) + 1
    if purge == 0 and used == 1:
        assert sum(map(len, taken)) == len(starts)


# --- bars ------------------------------------------------------------------------------------


def test_bars_are_the_stores(store: mf.Store, exported: Path) -> None:
    frame = pl.read_parquet(exported / "bars.parquet")
    prices = ("open", "high", "low", "close")
    assert frame.columns == ["time", *prices, *store.names, "valid"]
    assert frame.schema["time"] == pl.Datetime("ns", "UTC")
    np.testing.assert_array_equal(frame["time"].dt.epoch("ns").to_numpy(), store.time)
    for index, name in enumerate(prices):
        np.testing.assert_array_equal(frame[name].to_numpy(), store.ohlc[:, index])
    for index, name in enumerate(store.names):
        assert frame.schema[name] == pl.Float32
        np.testing.assert_array_equal(frame[name].to_numpy(), store.features[:, index])
    np.testing.assert_array_equal(frame["valid"].to_numpy(), store.valid)


def test_exported_bars_build_the_same_store(
    store: mf.Store, exported: Path, tmp_path: Path
) -> None:
    again = mf.open_store(
        mf.build(exported / "bars.parquet", tmp_path / "s.zarr", store.config).path
    )
    np.testing.assert_array_equal(again.features, store.features)


# --- the rest --------------------------------------------------------------------------------


def test_metadata_tells_what_the_files_are(store: mf.Store, exported: Path) -> None:
    told = load_json(exported, "metadata.json")
    assert told["format"] == "moola-export"
    assert told["features"] == store.attributes["features"]
    assert mf.FeatureConfig.from_dict(told["config"]) == store.config
    assert told["input"]["sha256"] == store.attributes["input"]["sha256"]
    assert (told["window_length"], told["stride"]) == (LENGTH, 52)
    assert told["num_bars"] == NUM_BARS
    assert told["num_windows"] == len(load(exported, "starts.npy"))
    windows = load_json(exported, "splits.json")["windows"]
    assert told["splits"] == {name: len(numbers) for name, numbers in windows.items()}
    assert told["first_time"] == "2020-01-05T23:00:00Z"
    assert told["last_time"] == time_text(int(store.time[-1]))
    assert told["store_versions"] == store.attributes["versions"]
    assert told["export_versions"]["moola"] == mf.__version__
    assert set(told["files"]) == files_in(exported) - {"metadata.json"}
    for name, file in told["files"].items():
        assert file["meaning"]
        if name.endswith(".npy"):
            array = load(exported, name)
            assert (list(array.shape), array.dtype.name) == (file["shape"], file["dtype"])


def test_the_report_is_plain_json(store: mf.Store, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    report = export_store(
        store, tmp_path / "plain", progress=lambda done, total: calls.append((done, total))
    )
    told = json.loads(json.dumps(report.to_dict()))
    assert told["path"] == str(tmp_path / "plain")
    assert told["files"] == {path.name: path.stat().st_size for path in report.path.iterdir()}
    assert told["num_bars"] == NUM_BARS
    total = report.num_windows + NUM_BARS
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


def test_windows_or_bars_alone(store: mf.Store, tmp_path: Path) -> None:
    bars = export_store(store.path, tmp_path / "bars", windows=False)
    assert files_in(bars.path) == {"bars.parquet", "metadata.json"}
    assert (bars.num_windows, bars.splits) == (0, {})
    windows = export_store(store.path, tmp_path / "windows", bars=False)
    assert "bars.parquet" not in files_in(windows.path)
    assert "features_19d.npy" in files_in(windows.path)


def test_returns_are_exported_alike(store: mf.Store, tmp_path: Path) -> None:
    bars = to_bars(store.time, np.asarray(store.ohlc))
    built = mf.build(bars, tmp_path / "s.zarr", mf.FeatureConfig(family="returns")).path
    folder = export_store(built, tmp_path / "plain").path
    json.loads((folder / "metadata.json").read_text(), parse_constant=pytest.fail)
    frame = pl.read_parquet(folder / "bars.parquet")
    assert frame.columns[5] == "log_return_open"


def test_memory_does_not_grow_with_the_export(
    store: mf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BATCH_BYTES", 2**20)
    export_store(store, tmp_path / "plain")  # compiles and imports what it needs
    tracemalloc.start()
    try:
        report = export_store(store, tmp_path / "large", stride=1, bars=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.files["features_19d.npy"] > 80 * 2**20
    assert peak < 8 * 2**20


# --- errors ----------------------------------------------------------------------------------


def test_a_place_inside_a_store_is_refused(store: mf.Store) -> None:
    with pytest.raises(OutputError, match=r"is inside the store .*choose another folder"):
        export_store(store, store.path / "plain")
    assert not (store.path / "plain").exists()


def test_the_current_folder_and_empty_text(
    store: mf.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="empty text"):
        export_store(store, "")
    assert files_in(tmp_path) == set()
    report = export_store(store, ".", windows=False)
    assert set(report.files) == files_in(tmp_path) == {"bars.parquet", "metadata.json"}


def test_an_earlier_export_is_replaced_only_by_force(store: mf.Store, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    export_store(store, folder, bars=False)  # an empty folder may be filled
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="is not empty; pass --force"):
        export_store(store, folder, windows=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    export_store(store, folder, windows=False, force=True)
    assert files_in(folder) == {"bars.parquet", "metadata.json"}


@pytest.mark.parametrize("name", ["metadata.json", "thesis.txt"])
def test_nothing_but_an_export_is_ever_replaced(store: mf.Store, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(OutputError, match="holds no earlier export, so it is kept"):
        export_store(store, folder, force=True)
    with pytest.raises(OutputError, match="holds no earlier export"):
        export_store(store, store.path, force=True)
    assert files_in(folder) == {name}


def test_a_target_that_cannot_be(store: mf.Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file; give a folder"):
        export_store(store, tmp_path / "file", force=True)
    with pytest.raises(OutputError, match="there is no folder"):
        export_store(store, tmp_path / "a" / "b")


def test_an_export_that_is_interrupted_leaves_nothing(store: mf.Store, tmp_path: Path) -> None:
    def interrupt(_done: int, _total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_store(store, tmp_path / "plain", progress=interrupt)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"stride": 0}, WindowError, "stride is 0"),
        ({"length": -1}, WindowError, "length is -1"),
        ({"length": 5_000}, WindowError, "no segment has 5000 bars in a row"),
        ({"splits": {"train": 0.9, "test": 0.2}}, ConfigError, "sum to 1.1"),
        ({"splits": {"train": 0}}, ConfigError, "'train' has share 0"),
        ({"splits": {"../up": 0.5}}, ConfigError, "'../up' names files"),
        ({"splits": {}}, ConfigError, "sum to 0"),
        ({"windows": False, "bars": False}, ConfigError, "nothing to write"),
        ({"windows": False, "per_split": True}, ConfigError, "nothing to write"),
    ],
)
def test_what_cannot_be_asked_for(
    store: mf.Store, tmp_path: Path, asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words.replace("..", r"\.\.")):
        export_store(store, tmp_path / "plain", **asked)
    assert files_in(tmp_path) == set()


def test_what_cannot_be_exported(store: mf.Store, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        export_store(tmp_path / "nothing.zarr", tmp_path / "plain")
    prices = to_ohlc(to_bars(store.time[:200], np.asarray(store.ohlc[:200])))
    names = ("open", "high", "low", "close")
    columns = {name: np.tile(prices[:, j], 2) for j, name in enumerate(names)}
    symbols = np.repeat(["NQ", "ES"], 200)
    frame = pl.DataFrame({"time": np.tile(store.time[:200], 2), **columns, "symbol": symbols})
    universe = mf.build(frame, tmp_path / "universe.zarr").path
    with pytest.raises(ConfigError, match="holds several instruments: NQ, ES"):
        export_store(universe, tmp_path / "plain")
    assert export_store(universe / "NQ", tmp_path / "plain").num_bars == 200
