"""Whether a bar lies in the expansion, all bars of a window together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moola_train import losses
from moola_train.crf import INSIDE, NUM_TAGS, SpanCrf
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register
from moola_train.initial import log_odds, start_at
from moola_train.targets import TargetPriors


@register("span_crf", "whether a bar lies in the expansion, as one path through the window")
class SpanCrfHead(Head):
    """Dropout -> Linear at every step, and the chain over them: emissions [B, T, 2]."""

    target = "span"
    shape = ("T", NUM_TAGS)
    span_priority = 4

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.output = nn.Linear(settings.step_size, NUM_TAGS)
        self.crf = SpanCrf()

    def forward(self, inputs: HeadInput) -> Tensor:
        """Emissions [B, T, 2]."""
        return self.read_steps(inputs.encoded)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Negative log likelihood over length, mean over the windows labelled at every bar."""
        span, labelled = batch["span"], _labelled(batch)  # [B, T], [B]
        path = torch.where(labelled.unsqueeze(1), span, 0.0).round().long()
        per_window = self.crf.negative_log_likelihood(output, path) / span.shape[1]
        return losses.known_mean(per_window, labelled)

    def num_labelled(self, batch: Batch) -> Tensor:
        """Number of windows that are labelled at every bar."""
        return _labelled(batch).sum()

    def initialise(self, priors: TargetPriors) -> None:
        """Start at independent bars that lie inside with the share p."""
        for parameter in self.crf.parameters():
            nn.init.zeros_(parameter)
        bias = torch.zeros(NUM_TAGS)
        bias[INSIDE] = log_odds(priors.span_share)
        start_at(self.output, bias - bias.logsumexp(dim=0))

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """``start`` and ``end`` int64 [B] of the best path with at most one span, -1 for none.

        ``span_path`` int64 [B, T] is the Viterbi path without that condition.
        """
        start, end = self.crf.best_span(output)
        return {"start": start, "end": end, "span_path": self.crf.best_path(output)}


def _labelled(batch: Batch) -> Tensor:
    """Which windows are labelled at every bar: bool [B]."""
    return batch["span"].isfinite().all(dim=1)
