"""Encoder files: read back to the bit, loaded strictly, refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moola_features.errors import OutputError
from moola_train import models
from moola_train.errors import CheckpointError, ModelError
from moola_train.models import Model
from moola_train.transfer import EncoderCard, check_card, read_encoder, transfer, write_encoder

COLUMNS = tuple(f"column_{index}" for index in range(11))
CARD = EncoderCard(
    objective="mae",
    columns=COLUMNS,
    window_length=105,
    warm=True,
    data={"store": "ab12"},
    metrics={"huber": 0.25},
)
SMALL: dict[str, Any] = {"hidden_size": 8, "num_layers": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(17)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pretrained() -> Model:
    return models.build("jade-mae", **SMALL)


@pytest.fixture
def file(tmp_path: Path, pretrained: Model) -> Path:
    path = tmp_path / "encoder.safetensors"
    write_encoder(path, pretrained, CARD)
    return path


def weights_of(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_an_encoder_comes_back_as_it_was(file: Path, pretrained: Model) -> None:
    tensors, card = read_encoder(file)
    assert dataclasses.replace(card, weights_sha256="") == CARD
    expected = weights_of(pretrained)
    assert set(tensors) == {n for n in expected if n.startswith("encoder.") or n == "mask_vector"}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name])
    assert json.loads(file.with_suffix(".json").read_text())["objective"] == "mae"


def test_transfer_loads_the_encoder_and_reports_the_rest(file: Path, pretrained: Model) -> None:
    model = models.build("jade", **SMALL)
    before = weights_of(model)
    addresses = [parameter.data_ptr() for parameter in model.encoder.parameters()]
    report = transfer(model, read_encoder(file)[0])
    assert len(report.loaded) == 16
    assert report.refused == {"mask_vector": "no part of the encoder"}
    assert "refused mask_vector: no part of the encoder" in report.lines()
    after, source = model.state_dict(), pretrained.state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor, source[name] if name in report.loaded else before[name]), name
    # In place: the flat buffer of the LSTM is the one it was.
    assert [parameter.data_ptr() for parameter in model.encoder.parameters()] == addresses


def test_a_whole_models_weights_will_do(pretrained: Model) -> None:
    report = transfer(models.build("jade", **SMALL), pretrained.state_dict())
    assert "heads.reconstruction.output.weight" in report.refused
    assert "log_sigmas.reconstruction" in report.refused
    assert len(report.loaded) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 12},
            r"encoder.lstm.weight_ih_l0 is \[32, 11\], the model's is \[48, 11\], and 15 more",
        ),
        ({"num_features": 13}, r"is \[32, 11\], the model's is \[32, 13\]"),
        ({"num_layers": 1, "layer_dropout": 0.0}, r"encoder.lstm.weight_ih_l1 \[32, 16\] has no"),
        ({"num_layers": 3}, "encoder.lstm.weight_ih_l2 is missing"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    pretrained: Model, changes: dict[str, Any], message: str
) -> None:
    model = models.build("jade", **{**SMALL, **changes})
    before = weights_of(model)
    with pytest.raises(ModelError, match=message):
        transfer(model, pretrained.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_that_are_not_finite_are_refused(pretrained: Model) -> None:
    tensors = weights_of(pretrained)
    tensors["encoder.lstm.bias_hh_l1"][3] = torch.nan
    with pytest.raises(ModelError, match=r"encoder\.lstm\.bias_hh_l1 holds values that are not"):
        transfer(models.build("jade", **SMALL), tensors)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (COLUMNS[:-1], "this run lacks column_10"),
        ((*COLUMNS, "volume"), "it never read volume"),
        ((*COLUMNS[:-1], "volume"), "lacks column_10, and it never read volume"),
        (
            (COLUMNS[0], COLUMNS[2], COLUMNS[1], *COLUMNS[3:]),
            "column 1 was column_1 and is column_2 here",
        ),
    ],
)
def test_other_columns_are_named(columns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_card(CARD, columns=columns, warm=True, length=105)


def test_other_windows_warn() -> None:
    with pytest.warns(UserWarning, match="windows of a store and now reads windows from a cold"):
        check_card(CARD, columns=COLUMNS, warm=False, length=105)
    with pytest.warns(UserWarning, match="windows of 105 bars and now reads 60"):
        check_card(CARD, columns=COLUMNS, warm=True, length=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_card(CARD, columns=COLUMNS, warm=True, length=105)


class Hostile:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_hostile_pickle_is_refused_unrun(file: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    file.write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read_encoder(file)
    assert not trap.exists()
    torch.save({"encoder": Hostile(trap)}, file)
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read_encoder(file)
    assert not trap.exists()


def test_a_file_cut_off_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        read_encoder(file)


def test_a_card_belongs_to_its_file(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_encoder(other, models.build("jade-mae", **SMALL), CARD)
    file.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match=r"not the file that its card encoder\.json belongs"):
        read_encoder(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: {**card, "version": 2}, "has version 2, this moola reads 1"),
        (lambda card: [card], "has version None"),
        (lambda card: {**card, "warm": "yes"}, "warm is 'yes', not of type bool"),
        (lambda card: {**card, "window_length": True}, "window_length is True, not of type int"),
    ],
)
def test_a_damaged_card_is_named(file: Path, change: Any, message: str) -> None:
    card = file.with_suffix(".json")
    card.write_text(json.dumps(change(json.loads(card.read_text()))))
    with pytest.raises(CheckpointError, match=message):
        read_encoder(file)


def test_what_is_missing_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.safetensors cannot be read \(No such"):
        read_encoder(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"must be a name that ends in .safetensors"):
        read_encoder(tmp_path / "latest.pt")
    file.with_suffix(".json").write_text("{")
    with pytest.raises(CheckpointError, match=r"encoder.json is no JSON"):
        read_encoder(file)
    file.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"come with a card of the same name"):
        read_encoder(file)
    with pytest.raises(OutputError, match="there is no folder"):
        write_encoder(tmp_path / "none" / "e.safetensors", models.build("jade", **SMALL), CARD)
