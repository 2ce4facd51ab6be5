"""Records of a run reach TensorBoard's event files, number by number."""

from __future__ import annotations

from pathlib import Path

import pytest

from moola_train.trackers import numbers, tensorboard

RECORDS = [
    {"step": 3, "epoch": 0, "part": "train", "terms": {"type": 0.7}, "gradient_norm": 1.5},
    {
        "step": 5, "epoch": 1, "part": "val", "improved": True,
        "metrics": {"span_f1": {"value": 0.25, "floor": 0.125, "better": "higher"}},
    },
]  # fmt: skip


def test_names_tell_part_and_place() -> None:
    assert dict(numbers(RECORDS[0])) == {
        "train/epoch": 0.0, "train/terms/type": 0.7, "train/gradient_norm": 1.5
    }  # fmt: skip
    assert dict(numbers(RECORDS[1])) == {
        "val/epoch": 1.0, "val/improved": 1.0,
        "val/metrics/span_f1/value": 0.25, "val/metrics/span_f1/floor": 0.125,
    }  # fmt: skip


def test_what_is_not_finite_is_left_out() -> None:
    assert numbers({"step": 0, "part": "train", "terms": {"type": float("nan")}}) == []


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path) as report:
        for record in RECORDS:
            report(record)
    read = EventAccumulator(str(tmp_path)).Reload()
    assert set(read.Tags()["scalars"]) == {
        name for record in RECORDS for name, _ in numbers(record)
    }
    (event,) = read.Scalars("val/metrics/span_f1/value")
    assert (event.step, event.value) == (5, 0.25)
