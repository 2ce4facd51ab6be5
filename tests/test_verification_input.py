"""Verification against the bars that a store, or a universe of stores, was built from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import moola_features as mf
from moola_features.errors import BarsError, BarsNotFoundError
from moola_features.times import time_text
from tests.stores import (
    CHECKS,
    INPUT_CHECKS,
    by_name,
    chunk_of,
    detail_of_failure,
    edit_attributes,
    failed,
    frame_of,
    place,
)
from tests.strategies import (
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


# --- against the bars ------------------------------------------------------------------------


def test_against_the_file_it_was_built_from(built: Path, bars_file: Path) -> None:
    verification = mf.verify(built, bars_file)
    assert verification.passed
    checks = by_name(verification)
    assert checks["input digest"].passed
    assert checks["input bars"].passed
    assert checks["input bars"].numbers == {"num_bars": NUM_BARS}


def test_against_the_same_bars_in_another_file(built: Path, bars: mf.Bars, tmp_path: Path) -> None:
    path = tmp_path / "bars.arrow"
    frame_of(bars).write_ipc(path)
    verification = mf.verify(built, path)
    assert failed(verification) == {"input digest"}
    digest = mf.open_store(built).attributes["input"]["sha256"]
    assert f"SHA-256 is {digest} in the store" in detail_of_failure(verification, "input digest")


@pytest.mark.parametrize(("field", "row"), [("open", 0), ("close", 3_999), ("low", 1_234)])
def test_against_bars_of_which_one_price_differs(
    built: Path, bars: mf.Bars, tmp_path: Path, field: str, row: int
) -> None:
    frame = frame_of(bars)
    here = frame[field][row]
    there = float(np.nextafter(here, 0 if field == "low" else frame["low"][row]))
    path = tmp_path / "bars.parquet"
    there_or_here = pl.when(pl.int_range(pl.len()) == row).then(there).otherwise(field)
    frame.with_columns(there_or_here.alias(field)).write_parquet(path)
    verification = mf.verify(built, path)
    assert failed(verification) == {"input digest", "input bars"}
    assert detail_of_failure(verification, "input bars") == (
        f"{place(built, row)}: {field} is {here!r} in the store, {there!r} in the bars"
    )


def test_against_bars_of_which_one_time_differs(built: Path, bars: mf.Bars, tmp_path: Path) -> None:
    time = bars.time.copy()
    time[2_000] += 7
    path = tmp_path / "bars.parquet"
    frame_of(to_bars(time, to_ohlc(bars))).write_parquet(path)
    found = detail_of_failure(mf.verify(built, path), "input bars")
    here, there = time_text(int(bars.time[2_000])), time_text(int(time[2_000]))
    assert found.endswith(f": time is {here} in the store, {there} in the bars")


def test_against_fewer_and_more_bars(built: Path, bars: mf.Bars, tmp_path: Path) -> None:
    fewer = detail_of_failure(mf.verify(built, bars[:-10]), "input bars")
    assert fewer == "the store has 4,000 bars, the bars 3,990"
    path = mf.build(bars[:-10], tmp_path / "s.zarr").path
    more = detail_of_failure(mf.verify(path, bars), "input bars")
    assert more == (
        f"the store ends after 3,990 bars, the bars go on at {time_text(int(bars.time[-10]))}"
    )


def test_against_bars_that_cannot_be_read_to_their_end(
    built: Path, bars: mf.Bars, tmp_path: Path
) -> None:
    path = tmp_path / "bars.parquet"
    frame = frame_of(bars)
    odd = pl.when(pl.int_range(pl.len()) == 99).then(0.0).otherwise("high").alias("high")
    frame.with_columns(odd).write_parquet(path)
    assert "row 99" in detail_of_failure(mf.verify(built, path), "input bars")


def test_against_a_file_with_bars_that_were_dropped(bars: mf.Bars, tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    frame = frame_of(bars)
    odd = pl.when(pl.int_range(pl.len()).is_in([99, 2_500])).then(0.0).otherwise("high")
    frame.with_columns(odd.alias("high")).write_parquet(path)
    built = mf.build(path, tmp_path / "s.zarr", on_bad_bars="drop").path
    verification = mf.verify(built, path)
    assert verification.passed
    assert by_name(verification)["input bars"].numbers == {"num_bars": NUM_BARS - 2}

    edit_attributes(built, lambda attributes: attributes["dropped"].update(total=3))
    found = detail_of_failure(mf.verify(built, path), "input bars")
    assert found == "3 bad bars were dropped for the store, 2 are here"


def test_against_bars_with_mapped_columns(bars: mf.Bars, tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    frame_of(bars).rename({"open": "px_first"}).write_parquet(path)
    names = {"open": "px_first"}
    built = mf.build(path, tmp_path / "s.zarr", column_map=names).path
    assert mf.verify(built, path, column_map=names).passed


def test_against_a_file_that_is_not_there(built: Path, tmp_path: Path) -> None:
    with pytest.raises(BarsNotFoundError):
        mf.verify(built, tmp_path / "nothing.parquet")


# --- several instruments ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def universe_file(bars: mf.Bars, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two instruments, their bars side by side."""
    other = to_bars(bars.time[500:], to_ohlc(bars)[500:] / 7)
    frames = (
        frame_of(bars, symbol=["NQ"] * len(bars)),
        frame_of(other, symbol=["ES"] * len(other)),
    )
    path = tmp_path_factory.mktemp("universe") / "bars.parquet"
    pl.concat(frames).sort("time", maintain_order=True).write_parquet(path)
    return path


@pytest.fixture
def universe(universe_file: Path, tmp_path: Path) -> Path:
    return mf.build(universe_file, tmp_path / "universe.zarr").path


def test_a_universe_is_verified_store_by_store(universe: Path, universe_file: Path) -> None:
    verification = mf.verify(universe, universe_file)
    assert verification.passed
    names = [*CHECKS, *INPUT_CHECKS]
    assert [check.name for check in verification.checks] == [
        "instruments", *(f"{symbol}: {name}" for symbol in ("NQ", "ES") for name in names)
    ]  # fmt: skip
    assert verification.columns[0].name == "NQ: open_norm"
    assert verification.columns[-1].name == "ES: expansion_proxy"
    counts = {name: check.numbers for name, check in by_name(verification).items()}
    assert counts["NQ: input bars"] == {"num_bars": NUM_BARS}
    assert counts["ES: input bars"] == {"num_bars": NUM_BARS - 500}


def test_one_damaged_store_of_a_universe(universe: Path) -> None:
    chunk_of(universe / "ES", "features")[2_000, 4] = 1.5
    verification = mf.verify(universe)
    assert {"ES: recompute", "ES: range"} <= failed(verification)
    assert not any(name.startswith("NQ") for name in failed(verification))


def test_one_store_of_a_universe_against_the_file_of_all(
    universe: Path, universe_file: Path
) -> None:
    verification = mf.verify(universe / "ES", universe_file)
    assert verification.passed
    assert by_name(verification)["ES: input bars"].numbers == {"num_bars": NUM_BARS - 500}


def test_a_universe_against_other_instruments(
    universe: Path, universe_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bars.parquet"
    renamed = pl.col("symbol").replace("ES", "CL")
    pl.read_parquet(universe_file).with_columns(renamed).write_parquet(path)
    verification = mf.verify(universe, path)
    assert failed(verification) == {
        "NQ: input digest", "ES: input digest", "ES: input bars", "CL: input bars",
    }  # fmt: skip
    assert "the bars 0" in detail_of_failure(verification, "ES: input bars")
    assert "'CL' is in the bars" in detail_of_failure(verification, "CL: input bars")


def test_a_universe_against_bars_of_one_instrument(
    universe: Path, universe_file: Path, bars: mf.Bars
) -> None:
    only_nq = pl.read_parquet(universe_file).filter(pl.col("symbol") == "NQ")
    assert by_name(mf.verify(universe, only_nq))["NQ: input bars"].passed
    verification = mf.verify(universe, bars)
    assert {"NQ: input bars", "ES: input bars", "input bars"} <= failed(verification)
    assert "name no symbol" in detail_of_failure(verification, "input bars")


def test_a_universe_of_several_files(bars: mf.Bars, tmp_path: Path) -> None:
    """One of its files says nothing of the others, which are no worse for it."""
    files = [tmp_path / "es.parquet", tmp_path / "nq.parquet"]
    for path, seed in zip(files, (1, 2), strict=True):
        frame_of(mf.synthesise(500, seed=seed).bars).write_parquet(path)
    universe = mf.build(files, tmp_path / "u.zarr").path
    with pytest.raises(BarsError) as caught:
        mf.verify(universe, files[1])
    assert str(caught.value) == (
        f"{universe} was built of several files; verify its instruments one by one, each against "
        f"its own, such as {universe}/es against es.parquet"
    )
    assert failed(mf.verify(universe)) == set()
    for path in files:
        verification = mf.verify(universe / path.stem, path)
        assert failed(verification) == set()
        assert by_name(verification)[f"{path.stem}: input bars"].passed
    alone = mf.build(files[:1], tmp_path / "v.zarr").path
    assert failed(mf.verify(alone, files[0])) == set()
