"""What stands before the expansion, read from the shared summary of the window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moola_train import losses
from moola_train.errors import ModelError
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register
from moola_train.initial import start_at
from moola_train.targets import TargetPriors


@register("type", "what stands before the expansion")
class TypeHead(Head):
    """Summary -> Dropout -> Linear: logits [B, C].

    Its loss is cross-entropy, or focal (Lin et al., 2017) with a gamma above 0 or class weights.
    """

    target = "type"
    shape = ("C",)
    reads_summary = True

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.output = nn.Linear(self.output_width(settings), settings.num_classes)
        self.gamma = settings.focal_gamma
        weights = settings.class_weights
        if weights and len(weights) != settings.num_classes:
            raise ModelError(
                f"class_weights has {len(weights)} values for {settings.num_classes} classes; "
                "give one each, or none"
            )
        self.register_buffer("alpha", torch.tensor(weights) if weights else None, persistent=False)
        self.alpha: Tensor | None

    def output_width(self, settings: HeadSettings) -> int:
        """How much the last layer reads."""
        return settings.summary_size

    def forward(self, inputs: HeadInput) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.output(self.dropout(inputs.summary))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy or focal over the windows that have a type."""
        if self.gamma == 0 and self.alpha is None:
            return losses.cross_entropy(output, batch["type"])
        return losses.focal(output, batch["type"], gamma=self.gamma, alpha=self.alpha)

    def initialise(self, priors: TargetPriors) -> None:
        """Start at the class shares."""
        shares = torch.as_tensor(priors.class_shares, dtype=torch.float32)
        start_at(self.output, shares.log())

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``type_probability`` [B, C]."""
        return {"type_probability": output.softmax(dim=1)}
