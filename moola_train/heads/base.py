"""What a head is, and the registry that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from moola_train.encoder import Encoded
from moola_train.errors import ModelError
from moola_train.initial import start_at
from moola_train.targets import TargetPriors

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What a head may need to know when it is made.

    Parameters
    ----------
    step_size
        Width of an encoded step, S.
    summary_size
        Width of the shared summary, P.
    num_features
        Columns of the features, F.
    num_classes
        Types of a window, C.
    window_length
        Bars in a window, T.
    dropout
        Chance that one value of what a head reads is dropped.
    focal_gamma
        Exponent of the focal loss of the type heads; 0 is cross-entropy.
    class_weights
        Weight of each type in its loss; empty for 1 each.
    span_threshold
        Probability above which a bar on its own counts as inside the span.
    """

    step_size: int
    summary_size: int
    num_features: int
    num_classes: int
    window_length: int
    dropout: float
    focal_gamma: float
    class_weights: tuple[float, ...]
    span_threshold: float


@dataclass(frozen=True)
class HeadInput:
    """What a head reads.

    Parameters
    ----------
    encoded
        The steps [T, B, S] and which of them are valid.
    summary
        float [B, P]; [B, 0] where no head of the model reads it.
    outputs
        The outputs of the heads that came before.
    features
        float [T, B, F], what the encoder read.
    """

    encoded: Encoded
    summary: Tensor
    outputs: Mapping[str, Tensor]
    features: Tensor


class Head(nn.Module):
    """A reading of the encoded window: output, loss, initial output and decoding.

    A head is a file in this folder with one class behind ``@register``; nothing else has to
    change. `output` is its last layer.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    target: ClassVar[str]
    """What of a batch its loss reads: -1 or NaN where an item is not labelled."""
    shape: ClassVar[tuple[int | str, ...]]
    """Of one window's output; C, T and F stand for classes, bars and features."""
    log_sigma: ClassVar[float | None] = 0.0
    """Where its log sigma starts under Kendall's weighting; None for a head that has none."""
    reads_summary: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    """Heads whose output it reads; a model makes them come first."""
    span_priority: ClassVar[int] = 0
    """Where several heads of a model decode a span, the highest is the model's."""

    output: nn.Linear

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, inputs: HeadInput) -> Tensor:
        """The head's output, batch first: [B, ...]."""
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar mean over the labelled items of a batch, 0 where there are none."""
        raise NotImplementedError

    def num_labelled(self, batch: Batch) -> Tensor:
        """Number of items that the loss of a batch is a mean over, int64."""
        values = batch[self.target]
        known = ~values.isnan() if values.is_floating_point() else values >= 0
        return known.sum()

    def initialise(self, priors: TargetPriors) -> None:
        """Start at what the floor predicts, so that the first loss is the floor's.

        A head whose targets are not in the labels knows no priors and starts at zero.
        """
        start_at(self.output, torch.zeros(self.output.out_features))

    def decode(self, output: Tensor) -> dict[str, Tensor]:
        """Predictions by name, each [B] or [B, ...]; none for a head that is no prediction."""
        return {}

    def read_steps(self, encoded: Encoded) -> Tensor:
        """Dropout and `output` at every step: [B, T, O]."""
        result: Tensor = self.output(self.dropout(encoded.steps))
        return result.transpose(0, 1)


HEADS: dict[str, type[Head]] = {}

AnyHead = TypeVar("AnyHead", bound=Head)


def register(name: str, what: str) -> Callable[[type[AnyHead]], type[AnyHead]]:
    """Make a head known under a name, with a line on what it says."""

    def add(head: type[AnyHead]) -> type[AnyHead]:
        if name in HEADS:
            raise ModelError(f"two heads are called {name!r}; rename one of them")
        head.name = name
        head.what = what
        HEADS[name] = head
        return head

    return add
