"""Markdown tables of what was measured, and putting them in place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.comparison import Row
from moola_features.files import replaced_file

BLOCK = "benchmarks"
SECTIONS = {
    "test_features": "Features in memory, one thread",
    "test_parallel": "Features in memory, several threads",
    "test_build": "A whole build",
    "test_windows": "Windows",
    "test_stream": "Stream",
    "test_startup": "Starting, opening, checking",
    "test_labels": "Labels",
    "test_loaders": "Batches for training",
}
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "/s": ((1e9, "G "), (1e6, "M "), (1e3, "k "), (1.0, "")),
}


def read_sections(results: dict[str, Any]) -> dict[str, list[Row]]:
    """Take the rows, by section, out of what pytest-benchmark wrote."""
    sections: dict[str, list[Row]] = {title: [] for title in SECTIONS.values()}
    for benchmark in results["benchmarks"]:
        module = Path(benchmark["fullname"].split("::")[0]).stem
        if module in SECTIONS:
            rows = benchmark["extra_info"]["rows"]
            sections[SECTIONS[module]] += [Row.from_dict(values) for values in rows]
    return sections


def alternatives_table(results: dict[str, Any]) -> str:
    """This engine beside what others offer: speed, memory, and what they cannot compute."""
    found = [b["extra_info"].get("alternatives", []) for b in results["benchmarks"]]
    lines = [
        "| what | computes | bars/s | moola / it | peak memory a bar | cannot compute |",
        "| --- | --- | --: | --: | --: | --- |",
    ]
    for entry in itertools.chain.from_iterable(found):
        rate = quantity(entry["rate"], "bars/s").removesuffix("bars/s").strip()
        cells = (
            entry["name"], entry["computes"], rate, _times(entry["ratio"]),
            f"{entry['bytes_per_bar']:,.0f} B", entry["lacks"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def full_report(results: dict[str, Any]) -> str:
    """Everything that was measured, section by section."""
    sections = read_sections(results)
    parts = [_circumstances(results)]
    parts += ["### Beside the alternatives", alternatives_table(results)]
    for title, rows in sections.items():
        parts += [f"### {title}", _table(rows, _FULL)]
    parts.append(_verdict([row for rows in sections.values() for row in rows]))
    return "\n\n".join(parts)


def short_report(results: dict[str, Any]) -> str:
    """The rows that a reader of the README wants first."""
    rows = [row for part in read_sections(results).values() for row in part]
    table = _table([row for row in rows if row.headline], _SHORT)
    return "\n\n".join(
        [_circumstances(results), alternatives_table(results), table, _verdict(rows)]
    )


def replace_block(path: Path, text: str, name: str = BLOCK) -> None:
    """Put text between the two marks of a name in a file, in one step."""
    before, after = surroundings(path, name)
    with replaced_file(path) as beside:
        beside.write_text(before + block_of(text, name) + after, encoding="utf-8")


def block_of(text: str, name: str = BLOCK) -> str:
    """Text between the two marks of a name."""
    begin, end = _marks(name)
    return f"{begin}\n{text}\n{end}"


def surroundings(path: Path, name: str = BLOCK) -> tuple[str, str]:
    """What stands before and behind the two marks of a name in a file."""
    begin, end = _marks(name)
    content = path.read_text(encoding="utf-8")
    before, *behind_begin = content.split(begin)
    if len(behind_begin) == 1 and behind_begin[0].count(end) == 1:
        return before, behind_begin[0].split(end)[1]
    raise ValueError(f"{path} must hold {begin} once and, behind it, {end} once; write them")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def quantity(value: float, unit: str) -> str:
    """Write a figure with three digits and its unit.

    Examples
    --------
    >>> quantity(57_123_456.0, "bars/s"), quantity(0.0028, "s"), quantity(1234.0, "s")
    ('57.1 M bars/s', '2.80 ms', '1,234 s')
    """
    scales = _SCALES["/s" if unit.endswith("/s") else unit]
    scale, prefix = next((pair for pair in scales if value >= pair[0]), scales[-1])
    name = f"{prefix}{unit}" if unit.endswith("/s") else prefix
    return f"{digits(value / scale)} {name}"


def digits(value: float) -> str:
    """Write a positive number with three digits, or all those before the point.

    Examples
    --------
    >>> digits(0.21738), digits(5.0), digits(2_654.1)
    ('0.217', '5.00', '2,654')
    """
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{decimals}f}"


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    sense = "≥" if row.goal.at_least else "≤"
    if row.ratio is None:
        return f"{sense} {quantity(row.goal.value, row.unit)}"
    return f"{sense} {row.goal.value:,g} x"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{digits(ratio)} x"


def _reached(row: Row) -> str:
    return {True: "yes", False: "**no**", None: ""}[row.reached]


# Heading, whether it is set to the right, and what a row shows there.
_Column = tuple[str, bool, Callable[[Row], str]]
_SHORT: tuple[_Column, ...] = (
    ("what", False, lambda row: row.what),
    ("moola", True, lambda row: quantity(row.ours, row.unit)),
    ("beside", False, lambda row: row.beside or ""),
    ("theirs", True, lambda row: "" if row.theirs is None else quantity(row.theirs, row.unit)),
    ("moola / theirs", True, lambda row: _times(row.ratio)),
    ("to reach", True, _goal),
    ("reached", False, _reached),
)
_FULL = (*_SHORT[:5], ("in CPU time", True, lambda row: _times(row.cpu_ratio)), *_SHORT[5:])


def _table(rows: Sequence[Row], columns: Sequence[_Column]) -> str:
    lines = [
        [heading for heading, _, _ in columns],
        ["--:" if right else "---" for _, right, _ in columns],
        *([show(row) for _, _, show in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _circumstances(results: dict[str, Any]) -> str:
    machine = results["machine_info"]["report"]
    date = datetime.fromisoformat(results["datetime"]).date().isoformat()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {date}: {machine['cpu']}, {machine['num_cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}; {machine['data']}; "
        f"{versions}."
    )


def _verdict(rows: Sequence[Row]) -> str:
    missed = [_named(row) for row in rows if row.reached is False]
    lost = [_named(row) for row in rows if row.lost]
    return "\n".join(
        [
            f"Goals not reached: {'; '.join(missed) or 'none'}.",
            "",
            f"Where others that do the same come out ahead: {'; '.join(lost) or 'none'}.",
        ]
    )


def _named(row: Row) -> str:
    if row.ratio is None:
        return f"{row.what}: {quantity(row.ours, row.unit)} ({_goal(row)})"
    wanted = f" ({_goal(row)})" if row.goal is not None else ""
    return f"{row.what} / {row.beside}: {_times(row.ratio)}{wanted}"
