"""Break builds and stores on purpose, and write what came of it into docs/faults.md.

`python benchmarks/faults.py` kills 200 builds and 200 appends at random moments, fills the disk
at every write, damages files, and lets builds meet. Whatever it finds that is neither the old store
nor the new one, nor said in one line, is an error, and then no table is written.
"""

from __future__ import annotations

import argparse
import collections
import errno
import functools
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees its own folder only

import numba  # noqa: E402, F401 - everything, before children are forked
import zarr.codecs  # noqa: E402, F401

import moola_features as mf  # noqa: E402
from benchmarks.report import replace_block  # noqa: E402
from moola_features.bars import sources  # noqa: E402, F401
from moola_features.errors import MoolaError, OutputError  # noqa: E402
from moola_features.feature_pass import kernel_of  # noqa: E402
from moola_features.store.layout import CHUNK_BARS, bar_arrays, chunk_path, num_chunks  # noqa: E402
from moola_features.synth import write_market  # noqa: E402

TABLE = ROOT / "docs" / "faults.md"
NUM_BARS = 3 * CHUNK_BARS + 4_321
OLD, NEW = mf.FeatureConfig(), mf.FeatureConfig(k=3)


@dataclass
class Row:
    """One line of the table."""

    fault: str
    times: int
    outcome: str
    afterwards: str

    def __str__(self) -> str:
        return f"| {self.fault} | {self.times} | {self.outcome} | {self.afterwards} |"


@dataclass(frozen=True)
class Place:
    """A folder with bars, the stores they make, and a target."""

    folder: Path

    @property
    def bars(self) -> Path:
        return self.folder / "bars.parquet"

    @property
    def head(self) -> Path:
        return self.folder / "head.parquet"

    @property
    def target(self) -> Path:
        return self.folder / "work" / "x.zarr"

    @property
    def left(self) -> list[str]:
        """What lies beside the target."""
        return sorted(x.name for x in self.target.parent.iterdir() if x != self.target)

    def reset(self, kind: str | None) -> None:
        """Put a store of some kind in the target's place, or none, and nothing beside it."""
        shutil.rmtree(self.target.parent, ignore_errors=True)
        self.target.parent.mkdir()
        if kind is not None:
            shutil.copytree(self.folder / kind, self.target)

    def digest(self) -> str | None:
        """Digest of the store at the target, which must be whole; None where there is none."""
        if not self.target.exists():
            return None
        mf.open_store(self.target, check=True)
        return digest_of(self.target)


def digest_of(folder: Path) -> str:
    """Digest of every file below a folder, with its name."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}|{path.stat().st_size}|".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def started(work: Callable[[], object]) -> int:
    """Start a process of its own that does some work; it exits with 0 if it comes to an end.

    Nothing that starts threads runs in this process itself: a child has none of them.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def begun(kind: Kind, place: Place) -> int:
    """Start a process that builds or appends, and wait until it has imported what it needs."""
    reading, writing = os.pipe()

    def work() -> None:
        for name in ("moola_features.builder", "moola_features.bars.sources", "zarr"):
            importlib.import_module(name)
        os.write(writing, b".")
        kind.run(place)

    child = started(work)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read(1) == b"."
    return child


def told(work: Callable[[], Any]) -> Any:
    """Do some work in a process of its own and return what it returns, or is refused with."""
    reading, writing = os.pipe()

    def work_and_tell() -> None:
        try:
            found = work()
        except MoolaError as error:
            found = str(error)
            assert "\n" not in found
        os.write(writing, json.dumps(found).encode())

    child = started(work_and_tell)
    os.close(writing)
    with open(reading, "rb") as pipe:
        found = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(found)


def prepare(folder: Path) -> Place:
    """Make bars, the first third of them, and a store of each."""
    place = Place(folder)

    def make() -> None:
        import polars as pl

        write_market(place.bars, num_bars=NUM_BARS)
        pl.read_parquet(place.bars)[: CHUNK_BARS + 700].write_parquet(place.head)
        mf.build(place.bars, folder / "old", OLD)
        mf.build(place.bars, folder / "new", NEW)
        mf.build(place.head, folder / "short", OLD)
        place.reset("short")
        mf.build(place.bars, place.target, append=True)
        os.rename(place.target, folder / "grown")

    told(make)
    return place


@dataclass(frozen=True)
class Kind:
    """A build or an append, what stands before it, and what after."""

    name: str
    before: str | None
    after: str

    def __str__(self) -> str:
        return "an append" if self.name == "append" else "a build"

    def run(self, place: Place) -> mf.BuildReport:
        if self.name == "append":
            return mf.build(place.bars, place.target, append=True)
        return mf.build(place.bars, place.target, NEW, force=self.before is not None)

    def num_resumed(self, place: Place) -> int:
        """Chunks that a repeated run takes over."""
        found = told(lambda: self.run(place).num_resumed)
        assert isinstance(found, int), found
        return found


FRESH, AGAIN = Kind("build", None, "new"), Kind("build", "old", "new")
APPEND = Kind("append", "short", "grown")


def killed(place: Place, kind: Kind, num_trials: int) -> Row:
    """Kill it at random moments, look at what stands, and repeat it."""
    expected = {None if kind.before is None else digest_of(place.folder / kind.before): "old"}
    expected[digest_of(place.folder / kind.after)] = "new"
    took = _seconds(place, kind)
    randomness = random.Random(17)
    stood: collections.Counter[str] = collections.Counter()
    num_left = num_resumed = 0
    for _ in range(num_trials):
        place.reset(kind.before)
        child = begun(kind, place)
        time.sleep(randomness.uniform(0, 1.25) * took)  # past its usual end too
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        stood[expected[place.digest()]] += 1
        num_left += bool(place.left)
        if expected[place.digest()] == "old" or kind.name == "append":
            num_resumed += kind.num_resumed(place) > 0
        assert expected[place.digest()] == "new", "the repeated one ended otherwise"
        shutil.rmtree(place.target.with_name(f".{place.target.name}.building"), ignore_errors=True)
        assert place.left == [], place.left
    words = "nothing" if kind.before is None else "the old store"
    where = "nothing" if kind.before is None else "a store"
    return Row(
        f"kill -9 of {kind} at a random moment, where {where} stood",
        num_trials,
        f"{words} stood, whole: {stood['old']}; the new store: {stood['new']}; anything else: 0; "
        f"with something left beside it: {num_left}",
        f"repeated, all end in the same bytes{_resumed(kind, num_resumed)}",
    )


def _resumed(kind: Kind, number: int) -> str:
    return "" if kind.name == "append" else f"; {number} went on from finished chunks"


def _seconds(place: Place, kind: Kind) -> float:
    took = []
    for _ in range(5):
        place.reset(kind.before)
        child = begun(kind, place)
        began = time.perf_counter()
        assert os.waitpid(child, 0)[1] == 0
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def full_disk(place: Place, kind: Kind) -> Row:
    """Let every write call in turn, and all that follow it, find the disk full."""
    before, after = (digest_of(place.folder / str(x)) for x in (kind.before, kind.after))

    def fill_up(n: int) -> None:
        with mock.patch("os.write", _filling_up(n)):
            kind.run(place)

    num_kept = num_writes = 0
    while True:
        place.reset(kind.before)
        message = told(functools.partial(fill_up, num_writes + 1))
        if message is None:
            break
        num_writes += 1
        assert "no space left on device; free some space" in message, message
        assert place.digest() == before
        num_kept += kind.num_resumed(place) > 0
        assert place.digest() == after
        assert place.left == []
    return Row(
        f"a full disk (ENOSPC) at each write call of {kind}", num_writes,
        "one line: no space left on device, and the remedy; the old store stands, whole",
        f"repeated, all end in the same bytes{_resumed(kind, num_kept)}",
    )  # fmt: skip


def _filling_up(n: int) -> Callable[[int, bytes], int]:
    calls = itertools.count(1)
    write = os.write

    def limited(handle: int, data: bytes) -> int:
        if next(calls) < n:
            return write(handle, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return limited


def damaged(place: Place, how: str) -> Row:
    """Cut or flip every chunk file in turn; opening or checking says so, and building mends it."""
    randomness = random.Random(5)
    times = 0
    for path in _chunk_files(place):
        place.reset("old")
        data = bytearray(path.read_bytes())
        if how == "cut":
            data = data[: len(data) // 2]
        else:
            data[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)
        path.write_bytes(data)
        message = told(lambda: bool(mf.open_store(place.target, check=how == "flip")))
        assert str(path) in str(message), message
        assert how == "cut" or told(lambda: mf.verify(place.target).passed) is False
        times += 1
    told(lambda: mf.build(place.bars, place.target, OLD, force=True).num_bars)
    assert place.digest() == digest_of(place.folder / "old")
    if how == "cut":
        outcome = "opening names the file, its size and the one it must have"
    else:
        outcome = "`verify` and `open_store(check=True)` name the file and both checksums"
    what = "a chunk file cut to half" if how == "cut" else "one flipped bit in a chunk file"
    return Row(what, times, outcome, "`build --force` ends in the same bytes")


def _chunk_files(place: Place) -> Iterator[Path]:
    for name, array in bar_arrays(11).items():
        for index in range(num_chunks(NUM_BARS)):
            yield chunk_path(place.target, name, index, array)


def damaged_tail(place: Place) -> Row:
    """Flip a bit in the chunk that an append goes on from."""
    expected = digest_of(place.folder / "short")
    for name, array in bar_arrays(11).items():
        place.reset("short")
        path = chunk_path(place.target, name, 1, array)
        data = bytearray(path.read_bytes())
        data[100] ^= 2
        path.write_bytes(data)
        message = told(lambda: APPEND.run(place).num_bars)
        assert str(path) in str(message), message
        data[100] ^= 2
        path.write_bytes(data)
        assert place.digest() == expected
    return Row(
        "one flipped bit in the chunk that an append goes on from", 4,
        "the append is refused in one line, which names the file",
        "the store is as it was",
    )  # fmt: skip


def read_only(place: Place, kind: Kind) -> Row:
    """Build or append, as nobody in particular, where the folder may not be written."""
    place.reset(kind.before)
    place.target.parent.chmod(0o555)

    def work() -> int:
        # Once, so that everything is imported while it may still be read.
        mf.build(place.head, place.folder / "scratch", OLD, force=True)
        if os.geteuid() == 0:  # whom permissions do not stop
            os.setgid(65534)
            os.setuid(65534)
        return kind.run(place).num_bars

    message = told(work)
    place.target.parent.chmod(0o755)
    assert "permission denied; choose a folder that you may write to" in str(message), message
    assert place.left == []
    return Row(
        f"{kind} in a folder that may not be written", 1,
        "one line: permission denied, and the remedy",
        "what stood stands" if kind.before else "nothing is there",
    )  # fmt: skip


def two_at_once(place: Place, kind: Kind, num_trials: int) -> Row:
    """Start two of them together."""
    after = digest_of(place.folder / kind.after)
    codes: collections.Counter[str] = collections.Counter()
    for _ in range(num_trials):
        place.reset(kind.before)

        def work() -> None:
            try:
                kind.run(place)
            except OutputError as error:
                os._exit(7 if "is being built by another process; wait" in str(error) else 8)

        children = [started(work) for _ in range(2)]
        statuses = sorted(os.waitstatus_to_exitcode(os.waitpid(x, 0)[1]) for x in children)
        assert statuses in ([0, 0], [0, 7]), statuses
        codes["refused" if 7 in statuses else "both"] += 1
        assert place.digest() == after
        assert place.left == []
    return Row(
        f"{kind} begun twice at once", num_trials,
        f"one is told in one line that another is at it: {codes['refused']}; "
        f"one came after the other: {codes['both']}",
        "the store of one of them stands, whole",
    )  # fmt: skip


def main() -> int:
    """Try everything, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="trials of each kind of kill")
    arguments = parser.parse_args()
    kernel_of(OLD).load()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        place = prepare(Path(folder))
        for make in (
            lambda: killed(place, FRESH, arguments.kills // 2),
            lambda: killed(place, AGAIN, arguments.kills - arguments.kills // 2),
            lambda: killed(place, APPEND, arguments.kills),
            lambda: full_disk(place, AGAIN),
            lambda: full_disk(place, APPEND),
            lambda: damaged(place, "cut"),
            lambda: damaged(place, "flip"),
            lambda: damaged_tail(place),
            lambda: read_only(place, FRESH),
            lambda: read_only(place, APPEND),
            lambda: two_at_once(place, AGAIN, 20),
            lambda: two_at_once(place, APPEND, 20),
        ):
            rows.append(make())
            print(rows[-1], flush=True)
    head = "| fault | times | outcome | afterwards |\n| --- | --: | --- | --- |"
    replace_block(TABLE, "\n".join([head, *map(str, rows)]))
    print(f"{TABLE.relative_to(ROOT)} is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
