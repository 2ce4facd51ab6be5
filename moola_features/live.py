"""Bars line by line from a pipe, features line by line into one."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import polars as pl

from moola_features.bars.checks import MISSING_TIME
from moola_features.bars.columns import BarColumns, find_columns
from moola_features.bars.times import TimeReader
from moola_features.config import FeatureConfig
from moola_features.errors import BarsError, StreamError
from moola_features.files import replaced_file
from moola_features.store.layout import require_outside
from moola_features.stream import Stream
from moola_features.times import time_text

if TYPE_CHECKING:
    from moola_features.store import Store


def open_stream(state: Path | None, store: Store | None, config: FeatureConfig | None) -> Stream:
    """Begin a stream: from a saved state if its file is there, else from a store, else anew.

    Raises
    ------
    StreamError
        A state that cannot be read, or of another configuration than the one asked for.
    OutputError
        A state that is inside a store.
    """
    if state is not None:
        require_outside(state)
    if state is not None and state.exists():
        try:
            saved = json.loads(state.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StreamError(
                f"state {state} cannot be read: {error}; delete it to begin anew"
            ) from error
        stream = Stream.from_state(saved)
        origin = str(state)
    elif store is not None:
        stream = Stream.from_state(store.attributes["state"])
        origin = str(store.path)
    else:
        return Stream(config)
    if config is not None and config != stream.config:
        raise StreamError(
            f"{origin} was made with another configuration; leave the settings out, or begin anew"
        )
    return stream


def follow(
    stream: Stream,
    source: TextIO,
    sink: TextIO,
    *,
    as_json: bool = False,
    state_path: Path | None = None,
) -> None:
    """Read CSV bars with a header line, write each one's features as soon as it is read.

    Parameters
    ----------
    stream
        Goes on from where it is.
    source, sink
        Text in, text out: CSV with a header line, or one JSON object a line.
    as_json
        Whether to write JSON lines.
    state_path
        Where to save the state at the end, and when a bar is refused or the run is interrupted.

    Raises
    ------
    StreamError
        A line that is no bar, or a bar that contradicts itself; the lines before it are written.
    """
    lines = _rows(source)
    header = next(lines, None)
    if header is None:
        raise StreamError("stdin is empty; give a header line time,open,high,low,close")
    columns = _columns(header)
    needed = set(columns.names)
    read_time = TimeReader()
    symbol = None
    names = stream.config.names
    if not as_json:
        sink.write(",".join(("time", "valid", *names)) + "\n")
    try:
        for number, cells in enumerate(lines):
            if not cells:
                continue
            named = dict(zip(header, cells, strict=False))
            if len(cells) > len(header) or not needed <= named.keys():
                _refuse(number, cells, f"it has {len(cells)} cells for {len(header)} columns")
            if columns.symbol is not None:
                # The state of one would be carried on to the other.
                symbol = named.get(columns.symbol) if symbol is None else symbol
                if named.get(columns.symbol) != symbol:
                    _refuse(number, cells, f"those before are of {symbol!r}, a stream is of one")
            time, prices = _bar(number, named, columns, read_time)
            values = stream.update(time, *prices).tolist()
            if as_json:
                features = dict(zip(names, values, strict=True))
                line = json.dumps({"time": time_text(time), "valid": stream.valid, **features})
            else:
                shown = (time_text(time), str(stream.valid).lower(), *(f"{x:.9g}" for x in values))
                line = ",".join(shown)
            sink.write(line + "\n")
            sink.flush()
    finally:
        if state_path is not None:
            with replaced_file(state_path) as beside:
                beside.write_text(json.dumps(stream.state()), encoding="utf-8")


def _rows(source: TextIO) -> Iterator[list[str]]:
    lines = csv.reader(source)
    try:
        yield from lines
    except csv.Error as error:
        raise StreamError(f"stdin: line {lines.line_num}: {error}; give lines of CSV") from error


def _columns(header: list[str]) -> BarColumns:
    try:
        return find_columns(header, None, "stdin")
    except BarsError as error:
        what = str(error).partition(";")[0]
        raise StreamError(f"{what}; give a header line time,open,high,low,close") from error


def _bar(
    number: int, cells: dict[str, str], columns: BarColumns, read_time: TimeReader
) -> tuple[int, list[float]]:
    try:
        prices = [
            _number(cells[name])
            for name in (columns.open, columns.high, columns.low, columns.close)
        ]
        time = int(read_time([pl.Series([cells[name]]) for name in columns.time])[0])
        if time == MISSING_TIME:
            raise ValueError("its time cannot be read")
    except ValueError as error:
        _refuse(number, list(cells.values()), str(error))
    return time, prices


def _number(text: str) -> float:
    if "_" in text:  # which Python reads over
        raise ValueError(f"{text!r} is no number")
    return float(text)


def _refuse(number: int, cells: list[str], reason: str) -> NoReturn:
    raise StreamError(
        f"stdin: row {number}: {','.join(cells)!r} is no bar: {reason}; "
        "give time,open,high,low,close"
    )
