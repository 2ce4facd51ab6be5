"""Memory that is freed and asked for again: without a page fault, where glibc was told."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

import moola_train
from moola_train import cli

ROOT = Path(moola_train.__file__).parents[1]
# The first array makes the heap as large as it gets.
FAULTS = """
import resource, sys
import numpy as np
from moola_train.allocator import keep_freed

def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(400_000)  # small enough that NumPy asks for no huge pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

told = sys.argv[1] == "told" and keep_freed()
fill()
print(told, fill())
"""
NUM_PAGES = 8 * 400_000 // 4096

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)


def faults(how: str, **environment: str) -> tuple[bool, int]:
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
    }
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env={**own, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, count = done.stdout.split()
    return told == "True", int(count)


def test_what_is_freed_is_there_again() -> None:
    told, count = faults("told")
    assert told
    assert count < NUM_PAGES / 20


def test_glibc_gives_it_back_unless_told() -> None:
    whole = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if whole.exists() and "[always]" in whole.read_text(encoding="ascii"):
        pytest.skip("huge pages: a fault fills 512 of them")
    told, count = faults("not told")
    assert not told
    assert count > NUM_PAGES / 2


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_environment_chose_stands(name: str) -> None:
    value = "glibc.malloc.arena_max=2" if name == "GLIBC_TUNABLES" else "2"
    assert not faults("told", **{name: value})[0]


def test_the_command_line_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cli, "keep_freed", lambda: calls.append("keep"))
    monkeypatch.setattr(cli, "run", lambda *_: calls.append("run"))
    cli.main()
    assert calls == ["keep", "run"]
