"""Two runs on the same windows: what sets them apart, and whether that is more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moola_train.errors import RunError
from moola_train.evaluation.bootstrap import Draws, blocks_of
from moola_train.evaluation.predicted import PartPredictions, predict_part
from moola_train.evaluation.scores import Difference, differences_of
from moola_train.evaluation.subject import Subject
from moola_train.targets import Int64

_PRICED = 4_096  # windows whose prices are held at once


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run beside another one.

    Attributes
    ----------
    other, preset
        Folder and preset of the other run.
    num_windows
        Windows that stand in the part for both runs; only those are compared.
    num_left_out
        Windows of the part that the other run's part does not have.
    differences
        The first run minus the other one, metric by metric.
    """

    other: str
    preset: str
    num_windows: int
    num_left_out: int
    differences: dict[str, Difference]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The windows that a part of two runs has in common, in the order of the first.

    Attributes
    ----------
    ours, theirs
        int64 ``[M]``: positions in the two parts.
    num_left_out
        Windows that only the first one's part has.
    """

    ours: Int64
    theirs: Int64
    num_left_out: int


def pair(subject: Subject, other: Subject, part: str) -> Pairs:
    """Pair the windows of two runs by window id, before either predicts them.

    Raises
    ------
    RunError
        Other classes or lengths of windows, no window that both have, or one of which the two
        have other bars or another label.
    """
    for name, text in (("classes", "classes"), ("window_length", "bars in a window")):
        ours, theirs = getattr(subject.data, name), getattr(other.data, name)
        if ours != theirs:
            raise RunError(
                f"{other.run} has the {text} {_written(theirs)}, {subject.run} {_written(ours)}; "
                f"compare runs of the same {text}"
            )
    rows, other_rows = subject.rows(part), other.rows(part)
    names = other.labels.window_id
    place = {names[row]: position for position, row in enumerate(other_rows.tolist())}
    own = [subject.labels.window_id[row] for row in rows.tolist()]
    shared = [position for position, name in enumerate(own) if name in place]
    if not shared:
        raise RunError(
            f"{subject.run} and {other.run} have no window in common in part {part!r}; compare "
            "runs of one split"
        )
    found = Pairs(
        ours=np.array(shared, np.int64),
        theirs=np.array([place[own[position]] for position in shared], np.int64),
        num_left_out=len(rows) - len(shared),
    )
    _require_same(subject, other, rows[found.ours], other_rows[found.theirs])
    return found


def compare(
    subject: Subject,
    other: Subject,
    judged: PartPredictions,
    pairs: Pairs,
    *,
    part: str,
    num_draws: int,
    seed: int,
) -> Comparison:
    """Compare two runs on the windows that they share."""
    theirs = predict_part(other, part)
    rows = judged.rows[pairs.ours]
    draws = Draws.of(blocks_of(subject.labels.take(rows)), num_draws, seed)
    differences = differences_of(
        _take(judged.found, pairs.ours), _take(theirs.found, pairs.theirs), subject.truth(rows),
        subject.priors, draws,
    )  # fmt: skip
    return Comparison(
        other=str(other.run),
        preset=other.data.preset,
        num_windows=len(rows),
        num_left_out=pairs.num_left_out,
        differences=differences,
    )


def _require_same(subject: Subject, other: Subject, rows: Int64, other_rows: Int64) -> None:
    """Refuse a window of which the two have other bars, or another label."""
    differing = {
        f"another {name}": subject.targets[name][rows] != other.targets[name][other_rows]
        for name in ("type", "start", "end")
    }
    # A name may be a time, which every instrument has.
    differing["other bars"] = np.concatenate(
        [
            (subject.prices(rows[some]) != other.prices(other_rows[some])).any(axis=(1, 2))
            for some in np.array_split(np.arange(len(rows)), -(-len(rows) // _PRICED))
        ]
    )
    for what, which in differing.items():
        if which.any():
            window = subject.labels.window_id[rows[int(np.argmax(which))]]
            raise RunError(
                f"window {window!r} has {what} in the labels of {other.run} than in those of "
                f"{subject.run}; compare runs of the same labels and bars"
            )


def _written(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _take(arrays: dict[str, NDArray[Any]], rows: Int64) -> dict[str, NDArray[Any]]:
    return {name: values[rows] for name, values in arrays.items()}
