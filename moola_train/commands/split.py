"""Divide labelled windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moola_features.command import command, json_option
from moola_features.terminal import count, print_json, print_table
from moola_train.commands.options import PATH, classes_option, open_one
from moola_train.commands.outputs import require_output


@command
@click.option("--labels", type=PATH, required=True, help="Labelled windows.")
@click.option("--store", type=PATH, help="Store that anchored labels point into.")
@click.option("-o", "--output", type=PATH, required=True, help="Where to write the split (.json).")
@click.option("--method", type=click.Choice(["forward-chain"]), default="forward-chain")
@click.option("--folds", type=int, default=1, show_default=True)
@click.option("--val-share", type=float, help="Of the windows, for each fold; else 0.15.")
@click.option("--test-share", type=float, help="Of the windows, the last ones; else 0.15.")
@click.option("--val-from", help="Where validation begins, a time in UTC, in place of shares.")
@click.option("--test-from", help="Where the sealed test part begins.")
@click.option("--purge-bars", type=int, help="At least a window less one; that when left out.")
@click.option("--embargo-bars", type=int, default=0, show_default=True)
@classes_option
@json_option
def split(
    labels: Path,
    store: Path | None,
    output: Path,
    method: str,
    classes: tuple[str, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Divide labelled windows into training, validation and test parts, purged in bars."""
    from moola_train.labels import read_labels
    from moola_train.splits import forward_chain, order_of, write_split

    require_output(output, (".json",), labels=labels, store=store)
    windows = read_labels(labels, classes=classes, store=open_one(store))
    made = forward_chain(windows, name=method, **settings)
    write_split(made, output)
    if as_json:
        counts = made.counts()
        print_json({"split": str(output), "order": order_of(windows), "folds": counts})
        return
    headers = ("fold", "train", "val", "test", "left out")
    rows = [
        (str(fold), *(count(sizes[name]) for name in ("train", "val", "test", "left_out")))
        for fold, sizes in enumerate(made.counts())
    ]
    print_table(headers, rows, numbers=range(5))
    gaps = made.purge_bars, made.embargo_bars, made.warmup_bars
    click.echo(f"{output}: purge {gaps[0]}, embargo {gaps[1]}, warm-up {gaps[2]} bars")
    click.echo(f"ordered by: {order_of(windows)}")
