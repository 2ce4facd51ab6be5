"""What stands before the expansion, read where the edges head sees its edges."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from moola_train.heads.base import HeadInput, HeadSettings, register
from moola_train.heads.window_type import TypeHead
from moola_train.pooling import max_pool, mean_pool, weighted_pool

PROJECTION_SIZE = 64


@register("type_at_span", "what stands before the expansion, read at its edges")
class TypeAtSpan(TypeHead):
    """Mean, max and edge-weighted pools -> Linear, ReLU, Dropout, Linear: logits [B, C].

    The weights are the mean of the edges head's two distributions over time. They are detached:
    the type's loss learns from the edges and does not move them.
    """

    reads_summary = False
    needs = ("edges",)

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.projection = nn.Linear(3 * settings.step_size, PROJECTION_SIZE)

    def output_width(self, settings: HeadSettings) -> int:
        """The projection's."""
        return PROJECTION_SIZE

    def forward(self, inputs: HeadInput) -> Tensor:
        """Logits [B, C]."""
        edges = inputs.outputs["edges"].detach()  # [B, T, 2]
        weights = edges.softmax(dim=1).mean(dim=2).T.to(inputs.encoded.steps.dtype)  # [T, B]
        pools = torch.cat(
            [
                mean_pool(inputs.encoded),
                max_pool(inputs.encoded),
                weighted_pool(inputs.encoded, weights),
            ],
            dim=1,
        )
        return cast(Tensor, self.output(self.dropout(self.projection(pools).relu())))
