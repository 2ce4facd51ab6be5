"""Verification: a good store passes, and each check fails when its thing is damaged."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings

import moola_features as mf
from moola_features.errors import StoreError, StoreNotFoundError
from moola_features.store.layout import CHUNK_BARS, SEGMENTS, bar_arrays, chunk_path
from tests.stores import (
    CHECKS,
    INPUT_CHECKS,
    bars_in,
    by_name,
    chunk_of,
    detail_of_failure,
    edit_attributes,
    failed,
    frame_of,
    place,
)
from tests.strategies import (
    MINUTE_NS,
    START_NS,
    TickBars,
    config_name,
    configs,
    every_config,
    tick_bars,
    to_bars,
    to_ohlc,
)

NUM_BARS = 4_000


@pytest.fixture(scope="module")
def bars() -> mf.Bars:
    return mf.synthesise(NUM_BARS, seed=3).bars


@pytest.fixture(scope="module")
def bars_file(bars: mf.Bars, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "bars.parquet"
    frame_of(bars).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def built(bars_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several segments."""
    path = tmp_path_factory.mktemp("built") / "bars.zarr"
    return mf.build(bars_file, path, mf.FeatureConfig(max_gap="30min")).path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "copy.zarr"))


# --- good stores -----------------------------------------------------------------------------


@pytest.mark.parametrize("config", every_config(), ids=config_name)
def test_a_good_store_passes(config: mf.FeatureConfig, bars: mf.Bars, tmp_path: Path) -> None:
    # Of a segment of one session 1 % is warm-up; with a gap at every minute it is everything.
    chosen = mf.FeatureConfig.from_dict({**config.to_dict(), "max_gap": "10min"})
    report = mf.build(bars, tmp_path / "s.zarr", chosen)
    verification = mf.verify(report.path, bars)
    assert failed(verification) == set()
    assert [check.name for check in verification.checks] == [*CHECKS, *INPUT_CHECKS]
    assert all(check.passed for check in verification.checks)
    assert [column.name for column in verification.columns] == list(chosen.names)


def test_every_bar_of_every_chunk_is_looked_at(tmp_path: Path) -> None:
    bars = mf.synthesise(CHUNK_BARS + 5_000).bars
    path = mf.build(bars, tmp_path / "s.zarr").path
    verification = mf.verify(path)
    assert verification.passed
    checks = by_name(verification)
    for name in ("bars", "recompute"):
        assert checks[name].numbers["num_bars"] == len(bars)
    assert checks["range"].numbers["num_values"] == 11 * len(bars)

    features = chunk_of(path, "features", CHUNK_BARS)
    last = len(bars) - 1 - CHUNK_BARS
    features[last + 1 :] = 99  # behind the last bar nothing is stored
    assert failed(mf.verify(path)) == set()
    features[last, 3] += np.float32(1e-7)
    found = detail_of_failure(mf.verify(path), "recompute")
    assert "1 of 70,536 bars differ" in found
    assert f"{place(path, len(bars) - 1)}: upper_wick_pct" in found


# Each example builds and verifies a store: a quarter of what other properties get.
@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(drawn=tick_bars(), config=configs())
def test_whatever_was_built_passes(drawn: TickBars, config: mf.FeatureConfig) -> None:
    """All but the gates: what there is to learn from depends on the bars."""
    assume(len(drawn) >= config.window_length)
    with tempfile.TemporaryDirectory() as folder:
        path = mf.build(drawn.bars(), Path(folder) / "s.zarr", config).path
        verification = mf.verify(path, drawn.bars())
    assert failed(verification) <= {"valid share", "density"}


def test_columns_tell_what_their_values_are_like(built: Path) -> None:
    features = mf.open_store(built).features
    for index, column in enumerate(mf.verify(built).columns):
        values = features[:, index]
        registered = mf.columns(mf.open_store(built).config)[index]
        assert (column.name, column.low, column.high) == (
            registered.name, registered.low, registered.high,
        )  # fmt: skip
        assert column.min == values.min()
        assert column.max == values.max()
        assert column.share_non_zero == np.mean(values != 0)
        assert column.share_at_bound == np.mean((values == column.low) | (values == column.high))


def test_without_bars_the_input_is_not_asked(built: Path) -> None:
    verification = mf.verify(built)
    assert [check.name for check in verification.checks] == [*CHECKS, "input"]
    check = by_name(verification)["input"]
    assert (check.passed, check.detail) == (None, "not asked")
    assert verification.passed


def test_to_dict_is_strict_json(bars: mf.Bars, tmp_path: Path) -> None:
    path = mf.build(bars, tmp_path / "s.zarr", mf.FeatureConfig(family="returns")).path
    verification = mf.verify(path)
    told = json.loads(json.dumps(verification.to_dict(), allow_nan=False))
    assert told["passed"] is True
    assert told["path"] == str(path)
    assert [check["name"] for check in told["checks"]] == [*CHECKS, "input"]
    assert told["checks"][0]["numbers"] == {"num_files": 5}
    assert told["checks"][1]["numbers"] == {"num_bars": NUM_BARS, "num_bad": 0}
    assert told["columns"][0]["low"] is None  # a log return has no bounds
    assert told["columns"][-1]["low"] == -10.0


def test_the_same_seed_looks_at_the_same_places(built: Path) -> None:
    assert mf.verify(built, seed=5) == mf.verify(built, seed=5)
    numbers = {by_name(mf.verify(built, seed=s))["causal"].numbers["num_bars"] for s in range(4)}
    assert len(numbers) > 1


def test_progress_ends_at_the_whole(built: Path, bars_file: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    mf.verify(built, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (NUM_BARS, NUM_BARS)
    mf.verify(built, bars_file, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2 * NUM_BARS, 2 * NUM_BARS)


def test_a_store_of_one_bar(tmp_path: Path) -> None:
    bars = to_bars(np.array([START_NS]), np.array([[5.0, 6.0, 4.0, 5.5]]))
    path = mf.build(bars, tmp_path / "s.zarr", mf.FeatureConfig(window_length=1)).path
    assert failed(mf.verify(path, bars)) == {"valid share"}


def test_real_bars(real_bars: mf.Bars, tmp_path: Path) -> None:
    path = mf.build(real_bars[:300_000], tmp_path / "s.zarr", mf.FeatureConfig(context=True)).path
    assert failed(mf.verify(path, real_bars[:300_000])) == set()


# --- damaged on purpose ----------------------------------------------------------------------


def test_one_bit_of_one_feature(store: Path) -> None:
    bar, column = 2_345, 7
    features = chunk_of(store, "features")
    features.view(np.uint32)[bar, column] ^= 1
    verification = mf.verify(store)
    assert failed(verification) <= {"recompute", "causal", "local"}
    opened = mf.open_store(store)
    before = str(opened.features[bar, column])
    again = str(mf.compute(bars_in(store), opened.config).values[bar, column])
    assert detail_of_failure(verification, "recompute") == (
        f"1 of 4,000 bars differ, the first: {place(store, bar)}: "
        f"dist_to_prev_SL is {before} in the store, {again} computed again"
    )
    assert by_name(verification)["recompute"].numbers["num_different"] == 1


@pytest.mark.parametrize("byte", [0, 2])
def test_one_validity(store: Path, byte: int) -> None:
    chunk_of(store, "valid").view(np.uint8)[1_200] = byte
    verification = mf.verify(store)
    assert "recompute" in failed(verification)
    assert failed(verification) <= {"recompute", "attributes", "causal", "local"}
    found = detail_of_failure(verification, "recompute")
    assert f"{place(store, 1_200)}: valid is {byte} in the store, 1 computed again" in found


def test_a_price_that_contradicts_its_bar(store: Path) -> None:
    ohlc = chunk_of(store, "ohlc")
    ohlc[777, 1] = ohlc[777, 2] / 2  # the high below the low
    verification = mf.verify(store)
    assert {"bars", "recompute"} <= failed(verification)
    found = detail_of_failure(verification, "bars")
    assert found.startswith("1 dropped (1 high below open or close); the first: row 777 (")
    assert by_name(verification)["bars"].numbers["num_bad"] == 1


@pytest.mark.parametrize("price", [np.nan, np.inf, -np.inf, 1e300])
def test_a_price_that_is_no_price_is_told_without_a_warning(store: Path, price: float) -> None:
    chunk_of(store, "ohlc")[50] = price
    verification = mf.verify(store)
    assert {"bars", "recompute"} <= failed(verification)
    assert "row 50 (" in detail_of_failure(verification, "bars")


def test_a_legal_but_other_price(store: Path) -> None:
    ohlc = chunk_of(store, "ohlc")
    ohlc[3_000] = ohlc[3_000, ::-1].copy()  # open and close change places
    ohlc[3_000, 1:3] = ohlc[3_000, 1:3].max() + 1, ohlc[3_000, 1:3].min() - 1
    verification = mf.verify(store)
    assert by_name(verification)["bars"].passed
    assert f"the first: {place(store, 3_000)}" in detail_of_failure(verification, "recompute")


def test_a_time_before_its_forerunner(store: Path) -> None:
    time = chunk_of(store, "time")
    time[600] = time[599] - 1
    verification = mf.verify(store)
    assert "time out of order" in detail_of_failure(verification, "bars")
    assert "row 600 (" in detail_of_failure(verification, "bars")


def test_times_that_make_another_segment(store: Path) -> None:
    chunk_of(store, "time")[600:NUM_BARS] += 40 * MINUTE_NS
    verification = mf.verify(store)
    assert by_name(verification)["bars"].passed
    found = detail_of_failure(verification, "segments")
    assert found == "segment 0 is [0, 1380] in the store, [0, 600] by its times and max_gap 30min"


def test_a_segment_that_times_do_not_make(store: Path) -> None:
    path = chunk_path(store, "segments", 0, SEGMENTS)
    segments = np.fromfile(path, np.int64).reshape(-1, 2)
    segments[1:, 0] = segments[:-1, 1] = segments[1:, 0] + 1
    segments.tofile(path)
    verification = mf.verify(store)
    assert failed(verification) == {"segments"}
    assert "segment 0 is [0, 1381] in the store" in detail_of_failure(verification, "segments")


@pytest.mark.parametrize(
    ("place_in_state", "edit"),
    [
        ("pass.extreme", lambda state: state["pass"].update(extreme=1.0)),
        ("pass.history[0][3]", lambda state: state["pass"]["history"][0].__setitem__(3, -0.0)),
        ("last_time", lambda state: state.update(last_time=0)),
        ("config.k", lambda state: state["config"].update(k=1.3)),
        ("pass.leg", lambda state: state["pass"].pop("leg")),
        ("surplus", lambda state: state.update(surplus=1)),
    ],
)
def test_a_state_that_is_not_the_last_bars(
    store: Path, place_in_state: str, edit: Callable[[dict[str, Any]], None]
) -> None:
    edit_attributes(store, lambda attributes: edit(attributes["state"]))
    verification = mf.verify(store)
    assert failed(verification) == {"state"}
    assert detail_of_failure(verification, "state").startswith(f"{place_in_state} is ")


@pytest.mark.parametrize(
    ("place_in_attributes", "edit"),
    [
        ("num_valid", lambda attributes: attributes.update(num_valid=1)),
        ("num_flat", lambda attributes: attributes.pop("num_flat")),
        ("first_time", lambda attributes: attributes.update(first_time=0)),
        ("num_segments", lambda attributes: attributes.update(num_segments=99)),
        (
            "gaps.histogram.1 min",
            lambda attributes: attributes["gaps"]["histogram"].update({"1 min": 0}),
        ),
        ("features[5].high", lambda attributes: attributes["features"][5].update(high=9)),
        ("features", lambda attributes: attributes.update(features=None)),
    ],
)
def test_an_attribute_that_is_not_what_is_counted(
    store: Path, place_in_attributes: str, edit: Callable[[dict[str, Any]], None]
) -> None:
    edit_attributes(store, edit)
    verification = mf.verify(store)
    assert failed(verification) == {"attributes"}
    assert detail_of_failure(verification, "attributes").startswith(place_in_attributes)


@pytest.mark.parametrize("value", [1.0000001, -0.1, np.nan, np.inf])
def test_a_value_outside_its_range(store: Path, value: float) -> None:
    chunk_of(store, "features")[901, 1] = value
    verification = mf.verify(store)
    assert {"range", "recompute"} <= failed(verification)
    found = detail_of_failure(verification, "range")
    assert found == f"{place(store, 901)}: close_norm is {np.float32(value)}, outside [0, 1]"
    assert by_name(verification)["range"].numbers["num_outside"] == 1
    json.dumps(verification.to_dict(), allow_nan=False)


def test_an_infinite_return_is_outside_its_range(bars: mf.Bars, tmp_path: Path) -> None:
    path = mf.build(bars, tmp_path / "s.zarr", mf.FeatureConfig(family="returns")).path
    chunk_of(path, "features")[300, 0] = np.inf
    assert "log_return_open is inf" in detail_of_failure(mf.verify(path), "range")


def test_too_few_valid_bars(bars: mf.Bars, tmp_path: Path) -> None:
    config = mf.FeatureConfig(k=40)  # few legs end so
    verification = mf.verify(mf.build(bars, tmp_path / "s.zarr", config).path)
    assert failed(verification) == {"valid share"}
    valid = mf.compute(bars, config).valid
    share = np.count_nonzero(valid) / (NUM_BARS - 20)
    assert detail_of_failure(verification, "valid share") == (
        f"{share:.4f} of the bars behind each segment's warm-up of 20 are valid, "
        "more than 0.90 must be"
    )
    assert by_name(verification)["valid share"].numbers == {"share": share, "least": 0.9}


def test_the_warm_up_of_a_segment_is_not_missed(bars: mf.Bars, tmp_path: Path) -> None:
    """Few bars, or many short sessions, are no fault of a store."""
    few = mf.synthesise(150).bars
    assert mf.verify(mf.build(few, tmp_path / "few.zarr").path).passed
    sessions = np.arange(NUM_BARS) // 390 * 18 * 60 * MINUTE_NS
    days = to_bars(bars.time + sessions, to_ohlc(bars))
    config = mf.FeatureConfig(max_gap="4h", context=True)
    path = mf.build(days, tmp_path / "days.zarr", config).path
    assert mf.open_store(path).valid.mean() < 0.9
    assert mf.verify(path).passed


def test_segments_that_end_within_their_warm_up_are_missed(bars: mf.Bars, tmp_path: Path) -> None:
    pieces = np.maximum(np.arange(NUM_BARS) - 500, 0) // 20 * 60 * MINUTE_NS
    path = mf.build(
        to_bars(bars.time + pieces, to_ohlc(bars)), tmp_path / "s.zarr",
        mf.FeatureConfig(max_gap="30min"),
    ).path  # fmt: skip
    assert failed(mf.verify(path)) == {"valid share"}


def test_too_many_zeros(bars: mf.Bars, tmp_path: Path) -> None:
    ohlc = to_ohlc(bars)
    ohlc[200:] = ohlc[200, 3]  # a market that stands still
    verification = mf.verify(mf.build(to_bars(bars.time, ohlc), tmp_path / "s.zarr").path)
    assert failed(verification) == {"density"}
    assert "of all values are not 0" in detail_of_failure(verification, "density")


def test_what_cannot_be_opened_is_an_error(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no store at"):
        mf.verify(tmp_path / "nothing.zarr")
    edit_attributes(store, lambda attributes: attributes.update(complete=False))
    with pytest.raises(StoreError, match="not finished"):
        mf.verify(store)


def test_a_missing_chunk_is_an_error(store: Path) -> None:
    chunk_path(store, "features", 0, bar_arrays(11)["features"]).unlink()
    with pytest.raises(StoreError, match="is missing"):
        mf.verify(store)
