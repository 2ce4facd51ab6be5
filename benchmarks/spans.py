"""How well spans are found: `python benchmarks/spans.py --bars btcusd_1m.parquet`.

Labels by the hindsight rule, one fixed protocol, every model on the same test windows. Each run
that has ended is a line of docs/benchmarks.jsonl and is not run again; started again, the command
goes on with those that are missing, the most telling first. The tables and plots in
docs/benchmarks.md are made of those lines.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import os
import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees its own folder only

import moola_train  # noqa: E402, F401 - before PyTorch, whose threads it tells how to wait

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402

import moola_features as mf  # noqa: E402
from benchmarks import span_report  # noqa: E402
from benchmarks.report import replace_block  # noqa: E402
from benchmarks.span_models import (  # noqa: E402
    MODELS,
    ROCKET_PYTHON,
    Arrays,
    Job,
    Result,
    jobs_of,
)
from benchmarks.span_task import (  # noqa: E402
    NONE,
    REAL,
    TYPES,
    Task,
    Windows,
    append_line,
    days_of,
    read_lines,
    synthetic,
    truth_of,
)
from moola_train.allocator import keep_freed  # noqa: E402
from moola_train.evaluation.bootstrap import Draws, Interval  # noqa: E402
from moola_train.evaluation.statistics import (  # noqa: E402
    AveragePrecision,
    Statistic,
    statistics_of,
    with_draws,
)
from moola_train.hindsight import LABELS  # noqa: E402

DOCUMENT, LINES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks.jsonl"
README = ROOT / "README.md"
BARS = ROOT.parent / "shared" / "data" / "btcusd_1m.parquet"
SYNTHETIC_BARS = 60_000
METRICS = ("span_f1", "hit_at_3", "f1_macro", "span_f1_micro", "start_mae", "end_mae")
PACKAGES = ("numpy", "torch", "scikit-learn")


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bars", type=Path, default=BARS, help="one-minute bars, 2017 to 2019")
    parser.add_argument("--synthetic", action="store_true", help="a small synthetic market")
    parser.add_argument("--transfer", type=Path, help="bars of another instrument to predict too")
    parser.add_argument("--folder", type=Path, required=True, help="for stores and runs")
    parser.add_argument("--lines", type=Path, default=LINES, help="where rows are kept")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where tables are written")
    parser.add_argument("--only", default="*", help="runs of this pattern, such as 174/*/jade-span")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run later")
    parser.add_argument("--report", action="store_true", help="only write the tables anew")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the same bits on every machine of its kind
    if not asked.report:
        if asked.synthetic:
            bars, protocol = synthetic(SYNTHETIC_BARS)
        elif asked.bars.exists():
            bars, protocol = mf.read_bars(asked.bars), REAL
        else:
            print(f"skipped: no {asked.bars}; give --bars or --synthetic", file=sys.stderr)
            return 0
        task = Task(bars, protocol, asked.folder)
        if asked.transfer is not None:
            other = mf.read_bars(asked.transfer)
            task.other = Task(other, protocol, asked.folder / asked.transfer.stem)
        run_missing(task, asked.lines, only=asked.only, minutes=asked.minutes)
    rows = read_lines(asked.lines)
    span_report.write(asked.document, rows)
    if asked.document == DOCUMENT:
        replace_block(README, span_report.short_report(rows), "spans")
    return 0


def run_missing(task: Task, lines: Path, *, only: str, minutes: float) -> None:
    """Run every job that has no line yet."""
    began = time.monotonic()
    test = task.test().of(*TYPES, NONE)
    jobs = [job for job in jobs_of(task.protocol) if fnmatch.fnmatchcase(job.key, only)]
    for number, job in enumerate(jobs, 1):
        # Read anew each time: another process may be at work on the same file.
        done = {row["key"] for row in read_lines(lines) if row["bars"] == task.protocol.name}
        if key_of(task, job) in done:
            continue
        if job.model == "MiniRocket" and ROCKET_PYTHON not in os.environ:
            continue
        if time.monotonic() - began > 60 * minutes:
            return
        print(f"{number} of {len(jobs)}: {job.key}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        result = MODELS[job.model](task, job, test)
        seconds = time.perf_counter() - started
        append_line(lines, row_of(task, job, test, result, seconds))


def key_of(task: Task, job: Job) -> str:
    """Name of a row; a run that predicts another instrument too is another run."""
    return job.key if task.other is None else f"{job.key}/{task.other.folder.name}"


def row_of(task: Task, job: Job, test: Windows, result: Result, seconds: float) -> dict[str, Any]:
    """One line: what ran, what it scored with intervals over days, on what machine."""
    typed = np.isin(test.found.label, [LABELS.index(name) for name in TYPES])
    rows = np.flatnonzero(typed)
    scored = {name: values[rows] for name, values in result.predictions.items()}
    rule = MODELS["rule"](task, job, test).predictions
    beside = {name: values[rows] for name, values in rule.items()}
    found = scores_of(task, test.take(rows), scored, beside)
    score = np.asarray(result.expansion, np.float64)[:, None]
    abstaining = AveragePrecision(score, typed[:, None], np.ones(len(test), bool))
    found["metrics"]["expansion_ap"] = _with_interval(abstaining, days_of(task, test))
    chosen = scored["type_probability"].argmax(axis=1)
    row = {
        "key": key_of(task, job),
        "bars": task.protocol.name,
        **vars(job),
        **found,
        "top_class_share": float(np.bincount(chosen).max() / len(chosen)),
        "expansion_share": float(typed.mean()),
        "num_test": len(rows),
        "seconds": round(seconds, 1),
        **result.more,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }
    if task.other is not None and result.other is not None:
        windows = task.other.all_windows().of(*TYPES)
        row["transfer"] = scores_of(task.other, windows, result.other, None)
        row["transfer"] |= {"bars": task.other.folder.name, "num_test": len(windows)}
    return row


def scores_of(
    task: Task, windows: Windows, predictions: Arrays, rule: Arrays | None
) -> dict[str, Any]:
    """Metrics with intervals over days; beside the rule, paired day by day, where it is given."""
    draws, truth = days_of(task, windows), truth_of(windows)
    found = statistics_of(predictions, truth, len(TYPES))
    scored: dict[str, Any] = {
        "metrics": {name: _with_interval(found[name], draws) for name in METRICS}
    }
    if rule is not None:
        beside = statistics_of(rule, truth, len(TYPES))
        scored["over_rule"] = {
            name: _with_interval(_Difference(found[name], beside[name]), draws)
            for name in METRICS[:3]
        }
    return scored


@dataclass(frozen=True)
class _Difference:
    """One statistic minus another, draw by draw: both see the same windows."""

    ours: Statistic
    theirs: Statistic

    @property
    def counted(self) -> Any:
        return self.ours.counted & self.theirs.counted

    def drawn(self, draws: Draws) -> Any:
        return self.ours.drawn(draws) - self.theirs.drawn(draws)


def _with_interval(statistic: Statistic, draws: Draws) -> dict[str, float]:
    value, *drawn = with_draws(statistic, draws)
    interval = Interval.of(np.array(drawn))
    return {"value": float(value), "low": interval.low, "high": interval.high}


def machine() -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    versions = {"moola": mf.__version__, "Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "cpu": next(named, platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


if __name__ == "__main__":
    keep_freed()  # of the whole process, so not in main(), which tests call in theirs
    sys.exit(main())
