"""Heads: what each gives, loses and decodes; and that one more is one file."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moola_train import heads, losses, models
from moola_train.encoder import Encoded
from moola_train.errors import ModelError
from moola_train.heads import HEADS, Head, HeadInput, HeadSettings, register
from moola_train.targets import pointers_of, span_of

NUM_WINDOWS, LENGTH, STEP_SIZE = 4, 105, 6

SETTINGS = HeadSettings(
    step_size=STEP_SIZE,
    summary_size=5,
    num_features=11,
    num_classes=3,
    window_length=LENGTH,
    dropout=0.5,
    focal_gamma=0.0,
    class_weights=(),
    span_threshold=0.5,
)

SHAPES = {
    "type": (3,),
    "pointers": (2,),
    "span": (LENGTH,),
    "span_crf": (LENGTH, 2),
    "countdown": (LENGTH,),
    "edges": (LENGTH, 2),
    "type_at_span": (3,),
    "span_scores": (LENGTH, 19),
    "type_before_span": (3,),
    "reconstruction": (LENGTH, 11),
    "expansion": (LENGTH, 2),
    "swing": (LENGTH, 3),
    "candle": (LENGTH, 4),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(17)
    yield
    torch.set_num_threads(before)


def make(name: str, **changes: Any) -> Head:
    values = {**vars(SETTINGS), **changes}
    return HEADS[name](HeadSettings(**values)).eval()


@pytest.fixture
def inputs() -> HeadInput:
    encoded = Encoded(torch.randn(LENGTH, NUM_WINDOWS, STEP_SIZE))
    outputs = {
        "edges": torch.randn(NUM_WINDOWS, LENGTH, 2),
        "span_scores": torch.randn(NUM_WINDOWS, LENGTH, 19),
    }
    features = torch.randn(LENGTH, NUM_WINDOWS, 11)
    return HeadInput(encoded, torch.randn(NUM_WINDOWS, 5), outputs, features)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """One window without labels, three with."""
    start, end = torch.tensor([-1, 10, 50, 80]), torch.tensor([-1, 14, 61, 83])
    bars = torch.arange(LENGTH)
    span = ((bars >= start[:, None]) & (bars <= end[:, None])).float()
    span[0] = torch.nan
    countdown = ((start[:, None] - bars).clamp(-20, 20) + 20) / 40
    countdown[0] = torch.nan
    bar_classes = {name: torch.randint(0, 2, (4, LENGTH)) for name in ("expansion", "swing")}
    return {
        "features": torch.randn(LENGTH, NUM_WINDOWS, 11),
        "mask": torch.rand(LENGTH, NUM_WINDOWS) < 0.2,
        "type": torch.tensor([-1, 0, 1, 2]),
        "start": start,
        "end": end,
        "pointers": torch.from_numpy(pointers_of(start.numpy(), end.numpy())),
        "span": span,
        "countdown": countdown,
        **bar_classes,
        "candle": torch.randint(-1, 4, (4, LENGTH)),
    }


def test_the_folder_is_the_registry() -> None:
    assert set(HEADS) == set(SHAPES)
    for name, head in HEADS.items():
        assert head.name == name
        assert head.what
        assert set(head.needs) <= set(HEADS)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, inputs: HeadInput) -> None:
    assert make(name)(inputs).shape == (NUM_WINDOWS, *SHAPES[name])


@pytest.mark.parametrize("name", SHAPES)
def test_a_loss_is_a_scalar_and_the_last_layer_learns_from_it(
    name: str, inputs: HeadInput, batch: dict[str, Tensor]
) -> None:
    head = make(name)
    loss = head.loss(head(inputs), batch)
    assert loss.shape == ()
    assert loss.item() > 0
    loss.backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert head.output.weight.grad is not None
    assert head.output.weight.grad.any()


LABELLED = sorted(set(SHAPES) - {"reconstruction", "expansion", "swing", "candle"})


@pytest.mark.parametrize("name", LABELLED)
def test_windows_without_labels_count_for_nothing(
    name: str, inputs: HeadInput, batch: dict[str, Tensor]
) -> None:
    head = make(name)
    output = head(inputs)
    labelled = {key: value[1:] for key, value in batch.items() if key not in ("features", "mask")}
    assert head.loss(output, batch).item() == pytest.approx(head.loss(output[1:], labelled).item())
    nothing = {key: value[:1] for key, value in batch.items() if key not in ("features", "mask")}
    empty = head.loss(output[:1], nothing)
    assert empty.item() == 0.0
    empty.backward()
    assert head.output.weight.grad is not None
    assert not head.output.weight.grad.any()


@pytest.mark.parametrize("name", SHAPES)
def test_a_loss_is_a_mean_over_what_is_labelled(
    name: str, inputs: HeadInput, batch: dict[str, Tensor]
) -> None:
    """So the means of two parts, each with its number of items, make the mean of both."""
    batch["swing"][2, :40] = -1
    batch["valid"] = torch.rand(LENGTH, NUM_WINDOWS) < 0.8
    head, by_bar = make(name), ("features", "mask", "valid")
    output = head(inputs).detach()
    total, count = 0.0, 0
    for rows in (slice(0, 2), slice(2, 4)):
        part = {key: v[:, rows] if key in by_bar else v[rows] for key, v in batch.items()}
        labelled = int(head.num_labelled(part))
        total += head.loss(output[rows], part).item() * labelled
        count += labelled
    assert count == int(head.num_labelled(batch)) > 0
    assert head.loss(output, batch).item() == pytest.approx(total / count, rel=1e-5)


def test_crf_loss_is_the_negative_log_likelihood_over_the_length(
    inputs: HeadInput, batch: dict[str, Tensor]
) -> None:
    head = make("span_crf")
    output = head(inputs)
    per_window = head.crf.negative_log_likelihood(output[1:], batch["span"][1:].long())
    assert head.loss(output, batch).item() == pytest.approx(per_window.mean().item() / LENGTH)


def test_type_is_focal_when_asked(inputs: HeadInput, batch: dict[str, Tensor]) -> None:
    head = make("type", focal_gamma=2.0, class_weights=(1.0, 1.17, 0.5))
    output = head(inputs)
    expected = losses.focal(output, batch["type"], 2.0, torch.tensor([1.0, 1.17, 0.5]))
    assert head.loss(output, batch).item() == expected.item()
    plain = make("type")
    assert plain.loss(output, batch).item() == losses.cross_entropy(output, batch["type"]).item()
    assert list(head.state_dict()) == list(plain.state_dict())
    with pytest.raises(ModelError, match="class_weights has 2 values for 3 classes"):
        make("type", class_weights=(1.0, 1.17))


def test_reconstruction_counts_masked_valid_bars_only(batch: dict[str, Tensor]) -> None:
    head = make("reconstruction")
    valid = torch.rand(LENGTH, NUM_WINDOWS) < 0.8
    counted = (batch["mask"] & valid).T  # [B, T]
    output = torch.randn(NUM_WINDOWS, LENGTH, 11)
    changed = torch.where(counted.unsqueeze(2), output, 100.0)
    with_valid = {**batch, "valid": valid}
    assert head.loss(output, with_valid).item() == head.loss(changed, with_valid).item()
    assert head.loss(output, batch).item() != head.loss(changed, batch).item()


def test_pointers_decode_every_span_there_is() -> None:
    start, end = np.array(list(itertools.combinations_with_replacement(range(LENGTH), 2))).T
    assert len(start) == 5565
    decoded = make("pointers").decode(torch.from_numpy(pointers_of(start, end)))
    assert decoded["start"].tolist() == start.tolist()
    assert decoded["end"].tolist() == end.tolist()


def test_pointers_decode_like_their_targets() -> None:
    pointers = torch.rand(500, 2)
    decoded = make("pointers").decode(pointers)
    start, end = span_of(pointers.numpy())
    assert (decoded["start"].numpy() == start).mean() > 0.99  # halves may fall either way
    assert (decoded["end"].numpy() == end).mean() > 0.99
    assert (decoded["start"] >= 0).all()
    assert (decoded["end"] < LENGTH).all()


def test_edges_decode_the_best_span_of_2_to_20_bars() -> None:
    logits = 3 * torch.randn(6, LENGTH, 2)
    logits[0, 70, 0] = logits[0, 70, 1] = 50.0  # one bar is too short
    logits[1, 10, 0] = logits[1, 40, 1] = 50.0  # and 31 too long
    logits[2, 104, 0] = 50.0  # nothing can start at the last bar
    decoded = make("edges").decode(logits)
    first, last = logits.double().log_softmax(1).unbind(2)
    for window in range(6):
        joint = {
            (a, b): float(first[window, a] + last[window, b])
            for a in range(LENGTH)
            for b in range(a + 1, min(a + 20, LENGTH))
        }
        best = max(joint, key=joint.__getitem__)
        assert (decoded["start"][window].item(), decoded["end"][window].item()) == best


def test_edges_never_lie_on_bars_that_are_not_valid(inputs: HeadInput) -> None:
    valid = torch.zeros(LENGTH, NUM_WINDOWS, dtype=torch.bool)
    valid[30:60] = True
    head = make("edges")
    output = head(dataclasses.replace(inputs, encoded=Encoded(inputs.encoded.steps, valid)))
    inside = output.softmax(1)[:, 30:60].sum(1)
    assert torch.allclose(inside, torch.ones(NUM_WINDOWS, 2))
    decoded = head.decode(output)
    assert (decoded["start"] >= 30).all()
    assert (decoded["end"] < 60).all()


def test_span_decodes_the_run_of_the_highest_sum_once_the_weight_is_taken_off() -> None:
    head = make("span")
    logits = torch.full((3, LENGTH), -5.0)
    logits[0, 20:25] = 2.0
    logits[0, 22] = -1.0  # a dip is bridged
    logits[0, 60:62] = 3.0  # a second run, of a lower sum
    logits[1, 40:44] = 1.0
    assert head.decode(logits)["start"].tolist() == [20, 40, -1]
    assert head.decode(logits)["end"].tolist() == [24, 43, -1]
    head.pos_weight.fill_(float(np.exp(1.5)))  # log-odds 1.5 too high
    assert head.decode(logits)["start"].tolist() == [60, -1, -1]
    probability = head.decode(logits)["span_probability"]
    assert probability[0, 60].item() == pytest.approx(1 / (1 + np.exp(-1.5)))


def test_span_threshold_moves_the_cut() -> None:
    logits = torch.full((1, LENGTH), -5.0)
    logits[0, 30:33] = 1.0  # a probability of 0.73
    assert make("span", span_threshold=0.7).decode(logits)["start"].item() == 30
    assert make("span", span_threshold=0.75).decode(logits)["start"].item() == -1


def test_crf_decodes_its_path_and_at_most_one_span(inputs: HeadInput) -> None:
    head = make("span_crf")
    with torch.no_grad():
        head.crf.transitions.copy_(torch.tensor([[2.0, -2.0], [-2.0, 2.0]]))
    emissions = 3 * torch.randn(8, LENGTH, 2)
    decoded = head.decode(emissions)
    assert torch.equal(decoded["span_path"], head.crf.best_path(emissions))
    rises = (decoded["span_path"].diff(dim=1) == 1).sum(1)
    assert rises.max() > 1  # so that the condition on one span has something to do
    assert (decoded["start"] <= decoded["end"]).all()


def test_countdown_decodes_into_its_range() -> None:
    decoded = make("countdown").decode(torch.tensor([[-0.5, 0.25, 1.5]]))
    assert decoded["countdown"].tolist() == [[0.0, 0.25, 1.0]]


def test_type_at_span_reads_where_the_edges_are(inputs: HeadInput) -> None:
    head = make("type_at_span")
    edges = torch.full((NUM_WINDOWS, LENGTH, 2), -50.0)
    edges[:, 33] = 50.0
    edges.requires_grad_()
    steps = inputs.encoded.steps
    output = head(dataclasses.replace(inputs, outputs={"edges": edges}))
    pools = torch.cat([steps.mean(0), steps.amax(0), steps[33]], dim=1)
    assert torch.allclose(output, head.output(head.projection(pools).relu()), atol=1e-5)
    output.sum().backward()
    assert edges.grad is None


@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"reconstruction"}))
def test_head_dropout_acts(name: str, inputs: HeadInput) -> None:
    head = make(name).train()
    assert not torch.equal(head(inputs), head(inputs))


NEW_HEAD = """
from torch import nn

from moola_train.heads.base import Head, register


@register("last_bar", "the last bar's own reading")
class LastBar(Head):
    log_sigma = None

    def __init__(self, settings):
        super().__init__(settings)
        self.output = nn.Linear(settings.step_size, 1)

    def forward(self, inputs):
        return self.output(inputs.encoded.steps[-1])
"""


def test_one_more_head_is_one_more_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last_bar.py").write_text(NEW_HEAD)
    monkeypatch.setattr(heads, "__path__", [*heads.__path__, str(tmp_path)])
    known = dict(HEADS)
    try:
        heads.discover()
        model = models.build("jade-compact", heads=("type", "last_bar"))
        outputs = model({"features": torch.zeros(LENGTH, 2, 11)})
        assert outputs["last_bar"].shape == (2, 1)
        assert list(model.log_sigmas) == ["type"]
    finally:
        sys.modules.pop("moola_train.heads.last_bar", None)
        HEADS.clear()
        HEADS.update(known)


def test_two_heads_of_one_name_are_refused() -> None:
    with pytest.raises(ModelError, match="two heads are called 'span'"):
        register("span", "again")(Head)
