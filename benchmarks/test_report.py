"""The report's own tests: what is written is what was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.comparison import Row, at_least, at_most

ROWS = (
    Row.of("speed", "bars/s", [4e6, 6e6, 5e6], goal=at_least(4e6), headline=True),
    Row.of("speed", "bars/s", [4e6, 6e6, 5e6], [8e6, 9e6, 20e6], beside="a rival"),
    Row.of(
        "wait", "s", [0.2, 0.3], [0.1, 0.1], beside="a bound", goal=at_most(1.6), is_rival=False
    ),
)  # fmt: skip


def results_of(rows: tuple[Row, ...]) -> dict[str, Any]:
    machine = {
        "cpu": "a CPU", "num_cores": 2, "memory_bytes": 2**34, "system": "Linux 6",
        "versions": {"moola": "1"}, "data": "10 bars",
    }  # fmt: skip
    benchmark = {
        "fullname": "benchmarks/test_features.py::test_speed",
        "extra_info": {"rows": [asdict(row) for row in rows]},
    }
    beside = {
        "fullname": "benchmarks/test_alternatives.py::test_alternatives",
        "extra_info": {
            "rows": [asdict(rows[1])],
            "alternatives": [
                {
                    "name": "a rival", "computes": "one column", "rate": 4e6, "ratio": 0.5,
                    "bytes_per_bar": 31.4, "lacks": "the others",
                }
            ],
        },
    }  # fmt: skip
    return {
        "machine_info": {"report": machine},
        "datetime": "2024-05-06T07:08:09.101112+00:00",
        "benchmarks": [benchmark, beside],
    }


def test_ratio_is_the_median_of_the_turns() -> None:
    assert ROWS[1].ratio == pytest.approx(0.5)
    assert ROWS[1].ours == 5e6


@pytest.mark.parametrize(
    ("row", "reached", "lost"),
    [(ROWS[0], True, False), (ROWS[1], None, True), (ROWS[2], False, False)],
)
def test_goals_and_losses(row: Row, reached: bool | None, lost: bool) -> None:
    assert row.reached is reached
    assert row.lost is lost


def test_full_report_shows_goals_missed_and_rivals_ahead() -> None:
    text = report.full_report(results_of(ROWS))
    assert "Measured on 2024-05-06: a CPU, 2 cores, 16 GiB, Linux 6; 10 bars; moola 1." in text
    assert "| speed | 5.00 M bars/s |  |  |  |  | ≥ 4.00 M bars/s | yes |" in text
    assert "Goals not reached: wait / a bound: 2.50 x (≤ 1.6 x)." in text
    assert "Where others that do the same come out ahead: speed / a rival: 0.500 x." in text


def test_alternatives_have_a_table_of_their_own() -> None:
    for text in (report.full_report(results_of(ROWS)), report.short_report(results_of(ROWS))):
        assert "| a rival | one column | 4.00 M | 0.500 x | 31 B | the others |" in text
    assert report.full_report(results_of(ROWS)).count("a rival | 9.00 M") == 1


def test_short_report_has_the_headlines_alone() -> None:
    lines = report.short_report(results_of(ROWS)).splitlines()
    assert [line for line in lines if line.startswith("| wait")] == []
    assert len([line for line in lines if line.startswith("| speed")]) == 1


def test_replace_block_leaves_the_rest_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    other = report.block_of("untouched", "other")
    path.write_text(f"# Title\n\n{report.block_of('old')}\n\n{other}\n", encoding="utf-8")
    for text in ("new", "newer"):
        report.replace_block(path, text)
    expected = (
        f"# Title\n\n<!-- benchmarks: begin -->\nnewer\n<!-- benchmarks: end -->\n\n{other}\n"
    )
    assert path.read_text(encoding="utf-8") == expected
    report.replace_block(path, "touched", "other")
    assert path.read_text(encoding="utf-8") == expected.replace("untouched", "touched")


BEGIN, END = report.block_of("").split("\n\n")


@pytest.mark.parametrize("content", ["", BEGIN, f"{END}{BEGIN}"])
def test_replace_block_refuses_a_file_without_marks(tmp_path: Path, content: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="must hold"):
        report.replace_block(path, "text")
    assert path.read_text(encoding="utf-8") == content
