"""The labels file of a review: read once, held against others, rewritten with every answer."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from moola_features.bars.checks import MISSING_TIME
from moola_features.bars.files import decoding, open_reader
from moola_features.bars.times import TimeReader
from moola_features.errors import BarsError, OutputError
from moola_features.files import replaced_file, require_folder
from moola_train.errors import ConfigError, LabelsError
from moola_train.hindsight import window_names
from moola_train.labels import read_labels
from moola_train.review.marks import Mark
from moola_train.review.remembered import Remembered
from moola_train.targets import NO_EXPANSION

if TYPE_CHECKING:
    from moola_features.store import Store
    from moola_train.targets import Int64, LabelledWindows

_TIME = pl.Datetime("ns", "UTC")
_ANSWER: dict[str, Any] = {
    "label": pl.String, "expansion_start": pl.Int64, "expansion_end": pl.Int64,
    "source": pl.String, "comment": pl.String, "reviewed_at": _TIME,
}  # fmt: skip
_OWN = (*_ANSWER, "window_id", "start_time")  # all columns that a window of the store has
_READ_ROWS = 65_536


def output_of(labels: Path, output: Path | None) -> Path:
    """Choose the file that answers go to.

    A labels file that no review wrote is left as it is: answers go to a new one beside it.

    Raises
    ------
    ConfigError
        An output that is not Parquet, or that is a labels file which no review wrote.
    """
    mine = not labels.exists() or "reviewed_at" in _read_frame(labels).columns
    chosen = output or (labels if mine else labels.with_name(f"{labels.stem}.reviewed.parquet"))
    if chosen.suffix.lower() not in (".parquet", ".pq"):
        raise ConfigError(f"output is {chosen}; give a name that ends with .parquet")
    if chosen.exists() and "reviewed_at" not in _read_frame(chosen).columns:
        raise ConfigError(f"{chosen} was not written by a review; choose another output")
    return chosen


class Record:
    """Windows and what is said of them, one row a window, in memory and on disk.

    A window is in the file if it is answered, or if the labels that the review began with have it.
    The file remembers what those said, so an answer can be taken back on any later day.

    Parameters
    ----------
    output
        The file that answers go to; it is read first if it is there.
    labels
        Labels that the review begins with; they are never written. May not exist.
    store
        Where the windows stand.
    classes
        Labels that may stand there, besides ``"none"``.

    Raises
    ------
    LabelsError
        Labels that cannot be read or that contradict the store or each other.

    Attributes
    ----------
    window_id
        Names of the N windows.
    start_bar
        Position of the first bar of each in the store.
    original
        What was said of each before the review, as far as labels and file tell.
    """

    def __init__(self, output: Path, labels: Path, store: Store, classes: tuple[str, ...]) -> None:
        self.path = output
        self._stamp = _stamp(output)
        self.window_id: list[str] = []
        self.start_bar: list[int] = []
        self.original: list[Mark] = []
        self._store = store
        self._given: list[bool] = []  # rows that are in the file, answered or not
        self._rest = pl.DataFrame()
        self._marks: list[Mark] = []
        self._row: dict[str, int] = {}
        sources = [labels] if labels.exists() else []
        if output.exists() and not (sources and output.samefile(labels)):
            sources.append(output)
        for source in sources:
            self._read(source, classes)
        self._restore_skipped()

    def __len__(self) -> int:
        return len(self.window_id)

    def row(self, window_id: str) -> int | None:
        """Position of a window, None if there is no such window."""
        return self._row.get(window_id)

    def mark(self, row: int) -> Mark:
        """Tell what is said of a window now."""
        return self._marks[row]

    def add_windows(self, starts: Int64) -> None:
        """Add windows of the store by their first bars, those that are not there yet."""
        new = starts[~np.isin(starts, np.array(self.start_bar, np.int64))]
        times = self._store.time[new]
        names = window_names(times)
        for name in names:
            if name in self._row:
                raise LabelsError(f"{self.path}: window {name!r} begins elsewhere; rename it")
        empty = [None] * len(names)
        frame = pl.DataFrame(
            {
                "window_id": names, "label": empty, "expansion_start": empty,
                "expansion_end": empty, "start_time": pl.Series(times).cast(_TIME),
            }
        )  # fmt: skip
        unsaid = [Mark()] * len(names)
        given = [False] * len(names)
        self._append(frame, names, new.tolist(), unsaid, original=unsaid, given=given)

    def change(self, marks: Mapping[int, Mark]) -> None:
        """Say something else of some rows; it is on disk when this returns.

        Raises
        ------
        OutputError
            The file cannot be written, or somebody else has changed it; nothing is changed.
        """
        before = self._marks.copy()
        for row, mark in marks.items():
            self._marks[row] = mark
        try:
            self._write()
        except BaseException:
            self._marks = before
            raise

    def _read(self, source: Path, classes: tuple[str, ...]) -> None:
        frame = _read_frame(source)
        if frame.is_empty():
            return
        if "start_time" not in frame.columns:
            raise LabelsError(
                f"{source}: no column 'start_time'; a review shows windows of a store, so say "
                "where each begins"
            )
        labels = read_labels(source, classes=(*classes, NO_EXPANSION), store=self._store)
        marks = _marks_of(frame, labels, source)
        assert labels.start_bar is not None
        bars = labels.start_bar.tolist()
        before = Remembered.read(source).before
        drawn = _look_drawn(frame, labels)
        original, given = [], []
        for name, mark, may_be_drawn in zip(labels.window_id, marks, drawn, strict=True):
            is_open = mark.reviewed_at is None
            original.append(mark if is_open else before.get(name, Mark()))
            given.append(is_open or name in before or not may_be_drawn)
        new = []
        for index, (name, bar, mark) in enumerate(zip(labels.window_id, bars, marks, strict=True)):
            known = self._row.get(name)
            if known is None:
                new.append(index)
            elif self.start_bar[known] != bar:
                raise LabelsError(
                    f"{source}, row {index}: window_id is {name!r}, which begins at another time "
                    "in the labels under review; choose another output"
                )
            elif mark.reviewed_at is not None:
                self._marks[known] = mark
        self._append(
            frame[new], [labels.window_id[i] for i in new], [bars[i] for i in new],
            [marks[i] for i in new], original=[original[i] for i in new],
            given=[given[i] for i in new],
        )  # fmt: skip

    def _append(
        self, frame: pl.DataFrame, names: Sequence[str], bars: list[int], marks: list[Mark],
        *, original: list[Mark], given: list[bool],
    ) -> None:  # fmt: skip
        if not names:
            return
        # Their values are kept as marks; the columns keep their places in the file.
        known = {name: dtype for name, dtype in _ANSWER.items() if name in frame.columns}
        rest = frame.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in known.items())
        self._rest = _stacked(self._rest, rest)
        self._row.update({name: len(self) + index for index, name in enumerate(names)})
        self.window_id += names
        self.start_bar += bars
        self._marks += marks
        self.original += original
        self._given += given

    def _restore_skipped(self) -> None:
        if not self.path.exists():
            return
        for name, mark in Remembered.read(self.path).skipped.items():
            row = self._row.get(name)
            if row is not None and self._marks[row].reviewed_at is None:
                self._marks[row] = dataclasses.replace(
                    self.original[row], skipped_at=mark.skipped_at, comment=mark.comment
                )

    def _write(self) -> None:
        if _stamp(self.path) != self._stamp:
            raise OutputError(
                f"{self.path} was changed by another program; stop this review and start it again"
            )
        skipped, before = {}, {}
        rows = zip(self.window_id, self._marks, self.original, self._given, strict=True)
        for name, mark, first, given in rows:
            if mark.skipped_at is not None:
                skipped[name] = mark
            elif given and mark.reviewed_at is not None:
                before[name] = first
        remembered = Remembered(skipped=skipped, before=before)
        table = self._frame().to_arrow().replace_schema_metadata(remembered.to_metadata())
        with replaced_file(self.path) as beside:
            pq.write_table(table, beside)
        self._stamp = _stamp(self.path)

    def _frame(self) -> pl.DataFrame:
        # A skipped window says what it said before.
        said = [
            mark if mark.skipped_at is None else first
            for mark, first in zip(self._marks, self.original, strict=True)
        ]
        columns: dict[str, list[Any]] = {
            "label": [mark.label for mark in said],
            "expansion_start": [mark.start for mark in said],
            "expansion_end": [mark.end for mark in said],
            "source": [mark.source for mark in said],
            "comment": [mark.comment for mark in said],
            "reviewed_at": [mark.reviewed_at for mark in said],
        }
        answers = [
            pl.Series(name, values, pl.Int64 if dtype == _TIME else dtype).cast(dtype)
            for (name, dtype), values in zip(_ANSWER.items(), columns.values(), strict=True)
        ]
        kept = [
            given or mark.reviewed_at is not None
            for given, mark in zip(self._given, said, strict=True)
        ]
        return self._rest.with_columns(answers).filter(pl.Series(kept, dtype=pl.Boolean))


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other reviews away from a labels file; a crash leaves it free.

    Raises
    ------
    OutputError
        Another review holds it, or its folder is missing or may not be written.
    """
    place = Path(os.path.realpath(path))
    require_folder(place.parent, path)
    # Every answer puts another file into place, so the lock needs a file of its own.
    lock = place.with_name(f".{place.name}.review")
    try:
        handle = _locked(lock)
    except BlockingIOError:
        raise OutputError(
            f"{path} is under review by another process; use its page, or stop it first"
        ) from None
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {str(error.strerror).lower()}; choose a folder that you "
            "may write to"
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _locked(lock: Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed it between the two: then it locks nobody out.
            if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _read_frame(path: Path) -> pl.DataFrame:
    try:
        reader = open_reader(path)
        with decoding(reader.description):
            batches = list(reader.frames(reader.names, _READ_ROWS))
    except BarsError as error:
        raise LabelsError(str(error).replace("bars", "labels")) from error
    return pl.concat(batches) if batches else pl.DataFrame(schema=reader.names)


def _marks_of(frame: pl.DataFrame, labels: LabelledWindows, source: Path) -> list[Mark]:
    def texts(name: str) -> list[Any]:
        if name not in frame.columns:
            return [None] * frame.height
        try:
            return frame[name].cast(pl.String).to_list()
        except pl.exceptions.PolarsError as error:
            kind = frame[name].dtype
            raise LabelsError(f"{source}: {name} is of type {kind}; give text") from error

    reviewed: list[int | None] = [None] * frame.height
    if "reviewed_at" in frame.columns and frame["reviewed_at"].dtype != pl.Null:
        times = TimeReader()([frame["reviewed_at"]])
        reviewed = [None if time == MISSING_TIME else time for time in times.tolist()]
    return [
        Mark(
            label=label or None, start=None if start < 0 else start, end=None if end < 0 else end,
            source=origin, comment=comment or None, reviewed_at=moment,
        )
        for label, start, end, origin, comment, moment in zip(
            texts("label"), labels.start.tolist(), labels.end.tolist(),
            texts("source"), texts("comment"), reviewed, strict=True,
        )
    ]  # fmt: skip


def _look_drawn(frame: pl.DataFrame, labels: LabelledWindows) -> list[bool]:
    """Tell which rows may have been drawn from the store: named by their time, and nothing more.

    Files of earlier versions do not remember which ones were. Other names and columns come from
    labels alone, and undo must not remove them.
    """
    assert labels.start_time is not None
    names = zip(window_names(labels.start_time), labels.window_id, strict=True)
    drawn = np.array([made == name for made, name in names], bool)
    for column in frame.drop(_OWN, strict=False):
        drawn &= column.is_null().to_numpy()
    found: list[bool] = drawn.tolist()
    return found


def _stacked(above: pl.DataFrame, below: pl.DataFrame) -> pl.DataFrame:
    """Put rows below others; names and times of the two agree in type before that."""
    if above.is_empty():
        return below
    if above.schema != below.schema:
        above, below = (
            frame.with_columns(
                frame["window_id"].cast(pl.String),
                pl.Series("start_time", TimeReader()([frame["start_time"]])).cast(_TIME),
            )
            for frame in (above, below)
        )
    return pl.concat([above, below], how="diagonal_relaxed")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
