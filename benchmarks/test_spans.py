"""The span benchmark on a small synthetic market: its parts, that it goes on, what it writes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import report, span_models, span_report, spans
from benchmarks.span_task import COLUMNS, LENGTH, STRIDE, Task, read_lines, synthetic
from moola_features.times import parse_time_ns

NUM_BARS = 40_000


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task(*synthetic(NUM_BARS), tmp_path_factory.mktemp("spans"))


def test_parts_share_no_bar_and_draws_do_not_overlap(task: Task) -> None:
    periods = task.protocol
    train, dev, test = task.training(60, 0), task.dev(), task.test()
    assert len(train) == 60
    for earlier, later in ((train, dev), (dev, test)):
        assert earlier.begin.max() + 2 * LENGTH <= later.begin.min()
    for part, first in ((train, periods.train_from), (dev, periods.dev_from)):
        assert task.bars.time[part.begin.min()] >= parse_time_ns("from", first)
    assert set(np.unique(train.found.label)) <= {0, 1}
    assert {0, 1, 3} <= set(np.unique(test.found.label)), "windows without an expansion too"
    other = task.training(60, 1).begin
    assert not np.array_equal(other, train.begin)
    assert np.array_equal(task.training(60, 0).begin, train.begin)


def test_few_labels_are_of_windows_that_do_not_overlap(task: Task) -> None:
    protocol = spans.REAL
    assert protocol.apart == (174,)
    small = {**vars(task.protocol), "sizes": {30: 1}, "strides": {30: STRIDE}}
    begin = []
    for apart in ((30,), ()):
        few = Task(task.bars, type(protocol)(**{**small, "apart": apart}), task.folder)
        begin.append(few.training(30, 0).begin)
    assert np.diff(begin[0]).min() >= LENGTH
    assert np.diff(begin[1]).min() < LENGTH


def test_jobs_are_told_apart_and_the_most_telling_come_first() -> None:
    jobs = list(spans.jobs_of(spans.REAL))
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.seed for job in jobs} == set(span_models.SEEDS)
    assert {job.columns for job in jobs} == {"-", *COLUMNS}
    nets = [job for job in jobs if job.model.startswith("jade")]
    assert (nets[0].size, nets[0].columns) == (20_000, "wide + context")
    draws = {job.draw for job in jobs if job.size == 174 and job.model == "jade-span"}
    assert draws == set(range(5))


def run(folder: Path, *more: str) -> list[dict[str, Any]]:
    arguments = ["--synthetic", "--folder", str(folder / "work"), "--lines", str(folder / "rows")]
    document = folder / "doc.md"
    if not document.exists():
        document.write_text(f"before\n{report.block_of('')}\nafter\n", encoding="utf-8")
    assert spans.main([*arguments, "--document", str(document), *more]) == 0
    return read_lines(folder / "rows")


def test_runs_are_kept_and_not_run_again(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "synthetic", lambda _: (task.bars, task.protocol))
    monkeypatch.setitem(span_models.SMALL["loop"], "epochs", 2)
    run(tmp_path, "--only", "60/0/17/-/*")
    rows = run(tmp_path, "--only", "60/0/17/standard/jade-span")
    assert [row["model"] for row in rows] == [*span_models.NEEDS_NO_COLUMNS, "jade-span"]
    for row in rows:
        assert row["bars"] == "synthetic"
        assert 0 < row["expansion_share"] < 1
        for metric in row["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"] or metric["value"] == 0
    by_model = {row["model"]: row for row in rows}
    rule, every = by_model["rule"], by_model["every bar"]
    assert rule["over_rule"]["span_f1"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert every["metrics"]["span_f1"]["value"] < rule["metrics"]["span_f1"]["value"]
    assert by_model["jade-span"]["train"] == 60
    assert by_model["jade-span"]["steps"] == 2
    before = (tmp_path / "rows").read_bytes()
    monkeypatch.setitem(spans.MODELS, "jade-span", lambda *_: pytest.fail("it has run already"))
    run(tmp_path, "--only", "60/0/17/standard/jade-span")
    assert (tmp_path / "rows").read_bytes() == before
    text = (tmp_path / "doc.md").read_text(encoding="utf-8")
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "### 60 labels, synthetic" in text
    assert f"{rule['metrics']['span_f1']['value']:.3f}" in text
    assert (tmp_path / "doc.png").stat().st_size > 1_000
    shutil.rmtree(tmp_path / "work")
    assert run(tmp_path, "--report") == rows, "no bars are needed for the tables"


STAND_IN = """
import sys
import numpy as np
_, script, given, made, seed = sys.argv
assert script.endswith("rocket.py") and seed == "17"
with np.load(given, allow_pickle=False) as arrays:
    assert arrays["train"].shape == (60, 105, 11)
    assert arrays["inside"].shape == (60, 105) and arrays["type"].shape == (60,)
    assert arrays["chosen"].max() < 60 * 105
    inside = np.full(arrays["test"].shape[:2], 0.01)
inside[:, 40:50] = 0.9
np.savez(made, inside=inside, type=np.tile([0.3, 0.7], (len(inside), 1)))
"""


def test_minirocket_has_a_python_of_its_own(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "synthetic", lambda _: (task.bars, task.protocol))
    job = span_models.Job(size=60, draw=0, seed=17, columns="standard", model="MiniRocket")
    monkeypatch.setattr(spans, "jobs_of", lambda _: iter([job]))
    monkeypatch.delenv(span_models.ROCKET_PYTHON, raising=False)
    assert run(tmp_path) == [], "nobody has said where aeon is"
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{STAND_IN}", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv(span_models.ROCKET_PYTHON, str(python))
    found = span_models.MODELS["MiniRocket"](task, job, task.test())
    assert set(found.predictions["start"].tolist()) == {40}
    assert set(found.predictions["end"].tolist()) == {49}
    (row,) = run(tmp_path)
    assert (row["model"], row["train"], row["top_class_share"]) == ("MiniRocket", 60, 1.0)


def test_another_instrument_is_predicted_too(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    import polars as pl

    monkeypatch.setattr(spans, "synthetic", lambda _: (task.bars, task.protocol))
    monkeypatch.setitem(span_models.SMALL["loop"], "epochs", 1)
    bars = {name: getattr(task.bars, name)[:9_000] for name in ("open", "high", "low", "close")}
    time = pl.Series(task.bars.time[:9_000]).cast(pl.Datetime("ns", "UTC"))
    pl.DataFrame({"timestamp": time, **bars}).write_parquet(tmp_path / "gold.parquet")
    more = ("--transfer", str(tmp_path / "gold.parquet"))
    rows = run(tmp_path, "--only", "60/0/17/standard/jade-span", *more)
    assert [row["key"] for row in rows] == ["60/0/17/standard/jade-span/gold"]
    found = rows[0]["transfer"]
    assert found["bars"] == "gold"
    assert found["num_test"] > 10
    assert set(found["metrics"]) == set(spans.METRICS)
    assert "| gold |" in span_report.full_report(rows, "x.png")


def test_absent_bars_are_said_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "doc.md"
    document.write_text(report.block_of(""), encoding="utf-8")
    lines, absent = tmp_path / "rows", tmp_path / "absent.parquet"
    asked = ["--bars", str(absent), "--folder", str(tmp_path / "work"), "--lines", str(lines)]
    assert spans.main([*asked, "--document", str(document)]) == 0
    assert f"skipped: no {absent}" in capsys.readouterr().err
    assert not lines.exists()


def row_of(model: str, size: int, value: float, *, top: float = 0.6) -> dict[str, Any]:
    scored = {"value": value, "low": value - 0.01, "high": value + 0.01}
    names = (*spans.METRICS, "expansion_ap")
    return {
        "key": f"{size}/0/17/wide/{model}", "bars": "BTC/USD", "size": size, "draw": 0,
        "seed": 17, "columns": "wide", "model": model, "metrics": dict.fromkeys(names, scored),
        "over_rule": dict.fromkeys(spans.METRICS[:3], scored), "top_class_share": top,
        "num_test": 3_201, "seconds": 60.0, "date": "2026-01-01", "machine": spans.machine(),
    }  # fmt: skip


def test_the_report_says_what_was_reached_and_what_collapsed() -> None:
    rows = [row_of("jade-span", 174, 0.72), row_of("jade-span", 20_000, 0.83, top=0.95)]
    text = span_report.full_report(rows, "x.png")
    assert "| 174 | best column set | 0.70 / 0.65 / 0.70 | 0.720 / 0.720 / 0.720 |" in text
    assert "0.830 (below) / 0.830 / 0.830" in text
    assert "| 20,000 | with context | 0.90 / 0.87 / 0.86 | not run yet | |" in text
    assert "1 of 2 runs" in text
    assert "0.720 [0.710, 0.730]" in text
    again = [row_of("jade-span", 174, value) for value in (0.70, 0.74)]
    assert "0.720 [0.710, 0.730] ± 0.028" in span_report.full_report(again, "x.png")
    assert span_report.full_report([], "x.png") == "No run has ended yet."


@pytest.mark.skipif(not spans.LINES.exists(), reason="no run has ended yet")
def test_the_document_is_that_of_the_lines() -> None:
    text = spans.DOCUMENT.read_text(encoding="utf-8")
    rows = read_lines(spans.LINES)
    assert span_report.full_report(rows, "benchmarks.png") in text
    short = report.block_of(span_report.short_report(rows), "spans")
    assert short in spans.README.read_text(encoding="utf-8")
    assert spans.DOCUMENT.with_suffix(".png").exists()
    assert {row["num_test"] for row in rows if row["bars"] == "BTC/USD"} == {3_201}
