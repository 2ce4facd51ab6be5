"""Judge a run on windows that it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moola_features.command import command, json_option
from moola_features.terminal import count, print_fields, print_json, print_table
from moola_train.commands.options import PATH, open_one
from moola_train.commands.outputs import require_output
from moola_train.config import DEVICES
from moola_train.evaluation.names import BLOCK_BARS, CLASS, VOLATILITY
from moola_train.evaluation.texts import SCORE_HEADERS, number, score_cells, spread

if TYPE_CHECKING:
    from moola_train.evaluation.comparison import Comparison
    from moola_train.evaluation.evaluate import Evaluation
    from moola_train.evaluation.scores import Score
    from moola_train.evaluation.slices import Slice


@command
@click.argument("run", type=PATH)
@click.option(
    "--part", type=click.Choice(["val", "test"]), default="val", show_default=True,
    help="The test part is sealed: every look at it is recorded in the run's folder.",
)  # fmt: skip
@click.option("--against", type=PATH, help="Another run, compared window by window.")
@click.option("--store", type=PATH, help="Where the store is now, if it was moved.")
@click.option("--labels", type=PATH, help="Where the labels are now.")
@click.option("--split", type=PATH, help="Where the split is now.")
@click.option("-o", "--output", type=PATH, help="Write a page with plots (.html) as well.")
@click.option("--draws", type=int, default=1_000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=int, default=17, show_default=True, help="Of draws and control.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@json_option
def evaluate(
    run: Path,
    part: str,
    against: Path | None,
    store: Path | None,
    labels: Path | None,
    split: Path | None,
    output: Path | None,
    draws: int,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Judge RUN by every metric, beside its floors and with 95 % intervals.

    Refused where labels, split or store changed since training.
    """
    from moola_train.evaluation.evaluate import evaluate_run
    from moola_train.evaluation.page import write_page
    from moola_train.run_data import RunData

    if output is not None:
        where = RunData.read(run).paths
        given = {"store": store, "labels": labels, "split": split}
        read = {name: Path(at) for name, path in given.items() if (at := path or where.get(name))}
        require_output(output, (".html",), called="output", **read)
    found = evaluate_run(
        run, part=part, against=against, store=open_one(store), labels=labels, split=split,
        device=device, num_draws=draws, seed=seed, say=lambda text: click.echo(text, err=True),
    )  # fmt: skip
    print_json(found.to_dict()) if as_json else _print(found)
    if output is not None:
        write_page(found, output)
        click.echo(f"wrote {output}", err=True)


def _print(found: Evaluation) -> None:
    print_fields(f"{found.run}, {found.part}", _facts(found))
    click.echo()
    _print_scores(found.scores)
    for by, title in ((CLASS, "by class; accuracy is recall"), (VOLATILITY, "by volatility")):
        _print_slices([part for part in found.slices if part.by == by], title)
    _print_control(found)
    if found.comparison is not None:
        _print_comparison(found.comparison)
    for text in (found.meaning, *found.cautions):
        click.echo(f"\n{text}")


def _facts(found: Evaluation) -> list[tuple[str, str]]:
    facts = [
        ("preset", f"{found.preset}, fold {found.fold}"),
        ("windows", f"{count(found.num_windows)} in {count(found.num_blocks)} days or bases"),
        ("intervals", f"95 %, {count(found.num_draws)} draws of those"),
    ]
    if found.calibration is not None:
        fitted = found.calibration
        ece = f"{number(fitted.before['ece'])} -> {number(fitted.after['ece'])}"
        facts.append(("temperature", f"{fitted.temperature:.3f} from validation, ECE {ece}"))
    if found.threshold is not None:
        facts.append(("threshold", f"{found.threshold.value:g} from validation"))
    if found.abstaining is not None:
        told = found.abstaining
        ap = f"average precision {number(told.average_precision)} ({spread(told.interval)})"
        floors = f"floor {number(told.floor)}, rule {number(told.rule)}"
        sizes = f"{count(told.num_with)} windows with one, {count(told.num_without)} without"
        facts.append(("an expansion?", f"{ap}, {floors}; {sizes}"))
    return facts


def _print_scores(scores: dict[str, Score]) -> None:
    rows = [score_cells(name, score) for name, score in scores.items()]
    print_table(SCORE_HEADERS, rows, numbers=(1, 2, 3, 4))


def _print_slices(slices: list[Slice], title: str) -> None:
    if not slices:
        return
    click.echo(f"\n{title}")
    rows = [
        (part.name, count(part.num_windows), *score_cells(name, score))
        for part in slices
        for name, score in part.scores.items()
    ]
    print_table(("windows", "number", *SCORE_HEADERS), rows, numbers=(1, 3, 4, 5, 6))


def _print_control(found: Evaluation) -> None:
    click.echo(f"\npermutation control: bars shuffled inside blocks of {BLOCK_BARS}, same windows")
    rows = [
        (name, number(found.scores[name].value), number(shuffled.value), spread(shuffled.interval))
        for name, shuffled in found.control.items()
    ]
    print_table(("metric", "in order", "shuffled", "95 %"), rows, numbers=(1, 2, 3))


def _print_comparison(comparison: Comparison) -> None:
    click.echo(
        f"\nagainst {comparison.other} ({comparison.preset}): {count(comparison.num_windows)} "
        f"windows paired, {count(comparison.num_left_out)} left out"
    )
    headers = ("metric", "this run", "the other", "difference", "95 %", "better beyond chance")
    rows = [
        (
            name, number(apart.first), number(apart.second), number(apart.difference),
            spread(apart.interval),
            {"first": "this run", "second": "the other", None: "-"}[apart.verdict],
        )
        for name, apart in comparison.differences.items()
    ]  # fmt: skip
    print_table(headers, rows, numbers=(1, 2, 3, 4))
