"""Measure, then write the tables: `python benchmarks/run.py`.

Takes some minutes of a machine that does nothing else. Given the JSON that pytest-benchmark wrote
of an earlier run, makes the tables of that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees its own folder only

from benchmarks import report  # noqa: E402 - the path comes first


def main() -> int:
    """Measure or read, and put both tables in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, help="JSON of an earlier run")
    arguments = parser.parse_args()
    targets = {
        ROOT / "README.md": report.short_report,
        ROOT / "docs" / "performance.md": report.full_report,
    }
    for path in targets:
        try:
            report.surroundings(path)  # before minutes of measuring
        except (OSError, ValueError) as error:
            sys.exit(str(error))
    results = measure() if arguments.results is None else _read(arguments.results)
    for path, made in targets.items():
        report.replace_block(path, made(results))
        print(f"{path.relative_to(ROOT)} is up to date")
    return 0


def measure() -> dict[str, Any]:
    """Run the benchmarks and return what pytest-benchmark wrote of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        command = (
            sys.executable, "-m", "pytest", str(ROOT / "benchmarks"),
            "--benchmark-enable", "--benchmark-only", "--benchmark-columns=median,iqr,rounds",
            f"--benchmark-json={path}",
        )  # fmt: skip
        searched = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            command, cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": searched}
        )
        if done.returncode:
            sys.exit("a benchmark failed, so no table was written")
        return _read(path)


def _read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


if __name__ == "__main__":
    sys.exit(main())
