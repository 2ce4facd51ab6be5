"""Object stores: a server on loopback, and what is built there is what is built here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moola_features as mf
from moola_features.chart import write_chart
from moola_features.errors import (
    BarsNotFoundError,
    ConfigError,
    RemoteError,
    StoreError,
    StoreNotFoundError,
    WindowError,
)
from moola_features.export import export_store
from moola_features.remote.cache import ChunkCache
from moola_features.remote.objects import Objects, is_remote, local_path, split_address
from moola_features.remote.store import open_remote
from moola_features.store.checksums import checksum
from tests.markets import CHUNK, as_bits, environment, frame, names_in, refused, tree, walk, write

pytest.importorskip("obstore")
pytest.importorskip("moto")

CONFIG = mf.FeatureConfig()
NUM_BARS = 2 * CHUNK + 300


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of its own on loopback, with a bucket in it that s3:// and gs:// lead to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("object_server.py"), str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    account = {
        "gcs_base_url": url, "disable_oauth": True,
        "client_email": "", "private_key": "", "private_key_id": "",
    }  # fmt: skip
    keys = {
        "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
        "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "GOOGLE_ALLOW_HTTP": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        try:
            for _ in range(600):
                assert process.poll() is None
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/moto-api/").close()
                    break
                time.sleep(0.1)
            made = urllib.request.Request(f"{url}/bucket", method="PUT")
            urllib.request.urlopen(made).close()
            yield url
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch, request) -> str:
    """An empty place in the bucket, and an empty cache."""
    monkeypatch.setenv("MOOLA_CACHE", str(tmp_path / "cache"))
    return f"{getattr(request, 'param', 's3')}://bucket/{tmp_path.name}"


both_providers = pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)


@pytest.fixture(scope="module")
def bars() -> mf.Bars:
    return walk(NUM_BARS, gaps=[CHUNK - 50, CHUNK + 9])


def remote_tree(address: str) -> dict[str, bytes]:
    objects = Objects(address)
    return {name: objects.read(name) or b"" for name in objects.names()}


def upload(path: Path, address: str) -> str:
    Objects(address).write(path.name, path)
    return f"{address}/{path.name}"


class TestAddresses:
    def test_of_this_machine(self, bars, tmp_path):
        assert not is_remote(Path("s3:/x"))
        assert not is_remote("data/*.parquet")
        assert local_path(Path("x")) == Path("x")
        with pytest.raises(ConfigError, match="names another machine; write file:///path"):
            local_path("file://other/path")
        with pytest.raises(ConfigError, match="s3://bucket: names no object"):
            split_address("s3://bucket")
        source = write(bars[:300], tmp_path / "a b.parquet")
        mf.build(source.as_uri(), (tmp_path / "x.zarr").as_uri())
        mf.build(source, tmp_path / "y.zarr")
        assert tree(tmp_path / "x.zarr") == tree(tmp_path / "y.zarr")
        assert len(mf.open_store((tmp_path / "x.zarr").as_uri())) == 300

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(RemoteError) as caught:
            Objects("s3://bucket/x")
        assert str(caught.value) == (
            "s3://bucket/x needs the extra 'remote'; run pip install 'moola[remote]'"
        )

    def test_nobody_there(self, bucket, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "https://bucket.invalid")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
        objects = Objects("s3://bucket/x")
        monkeypatch.setattr(objects, "_store", Objects("http://127.0.0.1:9/x")._store)
        with pytest.raises(RemoteError) as caught:
            objects.names().__next__()
        assert str(caught.value).startswith("s3://bucket/x cannot be reached: ")
        assert str(caught.value).endswith("; check the address, the network and the credentials")
        assert "\n" not in str(caught.value)


class TestBuild:
    @both_providers
    def test_the_same_bytes(self, bars, bucket, tmp_path):
        source = write(bars, tmp_path / "nq.parquet")
        mf.build(source, tmp_path / "nq.zarr", CONFIG)
        expected = tree(tmp_path / "nq.zarr")
        report = mf.build(upload(source, bucket), f"{bucket}/nq.zarr", CONFIG)
        assert remote_tree(f"{bucket}/nq.zarr") == expected
        assert report.path == f"{bucket}/nq.zarr"
        assert report.instruments[0].num_bars == NUM_BARS
        assert mf.build(source, f"{bucket}/nq.zarr", CONFIG).up_to_date
        # From there to here as well.
        mf.build(f"{bucket}/nq.parquet", tmp_path / "other.zarr", CONFIG)
        assert tree(tmp_path / "other.zarr") == expected
        # Plain zarr reads it where it is.
        import obstore.store
        import zarr
        from zarr.storage import ObjectStore

        plain = zarr.open_group(
            ObjectStore(obstore.store.from_url(f"{bucket}/nq.zarr"), read_only=True), mode="r"
        )
        local = mf.open_store(tmp_path / "nq.zarr")
        rows = slice(CHUNK - 5, CHUNK + 5)
        found: Any = plain["features"]
        np.testing.assert_array_equal(as_bits(found[rows]), as_bits(local.features[rows]))

    def test_what_stands_is_not_replaced_unasked(self, bars, bucket, tmp_path):
        one, two = (write(bars[:n], tmp_path / f"{n}.parquet") for n in (300, 400))
        mf.build(one, f"{bucket}/x.zarr")
        before = remote_tree(f"{bucket}/x.zarr")
        message = refused(StoreError, two, f"{bucket}/x.zarr")
        assert message == (
            f"{bucket}/x.zarr was built from 300.parquet, not 400.parquet; pass --force to replace "
            "it, or build to another address"
        )
        message = refused(StoreError, one, f"{bucket}/x.zarr", mf.FeatureConfig(k=3))
        assert "x.zarr was built with k = 1.2, not 3" in message
        assert "cannot be appended to" in refused(StoreError, two, f"{bucket}/x.zarr", append=True)
        assert remote_tree(f"{bucket}/x.zarr") == before
        message = refused(BarsNotFoundError, f"{bucket}/gone.parquet", tmp_path / "y.zarr")
        assert message.startswith(f"{bucket}/gone.parquet: no such object; give the address of")

    def test_a_shorter_one_leaves_nothing_of_the_longer(self, bars, bucket, tmp_path):
        mf.build(bars, f"{bucket}/x.zarr")
        mf.build(bars[:300], f"{bucket}/x.zarr", force=True)
        mf.build(bars[:300], tmp_path / "x.zarr")
        assert remote_tree(f"{bucket}/x.zarr") == tree(tmp_path / "x.zarr")

    @pytest.mark.parametrize("standing", [False, True])
    def test_all_or_nothing(self, standing, bars, bucket, tmp_path, monkeypatch):
        """Whatever request fails, a reader finds no store or a whole one."""
        target = f"{bucket}/x.zarr"
        mf.build(bars[:400], tmp_path / "new.zarr")
        new = tree(tmp_path / "new.zarr")
        write_object = Objects.write
        for n in range(1, len(new) + 1):
            if standing:
                mf.build(bars[:300], target, force=True)
            calls = [0]

            def failing(self, name, content, n=n, calls=calls):
                calls[0] += 1
                if calls[0] == n:
                    raise RemoteError("out of reach")
                write_object(self, name, content)

            with monkeypatch.context() as patch:
                patch.setattr(Objects, "write", failing)
                assert refused(RemoteError, bars[:400], target, force=True) == "out of reach"
            with pytest.raises(StoreNotFoundError) as caught:
                mf.open_store(target)
            assert str(caught.value).startswith(f"no finished store at {target}; make one with")
        mf.build(bars[:400], target)
        assert remote_tree(target) == new

    @both_providers
    def test_a_universe(self, bucket, tmp_path):
        (tmp_path / "data").mkdir()
        for seed, symbol in enumerate(("A", "B", "C")):
            path = write(walk(300 + seed, seed=seed), tmp_path / "data" / f"{symbol}.parquet")
            upload(path, f"{bucket}/data")
        (tmp_path / "J.parquet").write_bytes(b"junk")
        upload(tmp_path / "J.parquet", f"{bucket}/data")
        source = f"{bucket}/data/*.parquet"
        report = mf.build(source, f"{bucket}/u.zarr")
        told = {one.symbol: (one.status, one.detail[:60]) for one in report.outcomes}
        assert {symbol: status for symbol, (status, _) in told.items()} == {
            "A": "built", "B": "built", "C": "built", "J": "failed",
        }  # fmt: skip
        assert told["J"][1].startswith(f"{bucket}/data/J.parquet: is"[:60])
        mf.build(tmp_path / "data", tmp_path / "u.zarr")
        assert remote_tree(f"{bucket}/u.zarr") == tree(tmp_path / "u.zarr")
        mf.build(source, tmp_path / "v.zarr")
        assert tree(tmp_path / "v.zarr") == tree(tmp_path / "u.zarr")
        # Again: one changed, one is gone.
        Objects(f"{bucket}/data").remove(["A.parquet", "J.parquet"])
        upload(write(walk(500, seed=9), tmp_path / "B.parquet"), f"{bucket}/data")
        report = mf.build(source, f"{bucket}/u.zarr")
        assert [one.status for one in report.outcomes] == ["kept", "built", "unchanged"]
        assert mf.build(source, f"{bucket}/u.zarr").up_to_date
        universe = mf.open_store(f"{bucket}/u.zarr")
        assert sorted(universe) == ["A", "B", "C"]
        assert len(universe["B"]) == 500
        mf.build(f"{bucket}/data/", f"{bucket}/u.zarr", prune=True)
        assert sorted(mf.open_store(f"{bucket}/u.zarr")) == ["B", "C"]
        assert not [name for name in remote_tree(f"{bucket}/u.zarr") if name.startswith("A/")]
        message = refused(BarsNotFoundError, f"{bucket}/data/*.csv", tmp_path / "w.zarr")
        assert (
            message == f"{bucket}/data/*.csv: no object has a name like this; give another pattern"
        )

    def test_a_failure_under_another_configuration(self, bucket, tmp_path):
        for seed, symbol in enumerate("AB"):
            upload(write(walk(300, seed=seed), tmp_path / f"{symbol}.parquet"), f"{bucket}/data")
        source, target = f"{bucket}/data/*.parquet", f"{bucket}/u.zarr"
        mf.build(source, target)
        (tmp_path / "A.parquet").write_bytes(b"junk")
        upload(tmp_path / "A.parquet", f"{bucket}/data")
        wide = mf.FeatureConfig.profile("wide")
        lost, built = mf.build(source, target, wide, force=True).outcomes
        assert (lost.status, built.status) == ("failed", "built")
        end = f"; its store, of another configuration, stays at {target}/A alone"
        assert lost.detail.endswith(end)
        assert list(mf.open_store(target)) == ["B"]
        assert len(mf.open_store(f"{target}/A")) == 300
        # In the same configuration it stays in its place, and nothing of this is said.
        (tmp_path / "B.parquet").write_bytes(b"junk")
        upload(tmp_path / "B.parquet", f"{bucket}/data")
        upload(write(walk(400), tmp_path / "A.parquet"), f"{bucket}/data")
        _, failed = mf.build(source, target, wide, force=True).outcomes
        assert (failed.status, "another configuration" in failed.detail) == ("failed", False)
        assert list(mf.open_store(target)) == ["A", "B"]

    def test_a_file_of_several_symbols(self, bucket, tmp_path):
        table = frame(walk(300, seed=1), "A/B").vstack(frame(walk(310, seed=2), "C"))
        table.sort("time").write_parquet(tmp_path / "many.parquet")
        mf.build(upload(tmp_path / "many.parquet", bucket), f"{bucket}/u.zarr")
        mf.build(tmp_path / "many.parquet", tmp_path / "u.zarr")
        assert remote_tree(f"{bucket}/u.zarr") == tree(tmp_path / "u.zarr")

    def test_command_line(self, bars, bucket, tmp_path):
        upload(write(bars[:300], tmp_path / "nq.parquet"), bucket)
        command = [sys.executable, "-m", "moola_features"]

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *arguments], env=environment({}), cwd=tmp_path, capture_output=True,
                text=True, check=False,
            )  # fmt: skip

        done = run("build", f"{bucket}/nq.parquet", "-o", f"{bucket}/nq.zarr", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["path"] == f"{bucket}/nq.zarr"
        shown = run("info", f"{bucket}/nq.zarr", "--json")
        assert json.loads(shown.stdout)[0]["num_bars"] == 300
        wrong = run("verify", f"{bucket}/nq.zarr")
        assert wrong.returncode == 2
        assert "is an address; copy what is there to this machine" in wrong.stderr


class TestRead:
    @pytest.fixture
    def stores(self, bars, bucket, tmp_path) -> tuple[Any, Any]:
        """The same store there and here."""
        mf.build(bars, f"{bucket}/x.zarr", CONFIG)
        mf.build(bars, tmp_path / "x.zarr", CONFIG)
        return mf.open_store(f"{bucket}/x.zarr", CONFIG), mf.open_store(tmp_path / "x.zarr")

    def test_rows(self, stores):
        there, here = stores
        assert len(there) == len(here)
        assert there.names == here.names
        np.testing.assert_array_equal(there.segments, here.segments)
        slices = (
            slice(0, 3), slice(CHUNK - 2, CHUNK + 2), slice(5, 5), slice(-4, None),
            slice(CHUNK, 2 * CHUNK), slice(9, 3), slice(NUM_BARS, None),
        )  # fmt: skip
        for name in ("features", "time", "valid", "ohlc"):
            one, other = getattr(there, name), getattr(here, name)
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            for rows in slices:
                np.testing.assert_array_equal(one[rows], other[rows])
            np.testing.assert_array_equal(one[-1], other[-1])
            np.testing.assert_array_equal(np.asarray(one), other)
        with pytest.raises(IndexError):
            there.time[NUM_BARS]
        with pytest.raises(StoreError, match="take rows by a slice such as"):
            there.time[::2]
        with pytest.raises(StoreError, match=r"was built with k = 1\.2, not 3"):
            mf.open_store(there.path, mf.FeatureConfig(k=3))

    @both_providers
    def test_windows(self, stores):
        there, here = stores
        one, other = there.windows(stride=3), here.windows(stride=3)
        assert len(one) == len(other)
        rows = np.random.default_rng(1).permutation(len(one))[:500]
        np.testing.assert_array_equal(as_bits(one.gather(rows)), as_bits(other.gather(rows)))
        np.testing.assert_array_equal(one.locate(rows)[1], other.starts[rows])

    def test_windows_of_one_segment(self, bars, bucket, tmp_path):
        config = mf.FeatureConfig(max_gap="2h")
        paths = (f"{bucket}/x.zarr", tmp_path / "x.zarr")
        stores = [mf.open_store(mf.build(bars, path, config).path) for path in paths]
        there, here = stores
        for segment in range(len(here.segments)):
            one, other = there.windows(segment=segment), here.windows(segment=segment)
            assert len(one) == len(other)
            np.testing.assert_array_equal(one.locate(range(len(one)))[1], other.starts)
        for store in stores:
            with pytest.raises(WindowError, match="segment is 3, the store has 3; give 0 to 2"):
                store.windows(segment=3)

    @pytest.mark.parametrize("call", ["verify", "export", "show", "export of one that is open"])
    def test_what_needs_files(self, stores, tmp_path, call):
        there, here = stores
        calls: dict[str, Any] = {
            "verify": lambda: mf.verify(there.path),
            "export": lambda: export_store(there.path, tmp_path / "out"),
            "show": lambda: write_chart(there, tmp_path / "x.png"),
            "export of one that is open": lambda: export_store(there, tmp_path / "out"),
        }
        with pytest.raises(StoreError) as caught:
            calls[call]()
        what = call.split()[0]
        assert str(caught.value) == (
            f"{there.path} is an address, which {what} does not take; "
            "copy what is there to this machine"
        )
        assert names_in(tmp_path) == ["cache", "x.zarr"]
        assert mf.verify(here.path.as_uri()).path == here.path

    def test_is_not_refreshed(self, stores, bucket, tmp_path):
        there, _ = stores
        write(walk(300), tmp_path / "A.parquet")
        mf.build([tmp_path / "A.parquet"], f"{bucket}/u.zarr")
        for opened in (there, mf.open_store(f"{bucket}/u.zarr")):
            with pytest.raises(StoreError) as caught:
                opened.refresh()
            assert str(caught.value) == (
                f"{opened.path} is an address, which is not refreshed; open it again"
            )

    def test_only_what_is_asked_for(self, stores, bucket, tmp_path):
        cache = ChunkCache(tmp_path / "own")
        store: Any = open_remote(f"{bucket}/x.zarr", cache)
        assert cache.num_fetched == 1  # the segments
        store.features[CHUNK : CHUNK + 5]
        assert cache.num_fetched == 2
        again: Any = open_remote(f"{bucket}/x.zarr", cache)
        again.features[CHUNK : CHUNK + 5]
        assert cache.num_fetched == 2

    def test_a_cache_that_is_damaged(self, stores, tmp_path):
        there, here = stores
        there.features[:5]
        files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert len(files) == 2
        for path in files:
            data = bytearray(path.read_bytes())
            data[7] ^= 1
            path.write_bytes(data)
        again = mf.open_store(there.path)
        np.testing.assert_array_equal(as_bits(again.features[:5]), as_bits(here.features[:5]))

    def test_a_store_that_is_rebuilt_meanwhile(self, stores, bars):
        there, here = stores
        np.testing.assert_array_equal(there.features[:5], here.features[:5])
        mf.build(bars, there.path, mf.FeatureConfig(k=3), force=True)
        # What is in the cache is the old one's; of the new one nothing is taken for it.
        np.testing.assert_array_equal(there.features[:5], here.features[:5])
        with pytest.raises(StoreError) as caught:
            there.features[2 * CHUNK :]
        assert "x.zarr/features/c/2/0 has CRC-32 " in str(caught.value)
        assert str(caught.value).endswith(
            "; if the store was rebuilt, open it again, else rebuild it with --force"
        )
        Objects(there.path).remove(["features/c/1/0"])
        with pytest.raises(StoreError, match="features/c/1/0 is missing, not "):
            there.features[CHUNK]

    def test_what_is_no_store(self, bucket):
        with pytest.raises(StoreNotFoundError, match="no finished store at"):
            mf.open_store(f"{bucket}/nothing.zarr")
        objects = Objects(f"{bucket}/x.zarr")
        for content, told in (
            (b"{", "zarr.json cannot be read"),
            (b"[]", "zarr.json is no JSON object"),
            (b"{}", "is a Zarr group that moola did not make"),
        ):
            objects.write("zarr.json", content)
            with pytest.raises(StoreError, match=told):
                mf.open_store(f"{bucket}/x.zarr")


class _Counting:
    """Objects in memory, for a cache to read."""

    address = "s3://bucket/x"

    def __init__(self) -> None:
        self.num_read = 0

    def read(self, name: str) -> bytes:
        self.num_read += 1
        return bytes([int(name)]) * 1_000


def test_a_cache_is_bounded(tmp_path):
    objects: Any = _Counting()
    cache = ChunkCache(tmp_path, max_bytes=10_000)

    def get(number: int) -> bytes:
        data = bytes([number]) * 1_000
        assert cache.get(objects, str(number), checksum(data), 1_000) == data
        return data

    for number in range(10):
        get(number)
        os.utime(cache._path(f"{objects.address}/{number}", checksum(bytes([number]) * 1_000)),
                 ns=(number + 1, number + 1))  # fmt: skip
    get(0)  # used just now, so it stays
    assert objects.num_read == 10
    get(10)
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert held == 9_000
    get(0)
    assert objects.num_read == 11
    get(1)
    assert objects.num_read == 12
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("MOOLA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ChunkCache().folder == tmp_path / "xdg" / "moola"
    assert ChunkCache().max_bytes == 10**10
    monkeypatch.setenv("MOOLA_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("MOOLA_CACHE_SIZE", "2GB")
    assert (ChunkCache().folder, ChunkCache().max_bytes) == (tmp_path / "mine", 2 * 10**9)
    monkeypatch.setenv("MOOLA_CACHE_SIZE", "lots")
    with pytest.raises(ConfigError) as caught:
        ChunkCache()
    assert str(caught.value) == "MOOLA_CACHE_SIZE is 'lots'; give a size such as '500MB' or '2GiB'"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("folder", ["/proc/nope", "{tmp_path}/file"])
def test_where_nothing_can_be_kept(tmp_path, folder):
    (tmp_path / "file").write_text("")
    objects: Any = _Counting()
    cache = ChunkCache(folder.format(tmp_path=tmp_path))
    data = bytes([7]) * 1_000
    for _ in range(2):
        assert cache.get(objects, "7", checksum(data), 1_000) == data
    assert objects.num_read == cache.num_fetched == 2
    assert names_in(tmp_path) == ["file"]


def test_a_cache_that_others_wrote(tmp_path, monkeypatch):
    """What is there is read, though its time of use cannot be told."""
    objects: Any = _Counting()
    cache = ChunkCache(tmp_path)
    data = bytes([7]) * 1_000

    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    for _ in range(2):
        assert cache.get(objects, "7", checksum(data), 1_000) == data
    assert objects.num_read == 1
