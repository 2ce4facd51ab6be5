"""Splits forward in time, purged in bars, and the checks that refuse one that leaks.

Every window has a place: the bar it begins at in its store, or for windows that hold their own
prices the row of the first window of their base. A period is a range of places, and a base belongs
to it only with all of its windows; whoever stands too close to the next period is left out.

:mod:`moola_features.splits` purges a grid of windows of one length from the front of the later
split. Here what is left out comes from the earlier one, so that the last period is the same
whatever the folds before it.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_features.files import replaced_file
from moola_features.times import TimeLike, time_text
from moola_train.errors import SplitError
from moola_train.label_table import shown
from moola_train.split_checks import (
    AGAIN,
    PARTS,
    REQUIRED,
    SplitPart,
    check_part,
    gaps_of,
    place_of,
    whole,
)
from moola_train.split_periods import NEVER, cuts_by_share, cuts_by_time
from moola_train.targets import Int64, LabelledWindows

FORMAT = "moola-split"
FORMAT_VERSION = 1
METHOD = "forward-chain"


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Which windows to train on, to validate on and to test on, for each fold.

    Attributes
    ----------
    labels
        The windows that it divides.
    parts
        One for each fold.
    purge_bars, embargo_bars, warmup_bars
        A later window starts more than the sum of them after an earlier part's last start: so
        many bars of one window follow its first; so many more are left out; and so many before
        the later window its features were warmed up on. All 0 without a store.
    name, created
        What it is called and when it was made.
    """

    labels: LabelledWindows
    parts: tuple[SplitPart, ...]
    purge_bars: int
    embargo_bars: int
    warmup_bars: int
    name: str
    created: str

    def part(self, name: str, fold: int = 0) -> Int64:
        """Rows of the labels in one part of a fold.

        Parameters
        ----------
        name
            ``"train"``, ``"val"`` or ``"test"``.
        fold
            0 is the earliest.

        Raises
        ------
        SplitError
            A part or a fold that is not there.
        """
        if name not in PARTS:
            raise SplitError(f"part is {name!r}; choose one of {', '.join(PARTS)}")
        if not 0 <= fold < len(self.parts):
            raise SplitError(f"fold is {fold!r}; split {self.name!r} has 0 to {self.num_folds - 1}")
        return self.parts[fold][name]

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return len(self.parts)

    def counts(self) -> list[dict[str, int]]:
        """Count windows by part of each fold, and those that stand in none, ``left_out``."""
        sizes = [{name: len(part[name]) for name in PARTS} for part in self.parts]
        return [{**size, "left_out": len(self.labels) - sum(size.values())} for size in sizes]

    def sha256(self) -> str:
        """Digest of what the split says, whenever it was made and whatever things are called."""
        told = {k: v for k, v in self.to_dict().items() if k not in ("name", "created")}
        told["store"] = None if self.labels.store is None else self.labels.store["sha256"]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the split as the plain JSON types of its file."""
        names = self.labels.window_id
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "created": self.created,
            "method": METHOD,
            "order": order_of(self.labels),
            "window_length": self.labels.length,
            "purge_bars": self.purge_bars,
            "embargo_bars": self.embargo_bars,
            "warmup_bars": self.warmup_bars,
            "store": self.labels.store,
            "labels": {"num_windows": len(self.labels), "sha256": self.labels.sha256()},
            "parts": [
                {key: [names[row] for row in part[key].tolist()] for key in PARTS}
                for part in self.parts
            ],
        }


def forward_chain(
    labels: LabelledWindows,
    *,
    folds: int = 1,
    val_share: float | None = None,
    test_share: float | None = None,
    val_from: TimeLike | None = None,
    test_from: TimeLike | None = None,
    purge_bars: int | None = None,
    embargo_bars: int = 0,
    name: str = METHOD,
) -> Split:
    """Divide windows by time: each fold trains on all that came before its validation part.

    The last windows are every fold's test part: sealed, since nothing that trains or stops early
    reads it. Before them stand the validation parts of the folds, side by side, the last fold's
    last. Shares count windows before the purge; a base of which windows fall into two periods is
    left out.

    Parameters
    ----------
    labels
        Anchored windows whose bars are known, or windows that hold their own prices: these are
        kept in the order given and together with their base, and nothing can be purged.
    folds
        Number of folds, at least 1.
    val_share, test_share
        Of the windows: one fold's validation part, and the test part, which may be 0; 0.15 each
        when None.
    val_from, test_from
        Times in place of the shares, of one fold: a window belongs to the period in which its
        first bar begins. Without ``test_from`` there is no test part.
    purge_bars
        Bars of a window after its first, K - 1, when None; never fewer.
    embargo_bars
        Bars between two parts that are left out besides the purge and the warm-up.
    name
        What to call the split.

    Returns
    -------
    Split
        Checked by :func:`check_split`.

    Raises
    ------
    SplitError
        A parameter out of bounds, anchored windows without a store, or a part without windows.

    Notes
    -----
    Purge and embargo as in López de Prado, Advances in Financial Machine Learning (2018), section
    7.4, here forward in time only: no part is ever trained on what came after it.
    """
    gaps = gaps_of(labels, purge_bars, embargo_bars)
    first, last, unit = _bases(labels)
    if val_from is None and test_from is None:
        cuts = cuts_by_share(first[unit], folds, val_share, test_share)
    else:
        if folds != 1 or val_share is not None or test_share is not None:
            raise SplitError(
                "val_from and test_from divide one fold by time; leave out folds and shares"
            )
        cuts = cuts_by_time(labels, place_of(labels), val_from, test_from)
    gap = sum(gaps)

    def rows_within(start: int, stop: int, purged_before: int) -> Int64:
        inside = (first >= start) & (last < stop) & (last + gap < purged_before)
        return np.flatnonzero(inside[unit])

    test = rows_within(cuts[-1], NEVER, 2 * NEVER)
    split = Split(
        labels=labels,
        parts=tuple(
            SplitPart(
                train=rows_within(0, cuts[fold], cuts[fold]),
                val=rows_within(cuts[fold], cuts[fold + 1], cuts[-1]),
                test=test,
            )
            for fold in range(folds)
        ),
        purge_bars=gaps[0],
        embargo_bars=gaps[1],
        warmup_bars=gaps[2],
        name=name,
        created=time_text(time.time_ns() // 10**9 * 10**9),
    )
    by_time = val_from is not None
    _require_filled(split, tested=test_from is not None if by_time else test_share != 0)
    check_split(split)
    return split


def check_split(split: Split) -> None:
    """Refuse a split that leaks, or that leaves nothing to train or to validate on.

    Raises
    ------
    SplitError
        A window that stands twice, a base or a bar on two sides, a part that is later than the
        one that follows it or nearer than purge, embargo and warm-up allow; naming the windows.
        A training or a validation part without windows; there may be no test part.
    """
    labels = split.labels
    purge, embargo, warmup = gaps_of(labels, split.purge_bars, split.embargo_bars)
    gap = purge + embargo + max(warmup, split.warmup_bars)
    places = place_of(labels)
    for fold, part in enumerate(split.parts):
        where = f"split {split.name!r}, fold {fold}"
        for name in REQUIRED:
            if len(part[name]) == 0:
                raise SplitError(f"{where}: {name} is empty, and only test may be; {AGAIN}")
        check_part(labels, places, part, gap=gap, where=where)


def write_split(split: Split, path: str | Path) -> None:
    """Check a split and write it as JSON, whole or not at all.

    Raises
    ------
    SplitError
        A split that leaks; nothing is written.
    OutputError
        A file that cannot be written.
    """
    check_split(split)
    with replaced_file(path) as beside:
        text = json.dumps(split.to_dict(), indent=1, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")


def read_split(path: str | Path, labels: LabelledWindows) -> Split:
    """Read a split of these labels, and check it again.

    Parameters
    ----------
    path
        JSON that :func:`write_split` wrote, or as the documents describe it.
    labels
        The labels that it was made from, read with their store.

    Raises
    ------
    SplitError
        No split, one of other labels or of another store, or one that :func:`check_split`
        refuses.
    """
    document = _read_document(Path(path))
    where = str(path)
    _require_same(document.get("window_length"), labels.length, f"{where}: window_length")
    row_of = {name: row for row, name in enumerate(labels.window_id)}
    parts = document.get("parts")
    if not isinstance(parts, list) or not parts:
        raise SplitError(f"{where}: parts is {shown(parts)}; {AGAIN}")
    split = Split(
        labels=labels,
        parts=tuple(_read_part(part, row_of, f"{where}, fold {i}") for i, part in enumerate(parts)),
        name=str(document.get("name", Path(path).stem)),
        created=str(document.get("created", "")),
        **{
            key: whole(document.get(key, 0), f"{where}: {key}")
            for key in ("purge_bars", "embargo_bars", "warmup_bars")
        },
    )
    digests = (("labels", {"sha256": labels.sha256()}), ("store", labels.store))
    for what, known in digests:
        kept = document.get(what)
        if not isinstance(kept, dict):
            continue
        if known is None and labels.anchored:
            raise SplitError(
                f"{where} was made with the store {kept.get('name')!r}, and no store is given; "
                "give the one that the windows stand in"
            )
        if kept.get("sha256") != (known or {}).get("sha256"):
            raise SplitError(f"{where} was made from other {what} than these; {AGAIN}")
    check_split(split)
    return split


def order_of(labels: LabelledWindows) -> str:
    """Say what the windows are ordered by and purged in."""
    if labels.anchored:
        return "bars of the store"
    return "as given, bases together; without times nothing can be purged"


def _bases(labels: LabelledWindows) -> tuple[Int64, Int64, NDArray[np.intp]]:
    """First and last place of each base, and the base of each window."""
    places = place_of(labels)
    names, unit = np.unique(labels.base_id, return_inverse=True)
    first = np.full(len(names), NEVER)
    last = np.full(len(names), -1)
    np.minimum.at(first, unit, places)
    np.maximum.at(last, unit, places)
    return first, last, unit


def _require_filled(split: Split, *, tested: bool) -> None:
    for fold in range(split.num_folds):
        for name in PARTS if tested else REQUIRED:
            if len(split.part(name, fold)) == 0:
                raise SplitError(
                    f"fold {fold} has no window left in {name}, of {len(split.labels)} in all and "
                    f"after a purge of {split.purge_bars + split.warmup_bars} bars and an embargo "
                    f"of {split.embargo_bars}; give more windows or fewer folds"
                )


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SplitError(
            f"{path} cannot be read: {error.strerror}; give the file of a split"
        ) from error
    except ValueError as error:
        raise SplitError(f"{path} is not JSON: {error}; {AGAIN}") from error
    except RecursionError as error:
        raise SplitError(f"{path} is no split: its JSON is nested too deeply; {AGAIN}") from error
    if not isinstance(document, dict) or document.get("method") != METHOD:
        found = document.get("method") if isinstance(document, dict) else document
        raise SplitError(f"{path}: method is {shown(found)}, not {METHOD!r}; {AGAIN}")
    version = document.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise SplitError(
            f"{path} has format version {version!r}, this moola reads up to {FORMAT_VERSION}; "
            "upgrade moola, or make the split again with this one"
        )
    return document


def _read_part(part: Any, row_of: dict[str, int], where: str) -> SplitPart:
    rows = {}
    for name in PARTS:
        names = part.get(name) if isinstance(part, dict) else None
        if not isinstance(names, list):
            found = shown(names)
            raise SplitError(f"{where}: {name} is {found}, not a list of window ids; {AGAIN}")
        for window in names:
            if not isinstance(window, str) or window not in row_of:
                raise SplitError(
                    f"{where}: {name} names window {shown(window)}, which the labels do not have; "
                    f"give the labels that it was made from, or {AGAIN}"
                )
        rows[name] = np.array([row_of[window] for window in names], np.int64)
    return SplitPart(**rows)


def _require_same(found: Any, wanted: int, what: str) -> None:
    if found is not None and found != wanted:
        raise SplitError(f"{what} is {found!r}, but the labels have {wanted}; {AGAIN}")
