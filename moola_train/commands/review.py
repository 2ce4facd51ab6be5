"""Mark windows by hand on a local page."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

import click

from moola_features.command import command
from moola_train.commands.options import PATH, classes_option, open_one


@command
@click.argument("store", type=PATH)
@click.option("--labels", type=PATH, required=True, help="Labels to review; may not exist yet.")
@click.option(
    "-o", "--output", type=PATH,
    help="Where answers go (.parquet); else LABELS itself if a review wrote it or it is new, "
    "or NAME.reviewed.parquet beside it.",
)  # fmt: skip
@click.option("--stride", type=int, help="Add windows of the store, so many bars apart; 105.")
@click.option("--sample", type=int, help="Add so many of them, drawn at random.")
@click.option(
    "--order", type=click.Choice(["given", "random", "uncertain"]), default="given",
    show_default=True, help="uncertain: those first of which the model of --by is least sure.",
)  # fmt: skip
@click.option("--by", "run", type=PATH, help="Run whose model orders and suggests.")
@click.option("--seed", type=int, default=17, show_default=True, help="Of sample and order.")
@click.option("--from", "start", help="Only windows from this time on, UTC.")
@click.option("--to", "stop", help="Only windows that end before this time, UTC.")
@click.option("--blind", is_flag=True, help="Suggest nothing.")
@click.option("--port", type=int, default=0, help="Port of the page; any free one when left out.")
@click.option("--open/--no-open", "opens", default=True, help="Open the page in a browser.")
@classes_option
def review(
    store: Path,
    labels: Path,
    output: Path | None,
    stride: int | None,
    sample: int | None,
    order: str,
    run: Path | None,
    seed: int,
    start: str | None,
    stop: str | None,
    blind: bool,
    port: int,
    opens: bool,
    classes: tuple[str, ...],
) -> None:
    """Mark windows of STORE by hand on a local page; ends with Ctrl-C.

    Every answer is on disk before the page goes on. The same command goes on where it ended.
    """
    from moola_train.review.start import ReviewSettings, open_review

    settings = ReviewSettings(
        classes=classes, order=order, run=run, stride=stride, sample=sample, seed=seed,
        start=start, stop=stop, blind=blind,
    )  # fmt: skip
    opened = open_one(store)
    assert opened is not None
    with open_review(opened, labels, output, settings, port) as server:
        click.echo(server.address)
        sys.stdout.flush()
        click.echo("serving until Ctrl-C", err=True)
        if opens and _has_screen():
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.session.close()
        done = server.session.progress()
    file = server.session.path
    click.echo(f"{file}: {done['answered']} of {done['total']} answered, {done['skipped']} skipped")


def _has_screen() -> bool:
    # Without one, a browser that lives in the terminal would take it over.
    return sys.platform == "darwin" or any(
        os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY")
    )
