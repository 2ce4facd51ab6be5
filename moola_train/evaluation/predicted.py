"""What a run says of the part that is judged, with whatever was chosen on the validation part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from moola_train.evaluation.control import predict_shuffled
from moola_train.evaluation.subject import Subject
from moola_train.evaluation.threshold import (
    ThresholdChoice,
    choose_threshold,
    decodes_mask,
    spans_at,
)
from moola_train.inference import Predictions
from moola_train.targets import Int64


@dataclass(frozen=True, kw_only=True, eq=False)
class PartPredictions:
    """Predictions of a part.

    Attributes
    ----------
    rows
        int64 ``[N]``: its windows.
    found
        What the model says of them, spans decoded at the chosen threshold.
    validation
        What it says of the validation part; the same where that is the part.
    threshold
        Chosen on the validation part; None where spans do not come from the mask.
    """

    rows: Int64
    found: Predictions
    validation: Predictions
    threshold: ThresholdChoice | None

    def shuffled(self, subject: Subject, seed: int) -> Predictions:
        """What the model says of the same windows with their bars shuffled."""
        return _decoded(predict_shuffled(subject, self.rows, seed=seed), self.threshold)


def predict_part(subject: Subject, part: str) -> PartPredictions:
    """Predict a part, and the validation part for what is chosen there."""
    rows, val_rows = subject.rows(part), subject.rows("val")
    validation = subject.predict(val_rows)
    found = validation if part == "val" else subject.predict(rows)
    threshold = None
    settings = subject.data.settings
    if decodes_mask(settings):
        truth = subject.truth(val_rows)
        masks = validation["span_probability"]
        threshold = choose_threshold(masks, truth, settings.span_threshold)
    return PartPredictions(
        rows=rows,
        found=_decoded(found, threshold),
        validation=validation,
        threshold=threshold,
    )


def _decoded(found: Predictions, threshold: ThresholdChoice | None) -> Predictions:
    if threshold is None:
        return found
    spans: dict[str, NDArray[Any]] = {}
    spans["start"], spans["end"] = spans_at(found["span_probability"], threshold.value)
    return {**found, **spans}
