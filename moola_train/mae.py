"""The masked autoencoder: what was at the steps of a window that were hidden from the encoder.

Masked steps are replaced by the model's mask vector before the encoder reads anything. A mask that
acts in the loss alone would show the encoder its answers, and the error would measure copying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from moola_features.windows import Windows
from moola_train.errors import ConfigError
from moola_train.heads import Head
from moola_train.initial import start_at
from moola_train.loaders import WindowLoader
from moola_train.losses import RECONSTRUCTION_DELTA
from moola_train.metrics import Metric
from moola_train.models import Model
from moola_train.pretrain_config import PretrainConfig

PATCH_STEPS = 7

HEAD = "reconstruction"
MEAN, INTERPOLATION = "mean_floor", "interpolation_floor"


class MaskedAutoencoder:
    """Reconstruct masked steps; a `moola_train.objectives.Objective` without labels.

    Parameters
    ----------
    columns
        Names of the features, F of them.
    means
        float ``[F]``: each column's mean over the training part, what the model starts at and
        the first of its two floors.
    masking, ratio
        How masks are drawn, see :func:`draw_mask`.
    seed
        Of the masks of validation, the same at every epoch. Those of training come from PyTorch's
        generator, which the loop seeds at every step.
    """

    model_settings: ClassVar[dict[str, Any]] = {"heads": (HEAD,), "mask_vector": True}

    def __init__(
        self, columns: tuple[str, ...], means: NDArray[np.float64], *,
        masking: str = "random", ratio: float = 0.15, seed: int = 17,
    ) -> None:  # fmt: skip
        self._columns = columns
        self._means = torch.from_numpy(means.astype(np.float32))
        self._masking = masking
        self._ratio = ratio
        self._seed = seed

    @classmethod
    def of(cls, windows: Windows, columns: tuple[str, ...], config: PretrainConfig) -> Any:
        """Make the objective for the windows of the training part."""
        return cls(
            columns, column_means(windows), masking=config.pretrain.masking,
            ratio=config.pretrain.mask_ratio, seed=config.loop.seed,
        )  # fmt: skip

    def initialise(self, model: Model) -> None:
        """Let the model start at the columns' means, so that the first loss is that floor's."""
        head = model.heads[HEAD]
        assert isinstance(head, Head)
        with torch.no_grad():
            start_at(head.output, self._means)

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Huber loss of the masked valid steps under a mask drawn anew."""
        masked = self.mask(batch)
        return model.losses(model(masked), masked)

    def mask(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return a batch with ``mask``, bool ``[T, B]``, drawn on its device."""
        features = batch["features"]
        mask = draw_mask(
            self._masking, self._ratio, features.shape[:2],
            device=features.device, generator=generator,
        )  # fmt: skip
        return {**batch, "mask": mask}

    @torch.no_grad()
    def score(self, model: Model, loader: WindowLoader) -> dict[str, Metric]:
        """Huber loss of masked valid steps, over all columns and for each, beside two floors.

        Returns
        -------
        dict of Metric
            ``loss`` and ``loss.COLUMN``, whose floor is the harder of the two; and both floors by
            themselves, ``mean_floor`` and ``interpolation_floor``, likewise for each column.
        """
        model.eval()
        generator = torch.Generator(loader.device).manual_seed(self._seed)
        means = self._means.to(loader.device)
        totals: dict[str, Tensor] = {}  # [F] each
        count = torch.zeros((), dtype=torch.int64, device=loader.device)
        for batch in loader:
            masked = self.mask(batch, generator)
            features, mask = masked["features"], masked["mask"]
            valid = masked.get("valid", torch.ones_like(mask))
            guesses = {
                "loss": model(masked)[HEAD].transpose(0, 1),
                MEAN: means.expand_as(features),
                INTERPOLATION: interpolate(features, valid & ~mask),
            }
            asked = valid & mask
            count += asked.sum()
            for name, guess in guesses.items():
                errors = functional.huber_loss(guess, features, "none", RECONSTRUCTION_DELTA)
                total = torch.where(asked.unsqueeze(2), errors, 0.0).double().sum(dim=(0, 1))
                totals[name] = totals[name] + total if name in totals else total
        return dict(self._metrics({name: (t / count).cpu().numpy() for name, t in totals.items()}))

    def _metrics(self, errors: dict[str, NDArray[np.float64]]) -> Iterator[tuple[str, Metric]]:
        places = [
            ("", slice(None)),
            *((f".{c}", slice(i, i + 1)) for i, c in enumerate(self._columns)),
        ]
        for suffix, place in places:
            found = {name: float(values[place].mean()) for name, values in errors.items()}
            floor = min(found[MEAN], found[INTERPOLATION])
            yield f"loss{suffix}", Metric(found["loss"], floor, "lower")
            for name in (MEAN, INTERPOLATION):
                yield f"{name}{suffix}", Metric(found[name], None, None)


def draw_mask(
    strategy: str,
    ratio: float,
    shape: tuple[int, ...],
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the steps of each window that are hidden.

    Parameters
    ----------
    strategy
        ``"random"``: single steps. ``"block"``: one stretch. ``"patch"``: stretches of 7 steps,
        from a grid that begins with the window.
    ratio
        Share of steps; a window's own number of steps or patches is rounded up or down at random
        so that this is what is expected, but at least one is hidden and one is not.
    shape
        T steps, B windows.
    device
        Where the mask is drawn; nothing waits for it.
    generator
        Of the same device; PyTorch's own when None.

    Returns
    -------
    Tensor
        bool ``[T, B]``, True where a step is hidden.

    Raises
    ------
    ConfigError
        Windows that are hidden whole or not at all.

    Examples
    --------
    >>> mask = draw_mask("block", 0.2, (10, 3))
    >>> mask.sum(dim=0).tolist()
    [2, 2, 2]
    """
    length, num_windows = shape
    size = PATCH_STEPS if strategy == "patch" else 1
    num_places = -(-length // size)
    if num_places < 2:
        raise ConfigError(
            f"windows of {length} steps have one place for masking {strategy!r}, and nothing in "
            "them would be seen; give longer ones, or mask otherwise"
        )
    uniform = torch.rand(num_places + 1, num_windows, device=device, generator=generator)
    draws, rounding = uniform[:-1], uniform[-1]
    counts = (ratio * num_places + rounding).floor().clamp(1, num_places - 1)  # [B]
    if strategy == "block":
        steps = torch.arange(length, device=device).unsqueeze(1)
        first = (draws[0] * (length - counts + 1)).floor()
        return (steps >= first) & (steps < first + counts)
    chosen = draws.argsort(dim=0).argsort(dim=0) < counts  # [places, B]
    return chosen.repeat_interleave(size, dim=0)[:length]


def interpolate(features: Tensor, visible: Tensor) -> Tensor:
    """Draw straight lines across what is hidden, from the last visible step to the next one.

    Parameters
    ----------
    features
        float ``[T, B, F]``.
    visible
        bool ``[T, B]``. Before the first and after the last visible step its value is held; a
        window that has none is 0.

    Returns
    -------
    Tensor
        float ``[T, B, F]``.

    Examples
    --------
    >>> features = torch.tensor([7.0, 1.0, 9.0, 9.0, 4.0]).view(5, 1, 1)
    >>> visible = torch.tensor([False, True, False, False, True]).view(5, 1)
    >>> interpolate(features, visible).flatten().tolist()
    [1.0, 1.0, 2.0, 3.0, 4.0]
    """
    length = len(features)
    steps = torch.arange(length, device=features.device).unsqueeze(1)  # [T, 1]
    before = torch.where(visible, steps, -1).cummax(dim=0).values  # [T, B]
    after = torch.where(visible, steps, length).flip(0).cummin(dim=0).values.flip(0)
    first = torch.where(before < 0, after, before).clamp(max=length - 1)
    last = torch.where(after == length, before, after).clamp(min=0)
    share = (steps - first) / (last - first).clamp(min=1)
    share = torch.where(last > first, share, 0.0).unsqueeze(2)
    wide = (-1, -1, features.shape[2])
    low = features.gather(0, first.unsqueeze(2).expand(wide))
    high = features.gather(0, last.unsqueeze(2).expand(wide))
    known = visible.any(dim=0)[None, :, None]
    return torch.where(known, low + share * (high - low), 0.0)


def column_means(windows: Windows) -> NDArray[np.float64]:
    """Mean of each column over the bars that are in a window, float64 ``[F]``.

    Examples
    --------
    >>> table = np.array([[1.0], [2.0], [6.0], [np.nan]], np.float32)
    >>> column_means(Windows(table, np.array([0, 1]), 2)).tolist()
    [3.0]
    """
    edges = np.zeros(len(windows.features) + 1, np.int64)
    np.add.at(edges, windows.starts, 1)
    np.add.at(edges, windows.starts + windows.length, -1)
    covered = windows.features[np.cumsum(edges[:-1]) > 0]
    means: NDArray[np.float64] = covered.mean(axis=0, dtype=np.float64)
    return means
