"""Windows that begin a little earlier or later: bars around a labelled window are bars too.

The loader hands out windows with room on both sides; which stretch of them a step sees is drawn
anew every time. An expansion keeps its bars, so its positions move against the shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moola_features.store import Store
from moola_features.windows import Windows
from moola_train.errors import ConfigError
from moola_train.moved import with_edges
from moola_train.targets import Int64

ORIGIN, LOW, HIGH = SHIFT_KEYS = ("shift_origin", "shift_low", "shift_high")


def with_room(
    store: Store, begin: Int64, start: Int64, end: Int64, *, length: int, reach: int
) -> tuple[Windows, dict[str, NDArray[Any]]]:
    """Give windows of a training part room to be shifted in.

    Parameters
    ----------
    store
        Where they stand.
    begin
        int64 ``[N]``: first bar of each window.
    start, end
        int64 ``[N]``: first and last bar of the expansion, counted in the window; -1 for none.
    length
        Bars in a window, K.
    reach
        Bars that a window may begin earlier or later at most, R.

    Returns
    -------
    windows
        N windows of K + 2 R bars.
    bounds
        int64 ``[N]`` each: ``shift_origin``, where in these the labelled window begins, and
        ``shift_low`` and ``shift_high``, from where to where it may be shifted. A shifted window
        lies between the first and the last window of the part, so that no purge is undone; it has
        valid bars of one segment; and its expansion stays where expansions of the part lie. A
        window without an expansion stays where it is: a few bars on there might be one.

    Raises
    ------
    ConfigError
        A store that is shorter than such a window.
    """
    size = length + 2 * reach
    if size > store.num_bars:
        raise ConfigError(
            f"augment.shift is {reach}, but {store.path} has {store.num_bars} bars, fewer than "
            f"{length} + 2 x {reach}; make it smaller"
        )
    first = np.clip(begin - reach, 0, store.num_bars - size)
    valid_from, stop = _stretches(store, begin)
    low = np.maximum.reduce([np.full_like(begin, -reach), begin.min() - begin, valid_from - begin])
    high = np.minimum.reduce(
        [np.full_like(begin, reach), begin.max() - begin, stop - length - begin]
    )
    expands = start >= 0
    if expands.any():
        earliest, latest = start[expands].min(), start[expands].max()
        low = np.maximum.reduce([low, start - latest, end - end.max()])
        high = np.minimum(high, start - earliest)
    bounds = {
        ORIGIN: begin - first,
        LOW: np.where(expands, low, 0),
        HIGH: np.where(expands, high, 0),
    }
    return Windows(store.features, first, size), bounds


def _stretches(store: Store, bars: Int64) -> tuple[Int64, Int64]:
    """First valid bar, and the bar behind the last, of the segment around each bar."""
    segments = store.segments
    own = np.searchsorted(segments[:, 0], bars, side="right") - 1
    used, place = np.unique(own, return_inverse=True)
    # Within a segment validity never ends once it has begun.
    begun = [start + int(np.argmax(store.valid[start:stop])) for start, stop in segments[used]]
    return np.array(begun, np.int64)[place], segments[own, 1]


def as_labelled(batch: Mapping[str, Tensor], reach: int) -> dict[str, Tensor]:
    """Windows as they were labelled, without their room; a batch that has none as it is."""
    return _cut(batch, reach, torch.zeros_like(batch[ORIGIN])) if ORIGIN in batch else dict(batch)


def shifted(batch: Mapping[str, Tensor], reach: int) -> dict[str, Tensor]:
    """Draw how far to shift each window, all distances alike, and cut it out.

    Raises
    ------
    ConfigError
        A batch of windows without room.
    """
    if ORIGIN not in batch:
        raise ConfigError(
            f"augment.shift is {reach}, but only labelled windows of a store have bars around "
            "them; set augment.shift = 0"
        )
    low, high = batch[LOW], batch[HIGH]
    share = torch.rand(len(low), device=low.device, dtype=torch.float64)
    drawn = low + (share * (high - low + 1)).long()
    return _cut(batch, reach, drawn.minimum(high))


def _cut(batch: Mapping[str, Tensor], reach: int, shift: Tensor) -> dict[str, Tensor]:
    features = batch["features"]  # [T + 2R, B, F]
    length = features.shape[0] - 2 * reach
    begin = batch[ORIGIN] + shift  # [B]
    bars = begin + torch.arange(length, device=features.device).unsqueeze(1)  # [T, B]
    cut = features.gather(0, bars.unsqueeze(2).expand(-1, -1, features.shape[2]))
    kept = {name: values for name, values in batch.items() if name not in SHIFT_KEYS}
    edges = (torch.where(batch[name] >= 0, batch[name] - shift, -1) for name in ("start", "end"))
    return with_edges({**kept, "features": cut}, *edges)
