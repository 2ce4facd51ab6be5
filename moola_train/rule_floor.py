"""A rule of one line, with little that is fitted: the floor that needs no training.

A model that does not beat it has learnt nothing that the rule does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moola_train.errors import LabelsError
from moola_train.targets import Float64, Int64

RUN_BARS = 8  # of the expansion that the rule sees in every window
BOX_BARS = 15  # before the run, whose height decides the type

_HIGH, _LOW, _CLOSE = 1, 2, 3


@dataclass(frozen=True, eq=False)
class RuleSpans:
    """What the rule sees in each window.

    Attributes
    ----------
    start, end
        int64 ``[N]``: first and last bar of the run of 8 bars with the largest net move, from the
        close before it to its last close; the earliest of equals.
    move
        float64 ``[N]``: that move, without its sign, in mean true ranges of the window; 0 where
        the window is flat.
    box
        float64 ``[N]``: highest high minus lowest low of the 15 bars before the run (fewer where
        the window begins later), in the same unit.
    """

    start: Int64
    end: Int64
    move: Float64
    box: Float64


def rule_spans(
    ohlc: NDArray[np.float64], first_start: int = 1, last_start: int | None = None
) -> RuleSpans:
    """Find the run of 8 bars with the largest net move in each window.

    Parameters
    ----------
    ohlc
        float64 ``[N, K, 4]``: open, high, low, close of windows of at least 9 bars.
    first_start, last_start
        Where a run may start: from 1, since a move is counted from the close before it, to K - 8,
        which None stands for.

    Raises
    ------
    LabelsError
        Windows of another shape.

    Examples
    --------
    >>> close = np.r_[np.zeros(20), np.arange(1.0, 9.0), np.full(20, 8.0)]
    >>> spans = rule_spans(np.repeat(close[None, :, None], 4, axis=2))
    >>> spans.start.tolist(), spans.end.tolist()
    ([20], [27])
    """
    if ohlc.ndim != 3 or ohlc.shape[1] <= RUN_BARS or ohlc.shape[2] != 4:
        raise LabelsError(
            f"windows have shape {list(ohlc.shape)}; the rule reads [N, K, 4] prices with K of at "
            f"least {RUN_BARS + 1}"
        )
    high, low, close = (ohlc[:, :, price] for price in (_HIGH, _LOW, _CLOSE))
    moves = np.abs(close[:, RUN_BARS:] - close[:, :-RUN_BARS])  # [N, K - 8]
    allowed = slice(first_start - 1, last_start)
    start = moves[:, allowed].argmax(axis=1) + first_start
    ranges = np.maximum(high[:, 1:], close[:, :-1]) - np.minimum(low[:, 1:], close[:, :-1])
    unit = ranges.mean(axis=1)  # [N]
    flat = unit == 0
    unit = np.where(flat, 1.0, unit)
    position = np.arange(ohlc.shape[1])
    before = (position < start[:, None]) & (position >= start[:, None] - BOX_BARS)
    highest = np.where(before, high, -np.inf).max(axis=1)
    lowest = np.where(before, low, np.inf).min(axis=1)
    return RuleSpans(
        start=start,
        end=start + RUN_BARS - 1,
        move=moves[:, allowed].max(axis=1) / unit,
        box=np.where(flat, 0.0, highest - lowest) / unit,
    )


@dataclass(frozen=True)
class RuleFloor:
    """The rule as fitted: a low box before the run is one type, a high one another.

    Attributes
    ----------
    threshold
        A box above it is high.
    low_type, high_type
        Positions in the classes.
    num_classes
        Types of a window, C.
    first_start, last_start
        Where a run may start.
    """

    threshold: float
    low_type: int
    high_type: int
    num_classes: int
    first_start: int = 1
    last_start: int | None = None

    @classmethod
    def fit(cls, ohlc: NDArray[np.float64], types: Int64, starts: Int64, num_classes: int) -> Self:
        """Choose the threshold, and the type on each side of it, of the highest macro F1.

        Runs may start where expansions of these windows do: whoever marks or labels windows may
        well leave their first bars out, and a rule is to know what a model can learn of that.

        Parameters
        ----------
        ohlc
            float64 ``[N, K, 4]``, of the training part.
        types
            int64 ``[N]``, -1 unknown.
        starts
            int64 ``[N]``: first bars of the expansions, -1 where there is none.
        num_classes
            Types of a window, C.

        Raises
        ------
        LabelsError
            No window with a type: nothing to fit to.
        """
        known = types >= 0
        if not known.any():
            raise LabelsError("no window of the training part has a type; label some")
        latest = ohlc.shape[1] - RUN_BARS
        begun = np.clip(starts[starts >= 0], 1, latest)
        first, last = (int(begun.min()), int(begun.max())) if len(begun) else (1, latest)
        box = rule_spans(ohlc[known], first, last).box
        order = np.argsort(box, kind="stable")
        box, types = box[order], types[known][order]
        is_type = types[:, None] == np.arange(num_classes)  # [N, C]
        cuts = np.flatnonzero(np.append(np.diff(box) > 0, True)) + 1  # boxes on the low side
        low_right = np.cumsum(is_type, axis=0)[cuts - 1]  # [cuts, C]
        total = is_type.sum(axis=0)  # [C]
        low_f1 = 2 * low_right / (cuts[:, None] + total)
        high_f1 = 2 * (total - low_right) / (len(box) - cuts[:, None] + total).clip(min=1)
        both = low_f1[:, :, None] + high_f1[:, None, :]  # [cuts, C, C]: macro F1 times C
        one = np.arange(num_classes)  # one type on both sides is said of every window
        both[:, one, one] = 2 * total / (len(box) + total)
        best = np.unravel_index(np.argmax(both), both.shape)
        cut = int(cuts[best[0]])
        threshold = (box[cut - 1] + box[min(cut, len(box) - 1)]) / 2
        return cls(float(threshold), int(best[1]), int(best[2]), num_classes, first, last)

    def predict(self, ohlc: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """Say what a model would, for ``moola_train.metrics.evaluate``.

        Parameters
        ----------
        ohlc
            float64 ``[N, K, 4]``.

        Returns
        -------
        dict of ndarray
            ``start`` and ``end`` int64 ``[N]``, and ``type_probability`` float64 ``[N, C]`` of
            zeros and ones.
        """
        spans = rule_spans(ohlc, self.first_start, self.last_start)
        chosen = np.where(spans.box > self.threshold, self.high_type, self.low_type)
        return {
            "start": spans.start,
            "end": spans.end,
            "type_probability": np.eye(self.num_classes)[chosen],
        }
