"""What the masked bars were."""

from __future__ import annotations

from torch import Tensor, nn

from moola_train import losses
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register


@register("reconstruction", "the features of masked bars")
class Reconstruction(Head):
    """Linear at every step: [B, T, F], without dropout."""

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
        mask = batch["mask"]  # [T, B]
        if "valid" in batch:
            mask = mask & batch["valid"]
        return losses.reconstruction_huber(output, batch["features"].transpose(0, 1), mask.T)

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``features`` float [B, T, F]."""
        return {"features": output}
