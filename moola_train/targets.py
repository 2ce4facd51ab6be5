"""Labelled windows, and the arrays that a model learns from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_train.errors import LabelsError
from moola_train.floors import BestConstants

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Targets = dict[str, NDArray[Any]]

NONE = -1  # no label, or no expansion
NO_EXPANSION = "none"  # a label of its own: looked at, and nothing expands; null is not labelled
COUNTDOWN_REACH = 20  # bars before and after the start that the countdown tells apart


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledWindows:
    """Windows and what people or rules say of them, checked; one row a window.

    Attributes
    ----------
    window_id
        Name of each window, all different.
    base_id
        Name of the original that each window was cut from; its own name where it is one.
    type
        int64 ``[N]``: position in ``classes`` of what stands before the expansion, -1 unknown.
    start, end
        int64 ``[N]``: first and last bar of the expansion, inclusive; -1 where there is none.
    classes
        Names of the classes.
    length
        Bars in a window, K.
    start_time
        int64 ``[N]``, ns UTC, time of the first bar of anchored windows; None of others.
    start_bar
        int64 ``[N]``, its position in the store; None where no store was given.
    warmup_bars
        Bars before a window that its features need: the store's, 0 without one.
    store
        ``name`` and ``sha256`` of the bars of the store; None without one.
    ohlc
        float64 ``[N, K, 4]`` of self-contained windows; None of anchored ones.
    """

    window_id: tuple[str, ...]
    base_id: tuple[str, ...]
    type: Int64
    start: Int64
    end: Int64
    classes: tuple[str, ...]
    length: int
    start_time: Int64 | None = None
    start_bar: Int64 | None = None
    warmup_bars: int = 0
    store: dict[str, str] | None = None
    ohlc: Float64 | None = None

    def __len__(self) -> int:
        return len(self.window_id)

    @property
    def anchored(self) -> bool:
        """Whether the windows stand in a store, rather than hold their own prices."""
        return self.ohlc is None

    def take(self, rows: ArrayLike) -> LabelledWindows:
        """Return the windows of these rows, int64 ``[M]``, in their order."""
        index = np.asarray(rows, np.int64)
        changes: dict[str, Any] = {
            name: tuple(getattr(self, name)[row] for row in index.tolist())
            for name in ("window_id", "base_id")
        }
        for name in ("type", "start", "end", "start_time", "start_bar", "ohlc"):
            values = getattr(self, name)
            changes[name] = None if values is None else values[index]
        return dataclasses.replace(self, **changes)

    def sha256(self) -> str:
        """Digest of what the labels say, whatever file they came from."""
        names = [self.classes[index] if index >= 0 else None for index in self.type.tolist()]
        text = json.dumps([self.length, self.window_id, self.base_id, names])
        digest = hashlib.sha256(text.encode())
        for values in (self.start, self.end, self.start_time, self.ohlc):
            if values is not None:
                digest.update(np.ascontiguousarray(values).data.cast("B"))
        return digest.hexdigest()


def pointers_of(start: ArrayLike, end: ArrayLike, length: int = 105) -> Float32:
    """Center and length of expansions, both in units of a window's K - 1 steps.

    Parameters
    ----------
    start, end
        int64 ``[...]``, first and last bar, inclusive; -1 where there is no expansion.
    length
        Bars in a window, K.

    Returns
    -------
    ndarray
        float32 ``[..., 2]``: (start + end) / 2 / (K - 1) and (end - start) / (K - 1); NaN where
        there is no expansion.

    Examples
    --------
    >>> pointers_of([52, 0], [52, 104]).tolist()
    [[0.5, 0.0], [0.5, 1.0]]
    """
    first, last = np.asarray(start, np.float64), np.asarray(end, np.float64)
    pointers = np.stack([(first + last) / 2, last - first], axis=-1) / (length - 1)
    pointers[first < 0] = np.nan
    return pointers.astype(np.float32)


def span_of(pointers: ArrayLike, length: int = 105) -> tuple[Int64, Int64]:
    """First and last bar that pointers stand for; the inverse of :func:`pointers_of`.

    Parameters
    ----------
    pointers
        float ``[..., 2]``: center and length; a length below 0 counts as 0.
    length
        Bars in a window, K.

    Returns
    -------
    start, end
        int64 ``[...]``: (center -/+ length / 2) (K - 1), rounded and clipped to [0, K - 1]; -1
        where pointers are NaN.

    Examples
    --------
    >>> span_of(pointers_of([7, -1], [12, -1]))
    (array([ 7, -1]), array([12, -1]))
    """
    values = np.asarray(pointers, np.float64)
    center, half = values[..., 0], np.maximum(values[..., 1], 0.0) / 2
    missing = np.isnan(values).any(axis=-1)
    bounds = []
    for bound in (center - half, center + half):
        bars = np.clip(np.rint(np.where(missing, 0.0, bound) * (length - 1)), 0, length - 1)
        bounds.append(np.where(missing, NONE, bars).astype(np.int64))
    return bounds[0], bounds[1]


def make_targets(labels: LabelledWindows) -> Targets:
    """Arrays to learn from, one row a window.

    Parameters
    ----------
    labels
        N windows of K bars.

    Returns
    -------
    dict of ndarray
        ``type`` int64 ``[N]``, -1 unknown; ``start`` and ``end`` int64 ``[N]``, -1 where there is
        no expansion; ``pointers`` float32 ``[N, 2]``, NaN there; ``span`` float32 ``[N, K]``, 1
        for start <= t <= end, NaN in a window that has no span and is not labelled ``"none"``,
        for then nobody has said which bars expand; ``countdown`` float32 ``[N, K]``,
        (clip(start - t, -20, 20) + 20) / 40, NaN where there is no expansion.
    """
    start, end = labels.start[:, None], labels.end[:, None]  # [N, 1]
    position = np.arange(labels.length)
    inside = (position >= start) & (position <= end) & (start >= 0)
    expands_not = [name == NO_EXPANSION for name in (*labels.classes, None)]  # -1 takes the last
    known = (start >= 0) | np.array(expands_not)[labels.type][:, None]
    return {
        "type": labels.type.copy(),
        "start": labels.start.copy(),
        "end": labels.end.copy(),
        "pointers": pointers_of(labels.start, labels.end, labels.length),
        "span": np.where(known, inside, np.nan).astype(np.float32),
        "countdown": countdown_of(labels.start, labels.length),
    }


def are_labelled(targets: Targets) -> NDArray[np.bool_]:
    """Of which windows anything is known, bool ``[N]``: a type, or where an expansion lies.

    Examples
    --------
    >>> unknown = np.full((2, 105), np.nan)
    >>> are_labelled({"type": np.array([-1, 1]), "span": unknown}).tolist()
    [False, True]
    """
    spans = ~np.isnan(targets["span"]).any(axis=1)
    found: NDArray[np.bool_] = (targets["type"] >= 0) | spans
    return found


def countdown_of(start: ArrayLike, length: int = 105) -> Float32:
    """Bars from each position to the start, clipped to 20 on both sides, as float32 in [0, 1].

    Parameters
    ----------
    start
        int64 ``[...]``, -1 where there is no expansion: NaN.
    length
        Bars in a window, K.

    Examples
    --------
    >>> countdown_of(1, 3).tolist()
    [0.5249999761581421, 0.5, 0.4749999940395355]
    """
    first = np.asarray(start, np.float64)[..., None]
    bars = np.clip(first - np.arange(length), -COUNTDOWN_REACH, COUNTDOWN_REACH)
    scaled = (bars + COUNTDOWN_REACH) / (2 * COUNTDOWN_REACH)
    return np.where(first < 0, np.nan, scaled).astype(np.float32)


def countdown_bars(countdown: NDArray[np.floating]) -> Float64:
    """Turn a countdown in [0, 1] back into bars, -20 to 20."""
    return np.asarray(countdown, np.float64) * (2 * COUNTDOWN_REACH) - COUNTDOWN_REACH


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetPriors:
    """What is known of the targets before any window is looked at: of the training part only.

    Attributes
    ----------
    classes
        Names of the C classes.
    class_counts
        int64 ``[C]``.
    class_shares
        float64 ``[C]``, above 0, sums to 1; a class without a member counts as half a window.
    span_share
        Share of bars inside an expansion, of those that are known; above 0 and below 1.
    mean_pointers
        float64 ``[2]``, over windows with an expansion.
    mean_countdown
        Over all bars of windows with an expansion, in [0, 1].
    start_share, end_share
        float64 ``[K]``: how often an expansion starts and ends at each position, add-one
        smoothed, sums to 1.
    best
        The constant predictions that the floors of the metrics are made of.
    """

    classes: tuple[str, ...]
    class_counts: Int64
    class_shares: Float64
    span_share: float
    mean_pointers: Float64
    mean_countdown: float
    start_share: Float64
    end_share: Float64
    best: BestConstants

    @classmethod
    def of(
        cls, targets: Targets, classes: tuple[str, ...], rows: ArrayLike | None = None
    ) -> TargetPriors:
        """Count the targets of some rows.

        Parameters
        ----------
        targets
            As :func:`make_targets` returns them.
        classes
            Names of the classes.
        rows
            int64 ``[M]``, the training part; all rows when None.

        Raises
        ------
        LabelsError
            No rows, or none with an expansion: nothing could be learnt of it.
        """
        index = np.arange(len(targets["type"])) if rows is None else np.asarray(rows, np.int64)
        part = {name: values[index] for name, values in targets.items()}
        expands = part["start"] >= 0  # [M]
        if not expands.any():
            raise LabelsError(
                f"none of the {len(index)} windows to train on has an expansion; label some, or "
                "give the training part more windows"
            )
        length = part["span"].shape[1]
        start, end = (part[name][expands].astype(np.int64) for name in ("start", "end"))
        types = part["type"].astype(np.int64)
        counts = np.bincount(types[types >= 0], minlength=len(classes))
        shares = np.maximum(counts, 0.5)
        known_bars = part["span"][np.isfinite(part["span"])]
        span_share = float(np.mean(known_bars, dtype=np.float64))
        half_bar = 0.5 / known_bars.size
        return cls(
            classes=classes,
            class_counts=counts.astype(np.int64),
            class_shares=shares / shares.sum(),
            span_share=min(max(span_share, half_bar), 1 - half_bar),
            mean_pointers=np.mean(part["pointers"][expands], axis=0, dtype=np.float64),
            mean_countdown=float(np.mean(part["countdown"][expands], dtype=np.float64)),
            start_share=_smoothed(start, length),
            end_share=_smoothed(end, length),
            best=BestConstants.of(start, end, part["countdown"][expands].astype(np.float32)),
        )


def _smoothed(position: Int64, length: int) -> Float64:
    shares: Float64 = (np.bincount(position, minlength=length) + 1.0) / (len(position) + length)
    return shares
