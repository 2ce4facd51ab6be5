"""Reading labelled windows, and refusing what contradicts itself or its store."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from moola_features.bars.checks import MISSING_TIME
from moola_features.bars.times import TimeReader
from moola_features.errors import BarsError
from moola_features.times import time_text
from moola_train.errors import LabelsError
from moola_train.label_table import Bool, LabelTable
from moola_train.targets import NO_EXPANSION, NONE, Float64, Int64, LabelledWindows

if TYPE_CHECKING:
    from moola_features.store import Store

CLASSES = ("consolidation", "retracement")
WINDOW_LENGTH = 105
MIN_MEMBERS = 2  # a class of one cannot be both learnt and checked


def read_labels(
    source: Any,
    *,
    classes: tuple[str, ...] = CLASSES,
    store: Store | None = None,
    window_length: int = WINDOW_LENGTH,
) -> LabelledWindows:
    """Read and check labelled windows.

    Parameters
    ----------
    source
        A Parquet, Arrow or CSV file, a Polars or pandas frame, an Arrow table or a dict of
        columns: ``window_id``, ``label``, ``expansion_start``, ``expansion_end``; either
        ``start_time`` (*anchored*) or ``features``, K lists of open, high, low, close
        (*self-contained*; in CSV as JSON); ``base_window_id`` if there is one.
    classes
        Labels that may stand there, in the order of the model's outputs. ``"none"`` means that
        there is no expansion, and so no span; a label that is missing means that nobody looked.
    store
        Where anchored windows stand; None leaves their bars unknown.
    window_length
        Bars in a window, K.

    Returns
    -------
    LabelledWindows
        Rows in the order of the source.

    Raises
    ------
    LabelsError
        The first defect, with row (the first is 0), column and value, and how many rows share it.

    Examples
    --------
    >>> labels = read_labels({
    ...     "window_id": ["a", "b"], "label": ["retracement", None],
    ...     "expansion_start": [40, None], "expansion_end": [47, None],
    ...     "start_time": ["2020-01-06 10:00", "2020-01-07 10:00"],
    ... })
    >>> labels.type, labels.start
    (array([ 1, -1]), array([40, -1]))
    """
    table = LabelTable(source)
    table.require_columns()
    window_id = table.texts("window_id")
    unnamed = [name is None or not name.strip() for name in window_id]
    table.refuse(unnamed, "window_id", "give every window a name")
    repeated = pl.Series(window_id, dtype=pl.String)
    table.refuse(~repeated.is_first_distinct(), "window_id", "names must differ; rename or drop it")
    base_id = table.texts("base_window_id") if table.has("base_window_id") else window_id
    start, end = _spans(table, window_length)
    known: dict[str, Any] = {
        "window_id": tuple(window_id),
        "base_id": tuple(
            base if base and base.strip() else own
            for base, own in zip(base_id, window_id, strict=True)
        ),
        "type": _types(table, classes, start >= 0),
        "start": start,
        "end": end,
        "classes": tuple(classes),
        "length": window_length,
    }
    if _is_anchored(table):
        return LabelledWindows(**known, **_anchored(table, store, window_length))
    if store is not None:
        raise LabelsError(
            f"{table.name}: windows hold their own prices, so {store.path} is not theirs; leave "
            "the store out, or give labels with start_time"
        )
    return LabelledWindows(**known, ohlc=_prices(table, window_length))


def require_members(labels: LabelledWindows, rows: ArrayLike | None = None) -> None:
    """Refuse a class with fewer than two members among these rows, all of them when None.

    Raises
    ------
    LabelsError
        Naming the class and how many windows it has.
    """
    types = labels.type if rows is None else labels.type[np.asarray(rows, np.int64)]
    counts = np.bincount(types[types >= 0], minlength=len(labels.classes))
    for name, count in zip(labels.classes, counts.tolist(), strict=True):
        if count < MIN_MEMBERS:
            raise LabelsError(
                f"class {name!r} has {count} of {len(types)} windows, and {MIN_MEMBERS} is the "
                "least to train on; label more of them, or leave the class out"
            )


def store_fingerprint(store: Store) -> dict[str, str]:
    """Name of a store, and a digest of the bars in it; the features may differ.

    Raises
    ------
    LabelsError
        A store without the digest of its input.
    """
    source = store.attributes.get("input")
    if not isinstance(source, dict) or not isinstance(source.get("sha256"), str):
        raise LabelsError(f"{store.path} does not say what it was built from; rebuild it")
    kept = {name: source.get(name) for name in ("sha256", "columns", "on_bad_bars", "num_bars")}
    text = json.dumps([kept, store.attributes.get("symbol")], sort_keys=True)
    return {"name": store.path.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Labels in numbers.

    Attributes
    ----------
    num_windows, num_bases, num_unlabelled, num_expansions
        Windows, originals that they were cut from, windows without a type, with an expansion.
    anchored
        Whether they stand in a store.
    class_counts
        Windows by class.
    span_length, span_start
        Least, median and greatest number of bars and first position of an expansion; None
        without one.
    bars_in_span
        Share of all bars.
    num_duplicates
        Windows whose bars are exactly those of a window before them.
    num_overlapping
        Windows that share a bar with another; None where the bars are not known.
    first_time, last_time
        First bar of the first and of the last anchored window.
    """

    num_windows: int
    num_bases: int
    num_unlabelled: int
    num_expansions: int
    anchored: bool
    class_counts: dict[str, int]
    span_length: tuple[int, float, int] | None
    span_start: tuple[int, float, int] | None
    bars_in_span: float
    num_duplicates: int
    num_overlapping: int | None
    first_time: str | None
    last_time: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON types."""
        return asdict(self)


def summarise(labels: LabelledWindows) -> LabelSummary:
    """Count what labels hold."""
    expands = labels.start >= 0
    lengths = labels.end[expands] - labels.start[expands] + 1
    times = labels.start_time
    counts = np.bincount(labels.type[labels.type >= 0], minlength=len(labels.classes))
    return LabelSummary(
        num_windows=len(labels),
        num_bases=len(set(labels.base_id)),
        num_unlabelled=int(np.sum(labels.type < 0)),
        num_expansions=int(expands.sum()),
        anchored=labels.anchored,
        class_counts=dict(zip(labels.classes, counts.tolist(), strict=True)),
        span_length=_middle(lengths),
        span_start=_middle(labels.start[expands]),
        bars_in_span=float(lengths.sum()) / (len(labels) * labels.length),
        num_duplicates=len(labels) - len(np.unique(content_keys(labels))),
        num_overlapping=_count_overlapping(labels),
        first_time=None if times is None else time_text(int(times.min())),
        last_time=None if times is None else time_text(int(times.max())),
    )


def content_keys(labels: LabelledWindows) -> NDArray[Any]:
    """Return one key a window, equal for windows of the very same bars."""
    if labels.ohlc is None:
        assert labels.start_time is not None
        return labels.start_time
    flat = np.ascontiguousarray(labels.ohlc).reshape(len(labels), -1)
    return np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in flat])


def _middle(values: Int64) -> tuple[int, float, int] | None:
    if len(values) == 0:
        return None
    return int(values.min()), float(np.median(values)), int(values.max())


def _count_overlapping(labels: LabelledWindows) -> int | None:
    if labels.start_bar is None:
        return None
    near = np.diff(np.sort(labels.start_bar)) < labels.length
    return int(np.sum(np.append(near, False) | np.append(False, near)))


def _types(table: LabelTable, classes: tuple[str, ...], has_span: Bool) -> Int64:
    texts = table.texts("label")
    index = {name: position for position, name in enumerate(classes)}
    unknown = [text is not None and text not in index for text in texts]
    remedy = f"the classes are {', '.join(classes)}; correct it, or name it with --classes"
    table.refuse(unknown, "label", remedy)
    contradicting = has_span & np.array([text == NO_EXPANSION for text in texts])
    table.refuse(contradicting, "expansion_start", "but label is 'none'; leave the span empty")
    return np.array([NONE if text is None else index[text] for text in texts], np.int64)


def _spans(table: LabelTable, length: int) -> tuple[Int64, Int64]:
    (start, has_start), (end, has_end) = (
        table.positions(column) for column in ("expansion_start", "expansion_end")
    )
    for column, other, half in (
        ("expansion_start", "expansion_end", has_end & ~has_start),
        ("expansion_end", "expansion_start", has_start & ~has_end),
    ):
        table.refuse(half, column, f"but {other} is given; give both or neither")
    for column, values, known in (
        ("expansion_start", start, has_start), ("expansion_end", end, has_end),
    ):  # fmt: skip
        outside = known & ((values < 0) | (values >= length))
        table.refuse(outside, column, f"give a position from 0 to {length - 1}")
    for row in np.flatnonzero(start > end)[:1].tolist():
        remedy = f"but expansion_end is {end[row]}, before it; exchange them"
        table.refuse_row(row, "expansion_start", remedy, int(start[row]))
    return start, end


def _is_anchored(table: LabelTable) -> bool:
    anchored, contained = table.known("start_time"), table.known("features")
    table.refuse(
        anchored & contained, "start_time",
        "but features are given too; a window is anchored by its time or holds its own prices",
    )  # fmt: skip
    missing = "start_time" if table.has("start_time") else "features"
    table.refuse(~anchored & ~contained, missing, "give it, or the window's own prices in features")
    others = np.flatnonzero(anchored != anchored[0])
    if len(others):
        row = int(others[0])
        column, kind = ("start_time", "prices") if anchored[row] else ("features", "time")
        remedy = f"but row 0 gives its {kind}; put windows of the two kinds into two files"
        table.refuse_row(row, column, remedy, "given", len(others) - 1)
    return bool(anchored[0])


def _anchored(table: LabelTable, store: Store | None, length: int) -> dict[str, Any]:
    try:
        times = TimeReader()([table.frame["start_time"]])
    except BarsError as error:
        raise LabelsError(f"{table.name}: {error}") from error
    table.refuse(times == MISSING_TIME, "start_time", "give a time such as '2020-01-31 14:30'")
    if store is None:
        return {"start_time": times}
    first = np.minimum(np.searchsorted(store.time, times), len(store) - 1)

    def refuse(bad: Bool, remedy: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            value = time_text(int(times[row]))
            table.refuse_row(row, "start_time", remedy, value, int(bad.sum()) - 1)

    bounds = f"{time_text(int(store.time[0]))} to {time_text(int(store.time[-1]))}"
    refuse(store.time[first] != times, f"no bar of {store.path} begins then; it has {bounds}")
    past = first + length > len(store)
    refuse(past, f"{length} bars from there reach past the end of {store.path}; drop the window")
    # Within a segment validity never ends once it has begun, so a window's first bar tells.
    refuse(~store.valid[first], f"{store.path} has no valid features there yet; drop the window")
    stops = store.segments[:, 1]
    crossing = stops[np.searchsorted(stops, first, side="right")] < first + length
    refuse(crossing, f"{length} bars from there cross a gap of {store.path}; drop the window")
    return {
        "start_time": times,
        "start_bar": first.astype(np.int64),
        "warmup_bars": store.config.first_valid_index,
        "store": store_fingerprint(store),
    }


def _prices(table: LabelTable, length: int) -> Float64:
    windows = _nested(table)
    counts = windows.list.len().cast(pl.Int64).fill_null(NONE).to_numpy()
    for row in np.flatnonzero(counts != length)[:1].tolist():
        found = "empty" if counts[row] == NONE else f"a list of {counts[row]}"
        table.refuse_row(row, "features", f"give {length} bars", found)
    bars = windows.explode()
    widths = bars.list.len().fill_null(0).to_numpy()
    for index in np.flatnonzero(widths != 4)[:1].tolist():
        row, bar = divmod(index, length)
        remedy = "give open, high, low, close"
        table.refuse_row(row, "features", remedy, f"a list of {widths[index]} at bar {bar}")
    prices = bars.explode().fill_null(np.nan).to_numpy().reshape(-1, length, 4)
    open_, high, low, close = np.moveaxis(prices, -1, 0)
    with np.errstate(invalid="ignore"):
        checks = (
            (~np.isfinite(prices).all(axis=2), "prices must be finite numbers"),
            (high < np.maximum(open_, close), "the high is below the open or the close"),
            (low > np.minimum(open_, close), "the low is above the open or the close"),
        )
    for bad, remedy in checks:
        for row, bar in np.argwhere(bad)[:1].tolist():
            value = f"{prices[row, bar].tolist()} at bar {bar}"
            table.refuse_row(row, "features", f"{remedy}; correct the window", value)
    return np.array(prices)


def _nested(table: LabelTable) -> pl.Series:
    """Return the features as lists of lists of float64, from JSON text too."""
    series = table.frame["features"]
    wanted = pl.List(pl.List(pl.Float64))
    if series.dtype == pl.String:
        windows = []
        for row, text in enumerate(series.to_list()):
            try:
                windows.append(pl.Series([text]).str.json_decode(wanted))
            except pl.exceptions.PolarsError:
                table.refuse_row(row, "features", "give lists of numbers as JSON", text[:40])
        return pl.concat(windows)
    try:
        return series.cast(wanted)
    except pl.exceptions.PolarsError as error:
        raise LabelsError(
            f"{table.name}: features are of type {series.dtype}; give lists of lists of numbers"
        ) from error
