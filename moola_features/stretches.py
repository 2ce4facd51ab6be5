"""A series in stretches that can be computed at once, and still come out as in one pass.

The mean range and the zigzag are recurrences, so what a stretch starts from is known only when the
one before it is done. A stretch does not wait: it starts from a guess, made of some bars before it,
and its guess is then compared, bit for bit, with what the stretch before ended in. Where they
differ it is computed again from the truth. A guess that is right saves time; one that is wrong
costs time; neither changes a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moola_features.bars import Bars
from moola_features.config import FeatureConfig
from moola_features.feature_pass import FeaturePass, history_depth
from moola_features.segments import segment_starts

# The mean range forgets what it started from, to the last bit, in about 24 of its periods (480
# bars at a period of 20), and the zigzag in most cases sooner.
_WARMUP_PERIODS = 30


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some bars of a series with all that computing them takes, but the state before them.

    Attributes
    ----------
    first_bar
        Position of the first bar in its series.
    bars
        The bars, n of them.
    starts
        int64, ascending: positions among them at which a segment begins.
    previous_time
        Time of the bar before them in ns; None where there is none.
    before
        Bars of their segment before them, to guess the state from; None where nothing is to be
        guessed, or too few are at hand.
    age
        Bars of the segment before ``before``.
    """

    first_bar: int
    bars: Bars
    starts: NDArray[np.int64]
    previous_time: int | None
    before: Bars | None
    age: int

    @property
    def is_independent(self) -> bool:
        """Whether a segment begins with the first bar, so that nothing before it matters."""
        return len(self.starts) > 0 and self.starts[0] == 0


@dataclass(frozen=True)
class Computed:
    """How a stretch was computed.

    Attributes
    ----------
    guessed
        Whether it started from a guess.
    redone
        Whether the guess was wrong.
    """

    guessed: bool
    redone: bool


class Cutter:
    """Cuts a series that comes in pieces of any length into stretches of one length.

    Parameters
    ----------
    config
        What will be computed.
    size
        Bars in a stretch.
    warmup
        Bars to guess a state from; :func:`warmup_bars` when None, 0 for no guesses.
    num_bars, segment_start, last_time
        What went before: its bars, where its last segment began, and the time of its last bar.
        The first stretch is shorter by what the series stands in the middle of one.

    Attributes
    ----------
    num_bars
        Bars of the stretches so far, and of what went before.
    """

    def __init__(
        self,
        config: FeatureConfig,
        size: int,
        *,
        warmup: int | None = None,
        num_bars: int = 0,
        segment_start: int = 0,
        last_time: int | None = None,
    ) -> None:
        self.num_bars = num_bars
        self._max_gap_ns = config.max_gap_ns
        self._size = size
        self._warmup = warmup_bars(config, size) if warmup is None else warmup
        self._segment_start = segment_start
        self._last_time = last_time
        self._tail: Bars | None = None
        self._pieces: list[Bars] = []
        self._num_pending = 0

    def add(self, bars: Bars) -> Iterator[Stretch]:
        """Take the next bars; yield every stretch that is full."""
        done = 0
        while done < len(bars):
            room = self._size - self.num_bars % self._size - self._num_pending
            piece = bars[done : done + room]
            self._pieces.append(piece)
            self._num_pending += len(piece)
            done += len(piece)
            if len(piece) == room:
                yield self._cut()

    def finish(self) -> Iterator[Stretch]:
        """Yield what is left, if anything is."""
        if self._pieces:
            yield self._cut()

    def _cut(self) -> Stretch:
        bars = join(self._pieces)
        self._pieces, self._num_pending = [], 0
        starts = segment_starts(bars.time, self._max_gap_ns, self._last_time)
        before = self._before(starts)
        age = 0 if before is None else self.num_bars - len(before) - self._segment_start
        stretch = Stretch(self.num_bars, bars, starts, self._last_time, before, age)
        if len(starts):
            self._segment_start = self.num_bars + int(starts[-1])
        self.num_bars += len(bars)
        self._last_time = int(bars.time[-1])
        self._tail = bars[max(0, len(bars) - self._warmup) :] if self._warmup else None
        return stretch

    def _before(self, starts: NDArray[np.int64]) -> Bars | None:
        if self._tail is None or (len(starts) and starts[0] == 0):
            return None
        in_segment = self.num_bars - self._segment_start
        if len(self._tail) < min(self._warmup, in_segment):
            return None
        return self._tail[max(0, len(self._tail) - in_segment) :]


def warmup_bars(config: FeatureConfig, size: int) -> int:
    """Bars before a stretch that tell its state in nearly every case.

    Parameters
    ----------
    config
        What is computed.
    size
        Bars in a stretch.

    Returns
    -------
    int
        0 where so many are needed that guessing would not pay.

    Examples
    --------
    >>> warmup_bars(FeatureConfig(), 65_536)
    610
    >>> warmup_bars(FeatureConfig(range_period=5_000), 65_536)
    0
    """
    num_bars = history_depth(config)
    if config.family == "relativity":
        num_bars += _WARMUP_PERIODS * config.range_period
    return num_bars if num_bars <= size // 4 else 0


def run_stretch(
    config: FeatureConfig,
    stretch: Stretch,
    start: Future[bytes],
    end: Future[bytes],
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> Computed:
    """Compute a stretch as if the whole series had been computed in one pass.

    Parameters
    ----------
    config
        What to compute.
    stretch
        The bars.
    start
        Gets the state before them at some time; what is computed meanwhile starts from a guess.
    end
        Is given the state after them, or the error that kept it away.
    values, valid
        float32 ``[n, F]`` and bool ``[n]``: get the features and the validity.
    """
    try:
        carried = FeaturePass(config)
        guess = truth = None
        if not stretch.is_independent:
            if not start.done() and stretch.before is not None:
                guess = guess_state(config, stretch.before, stretch.age)
                carried.thaw(guess)
                _run(carried, stretch, values, valid)
            truth = start.result()
        if truth is not None and guess != truth:
            carried.thaw(truth)
        if guess is None or guess != truth:
            _run(carried, stretch, values, valid)
        end.set_result(carried.freeze())
    except BaseException as error:
        end.set_exception(error)
        raise
    return Computed(guessed=guess is not None, redone=guess not in (None, truth))


def guess_state(config: FeatureConfig, before: Bars, age: int) -> bytes:
    """Guess the state behind some bars of a segment that has ``age`` more before them."""
    carried = FeaturePass(config)
    _warm_up(carried, before, age)
    return carried.freeze()


def join(pieces: list[Bars]) -> Bars:
    """Put bars behind each other; a single piece is not copied."""
    if len(pieces) == 1:
        return pieces[0]
    time, open, high, low, close = (
        np.concatenate(parts) for parts in zip(*(piece.arrays for piece in pieces), strict=True)
    )
    return Bars.trusted((time, open, high, low, close))


def _run(
    carried: FeaturePass,
    stretch: Stretch,
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> None:
    bars = stretch.bars
    carried.run(bars.open, bars.high, bars.low, bars.close, stretch.starts, values, valid)


def _warm_up(carried: FeaturePass, before: Bars, age: int) -> None:
    """Compute the bars before as a segment of their own, and then let that be older."""
    num_bars = len(before)
    values = np.empty((num_bars, carried.num_columns), np.float32)
    valid = np.empty(num_bars, np.bool_)
    first = np.zeros(1, np.int64)
    carried.run(before.open, before.high, before.low, before.close, first, values, valid)
    carried.age(age)
