"""The table of training speeds, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.comparison import Goal, at_least
from benchmarks.report import digits
from benchmarks.train_steps import BARE, DATA_LOADER, FIXED, GRAPH, Measured, is_persistent

ON_CPU = (
    "**PyTorch saw no CUDA device: all of this was measured on the CPU, with small sizes.** It "
    "shows that everything runs and says nothing about a GPU: the goals are not judged, there "
    "is no TF32, and the bare LSTM is PyTorch's own for CPUs instead of cuDNN's."
)
PRECISIONS_ON_FAST_PATH = ("fp32", "tf32")

# What is compared, the ratio that a case has, and the least that it is to be.
_GOALS: tuple[tuple[str, Callable[[Measured], float], Goal], ...] = (
    ("device table / fixed batch", lambda row: row.over_fixed["device"], at_least(0.95)),
    ("host ring / fixed batch", lambda row: row.over_fixed["host"], at_least(0.95)),
    ("device table / bare LSTM", lambda row: row.over_bare, at_least(0.75)),
    ("device table / DataLoader", lambda row: row.over_data_loader, at_least(10)),
)


def to_results(machine: dict[str, Any], rows: Sequence[Measured]) -> dict[str, Any]:
    """Make plain values of what was measured."""
    return {"machine": machine, "rows": [asdict(row) for row in rows]}


def rows_of(results: dict[str, Any]) -> list[Measured]:
    """Read the rows back."""
    return [Measured(**{**row, "kernels": tuple(row["kernels"])}) for row in results["rows"]]


def full_report(results: dict[str, Any]) -> str:
    """Circumstances, table and verdict."""
    rows = rows_of(results)
    on_gpu = results["machine"]["cuda"]
    parts = [_circumstances(results["machine"], rows)]
    if not on_gpu:
        parts.append(ON_CPU)
    parts.append(_table(rows))
    if on_gpu:
        parts += [_verdict(rows), _kernels(rows)]
    return "\n\n".join(parts)


def off_fast_path(results: dict[str, Any]) -> list[Measured]:
    """Rows measured on a GPU where cuDNN's persistent kernels were to run and did not.

    bf16 is not among them: the table shows what ran, since cuDNN has those kernels for some types
    only.
    """
    if not results["machine"]["cuda"]:
        return []
    return [
        row
        for row in rows_of(results)
        if row.precision in PRECISIONS_ON_FAST_PATH and not is_persistent(row.kernels)
    ]


def _path(row: Measured) -> str:
    if not row.kernels:
        return "none of cuDNN's"
    return "persistent" if is_persistent(row.kernels) else "**other**"


_COLUMNS: tuple[tuple[str, Callable[[Measured], str]], ...] = (
    ("hidden", lambda row: str(row.hidden)),
    ("layers", lambda row: str(row.layers)),
    ("batch", lambda row: f"{row.batch:,}"),
    ("precision", lambda row: row.precision),
    ("device table", lambda row: digits(row.rates["device"])),
    ("host ring", lambda row: digits(row.rates["host"])),
    ("fixed batch", lambda row: digits(row.rates[FIXED])),
    ("graph", lambda row: digits(row.rates[GRAPH])),
    ("bare LSTM", lambda row: digits(row.rates[BARE])),
    ("DataLoader", lambda row: digits(row.rates[DATA_LOADER])),
    ("device / fixed", lambda row: digits(row.over_fixed["device"])),
    ("host / fixed", lambda row: digits(row.over_fixed["host"])),
    ("graph / device", lambda row: digits(row.over_eager or 0)),
    ("device / bare", lambda row: digits(row.over_bare)),
    ("device / DataLoader", lambda row: digits(row.over_data_loader)),
    ("LSTM in", lambda row: row.lstm_dtype),
    ("LSTM kernels", _path),
)
_TEXT = ("precision", "LSTM in", "LSTM kernels")
_OF_GRAPHS = ("graph", "graph / device")  # which a CPU has not


def _columns(rows: Sequence[Measured]) -> list[tuple[str, Callable[[Measured], str]]]:
    graphs = all(GRAPH in row.rates for row in rows)
    return [column for column in _COLUMNS if graphs or column[0] not in _OF_GRAPHS]


def _table(rows: Sequence[Measured]) -> str:
    columns = _columns(rows)
    lines = [
        [heading for heading, _ in columns],
        ["---" if heading in _TEXT else "--:" for heading, _ in columns],
        *([show(row) for _, show in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _circumstances(machine: dict[str, Any], rows: Sequence[Measured]) -> str:
    headings = [heading for heading, _ in _columns(rows)]
    rates = headings.index("device / fixed") - headings.index("precision") - 1
    number = {5: "five", 6: "six"}[rates]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['date']}: {machine['device']}, host with {machine['num_cores']} "
        f"cores, {machine['system']}; {machine['data']}; {versions}. The {number} "
        "columns behind the precision are windows/s, those behind them ratios."
    )


def _verdict(rows: Sequence[Measured]) -> str:
    lines = []
    for what, ratio, goal in _GOALS:
        reached = sum(goal.reached_by(ratio(row)) for row in rows)
        worst = min(rows, key=ratio)
        lines.append(
            f"- {what}, ≥ {goal.value:g}: reached in {reached} of {len(rows)} rows; lowest "
            f"{digits(ratio(worst))} ({worst})."
        )
    return "\n".join(lines)


def _kernels(rows: Sequence[Measured]) -> str:
    ways: dict[tuple[str, tuple[str, ...]], int] = {}
    for row in rows:
        way = (row.precision, row.kernels)
        ways[way] = ways.get(way, 0) + 1
    return "\n".join(
        f"- {precision} ran {', '.join(f'`{name}`' for name in kernels) or 'no recurrent kernel'} "
        f"in {count} of {len(rows)} rows."
        for (precision, kernels), count in ways.items()
    )
