"""The table of training speeds: what is written is what was measured, on CPU and GPU alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_report, report
from benchmarks.comparison import Contender
from benchmarks.train_steps import (
    BARE,
    DATA_LOADER,
    FIXED,
    GRAPH,
    Case,
    Effort,
    Measured,
    is_persistent,
    make_windows,
    measure,
    only_recurrent,
    recurrent_kernels,
    take_turns,
)

CPU = torch.device("cpu")
SMALL = Case(hidden=8, layers=1, batch=4, precision="fp32")
PERSISTENT = ("RNN_blockPersist_bp_LSTM", "RNN_blockPersist_fp_LSTM")
FALLBACK = ("LSTM_elementWise_bp1", "elemWiseRNNcell")


def row(precision: str = "fp32", kernels: tuple[str, ...] = PERSISTENT, **changes: Any) -> Measured:
    rates = {
        "device": 98_000.0,
        "host": 90_000.0,
        FIXED: 1e5,
        BARE: 125_000.0,
        DATA_LOADER: 4_900.0,
    }
    values: dict[str, Any] = {
        "hidden": 96, "layers": 2, "batch": 1_024, "precision": precision, "rates": rates,
        "over_fixed": {"device": 0.98, "host": 0.9}, "over_bare": 0.784, "over_data_loader": 20.0,
        "lstm_dtype": "float32", "kernels": kernels,
    }  # fmt: skip
    return Measured(**values | changes)


def results_of(*rows: Measured, cuda: bool = True) -> dict[str, Any]:
    machine = {
        "date": "2024-05-06", "cuda": cuda, "device": "some device", "num_cores": 16,
        "system": "Linux 6", "data": "noise", "versions": {"moola": "1", "torch": "2"},
    }  # fmt: skip
    results: dict[str, Any] = json.loads(json.dumps(gpu_report.to_results(machine, rows)))
    return results


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "gpu.md"
    path.write_text(f"# Title\n\n{report.block_of('old')}\n\nrest\n", encoding="utf-8")
    monkeypatch.setattr(gpu, "DOCUMENT", path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_case_is_measured_on_the_cpu(precision: str) -> None:
    case = dataclasses.replace(SMALL, precision=precision)
    measured = measure(case, CPU, Effort(turn_seconds=0.01, rounds=1, num_bars=500))
    assert set(measured.rates) == {"device", "host", FIXED, BARE, DATA_LOADER}
    assert min(measured.rates.values()) > 0
    # With one round the medians are that round's figures.
    for placement, ratio in measured.over_fixed.items():
        assert ratio == pytest.approx(measured.rates[placement] / measured.rates[FIXED])
    assert measured.over_bare == pytest.approx(measured.rates["device"] / measured.rates[BARE])
    assert measured.lstm_dtype == ("float32" if precision == "fp32" else "bfloat16")
    assert measured.kernels == ()
    assert str(measured) == f"hidden 8, 1 layer, batch 4, {precision}"


def test_rounds_but_the_first_count() -> None:
    turns: list[str] = []
    contenders = [
        Contender(name=name, amount=10, run=lambda name=name: turns.append(name))  # type: ignore[misc]
        for name in ("one", "other")
    ]
    rates = take_turns(contenders, CPU, rounds=2)
    assert turns == ["one", "other"] * 3
    assert [len(taken) for taken in rates.values()] == [2, 2]


def test_windows_and_targets_are_of_every_kind() -> None:
    windows, targets = make_windows(64, 1_000)
    assert len(windows) == 64
    assert windows.features.shape == (1_000, 11)
    has_none = targets["start"] < 0
    assert has_none.sum() == 16
    assert np.isnan(targets["pointers"][has_none]).all()
    assert targets["span"].sum(axis=1)[~has_none].min() >= 3
    assert targets["end"].max() <= 104


def test_recurrent_kernels_are_known_by_name() -> None:
    names = [
        "void RNN_blockPersist_fp_LSTM_HMMA<__half, __half, float, 1, 128>(int)",
        "void elemWiseRNNcell<float, float, float, 2, 1>(int, int)",
        "LSTM_elementWise_bp1<float, float, float>(int)",
        "void at::native::vectorized_elementwise_kernel<4, RNN>(int)",
        "ampere_sgemm_32x128_nn",
        "Memcpy HtoD (Pinned -> Device)",
    ]
    assert only_recurrent(names) == (
        "LSTM_elementWise_bp1", "RNN_blockPersist_fp_LSTM_HMMA", "elemWiseRNNcell",
    )  # fmt: skip


def test_kernels_are_those_that_the_device_ran_in_a_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Profile(contextlib.nullcontext["Profile"]):
        """A profile of a GPU's: the second call's kernels, beside what the host did."""

        def __enter__(self) -> Profile:
            calls.append("profile")
            return self

        def events(self) -> list[SimpleNamespace]:
            ran = {"LSTM_elementWise_bp1<float>": "CUDA", "aten::_cudnn_LSTM": "CPU"}
            return [
                SimpleNamespace(name=name, device_type=SimpleNamespace(name=where))
                for name, where in ran.items()
            ]

    calls: list[str] = []
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: Profile())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    found = recurrent_kernels(lambda: calls.append("run"), torch.device("cuda"))
    assert found == ("LSTM_elementWise_bp1",)
    assert calls == ["run", "wait", "profile", "run", "wait"]


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        (PERSISTENT, True),
        (tuple(f"{name}_HMMA" for name in PERSISTENT), True),
        (PERSISTENT[:1], False),
        (PERSISTENT[1:], False),
        (FALLBACK, False),
        (("RNN_blockPersist_bp_GRU", "RNN_blockPersist_fp_GRU"), False),
        ((), False),
    ],
)
def test_persistent_means_both_directions(kernels: tuple[str, ...], expected: bool) -> None:
    assert is_persistent(kernels) is expected


def test_report_of_a_gpu_judges_the_goals_and_names_the_kernels() -> None:
    text = gpu_report.full_report(results_of(row(), row("tf32", over_bare=0.5)))
    assert "Measured on 2024-05-06: some device, host with 16 cores, Linux 6; noise; moola" in text
    assert (
        "| 96 | 2 | 1,024 | fp32 | 98,000 | 90,000 | 100,000 | 125,000 | 4,900 "
        "| 0.980 | 0.900 | 0.784 | 20.0 | float32 | persistent |"
    ) in text
    assert "- device table / fixed batch, ≥ 0.95: reached in 2 of 2 rows; lowest 0.980" in text
    assert "- host ring / fixed batch, ≥ 0.95: reached in 0 of 2 rows" in text
    lowest = "lowest 0.500 (hidden 96, 2 layers, batch 1,024, tf32)."
    assert f"- device table / bare LSTM, ≥ 0.75: reached in 1 of 2 rows; {lowest}" in text
    assert (
        "- fp32 ran `RNN_blockPersist_bp_LSTM`, `RNN_blockPersist_fp_LSTM` in 1 of 2 rows." in text
    )
    assert "CPU" not in text


def test_graphs_have_columns_where_there_are_graphs() -> None:
    rates = {**row().rates, GRAPH: 127_400.0}
    told = gpu_report.full_report(results_of(row(rates=rates, over_eager=1.3)))
    table = [line for line in told.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], table[2])]
    assert dict(zip(*cells, strict=True))["graph"] == "127,400"
    assert dict(zip(*cells, strict=True))["graph / device"] == "1.30"
    assert "The six columns behind the precision are windows/s" in told
    without = gpu_report.full_report(results_of(row()))
    assert "graph" not in without
    assert "The five columns behind" in without


def test_report_of_a_cpu_says_so_and_judges_nothing() -> None:
    text = gpu_report.full_report(results_of(row(kernels=()), cuda=False))
    assert gpu_report.ON_CPU in text
    assert "reached" not in text
    assert "none of cuDNN's" in text


def test_fp32_and_tf32_must_take_the_fast_path_on_a_gpu() -> None:
    rows = [row(precision, FALLBACK) for precision in ("fp32", "tf32", "bf16")]
    slow = gpu_report.off_fast_path(results_of(row(), *rows))
    assert [found.precision for found in slow] == ["fp32", "tf32"]
    assert gpu_report.off_fast_path(results_of(*rows, cuda=False)) == []


def test_cases_cover_what_the_table_promises() -> None:
    todo = gpu.cases(on_gpu=True, quick=False)
    assert {(case.hidden, case.layers) for case in todo} == {(96, 1), (96, 2), (128, 1), (128, 2)}
    assert {case.precision for case in todo} == {"fp32", "tf32", "bf16"}
    assert (min(case.batch for case in todo), max(case.batch for case in todo)) == (64, 4_096)
    assert "tf32" not in {case.precision for case in gpu.cases(on_gpu=False, quick=False)}
    assert len(gpu.cases(on_gpu=True, quick=True)) < len(todo)


def test_an_earlier_run_is_written_into_the_document(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = results_of(row())
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    assert gpu.main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results
    table = gpu_report.full_report(results)
    assert report.surroundings(document) == ("# Title\n\n", "\n\nrest\n")
    assert report.block_of(table) in document.read_text(encoding="utf-8")


def test_kernels_off_the_fast_path_are_written_down_and_end_in_failure(
    document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results_of(row(kernels=FALLBACK))), encoding="utf-8")
    assert gpu.main([str(path)]) == 1
    assert "did not run; ran LSTM_elementWise_bp1, elemWiseRNNcell" in capsys.readouterr().err
    assert "| **other** |" in document.read_text(encoding="utf-8")


def test_quick_prints_and_leaves_the_document_alone(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = document.read_text(encoding="utf-8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "cases", lambda on_gpu, quick: [SMALL])
    monkeypatch.setattr(
        gpu, "effort_for", lambda on_gpu, quick: Effort(turn_seconds=0.01, rounds=1, num_bars=500)
    )
    assert gpu.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    assert gpu_report.ON_CPU in printed
    assert "| 8 | 1 | 4 | fp32 |" in printed
    assert document.read_text(encoding="utf-8") == before


def test_a_document_without_marks_is_refused_before_measuring(
    document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document.write_text("no marks\n", encoding="utf-8")
    monkeypatch.setattr(gpu, "measure_all", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="must hold"):
        gpu.main([])


def test_the_document_has_its_table_and_its_command() -> None:
    text = gpu.DOCUMENT.read_text(encoding="utf-8")
    assert "```bash\npython benchmarks/gpu.py\n```" in text
    before, after = report.surroundings(gpu.DOCUMENT)
    block = text.removeprefix(before).removesuffix(after)
    assert "Measured on 20" in block
    assert "| hidden | layers | batch | precision |" in block
