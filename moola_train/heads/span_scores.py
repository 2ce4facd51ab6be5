"""The expansion as one of all spans of 2 to 20 bars, with one distribution over them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from moola_train import losses
from moola_train.heads.base import Batch, Head, HeadInput, HeadSettings, register
from moola_train.heads.edges import LONGEST_SPAN, SHORTEST_SPAN
from moola_train.initial import start_at
from moola_train.running_sum import running_sum
from moola_train.targets import TargetPriors

NUM_LENGTHS = LONGEST_SPAN - SHORTEST_SPAN + 1
SUM_SIZE = 32  # numbers that are summed over the bars of a span


@register("span_scores", "the expansion as one of all spans of 2 to 20 bars")
class SpanScores(Head):
    """A score for each start and length: logits [B, T, 19], softmax over all of them.

    The score of the bars s to e is  a_s + b_e + w . relu(sum of u_t over s..e + c_length), where
    a, b and u are linear in the encoded bar, u also in the bar's own features. What a span sums
    up to, such as its net move, is seen as a whole, which edges that are told one by one cannot.
    A semi-Markov model with a single segment (Sarawagi and Cohen, NIPS 2004).
    """

    target = "start"
    shape = ("T", NUM_LENGTHS)
    span_priority = 5

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        length = settings.window_length
        self.output = nn.Linear(settings.step_size, 2)
        self.summed_steps = nn.Linear(settings.step_size, SUM_SIZE, bias=False)
        self.summed_features = nn.Linear(settings.num_features, SUM_SIZE, bias=False)
        self.length_bias = nn.Parameter(torch.zeros(NUM_LENGTHS, SUM_SIZE))
        self.score_weight = nn.Parameter(torch.zeros(SUM_SIZE))
        self.register_buffer("log_prior", torch.zeros(length, NUM_LENGTHS))
        last = torch.arange(length).unsqueeze(1) + torch.arange(NUM_LENGTHS) + SHORTEST_SPAN - 1
        self.register_buffer("fits", last < length, persistent=False)
        self.log_prior: Tensor
        self.fits: Tensor

    def forward(self, inputs: HeadInput) -> Tensor:
        """Logits [B, T, 19]; spans that leave the window, or hold a bar that is not valid, are out.

        What is out has the lowest number there is.
        """
        steps, valid = self.dropout(inputs.encoded.steps), inputs.encoded.valid
        first, last = self.output(steps).float().unbind(dim=2)  # [T, B] each
        summed = self.summed_steps(steps) + self.summed_features(inputs.features.to(steps.dtype))
        summed = summed.float()  # [T, B, SUM_SIZE]: of up to 20 bars, too many for half precision
        bias, weight = self.length_bias.float(), self.score_weight.float()
        total, scores = summed, []
        for index in range(NUM_LENGTHS):
            reach = index + SHORTEST_SPAN - 1
            total = total + _ahead(summed, reach)
            inner = (total + bias[index]).relu() @ weight
            scores.append(first + _ahead(last, reach) + inner)
        logits = torch.stack(scores, dim=2).transpose(0, 1) + self.log_prior
        fits = self.fits if valid is None else self.fits & _unbroken(valid)
        return logits.masked_fill(~fits, torch.finfo(logits.dtype).min)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over all spans, over the windows that have an expansion.

        One that is shorter than 2 or longer than 20 bars stands for the span about its center.
        """
        start, end = batch["start"], batch["end"]
        length = (end - start + 1).clamp(SHORTEST_SPAN, LONGEST_SPAN)
        begin = torch.div(start + end + 1 - length, 2, rounding_mode="floor")
        begin = begin.clamp(min=0).minimum(output.shape[1] - length)
        place = begin * NUM_LENGTHS + length - SHORTEST_SPAN
        return losses.cross_entropy(output.flatten(1), torch.where(start >= 0, place, -1))

    def initialise(self, priors: TargetPriors) -> None:
        """Start at the shares of first and last bars by their place in the window."""
        start_at(self.output, torch.zeros(2))
        nn.init.zeros_(self.score_weight)
        nn.init.zeros_(self.length_bias)
        first, last = (
            torch.as_tensor(share, dtype=torch.float32).log()
            for share in (priors.start_share, priors.end_share)
        )
        for index in range(NUM_LENGTHS):
            self.log_prior[:, index] = first + _ahead(last, index + SHORTEST_SPAN - 1)

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """The span of the highest expected F1 of bars, and what is probable bar by bar.

        ``start`` and ``end`` int64 [B]; ``start_probability``, ``end_probability`` and
        ``span_probability`` float [B, T]: of a bar to be the first, the last, and inside.
        """
        shares = span_shares(output)
        worth = expected_f1(shares).masked_fill(~self.fits, -1.0)
        best = worth.flatten(1).argmax(dim=1)
        start = torch.div(best, NUM_LENGTHS, rounding_mode="floor")
        first, last = edge_shares(shares)
        begun, over = running_sum(first, dim=1), running_sum(last, dim=1) - last
        return {
            "start": start,
            "end": start + best % NUM_LENGTHS + SHORTEST_SPAN - 1,
            "start_probability": first,
            "end_probability": last,
            "span_probability": (begun - over).clamp(0.0, 1.0),
        }


def span_shares(logits: Tensor) -> Tensor:
    """Probability of each span: [B, T, 19], summing to 1 over the last two."""
    return logits.float().flatten(1).softmax(dim=1).view(logits.shape)


def edge_shares(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of each bar to be the first and the last of the span: [B, T] each."""
    last = torch.zeros_like(shares[:, :, 0])
    for index in range(NUM_LENGTHS):
        reach = index + SHORTEST_SPAN - 1
        last = last + functional.pad(shares[:, :-reach, index], (reach, 0))
    return shares.sum(dim=2), last


def expected_f1(shares: Tensor) -> Tensor:
    """Expected F1 of bars of each span, were it predicted: [B, T, 19] to [B, T, 19].

    The mean over true spans, under their probabilities, of 2 x shared / (predicted + true) bars:
    the least Bayes risk where span F1 is what counts.
    """
    weight = _f1_of_pairs().to(shares)
    worth: Tensor = functional.conv1d(shares.transpose(1, 2), weight, padding=LONGEST_SPAN - 1)
    return worth.transpose(1, 2)


@functools.cache
def _f1_of_pairs() -> Tensor:
    """F1 by predicted length, true length, and true minus predicted start: [19, 19, 39]."""
    lag = torch.arange(1 - LONGEST_SPAN, LONGEST_SPAN)
    length = torch.arange(SHORTEST_SPAN, LONGEST_SPAN + 1)
    predicted, true = length[:, None, None], length[None, :, None]
    shared = (torch.minimum(lag + true, predicted) - lag.clamp(min=0)).clamp(min=0)
    return 2 * shared / (predicted + true)


def _ahead(values: Tensor, reach: int) -> Tensor:
    """Values so many bars later along the first dimension, 0 beyond the end."""
    return torch.cat([values[reach:], torch.zeros_like(values[:reach])])


def _unbroken(valid: Tensor) -> Tensor:
    """Whether all bars of each span are valid: bool [T, B] to [B, T, 19]."""
    inside, found = valid, []
    for index in range(NUM_LENGTHS):
        inside = inside & _ahead(valid, index + SHORTEST_SPAN - 1)
        found.append(inside)
    return torch.stack(found, dim=2).transpose(0, 1)
