"""Center and length of the expansion, in shares of the window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moola_train import losses
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register
from moola_train.initial import log_odds, start_at
from moola_train.targets import TargetPriors


@register("pointers", "center and length of the expansion, in shares of the window")
class Pointers(Head):
    """Summary -> Dropout -> Linear -> sigmoid: [B, 2], each in (0, 1)."""

    target = "pointers"
    shape = (2,)
    reads_summary = True
    log_sigma = -0.30
    span_priority = 1

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.output = nn.Linear(settings.summary_size, 2)
        self.last_bar = settings.window_length - 1

    def forward(self, inputs: HeadInput) -> Tensor:
        """Center and length [B, 2]."""
        logits: Tensor = self.output(self.dropout(inputs.summary))
        return logits.sigmoid()

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Huber over the windows that have an expansion."""
        return losses.pointer_huber(output, batch["pointers"])

    def initialise(self, priors: TargetPriors) -> None:
        """Start at the mean center and length."""
        logits = [log_odds(float(mean)) for mean in priors.mean_pointers]
        start_at(self.output, torch.tensor(logits))

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``start`` and ``end`` int64 [B], the bars that the pointers mean."""
        center, length = output.float().unbind(dim=1)
        edges = torch.stack([center - length / 2, center + length / 2])  # [2, B]
        start, end = (edges * self.last_bar).round().clamp(0, self.last_bar).long()
        return {"start": start, "end": end}
