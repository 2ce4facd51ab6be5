"""Which windows are valid, and gathering them into one array."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moola_features.errors import WindowError, WindowIndexError
from moola_features.times import TimeLike, parse_time_ns

if TYPE_CHECKING:
    from moola_features.store import Store


_MOST_BARS = 1 << 40  # of a length or a stride, so that no sum of them leaves int64


class Windows:
    """Windows of consecutive bars in a table of features.

    Parameters
    ----------
    features
        float32 ``[T, F]``, C-contiguous.
    starts
        int64 ``[N]``: first bar of each window.
    length
        Bars in a window, K.

    Raises
    ------
    WindowError
        Features of another type or layout, or starts of windows that are not in them.

    Attributes
    ----------
    starts
        int64 ``[N]``: first bar of each window.
    length
        Bars in a window.

    Examples
    --------
    >>> table = np.arange(8, dtype=np.float32).reshape(4, 2)
    >>> windows = Windows(table, np.array([0, 1, 2]), 2)
    >>> len(windows), windows[-1].tolist()
    (3, [[4.0, 5.0], [6.0, 7.0]])
    >>> windows.gather([2, 0]).shape
    (2, 2, 2)
    """

    def __init__(
        self, features: NDArray[np.float32], starts: NDArray[np.int64], length: int
    ) -> None:
        plain = isinstance(features, np.ndarray) and features.flags.c_contiguous
        if not plain or features.dtype != np.float32 or features.ndim != 2:
            raise WindowError("features are not C-contiguous float32 [T, F]; convert them")
        starts = np.ascontiguousarray(starts, np.int64)
        if len(starts) and (starts.min() < 0 or starts.max() + length > len(features)):
            raise WindowError(
                f"starts reach from {starts.min()} to {starts.max()}; windows of {length} bars "
                f"fit into {len(features)} bars from 0 to {len(features) - length}"
            )
        self.features = features
        self.starts = starts
        self.length = length
        self._flat = features.reshape(-1)

    @classmethod
    def of(
        cls,
        store: Store,
        length: int | None,
        stride: int,
        *,
        start: TimeLike | None,
        stop: TimeLike | None,
        segment: int | None,
    ) -> Self:
        """Index the valid windows of a store; see :meth:`Store.windows`."""
        size = positive("length", store.config.window_length if length is None else length)
        step = positive("stride", stride)
        segments = chosen_segments(store.segments, segment)
        bounds = clipped_segments(segments, store.time, start, stop)
        return cls(store.features, valid_starts(store.valid, bounds, size, step), size)

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        return f"<Windows: {len(self):,} of {self.length} bars, {self.features.shape[1]} features>"

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> NDArray[np.float32]: ...
    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Return a window ``[K, F]`` as a view, or for a slice of windows a copy ``[n, K, F]``.

        Raises
        ------
        WindowIndexError
            A position outside the windows there are.
        """
        if isinstance(index, slice):
            return self.gather(np.arange(*index.indices(len(self))))
        position = position_of(index)
        num_windows = len(self.starts)
        if not -num_windows <= position < num_windows:
            raise _outside(f"window {position}", num_windows)
        start = self.starts[position]
        return self.features[start : start + self.length]

    def gather(
        self,
        rows: ArrayLike,
        out: NDArray[np.float32] | None = None,
        *,
        time_major: bool = False,
    ) -> NDArray[np.float32]:
        """Copy windows into one array.

        Parameters
        ----------
        rows
            Whole numbers ``[B]``: positions of windows, negative ones from the end.
        out
            float32 of the shape below, C-contiguous: filled and returned; a new array when None.
        time_major
            Bars first, as recurrent networks read them.

        Returns
        -------
        ndarray
            float32 ``[B, K, F]``, with ``time_major`` ``[K, B, F]``; C-contiguous.

        Raises
        ------
        WindowIndexError
            A row outside the windows there are.
        WindowError
            Rows that are no whole numbers, or an ``out`` of another shape, type or layout.
        """
        from moola_features.kernels.gather import gather, gather_time_major

        positions = checked_rows(rows, len(self.starts))
        count, width = len(positions), self.features.shape[1]
        if time_major:
            out = checked_out(out, (self.length, count, width))
            flat = out.reshape(self.length, count * width)
            gather_time_major.load()(self._flat, self.starts[positions] * width, width, flat)
            return out
        out = checked_out(out, (count, self.length, width))
        size = self.length * width
        gather.load()(
            self._flat, self.starts, positions, np.arange(count), size, width,
            out.reshape(count, size),
        )  # fmt: skip
        return out


def position_of(index: Any) -> int:
    """Return the position of a window, which may not be there, or refuse what is none."""
    try:
        return operator.index(index)
    except TypeError:
        raise WindowIndexError(
            f"windows are indexed by whole numbers and slices, not {type(index).__name__}; "
            "use gather(rows) for a list of rows"
        ) from None


def checked_rows(rows: ArrayLike, num_windows: int) -> NDArray[np.int64]:
    """Return positions of windows as contiguous int64 ``[B]``, or refuse them.

    See :meth:`Windows.gather`.
    """
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise WindowError(f"rows are no array: {error}; give whole numbers, [B]") from error
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise WindowError(f"rows are {array.dtype} {list(array.shape)}; give whole numbers, [B]")
    if array.size and (int(array.min()) < -num_windows or int(array.max()) >= num_windows):
        outside = (array < -num_windows) | (array >= num_windows)
        worst = int(np.argmax(outside))
        raise _outside(f"rows[{worst}] = {array[worst]}", num_windows)
    return np.ascontiguousarray(array, np.int64)


def checked_out(
    out: NDArray[np.float32] | None, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return a buffer for windows, or refuse the one that is given; see :meth:`Windows.gather`."""
    if out is None:
        return np.empty(shape, np.float32)
    if (
        not isinstance(out, np.ndarray)
        or out.shape != shape
        or out.dtype != np.float32
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        found = (
            f"{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        )
        raise WindowError(f"out is {found}; give writable, C-contiguous float32 {list(shape)}")
    return out


def valid_starts(
    valid: NDArray[np.bool_], bounds: NDArray[np.int64], length: int, stride: int
) -> NDArray[np.int64]:
    """First bars of the windows that lie within one of the bounds and have only valid bars.

    Parameters
    ----------
    valid
        bool ``[T]``.
    bounds
        int64 ``[S, 2]``: [start, stop) of the stretches that a window may not cross.
    length, stride
        Bars in a window, and from one start to the next within a stretch.

    Returns
    -------
    ndarray
        int64, ascending.

    Examples
    --------
    >>> valid_starts(np.array([False, True, True, True]), np.array([[0, 4]]), 2, 1).tolist()
    [1, 2]
    """
    parts = [
        first + stride * np.arange(count, dtype=np.int64)
        for first, count in valid_runs(valid, bounds, length, stride)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def valid_runs(
    valid: NDArray[np.bool_], bounds: NDArray[np.int64], length: int, stride: int
) -> list[tuple[int, int]]:
    """First bar and number of the windows in each stretch; arguments as for :func:`valid_starts`.

    Examples
    --------
    >>> valid_runs(np.array([False, True, True, True]), np.array([[0, 4]]), 2, 1)
    [(1, 2)]
    """
    runs = []
    for start, stop in bounds.tolist():
        stretch = valid[start:stop]
        # Within a segment validity never ends once it has begun, so its first bar tells.
        begin = int(np.argmax(stretch)) if len(stretch) else 0
        count = (stop - length - start - begin) // stride + 1
        if count > 0 and stretch[begin]:
            runs.append((start + begin, count))
    return runs


def chosen_segments(segments: NDArray[np.int64], segment: int | None) -> NDArray[np.int64]:
    """Segments int64 ``[S, 2]``, or the one that is asked for; see :meth:`Store.windows`."""
    if segment is None:
        return segments
    if not isinstance(segment, int | np.integer) or not 0 <= segment < len(segments):
        raise WindowError(
            f"segment is {segment!r}, the store has {len(segments)}; give 0 to {len(segments) - 1}"
        )
    return segments[segment : segment + 1]


def clipped_segments(
    segments: NDArray[np.int64],
    time: NDArray[np.int64],
    start: TimeLike | None,
    stop: TimeLike | None,
) -> NDArray[np.int64]:
    """Segments int64 ``[S, 2]`` without their bars before ``start`` and from ``stop`` on."""
    first_bar, stop_bar = (
        edge if when is None else int(np.searchsorted(time, parse_time_ns(name, when)))
        for name, when, edge in (("start", start, 0), ("stop", stop, len(time)))
    )
    return np.clip(segments, first_bar, stop_bar)


def _outside(what: str, num_windows: int) -> WindowIndexError:
    if num_windows == 0:
        return WindowIndexError(f"{what} does not exist: there are no windows")
    return WindowIndexError(
        f"{what} is outside the {num_windows} windows there are; "
        f"give {-num_windows} to {num_windows - 1}"
    )


def positive(name: str, value: int) -> int:
    """Return a length or a stride, or refuse it."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= _MOST_BARS:
        raise WindowError(
            f"{name} is {value!r}; it must be a whole number from 1 to {_MOST_BARS:,}"
        )
    return int(value)
