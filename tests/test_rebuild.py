"""Building where something stands already: what is left alone, replaced, or never touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
import zarr

import moola_features as mf
from moola_features.bars.checks import PRICES
from moola_features.building import job
from moola_features.errors import BarsNotFoundError, OutputError, StoreError
from tests.markets import assert_store_holds, names_in, refused, tree, walk, write


class TestUpToDate:
    @pytest.fixture
    def source(self, tmp_path) -> Path:
        return write(walk(500), tmp_path / "bars.parquet")

    @pytest.fixture
    def target(self, source, tmp_path) -> Path:
        mf.build(source, tmp_path / "x.zarr")
        return tmp_path / "x.zarr"

    def test_is_left_alone(self, source, target):
        def identity() -> list[tuple[int, int]]:
            return [
                (status.st_ino, status.st_mtime_ns)
                for status in map(os.stat, [target, *sorted(target.rglob("*"))])
            ]

        before = identity()
        report = mf.build(source, target)
        assert report.up_to_date
        assert report.num_bars == 500
        assert identity() == before
        assert not mf.build(source, target, force=True).up_to_date
        assert identity() != before

    @pytest.mark.parametrize("force", [False, True])
    def test_another_configuration(self, source, target, force):
        config = mf.FeatureConfig(k=2)
        if force:
            mf.build(source, target, config, force=True)
            return assert_store_holds(mf.open_store(target), walk(500), config)
        before = tree(target)
        message = refused(StoreError, source, target, config)
        assert "was built with k = 1.2, not 2.0; rebuild it with --force" in message
        assert tree(target) == before

    def test_another_source(self, source, target, tmp_path):
        other = write(walk(600, seed=8), tmp_path / "other.parquet")
        message = refused(StoreError, other, target)
        assert "was built from bars.parquet, not other.parquet; pass --force" in message
        assert_store_holds(mf.open_store(target), walk(500), mf.FeatureConfig())
        mf.build(other, target, force=True)
        assert_store_holds(mf.open_store(target), walk(600, seed=8), mf.FeatureConfig())

    def test_more_bars_of_the_same_source(self, source, target):
        write(walk(700), source)
        assert not mf.build(source, target).up_to_date
        assert_store_holds(mf.open_store(target), walk(700), mf.FeatureConfig())

    def test_other_columns_of_the_same_source(self, source, target, tmp_path):
        other = walk(500, seed=5)
        table = pl.read_parquet(source).with_columns(
            **{f"adjusted_{name}": getattr(other, name) for name in PRICES}
        )
        table.write_parquet(source)
        assert not mf.build(source, target).up_to_date
        columns = {name: f"adjusted_{name}" for name in PRICES}
        assert not mf.build(source, target, column_map=columns).up_to_date
        assert_store_holds(mf.open_store(target), other, mf.FeatureConfig())
        assert mf.build(source, target, column_map=columns).up_to_date

    def test_another_way_with_bad_bars(self, source, target):
        assert not mf.build(source, target, on_bad_bars="drop").up_to_date
        assert mf.build(source, target, on_bad_bars="drop").up_to_date

    def test_another_moola(self, source, target, monkeypatch):
        monkeypatch.setattr(mf, "__version__", "0.0.9")
        assert not mf.build(source, target).up_to_date
        assert mf.open_store(target).attributes["versions"]["moola"] == "0.0.9"


class TestReplacing:
    @pytest.mark.parametrize("kind", ["notes", "zarr group", "stores", "parquet"])
    @pytest.mark.parametrize("force", [False, True])
    def test_never_what_is_no_store(self, kind, force, tmp_path):
        target = tmp_path / "target"
        if kind == "notes":
            target.mkdir()
            (target / "notes.txt").write_text("years of work")
        elif kind == "zarr group":
            zarr.open_group(target, mode="w").create_array("features", shape=(3,), dtype="f4")
        elif kind == "stores":
            target.mkdir()
            mf.build(walk(200), target / "a.zarr")
        else:
            write(walk(200), target)
        before = tree(tmp_path)
        message = refused(StoreError, walk(200), target, force=force)
        assert str(target) in message
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("damage", ["empty", "no mark", "half a mark"])
    def test_damaged_stores_by_force(self, damage, tmp_path):
        target = tmp_path / "x.zarr"
        mf.build(walk(200), target)
        mark = target / "zarr.json"
        if damage == "empty":
            shutil.rmtree(target)
            target.mkdir()
        elif damage == "no mark":
            mark.unlink()
        else:
            mark.write_bytes(mark.read_bytes()[:999])
        before = tree(target)
        refused(StoreError, walk(200), target)
        assert tree(target) == before
        mf.build(walk(200), target, force=True)
        assert_store_holds(mf.open_store(target), walk(200), mf.FeatureConfig())

    def test_one_built_meanwhile(self, tmp_path, monkeypatch):
        target = tmp_path / "x.zarr"

        kernel_of = job.kernel_of

        class SlowKernel:
            is_loaded = False
            was_compiled = True

            def load(self) -> None:  # what another process does while this one compiles
                monkeypatch.setattr(job, "kernel_of", kernel_of)
                mf.build(walk(300), target, mf.FeatureConfig(k=2))

        monkeypatch.setattr(job, "kernel_of", lambda config: SlowKernel())
        message = refused(StoreError, walk(200), target)
        assert message.endswith("was built by another process meanwhile; build again")
        assert_store_holds(mf.open_store(target), walk(300), mf.FeatureConfig(k=2))
        assert names_in(tmp_path) == ["x.zarr"]


class TestTargets:
    def test_no_folder_for_it(self, tmp_path):
        message = refused(OutputError, walk(200), tmp_path / "no" / "x.zarr")
        assert message.endswith(f"there is no folder {tmp_path / 'no'}; make it first")
        refused(BarsNotFoundError, tmp_path / "no.parquet", tmp_path / "x.zarr")
        assert names_in(tmp_path) == []

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "disk").mkdir()
        link = tmp_path / "x.zarr"
        link.symlink_to(tmp_path / "disk" / "x.zarr")
        for seed in (1, 2, 3):
            mf.build(walk(200, seed=seed), link, force=True)
            assert_store_holds(mf.open_store(link), walk(200, seed=seed), mf.FeatureConfig())
            assert link.is_symlink()
            assert names_in(tmp_path) == ["disk", "x.zarr"]
            assert names_in(tmp_path / "disk") == ["x.zarr"]

    def test_the_current_folder(self, tmp_path, monkeypatch):
        here = tmp_path / "x.zarr"
        here.mkdir()
        for seed, path in enumerate((".", "../x.zarr", here)):
            monkeypatch.chdir(here)
            report = mf.build(walk(200, seed=seed), path, force=True)
            assert report.path == here
            assert_store_holds(mf.open_store(here), walk(200, seed=seed), mf.FeatureConfig())
        assert names_in(tmp_path) == ["x.zarr"]

    def test_empty_text(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for force in (False, True):
            message = refused(OutputError, walk(200), "", force=force)
            assert message == "the path to write is empty text; name a file or a folder"
        assert names_in(tmp_path) == []

    def test_inside_a_store(self, tmp_path):
        mf.build(walk(200), tmp_path / "x.zarr")
        before = tree(tmp_path)
        for force in (False, True):
            message = refused(OutputError, walk(200), tmp_path / "x.zarr" / "y.zarr", force=force)
            assert "is inside the store" in message
            assert message.endswith("the next build would delete it; choose another folder")
        assert tree(tmp_path) == before

    def test_an_instrument_of_a_universe(self, tmp_path):
        bars = walk(300)
        both = [write(bars[:200], tmp_path / f"{name}.parquet") for name in "AB"]
        universe = tmp_path / "u.zarr"
        mf.build(both, universe)
        before = tree(universe)
        for name in "BC":
            message = refused(OutputError, both[0], universe / name, force=True)
            assert "is inside the store" in message
        assert tree(universe) == before
        mf.build(bars, universe / "B", append=True)  # it stays what it is
        assert_store_holds(mf.open_store(universe)["B"], bars, mf.FeatureConfig())
