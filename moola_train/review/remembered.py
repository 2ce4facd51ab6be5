"""What a labels file remembers beside its rows, in its metadata, so that undo outlives a session.

A row holds one answer, and a skipped window none. What a row said before its answer, and that it
was skipped, has no column of its own: whoever reads labels is spared both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq

from moola_features.bars.files import decoding
from moola_train.errors import LabelsError
from moola_train.review.marks import Mark

_SKIPPED = b"moola_review_skipped"  # a list of [window_id, skipped_at, comment]
_BEFORE = b"moola_review_before"  # a list of [window_id, label, start, end, source, comment]
_TEXT, _BAR = str | None, int | None
_KINDS: dict[bytes, tuple[Any, ...]] = {
    _SKIPPED: (str, int, _TEXT),
    _BEFORE: (str, _TEXT, _BAR, _BAR, _TEXT, _TEXT),
}
_PARQUET = b"PAR1"  # the first bytes of such a file


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What the metadata of a labels file says of its windows.

    Parameters
    ----------
    skipped
        Windows that were put aside: ``skipped_at`` and ``comment`` alone.
    before
        What the labels under review said of windows that have been answered since. Windows drawn
        from the store are not among them.
    """

    skipped: Mapping[str, Mark] = field(default_factory=dict)
    before: Mapping[str, Mark] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what a file remembers: nothing if it is no Parquet file or no review wrote it.

        Raises
        ------
        LabelsError
            Metadata that is not what a review writes.
        """
        with decoding(path):
            with path.open("rb") as file:
                if file.read(len(_PARQUET)) != _PARQUET:
                    return cls()
            metadata = pq.read_schema(path).metadata or {}
        skipped, before = (
            _entries(path, key, metadata.get(key, b"[]")) for key in (_SKIPPED, _BEFORE)
        )
        return cls(
            skipped={
                name: Mark(skipped_at=moment, comment=comment) for name, moment, comment in skipped
            },
            before={
                name: Mark(label=label, start=start, end=end, source=source, comment=comment)
                for name, label, start, end, source, comment in before
            },
        )

    def to_metadata(self) -> dict[bytes, bytes]:
        """Return it as metadata of a file."""
        skipped = [(name, mark.skipped_at, mark.comment) for name, mark in self.skipped.items()]
        before = [
            (name, mark.label, mark.start, mark.end, mark.source, mark.comment)
            for name, mark in self.before.items()
        ]
        return {_SKIPPED: json.dumps(skipped).encode(), _BEFORE: json.dumps(before).encode()}


def _entries(path: Path, key: bytes, stored: bytes) -> list[list[Any]]:
    kinds = _KINDS[key]
    try:
        entries = json.loads(stored)
        good = isinstance(entries, list) and all(
            isinstance(entry, list)
            and len(entry) == len(kinds)
            and all(isinstance(value, kind) for value, kind in zip(entry, kinds, strict=True))
            for entry in entries
        )
    except (ValueError, RecursionError):
        good = False
    if not good:
        text = stored[:40].decode(errors="replace")
        raise LabelsError(
            f"{path}: metadata {key.decode()} is {text!r}, which no review writes; take the file "
            "from a copy, or write it anew without metadata"
        )
    found: list[list[Any]] = entries
    return found
