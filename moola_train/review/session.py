"""Who is asked what: one truth for all pages, an answer at a time.

A page holds a window from when it is sent until it is answered, so two pages are asked for
different ones. Each answer names the version of the window that it answers: one that comes too
late changes nothing, and its page is told.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moola_train.review.marks import Mark, RequestError, parse_answer, parse_comment
from moola_train.review.record import Record
from moola_train.targets import Int64

HOLD_SECONDS = 180.0  # a page that is open speaks every 30 s, or every 60 s in the background
_OPEN, _ANSWERED, _SKIPPED = 0, 1, 2

Request = Mapping[str, Any]
Reply = dict[str, Any]


@dataclass(frozen=True)
class _Step:
    """Something that can be undone: who changed which row, from what to which version."""

    page: str | None
    row: int
    before: Mark
    version: str


class Session:
    """The state of a review that all its pages share. Every method may be called by any thread.

    Parameters
    ----------
    record
        The windows and where answers are written.
    queue
        int64 ``[M]``: rows to ask for, in order.
    classes
        Labels to choose from, besides ``"none"``.
    picture
        Gives what a page draws of the window that begins at a bar.
    suggestions
        What to suggest, a row each of the record; nothing when None.
    clock
        Seconds; only differences count.
    """

    def __init__(
        self, record: Record, queue: Int64, classes: tuple[str, ...],
        picture: Callable[[int], dict[str, Any]],
        suggestions: Sequence[Mark] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._record = record
        self._queue = queue.tolist()
        self._place = {row: place for place, row in enumerate(self._queue)}
        self._classes = classes
        self._picture = picture
        self._suggestions = suggestions
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._holder: dict[int, str] = {}
        self._seen: dict[str, float] = {}
        self._status = np.array([_status(record.mark(row)) for row in self._queue], np.int8)
        self._first_open = 0  # no window before this place in the queue is open
        self._steps = self._earlier_steps()
        self._last_moment = max((int(step.version) for step in self._steps), default=0)

    @property
    def path(self) -> Path:
        """The file that answers go to."""
        return self._record.path

    def progress(self) -> Reply:
        """Count windows by what became of them."""
        counts = np.bincount(self._status, minlength=3).tolist()
        return {
            "total": len(self._queue),
            "answered": counts[_ANSWERED],
            "skipped": counts[_SKIPPED],
        }

    def close(self) -> None:
        """Refuse all further changes; returns when one under way is done."""
        with self._lock:
            self._closed = True

    def next(self, request: Request) -> Reply:
        """Send the first open window that no other page holds, and that this page has not."""
        with self._lock:
            page = self._page(request)
            return self._reply(next=self._hand_out(page, _ids(request)))

    def answer(self, request: Request) -> Reply:
        """Write an answer, then send the next window."""
        return self._settle(request, lambda: parse_answer(request, self._classes))

    def skip(self, request: Request) -> Reply:
        """Put a window aside, then send the next one."""

        def mark() -> Mark:
            row = self._row(request)
            comment = parse_comment(request)
            return dataclasses.replace(self._record.original[row], comment=comment)

        return self._settle(request, mark, skips=True)

    def undo(self, request: Request) -> Reply:
        """Take back the last answer of this page, or else of a page that is gone.

        The window comes back with the answer that was taken, to be put right.
        """
        with self._lock:
            page = self._page(request)
            step = self._last_step(page)
            if step is None:
                raise RequestError(409, "there is nothing to undo on this page")
            taken = self._record.mark(step.row)
            self._change({step.row: step.before})
            self._steps.remove(step)
            self._holder[step.row] = page
            shown = self._shown(step.row)
            if taken.reviewed_at is not None:
                shown["draft"] = taken.to_dict()
            return self._reply(window=shown)

    def reopen(self, request: Request) -> Reply:
        """Ask again for all windows that were skipped."""
        with self._lock:
            page = self._page(request)
            places = np.flatnonzero(self._status == _SKIPPED).tolist()
            rows = [self._queue[place] for place in places]
            self._change({row: self._record.original[row] for row in rows})
            return self._reply(next=self._hand_out(page, _ids(request)))

    def state(self, request: Request) -> Reply:
        """Tell the progress, and whether somebody else has changed the page's window."""
        with self._lock:
            page = self._page(request)
            behind = False
            if request.get("id") is not None:
                row = self._row(request)
                behind = self._record.mark(row).version != request.get("version")
                if not behind and self._may_hold(row, page):
                    self._holder[row] = page
                behind = behind or self._holder.get(row) != page
            return self._reply(behind=behind)

    def leave(self, request: Request) -> Reply:
        """Hand back what a page holds that is being closed."""
        with self._lock:
            self._seen.pop(self._page(request))
            return self._reply()

    def _settle(self, request: Request, make: Callable[[], Mark], *, skips: bool = False) -> Reply:
        with self._lock:
            page = self._page(request)
            row, have = self._row(request), _ids(request)
            before, made = self._record.mark(row), make()
            if request.get("version") != before.version:
                if before.says_same(made):
                    # Written already, but its page never heard: the server was killed between.
                    return self._reply(saved=before.version, next=self._hand_out(page, have))
                return self._reply(
                    error="this window was answered on another page; that answer stands",
                    next=self._hand_out(page, have),
                )
            # Answers in a row differ in their moment, which is what their version is made of.
            now = max(time.time_ns(), self._last_moment + 1)
            reviewed_at, skipped_at = (None, now) if skips else (now, None)
            mark = dataclasses.replace(made, reviewed_at=reviewed_at, skipped_at=skipped_at)
            self._change({row: mark})
            self._last_moment = now
            self._holder.pop(row, None)
            self._steps.append(_Step(page, row, before, mark.version))
            return self._reply(saved=mark.version, next=self._hand_out(page, have))

    def _change(self, marks: dict[int, Mark]) -> None:
        if self._closed:
            raise RequestError(503, "the review is ending; start it again to go on")
        self._record.change(marks)
        for row, mark in marks.items():
            place = self._place[row]
            self._status[place] = _status(mark)
            self._first_open = min(self._first_open, place)

    def _page(self, request: Request) -> str:
        page = request.get("page")
        if not isinstance(page, str) or not 8 <= len(page) <= 64:
            raise RequestError(400, "page is missing; load the page again")
        self._seen[page] = self._clock()
        return page

    def _row(self, request: Request) -> int:
        name = request.get("id")
        row = self._record.row(name) if isinstance(name, str) else None
        if row is None or row not in self._place:
            raise RequestError(404, f"there is no window {str(name)[:60]!r} in this review")
        return row

    def _is_open(self, page: str | None) -> bool:
        return page is not None and self._clock() - self._seen.get(page, -np.inf) < HOLD_SECONDS

    def _hand_out(self, page: str, have: set[str]) -> Reply | None:
        while self._first_open < len(self._queue) and self._status[self._first_open] != _OPEN:
            self._first_open += 1
        for place in range(self._first_open, len(self._queue)):
            row = self._queue[place]
            if self._status[place] != _OPEN or self._record.window_id[row] in have:
                continue
            if self._may_hold(row, page):
                self._holder[row] = page
                return self._shown(row)
        return None

    def _may_hold(self, row: int, page: str) -> bool:
        holder = self._holder.get(row)
        return holder in (None, page) or not self._is_open(holder)

    def _shown(self, row: int) -> Reply:
        mark = self._record.mark(row)
        suggestion = None if self._suggestions is None else self._suggestions[row]
        says = suggestion is not None and suggestion.says_something
        return {
            "id": self._record.window_id[row],
            "version": mark.version,
            "place": self._place[row] + 1,
            "suggestion": suggestion.to_dict() if suggestion is not None and says else None,
            "draft": None,
            **self._picture(self._record.start_bar[row]),
        }

    def _last_step(self, page: str) -> _Step | None:
        for step in reversed(self._steps):
            mine = step.page == page or not self._is_open(step.page)
            if mine and self._record.mark(step.row).version == step.version:
                return step
        return None

    def _earlier_steps(self) -> list[_Step]:
        """Steps of earlier sessions, as the labels file tells them."""
        rows = [row for row in self._queue if self._record.mark(row).version]
        rows.sort(key=lambda row: int(self._record.mark(row).version))
        return [
            _Step(None, row, self._record.original[row], self._record.mark(row).version)
            for row in rows
        ]

    def _reply(self, **values: Any) -> Reply:
        return {**values, "progress": self.progress()}


def _status(mark: Mark) -> int:
    if mark.reviewed_at is not None:
        return _ANSWERED
    return _OPEN if mark.skipped_at is None else _SKIPPED


def _ids(request: Request) -> set[str]:
    have = request.get("have", [])
    if not isinstance(have, list) or not all(isinstance(name, str) for name in have):
        raise RequestError(400, "have is no list of windows; load the page again")
    return set(have)
