"""Run a command and say what it took: seconds from start to exit, CPU seconds, peak memory.

A child has its parent's peak memory to its name until it outgrows it, so what is measured is
started by a small process of its own: this file, run as a script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Took:
    """What a process took."""

    wall: float
    cpu: float
    peak_bytes: int


def measure(command: Sequence[str | Path]) -> Took:
    """Run a Python command line that must succeed: arguments as after ``python``."""
    printed = run_python([__file__, sys.executable, *command])
    return Took(**json.loads(printed))


def run_python(command: Sequence[str | Path], **environment: str) -> str:
    """Run Python on this repository's packages and return what it printed."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed: {done.stderr}")
    return done.stdout


def _main(command: list[str]) -> int:
    # The command's own output goes where errors go; stdout is for the figures.
    redirect = [(os.POSIX_SPAWN_DUP2, 2, 1)]
    began = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=redirect)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - began
    took = {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
    print(json.dumps(took))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
