"""The cache of compiled kernels: many processes, one compilation, and nobody else's code."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

from moola_features.kernels import compiled
from moola_features.kernels.compiled import Kernel, cache_key, cache_root
from moola_features.kernels.gather import gather
from tests.markets import ROOT, environment

pytestmark = pytest.mark.skipif(
    bool(getattr(numba.config, "DISABLE_JIT", False)), reason="nothing is compiled, so nothing kept"
)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A cache of our own, empty."""
    monkeypatch.setenv("MOOLA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fresh() -> Kernel:
    """The smallest kernel, as a process that has just begun sees it."""
    return Kernel(gather.function, gather.signature)


def works(kernel: Kernel) -> bool:
    out = np.empty((2, 3), np.float32)
    both = np.arange(2)
    kernel.load()(np.arange(9, dtype=np.float32), np.array([1, 5]), both, both, 3, 1, out)
    return out.tolist() == [[1, 2, 3], [5, 6, 7]]


def kept(root: Path, suffix: str) -> list[Path]:
    return sorted((root / cache_key()).rglob(f"*.{suffix}"))


def test_compiled_once_then_read(root):
    first, second = fresh(), fresh()
    assert not first.was_compiled
    assert works(first)
    assert first.was_compiled
    assert len(kept(root, "nbi")) == len(kept(root, "nbc")) == 1
    before = [path.stat().st_mtime_ns for path in kept(root, "nb*")]
    assert works(second)
    assert not second.was_compiled
    assert [path.stat().st_mtime_ns for path in kept(root, "nb*")] == before
    assert sorted(path.name for path in root.iterdir()) == [cache_key(), f"{cache_key()}.lock"]
    assert stat.S_IMODE((root / cache_key()).stat().st_mode) == 0o700


def test_numba_keeps_its_own_settings(root):
    settings: dict[str, object] = vars(numba.config)
    before = settings["CACHE_DIR"]
    assert works(fresh())
    assert settings["CACHE_DIR"] == before


class TestWhereItIs:
    def test_named_or_the_users(self, monkeypatch):
        monkeypatch.setenv("MOOLA_CACHE_DIR", "/a/b")
        assert cache_root() == Path("/a/b")
        monkeypatch.setenv("MOOLA_CACHE_DIR", "")
        monkeypatch.setenv("XDG_CACHE_HOME", "/c")
        assert cache_root() == Path("/c/moola")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/d")
        assert cache_root() == Path("/d/.cache/moola")

    def test_any_kernel_changed_is_another_cache(self, tmp_path, monkeypatch):
        copy = Path(shutil.copytree(Path(compiled.__file__).parent, tmp_path / "kernels"))
        monkeypatch.setattr(compiled, "__file__", str(copy / "compiled.py"))
        here = cache_key.__wrapped__()
        assert here == cache_key.__wrapped__()
        (copy / "volatility.py").write_text("# changed")
        assert cache_key.__wrapped__() != here


class TestCannotBeUsed:
    def file_in_its_place(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root.write_text("a file")

    def below_a_file(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root.write_text("a file")
        monkeypatch.setenv("MOOLA_CACHE_DIR", str(root / "cache"))

    def file_for_the_folder(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root.mkdir()
        (root / cache_key()).write_text("a file")

    def read_only(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root.mkdir(mode=0o500)
        opened = os.open

        def refuse(path: object, *arguments: object, **options: object) -> object:
            if str(path).endswith(".lock"):  # permissions do not stop root
                raise PermissionError(errno.EACCES, "permission denied")
            return opened(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)

    def no_locks(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(handle: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)

    def no_home(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> Path:
            raise RuntimeError("could not determine home directory")

        monkeypatch.setattr(compiled, "cache_root", refuse)

    @pytest.mark.parametrize(
        "way", [file_in_its_place, below_a_file, file_for_the_folder, read_only, no_locks, no_home]
    )
    def test_works_without(self, root, monkeypatch, way):
        way(self, root, monkeypatch)
        kernel = fresh()
        assert works(kernel)
        assert kernel.was_compiled
        assert not kept(root, "nb*")

    @pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
    def test_others_may_write_there(self, root, mode):
        assert works(fresh())
        (root / cache_key()).chmod(mode)
        kernel = fresh()
        assert works(kernel)
        assert kernel.was_compiled, "code that others can write was run"
        (root / cache_key()).chmod(0o700)
        assert works(again := fresh())
        assert not again.was_compiled

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
    def test_it_belongs_to_another(self, root):
        assert works(fresh())
        os.chown(root / cache_key(), 65_534, -1)
        kernel = fresh()
        assert works(kernel)
        assert kernel.was_compiled, "code of another user was run"

    def test_full_disk(self, root, monkeypatch):
        from numba.core.caching import IndexDataCacheFile

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(IndexDataCacheFile, "save", full)
        kernel = fresh()
        with pytest.warns(UserWarning, match="kernels were not cached: .*No space left"):
            assert works(kernel)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path: Path) -> None:
    path.write_bytes(b"\x80\x04garbage" + path.read_bytes()[10:])


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [emptied, halved, garbled, made_a_folder, os.unlink])
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_damage_is_repaired(root, suffix, damage: Callable[[Path], None]):
    assert works(fresh())
    damage(kept(root, suffix)[0])
    repairing, after = fresh(), fresh()
    assert works(repairing)
    assert repairing.was_compiled
    assert works(after)
    assert not after.was_compiled


@pytest.fixture
def waiting(root) -> Iterator[Callable[[], None]]:
    """Another process holds the lock until this is called; a thread of ours waits for it."""
    assert works(fresh())
    lock = os.open(root / f"{cache_key()}.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found: list[bool | BaseException] = []

    def load() -> None:
        try:
            found.append(works(fresh()))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join(0.2)

    def let_go() -> None:
        assert thread.is_alive(), "it did not wait"
        os.close(lock)
        thread.join(30)
        assert found == [True]

    yield let_go
    thread.join(30)


def test_waits_for_another_process(waiting):
    waiting()


def test_the_other_process_clears_the_cache(root, waiting):
    shutil.rmtree(root / cache_key())
    waiting()
    assert works(after := fresh())
    assert not after.was_compiled


EACH = """
import json, sys
import numpy as np
from moola_features.kernels.gather import gather

print("ready", flush=True)
sys.stdin.read()  # until all are
out = np.empty((2, 3), np.float32)
both = np.arange(2)
gather.load()(np.arange(9, dtype=np.float32), np.array([1, 5]), both, both, 3, 1, out)
print(json.dumps([out.tolist(), gather.was_compiled]))
"""


def test_eight_processes_begin_at_once(root):
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", EACH], cwd=ROOT, env=environment({}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def result(process: subprocess.Popen[str]) -> list[object]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        found: list[object] = json.loads(out)
        return found

    processes = [start() for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(8) as pool:  # communicate closes stdin, which lets them go
        found = list(pool.map(result, processes))
    values = [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]
    assert [x[0] for x in found] == [values] * 8
    assert sum(bool(x[1]) for x in found) == 1, "more than one compiled"
    ninth = start()
    assert ninth.stdout is not None
    ninth.stdout.readline()
    assert result(ninth) == [values, False]
