"""Builds that are cut off: the old store or the new one stands, whole, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moola_features as mf
from moola_features.errors import OutputError
from moola_features.files import replaced_folder
from moola_features.store import writer as store_writer
from tests.markets import (
    CHUNK,
    ROOT,
    assert_store_holds,
    environment,
    names_in,
    refused,
    run_python,
    tree,
    walk,
    write,
)

OLD, NEW = mf.FeatureConfig(), mf.FeatureConfig(k=3)
NUM_BARS = 66_000  # two chunk files
# Chunk files of four arrays, the segments, and the journal: its head and the chunk that is full.
NUM_WRITES = 2 * 4 + 1 + 2


class TestFullDisk:
    def fill_up(self, monkeypatch: pytest.MonkeyPatch, n: int) -> Iterator[int]:
        """Let the n-th write find the disk full, as all after it do."""
        calls = itertools.count(1)
        write_bytes = os.write

        def limited(handle: int, data: memoryview) -> int:
            if next(calls) < n:
                return write_bytes(handle, data)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(store_writer.os, "write", limited)
        return calls

    @pytest.mark.parametrize("standing", [False, True])
    @pytest.mark.parametrize("n", range(1, NUM_WRITES + 1))
    def test_at_every_write(self, n, standing, tmp_path, monkeypatch):
        target = tmp_path / "x.zarr"
        if standing:
            mf.build(walk(300), target, OLD)
        before = tree(tmp_path)
        with monkeypatch.context() as patch:
            calls = self.fill_up(patch, n)
            message = refused(OutputError, walk(NUM_BARS), target, NEW, force=True)
            assert next(calls) > n
        assert message.startswith(
            f"{target} cannot be written: no space left on device; free some space or choose "
            "another disk"
        )
        left = [name for name in names_in(tmp_path) if name != "x.zarr"]
        kept = "; what is finished stays in "
        assert (kept in message) == (left == [".x.zarr.building"])
        assert kept in message or left == []
        assert {name: data for name, data in tree(tmp_path).items() if name in before} == before
        report = mf.build(walk(NUM_BARS), target, NEW, force=True)
        assert report.num_resumed == len(left)
        assert_store_holds(mf.open_store(target), walk(NUM_BARS), NEW)
        assert names_in(tmp_path) == ["x.zarr"]

    def test_as_many_writes_as_counted(self, tmp_path, monkeypatch):
        calls = self.fill_up(monkeypatch, NUM_WRITES + 1)
        mf.build(walk(NUM_BARS), tmp_path / "x.zarr")
        assert next(calls) == NUM_WRITES + 1

    def test_writes_that_come_up_short(self, tmp_path, monkeypatch):
        mf.build(walk(NUM_BARS), tmp_path / "x.zarr")
        write_bytes = os.write
        monkeypatch.setattr(
            store_writer.os, "write", lambda handle, data: write_bytes(handle, data[:999_983])
        )
        mf.build(walk(NUM_BARS), tmp_path / "y.zarr")
        assert tree(tmp_path / "y.zarr") == tree(tmp_path / "x.zarr")

    @pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
    def test_a_disk_that_is_really_full(self, tmp_path):
        """A file system of 12 MiB of our own, with ever less room on it."""
        source = write(walk(CHUNK - 1), tmp_path / "bars.parquet")
        disk, python = shlex.quote(f"{tmp_path}/disk"), shlex.quote(sys.executable)
        command = f"mount -t tmpfs -o size=12m tmpfs {disk} && exec {python} -c"
        (tmp_path / "disk").mkdir()
        found = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{command} "$0" "$@"',
             FULL, str(source), str(tmp_path / "disk")],
            env=environment({}), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if found.returncode != 0 and "FULL" not in found.stderr:
            pytest.skip(f"no file system of our own: {found.stderr.splitlines()[-1]}")
        assert found.returncode == 0, found.stderr
        outcomes = json.loads(found.stdout)
        assert len(outcomes) > 20
        assert set(outcomes) == {"built", "full"}
        assert outcomes[0] == "built"
        assert outcomes[-1] == "full"


FULL = """
import json, os, sys
print("FULL begins", file=sys.stderr)
import moola_features as mf
from moola_features.errors import OutputError

source, disk = sys.argv[1:]
target, ballast = f"{disk}/x.zarr", f"{disk}/ballast"
old, new = mf.FeatureConfig(), mf.FeatureConfig(k=3)
outcomes = []
mf.build(source, target, old)  # 6 MiB, and the new one beside it as much: never enough room
room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
assert room > 5_500_000
for taken in range(0, room, room // 40):
    open(ballast, "wb").write(bytes(taken))
    try:
        mf.build(source, target, new, force=True)
        outcomes.append("built")
    except OutputError as error:
        assert "no space left on device; free some space" in str(error), error
        assert mf.open_store(target).config == old
        outcomes.append("full")
    os.unlink(ballast)
    assert set(os.listdir(disk)) <= {"x.zarr", ".x.zarr.building"}, os.listdir(disk)
    mf.build(source, target, old, force=True) if outcomes[-1] == "built" else None
print(json.dumps(outcomes))
"""


CRASHES = """
import json, os, random, signal, sys, time
import numba, zarr, zarr.codecs  # everything, and no thread yet: children are forked
import moola_features as mf
from moola_features import builder
from moola_features.bars import sources
from moola_features.feature_pass import kernel_of

folder, name, num_trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
target = f"{folder}/x.zarr"
configs = [mf.FeatureConfig(), mf.FeatureConfig(k=3)]
kernel_of(configs[0]).load()

def build(config):
    child, code = None, 1
    try:
        child = os.fork()
        if not child:
            mf.build(f"{folder}/bars.parquet", target, config, force=True)
            code = 0
    except KeyboardInterrupt:
        code = 2
    finally:
        if not child:
            os._exit(code)
    return child

for _ in range(2):  # the first one takes longer
    began = time.perf_counter()
    assert os.waitpid(build(configs[0]), 0)[1] == 0
    took = time.perf_counter() - began
randomness = random.Random(7)
for trial in range(num_trials):
    child = build(configs[1])
    # One moment in each part of a build, and perhaps one after its end.
    time.sleep(took * (trial + 0.2 + randomness.random()) / num_trials)
    os.kill(child, getattr(signal, name))
    status = os.waitpid(child, 0)[1]
    left = sorted(x for x in os.listdir(folder) if x not in ("bars.parquet", "x.zarr"))
    print(json.dumps({"status": status, "left": left}), flush=True)
    sys.stdin.readline()  # the store is looked at
    assert os.waitpid(build(configs[0]), 0)[1] == 0
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_killed_at_any_moment(name, tmp_path):
    bars = walk(100_000)
    write(bars, tmp_path / "bars.parquet")
    for folder, config in (("old", OLD), ("new", NEW)):
        mf.build(tmp_path / "bars.parquet", tmp_path / folder, config)
    old, new = tree(tmp_path / "old"), tree(tmp_path / "new")
    for folder in ("old", "new"):
        shutil.rmtree(tmp_path / folder)
    num_trials = 12
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHES, str(tmp_path), name, str(num_trials)], cwd=ROOT,
        env=environment({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    trials = []
    for line in process.stdout:
        trials.append({**json.loads(line), "new": tree(tmp_path / "x.zarr") == new})
        if not trials[-1]["new"]:
            assert tree(tmp_path / "x.zarr") == old
        mf.open_store(tmp_path / "x.zarr")
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait() == 0
    process.stdin.close()
    process.stdout.close()
    assert len(trials) == num_trials
    statuses = {trial["status"] for trial in trials}
    cut_off = 2 << 8 if name == "SIGINT" else 9
    # 1: an interrupt that came out of a library as an error of that library's own.
    assert statuses <= {0, cut_off, 1 << 8 if name == "SIGINT" else 0}
    assert cut_off in statuses
    assert not all(trial["new"] for trial in trials)
    assert all(trial["left"] in ([], [".x.zarr.building"]) for trial in trials)
    # Every build after a crash has cleared what that left behind.
    assert names_in(tmp_path) == ["bars.parquet", "x.zarr"]
    assert_store_holds(mf.open_store(tmp_path / "x.zarr"), bars, OLD)


REPEATED = """
import json, os, random, shutil, signal, sys, time
import numba, zarr, zarr.codecs  # everything, and no thread yet: children are forked
import moola_features as mf
from moola_features.bars import sources
from moola_features.feature_pass import kernel_of

folder, kind, num_trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
target = f"{folder}/work/x.zarr"
new = mf.FeatureConfig(k=3)
kernel_of(new).load()

def started():
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        how = {"append": True} if kind == "append" else {"config": new, "force": True}
        report = mf.build(f"{folder}/bars.parquet", target, **how)
        code = 100 + report.num_resumed
    finally:
        os._exit(code)

def reset():
    shutil.rmtree(f"{folder}/work", ignore_errors=True)
    os.mkdir(f"{folder}/work")
    shutil.copytree(f"{folder}/old", target)

for _ in range(2):  # the first one takes longer
    reset()
    began = time.perf_counter()
    assert os.WEXITSTATUS(os.waitpid(started(), 0)[1]) == 100
    took = time.perf_counter() - began
randomness = random.Random(7)
for trial in range(num_trials):
    reset()
    child = started()
    time.sleep(took * (trial + 0.2 + randomness.random()) / num_trials)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(json.dumps({"status": status}), flush=True)
    sys.stdin.readline()  # the store is looked at
    code = os.WEXITSTATUS(os.waitpid(started(), 0)[1])
    print(json.dumps({"num_resumed": code - 100}), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["append", "build"])
def test_killed_and_repeated(kind, tmp_path):
    """The old store or the new one after a kill; the new one after a repetition."""
    bars = walk(3 * CHUNK + 100)
    write(bars, tmp_path / "bars.parquet")
    before, after = bars, bars
    if kind == "append":
        before = bars[: CHUNK + 100]
    mf.build(before, tmp_path / "old", OLD)
    if kind == "append":
        shutil.copytree(tmp_path / "old", tmp_path / "new")
        mf.build(tmp_path / "bars.parquet", tmp_path / "new", append=True)
    else:
        mf.build(tmp_path / "bars.parquet", tmp_path / "new", NEW)
    old, new = tree(tmp_path / "old"), tree(tmp_path / "new")
    num_trials = 10
    process = subprocess.Popen(
        [sys.executable, "-c", REPEATED, str(tmp_path), kind, str(num_trials)], cwd=ROOT,
        env=environment({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stood, num_resumed = [], []
    for line in process.stdout:
        told = json.loads(line)
        found = tree(tmp_path / "work" / "x.zarr")
        mf.open_store(tmp_path / "work" / "x.zarr", check=True)
        if "status" in told:
            assert found in (old, new)
            stood.append(found == new)
        else:
            assert found == new
            assert names_in(tmp_path / "work") == ["x.zarr"]
            num_resumed.append(told["num_resumed"])
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait() == 0
    process.stdin.close()
    process.stdout.close()
    assert len(stood) == len(num_resumed) == num_trials
    assert not all(stood)
    assert all(0 <= number <= 3 for number in num_resumed)
    if kind == "append":
        assert num_resumed == [0] * num_trials
    assert_store_holds(
        mf.open_store(tmp_path / "work" / "x.zarr"), after, OLD if kind == "append" else NEW
    )


class TestAtOnce:
    def test_the_second_is_told(self, tmp_path):
        target = tmp_path / "x.zarr"
        mf.build(walk(300), target, OLD)
        with contextlib.suppress(ZeroDivisionError), replaced_folder(target):
            message = refused(OutputError, walk(300), target, NEW, force=True)
            raise ZeroDivisionError
        assert message == (
            f"{target} is being built by another process; wait for it, or stop it first"
        )
        assert_store_holds(mf.open_store(target), walk(300), OLD)
        assert names_in(tmp_path) == ["x.zarr"]

    def test_two_builds_of_one_target(self, tmp_path):
        """One wins, or both one after the other; nobody's store is half of each."""
        target = tmp_path / "x.zarr"
        markets = {OLD: walk(70_000, seed=1), NEW: walk(70_000, seed=2)}
        for _ in range(5):
            both = threading.Barrier(2)
            outcomes: dict[mf.FeatureConfig, Any] = {}

            def build(config: mf.FeatureConfig, both: Any = both, to: Any = outcomes) -> None:
                both.wait()
                try:
                    to[config] = mf.build(markets[config], target, config, force=True)
                except OutputError as error:
                    to[config] = str(error)

            threads = [threading.Thread(target=build, args=(config,)) for config in markets]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            store = mf.open_store(target)
            assert_store_holds(store, markets[store.config], store.config)
            assert not isinstance(outcomes[store.config], str)
            for outcome in outcomes.values():
                assert not isinstance(outcome, str) or "is being built by another" in outcome
            assert names_in(tmp_path) == ["x.zarr"]

    def test_readers_never_see_half(self, tmp_path):
        target = tmp_path / "x.zarr"
        markets = {OLD: walk(400, seed=1), NEW: walk(400, seed=2)}
        expected = {config: mf.compute(bars, config) for config, bars in markets.items()}
        mf.build(markets[OLD], target, OLD)
        done = threading.Event()
        seen: list[mf.FeatureConfig] = []
        faults: list[BaseException | str] = []

        def read() -> None:
            while not done.is_set() and not faults:
                try:
                    store = mf.open_store(target)
                    values = expected[store.config].values
                    if store.features.tobytes() != values.tobytes():
                        faults.append("features of another configuration")
                    if store.time.tobytes() != markets[store.config].time.tobytes():
                        faults.append("bars of another configuration")
                    seen.append(store.config)
                except BaseException as error:
                    faults.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(15):
            for config in (NEW, OLD):
                mf.build(markets[config], target, config, force=True)
        done.set()
        thread.join(60)
        assert faults == []
        assert {*seen} == {OLD, NEW}


PERMISSION = """
import os, sys, tempfile
import moola_features as mf
from moola_features.errors import OutputError

source, target = sys.argv[1:]
bars = mf.read_bars(source)
with tempfile.TemporaryDirectory() as folder:  # whatever is loaded late, and nobody may not read
    mf.build(bars, f"{folder}/x.zarr")
if os.geteuid() == 0:  # whom permissions do not stop
    os.setgid(65534)
    os.setuid(65534)
try:
    mf.build(bars, target, force=True)
except OutputError as error:
    print(error)
"""


def test_no_permission(tmp_path):
    source = write(walk(300), tmp_path / "bars.parquet")
    with tempfile.TemporaryDirectory() as folder:  # where others may look, unlike tmp_path
        Path(folder).chmod(0o555)
        message = run_python(PERMISSION, source, f"{folder}/x.zarr").stdout.strip()
        assert names_in(Path(folder)) == []
    remedy = "permission denied; choose a folder that you may write to"
    assert message == f"{folder}/x.zarr cannot be written: {remedy}"
