"""How results and progress look in a terminal: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from moola_features.times import time_text

WIDE = 200  # columns for a table that goes into a file or a pipe


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_fields(title: str, fields: Sequence[tuple[str, str]]) -> None:
    """Print a title and aligned names with their values."""
    click.echo(title)
    width = max(len(name) for name, _ in fields)
    for name, text in fields:
        click.echo(f"  {name.ljust(width)}  {text}")


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> None:
    """Print a table; columns listed in ``numbers`` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, header in enumerate(headers):
        table.add_column(header, justify="right" if position in numbers else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)
    with console.capture() as captured:
        console.print(table)
    # Rich pads to the width; trailing blanks have no place in a file.
    lines = [line.rstrip() for line in captured.get().splitlines()]
    click.echo("\n".join(line for line in lines if line))


@contextlib.contextmanager
def progress_bar(label: str, *, show: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on stderr; yields a function of the work done and the work in all."""
    if not show:
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def count(value: int) -> str:
    """Write a count with its thousands apart."""
    return f"{value:,}"


def share(part: float, whole: float) -> str:
    """Write a share in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def size(num_bytes: int) -> str:
    """Write a size in decimal units."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:,.2f} GB"


def span(first_ns: int, last_ns: int) -> str:
    """Write a range of time."""
    return f"{time_text(first_ns)} to {time_text(last_ns)}"
