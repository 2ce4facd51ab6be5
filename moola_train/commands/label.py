"""Label the windows of a store in hindsight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moola_features.command import command, json_option
from moola_features.errors import BarsError
from moola_features.terminal import count, print_json, print_table, progress_bar, share
from moola_features.times import parse_time_ns
from moola_train.commands.options import PATH, open_one
from moola_train.commands.outputs import require_output
from moola_train.config import class_names
from moola_train.errors import ConfigError

if TYPE_CHECKING:
    from moola_train.labelling import LabellingReport

_CAUSES = {
    "gap": "a gap over {max_gap_minutes:g} minutes inside",
    "span": "spanning over {max_span_minutes:g} minutes",
    "edge": "fewer than 10 bars behind, or none before",
}
# Of a file that `label` writes. A review's has more, and a file of bars has others.
_COLUMNS = [
    "window_id", "label", "expansion_start", "expansion_end", "start_time", "source", "direction",
    "score",
]  # fmt: skip
_READ_ROWS = 65_536
_MOST_STRIDE = 1_000_000_000  # longer than any store; positions are int64


@command
@click.argument("store", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Where to write them (.parquet).")
@click.option("--stride", type=int, default=52, show_default=True, help="Bars between windows.")
@click.option("--from", "start", help="Only windows from this time on (UTC).")
@click.option("--to", "stop", help="Only windows that end before this time (UTC).")
@click.option(
    "--keep", default="consolidation,retracement", show_default=True,
    help="Labels to write, of consolidation, retracement, other, none, ambiguous.",
)  # fmt: skip
@click.option(
    "--max-gap-minutes", type=float, default=10.0, show_default=True,
    help="Longest time from one bar of a window to the next.",
)  # fmt: skip
@click.option(
    "--max-span-minutes", type=float, default=180.0, show_default=True,
    help="Longest time from a window's first bar to its last.",
)  # fmt: skip
@json_option
def label(
    store: Path,
    output: Path,
    stride: int,
    start: str | None,
    stop: str | None,
    keep: str,
    as_json: bool,
    **limits: float,
) -> None:
    """Label windows of STORE by what happens in them and just behind them.

    The rule looks ahead: what it writes is a target to learn, never a feature to learn from.
    A file that `label` did not write is not replaced.
    """
    from moola_train.hindsight import HindsightSettings
    from moola_train.labelling import label_store

    settings = HindsightSettings(**limits)
    names = class_names("--keep", keep)
    if not 1 <= stride <= _MOST_STRIDE:
        raise ConfigError(f"stride is {stride}; it must be from 1 to {_MOST_STRIDE:,}")
    require_output(output, (".parquet", ".pq"), store=store)
    _require_own(output)
    opened = open_one(store)
    assert opened is not None
    first, last = (
        None if when is None else parse_time_ns(name, when)
        for name, when in (("--from", start), ("--to", stop))
    )
    with _late_bar("labelling", show=not as_json) as progress:
        found = label_store(
            opened, output, stride=stride, start=first, stop=last, keep=names, settings=settings,
            progress=progress,
        )  # fmt: skip
    rate = found.num_windows / found.seconds
    click.echo(f"{count(round(rate))} windows/s, {found.seconds:.2f} s", err=True)
    print_json(found.to_dict()) if as_json else _print(found, limits)


@contextlib.contextmanager
def _late_bar(label: str, *, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar from the first progress on, so that what is refused before it draws none."""
    with contextlib.ExitStack() as stack:
        update: Callable[[int, int | None], None] | None = None

        def progress(done: int, total: int) -> None:
            nonlocal update
            if update is None:
                update = stack.enter_context(progress_bar(label, show=show))
            update(done, total)

        yield progress


def _require_own(output: Path) -> None:
    """Refuse to replace what `label` did not write: bars, or labels that somebody else gave."""
    if output.exists() and not (output.is_file() and _is_own(output)):
        raise ConfigError(f"{output} was not written by label; choose another output")


def _is_own(file: Path) -> bool:
    from moola_features.bars.files import decoding, open_reader
    from moola_train.labelling import SOURCE

    # What is no Parquet, or damaged, is none of ours either.
    with contextlib.suppress(BarsError), decoding(file):
        reader = open_reader(file)
        if reader.names == _COLUMNS:
            frames = reader.frames(["source"], _READ_ROWS)
            return all(frame["source"].eq_missing(SOURCE).all() for frame in frames)
    return False


def _print(found: LabellingReport, limits: dict[str, Any]) -> None:
    rows = [
        (name, count(number), share(number, found.num_windows), count(found.kept.get(name, 0)))
        for name, number in found.labels.items()
    ]
    for name, number in found.skipped.items():
        cause = f"skipped: {_CAUSES[name].format(**limits)}"
        rows.append((cause, count(number), share(number, found.num_windows), "0"))
    kept = sum(found.kept.values())
    rows.append(("all", count(found.num_windows), "100.0 %", count(kept)))
    print_table(("label", "windows", "share", "written"), rows, numbers=(1, 2, 3))
    click.echo(f"{found.path}: {count(kept)} windows")
