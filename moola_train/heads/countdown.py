"""How many bars it is to the start of the expansion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moola_train import losses
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register
from moola_train.initial import start_at
from moola_train.targets import TargetPriors


@register("countdown", "bars to the start of the expansion, -20 to 20 as 0 to 1")
class Countdown(Head):
    """Dropout -> Linear at every step: [B, T], in the target's units of 0 to 1."""

    target = "countdown"
    shape = ("T",)

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.output = nn.Linear(settings.step_size, 1)

    def forward(self, inputs: HeadInput) -> Tensor:
        """Countdown [B, T]."""
        return self.read_steps(inputs.encoded).squeeze(2)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Huber over the windows that have an expansion."""
        return losses.countdown_huber(output, batch["countdown"])

    def initialise(self, priors: TargetPriors) -> None:
        """Start at the mean countdown."""
        start_at(self.output, torch.tensor([float(priors.mean_countdown)]))

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``countdown`` float [B, T], kept within 0 and 1."""
        return {"countdown": output.clamp(0, 1)}
