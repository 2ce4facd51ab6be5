"""Augmentations of training windows, each with a probability of its own.

They act on a batch on its device and draw from PyTorch's generator, which the loop seeds at every
step. Where bars move, the expansion moves along, and its targets are made anew. Validation never
passes through here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from moola_features.spec import Column
from moola_train.config import AugmentConfig
from moola_train.errors import ConfigError
from moola_train.mirror import MirrorImage
from moola_train.moved import with_edges
from moola_train.running_sum import running_sum
from moola_train.shift import shifted

JITTER = 0.03  # of a feature's spread within the window
WARP_KNOTS = 4
WARP_SPREAD = 0.2
WINDOW_SHARE = 0.1  # of the window, stretched or squeezed
WINDOW_SCALES = (0.5, 2.0)
MIXUP_ALPHA = 0.2

Batch = dict[str, Tensor]

# What may be in a batch whose bars move or are turned: it stays true, or is made anew.
_MOVABLE = {"features", "index", "type", "start", "end", "pointers", "span", "countdown"}


class Augment:
    """Applies each augmentation to each window with its probability.

    Parameters
    ----------
    config
        Probabilities; 0 leaves an augmentation out, and a batch passes through untouched where
        all are 0.
    columns
        Of the features, in their order; the mirror needs them.

    Raises
    ------
    ConfigError
        A mirror for columns that are not known.
    """

    def __init__(self, config: AugmentConfig, columns: Sequence[Column] = ()) -> None:
        self._config = config
        self._mirror = MirrorImage(columns) if config.mirror > 0 else None

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch of the same shapes; the one given is not changed."""
        config = self._config
        if config.shift > 0:
            batch = shifted(batch, config.shift)
        if self._mirror is not None:
            _require_movable(batch, "mirror")
        for probability, change in (
            (config.mirror, self._mirror),
            (config.jitter, jitter),
            (config.magnitude_warp, magnitude_warp),
        ):
            if probability > 0 and change is not None:
                features = batch["features"]
                chosen = _chosen(features, probability)
                batch = {**batch, "features": torch.where(chosen, change(features), features)}
        for name, probability, draw in (
            ("window_warp", config.window_warp, window_warp),
            ("time_warp", config.time_warp, time_warp),
        ):
            if probability > 0:
                _require_movable(batch, name)
                places = draw(batch["features"])
                still = torch.arange(len(places), device=places.device, dtype=places.dtype)
                chosen = _chosen(batch["features"], probability).squeeze(2)
                batch = resample(batch, torch.where(chosen, places, still.unsqueeze(1)))
        return mixup(batch, config.mixup) if config.mixup > 0 else batch


def _chosen(features: Tensor, probability: float) -> Tensor:
    """Which windows to change, bool [1, B, 1]."""
    return torch.rand(1, features.shape[1], 1, device=features.device) < probability


def jitter(features: Tensor) -> Tensor:
    """Add noise of 0.03 of each feature's spread within the window; ``[T, B, F]``."""
    spread = features.std(dim=0, keepdim=True, unbiased=False)
    return features + JITTER * spread * torch.randn_like(features)


def magnitude_warp(features: Tensor) -> Tensor:
    """Multiply by a smooth curve around 1, one for each window and feature; ``[T, B, F]``.

    Um et al., Data Augmentation of Wearable Sensor Data, ICMI 2017; a piecewise linear curve
    through 4 knots with spread 0.2.
    """
    _, num_windows, num_features = features.shape
    knots = 1 + WARP_SPREAD * torch.randn(
        num_features, num_windows, WARP_KNOTS, device=features.device
    )
    return features * _curve(knots, features.shape[0]).permute(2, 1, 0)


def window_warp(features: Tensor) -> Tensor:
    """Places to read at so that a tenth of the window is stretched or squeezed; ``[T, B]``.

    Le Guennec, Malinowski and Tavenard, Data Augmentation for Time Series Classification using
    Convolutional Neural Networks, 2016. A bar moves by at most a tenth of the window; a random
    tenth is chosen for each window.
    """
    length, num_windows, _ = features.shape
    device = features.device
    size = max(2, round(WINDOW_SHARE * length))
    first = torch.rand(num_windows, device=device) * (length - size)
    low, high = WINDOW_SCALES
    scale = torch.where(torch.rand(num_windows, device=device) < 0.5, low, high)
    ticks = torch.arange(length, device=device).unsqueeze(1)  # [T, 1]
    pace = torch.where((ticks >= first) & (ticks < first + size), 1 / scale, 1.0)  # [T, B]
    return _places(pace)


def time_warp(features: Tensor) -> Tensor:
    """Places to read at so that time runs along a smooth curve; ``[T, B]``. Um et al., 2017."""
    knots = 1 + WARP_SPREAD * torch.randn(1, features.shape[1], WARP_KNOTS, device=features.device)
    return _places(_curve(knots, features.shape[0])[0].T.clamp(min=0.1))


def resample(batch: Batch, places: Tensor) -> Batch:
    """Read windows at other places, and move their expansions along.

    Parameters
    ----------
    batch
        ``features`` ``[T, B, F]``; ``start`` and ``end`` with the targets that follow from them.
    places
        float ``[T, B]``: for each new bar where to read, from 0 to T - 1, never falling.

    Returns
    -------
    dict of Tensor
        Features between two bars by linear interpolation. An edge goes to the new bar that is
        read nearest to it; targets of windows whose edges stay are left as they are.

    Examples
    --------
    >>> batch = {"features": torch.arange(4.0).view(4, 1, 1)}
    >>> batch |= {"start": torch.tensor([1]), "end": torch.tensor([2])}
    >>> moved = resample(batch, torch.tensor([[0.0], [0.5], [1.0], [3.0]]))
    >>> moved["features"].flatten().tolist(), moved["start"].tolist(), moved["end"].tolist()
    ([0.0, 0.5, 1.0, 3.0], [2], [2])
    """
    features = batch["features"]
    length = features.shape[0]
    before = places.floor().clamp(0, length - 2).long()  # [T, B]
    share = (places - before).unsqueeze(2)
    index = before.unsqueeze(2).expand(-1, -1, features.shape[2])
    read = features.gather(0, index) * (1 - share) + features.gather(0, index + 1) * share
    batch = {**batch, "features": read}
    return _moved(batch, places) if "start" in batch else batch


def _moved(batch: Batch, places: Tensor) -> Batch:
    """Edges at the new bars that are read nearest to them."""
    edges = []
    for name in ("start", "end"):
        nearest = (places - batch[name]).abs().argmin(dim=0)  # [B]
        edges.append(torch.where(batch[name] >= 0, nearest, batch[name]))
    return with_edges(batch, *edges)


def _require_movable(batch: Batch, name: str) -> None:
    fixed = sorted(set(batch) - _MOVABLE)
    if fixed:
        raise ConfigError(
            f"augment.{name} moves or turns bars, and {fixed[0]!r} of a batch cannot follow; set "
            f"augment.{name} = 0"
        )


def mixup(batch: Batch, probability: float) -> Batch:
    """Mix the features of windows with those of others and keep the nearer one's targets.

    Zhang et al., mixup, ICLR 2018, with the share of the window itself folded to at least a half:
    pointers of two windows have no mean that is a pointer, so targets are not mixed.
    """
    features = batch["features"]
    num_windows = features.shape[1]
    alpha = torch.full((num_windows,), MIXUP_ALPHA, device=features.device)
    # Checking its arguments, the distribution would wait for the device.
    beta = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
    own = torch.maximum(beta, 1 - beta).view(1, -1, 1)
    other = features[:, torch.randperm(num_windows, device=features.device)]
    mixed = own * features + (1 - own) * other
    return {**batch, "features": torch.where(_chosen(features, probability), mixed, features)}


def _curve(knots: Tensor, length: int) -> Tensor:
    """Piecewise linear through knots: ``[F, B, K]`` to ``[F, B, T]``."""
    return functional.interpolate(knots, size=length, mode="linear", align_corners=True)


def _places(pace: Tensor) -> Tensor:
    """Places that advance by a pace ``[T, B]`` above 0, from the first bar to the last."""
    place = running_sum(pace, dim=0) - pace[:1]
    return place * (len(pace) - 1) / place[-1:]
