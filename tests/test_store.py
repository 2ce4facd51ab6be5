"""Stores: what others read in them, what reading costs, and which of them are refused."""

from __future__ import annotations

import gc
import json
import mmap
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import moola_features as mf
from moola_features import store as store_module
from moola_features.building.chunks import ChunkTask, run_chunk
from moola_features.errors import StoreError, StoreNotFoundError
from moola_features.store.layout import group_name
from moola_features.store.writer import Rows
from moola_features.stretches import Cutter
from tests.markets import CHUNK, assert_store_holds, tree, walk

CONFIG = mf.FeatureConfig(max_gap="2h", context=True)
NUM_BARS = 66_000  # two chunk files
ARRAYS = {
    "features": ("float32", (NUM_BARS, 19), ("bar", "feature")),
    "time": ("int64", (NUM_BARS,), ("bar",)),
    "valid": ("bool", (NUM_BARS,), ("bar",)),
    "ohlc": ("float64", (NUM_BARS, 4), ("bar", "price")),
    "segments": ("int64", (3, 2), ("segment", "bound")),
}  # fmt: skip


@pytest.fixture(scope="module")
def bars() -> mf.Bars:
    return walk(NUM_BARS, gaps=[30_000, 65_900])


@pytest.fixture(scope="module")
def path(bars, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "x.zarr"
    mf.build(bars, folder, CONFIG)
    return folder


@pytest.fixture
def copy(path, tmp_path) -> Path:
    """A store to be damaged."""
    return Path(shutil.copytree(path, tmp_path / "copy.zarr"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refusal(path: Path, *arguments: Any) -> str:
    with pytest.raises(StoreError) as caught:
        mf.open_store(path, *arguments)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


class TestOthersReadIt:
    @pytest.mark.parametrize("name", ARRAYS)
    def test_zarr(self, path, bars, name):
        dtype, shape, dimensions = ARRAYS[name]
        group = zarr.open_group(path, mode="r")
        assert sorted(group.array_keys()) == sorted(ARRAYS)
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert (array.dtype, array.shape) == (np.dtype(dtype), shape)
        assert array.metadata.dimension_names == dimensions
        expected = np.asarray(getattr(mf.open_store(path), name))
        np.testing.assert_array_equal(array[:], expected)
        if name != "segments":
            assert array.chunks == (CHUNK, *shape[1:])
            assert array.compressors == ()

    @pytest.mark.parametrize("name", ARRAYS)
    def test_metadata_is_as_zarr_writes_it(self, path, name):
        array = zarr.open_group(path, mode="r")[name]
        assert isinstance(array, zarr.Array)
        documents = {}
        zarr.create_array(
            documents, shape=array.shape, chunks=array.chunks, dtype=array.dtype, filters=None,
            compressors=None, serializer=array.serializer, fill_value=array.fill_value,
            zarr_format=3, dimension_names=array.metadata.dimension_names,
        )  # fmt: skip
        assert (path / name / "zarr.json").read_bytes() == documents["zarr.json"].to_bytes()

    def test_attributes(self, path, bars):
        attributes = zarr.open_group(path, mode="r").attrs.asdict()
        assert attributes == mf.open_store(path).attributes
        assert attributes["complete"] is True
        assert attributes["format_version"] == 1
        assert mf.FeatureConfig.from_dict(attributes["config"]) == CONFIG
        columns = mf.columns(CONFIG)
        assert [x["name"] for x in attributes["features"]] == [x.name for x in columns]
        assert [(x["low"], x["high"]) for x in attributes["features"]] == [
            (x.low, x.high) for x in columns
        ]
        assert attributes["input"]["num_bars"] == NUM_BARS
        assert len(attributes["input"]["sha256"]) == 64
        assert {"moola", "numpy", "numba", "zarr", "python"} <= set(attributes["versions"])

    def test_bounds_that_json_does_not_know(self, tmp_path):
        mf.build(walk(200), tmp_path / "r.zarr", mf.FeatureConfig(family="returns"))
        found = mf.open_store(tmp_path / "r.zarr").attributes["features"][0]
        assert (found["name"], found["low"], found["high"]) == ("log_return_open", None, None)

    def test_xarray(self, path, bars):
        xarray = pytest.importorskip("xarray")
        dataset = xarray.open_zarr(path, consolidated=False)
        assert dataset["features"].dims == ("bar", "feature")
        assert dict(dataset.sizes)["price"] == 4
        np.testing.assert_array_equal(dataset["ohlc"][:, 3], bars.close)

    def test_group_names(self):
        names = ["NQ", "BTC/USD", ".", "..", "_x", "a b", "%2F", "/", "zarr.json", "ß", "nq.zarr"]
        groups = [group_name(name) for name in names]
        assert len(set(groups)) == len(names)
        assert not any(name.startswith((".", "_")) or "/" in name for name in groups)
        assert groups[0] == "NQ"
        assert "zarr.json" not in groups


def test_the_rest_of_a_chunk_is_empty(tmp_path):
    """Not what a buffer held before: bytes depend on nothing but the bars."""
    config = mf.FeatureConfig()
    cutter = Cutter(config, CHUNK)
    assert list(cutter.add(walk(200))) == []
    (stretch,) = cutter.finish()
    buffer = Rows.empty_chunk(11)
    for array in vars(buffer).values():
        array[...] = 1
    task = ChunkTask(config, tmp_path / "x.zarr", stretch, start=Future(), end=Future())
    run_chunk(task, buffer)
    for name in ("features", "time", "valid", "ohlc"):
        chunk = tmp_path / "x.zarr" / name / "c" / "0"
        data = (chunk if chunk.is_file() else chunk / "0").read_bytes()
        filled = 200 * len(data) // CHUNK
        assert any(data[:filled])
        assert not any(data[filled:])


class TestReading:
    def test_holds_what_was_computed(self, path, bars):
        assert_store_holds(mf.open_store(path), bars, CONFIG)
        assert_store_holds(mf.open_store(str(path), CONFIG), bars, CONFIG)

    @pytest.mark.parametrize("name", ["features", "time", "valid", "ohlc"])
    def test_copies_nothing(self, path, name):
        array = getattr(mf.open_store(path), name)
        assert array.flags.c_contiguous
        assert not array.flags.writeable
        base = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(getattr(base, "obj", base), mmap.mmap)
        chunk = f"{path}/{name}/c/1" + ("/0" if array.ndim > 1 else "")
        maps = Path("/proc/self/maps").read_text()
        assert maps.count(chunk) == 1

    def test_nothing_can_be_written(self, path):
        store = mf.open_store(path)
        before = tree(path)
        for name in ARRAYS:
            with pytest.raises(ValueError, match="read-only"):
                getattr(store, name)[0] = 0
        assert tree(path) == before

    def test_memory_stays(self, path):
        def own_memory() -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

        stores = [mf.open_store(path)]
        total = sum(float(store.features.sum()) for store in stores)
        before = own_memory()
        stores += [mf.open_store(path) for _ in range(20)]
        total = sum(float(store.features.sum()) for store in stores)
        assert np.isfinite(total)
        assert own_memory() - before < 4_096  # KiB; one copy of the features takes 5,000

    def test_arrays_outlive_the_store(self, copy, bars):
        features = mf.open_store(copy).features
        gc.collect()
        shutil.rmtree(copy)
        np.testing.assert_array_equal(features, mf.compute(bars, CONFIG).values)

    def test_nothing_is_left_mapped(self, copy):
        stores = [mf.open_store(copy) for _ in range(3)]
        assert str(copy) in Path("/proc/self/maps").read_text()
        del stores
        gc.collect()
        assert str(copy) not in Path("/proc/self/maps").read_text()

    def test_in_words(self, path, tmp_path):
        assert repr(mf.open_store(path)) == (
            "<Store x.zarr: 66,000 bars, 19 features, 2020-09-13T12:27:40Z to 2020-10-30T04:24:40Z>"
        )


def set_in(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value in a document; the last key is the value."""

    def change(document: Any) -> None:
        *way, last, value = keys
        for key in way:
            document = document[key]
        document[last] = value

    return change


ATTRIBUTES = [
    (
        ("attributes", "format_version", 2),
        "has format version 2, this moola reads up to 1; upgrade",
    ),
    (("attributes", "format_version", "1"), "has format version 1, this moola reads"),
    (("attributes", "complete", False), "was not finished: complete is not true; rebuild"),
    (("attributes", "complete", 1), "was not finished: complete is not true"),
    (("attributes", "format", "other"), "is a Zarr group that moola did not make"),
    (("attributes", None), "is a Zarr group that moola did not make"),
    (("attributes", "config", {"k": -1}), "attributes cannot be read: ConfigError('k is -1;"),
    (("attributes", "config", {"new": 1}), "unknown setting 'new'"),
    (("attributes", "config", None), "attributes cannot be read: TypeError"),
    (("attributes", "config", {}), "features/zarr.json is not as format 1 has it: shape is [660"),
    (("attributes", "num_bars", "many"), "attributes cannot be read: ValueError"),
    (("attributes", "num_bars", 65_999), "shape is [66000, 19], not [65999, 19]; rebuild"),
    (("attributes", "num_bars", 0), "shape is [66000, 19], not [0, 19]"),
    (("attributes", "kind", "universe"), "the attributes list no instruments"),
]

METADATA = [
    ("features", ("shape", [66_000, 11]), "shape is [66000, 11], not [66000, 19]; rebuild"),
    ("features", ("data_type", "float64"), 'data_type is "float64", not "float32"'),
    ("time", ("node_type", "group"), 'node_type is "group"'),
    ("ohlc", ("chunk_grid", "configuration", "chunk_shape", [1_000, 4]), "[1000, 4]"),
    ("ohlc", ("chunk_grid", None), "chunk_grid is null"),
    ("ohlc", ("codecs", [{"name": "bytes"}, {"name": "zstd"}]), '"zstd"'),
    ("ohlc", ("codecs", 0, "configuration", "endian", "big"), '"big"'),
    ("time", ("codecs", []), "codecs is []"),
    ("segments", ("shape", [1, 2]), "shape is [1, 2], not [3, 2]"),
    ("features", ("chunk_key_encoding", {"name": "v2"}), 'chunk_key_encoding is {"name": "v2"}'),
    ("features", ("fill_value", 7.0), "fill_value is 7.0, not 0; rebuild"),
    ("valid", ("fill_value", True), "fill_value is true, not false"),
    ("time", ("zarr_format", 2), "zarr_format is 2, not 3"),
    ("ohlc", ("dimension_names", ["price", "bar"]), 'not ["bar", "price"]'),
    ("ohlc", ("attributes", {"scale_factor": 2.0}), "attributes is {"),
    ("segments", ("storage_transformers", [{"name": "x"}]), "storage_transformers is ["),
]


class TestRefused:
    @pytest.mark.parametrize(("keys", "message"), ATTRIBUTES)
    def test_attributes(self, copy, keys, message):
        edit(copy / "zarr.json", set_in(*keys))
        assert message in refusal(copy)

    @pytest.mark.parametrize("name", ["complete", "config", "num_bars", "format", "format_version"])
    def test_missing_attributes(self, copy, name):
        edit(copy / "zarr.json", lambda document: document["attributes"].pop(name))
        refusal(copy)

    @pytest.mark.parametrize(("name", "keys", "message"), METADATA)
    def test_another_array(self, copy, name, keys, message):
        edit(copy / name / "zarr.json", set_in(*keys))
        found = refusal(copy)
        assert f"{copy}/{name}/zarr.json is not as format 1 has it: " in found
        assert message in found

    @pytest.mark.parametrize(
        ("key", "value"),
        [("extension", {"metadata": {"x": "y" * 999}}), ("node_type", "array")],
    )
    def test_another_group(self, copy, key, value):
        edit(copy / "zarr.json", set_in(key, value))
        found = refusal(copy)
        assert f"{copy}/zarr.json is not as format 1 has it: {key} is " in found
        assert len(found) < 600

    def test_what_is_empty_may_be_left_out(self, copy, bars):
        for key in ("attributes", "storage_transformers"):
            edit(copy / "time" / "zarr.json", lambda document, key=key: document.pop(key))
        edit(copy / "zarr.json", set_in("consolidated_metadata", None))
        assert_store_holds(mf.open_store(copy), bars, CONFIG)

    def test_zarr_may_have_gathered_the_metadata(self, copy, bars):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that format 3 has no word for it yet
            zarr.consolidate_metadata(copy)
        assert "consolidated_metadata" in json.loads((copy / "zarr.json").read_text())
        assert_store_holds(mf.open_store(copy, check=True), bars, CONFIG)

    def test_a_single_byte_has_no_order(self, copy, bars):
        little = [{"name": "bytes", "configuration": {"endian": "little"}}]
        for codecs in ([{"name": "bytes"}], little):
            edit(copy / "valid" / "zarr.json", set_in("codecs", codecs))
            assert_store_holds(mf.open_store(copy), bars, CONFIG)

    @pytest.mark.parametrize("name", ARRAYS)
    def test_missing_arrays(self, copy, name):
        shutil.rmtree(copy / name)
        assert f"{copy / name}" in refusal(copy)

    @pytest.mark.parametrize("name", ["features", "time", "valid", "ohlc"])
    @pytest.mark.parametrize("index", [0, 1])
    def test_missing_and_cut_chunks(self, copy, name, index):
        chunk = copy / name / "c" / str(index)
        chunk = chunk if chunk.is_file() else chunk / "0"
        size = chunk.stat().st_size
        chunk.write_bytes(chunk.read_bytes()[:-4_096])
        assert f"chunk file {chunk} has {size - 4_096} bytes, not {size}" in refusal(copy)
        chunk.unlink()
        assert f"chunk file {chunk} is missing; rebuild" in refusal(copy)

    @pytest.mark.parametrize(
        "bounds",
        [
            [],
            [[0, NUM_BARS - 1]],
            [[1, NUM_BARS]],
            [[0, 100], [200, NUM_BARS]],
            [[0, 0], [0, NUM_BARS]],
            [[0, 9_000], [9_000, 400], [400, NUM_BARS]],
        ],
    )
    def test_segments_that_leave_gaps(self, copy, bounds):
        np.array(bounds, "<i8").tofile(copy / "segments" / "c" / "0" / "0")
        shape = [len(bounds), 2]
        edit(copy / "segments" / "zarr.json", set_in("shape", shape))
        edit(
            copy / "segments" / "zarr.json",
            set_in("chunk_grid", "configuration", "chunk_shape", shape),
        )
        assert "does not cut 66000 bars into segments; rebuild" in refusal(copy)

    def test_half_a_segment(self, copy):
        chunk = copy / "segments" / "c" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes()[:-8])
        refusal(copy)

    @pytest.mark.parametrize("text", ["", "[1, 2]", '{"attributes": ', "\udcff"])
    @pytest.mark.parametrize("name", ["zarr.json", "features/zarr.json"])
    def test_unreadable_metadata(self, copy, name, text):
        (copy / name).write_bytes(text.encode(errors="surrogateescape"))
        assert f"{copy / name}" in refusal(copy)

    def test_no_store(self, tmp_path):
        with pytest.raises(StoreNotFoundError, match=r"no store at .*; make one with `moola-f"):
            mf.open_store(tmp_path / "no.zarr")
        (tmp_path / "file").write_text("file")
        assert "is a file, not a store" in refusal(tmp_path / "file")
        assert "is not a finished store: it has no zarr.json" in refusal(tmp_path)
        zarr.open_group(tmp_path / "other.zarr", mode="w")
        assert "is a Zarr group that moola did not make" in refusal(tmp_path / "other.zarr")
        assert "cannot be read: File name too long" in refusal(tmp_path / ("n" * 300))

    def test_another_configuration(self, path):
        found = refusal(path, mf.FeatureConfig(max_gap="2h", context=True, k=1.3))
        assert found.endswith(
            "was built with k = 1.2, not 1.3; rebuild it with --force, or build into another folder"
        )
        assert "max_gap = '2h', not None" in refusal(path, mf.FeatureConfig(context=True))
        assert (
            mf.open_store(path, mf.FeatureConfig(max_gap="120min", context=True)).config == CONFIG
        )


class TestReplacedWhileRead:
    OTHERS = (mf.FeatureConfig(), mf.FeatureConfig(k=3), mf.FeatureConfig(context=True))

    def test_an_open_store_keeps_serving(self, tmp_path):
        target = tmp_path / "x.zarr"
        mf.build(walk(300), target)
        old = mf.open_store(target)
        windows = old.windows()
        mf.build(walk(70_000, seed=2), target, mf.FeatureConfig(context=True), force=True)
        assert_store_holds(old, walk(300), mf.FeatureConfig())
        assert windows.gather([0, -1]).shape == (2, 105, 11)
        assert_store_holds(mf.open_store(target), walk(70_000, seed=2), self.OTHERS[2])
        assert_store_holds(old, walk(300), mf.FeatureConfig())

    @pytest.mark.parametrize("replacing", ["read_attributes", "read_json", "map_files"])
    @pytest.mark.parametrize("call", [1, 2, 3])
    @pytest.mark.parametrize("other", OTHERS[1:], ids=["as wide", "wider"])
    def test_in_the_middle_of_opening(self, tmp_path, monkeypatch, replacing, call, other):
        """All of the old store or all of the new one, though files are opened one by one."""
        target = tmp_path / "x.zarr"
        mf.build(walk(300), target)
        function = getattr(store_module, replacing)
        calls = []

        def replace_and_go_on(*arguments: Any) -> Any:
            found = function(*arguments)
            calls.append(arguments)
            if len(calls) == call:
                mf.build(walk(300, seed=4), target, other, force=True)
            return found

        monkeypatch.setattr(store_module, replacing, replace_and_go_on)
        store = mf.open_store(target)
        if len(calls) >= call:
            assert_store_holds(store, walk(300, seed=4), other)
        else:
            assert_store_holds(store, walk(300), mf.FeatureConfig())
            assert replacing == "read_attributes"  # which is called once

    def test_gone_in_the_middle_of_opening(self, tmp_path, monkeypatch):
        target = tmp_path / "x.zarr"
        mf.build(walk(300), target)

        def remove(*_: Any) -> Any:
            shutil.rmtree(target)
            raise StoreError("chunk file is missing")

        monkeypatch.setattr(store_module, "map_files", remove)
        with pytest.raises(StoreNotFoundError, match="no store at"):
            mf.open_store(target)
