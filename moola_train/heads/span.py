"""Whether a bar lies in the expansion, each bar on its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moola_train import losses
from moola_train.crf import single_span
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register
from moola_train.initial import log_odds, start_at
from moola_train.targets import TargetPriors


@register("span", "whether a bar lies in the expansion")
class Span(Head):
    """Dropout -> Linear at every step: logits [B, T].

    The loss weighs a bar inside by w = (1 - p) / p, p being the share of such bars in the training
    part. A model that minimises it gives log-odds that are too high by log w, so that decoding
    takes log w off again.
    """

    target = "span"
    shape = ("T",)
    span_priority = 2

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.output = nn.Linear(settings.step_size, 1)
        self.threshold = log_odds(settings.span_threshold)
        self.register_buffer("pos_weight", torch.ones(()))
        self.pos_weight: Tensor

    def forward(self, inputs: HeadInput) -> Tensor:
        """Logits [B, T]."""
        return self.read_steps(inputs.encoded).squeeze(2)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Weighted binary cross-entropy over the bars that are labelled."""
        return losses.span_bce(output, batch["span"], self.pos_weight)

    def initialise(self, priors: TargetPriors) -> None:
        """Balance the loss, and start at the constant for which it is lowest.

        Those are the log-odds of p plus log w, which with w = (1 - p) / p is zero. Decoding
        takes log w off, so that the first ``span_probability`` is p.
        """
        share = priors.span_share
        self.pos_weight.fill_((1 - share) / share)
        start_at(self.output, torch.zeros(1))

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """The most probable single run, ``start`` and ``end`` int64 [B], and the probabilities.

        The run of the highest sum of log-odds above the threshold, which is the most probable
        span of independent bars; -1 where every run has a sum below zero. ``span_probability``
        is float [B, T].
        """
        chances = output.float() - self.pos_weight.float().log()  # log-odds
        emissions = functional.pad((chances - self.threshold).unsqueeze(2), (1, 0))  # [B, T, 2]
        flat = emissions.new_zeros(2)
        start, end = single_span(emissions, emissions.new_zeros(2, 2), flat, flat)
        return {"start": start, "end": end, "span_probability": chances.sigmoid()}
