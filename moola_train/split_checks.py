"""What makes a split leak: a window, a base or a bar on two sides, or time that runs backwards."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from moola_train.errors import SplitError
from moola_train.labels import content_keys
from moola_train.targets import Int64, LabelledWindows

PARTS = ("train", "val", "test")
REQUIRED = PARTS[:2]  # the test part may be empty

AGAIN = "make the split again with `moola-train split`"

_MOST_BARS = 1_000_000_000  # 1,900 years of minutes; places and gaps add up within an int64


@dataclass(frozen=True, eq=False)
class SplitPart:
    """Rows of one fold, int64 ``[M]`` each: to train on, to validate on, to test on."""

    train: Int64
    val: Int64
    test: Int64

    def __getitem__(self, name: str) -> Int64:
        rows: Int64 = getattr(self, name)
        return rows


def place_of(labels: LabelledWindows) -> Int64:
    """Return where each window stands, int64 ``[N]``: its first bar, or its base's first row.

    Raises
    ------
    SplitError
        Anchored windows that were read without their store.
    """
    if labels.anchored:
        if labels.start_bar is None:
            raise SplitError(
                "the bars of anchored windows are not known, so nothing can be purged; give the "
                "store that they stand in"
            )
        return labels.start_bar
    _, first_row, unit = np.unique(labels.base_id, return_index=True, return_inverse=True)
    places: Int64 = first_row[unit].astype(np.int64)
    return places


def gaps_of(
    labels: LabelledWindows, purge_bars: int | None, embargo_bars: int
) -> tuple[int, int, int]:
    """Return purge, embargo and warm-up in bars; without a store all are 0.

    Raises
    ------
    SplitError
        A number out of bounds, or an embargo where nothing says how far apart windows are.
    """
    least = labels.length - 1
    purge = least if purge_bars is None else whole(purge_bars, "purge_bars")
    embargo = whole(embargo_bars, "embargo_bars")
    if not labels.anchored:
        if embargo:
            raise SplitError(
                f"embargo_bars is {embargo}, but windows without times cannot be purged in bars; "
                "leave it out, or give labels with start_time"
            )
        return 0, 0, 0
    if purge < least:
        raise SplitError(
            f"purge_bars is {purge}; windows of {labels.length} bars that start so close share "
            f"bars, so give at least {least}"
        )
    return purge, embargo, labels.warmup_bars


def whole(value: Any, what: str) -> int:
    """Read a number of bars, or refuse what is none."""
    good = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not good or not 0 <= value <= _MOST_BARS:
        raise SplitError(f"{what} is {value!r}; it must be a whole number from 0 to {_MOST_BARS:,}")
    return int(value)


def check_part(
    labels: LabelledWindows, places: Int64, part: SplitPart, *, gap: int, where: str
) -> None:
    """Refuse one fold that leaks.

    Parameters
    ----------
    labels
        The windows.
    places
        int64 ``[N]``: where each window stands in time.
    part
        Rows of the fold.
    gap
        The first place of a later part lies more than this after the last of an earlier one.
    where
        What messages call the fold.

    Raises
    ------
    SplitError
        The first leak, with the windows concerned.
    """
    _require_once(labels, part, where)
    bases = np.unique(labels.base_id, return_inverse=True)[1]
    keys = None if labels.anchored else np.unique(content_keys(labels), return_inverse=True)[1]
    for earlier, later in itertools.combinations(PARTS, 2):
        if not len(part[earlier]) or not len(part[later]):
            continue
        sides = _Sides(labels, part, earlier, later, where)
        sides.require_apart(bases, "come from one base; a base must stay on one side")
        if keys is not None:
            sides.require_apart(keys, "share bars, all of them; drop one of the two")
        sides.require_order(places, gap)


def _require_once(labels: LabelledWindows, part: SplitPart, where: str) -> None:
    seen: dict[int, str] = {}
    for name in PARTS:
        for row in part[name].tolist():
            if row in seen:
                raise SplitError(
                    f"{where}: window {labels.window_id[row]!r} stands twice, in {seen[row]} and "
                    f"in {name}; {AGAIN}"
                )
            seen[row] = name


class _Sides:
    """Two parts of a fold, the second of which must come after the first."""

    def __init__(
        self, labels: LabelledWindows, part: SplitPart, earlier: str, later: str, where: str
    ) -> None:
        self._labels = labels
        self._names = earlier, later
        self._rows = part[earlier], part[later]
        self._where = where

    def require_apart(self, codes: Int64, what: str) -> None:
        """Refuse two windows of one code on the two sides."""
        before, after = self._rows
        _, first, second = np.intersect1d(codes[before], codes[after], return_indices=True)
        if len(first):
            self._refuse(int(before[first[0]]), int(after[second[0]]), what)

    def require_order(self, places: Int64, gap: int) -> None:
        """Refuse windows that share bars, stand in reversed order, or too close to each other."""
        before, after = (rows[np.argsort(places[rows], kind="stable")] for rows in self._rows)
        latest, earliest = int(before[-1]), int(after[0])
        distance = int(places[earliest] - places[latest])
        if distance > gap:
            return
        if self._labels.anchored:
            self._require_no_shared_bar(places, before, after)
        if distance < 0:
            self._refuse(latest, earliest, f"stand in reversed time; {AGAIN}")
        self._refuse(
            latest, earliest,
            f"start {distance} bars apart; purge, embargo and warm-up ask for more than {gap}, "
            f"so {AGAIN}",
        )  # fmt: skip

    def _require_no_shared_bar(self, places: Int64, before: Int64, after: Int64) -> None:
        """Compare each later window with its neighbours among the sorted earlier ones."""
        following = np.searchsorted(places[before], places[after])
        for neighbour in (following - 1, following):
            index = np.clip(neighbour, 0, len(before) - 1)
            near = np.abs(places[after] - places[before[index]]) < self._labels.length
            for found in np.flatnonzero(near)[:1].tolist():
                what = f"share bars; {AGAIN}"
                self._refuse(int(before[index[found]]), int(after[found]), what)

    def _refuse(self, first: int, second: int, what: str) -> None:
        names = self._labels.window_id
        raise SplitError(
            f"{self._where}: windows {names[first]!r} of {self._names[0]} and {names[second]!r} "
            f"of {self._names[1]} {what}"
        )
