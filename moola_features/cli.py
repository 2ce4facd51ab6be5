"""The command line: each command parses, calls one function and prints what it returned."""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()  # what follows is the start-up that `build` reports as import

import functools  # noqa: E402 - the clock comes first
import os  # noqa: E402
import sys  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import click  # noqa: E402

from moola_features import __version__, spec  # noqa: E402
from moola_features.command import (  # noqa: E402
    CONTEXT,
    command_of,
    json_option,
    run,
    verbose_option,
    when_interrupted,
)
from moola_features.config import PROFILES, FeatureConfig  # noqa: E402
from moola_features.errors import ConfigError  # noqa: E402
from moola_features.remote.objects import is_remote, local_path  # noqa: E402
from moola_features.terminal import (  # noqa: E402
    count,
    print_fields,
    print_json,
    print_table,
    progress_bar,
    share,
    size,
    span,
)

if TYPE_CHECKING:
    from moola_features.building.report import BuildReport
    from moola_features.store.summary import Summary


if TYPE_CHECKING:
    _ParamType = click.ParamType[Path | str]
else:
    _ParamType = click.ParamType  # which older versions of click do not let be subscripted


class _Place(_ParamType):
    """A path on this machine, or for those who can do with one an address in an object store."""

    name = "path"

    def __init__(self, *, may_be_remote: bool) -> None:
        self.may_be_remote = may_be_remote

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Path | str:
        if not str(value).strip():  # a shell's variable that is not set
            self.fail("it is empty text, which is no path; name a file or a folder", param, context)
        place = local_path(str(value))
        if not is_remote(place):
            return Path(place)
        if not self.may_be_remote:
            self.fail(f"{value} is an address; copy what is there to this machine", param, context)
        return str(place)


_FOLDER = _Place(may_be_remote=False)
_PLACE = _Place(may_be_remote=True)
# Columns of the table of a universe.
_SORTABLE = ("instrument", "bars", "from", "to", "segments", "flat", "valid", "dropped", "size")


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="moola-features")
@verbose_option
def cli() -> None:
    """Scale-free features of one-minute bars: build a store, check it, look at it."""


_command = command_of(cli)


def _map_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--map", "mapping", multiple=True, metavar="FIELD=COLUMN", callback=_parse_map,
        help="Name a column that is not recognised, such as open=px_open; may be repeated.",
    )(function)  # fmt: skip


def _parse_map(
    _context: click.Context, _option: click.Parameter, values: tuple[str, ...]
) -> dict[str, str] | None:
    pairs = {}
    for value in values:
        name, equals, column = value.partition("=")
        if not equals or not name or not column:
            raise click.BadParameter(f"{value!r} is not FIELD=COLUMN, such as open=px_open")
        pairs[name.strip().lower()] = column
    return pairs or None


def _config_options(function: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--config", type=_FOLDER, help="TOML file with settings."),
        click.option("--profile", type=click.Choice(list(PROFILES)), help="Named settings."),
        click.option("--family", type=click.Choice(spec.FAMILIES), help="Family of columns."),
        click.option("--swing-rule", type=click.Choice(spec.SWING_RULES), help="Swing rule."),
        click.option("--context", is_flag=True, default=None, help="Add the 8 context columns."),
        click.option("--consol-proxy", is_flag=True, default=None, help="Add consol_proxy."),
        click.option("--max-gap", metavar="4h", help="End a segment at longer gaps."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _config_of(values: dict[str, Any]) -> FeatureConfig:
    names = ("family", "swing_rule", "context", "consol_proxy", "max_gap")
    overrides = {name: values[name] for name in names if values[name] is not None}
    if values["config"] is not None:
        if values["profile"] is not None:
            overrides["profile"] = values["profile"]
        return FeatureConfig.from_toml(values["config"], **overrides)
    return FeatureConfig.profile(values["profile"] or "standard", **overrides)


@_command
@click.argument("bars", nargs=-1, required=True)
@click.option(
    "-o", "--output", "store", type=_PLACE, required=True, help="Folder of the store, or address."
)
@_config_options
@_map_option
@click.option(
    "--on-bad-bars", type=click.Choice(["error", "drop"]), default="error", show_default=True,
    help="Stop at a bad bar, or leave it out and say so.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a store of another input or configuration.")
@click.option("--append", is_flag=True, help="Add what is new in BARS to the store.")
@click.option("--prune", is_flag=True, help="Remove instruments whose input is not given any more.")
@click.option("--dask", metavar="ADDRESS", help="Run on a cluster, such as tcp://host:8786.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads; cores plus one when left out.",
)
@click.option("--max-memory", metavar="500MB", help="Lower the number of workers until it fits.")
@json_option
def build(
    bars: tuple[str, ...],
    store: Path | str,
    mapping: dict[str, str] | None,
    on_bad_bars: str,
    force: bool,
    append: bool,
    prune: bool,
    dask: str | None,
    workers: int | None,
    max_memory: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compute the features of BARS (Parquet, CSV or Arrow) into a store.

    Several files, a folder, a quoted pattern such as 'data/*.parquet' or a file of several symbols
    become a universe: a store for each instrument, below one folder. Addresses such as
    s3://bucket/nq.parquet will do, for BARS and for the store. One that cannot be built is
    reported and does not stop the others; the exit code is then 1.
    """
    if sys.platform == "linux":
        # Before Arrow is imported. By mimalloc, its usual choice, a build takes some 40 MB more and
        # no less time; on other systems it may have no jemalloc, and says so.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    from moola_features.builder import build as build_store
    from moola_features.universe.inputs import names_files

    if is_remote(store):  # where the old store's mark is removed before the new one is brought
        when_interrupted(f"interrupted; what stood at {store} may be gone, build again")
    given = any(value is not None for value in settings.values())
    config = _config_of(settings) if given or not append else None
    source = bars[0] if len(bars) == 1 else bars
    started = time.perf_counter() - _BEGAN
    # One file may hold several symbols, and then instruments are counted: it is not open yet.
    with progress_bar("instruments" if names_files(source) else "done") as progress:
        report = build_store(
            source, store, config,
            column_map=mapping, on_bad_bars=on_bad_bars, force=force, append=append, prune=prune,
            dask=dask,
            workers=workers, max_memory=max_memory, progress=progress,
            tell=lambda line: click.echo(line, err=True),
        )  # fmt: skip
    report.seconds["import"] += started
    report.seconds["total"] += started
    if as_json:
        print_json(report.to_dict())
    else:
        _print_build(report)
    failed = [one for one in report.outcomes if one.status == "failed"]
    for one in failed:
        click.echo(f"{one.symbol} failed: {one.detail}", err=True)
    if failed:
        sys.exit(1)


def _print_build(report: BuildReport) -> None:
    if report.outcomes:
        _print_universe(report.instruments)
        statuses = Counter(one.status for one in report.outcomes)
        told = ", ".join(f"{count(n)} {status}" for status, n in statuses.items())
        print_fields(str(report.path), [("instruments", told)])
    elif len(report.instruments) > 1:
        _print_universe(report.instruments)
    else:
        print_fields(str(report.path), _summary_fields(report.instruments[0]))
    seconds = report.seconds
    stages = ", ".join(f"{name} {took:.2f}" for name, took in seconds.items() if name != "total")
    # What the bars themselves cost: start-up and compilation do not depend on them.
    work = seconds["read"] + seconds["compute"] + seconds["write"]
    rows = [("time", f"{seconds['total']:.2f} s ({stages})")]
    if report.up_to_date:
        rows.append(("", "up to date: nothing was built"))
    else:
        rows.append(("speed", f"{report.num_bars / work / 1e6:,.1f} million bars/s"))
        rows.append(("chunks", _chunks_text(report)))
        if report.predicted_bytes:  # a cluster's workers do not tell
            memory = f"{size(report.peak_bytes)} at most, {size(report.predicted_bytes)} foretold"
            rows.append(("memory", f"{memory}, {report.workers} workers"))
    print_fields("", rows)


def _chunks_text(report: BuildReport) -> str:
    counts = (
        (report.num_guessed, "begun from a guess"),
        (report.num_redone, "computed again"),
        (report.num_resumed, "finished by an earlier build"),
        (report.num_appended, "bars appended"),
    )
    told = "".join(f", {count(number)} {what}" for number, what in counts if number)
    return f"{count(report.num_chunks)}{told}"


def _summary_fields(summary: Summary) -> list[tuple[str, str]]:
    total = summary.num_bars
    steps = summary.gaps["histogram"]
    num_steps = sum(steps.values())
    shown = [f"{name} {share(n, num_steps)}" for name, n in steps.items() if n]
    longest = [
        f"{gap['seconds'] / 3600:,.1f} h after {gap['after']}"
        for gap in summary.gaps["longest"][:3]
    ]
    fields = [
        ("bars", f"{count(total)}, {span(summary.first_time, summary.last_time)}"),
        ("segments", count(summary.num_segments)),
        ("steps", ", ".join(shown)),
        ("longest gaps", "; ".join(longest) or "none over a minute"),
        ("flat bars", share(summary.num_flat, total)),
        ("valid bars", share(summary.num_valid, total)),
        ("features", f"{summary.num_features}, family {summary.config['family']}"),
        ("size", size(summary.num_bytes)),
    ]
    if summary.dropped["total"]:
        reasons = ", ".join(f"{count(n)} {why}" for why, n in summary.dropped["counts"].items())
        fields.insert(1, ("dropped", f"{count(summary.dropped['total'])} bad bars: {reasons}"))
    return fields


def _print_universe(summaries: tuple[Summary, ...]) -> None:
    rows = [
        (
            summary.symbol or "-",
            count(summary.num_bars),
            *span(summary.first_time, summary.last_time).split(" to "),
            count(summary.num_segments),
            share(summary.num_flat, summary.num_bars),
            share(summary.num_valid, summary.num_bars),
            count(summary.dropped["total"]),
            size(summary.num_bytes),
        )
        for summary in summaries
    ]
    print_table(_SORTABLE, rows, numbers=(1, 4, 5, 6, 7, 8))


@_command
@click.argument("store", type=_PLACE)
@click.option(
    "--sort", "by", type=click.Choice(_SORTABLE), metavar="COLUMN",
    help=f"Order instruments by a column: {', '.join(_SORTABLE)}.",
)  # fmt: skip
@click.option("--reverse", is_flag=True, help="Largest first.")
@json_option
def info(store: Path | str, by: str | None, reverse: bool, as_json: bool) -> None:
    """Say what is in STORE."""
    from moola_features.store.summary import summarise

    if reverse and by is None:
        raise click.UsageError("--reverse needs --sort COLUMN")
    summaries = summarise(store)
    if by is not None:
        key = functools.partial(_sort_value, column=by)
        summaries = tuple(sorted(summaries, key=key, reverse=reverse))
    if as_json:
        print_json([summary.to_dict() for summary in summaries])
        return
    if len(summaries) > 1:
        _print_universe(summaries)
        return
    summary = summaries[0]
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    settings = FeatureConfig.from_dict(summary.config)
    print_fields(
        str(store),
        [
            *_summary_fields(summary),
            ("input", f"{summary.input['source']}, sha256 {summary.input['sha256']}"),
            ("built with", versions),
            ("settings", ", ".join(settings.to_toml().strip().replace('"', "").split("\n"))),
        ],
    )
    click.echo("")
    print_table(
        ("#", "column", "range", "meaning"),
        [
            (str(i), column.name, f"[{column.low:g}, {column.high:g}]", column.meaning)
            for i, column in enumerate(spec.columns(settings))
        ],
        numbers=(0,),
    )


def _sort_value(summary: Summary, column: str) -> Any:
    """What a column of the table shows, as something to be compared."""
    values = {
        "instrument": summary.symbol or "",
        "bars": summary.num_bars,
        "from": summary.first_time,
        "to": summary.last_time,
        "segments": summary.num_segments,
        "flat": summary.num_flat / summary.num_bars,
        "valid": summary.num_valid / summary.num_bars,
        "dropped": summary.dropped["total"],
        "size": summary.num_bytes,
    }
    return values[column]


@_command
@click.argument("store", type=_FOLDER)
@click.option("--against", type=_FOLDER, help="Bar file that STORE was built from.")
@_map_option
@json_option
def verify(
    store: Path, against: Path | None, mapping: dict[str, str] | None, as_json: bool
) -> None:
    """Check STORE by computing it again and by every law that it can show.

    One that was built rightly fails too where it holds too little to learn from: where 0.90 of the
    bars behind each segment's warm-up, or fewer, are valid, or where half of all values are 0.
    """
    from moola_features.verification import verify as verify_store

    with progress_bar("bars") as progress:
        report = verify_store(store, against, column_map=mapping, progress=progress)
    if as_json:
        print_json(report.to_dict())
    else:
        _print_verification(report)
    if not report.passed:
        failed = ", ".join(check.name for check in report.checks if check.passed is False)
        click.echo(f"{store} failed: {failed}", err=True)
        sys.exit(1)


def _print_verification(report: Any) -> None:
    words = {True: "pass", False: "FAIL", None: "-"}
    rows = [(words[check.passed], check.name, check.detail) for check in report.checks]
    print_table(("", "check", "found"), rows)
    click.echo("")
    columns = [
        (
            column.name, f"[{column.low:g}, {column.high:g}]", f"{column.min:.4g}",
            f"{column.max:.4g}", share(column.share_non_zero, 1), share(column.share_at_bound, 1),
        )
        for column in report.columns
    ]  # fmt: skip
    headers = ("column", "range", "min", "max", "non-zero", "at a bound")
    print_table(headers, columns, numbers=(2, 3, 4, 5))


@_command
@click.argument("store", type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, required=True, help="Page (.html) or picture (.png).")
@click.option("--at", metavar="TIME", help="Time to show, UTC; the last bars when left out.")
@click.option(
    "--bars", type=click.IntRange(20, 20_000), default=400, show_default=True,
    help="Number of bars to show.",
)  # fmt: skip
@click.option("--column", "columns", multiple=True, help="Column to draw; may be repeated.")
@click.option("--symbol", help="Instrument, in a store of several.")
@json_option
def show(
    store: Path,
    output: Path,
    at: str | None,
    bars: int,
    columns: tuple[str, ...],
    symbol: str | None,
    as_json: bool,
) -> None:
    """Draw a stretch of STORE: candles, swings and feature columns."""
    from moola_features.chart import write_chart

    written = write_chart(
        _one_store(store, symbol), output, at=at, bars=bars, columns=columns or None
    )
    if as_json:
        print_json([str(path) for path in written])
    else:
        for path in written:
            click.echo(path)


@_command
@click.argument("store", type=_FOLDER)
@click.option("-o", "--output", type=_FOLDER, required=True, help="Folder to write.")
@click.option(
    "--stride", type=click.IntRange(1), default=52, show_default=True,
    help="Bars from one window to the next.",
)  # fmt: skip
@click.option("--per-split", is_flag=True, help="One file of windows for each split.")
@click.option("--windows/--no-windows", default=True, help="Write the windows as .npy files.")
@click.option("--bars/--no-bars", default=True, help="Write one row a bar as Parquet.")
@click.option("--symbol", help="Instrument, in a store of several.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@json_option
def export(store: Path, output: Path, symbol: str | None, as_json: bool, **options: Any) -> None:
    """Write STORE as plain files: windows and masks (.npy), splits (.json), bars (Parquet)."""
    from moola_features.export import export_store

    with progress_bar("rows") as progress:
        report = export_store(_one_store(store, symbol), output, progress=progress, **options)
    if as_json:
        print_json(report.to_dict())
        return
    for path, num_bytes in report.files.items():
        click.echo(f"{output / path}  {size(num_bytes)}")


@_command
@click.option("-o", "--output", type=_FOLDER, required=True, help="Bars: .parquet or .csv.")
@click.option(
    "--bars", "num_bars", type=int, default=1_800_000, show_default=True,
    help="Number of bars to make.",
)  # fmt: skip
@click.option("--labels", "labels_path", type=_FOLDER, help="Where to write the planted windows.")
@click.option(
    "--seed", type=int, default=17, show_default=True,
    help="Of the random numbers: the same one makes the same market.",
)  # fmt: skip
@json_option
def synth(output: Path, num_bars: int, labels_path: Path | None, seed: int, as_json: bool) -> None:
    """Make a synthetic market with planted expansions whose truth is known."""
    from moola_features.synth import write_market

    market = write_market(output, num_bars=num_bars, labels_path=labels_path, seed=seed)
    found = {
        "bars": str(output),
        "num_bars": len(market.bars),
        "labels": None if labels_path is None else str(labels_path),
        "num_labels": len(market.labels),
    }
    if as_json:
        print_json(found)
        return
    click.echo(f"{output}  {count(len(market.bars))} bars")
    if labels_path is not None:
        click.echo(f"{labels_path}  {count(len(market.labels))} labelled windows")


@_command
@click.option("--state", type=_FOLDER, help="Go on from this file, and save to it at the end.")
@click.option("--store", type=_FOLDER, help="Go on from the last bar of a store.")
@click.option("--symbol", help="Instrument, in a store of several.")
@_config_options
@json_option
def stream(
    state: Path | None, store: Path | None, symbol: str | None, as_json: bool, **settings: Any
) -> None:
    """Read bars as CSV on stdin (time,open,high,low,close), write their features on stdout."""
    from moola_features.live import follow, open_stream

    if symbol is not None and store is None:
        raise click.UsageError("--symbol needs --store STORE")
    when_interrupted("interrupted")  # the state may be saved by then
    chosen = {name: value for name, value in settings.items() if value is not None}
    config = _config_of(settings) if chosen else None
    begun = open_stream(state, _one_store(store, symbol) if store else None, config)
    follow(begun, sys.stdin, sys.stdout, as_json=as_json, state_path=state)


@_command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print shell completion, to be sourced by your shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.BadParameter(f"no completion for {shell}")
    click.echo(found(cli, {}, "moola-features", "_MOOLA_FEATURES_COMPLETE").source())


def _one_store(path: Path, symbol: str | None) -> Any:
    from moola_features.store import Universe, open_store

    opened = open_store(path)
    if isinstance(opened, Universe):
        if symbol is None or symbol not in opened:
            listed = ", ".join(list(opened)[:20])
            raise ConfigError(f"{path} holds several instruments; choose --symbol from {listed}")
        return opened[symbol]
    if symbol not in (None, opened.attributes.get("symbol")):
        raise ConfigError(f"{path} holds one instrument; leave --symbol {symbol} out")
    return opened


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and a right exit code."""
    run(cli, "moola-features", "interrupted; what was there before is untouched")


if __name__ == "__main__":
    main()
