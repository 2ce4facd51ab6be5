"""The check of a run's first batch: what is wrong with its data is said before it is learnt."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moola_train.errors import LoaderError
from moola_train.presets import ModelSettings


def check_batch(batch: Mapping[str, Tensor], settings: ModelSettings) -> None:
    """Refuse a batch that the model could not learn from; waits for the device.

    Parameters
    ----------
    batch
        ``features`` float32 ``[T, B, F]``, and of the targets those that there are. Keys that are
        not known here are passed over: they belong to an objective.
    settings
        The model's: its features, classes and window length.

    Raises
    ------
    LoaderError
        A shape, a dtype or a value that does not belong there; the message names the key.

    Examples
    --------
    >>> features = torch.zeros(105, 2, 11)
    >>> check_batch({"features": features, "type": torch.tensor([0, -1])}, ModelSettings())
    >>> check_batch({"features": features, "type": torch.tensor([0, 7])}, ModelSettings())
    Traceback (most recent call last):
        ...
    moola_train.errors.LoaderError: first batch: 'type' holds 7, it must lie in -1..2; check ...
    """
    if "features" not in batch:
        raise LoaderError(f"first batch: no 'features' among {', '.join(batch)}; check the loader")
    num_windows = batch["features"].shape[1] if batch["features"].ndim == 3 else 0
    length = settings.window_length
    per_window, per_bar = (num_windows,), (num_windows, length)
    wanted = {
        "features": ((length, num_windows, settings.num_features), torch.float32),
        "type": (per_window, torch.int64),
        "start": (per_window, torch.int64),
        "end": (per_window, torch.int64),
        "index": (per_window, torch.int64),
        "pointers": ((num_windows, 2), torch.float32),
        "span": (per_bar, torch.float32),
        "countdown": (per_bar, torch.float32),
    }
    ranges = {
        "type": (-1, settings.num_classes - 1),
        "start": (-1, length - 1),
        "end": (-1, length - 1),
        "pointers": (0, 1),
        "span": (0, 1),
        "countdown": (0, 1),
    }
    for name, (shape, dtype) in wanted.items():
        if name in batch:
            _require_form(name, batch[name], shape, dtype)
    _require_finite(batch["features"])
    for name, (low, high) in ranges.items():
        if name in batch:
            _require_range(name, batch[name], low, high)
    if "start" in batch and "end" in batch:
        _require_spans(batch["start"], batch["end"])


def _require_form(name: str, values: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(values.shape) != shape:
        raise LoaderError(
            f"first batch: {name!r} has shape {list(values.shape)}, not {list(shape)}; "
            "check the model's settings against the windows"
        )
    if values.dtype != dtype:
        raise LoaderError(
            f"first batch: {name!r} is {values.dtype}, not {dtype}; check the loader's arrays"
        )


def _require_finite(features: Tensor) -> None:
    bad = (~features.isfinite()).nonzero()
    if len(bad):
        bar, window, column = bad[0].tolist()
        value = features[bar, window, column].item()
        raise LoaderError(
            f"first batch: 'features' holds {value} at bar {bar} of window {window}, column "
            f"{column}; take only windows of valid bars"
        )


def _require_range(name: str, values: Tensor, low: float, high: float) -> None:
    # NaN stands for unknown and compares false on both sides.
    bad = values[(values < low) | (values > high)]
    if len(bad):
        raise LoaderError(
            f"first batch: {name!r} holds {bad[0].item():g}, it must lie in {low}..{high}; check "
            "the labels"
        )


def _require_spans(start: Tensor, end: Tensor) -> None:
    # Of a window without an expansion both are -1.
    bad = ((start > end) | ((start < 0) != (end < 0))).nonzero()
    if len(bad):
        window = bad[0].item()
        first, last = start[bad[0]].item(), end[bad[0]].item()
        raise LoaderError(
            f"first batch: 'start' {first} and 'end' {last} of window {window} are no span; check "
            "the labels"
        )
