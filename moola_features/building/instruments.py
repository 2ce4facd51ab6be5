"""The stores under way in one folder, by symbol: of a new build, or of bars that are appended."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from moola_features.bars import Bars
from moola_features.building.crew import Crew
from moola_features.building.instrument import Instrument
from moola_features.building.journal import Journal
from moola_features.building.outcomes import BUILT, KEPT, UNCHANGED
from moola_features.building.overlap import Overlap
from moola_features.building.tally import require_last_chunk, tally_of
from moola_features.config import FeatureConfig
from moola_features.errors import BarsError, MoolaError, StoreError
from moola_features.files import clear_folder, link_tree
from moola_features.store import Store, Universe
from moola_features.store.layout import METADATA, bar_arrays, group_name
from moola_features.store.writer import rewrite_attributes, write_universe
from moola_features.versions import versions

PARTS = frozenset({*bar_arrays(0), "segments", METADATA})  # what lies in a store's folder

_JOURNAL = "..journal"  # a note beside them

Told = dict[str, Any]
Dropped = dict[str | None, Told]  # what was left out, by symbol


class Instruments(Protocol):
    """Takes bars of several symbols, and finishes what they make."""

    crew: Crew

    def add(self, symbol: str | None, bars: Bars) -> None:
        """Take the next bars of a symbol, None for the only one."""

    def finish(self, source: Told, dropped: Dropped) -> None:
        """Let the rest be computed, and write what stands beside the chunks."""

    def count(self, name: str) -> Any:
        """Sum of an attribute over all instruments."""


class NewInstrument:
    """A build: one instrument from its first bar, in a folder that may hold an earlier attempt.

    Parameters
    ----------
    folder
        Where to build, and where the journal is kept.
    config
        What to compute.
    symbol
        What the store calls it.
    crew
        Runs the tasks.
    """

    def __init__(self, folder: Path, config: FeatureConfig, symbol: str | None, crew: Crew) -> None:
        self.crew = crew
        self._folder = folder
        self._config = config
        self._symbol = symbol
        self._instrument: Instrument | None = None
        self._journal: Journal | None = None
        clear_folder(folder, keep={*PARTS, _JOURNAL})

    def add(self, symbol: str | None, bars: Bars) -> None:
        """Take the next bars."""
        if self._instrument is None:
            subject = {"config": self._config.to_dict(), "versions": versions()}
            self._journal = Journal(self._folder / _JOURNAL, subject)
            self._instrument = Instrument(
                self._folder, self._symbol, self._config, self.crew, self._journal
            )
        self._instrument.add(bars)

    def finish(self, source: Told, dropped: Dropped) -> None:
        """Let the rest be computed, and write what stands beside the chunks."""
        assert self._instrument is not None  # a source without bars is refused before
        self._instrument.finish(source, dropped[None])

    def count(self, name: str) -> Any:
        """Attribute of the instrument."""
        return getattr(self._instrument, name)

    def close(self) -> None:
        """Let threads come to their end, and close the journal."""
        self.crew.close()
        if self._journal is not None:
            self._journal.close()

    @property
    def has_finished_chunks(self) -> bool:
        """Whether a next build would find something to go on from."""
        return self._journal is not None and not self._journal.is_empty


class GrowingInstruments:
    """An append: instruments of a store go on behind their last bar, and new ones begin.

    The files of the store are linked into the folder when the first new bar comes; what changes is
    written anew beside them, so whoever has the store open sees nothing of it.

    Parameters
    ----------
    folder
        Where to build.
    opened
        The store.
    config
        What to compute.
    symbols
        Those of the source.
    name
        What the source is called.
    in_rows
        Whether each bar is a row of the source, so that messages can name rows.
    crew
        Runs the tasks.
    refused
        Gets what is wrong with the bars of a symbol, or with its store, which is then left as it
        stands; without it that is raised.

    Raises
    ------
    StoreError
        Bars of other instruments than a single store has, or of none in a universe.
    """

    def __init__(
        self,
        folder: Path,
        opened: Store | Universe,
        config: FeatureConfig,
        symbols: tuple[str, ...],
        name: str,
        *,
        in_rows: bool,
        crew: Crew,
        refused: dict[str | None, MoolaError] | None = None,
    ) -> None:
        self.crew = crew
        self._refused = refused
        self._folder = folder
        self._opened = opened
        self._config = config
        self._name = name
        self._in_rows = in_rows
        self._only_symbol = symbols[0] if len(symbols) == 1 else None
        self._overlaps: dict[str | None, Overlap] = {}
        self._under_way: dict[str | None, Instrument] = {}
        self._is_linked = False
        _require_fitting(opened, symbols, name)

    def add(self, symbol: str | None, bars: Bars) -> None:
        """Take the next bars of a symbol, None for the only one."""
        name = self._only_symbol if symbol is None else symbol
        with self._refusing(name):
            self._add(name, symbol, bars)

    def _add(self, name: str | None, symbol: str | None, bars: Bars) -> None:
        store = self._store(name)
        if store is not None:
            if name not in self._overlaps:
                require_last_chunk(store)  # before its bars are held against others
                whose = self._name if symbol is None else f"{self._name} [{symbol}]"
                self._overlaps[name] = Overlap(store, whose, in_rows=self._in_rows)
            bars = self._overlaps[name].new_bars(bars)
        if len(bars) == 0:
            return
        if name not in self._under_way:
            self._under_way[name] = self._begin(name, store)
        self._under_way[name].add(bars)

    def finish(self, source: Told, dropped: Dropped) -> None:
        """Let the rest be computed, and write what stands beside the chunks."""
        if self._only_symbol is not None:
            dropped = {self._only_symbol: dropped[None]}
        for name in [name for name in self._under_way if name not in (self._refused or {})]:
            with self._refusing(name):
                self._finish(name, source, dropped[name])
        self.crew.drain()
        for name in self._refused or ():
            self._undo(name)
        if isinstance(self._opened, Universe) and self._under_way:
            self._finish_universe(source, dropped)

    def count(self, name: str) -> Any:
        """Sum of an attribute over all instruments."""
        return sum(getattr(instrument, name) for instrument in self._under_way.values())

    @property
    def num_new(self) -> int:
        """Bars that the store has not."""
        begun = [name for name in self._under_way if self._store(name) is None]
        num_begun = sum(self._under_way[name].num_bars for name in begun)
        return num_begun + sum(overlap.num_new for overlap in self._overlaps.values())

    def statuses(self) -> dict[str, str]:
        """What came of each instrument, but of those that were refused."""
        known = self._opened if isinstance(self._opened, Universe) else ()
        names = [name for name in (*known, *self._under_way) if name is not None]
        told = {name: UNCHANGED if name in self._overlaps else KEPT for name in names}
        return told | {name: BUILT for name in self._under_way if name is not None}

    @contextlib.contextmanager
    def _refusing(self, name: str | None) -> Iterator[None]:
        """Note what is wrong with a symbol's bars or store, where that is not raised."""
        try:
            yield
        except (BarsError, StoreError) as error:
            if self._refused is None:
                raise
            self._refused[name] = error

    def _finish(self, name: str | None, source: Told, dropped: Told) -> None:
        store, instrument = self._store(name), self._under_way[name]
        if store is None or self._overlaps[name].from_the_start:
            instrument.finish(source, dropped)
            return
        told = {**source, "num_bars": self._overlaps[name].num_new}
        lost = _merged(store.attributes["dropped"], dropped)
        instrument.finish(_appended(store.attributes["input"], told), lost)

    def _undo(self, name: str | None) -> None:
        """Bring an instrument back to how it stands; no task of it runs any more."""
        self._overlaps.pop(name, None)
        if self._under_way.pop(name, None) is None:
            return
        store = self._store(name)
        place = group_name(str(name)) if store is None else store.path.name
        shutil.rmtree(self._folder / place)
        if store is not None:
            (self._folder / place).mkdir()
            link_tree(store.path, self._folder / place)

    def _store(self, name: str | None) -> Store | None:
        if isinstance(self._opened, Store):
            return self._opened
        return self._opened.get(name) if name is not None else None

    def _begin(self, name: str | None, store: Store | None) -> Instrument:
        if not self._is_linked:
            link_tree(self._opened.path, self._folder)
            self._is_linked = True
        if store is None:
            assert name is not None  # in a universe every instrument has a name
            folder = self._folder / group_name(name)
            folder.mkdir()
            return Instrument(folder, name, self._config, self.crew)
        folder = self._folder / store.path.relative_to(self._opened.path)
        symbol = store.attributes.get("symbol")
        return Instrument(folder, symbol, self._config, self.crew, tally=tally_of(store))

    def _finish_universe(self, source: Told, dropped: Dropped) -> None:
        opened = self._opened
        assert isinstance(opened, Universe)
        for name, overlap in self._overlaps.items():
            store = opened.get(name) if name is not None else None
            if store is not None and name not in self._under_way and overlap.from_the_start:
                folder = self._folder / store.path.relative_to(opened.path)
                told = {**source, "num_bars": len(store)}
                news = {"input": told, "dropped": dropped[name], "versions": versions()}
                rewrite_attributes(folder, store.attributes, news)
        whole = all(
            name in self._overlaps and self._overlaps[name].from_the_start for name in opened
        )
        told = source if whole else _appended(opened.attributes["input"], source)
        symbols = list(dict.fromkeys([*opened, *(name for name in self._under_way if name)]))
        write_universe(self._folder, symbols, universe_attributes(self._config, told))


def universe_attributes(config: FeatureConfig, source: Told) -> Told:
    """What the group above several instruments tells."""
    return {"config": config.to_dict(), "input": source, "versions": versions()}


def _appended(known: Told, source: Told) -> Told:
    """What a store tells of its input, with one more piece behind it."""
    return {**known, "appended": [*known.get("appended", ()), source]}


def _merged(known: Told, dropped: Told) -> Told:
    """Bad bars that were left out before and now, with the first examples."""
    counts = dict(known["counts"])
    for reason, number in dropped["counts"].items():
        counts[reason] = counts.get(reason, 0) + number
    examples = [*known["examples"], *dropped["examples"]][: max(len(known["examples"]), 5)]
    return {"total": known["total"] + dropped["total"], "counts": counts, "examples": examples}


def _require_fitting(opened: Store | Universe, symbols: tuple[str, ...], name: str) -> None:
    if isinstance(opened, Universe):
        if not symbols:
            raise StoreError(
                f"{opened.path} holds several instruments, but {name} names none; give bars with "
                "a symbol column"
            )
        return
    known = opened.attributes.get("symbol")
    if len(symbols) > 1 or (symbols and known is not None and symbols[0] != known):
        whose = "one instrument" if known is None else known
        raise StoreError(
            f"{opened.path} holds {whose}, but {name} holds {', '.join(symbols[:5])}; build that "
            "into another folder"
        )
