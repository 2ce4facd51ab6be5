"""Checksums: every file of values has one, and any bit that flips is told."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zarr

import moola_features as mf
from moola_features.errors import StoreError
from moola_features.store.checksums import as_text, from_text, of_attributes
from moola_features.store.summary import summarise
from tests.markets import CHUNK, assert_store_holds, frame, walk
from tests.stores import by_name, edit_attributes

NUM_BARS = CHUNK + 700
CONFIG = mf.FeatureConfig(max_gap="2h")
ARRAYS = {"features": 2, "time": 2, "valid": 2, "ohlc": 2, "segments": 1}  # files of each


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checksums") / "x.zarr"
    mf.build(walk(NUM_BARS, gaps=[300]), path, CONFIG)
    return path


@pytest.fixture
def store(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "x.zarr"))


def file_of(store: Path, name: str, index: int) -> Path:
    path = store / name / "c" / str(index)
    return path if path.is_file() else path / "0"


def refusal(store: Path) -> str:
    with pytest.raises(StoreError) as caught:
        mf.open_store(store, check=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_are_those_of_the_files(built):
    """Anybody's CRC-32 of the file as it lies there, read by zarr as an attribute."""
    known = zarr.open_group(built, mode="r").attrs["checksums"]
    assert isinstance(known, dict)
    assert known["algorithm"] == "crc32"
    for name, num_files in ARRAYS.items():
        found = [zlib.crc32(file_of(built, name, i).read_bytes()) for i in range(num_files)]
        assert known[name] == "".join(f"{value:08x}" for value in found)
    assert set(known) == {*ARRAYS, "algorithm", "attributes"}


def test_of_a_good_store(built):
    store = mf.open_store(built, CONFIG, check=True)
    assert_store_holds(store, walk(NUM_BARS, gaps=[300]), CONFIG)
    check = by_name(mf.verify(built))["checksums"]
    assert check.passed is True
    assert check.detail == "9 files are what was written"


@pytest.mark.parametrize("name", ["features", "time", "valid", "ohlc"])
@pytest.mark.parametrize("index", [0, 1])
def test_one_bit_of_any_file(store, name, index):
    path = file_of(store, name, index)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(index)
    expected = zlib.crc32(data)
    for position in (0, int(rng.integers(len(data))), len(data) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        assert refusal(store) == (
            f"file {path} is not what was written: its CRC-32 is {zlib.crc32(flipped):08x}, "
            f"not {expected:08x}; restore it from a copy, or rebuild the store with --force"
        )
        mf.open_store(store)
        check = by_name(mf.verify(store))["checksums"]
        assert check.passed is False
        assert str(path) in check.detail
    path.write_bytes(data)
    mf.open_store(store, check=True)


def test_segments(store):
    path = file_of(store, "segments", 0)
    np.array([[0, 299], [299, NUM_BARS]], "<i8").tofile(path)
    mf.open_store(store)
    assert f"file {path} is not what was written: " in refusal(store)


@pytest.mark.parametrize("name", ["num_valid", "symbol", "first_time", "versions"])
def test_attributes(store, name):
    before = of_attributes(mf.open_store(store).attributes)
    edit_attributes(store, lambda attributes: attributes.update({name: 1}))
    after = of_attributes(json.loads((store / "zarr.json").read_text())["attributes"])
    assert refusal(store) == (
        f"{store}: attributes are not what was written: CRC-32 is {after}, not {before}; "
        "restore it from a copy, or rebuild the store with --force"
    )


@pytest.mark.parametrize("name", ["gaps", "input", "num_valid", "first_time"])
def test_what_was_edited_by_hand_is_not_summarised(store, name):
    summarise(store)
    edit_attributes(store, lambda attributes: attributes.update({name: None}))
    with pytest.raises(StoreError, match="attributes are not what was written"):
        summarise(store)


def test_the_order_of_attributes_does_not_matter(store):
    edit_attributes(store, lambda found: found.update({"config": dict(found.pop("config"))}))
    mf.open_store(store, check=True)


def test_stores_without_checksums(store):
    edit_attributes(store, lambda attributes: attributes.pop("checksums"))
    mf.open_store(store)
    assert refusal(store) == (
        f"{store} has no crc32 checksums, so it cannot be checked; rebuild it with --force"
    )
    verification = mf.verify(store)
    assert verification.passed
    check = by_name(verification)["checksums"]
    assert check.passed is None
    assert check.detail == "the store tells none, an older moola made it"


@pytest.mark.parametrize("known", [None, "", "0x", 7])
def test_checksums_that_are_none(store, known):
    def edit(attributes: dict[str, Any]) -> None:
        attributes["checksums"]["time"] = known

    edit_attributes(store, edit)
    if known == "":  # of no file at all: what is there is not known to be right
        assert "checksums of time are of 0 files, not 2" in refusal(store)
    else:
        assert f"{store}: checksums of time cannot be read: " in refusal(store)


def test_one_file_more_than_checksums(store):
    def edit(attributes: dict[str, Any]) -> None:
        attributes["checksums"]["ohlc"] = attributes["checksums"]["ohlc"][:8]

    edit_attributes(store, edit)
    assert refusal(store) == (
        f"{store}: checksums of ohlc are of 1 files, not 2; "
        "restore it from a copy, or rebuild the store with --force"
    )


def test_a_universe(tmp_path):
    table = pl.concat([frame(walk(300), "A"), frame(walk(400, seed=2), "B")])
    path = mf.build(table, tmp_path / "u.zarr").path
    assert len(mf.open_store(path, check=True)) == 2
    chunk = file_of(path / "B", "features", 0)
    data = bytearray(chunk.read_bytes())
    data[9] ^= 1
    chunk.write_bytes(data)
    assert str(chunk) in refusal(path)
    checks = by_name(mf.verify(path))
    assert (checks["A: checksums"].passed, checks["B: checksums"].passed) == (True, False)


def test_what_a_universe_lists(tmp_path):
    table = pl.concat([frame(walk(300), "A"), frame(walk(400, seed=2), "B")])
    path = mf.build(table, tmp_path / "u.zarr").path

    def swap(attributes):
        attributes["instruments"] = {"A": "B", "B": "A"}

    edit_attributes(path, swap)
    assert refusal(path).startswith(f"{path}: attributes are not what was written: CRC-32 is ")
    universe = mf.open_store(path)
    for opened in (lambda: universe["A"], universe.windows, lambda: mf.verify(path)):
        with pytest.raises(StoreError) as caught:
            opened()
        assert str(caught.value) == (
            f"{path}/B holds B, but {path} lists it as A; restore both from a copy, or rebuild "
            "with --force"
        )
    edit_attributes(path, lambda attributes: attributes.update(instruments={"A": "A"}))
    check = by_name(mf.verify(path))["instruments"]
    assert (check.passed, "attributes are not what was written" in check.detail) == (False, True)
    # As an older moola made it.
    edit_attributes(path, lambda attributes: attributes.pop("checksums"))
    assert list(mf.open_store(path, check=True)) == ["A"]
    assert by_name(mf.verify(path))["instruments"].passed is None


def test_an_instrument_of_another_configuration(tmp_path):
    table = pl.concat([frame(walk(300), "A"), frame(walk(400, seed=2), "B")])
    path = mf.build(table, tmp_path / "u.zarr").path
    other = mf.build(table, tmp_path / "v.zarr", mf.FeatureConfig(k=2)).path
    shutil.rmtree(path / "B")
    shutil.copytree(other / "B", path / "B")
    universe = mf.open_store(path)
    assert len(universe["A"]) == 300
    with pytest.raises(StoreError, match="B is of another configuration than "):
        universe["B"]


def test_as_text():
    values = [0, 1, 2**31, 2**32 - 1]
    assert from_text(as_text(values)) == values
    assert as_text([]) == ""
