"""Measure training on a GPU, or on the CPU where there is none: `python benchmarks/gpu.py`.

Writes the table in docs/gpu.md and prints it. Takes some minutes of a GPU that does nothing else,
a minute of a CPU. Given the JSON of an earlier run, makes the table of that. The exit status is 1
where cuDNN's persistent LSTM kernels were to run and did not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees its own folder only

import moola_train  # noqa: E402, F401 - before PyTorch, whose threads it tells how to wait

# isort: split
import torch  # noqa: E402

import moola_features as mf  # noqa: E402
from benchmarks import gpu_report, report  # noqa: E402
from benchmarks.train_steps import LENGTH, PRESET, Case, Effort, measure  # noqa: E402

DOCUMENT = ROOT / "docs" / "gpu.md"
PACKAGES = ("numpy", "torch")


def main(arguments: list[str] | None = None) -> int:
    """Measure or read, show the table, and put it in place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, help="JSON of an earlier run")
    parser.add_argument("--quick", action="store_true", help="few sizes; writes no document")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    asked = parser.parse_args(arguments)
    if not asked.quick:
        try:
            report.surroundings(DOCUMENT)  # before minutes of measuring
        except (OSError, ValueError) as error:
            sys.exit(str(error))
    if asked.results is None:
        results = measure_all(torch.cuda.is_available(), quick=asked.quick)
    else:
        results = json.loads(asked.results.read_text(encoding="utf-8"))
    table = gpu_report.full_report(results)
    print(json.dumps(results, indent=2) if asked.json else table)
    if not asked.quick:
        report.replace_block(DOCUMENT, table)
    slow = gpu_report.off_fast_path(results)
    for row in slow:
        found = ", ".join(row.kernels) or "no recurrent kernel"
        print(f"{row}: cuDNN's persistent LSTM kernels did not run; ran {found}", file=sys.stderr)
    return 1 if slow else 0


def measure_all(on_gpu: bool, *, quick: bool) -> dict[str, Any]:
    """Measure every case on the GPU or on the CPU."""
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    effort = effort_for(on_gpu, quick=quick)
    todo = cases(on_gpu, quick=quick)
    rows = []
    for number, case in enumerate(todo, 1):
        print(f"{number} of {len(todo)}: {case}", file=sys.stderr, flush=True)
        rows.append(measure(case, device, effort))
    return gpu_report.to_results(describe_machine(device, effort), rows)


def cases(on_gpu: bool, *, quick: bool) -> list[Case]:
    """List what is measured: on a CPU small batches, and none of the precision it lacks."""
    precisions = ["fp32", "tf32", "bf16"] if on_gpu else ["fp32", "bf16"]
    batches = [64, 256, 1_024, 4_096] if on_gpu else [64]
    hidden, layers = [96, 128], [1, 2]
    if quick:
        hidden, layers, precisions = [96], [1], precisions[:2]
        batches = [64, 1_024] if on_gpu else [16]
    return [
        Case(hidden=units, layers=depth, batch=batch, precision=precision)
        for units, depth, batch, precision in itertools.product(hidden, layers, batches, precisions)
    ]


def effort_for(on_gpu: bool, *, quick: bool) -> Effort:
    """Choose turns that fill some minutes on a GPU, a minute on a CPU, and seconds when quick."""
    if on_gpu:
        return Effort(turn_seconds=0.2, rounds=2 if quick else 4, num_bars=2_000_000)
    return Effort(turn_seconds=0.1 if quick else 0.25, rounds=1 if quick else 3, num_bars=100_000)


def describe_machine(device: torch.device, effort: Effort) -> dict[str, Any]:
    """Say when and on what it was measured."""
    versions = {"moola": mf.__version__, "Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    on_gpu = device.type == "cuda"
    if on_gpu:
        versions |= {"CUDA": str(torch.version.cuda), "cuDNN": _cudnn_version()}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cuda": on_gpu,
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "data": f"{PRESET} on windows of {LENGTH} out of {effort.num_bars:,} bars of noise",
        "versions": versions,
    }


def _cudnn_version() -> str:
    backend: Any = torch.backends  # its stubs leave this untyped
    return str(backend.cudnn.version())


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    sys.exit(main())
