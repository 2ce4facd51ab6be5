"""Bars in memory to features in memory; the same pass that a build makes chunk by chunk."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_features.bars import Bars
from moola_features.bars.checks import MAX_PRICE
from moola_features.config import FeatureConfig
from moola_features.errors import BarsError, ConfigError
from moola_features.feature_pass import FeaturePass, history_depth
from moola_features.segments import segment_bounds, segment_starts
from moola_features.stretches import Computed, Cutter, run_stretch
from moola_features.times import time_text

# Of a thread at a time. Where two stretches meet, two threads touch the same huge page, and the
# system fills it twice: a quarter of this made two threads slower than one, on fresh pages.
STRETCH_BARS = 262_144
MAX_WORKERS = 1_024  # threads; of many more the system refuses to start some


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a run of bars.

    Attributes
    ----------
    values
        float32 ``[T, F]``, C-contiguous, one row a bar.
    valid
        bool ``[T]``: every look-back full and, for ``relativity``, both swings known.
    names
        Names of the F columns.
    segments
        int64 ``[S, 2]``: [start, stop) of each segment.
    """

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    names: tuple[str, ...]
    segments: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Swings:
    """Confirmed swings in the order of their confirmation.

    Attributes
    ----------
    is_high
        bool ``[S]``: a swing high, else a swing low.
    index
        int64 ``[S]``: bar of the extreme.
    confirmed_index
        int64 ``[S]``: bar at whose close the extreme was confirmed.
    price
        float64 ``[S]``: price of the extreme.
    """

    is_high: NDArray[np.bool_]
    index: NDArray[np.int64]
    confirmed_index: NDArray[np.int64]
    price: NDArray[np.float64]


def compute(
    bars: Bars, config: FeatureConfig | None = None, *, workers: int | None = 1
) -> Features:
    """Compute every feature of every bar.

    Parameters
    ----------
    bars
        The bars, T of them.
    config
        What to compute; the standard profile when None.
    workers
        Threads; one for each core when None. The bits do not depend on it.

    Returns
    -------
    Features
        float32 values ``[T, F]`` with their validity and segments.

    Raises
    ------
    BarsError
        No :class:`Bars`, or family ``returns`` with a price that is not above 0.
    ConfigError
        Less than one worker.

    Examples
    --------
    >>> import numpy as np
    >>> import moola_features as mf
    >>> price = 100 + np.sin(np.arange(300) / 5)
    >>> bars = mf.Bars(
    ...     time=np.arange(300) * 60_000_000_000,
    ...     open=price, high=price + 0.5, low=price - 0.5, close=price + 0.25,
    ... )
    >>> features = mf.compute(bars)
    >>> features.values.shape, features.names[5]
    ((300, 11), 'range_z')
    """
    _require_bars(bars)
    config = FeatureConfig.or_standard(config)
    num_workers = resolve_workers(workers)
    carried = FeaturePass(config)
    require_positive(bars, config)
    starts = segment_starts(bars.time, config.max_gap_ns, None)
    values = np.empty((len(bars), carried.num_columns), np.float32)
    valid = np.empty(len(bars), np.bool_)
    if num_workers == 1:
        carried.run(bars.open, bars.high, bars.low, bars.close, starts, values, valid)
    else:
        size = min(STRETCH_BARS, len(bars) // num_workers + 1)
        compute_at_once(bars, config, values, valid, workers=num_workers, size=size)
    return Features(values, valid, config.names, segment_bounds(starts, len(bars)))


def compute_at_once(
    bars: Bars,
    config: FeatureConfig,
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
    *,
    workers: int,
    size: int = STRETCH_BARS,
    warmup: int | None = None,
) -> list[Computed]:
    """Compute every bar by several threads, stretch by stretch.

    Parameters
    ----------
    bars, config
        As for :func:`compute`.
    values, valid
        float32 ``[T, F]`` and bool ``[T]``: get the features and the validity.
    workers
        Threads.
    size, warmup
        Bars in a stretch, and bars before it to guess its state from.

    Returns
    -------
    list of Computed
        How each stretch was computed.
    """
    cutter = Cutter(config, size, warmup=warmup)
    end: Future[bytes] = Future()
    end.set_result(b"")
    tasks = []
    with ThreadPoolExecutor(workers) as threads:
        for stretch in [*cutter.add(bars), *cutter.finish()]:
            rows = slice(stretch.first_bar, stretch.first_bar + len(stretch.bars))
            start, end = end, Future()
            tasks.append(
                threads.submit(run_stretch, config, stretch, start, end, values[rows], valid[rows])
            )
    return [task.result() for task in tasks]


def resolve_workers(workers: int | None, *, waiting: int = 0) -> int:
    """Return a number of threads: as asked for, or one for each core this process may use.

    ``waiting`` is how many more there are, because so many wait for the disk at a time.
    """
    if workers is None:
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        return cores + waiting
    whole = isinstance(workers, int) and not isinstance(workers, bool)
    if not whole or not 1 <= workers <= MAX_WORKERS:
        raise ConfigError(
            f"workers is {workers!r}; give a whole number from 1 to {MAX_WORKERS:,}, or leave it "
            "out"
        )
    return workers


def transform_windows(ohlc: ArrayLike, config: FeatureConfig | None = None) -> NDArray[np.float32]:
    """Compute the features of isolated windows, each from a cold start.

    Parameters
    ----------
    ohlc
        float64 ``[N, K, 4]``: open, high, low, close of N windows of K bars, where K is the
        configuration's ``window_length``.
    config
        What to compute; the standard profile when None.

    Returns
    -------
    ndarray
        float32 ``[N, K, F]``. Swing columns are 0 until the window itself has shown a swing.

    Raises
    ------
    BarsError
        Another shape, or a price that is not finite or contradicts its bar; the message names
        window, bar and value.

    Examples
    --------
    >>> import numpy as np
    >>> import moola_features as mf
    >>> mf.transform_windows(np.full((2, 105, 4), 7.0)).shape
    (2, 105, 11)
    """
    config = FeatureConfig.or_standard(config)
    prices = _checked_windows(ohlc, config)
    num_windows, length = prices.shape[:2]
    carried = FeaturePass(config)
    values = np.empty((num_windows * length, carried.num_columns), np.float32)
    valid = np.empty(num_windows * length, np.bool_)
    open_, high, low, close = (np.ascontiguousarray(prices[:, :, j].reshape(-1)) for j in range(4))
    starts = np.arange(num_windows, dtype=np.int64) * length
    carried.run(open_, high, low, close, starts, values, valid)
    return values.reshape(num_windows, length, carried.num_columns)


def swings(bars: Bars, config: FeatureConfig | None = None) -> Swings:
    """List the confirmed swings that the swing columns are made of.

    Parameters
    ----------
    bars
        The bars, T of them.
    config
        Swing rule, periods and ``max_gap``; the standard profile when None.

    Returns
    -------
    Swings
        Extremes and the bars that confirmed them, as positions in ``bars``.

    Raises
    ------
    BarsError
        No :class:`Bars`.
    """
    from moola_features.kernels.swings import swings as kernel

    _require_bars(bars)
    config = FeatureConfig.or_standard(config)
    carried = FeaturePass(config)
    starts = segment_starts(bars.time, config.max_gap_ns, None)
    depth = max(history_depth(config), config.atr_period)  # of a family that may need no ATR itself
    parts = [(np.empty(0, np.bool_), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for start, stop in segment_bounds(starts, len(bars)).tolist():
        size = stop - start
        found = (
            np.empty(size, np.bool_), np.empty(size, np.int64),
            np.empty(size, np.int64), np.empty(size, np.float64),
        )  # fmt: skip
        count = np.zeros(1, np.int64)
        kernel.load()(
            bars.high[start:stop], bars.low[start:stop], bars.close[start:stop],
            depth, carried.parameters, carried.carried, *found, count,
        )  # fmt: skip
        is_high, index, confirmed, price = (array[: count[0]] for array in found)
        parts.append((is_high, index + start, confirmed + start, price))
    return Swings(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _require_bars(bars: Any) -> None:
    if not isinstance(bars, Bars):
        raise BarsError(f"bars is a {type(bars).__name__}; give Bars, as read_bars(...) makes them")


def require_positive(bars: Bars, config: FeatureConfig, first_row: int = 0) -> None:
    """Refuse prices that have no logarithm, where logarithms are asked for."""
    if config.family != "returns" or len(bars) == 0 or bars.low.min() > 0:
        return
    row = int(np.argmax(bars.low <= 0))
    raise BarsError(
        f"row {first_row + row}, {time_text(int(bars.time[row]))}: low is {bars.low[row]:g}; "
        "family 'returns' needs prices above 0, use family 'relativity' for such bars"
    )


def _checked_windows(ohlc: ArrayLike, config: FeatureConfig) -> NDArray[np.float64]:
    try:
        prices = np.asarray(ohlc, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BarsError(f"windows are not numbers: {error}; give float64 [N, K, 4]") from error
    if prices.ndim != 3 or prices.shape[2] != 4 or prices.shape[1] != config.window_length:
        raise BarsError(
            f"windows have shape {list(prices.shape)}; give [N, {config.window_length}, 4] with "
            "open, high, low, close, or a configuration with another window_length"
        )
    open_, high, low, close = (prices[:, :, j] for j in range(4))
    checks = (
        (~(np.abs(prices) <= MAX_PRICE).all(axis=2), "is not finite or beyond 1e150"),
        (high < np.maximum(open_, close), "has a high below its open or close"),
        (low > np.minimum(open_, close), "has a low above its open or close"),
        ((low <= 0) & (config.family == "returns"), "needs prices above 0 in family 'returns'"),
    )
    for bad, what in checks:
        if bad.any():
            window, bar = np.argwhere(bad)[0].tolist()
            found = ", ".join(f"{price:g}" for price in prices[window, bar])
            raise BarsError(f"window {window}, bar {bar}: open, high, low, close = {found} {what}")
    return prices
