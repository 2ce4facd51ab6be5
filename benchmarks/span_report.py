"""Tables and a plot of the span benchmark, made of its lines and nothing else."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import replace_block
from benchmarks.span_models import jobs_of
from benchmarks.span_task import REAL
from moola_features.files import replaced_file

Rows = Sequence[dict[str, Any]]

SHOWN = {"span_f1": "span F1", "hit_at_3": "Hit@3", "f1_macro": "type F1"}
SHORT = ("jade-span", "boosting", "MiniRocket", "rule")  # models that the README shows
COLLAPSED = 0.9  # one type for more of the test windows than this


@dataclass(frozen=True)
class Target:
    """What is to be reached by one of our presets: labels, column sets, and the three scores."""

    size: int
    what: str
    columns: tuple[str, ...]
    scores: tuple[float, float, float]


TARGETS = (
    Target(
        174, "best column set",
        ("standard", "wide", "faithful", "returns", "wide + context"), (0.70, 0.65, 0.70),
    ),
    Target(
        20_000, "11 columns", ("standard", "wide", "faithful", "returns"), (0.84, 0.82, 0.81)
    ),
    Target(20_000, "with context", ("wide + context",), (0.90, 0.87, 0.86)),
)  # fmt: skip


def write(document: Path, rows: Rows) -> None:
    """Put the tables into a document, and the plot beside it."""
    picture = document.with_suffix(".png")
    replace_block(document, full_report(rows, picture.name))
    if rows:
        _plot(rows, picture)


def short_report(rows: Rows) -> str:
    """A table for the README: each model on its best column set, by number of labels."""
    lines = [
        "| labels | model | columns | span F1 | both edges within 3 bars | type F1 |",
        "| --: | --- | --- | --: | --: | --: |",
    ]
    real = [row for row in rows if row["bars"] != "synthetic"]
    for (size,), part in _by(sorted(real, key=lambda row: row["size"]), "size"):
        for model in SHORT:
            groups = [found for (name, _), found in _by(part, "model", "columns") if name == model]
            if groups:
                best = max(groups, key=lambda group: _mean(group, "span_f1"))
                scores = [_with_interval(best, metric) for metric in SHOWN]
                lines.append(
                    f"| {size:,} | {model} | {best[0]['columns']} | {' | '.join(scores)} |"
                )
    return "\n".join(lines)


def full_report(rows: Rows, picture: str) -> str:
    """Everything that is generated, as Markdown."""
    if not rows:
        return "No run has ended yet."
    parts = [f"![scores by number of labels]({picture})", _targets(rows)]
    for (bars, size), part in _by(rows, "bars", "size"):
        title = f"### {size:,} labels, {bars}, {part[0]['num_test']:,} test windows"
        parts += [title, _scores(part)]
    parts += [_transfer(rows), _collapse(rows), _missing(rows), _circumstances(rows)]
    return "\n\n".join(part for part in parts if part)


def _by(rows: Iterable[dict[str, Any]], *names: str) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """Rows in groups of equal values, in the order of their first rows."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(found.items())


def _mean(rows: Rows, metric: str, part: str = "value", kind: str = "metrics") -> float:
    return statistics.fmean(row[kind][metric][part] for row in rows)


def _scores(rows: Rows) -> str:
    """One line for each model and column set, the best span F1 first."""
    groups = [(key, part) for key, part in _by(rows, "model", "columns")]
    groups.sort(key=lambda group: -_mean(group[1], "span_f1"))
    head = ["model", "columns", "runs", *SHOWN.values(), "span F1 minus rule", "expansion AP", "s"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " --: |" * (len(head) - 2)]
    for (model, columns), part in groups:
        cells = [model, columns, str(len(part))]
        cells += [_with_interval(part, metric) for metric in SHOWN]
        over = "" if model == "rule" else _with_interval(part, "span_f1", kind="over_rule")
        taken = [row["seconds"] for row in part if row["seconds"] is not None]
        seconds = f"{statistics.fmean(taken):,.0f}" if taken else "-"
        cells += [over, _with_interval(part, "expansion_ap"), seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_interval(rows: Rows, metric: str, kind: str = "metrics") -> str:
    value, low, high = (_mean(rows, metric, part, kind) for part in ("value", "low", "high"))
    sign = "+" if kind == "over_rule" else ""
    text = f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
    if len(rows) > 1:
        text += f" ± {statistics.stdev(row[kind][metric]['value'] for row in rows):.3f}"
    return text


def _targets(rows: Rows) -> str:
    """What was to be reached, and what the best of our presets reaches."""
    lines = [
        "| labels | columns | to reach | reached | by |",
        "| --: | --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        ours = [
            (key, part)
            for key, part in _by(rows, "bars", "size", "model", "columns")
            if key[0] != "synthetic" and key[1] == target.size
            and key[2].startswith("jade") and key[3] in target.columns
        ]  # fmt: skip
        wanted = " / ".join(f"{score:.2f}" for score in target.scores)
        if not ours:
            lines.append(f"| {target.size:,} | {target.what} | {wanted} | not run yet | |")
            continue
        key, part = max(ours, key=lambda group: sum(_mean(group[1], name) for name in SHOWN))
        values = [_mean(part, name) for name in SHOWN]
        reached = " / ".join(
            f"{value:.3f}" + ("" if value >= score else " (below)")
            for value, score in zip(values, target.scores, strict=True)
        )
        by = f"{key[2]}, {key[3]}, {len(part)} run{'s' * (len(part) > 1)}"
        lines.append(f"| {target.size:,} | {target.what} | {wanted} | {reached} | {by} |")
    return "\n".join(lines)


def _transfer(rows: Rows) -> str:
    """Scores on another instrument, of models that never saw it."""
    moved = [row for row in rows if "transfer" in row]
    if not moved:
        return ""
    lines = [
        "### Another instrument, without learning anew",
        "",
        f"| learnt from | model | columns | instrument | windows | {' | '.join(SHOWN.values())} |",
        "| --- | --- | --- | --- | --: |" + " --: |" * len(SHOWN),
    ]
    for row in moved:
        found = row["transfer"]
        cells = [f"{row['size']:,} labels of {row['bars']}", row["model"], row["columns"]]
        cells += [found["bars"], f"{found['num_test']:,}"]
        cells += [_with_interval([found], metric) for metric in SHOWN]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _collapse(rows: Rows) -> str:
    ours = [row for row in rows if row["model"].startswith("jade") and row["bars"] != "synthetic"]
    if not ours:
        return ""
    worst = max(ours, key=lambda row: row["top_class_share"])
    count = sum(row["top_class_share"] > COLLAPSED for row in ours)
    return (
        f"Collapse of the type head (one type for more than {COLLAPSED:.0%} of the test windows): "
        f"{count} of {len(ours)} runs of our presets. The largest share of one type is "
        f"{worst['top_class_share']:.0%}, in `{worst['key']}`."
    )


def _missing(rows: Rows) -> str:
    """How many of the planned runs have not been made yet, by model."""
    done = {row["key"] for row in rows}
    planned = list(jobs_of(REAL))
    left = Counter(job.model for job in planned if job.key not in done)
    if not left:
        return ""
    listed = ", ".join(f"{count} of `{name}`" for name, count in left.most_common())
    return (
        f"Of {len(planned)} runs that the protocol knows, {left.total()} have not been made yet: "
        f"{listed}."
    )


def _circumstances(rows: Rows) -> str:
    """On what machines, with which versions, when, and how long."""
    lines = []
    for (cpu, cores, threads, versions), part in _by(
        [
            {
                **row, **row["machine"],
                "versions": ", ".join(f"{k} {v}" for k, v in row["machine"]["versions"].items()),
            }
            for row in rows
        ],
        "cpu", "cores", "threads", "versions",
    ):  # fmt: skip
        dates = sorted({row["date"] for row in part})
        hours = sum(row["seconds"] or 0 for row in part) / 3600
        lines.append(
            f"{len(part)} runs, {hours:.1f} hours, {' to '.join(dict.fromkeys(dates))}: {cpu}, "
            f"{cores} cores, {threads} thread{'s' * (threads > 1)} a run; {versions}."
        )
    return "\n".join(lines)


def _plot(rows: Rows, path: Path) -> None:
    """Scores by number of labels, with their intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    real = [row for row in rows if row["bars"] != "synthetic"] or list(rows)
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(12, 4), sharey=True, layout="constrained")
    groups = [(key, part) for key, part in _by(real, "model", "columns") if key[0] != "every bar"]
    colours = plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]
    for axis, (metric, title) in zip(axes, SHOWN.items(), strict=True):
        axis.set_prop_cycle(color=colours)
        for (shift, (key, part)), marker in zip(
            enumerate(groups), itertools.cycle("osD^vP*X"), strict=False
        ):
            points = [(size, chosen) for (size,), chosen in sorted(_by(part, "size"))]
            x = [size * 1.03 ** (shift - len(groups) / 2) for size, _ in points]
            y = [_mean(chosen, metric) for _, chosen in points]
            low = [_mean(chosen, metric) - _mean(chosen, metric, "low") for _, chosen in points]
            high = [_mean(chosen, metric, "high") - _mean(chosen, metric) for _, chosen in points]
            name = key[0] if key[1] == "-" else f"{key[0]}, {key[1]}"
            axis.errorbar(x, y, (low, high), marker=marker, ms=4, lw=0.8, capsize=2, label=name)
        axis.set(title=title, xscale="log", xlabel="labels")
        axis.grid(alpha=0.3)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7)
    with replaced_file(path) as beside:
        figure.savefig(beside, dpi=110, format="png", metadata={"Software": None})
    plt.close(figure)
