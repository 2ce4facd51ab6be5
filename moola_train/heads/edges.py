"""Which bar is the first of the expansion and which the last, as distributions over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moola_train import losses
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register
from moola_train.initial import start_at
from moola_train.targets import TargetPriors

SHORTEST_SPAN, LONGEST_SPAN = 2, 20  # bars, both inclusive


@register("edges", "first and last bar of the expansion, as distributions over time")
class Edges(Head):
    """Dropout -> Linear at every step: logits [B, T, 2] of the first and of the last bar.

    ``log_prior`` [T, 2] is added to them: where edges lie in the training part, fixed from the
    start. The same bias at every bar, which is all the layer has, changes no softmax over time.
    """

    target = "start"
    shape = ("T", 2)
    span_priority = 3

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.output = nn.Linear(settings.step_size, 2)
        self.register_buffer("log_prior", torch.zeros(settings.window_length, 2))
        self.log_prior: Tensor

    def forward(self, inputs: HeadInput) -> Tensor:
        """Logits [B, T, 2]; bars that are not valid have the lowest there is."""
        logits = self.read_steps(inputs.encoded) + self.log_prior
        if inputs.encoded.valid is None:
            return logits
        lowest = torch.finfo(logits.dtype).min
        return logits.masked_fill(~inputs.encoded.valid.T.unsqueeze(2), lowest)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over time of both edges, over the windows that have an expansion."""
        return losses.edges_cross_entropy(output, batch["start"], batch["end"])

    def initialise(self, priors: TargetPriors) -> None:
        """Start at the shares of first and last bars by their place in the window."""
        start_at(self.output, torch.zeros(2))
        for column, share in enumerate((priors.start_share, priors.end_share)):
            self.log_prior[:, column] = torch.as_tensor(share, dtype=torch.float32).log()

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``start`` and ``end`` int64 [B]: the span of 2 to 20 bars of the highest probability."""
        log_first, log_last = output.float().log_softmax(dim=1).unbind(dim=2)  # [B, T] each
        padded = functional.pad(log_last, (0, LONGEST_SPAN - 1), value=float("-inf"))
        last_by_length = padded.unfold(1, LONGEST_SPAN, 1)[:, :, SHORTEST_SPAN - 1 :]
        joint = log_first.unsqueeze(2) + last_by_length  # [B, T, number of lengths]
        best = joint.flatten(1).argmax(dim=1)
        start = best // joint.shape[2]
        return {"start": start, "end": start + best % joint.shape[2] + SHORTEST_SPAN - 1}
