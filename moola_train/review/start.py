"""Putting a review together: labels, candidates, order, suggestions, pages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moola_features.times import TimeLike, parse_time_ns
from moola_train.config import whole
from moola_train.errors import ConfigError, LabelsError
from moola_train.labels import CLASSES, WINDOW_LENGTH
from moola_train.review.candidates import ORDERS, guess, queue_rows, store_windows
from moola_train.review.marks import Mark
from moola_train.review.pictures import Pictures
from moola_train.review.record import Record, held, output_of
from moola_train.review.server import ReviewServer
from moola_train.review.session import Session
from moola_train.targets import NO_EXPANSION, Float64

if TYPE_CHECKING:
    from moola_features.store import Store


@dataclass(frozen=True, kw_only=True)
class ReviewSettings:
    """Which windows are asked for, in what order, and what is suggested.

    Parameters
    ----------
    classes
        Labels to choose from; ``"none"`` always is one.
    order
        ``"given"``, ``"random"`` or ``"uncertain"``.
    run
        Folder of a run whose model orders and suggests.
    stride, sample
        Windows of the store to add: bars from one to the next, and how many of them to draw.
    seed
        Of the sample and of the random order; 0 or more.
    start, stop
        Only windows whose bars all lie in [start, stop).
    blind
        Suggest nothing, so that answers do not lean on what a rule or a model says.

    Raises
    ------
    ConfigError
        An order that is none, one by a model without a model, or a seed below 0.
    """

    classes: tuple[str, ...] = CLASSES
    order: str = "given"
    run: Path | None = None
    stride: int | None = None
    sample: int | None = None
    seed: int = 17
    start: TimeLike | None = None
    stop: TimeLike | None = None
    blind: bool = False

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"order is {self.order!r}; choose one of {', '.join(ORDERS)}")
        if self.order == "uncertain" and self.run is None:
            raise ConfigError("order is 'uncertain', but by names no run; say whose model decides")
        whole("seed", self.seed, 0, 2**63 - 1)
        names = tuple(name for name in self.classes if name != NO_EXPANSION)
        object.__setattr__(self, "classes", names)


@contextlib.contextmanager
def open_review(
    store: Store,
    labels: Path,
    output: Path | None = None,
    settings: ReviewSettings | None = None,
    port: int = 0,
) -> Iterator[ReviewServer]:
    """Open a labels file for review; nobody else may until it is closed.

    Parameters
    ----------
    store
        Where the windows stand.
    labels
        Labels to begin with. One that a review wrote is gone on with; any other is left as it is.
    output
        The file that answers go to; when None ``labels`` itself if a review wrote it or if it is
        not there yet, else NAME.reviewed.parquet beside it.
    settings
        What is asked; the defaults when None.
    port
        Of the page; any free one when 0.

    Yields
    ------
    ReviewServer
        To be served.

    Raises
    ------
    ConfigError, LabelsError, OutputError
        Settings or labels that make no sense, no windows, another review of the same file.
    """
    chosen = ReviewSettings() if settings is None else settings
    target = output_of(labels, output)
    with held(target), contextlib.ExitStack() as stack:
        record = Record(target, labels, store, chosen.classes)
        session = _make_session(record, labels, store, chosen)
        told = {"classes": chosen.classes, "store": store.path.name, "file": target.name}
        server = stack.enter_context(ReviewServer(session, told, port))
        try:
            yield server
        finally:
            session.close()


def _make_session(record: Record, labels: Path, store: Store, settings: ReviewSettings) -> Session:
    edges = [(settings.start, 0), (settings.stop, len(store))]
    first, stop = (
        edge if when is None else int(np.searchsorted(store.time, parse_time_ns(name, when)))
        for name, (when, edge) in zip(("from", "to"), edges, strict=True)
    )
    if settings.stride is not None or settings.sample is not None:
        record.add_windows(
            store_windows(
                store, stride=settings.stride, sample=settings.sample, seed=settings.seed,
                start=settings.start, stop=settings.stop,
            )
        )  # fmt: skip
    elif not labels.exists() and len(record) == 0:
        raise LabelsError(
            f"{labels}: no such file; draw windows of the store with --sample, or give labels"
        )
    bars = np.array(record.start_bar, np.int64)
    suggestions = list(record.original)
    uncertainty: Float64 | None = None
    if settings.run is not None:
        guesses = guess(settings.run, store, bars, settings.classes)
        uncertainty = guesses.uncertainty
        suggestions = _filled(suggestions, guesses.marks)
    queue = queue_rows(
        bars, order=settings.order, seed=settings.seed, bounds=(first, stop),
        uncertainty=uncertainty,
    )  # fmt: skip
    if len(queue) == 0:
        raise LabelsError(f"{record.path}: no windows to review there; give another period")
    pictures = Pictures(store, WINDOW_LENGTH)
    return Session(
        record, queue, settings.classes, pictures.of, None if settings.blind else suggestions
    )


def _filled(labels: list[Mark], guesses: list[Mark]) -> list[Mark]:
    """Suggest what labels say, and what the model says where they say nothing."""
    return [
        label if label.says_something else made for label, made in zip(labels, guesses, strict=True)
    ]
