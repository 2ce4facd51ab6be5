"""What a person says of one window, and which answers make sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moola_train.errors import TrainError
from moola_train.labels import WINDOW_LENGTH
from moola_train.targets import NO_EXPANSION

HAND = "hand"
MAX_COMMENT = 500  # characters


class RequestError(TrainError):
    """A request of a page that cannot be met.

    Attributes
    ----------
    status
        The HTTP status that says so.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is known of a window.

    Attributes
    ----------
    label
        What stands before the expansion, ``"none"`` where nothing expands, None where it is not
        known or none of the classes.
    start, end
        First and last bar of the expansion, inclusive; both None without one.
    source
        Who says so.
    comment
        Words of a person.
    reviewed_at
        When a person answered, ns UTC; None if nobody has.
    skipped_at
        When a person put it aside, ns UTC; None if nobody has, or once it is answered.
    """

    label: str | None = None
    start: int | None = None
    end: int | None = None
    source: str | None = None
    comment: str | None = None
    reviewed_at: int | None = None
    skipped_at: int | None = None

    @property
    def version(self) -> str:
        """What tells one answer to a window from another; empty while it is open."""
        moment = self.skipped_at if self.reviewed_at is None else self.reviewed_at
        return "" if moment is None else str(moment)

    @property
    def says_something(self) -> bool:
        """Whether there is a label or a span to suggest."""
        return self.label is not None or self.start is not None

    def says_same(self, other: Mark) -> bool:
        """Whether an answer repeats this one."""
        return self.reviewed_at is not None and self.to_dict() == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Return what a page shows of it, as plain JSON types."""
        names = ("label", "start", "end", "source", "comment")
        return {name: getattr(self, name) for name in names}


def parse_answer(
    request: Mapping[str, Any], classes: tuple[str, ...], length: int = WINDOW_LENGTH
) -> Mark:
    """Check an answer that a page sent.

    Parameters
    ----------
    request
        ``label``: one of the classes, ``"none"``, or None where the type is not clear; ``start``
        and ``end``: whole numbers, or None with ``"none"``; ``comment``: text, may be left out.
    classes
        Names of the classes.
    length
        Bars in a window.

    Raises
    ------
    RequestError
        An answer that contradicts itself or the window; the message names the value.

    Examples
    --------
    >>> answer = {"label": "retracement", "start": 40, "end": 47}
    >>> parse_answer(answer, ("consolidation", "retracement")).end
    47
    """
    label, start, end = (request.get(name) for name in ("label", "start", "end"))
    if label is not None and label not in (*classes, NO_EXPANSION):
        known = ", ".join((*classes, NO_EXPANSION))
        raise RequestError(400, f"label is {_short(label)}; choose one of {known}, or null")
    comment = parse_comment(request)
    if label == NO_EXPANSION:
        if start is not None or end is not None:
            raise RequestError(400, f"label is 'none', but start is {_short(start)}; send no span")
        return Mark(label=label, source=HAND, comment=comment)
    for name, value in (("start", start), ("end", end)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < length:
            what = f"{name} is {_short(value)}"
            raise RequestError(400, f"{what}; give a bar of the window, 0 to {length - 1}")
    assert isinstance(start, int)
    assert isinstance(end, int)
    if start > end:
        raise RequestError(400, f"start is {start}, after end, which is {end}; exchange them")
    return Mark(label=label, start=start, end=end, source=HAND, comment=comment)


def parse_comment(request: Mapping[str, Any]) -> str | None:
    """Check the comment that came with an answer; empty text is none.

    Raises
    ------
    RequestError
        Something else than text, or too much of it.
    """
    comment = request.get("comment")
    if comment is None:
        return None
    if not isinstance(comment, str):
        raise RequestError(400, f"comment is {_short(comment)}; give text")
    words = " ".join(comment.split())
    if len(words) > MAX_COMMENT:
        raise RequestError(400, f"the comment has {len(words)} characters; {MAX_COMMENT} fit")
    return words or None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
