"""What a run trains for: the loss terms of a batch, and the metrics of a validation part."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moola_train.loaders import WindowLoader
from moola_train.metrics import Metric, evaluate
from moola_train.models import Model
from moola_train.targets import TargetPriors

COLLAPSE_SHARE = 0.9  # one class taking more of the predictions than this is worth a warning

_logger = logging.getLogger(__name__)


class Objective(Protocol):
    """What the loop asks of an objective; a new one is one class."""

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch by name, unweighted scalars with gradients."""

    def score(self, model: Model, loader: WindowLoader) -> dict[str, Metric]:
        """Metrics of a validation part by name, each beside its floor; ``loss`` among them."""


class Supervised:
    """Fit the heads of a model to labels.

    Parameters
    ----------
    priors
        Of the training part: what the floors are made of.
    """

    def __init__(self, priors: TargetPriors) -> None:
        self._priors = priors

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss of each head."""
        return model.losses(model(batch), batch)

    @torch.no_grad()
    def score(self, model: Model, loader: WindowLoader) -> dict[str, Metric]:
        """Every metric that the heads and the labels allow; ``loss`` is the plain sum of terms."""
        predictions, truth, loss = predict(model, loader)
        found = {"loss": Metric(loss, None, "lower")}
        found |= evaluate(predictions, truth, self._priors)
        self._watch_collapse(predictions)
        return found

    def _watch_collapse(self, predictions: Mapping[str, NDArray[np.generic]]) -> None:
        if "type_probability" not in predictions:
            return
        chosen = np.argmax(predictions["type_probability"], axis=1)
        counts = np.bincount(chosen, minlength=len(self._priors.classes))
        top = int(counts.argmax())
        if counts[top] > COLLAPSE_SHARE * len(chosen):
            _logger.warning(
                "class %r takes %d of %d validation predictions; the model may have collapsed",
                self._priors.classes[top], counts[top], len(chosen),
            )  # fmt: skip


@torch.no_grad()
def predict(
    model: Model, loader: WindowLoader
) -> tuple[dict[str, NDArray[np.generic]], dict[str, NDArray[np.generic]], float]:
    """Run a model over one epoch of a loader.

    Returns
    -------
    predictions, truth
        Arrays ``[N, ...]`` by name, in the order of the windows.
    loss
        The plain sum of loss terms, each the mean over all items that are labelled for it: what
        one batch of everything would have.
    """
    model.eval()
    outputs: dict[str, list[Tensor]] = {}
    targets: dict[str, list[Tensor]] = {}
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for batch in loader:
        produced = model(batch)
        labelled = model.num_labelled(batch)
        for name, term in model.losses(produced, batch).items():
            count = labelled[name]
            totals[name] = totals.get(name, 0.0) + term.double() * count
            counts[name] = counts.get(name, 0) + count
        for name, values in model.decode(produced).items():
            outputs.setdefault(name, []).append(values.cpu())
        for name, values in batch.items():
            if name != "features":
                targets.setdefault(name, []).append(values.cpu())
    order = torch.argsort(torch.cat(targets["index"]))
    joined = [
        {name: torch.cat(parts)[order].numpy() for name, parts in found.items()}
        for found in (outputs, targets)
    ]
    loss = sum(float(total / counts[name].clamp(min=1)) for name, total in totals.items())
    return joined[0], joined[1], loss
