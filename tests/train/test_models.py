"""Presets: their exact sizes and shapes; models: masks, sigmas, decoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from moola_train import models
from moola_train.errors import ModelError
from moola_train.presets import ModelSettings

CRF_HEADS = ("type", "pointers", "span_crf", "countdown")

COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("jade-compact", {}, 96_779),
    ("jade-compact", {"num_features": 12}, 97_547),
    ("jade-compact", {"position": True}, 97_547),
    ("jade-compact", {"num_features": 13}, 98_315),
    ("jade-compact", {"num_features": 13, "heads": CRF_HEADS}, 98_516),
    ("jade-compact", {"heads": ("type", "pointers")}, 96_391),
    ("jade", {"log_sigmas": False}, 540_933),
    ("jade", {}, 540_935),
    ("jade-mae", {"mask_vector": False}, 542_476),
    ("jade-mae", {}, 542_476 + 11),
    ("multitask", {}, 591_113),
    ("jade-span", {}, 116_775),
    ("simple-lstm", {}, 409_186),
    ("simple-lstm", {"num_features": 11}, 416_354),
]

OUTPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "jade-compact": {"type": (3,), "pointers": (2,), "span": (105,), "countdown": (105,)},
    "jade": {"type": (3,), "pointers": (2,)},
    "jade-mae": {"reconstruction": (105, 11)},
    "multitask": {"expansion": (105, 2), "swing": (105, 3), "candle": (105, 4)},
    "jade-span": {"span_scores": (105, 19), "type_before_span": (3,)},
    "simple-lstm": {"type": (2,)},
}

LOG_SIGMAS: dict[str, dict[str, float]] = {
    "jade-compact": {"type": 0.0, "pointers": -0.30, "span": 0.0, "countdown": 0.0},
    "jade": {"type": 0.0, "pointers": -0.30},
    "jade-mae": {"reconstruction": 0.0},
    "multitask": {},
    "jade-span": {"span_scores": 0.0, "type_before_span": 0.0},
    "simple-lstm": {},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(17)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("preset", "overrides", "count"), COUNTS)
def test_parameters(preset: str, overrides: dict[str, Any], count: int) -> None:
    model = models.build(preset, **overrides)
    assert model.num_parameters == count
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_tensors() -> None:
    assert len(list(models.build("multitask").encoder.parameters())) == 16
    assert len(list(models.build("simple-lstm").parameters())) == 18
    assert set(OUTPUTS) == set(LOG_SIGMAS) == set(models.PRESETS)


@pytest.mark.parametrize("preset", OUTPUTS)
def test_outputs_are_batch_first_and_float32(preset: str) -> None:
    model = models.build(preset)
    features = torch.randn(105, 2, model.settings.num_features)
    for dtype in (torch.float32, torch.bfloat16):
        outputs = model.to(dtype)({"features": features})
        assert {name: tuple(output.shape[1:]) for name, output in outputs.items()} == OUTPUTS[
            preset
        ]
        assert model.output_shapes == OUTPUTS[preset]
        for output in outputs.values():
            assert output.shape[0] == 2
            assert output.dtype == torch.float32
            assert torch.isfinite(output).all()


@pytest.mark.parametrize("preset", LOG_SIGMAS)
def test_log_sigmas_are_the_models_own(preset: str) -> None:
    model = models.build(preset)
    found = {name: value.item() for name, value in model.log_sigmas.items()}
    assert found == pytest.approx(LOG_SIGMAS[preset])
    named = {name for name, _ in model.named_parameters() if "log_sigma" in name}
    assert named == {f"log_sigmas.{name}" for name in found}
    assert len(models.build(preset, log_sigmas=False).log_sigmas) == 0


def test_weights_are_saved_and_loaded_strictly() -> None:
    first, second = models.build("jade-span"), models.build("jade-span")
    second.load_state_dict(first.state_dict())
    batch = {"features": torch.randn(105, 2, 11)}
    with torch.no_grad():
        outputs, others = first.eval()(batch), second.eval()(batch)
    for name, output in outputs.items():
        assert torch.equal(output, others[name])


def test_masked_bars_are_replaced_before_anything_reads_them() -> None:
    model = models.build("jade-mae", hidden_size=8)
    with torch.no_grad():
        model.mask_vector.copy_(torch.randn(11))
    features = torch.randn(105, 3, 11)
    mask = torch.rand(105, 3) < 0.3
    other = torch.where(mask.unsqueeze(2), torch.randn(105, 3, 11), features)
    outputs = model({"features": features, "mask": mask})["reconstruction"]
    assert torch.equal(outputs, model({"features": other, "mask": mask})["reconstruction"])
    replaced = torch.where(mask.unsqueeze(2), model.mask_vector, features)
    assert torch.equal(outputs, model({"features": replaced})["reconstruction"])
    outputs.sum().backward()
    assert model.mask_vector.grad is not None
    assert model.mask_vector.grad.any()


def test_a_mask_without_a_vector_is_refused() -> None:
    model = models.build("jade-compact")
    batch = {"features": torch.zeros(105, 2, 11), "mask": torch.zeros(105, 2, dtype=torch.bool)}
    with pytest.raises(ModelError, match="it would see what is masked"):
        model(batch)


def test_pools_of_a_model_see_valid_bars_only() -> None:
    model = models.build("jade-compact").eval()
    features = torch.randn(105, 2, 11)
    valid = torch.ones(105, 2, dtype=torch.bool)
    everything = model({"features": features})
    assert torch.allclose(model({"features": features, "valid": valid})["type"], everything["type"])
    valid[:50] = False
    part = model({"features": features, "valid": valid})
    assert not torch.allclose(part["type"], everything["type"])
    assert torch.equal(part["span"], everything["span"])


ALL_SPAN_HEADS = ("pointers", "span", "edges", "span_crf")


@pytest.mark.parametrize("best", range(4))
def test_the_span_comes_from_the_head_that_knows_it_best(best: int) -> None:
    names = ALL_SPAN_HEADS[: best + 1]
    model = models.build("jade-compact", heads=(*names[::-1], "type"))
    outputs = {
        "type": torch.zeros(1, 3),
        "pointers": torch.tensor([[10 / 104, 4 / 104]]),
        "span": torch.full((1, 105), -5.0).index_fill(1, torch.arange(20, 23), 5.0),
        "edges": torch.zeros(1, 105, 2),
        "span_crf": torch.zeros(1, 105, 2),
    }
    outputs["edges"][0, 30, 0] = outputs["edges"][0, 33, 1] = 9.0
    outputs["span_crf"][0, :, 0] = 2.0
    outputs["span_crf"][0, 40:44, 1] = 9.0
    expected = [(8, 12), (20, 22), (30, 33), (40, 43)][best]
    decoded = model.decode(outputs)
    assert (decoded["start"].item(), decoded["end"].item()) == expected
    assert torch.allclose(decoded["type_probability"], torch.tensor(1 / 3))


def test_describe_says_what_the_presets_are() -> None:
    state = torch.get_rng_state()
    described = {description.name: description for description in models.describe()}
    assert torch.equal(torch.get_rng_state(), state)
    assert list(described) == list(models.PRESETS)
    for name, shapes in OUTPUTS.items():
        expected = {head: ("B", *shape) for head, shape in shapes.items()}
        assert described[name].outputs == expected
        assert described[name].num_parameters == models.build(name).num_parameters
        assert described[name].num_features == models.PRESETS[name].settings.num_features


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden": 3}, "a model has no setting 'hidden'"),
        ({"heads": ()}, "heads is empty"),
        ({"heads": ("type", "colour")}, "there is no head 'colour'"),
        ({"heads": ("type", "type")}, "heads names 'type' twice"),
        ({"heads": ("type_at_span", "edges")}, "reads the head 'edges'; put 'edges' before it"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"window_length": 1}, "window_length is 1"),
        ({"pool": "max"}, "pool is 'max'"),
        ({"summary_size": -1}, "summary_size is -1"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1"),
        ({"span_threshold": 1.0}, "span_threshold is 1.0"),
        ({"head_dropout": 1.0}, "head_dropout is 1.0"),
        ({"layer_dropout": 0.1}, "layer_dropout is 0.1 but there is one layer"),
    ],
)
def test_bad_settings_are_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.build("jade-compact", **overrides)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ModelError, match="no preset 'jaded'; choose one of jade-compact, jade,"):
        models.build("jaded")


def test_settings_of_lists_are_those_of_tuples() -> None:
    listed = ModelSettings(heads=["type"], class_weights=[1.0, 2.0, 1.0])  # type: ignore[arg-type]
    assert listed == ModelSettings(heads=("type",), class_weights=(1.0, 2.0, 1.0))
