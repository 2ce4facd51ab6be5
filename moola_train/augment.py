"""Augmentations of training windows, each with a probability of its own.

They act on a batch on its device and draw from PyTorch's generator, which the loop seeds at every
step. Targets move along where a window's content does. Validation never passes through here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moola_train.config import AugmentConfig

JITTER = 0.03  # of a feature's spread within the window
WARP_KNOTS = 4
WARP_SPREAD = 0.2
WINDOW_SHARE = 0.1  # of the window, stretched or squeezed
WINDOW_SCALES = (0.5, 2.0)
MIXUP_ALPHA = 0.2

Batch = dict[str, Tensor]


class Augment:
    """Applies each augmentation to each window with its probability.

    Parameters
    ----------
    config
        Probabilities; 0 leaves an augmentation out, and a batch passes through untouched where
        all are 0.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self._config = config

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch of the same shapes; the one given is not changed."""
        config = self._config
        features = batch["features"]
        for probability, change in (
            (config.jitter, jitter),
            (config.magnitude_warp, magnitude_warp),
            (config.window_warp, window_warp),
            (config.time_warp, time_warp),
        ):
            if probability > 0:
                features = torch.where(_chosen(features, probability), change(features), features)
        batch = {**batch, "features": features}
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
    """Stretch or squeeze a tenth of the window and resample the rest; ``[T, B, F]``.

    Le Guennec, Malinowski and Tavenard, 2016. A bar moves by at most a tenth of the window; a
    random tenth is chosen for each window.
    """
    length, num_windows, _ = features.shape
    device = features.device
    size = max(2, round(WINDOW_SHARE * length))
    first = torch.rand(num_windows, device=device) * (length - size)
    low, high = WINDOW_SCALES
    scale = torch.where(torch.rand(num_windows, device=device) < 0.5, low, high)
    ticks = torch.arange(length, device=device).unsqueeze(1)  # [T, 1]
    pace = torch.where((ticks >= first) & (ticks < first + size), 1 / scale, 1.0)  # [T, B]
    return _resampled(features, pace)


def time_warp(features: Tensor) -> Tensor:
    """Let time run faster and slower along a smooth curve; ``[T, B, F]``. Um et al., 2017."""
    knots = 1 + WARP_SPREAD * torch.randn(1, features.shape[1], WARP_KNOTS, device=features.device)
    return _resampled(features, _curve(knots, features.shape[0])[0].T.clamp(min=0.1))


def mixup(batch: Batch, probability: float) -> Batch:
    """Mix the features of windows with those of others and keep the nearer one's targets.

    Zhang et al., mixup, ICLR 2018, with the share of the window itself folded to at least a half:
    pointers of two windows have no mean that is a pointer, so targets are not mixed.
    """
    features = batch["features"]
    num_windows = features.shape[1]
    beta = torch.distributions.Beta(MIXUP_ALPHA, MIXUP_ALPHA).sample((num_windows,))
    own = torch.maximum(beta, 1 - beta).to(features).view(1, -1, 1)
    other = features[:, torch.randperm(num_windows, device=features.device)]
    mixed = own * features + (1 - own) * other
    return {**batch, "features": torch.where(_chosen(features, probability), mixed, features)}


def _curve(knots: Tensor, length: int) -> Tensor:
    """Piecewise linear through knots: ``[F, B, K]`` to ``[F, B, T]``."""
    return functional.interpolate(knots, size=length, mode="linear", align_corners=True)


def _resampled(features: Tensor, pace: Tensor) -> Tensor:
    """Read the features at places that advance by a pace ``[T, B]``, from first bar to last."""
    length = features.shape[0]
    place = torch.cumsum(pace, dim=0) - pace[:1]
    place = place * (length - 1) / place[-1:].clamp(min=1e-6)
    before = place.floor().clamp(0, length - 2).long()  # [T, B]
    share = (place - before).unsqueeze(2)
    index = before.unsqueeze(2).expand(-1, -1, features.shape[2])
    return features.gather(0, index) * (1 - share) + features.gather(0, index + 1) * share
