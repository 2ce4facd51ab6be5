"""How far apart in time the bars of a series are."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moola_features.segments import steps
from moola_features.times import parse_time_ns, time_text

_MINUTE = 60 * 10**9
# Upper bounds of the classes, in ns, and what they are called.
CLASSES = (
    (1 * _MINUTE, "1 min"), (2 * _MINUTE, "2 min"), (5 * _MINUTE, "5 min"),
    (15 * _MINUTE, "15 min"), (60 * _MINUTE, "1 h"), (240 * _MINUTE, "4 h"),
    (1_440 * _MINUTE, "1 day"), (10_080 * _MINUTE, "1 week"),
)  # fmt: skip
NUM_LONGEST = 5


class GapCensus:
    """Counts the steps between bars by length, and remembers the longest.

    Examples
    --------
    >>> census = GapCensus()
    >>> census.add(np.array([0, 1, 8]) * 60_000_000_000, None)
    >>> census.to_dict()["histogram"]["1 min"], census.to_dict()["longest"][0]["seconds"]
    (1, 420.0)
    """

    def __init__(self) -> None:
        self._counts = np.zeros(len(CLASSES) + 1, np.int64)
        self._longest: list[tuple[int, int]] = []  # step, time of the bar before it

    def add(self, time: NDArray[np.int64], previous_time: int | None) -> None:
        """Count the steps of a batch, the step from the batch before among them."""
        if previous_time is not None:
            time = np.concatenate([[previous_time], time])
        lengths = steps(time)
        bounds = np.array([bound for bound, _ in CLASSES], np.uint64)
        longer = np.flatnonzero(lengths > bounds[0])  # few, so that sorting them costs nothing
        self._counts[0] += len(lengths) - len(longer)
        found = np.searchsorted(bounds, lengths[longer])
        self._counts += np.bincount(found, minlength=len(self._counts))
        longest = longer[np.argsort(~lengths[longer], kind="stable")[:NUM_LONGEST]]
        self._keep([(int(lengths[i]), int(time[i])) for i in longest])

    def merge(self, other: GapCensus) -> None:
        """Count what another one has counted, too."""
        self._counts += other._counts
        self._keep(other._longest)

    @classmethod
    def from_dict(cls, told: dict[str, Any], time: NDArray[np.int64]) -> Self:
        """Make a census that goes on from what :meth:`to_dict` told of a series.

        Parameters
        ----------
        told
            The counts and the longest gaps.
        time
            int64 ``[T]``: times of that series, which know the gaps to the nanosecond.
        """
        made = cls()
        made._counts[:] = list(told["histogram"].values())
        for gap in told["longest"]:
            after = parse_time_ns("after", gap["after"])
            position = int(np.searchsorted(time, after))
            made._longest.append((int(steps(time[position : position + 2])[0]), after))
        return made

    def _keep(self, candidates: list[tuple[int, int]]) -> None:
        ordered = sorted(self._longest + candidates, key=lambda gap: (-gap[0], gap[1]))
        self._longest = ordered[:NUM_LONGEST]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the longest gaps as plain JSON types."""
        names = [f"up to {name}" if i else name for i, (_, name) in enumerate(CLASSES)]
        names.append(f"over {CLASSES[-1][1]}")
        return {
            "histogram": dict(zip(names, self._counts.tolist(), strict=True)),
            "longest": [
                {"after": time_text(time), "seconds": step / 1e9} for step, time in self._longest
            ],
        }
