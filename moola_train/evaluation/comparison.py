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


def compare(
    subject: Subject,
    other: Subject,
    judged: PartPredictions,
    *,
    part: str,
    num_draws: int,
    seed: int,
) -> Comparison:
    """Compare two runs on the windows that their parts share, paired by window id.

    Raises
    ------
    RunError
        Other classes, no window that both have, or one that the two label differently.
    """
    if other.data.classes != subject.data.classes:
        raise RunError(
            f"{other.run} knows the classes {', '.join(other.data.classes)}, {subject.run} knows "
            f"{', '.join(subject.data.classes)}; compare runs of the same classes"
        )
    theirs = predict_part(other, part)
    ours, paired = _pairs(subject, other, judged.rows, theirs.rows, part)
    rows = judged.rows[ours]
    truth = subject.truth(rows)
    _require_same_truth(subject, other, rows, theirs.rows[paired])
    draws = Draws.of(blocks_of(subject.labels.take(rows)), num_draws, seed)
    differences = differences_of(
        _take(judged.found, ours), _take(theirs.found, paired), truth, subject.priors, draws
    )
    return Comparison(
        other=str(other.run),
        preset=other.data.preset,
        num_windows=len(ours),
        num_left_out=len(judged.rows) - len(ours),
        differences=differences,
    )


def _pairs(
    subject: Subject, other: Subject, rows: Int64, other_rows: Int64, part: str
) -> tuple[Int64, Int64]:
    """Positions in the two parts of the windows that both have, in the order of the first."""
    names = other.labels.window_id
    place = {names[row]: position for position, row in enumerate(other_rows.tolist())}
    own = [subject.labels.window_id[row] for row in rows.tolist()]
    ours = [position for position, name in enumerate(own) if name in place]
    if not ours:
        raise RunError(
            f"{subject.run} and {other.run} have no window in common in part {part!r}; compare "
            "runs of one split"
        )
    return np.array(ours, np.int64), np.array([place[own[i]] for i in ours], np.int64)


def _require_same_truth(subject: Subject, other: Subject, rows: Int64, other_rows: Int64) -> None:
    for name in ("type", "start", "end"):
        differing = subject.targets[name][rows] != other.targets[name][other_rows]
        if differing.any():
            window = subject.labels.window_id[rows[int(np.argmax(differing))]]
            raise RunError(
                f"window {window!r} has another {name} in the labels of {other.run} than in those "
                f"of {subject.run}; compare runs of the same labels"
            )


def _take(arrays: dict[str, NDArray[Any]], rows: Int64) -> dict[str, NDArray[Any]]:
    return {name: values[rows] for name, values in arrays.items()}
