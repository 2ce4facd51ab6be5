"""One bar at a time, live: the same kernel as a build, the same bits."""

from __future__ import annotations

import operator
from math import fabs, inf
from numbers import Real
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from moola_features.bars.checks import MAX_PRICE, MISSING_TIME
from moola_features.config import FeatureConfig
from moola_features.errors import StreamError
from moola_features.feature_pass import FeaturePass, kernel_of
from moola_features.times import time_text

STATE_VERSION = 1
_LAST_TIME = 2**63 - 1  # int64


class Stream:
    """Features of bars as they close.

    Parameters
    ----------
    config
        What to compute; the standard profile when None.

    Attributes
    ----------
    config
        The configuration.
    valid
        Whether the last bar's features are valid.
    num_bars
        Bars seen, over all segments.

    Examples
    --------
    >>> import json
    >>> import moola_features as mf
    >>> stream = mf.Stream()
    >>> x = stream.update(0, 10.0, 12.0, 9.0, 11.0)
    >>> x.dtype, x.shape, stream.valid
    (dtype('float32'), (11,), False)
    >>> again = mf.Stream.from_state(json.loads(json.dumps(stream.state())))
    >>> again.num_bars
    1
    """

    def __init__(self, config: FeatureConfig | None = None) -> None:
        self.config = FeatureConfig.or_standard(config)
        self.valid = False
        self.num_bars = 0
        self._last_time: int | None = None
        self._take_on(FeaturePass(self.config))

    def _take_on(self, carried: FeaturePass) -> None:
        self._pass = carried
        self._prices = np.zeros((4, 1))
        # Read-only, as the kernel's signature says: nothing checks it at every bar.
        columns = [self._prices[j] for j in range(4)]
        for column in columns:
            column.flags.writeable = False
        self._columns = columns
        self._here = np.zeros(1, np.int64)
        self._nowhere = np.zeros(0, np.int64)
        for starts in (self._here, self._nowhere):
            starts.flags.writeable = False
        self._valid = np.zeros(1, np.bool_)
        self._shape = (1, carried.num_columns)
        self._max_gap_ns = self.config.max_gap_ns
        self._floor = 0.0 if self.config.family == "returns" else -inf  # of every price
        self._rest = (carried.parameters, carried.carried, carried.history)
        self._kernel = kernel_of(self.config).load_unchecked()

    def update(
        self, time: int, open_: float, high: float, low: float, close: float
    ) -> NDArray[np.float32]:
        """Take one closed bar and return its features.

        Parameters
        ----------
        time
            Start of the bar, ns since 1970 UTC; after the last bar's.
        open_, high, low, close
            Its prices.

        Returns
        -------
        ndarray
            float32 ``[F]``, the caller's to keep.

        Raises
        ------
        StreamError
            A bar that contradicts itself, is not after the last one, or is not of numbers. The
            stream stays as it was before, and goes on with the next good bar.
        """
        try:
            now = operator.index(time)
            good = (
                low <= open_ <= high
                and low <= close <= high
                and self._floor < low
                and fabs(low) <= MAX_PRICE  # NumPy's own comparison fails for its short floats
                and fabs(high) <= MAX_PRICE
                and MISSING_TIME < now <= _LAST_TIME
            )
        except TypeError:
            good = False
        if not good:
            self._refuse(time, open_, high, low, close)
        last = self._last_time
        starts = self._nowhere
        if last is None:
            starts = self._here
        elif now <= last:
            raise StreamError(
                f"bar {time_text(now)} is not after the last one, {time_text(last)}; "
                "leave out bars that were given before"
            )
        elif self._max_gap_ns is not None and now - last > self._max_gap_ns:
            starts = self._here
        prices = self._prices
        prices[0, 0] = open_
        prices[1, 0] = high
        prices[2, 0] = low
        prices[3, 0] = close
        values = np.empty(self._shape, np.float32)
        self._kernel(*self._columns, starts, *self._rest, values, self._valid)
        self._last_time = now
        self.num_bars += 1
        self.valid = bool(self._valid[0])
        row: NDArray[np.float32] = values[0]
        return row

    def state(self) -> dict[str, Any]:
        """Return everything the next update depends on, as plain JSON types.

        Returns
        -------
        dict
            Survives ``json.dumps`` and ``json.loads`` without changing a bit.
        """
        return saved_state(
            self.config, self._pass,
            num_bars=self.num_bars, last_time=self._last_time, valid=self.valid,
        )  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Make a stream that goes on where another stopped.

        Parameters
        ----------
        state
            What :meth:`state` returned.

        Raises
        ------
        StreamError
            Something else, or the state of another version.
        """
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            found = state.get("version") if isinstance(state, dict) else type(state).__name__
            raise StreamError(
                f"state has version {found!r}, this moola reads {STATE_VERSION}; pass what "
                "Stream.state() returned, whole"
            )
        try:
            config = FeatureConfig.from_dict(state["config"])
            last_time = state["last_time"]
            made = cls(config)
            made._take_on(FeaturePass.from_state(config, state["pass"]))
            made.num_bars = operator.index(state["num_bars"])
            made.valid = bool(state["valid"])
            made._last_time = None if last_time is None else int(last_time)
            if made.num_bars < int(made._pass.carried["index"][0]) or (
                (made._last_time is None) != (made.num_bars == 0)
            ):
                raise StreamError(
                    f"state has {made.num_bars} bars and the last time {last_time!r}; pass what "
                    "Stream.state() returned, whole"
                )
        except StreamError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StreamError(
                f"state cannot be read: {error!r}; pass what Stream.state() returned, whole"
            ) from error
        return made

    def _refuse(self, time: Any, open_: Any, high: Any, low: Any, close: Any) -> NoReturn:
        whole = isinstance(time, int | np.integer)
        if not whole or not MISSING_TIME < int(time) <= _LAST_TIME:
            raise StreamError(f"time is {time!r}; give whole nanoseconds since 1970 UTC")
        reason = "must be finite, with the high at the top and the low at the bottom"
        if self._floor == 0.0 and isinstance(low, Real) and low <= 0:
            reason = "needs prices above 0 for family 'returns'"
        raise StreamError(
            f"bar {time_text(int(time))}: open {open_}, high {high}, low {low}, close {close} "
            f"{reason}; leave it out, or mend it"
        )


def saved_state(
    config: FeatureConfig,
    carried: FeaturePass,
    *,
    num_bars: int,
    last_time: int | None,
    valid: bool,
) -> dict[str, Any]:
    """Everything that the next bar depends on; a store keeps it, so a stream can go on from one."""
    return {
        "version": STATE_VERSION,
        "config": config.to_dict(),
        "num_bars": num_bars,
        "last_time": last_time,
        "valid": valid,
        "pass": carried.state(),
    }
