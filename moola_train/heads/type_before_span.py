"""What stands before the expansion, read at the edges that the span scores see."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from moola_train.heads.base import HeadInput, HeadSettings, register
from moola_train.heads.span_scores import edge_shares, span_shares
from moola_train.heads.window_type import TypeHead

PROJECTION_SIZE = 64


@register("type_before_span", "what stands before the expansion, read at its edges")
class TypeBeforeSpan(TypeHead):
    """The encoded first and last bar, and the features of the bar before them -> logits [B, C].

    Each is a mean under the probabilities of the span scores, which are detached: the type's loss
    learns from the span and does not move it. Behind them Linear, ReLU, Dropout, Linear. A pool
    over all bars would drown the few that matter.
    """

    reads_summary = False
    needs = ("span_scores",)

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.projection = nn.Linear(2 * settings.step_size + settings.num_features, PROJECTION_SIZE)

    def output_width(self, settings: HeadSettings) -> int:
        """The projection's."""
        return PROJECTION_SIZE

    def forward(self, inputs: HeadInput) -> Tensor:
        """Logits [B, C]."""
        steps = inputs.encoded.steps
        first, last = edge_shares(span_shares(inputs.outputs["span_scores"].detach()))
        before = functional.pad(first[:, 1:], (0, 1))  # the span starts at the next bar
        read = [
            torch.einsum("bt,tbs->bs", share.to(values), values)
            for share, values in (
                (first, steps),
                (last, steps),
                (before, inputs.features.to(steps)),
            )
        ]
        return cast(Tensor, self.output(self.dropout(self.projection(torch.cat(read, 1)).relu())))
