"""A real scheduler and real workers on loopback, one of them killed: the bytes are the same."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moola_features as mf
from moola_features.cluster import ranges as ranges_
from moola_features.errors import BarsError, ConfigError, RemoteError
from tests.markets import CHUNK, environment, frame, names_in, refused, seen, tree, walk, write
from tests.strategies import to_bars

pytest.importorskip("distributed")

CONFIG = mf.FeatureConfig(max_gap="2h")
NUM_BARS = 9 * CHUNK + 700


class Cluster:
    """A scheduler and workers, each a process of its own that knows nothing of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        self.address = self._told(0, rb"Scheduler at:\s+(tcp://\S+)").decode()

    def add_worker(self) -> subprocess.Popen[bytes]:
        process = self._start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
            "--host", "127.0.0.1",
        )  # fmt: skip
        self._told(len(self.processes) - 1, rb"(Registered to):")
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]],
                cwd=self.folder, env=environment({"OMP_NUM_THREADS": "1"}), stdout=file,
                stderr=file,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def _told(self, number: int, pattern: bytes) -> bytes:
        """Wait for a line in a process's log."""
        for _ in range(1_200):
            found = re.search(pattern, (self.folder / f"{number}.log").read_bytes())
            if found:
                return found[1]
            assert self.processes[number].poll() is None, (
                self.folder / f"{number}.log"
            ).read_text()
            time.sleep(0.05)
        raise AssertionError("nothing told")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    with contextlib.closing(made):
        made.add_worker()
        made.add_worker()
        yield made


def hostile(num_bars: int) -> mf.Bars:
    """Bars with gaps, and with flat runs across seams that hide a state from a guess."""
    bars = walk(num_bars, gaps=[CHUNK, 3 * CHUNK - 40, 5 * CHUNK + 9])
    ohlc = np.column_stack(bars.arrays[1:])
    for seam in range(4, num_bars // CHUNK + 1, 4):
        run = slice(seam * CHUNK - 3_000, min(seam * CHUNK + 3_000, num_bars))
        ohlc[run] = ohlc[run.start, 3]
    return to_bars(bars.time, ohlc)


@pytest.fixture(scope="module")
def long_file(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A long instrument in row groups that fit no chunk, and its store as one machine makes it."""
    folder = tmp_path_factory.mktemp("long")
    frame(hostile(NUM_BARS)).write_parquet(folder / "nq.parquet", row_group_size=50_000)
    mf.build(folder / "nq.parquet", folder / "nq.zarr", CONFIG)
    return folder / "nq.parquet", tree(folder / "nq.zarr")


@pytest.fixture(scope="module")
def many_files(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("many") / "data"
    folder.mkdir()
    for seed in range(12):
        write(walk(3_000 + seed, seed=seed), folder / f"i{seed:02}.parquet")
    (folder / "junk.parquet").write_bytes(b"junk")
    mf.build(folder, folder.parent / "u.zarr", CONFIG)
    return folder, tree(folder.parent / "u.zarr")


class TestRanges:
    def test_the_same_bytes(self, cluster, long_file, tmp_path, monkeypatch):
        source, expected = long_file
        report = mf.build(source, tmp_path / "x.zarr", CONFIG, dask=cluster.address)
        assert tree(tmp_path / "x.zarr") == expected
        assert report.num_chunks == 10
        assert report.num_guessed == 4  # ten chunks for two slots, four ranges each: five of two
        assert 1 <= report.num_redone < 4
        assert names_in(tmp_path) == ["x.zarr"]
        assert mf.build(source, tmp_path / "x.zarr", CONFIG, dask=cluster.address).up_to_date

    def test_settings_that_leave_nothing_to_guess(self, cluster, long_file, tmp_path):
        source, _ = long_file
        config = mf.FeatureConfig(range_period=5_000, window_length=105)
        mf.build(source, tmp_path / "x.zarr", config)
        mf.build(source, tmp_path / "y.zarr", config, dask=cluster.address)
        assert tree(tmp_path / "x.zarr") == tree(tmp_path / "y.zarr")

    def test_bad_bars_are_named_by_their_row(self, cluster, tmp_path):
        table = frame(walk(3 * CHUNK))
        for row, value in ((2 * CHUNK, "time"), (CHUNK + 7, "high")):
            bad = table.with_row_index("row").to_pandas()
            bad.loc[row, value] = bad.loc[row - 1, value] if value == "time" else -1.0
            bad.drop(columns="row").to_parquet(tmp_path / "bad.parquet", row_group_size=50_000)
            message = refused(
                BarsError, tmp_path / "bad.parquet", tmp_path / "x.zarr", dask=cluster.address
            )
            assert f"row {row} (" in message
            assert names_in(tmp_path) == ["bad.parquet"]

    def test_too_few(self, cluster, tmp_path):
        source = write(walk(104), tmp_path / "few.parquet")
        message = refused(BarsError, source, tmp_path / "x.zarr", dask=cluster.address)
        assert message.startswith("few.parquet: 104 bars, fewer than one window of 105")

    def test_a_format_that_is_read_from_its_start(self, cluster, tmp_path):
        source = tmp_path / "bars.csv"
        frame(walk(70_000)).write_csv(source)
        mf.build(source, tmp_path / "x.zarr")
        report = mf.build(source, tmp_path / "y.zarr", dask=cluster.address)
        assert tree(tmp_path / "x.zarr") == tree(tmp_path / "y.zarr")
        assert report.num_chunks == 2
        assert report.path == tmp_path / "y.zarr"

    def test_every_range_alone(self, long_file, tmp_path):
        """Without a cluster: what a range says of its states, and of its files, is true."""
        source, _ = long_file
        recipe = ranges_.Recipe(config=CONFIG)
        bars = hostile(NUM_BARS)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(bars.time) > CONFIG.max_gap_ns) + 1])
        whole = ranges_.compute_range(
            ranges_.Range(source, recipe, tmp_path, 0, NUM_BARS, begins_segment=True)
        )
        ends = {}
        for start in range(0, NUM_BARS, CHUNK):
            stop = min(start + CHUNK, NUM_BARS)
            known = int(starts[np.searchsorted(starts, start, side="left") - 1]) if start else 0
            task = ranges_.Range(
                source, recipe, tmp_path, start, stop, known, bool(start in starts),
                ends.get(start),
            )  # fmt: skip
            surveyed = ranges_.survey(task)
            assert surveyed.starts.tolist() == starts[(starts >= start) & (starts < stop)].tolist()
            assert (surveyed.first_time, surveyed.last_time) == (
                bars.time[start], bars.time[stop - 1],
            )  # fmt: skip
            done = ranges_.compute_range(task)
            ends[stop] = done.ended
            assert done.chunks[0].checksums == whole.chunks[start // CHUNK].checksums
        assert ends[NUM_BARS] == whole.ended


class TestInstruments:
    def test_the_same_bytes(self, cluster, many_files, tmp_path, monkeypatch):
        folder, expected = many_files
        monkeypatch.chdir(folder.parent)  # workers were started elsewhere
        calls: list[tuple[int, int | None]] = []
        report = mf.build(
            "data/*.parquet", tmp_path / "u.zarr", CONFIG, dask=cluster.address,
            progress=lambda done, total: calls.append((done, total)),
        )  # fmt: skip
        assert tree(tmp_path / "u.zarr") == expected
        assert [one.symbol for one in report.outcomes if one.status == "failed"] == ["junk"]
        assert calls == [(n, 13) for n in range(1, 14)]
        again = mf.build("data/*.parquet", tmp_path / "u.zarr", CONFIG, dask=cluster.address)
        assert {one.status for one in again.outcomes} == {"unchanged", "failed"}

    def test_one_file_of_several_symbols(self, cluster, tmp_path):
        table = frame(walk(300, seed=1), "A/B").vstack(frame(walk(310, seed=2), "C"))
        table.sort("time").write_parquet(tmp_path / "many.parquet")
        for options in ({}, {"dask": cluster.address}):
            target = tmp_path / f"{len(options)}.zarr"
            mf.build(tmp_path / "many.parquet", target, **options)
        assert tree(tmp_path / "0.zarr") == tree(tmp_path / "1.zarr")

    def test_a_worker_is_killed(self, cluster, many_files, long_file, tmp_path):
        """Once while instruments are built, once while ranges are."""
        for (source, expected), name in ((many_files, "u.zarr"), (long_file, "x.zarr")):
            target, left = tmp_path / name, tmp_path / f".{name}.building"
            victim = cluster.add_worker()
            outcome: list[Any] = []

            def build(source=source, target=target, outcome=outcome) -> None:
                outcome.append(mf.build(source, target, CONFIG, dask=cluster.address))

            thread = threading.Thread(target=build)
            thread.start()
            while thread.is_alive() and not seen(left, "**/features/c/*/0"):
                time.sleep(0.002)
            under_way = thread.is_alive()
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            thread.join(120)
            assert under_way
            assert outcome
            assert tree(target) == expected


class TestRefusals:
    def test_nobody_there(self, tmp_path, monkeypatch):
        from moola_features.cluster import dask

        monkeypatch.setattr(dask, "_CONNECT_SECONDS", 0.3)
        message = refused(RemoteError, walk(300), tmp_path / "x.zarr", dask="tcp://127.0.0.1:9")
        assert message == (
            "no scheduler answers at tcp://127.0.0.1:9; start one with `dask scheduler`, or mend "
            "the address"
        )

    @pytest.mark.parametrize("address", ["garbage", "", "tcp://", "tcp://host", "host:port"])
    def test_no_address(self, address, tmp_path):
        began = time.monotonic()
        with pytest.raises(ConfigError) as caught:
            mf.build(walk(200), tmp_path / "x.zarr", dask=address)
        assert str(caught.value) == (
            f"--dask is {address!r}; give the address of a scheduler, such as tcp://host:8786"
        )
        assert time.monotonic() - began < 15  # nobody is waited for

    def test_no_workers(self, tmp_path):
        with contextlib.closing(Cluster(tmp_path)) as alone:
            message = refused(RemoteError, walk(300), tmp_path / "x.zarr", dask=alone.address)
        assert message == (
            f"the scheduler at {alone.address} has no workers; start some with `dask worker "
            f"{alone.address}`"
        )

    def test_bars_in_memory(self, cluster, tmp_path):
        message = refused(
            ConfigError, walk(300), tmp_path / "x.zarr", dask=cluster.address, max_memory="1GB"
        )
        assert "a cluster's workers have limits of their own" in message
        message = refused(ConfigError, walk(300), tmp_path / "x.zarr", dask=cluster.address)
        assert message == (
            "source is <bars>; a cluster builds from files, so write the bars to one that its "
            "workers reach"
        )

    def test_without_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        message = refused(RemoteError, walk(300), tmp_path / "x.zarr", dask="tcp://x:1")
        assert message == ("--dask tcp://x:1 needs the extra 'dask'; run pip install 'moola[dask]'")
