"""A source of many symbols, taken apart on the disk: memory holds a batch, not every series.

Each symbol gets a plain file of five values a bar, which is then built like a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moola_features.bars import Bars
from moola_features.bars.checks import FIELDS, DroppedBars
from moola_features.bars.columns import BarColumns
from moola_features.bars.sources import BATCH_BARS, BarSource
from moola_features.errors import MoolaError
from moola_features.universe.inputs import Input, Member

_ROWS_OF_A_SYMBOL = 256  # wished for in a batch: each takes a check and a write of its own
MAX_BATCH_BARS = 1 << 20
_RECORD_BYTES = 8 * len(FIELDS)


@dataclass(eq=False)
class SortedBars:
    """The good bars of one symbol, written by :func:`sort_by_symbol`; a source of its own.

    Attributes
    ----------
    path
        The file: int64 time and the bits of open, high, low, close, a record a bar.
    description, columns
        As those of the source that it is taken from.
    digest
        SHA-256 of that source.
    num_rows
        Number of bars, None while they are not yet written.
    dropped
        What was left out.
    rows_read
        Bars that the current or last pass has read.
    symbols
        (), as of a file that holds one series.
    batch_bars, decoding_bytes
        As of any source.
    """

    path: Path
    description: str
    columns: BarColumns
    digest: str
    num_rows: int | None = None
    dropped: dict[str | None, DroppedBars] = field(default_factory=dict)
    rows_read: int = 0
    symbols: tuple[str, ...] = ()
    batch_bars: int = BATCH_BARS
    decoding_bytes: int = 0

    def sha256(self) -> str:
        """Return the digest of the whole input."""
        return self.digest

    def batches(self) -> Iterator[tuple[str | None, Bars]]:
        """Yield the bars in order."""
        self.rows_read = 0
        with open(self.path, "rb") as file:
            while data := file.read(self.batch_bars * _RECORD_BYTES):
                records = np.frombuffer(data, np.int64).reshape(-1, len(FIELDS))
                self.rows_read += len(records)
                time, *prices = np.ascontiguousarray(records.T)
                open_, high, low, close = (column.view(np.float64) for column in prices)
                yield None, Bars.trusted((time, open_, high, low, close))


def symbols_of(opened: BarSource, source: dict[str, Any]) -> Input:
    """Return the instruments of a source with a column of symbols, which are not told apart yet.

    Parameters
    ----------
    opened
        The source.
    source
        What stores tell of it, but for its digest.
    """
    digest = opened.sha256()

    def member(symbol: str) -> Member:
        unsorted = SortedBars(Path(), opened.description, opened.columns, digest)
        return Member(symbol, unsorted, source["source"])

    members = [member(symbol) for symbol in opened.symbols]
    return Input(members, {**source, "sha256": digest}, opened)


def sort_by_symbol(opened: BarSource, wanted: Mapping[str, SortedBars]) -> dict[str, MoolaError]:
    """Read a source once and write the bars of each symbol behind each other.

    Parameters
    ----------
    opened
        The source, with a column of symbols.
    wanted
        What to write by symbol, into files that are not there yet; other symbols are read over.

    Returns
    -------
    dict
        What is wrong with the symbols whose bars will not do.
    """
    # Rows of many symbols lie in one batch: in a small one, few of each.
    opened.batch_bars = min(
        max(opened.batch_bars, _ROWS_OF_A_SYMBOL * len(opened.symbols)), MAX_BATCH_BARS
    )
    refused: dict[str | None, MoolaError] = {}
    counts = dict.fromkeys(wanted, 0)
    only = opened.symbols[0] if len(opened.symbols) == 1 else None  # which a source calls None
    for name, bars in opened.batches(refused=refused):
        symbol = only if name is None else name
        if symbol is None or symbol not in counts:
            continue
        records = np.empty((len(bars), len(FIELDS)), np.int64)
        for column, values in enumerate(bars.arrays):
            records[:, column] = values.view(np.int64)
        with open(wanted[symbol].path, "ab") as file:
            file.write(records.data)
        counts[symbol] += len(bars)
    for symbol, found in wanted.items():
        found.num_rows = counts[symbol]
        found.dropped = {None: opened.dropped[None if symbol == only else symbol]}
    named = {only if name is None else name: error for name, error in refused.items()}
    return {symbol: error for symbol, error in named.items() if symbol is not None}
