"""What each bar is: the heads of the multitask pretraining."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from moola_train import losses
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register

PROJECTION_SIZE = 64


class BarClasses(Head):
    """LayerNorm, Linear, ReLU, Dropout, Linear at every step: logits [B, T, C].

    Its target is int64 [B, T] under the head's name, -1 where a bar has no label. Its weight in
    the sum of losses is fixed, so it has no sigma.
    """

    log_sigma = None
    num_classes: ClassVar[int]

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.norm = nn.LayerNorm(settings.step_size)
        self.projection = nn.Linear(settings.step_size, PROJECTION_SIZE)
        self.output = nn.Linear(PROJECTION_SIZE, self.num_classes)

    def forward(self, inputs: HeadInput) -> Tensor:
        """Logits [B, T, C]."""
        projected = self.projection(self.norm(inputs.encoded.steps)).relu()
        logits: Tensor = self.output(self.dropout(projected))
        return logits.transpose(0, 1)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over the bars that are labelled."""
        return losses.cross_entropy(output.flatten(0, 1), batch[self.target].flatten())

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``NAME_probability`` float [B, T, C]."""
        return {f"{self.name}_probability": output.softmax(dim=2)}


@register("expansion", "whether a bar leaves the range of the last five")
class ExpansionBars(BarClasses):
    """No, yes."""

    num_classes = 2
    target = "expansion"
    shape = ("T", 2)


@register("swing", "whether a bar is the extreme of the five around it")
class SwingBars(BarClasses):
    """Neither, highest, lowest."""

    num_classes = 3
    target = "swing"
    shape = ("T", 3)


@register("candle", "the shape of a bar")
class CandleBars(BarClasses):
    """Bullish, bearish, neutral, doji."""

    num_classes = 4
    target = "candle"
    shape = ("T", 4)
