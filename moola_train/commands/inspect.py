"""Check a file of labels and count what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moola_features.command import command, json_option
from moola_features.terminal import count, print_fields, print_json, share
from moola_train.commands.options import PATH, classes_option, open_one

if TYPE_CHECKING:
    from moola_train.labels import LabelSummary


@command
@click.argument("labels", type=PATH)
@click.option("--store", type=PATH, help="Store that anchored labels point into.")
@classes_option
@json_option
def inspect(labels: Path, store: Path | None, classes: tuple[str, ...], as_json: bool) -> None:
    """Check the labelled windows in LABELS, against their store if given, and sum them up."""
    from moola_train.labels import read_labels, summarise

    found = summarise(read_labels(labels, classes=classes, store=open_one(store)))
    if as_json:
        print_json({"labels": str(labels), **found.to_dict()})
    else:
        _print(labels, found)


def _print(labels: Path, found: LabelSummary) -> None:
    whole = found.num_windows
    kind = "anchored in a store" if found.anchored else "holding their own prices"
    fields = [
        ("windows", f"{count(whole)}, {kind}"),
        ("originals", count(found.num_bases)),
        *((name, f"{count(n)}, {share(n, whole)}") for name, n in found.class_counts.items()),
        ("unlabelled", count(found.num_unlabelled)),
        ("expansions", count(found.num_expansions)),
        ("bars in them", share(found.bars_in_span, 1)),
        ("their length", _range(found.span_length)),
        ("their start", _range(found.span_start)),
        ("duplicates", count(found.num_duplicates)),
        ("overlapping", _overlapping(found)),
    ]
    if found.first_time is not None:
        fields.append(("first bars", f"{found.first_time} to {found.last_time}"))
    print_fields(str(labels), fields)


def _range(values: tuple[int, float, int] | None) -> str:
    if values is None:
        return "-"
    least, median, greatest = values
    return f"{least} to {greatest}, median {median:g}"


def _overlapping(found: LabelSummary) -> str:
    if found.num_overlapping is not None:
        return f"{count(found.num_overlapping)} windows share a bar with another"
    return "not known; give --store" if found.anchored else "not known without times"
