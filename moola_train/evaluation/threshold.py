"""The probability above which a bar counts as inside, chosen on validation windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from moola_train.crf import single_span
from moola_train.heads import HEADS
from moola_train.metrics import Spans, span_f1
from moola_train.presets import ModelSettings
from moola_train.targets import Int64

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))

_SMALLEST = 1e-7  # next to 1, so far apart are two float32


@dataclass(frozen=True, kw_only=True)
class ThresholdChoice:
    """The threshold of the span mask.

    Attributes
    ----------
    value
        The one of the highest mean span F1 on the validation part; of equals the one nearest to
        the model's own.
    own
        What the model was built with.
    scores
        Span F1 on the validation part at each threshold that was tried.
    """

    value: float
    own: float
    scores: dict[float, float]


def decodes_mask(settings: ModelSettings) -> bool:
    """Whether a model's spans come from its mask, rather than from edges, CRF or pointers."""
    return max(settings.heads, key=lambda name: HEADS[name].span_priority) == "span"


def choose_threshold(
    probability: NDArray[np.float32], truth: Mapping[str, NDArray[Any]], own: float
) -> ThresholdChoice | None:
    """Try thresholds from 0.05 to 0.95 on validation windows.

    Parameters
    ----------
    probability
        float ``[N, K]``: that a bar lies inside.
    truth
        ``start`` and ``end`` int64 ``[N]`` of these windows, -1 for none.
    own
        The model's threshold.

    Returns
    -------
    ThresholdChoice or None
        None where no window has an expansion.
    """
    known = truth["start"] >= 0
    if not known.any():
        return None
    true = Spans(truth["start"], truth["end"]).take(known)
    scores = {}
    for threshold in sorted({*THRESHOLDS, own}, key=lambda tried: abs(tried - own)):
        scores[threshold] = span_f1(Spans(*spans_at(probability[known], threshold)), true)
    value = max(scores, key=lambda tried: scores[tried])  # the first of equals
    return ThresholdChoice(value=value, own=own, scores=dict(sorted(scores.items())))


def spans_at(probability: NDArray[np.float32], threshold: float) -> tuple[Int64, Int64]:
    """First and last bars, int64 ``[N]``: the run of the highest sum of log-odds above it.

    Parameters
    ----------
    probability
        float ``[N, K]``: that a bar lies inside.
    threshold
        Above 0 and below 1.

    Examples
    --------
    >>> chances = np.array([[0.1, 0.6, 0.7, 0.1], [0.1, 0.2, 0.1, 0.1]], np.float32)
    >>> spans_at(chances, 0.5), spans_at(chances, 0.65)
    ((array([ 1, -1]), array([ 2, -1])), (array([ 2, -1]), array([ 2, -1])))
    """
    chances = torch.from_numpy(np.ascontiguousarray(probability)).logit(_SMALLEST)
    cut = float(np.log(threshold / (1 - threshold)))
    emissions = functional.pad((chances - cut).unsqueeze(2), (1, 0))  # [B, T, 2]
    flat = emissions.new_zeros(2)
    first, last = single_span(emissions, emissions.new_zeros(2, 2), flat, flat)
    return first.numpy(), last.numpy()
