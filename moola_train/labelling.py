"""Labelling the windows of a store in hindsight, into a file of labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from moola_features.files import replaced_file
from moola_features.times import TimeLike
from moola_train.errors import ConfigError, LabelsError
from moola_train.hindsight import (
    LABELS,
    Hindsight,
    HindsightSettings,
    label_windows,
    load_kernel,
    window_names,
)
from moola_train.labels import CLASSES, WINDOW_LENGTH

if TYPE_CHECKING:
    from moola_features.store import Store
    from moola_train.targets import Int64

SOURCE = "hindsight"
STRIDE = 52

_BATCH = 1 << 17  # windows from one sign of progress to the next


@dataclass(frozen=True, kw_only=True)
class LabellingReport:
    """What became of every window that was looked at.

    Attributes
    ----------
    path
        The file of labels.
    num_windows
        Valid windows of the store.
    skipped
        Windows that were not labelled, by cause: a ``gap`` inside, a ``span`` of too long a time,
        the ``edge`` of the bars.
    labels
        The others by label.
    kept
        Those that were written, by label.
    seconds
        What labelling took, without reading, writing and compiling.
    """

    path: str
    num_windows: int
    skipped: dict[str, int]
    labels: dict[str, int]
    kept: dict[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return asdict(self)


def label_store(
    store: Store,
    output: str | Path,
    *,
    stride: int = STRIDE,
    start: TimeLike | None = None,
    stop: TimeLike | None = None,
    keep: tuple[str, ...] = CLASSES,
    settings: HindsightSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LabellingReport:
    """Label the valid windows of a store and write those with one of the labels to keep.

    Parameters
    ----------
    store
        The bars.
    output
        Parquet file to make or replace. Columns: ``window_id`` (made of the first bar's time),
        ``label``, ``expansion_start``, ``expansion_end``, ``start_time``, ``source``,
        ``direction`` (1 or -1; 0 without a span) and ``score``.
    stride
        Bars from one window to the next within a segment.
    start, stop
        Only windows whose 105 bars all lie in [start, stop). The label of a window looks at ten
        bars behind it, past ``stop`` too.
    keep
        Labels to write, of :data:`moola_train.hindsight.LABELS`.
    settings
        Which windows are skipped; the defaults when None.
    progress
        Called with windows labelled and windows in all.

    Returns
    -------
    LabellingReport
        Counts of everything, kept or not.

    Raises
    ------
    ConfigError
        Something to keep that is no label.
    LabelsError
        No valid window there, or none with a label to keep; nothing is written.
    """
    for name in keep:
        if name not in LABELS:
            raise ConfigError(f"keep names {name!r}; the labels are {', '.join(LABELS)}")
    windows = store.windows(WINDOW_LENGTH, stride, start=start, stop=stop)
    if len(windows) == 0:
        raise LabelsError(
            f"{store.path} has no valid window of {WINDOW_LENGTH} bars there; "
            "give another period, or build the store of more bars"
        )
    load_kernel()
    began = time.perf_counter()
    found = _in_batches(store, windows.starts, settings, progress)
    seconds = time.perf_counter() - began
    kept = np.flatnonzero(np.isin(found.label, [LABELS.index(name) for name in keep]))
    counts = found.counts()
    if len(kept) == 0:
        raise LabelsError(
            f"none of {len(windows)} windows of {store.path} is labelled {' or '.join(keep)}; "
            "keep more labels, or give another period or stride"
        )
    with replaced_file(output) as beside:
        _table(store.time[windows.starts[kept]], found.take(kept)).write_parquet(beside)
    return LabellingReport(
        path=str(output),
        num_windows=len(windows),
        skipped=found.skip_counts(),
        labels=counts,
        kept={name: counts[name] for name in LABELS if name in keep},
        seconds=seconds,
    )


def _in_batches(
    store: Store,
    starts: Int64,
    settings: HindsightSettings | None,
    progress: Callable[[int, int], None] | None,
) -> Hindsight:
    parts = []
    for first in range(0, len(starts), _BATCH):
        batch = starts[first : first + _BATCH]
        parts.append(label_windows(store.time, store.ohlc, batch, settings))
        if progress is not None:
            progress(first + len(batch), len(starts))
    return Hindsight.joined(parts)


def _table(start_time: Int64, found: Hindsight) -> pl.DataFrame:
    spans = {
        f"expansion_{name}": pl.Series(values).set(pl.Series(values < 0), None)
        for name, values in (("start", found.start), ("end", found.end))
    }
    return pl.DataFrame(
        {
            "window_id": window_names(start_time),
            "label": [LABELS[index] for index in found.label.tolist()],
            **spans,
            "start_time": pl.Series(start_time).cast(pl.Datetime("ns", "UTC")),
            "source": pl.repeat(SOURCE, len(found), eager=True),
            "direction": found.direction,
            "score": found.score,
        }
    )
