"""The best predictions that are the same for every window: what a model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

TOLERANCE = 3  # bars that a hit may be off


@dataclass(frozen=True, kw_only=True, eq=False)
class BestConstants:
    """For each way to score a span, the one answer that scores best on given expansions.

    Attributes
    ----------
    hit_span
        Start and end that lie within 3 bars of most starts and ends.
    iou_span
        Start and end of the highest mean intersection over union.
    hit_center
        Center within 3 bars of most centers, a multiple of half a bar.
    start, end, center
        Medians, which make mean absolute errors smallest.
    countdown
        float64 ``[K]``: median countdown at each position, in [0, 1].
    """

    hit_span: tuple[int, int]
    iou_span: tuple[int, int]
    hit_center: float
    start: float
    end: float
    center: float
    countdown: Float64

    @classmethod
    def of(cls, start: Int64, end: Int64, countdown: NDArray[np.float32]) -> BestConstants:
        """Find them for the expansions of some windows; the earliest of equals.

        Parameters
        ----------
        start, end
            int64 ``[M]``, inclusive; at least one.
        countdown
            float32 ``[M, K]``, in [0, 1].

        Examples
        --------
        >>> start, end = np.array([10, 12, 90]), np.array([15, 16, 95])
        >>> best = BestConstants.of(start, end, np.zeros((3, 105), np.float32))
        >>> best.hit_span, best.iou_span, best.start
        ((9, 13), (10, 15), 12.0)
        """
        length = countdown.shape[1]
        return cls(
            hit_span=_best_hit_span(start, end, length),
            iou_span=_best_iou_span(start, end, length),
            hit_center=_best_hit_center(start, end, length),
            start=float(np.median(start)),
            end=float(np.median(end)),
            center=float(np.median((start + end) / 2)),
            countdown=np.median(countdown, axis=0).astype(np.float64),
        )


def _best_hit_span(start: Int64, end: Int64, length: int) -> tuple[int, int]:
    counts = np.zeros((length, length), np.int64)
    np.add.at(counts, (start, end), 1)
    hits = _sums_around(_sums_around(counts, TOLERANCE).T, TOLERANCE).T
    # Spans whose end precedes their start lie below the diagonal.
    hits[np.tril_indices(length, -1)] = -1
    best_start, best_end = np.unravel_index(np.argmax(hits), hits.shape)
    return int(best_start), int(best_end)


def _best_hit_center(start: Int64, end: Int64, length: int) -> float:
    counts = np.bincount(start + end, minlength=2 * length - 1)  # by half bars
    return int(np.argmax(_sums_around(counts[:, None], 2 * TOLERANCE))) / 2


def _sums_around(counts: Int64, reach: int) -> Int64:
    """Sum over rows i - reach to i + reach, for each row i."""
    total = np.cumsum(np.pad(counts, ((reach + 1, reach), (0, 0))), axis=0)
    sums: Int64 = total[2 * reach + 1 :] - total[: len(counts)]
    return sums


def _best_iou_span(start: Int64, end: Int64, length: int) -> tuple[int, int]:
    first, last = np.triu_indices(length)  # every span that there can be
    spans, counts = np.unique(np.stack([start, end], axis=1), axis=0, return_counts=True)
    total = np.zeros(len(first))
    for (true_first, true_last), count in zip(spans.tolist(), counts.tolist(), strict=True):
        shared = np.minimum(last, true_last) - np.maximum(first, true_first) + 1
        shared = np.maximum(shared, 0)
        either = (last - first + 1) + (true_last - true_first + 1) - shared
        total += count * (shared / either)
    best = int(np.argmax(total))
    return int(first[best]), int(last[best])
