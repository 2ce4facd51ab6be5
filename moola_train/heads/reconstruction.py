"""What the masked bars were."""

from __future__ import annotations

from torch import Tensor, nn

from moola_train import losses
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register


@register("reconstruction", "the features of masked bars")
class Reconstruction(Head):
    """Linear at every step: [B, T, F], without dropout."""

    target = "mask"
    shape = ("T", "F")

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.dropout = nn.Dropout(0.0)
        self.output = nn.Linear(settings.step_size, settings.num_features)

    def forward(self, inputs: HeadInput) -> Tensor:
        """Features [B, T, F]."""
        return self.read_steps(inputs.encoded)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Huber over the bars that were masked and are valid."""
        features = batch["features"].transpose(0, 1)
        return losses.reconstruction_huber(output, features, _asked(batch).T)

    def num_labelled(self, batch: Batch) -> Tensor:
        """Number of bars that were masked and are valid."""
        return _asked(batch).sum()

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``features`` float [B, T, F]."""
        return {"features": output}


def _asked(batch: Batch) -> Tensor:
    """Which bars count: bool [T, B]."""
    mask = batch["mask"]
    return mask & batch["valid"] if "valid" in batch else mask
