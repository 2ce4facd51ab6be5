"""What a network is before it has learned: orthogonal, remembering, and no worse than the floor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moola_train import losses, models
from moola_train.initial import initialise_lstm, log_odds
from moola_train.targets import LabelledWindows, TargetPriors, make_targets

NUM_WINDOWS = 60
CLASSES = ("consolidation", "retracement", "other")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(17)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def targets() -> dict[str, np.ndarray[Any, Any]]:
    """Windows of three classes in unequal shares, a tenth without an expansion or a label."""
    made = np.random.default_rng(5)
    start = made.integers(20, 90, NUM_WINDOWS)
    end = start + made.integers(2, 14, NUM_WINDOWS)
    kind = made.choice(3, NUM_WINDOWS, p=[0.6, 0.3, 0.1])
    start[::10] = end[::10] = kind[::10] = -1
    names = tuple(f"w{row}" for row in range(NUM_WINDOWS))
    labels = LabelledWindows(
        window_id=names,
        base_id=names,
        type=kind.astype(np.int64),
        start=start.astype(np.int64),
        end=end.astype(np.int64),
        classes=CLASSES,
        length=105,
    )
    return make_targets(labels)


@pytest.fixture(scope="module")
def priors(targets: dict[str, np.ndarray[Any, Any]]) -> TargetPriors:
    return TargetPriors.of(targets, CLASSES)


@pytest.fixture
def batch(targets: dict[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    tensors = {name: torch.from_numpy(values) for name, values in targets.items()}
    return {"features": torch.randn(105, NUM_WINDOWS, 11), **tensors}


@pytest.mark.parametrize("num_layers", [1, 2])
def test_lstm_weights_are_orthogonal_by_gate_and_the_forget_bias_is_one(num_layers: int) -> None:
    size = 16
    lstm = nn.LSTM(7, size, num_layers, bidirectional=True)
    addresses = [parameter.data_ptr() for parameter in lstm.parameters()]
    initialise_lstm(lstm)
    assert [parameter.data_ptr() for parameter in lstm.parameters()] == addresses
    for from_input, from_hidden, bias, other_bias in lstm.all_weights:
        for gate in from_hidden.detach().chunk(4):
            assert torch.allclose(gate @ gate.T, torch.eye(size), atol=1e-5)
        for gate in from_input.detach().chunk(4):
            bound = (6 / sum(gate.shape)) ** 0.5
            assert 0.8 * bound < gate.abs().max() <= bound
        both = (bias + other_bias).detach()
        assert both.tolist() == [0.0] * size + [1.0] * size + [0.0] * 2 * size


def test_every_presets_encoder_starts_so() -> None:
    for name in models.PRESETS:
        lstm = models.build(name).encoder.lstm
        gate = lstm.all_weights[0][1].detach().chunk(4)[2]
        assert torch.allclose(gate @ gate.T, torch.eye(lstm.hidden_size), atol=1e-5)


def floors(batch: dict[str, Tensor], priors: TargetPriors) -> dict[str, float]:
    """The loss of what is best said of every window alike, from the formulas, in numpy."""
    kind, start, end, span = (batch[name].numpy() for name in ("type", "start", "end", "span"))
    known, expands = kind >= 0, start >= 0
    span = span[np.isfinite(span)]  # of windows that nobody labelled no bar is known
    p = priors.span_share
    type_floor = -np.log(priors.class_shares[kind[known]]).mean()
    off = np.abs(batch["pointers"].numpy()[expands] - priors.mean_pointers)
    pointers = np.where(off <= 0.08, off**2 / 2, 0.08 * (off - 0.04)).mean()
    late = np.abs(batch["countdown"].numpy()[expands] - priors.mean_countdown)
    edges = -np.log(priors.start_share[start[expands]]) - np.log(priors.end_share[end[expands]])
    return {
        "type": type_floor,
        "type_at_span": type_floor,
        "pointers": pointers,
        "span": np.where(span > 0, (1 - p) / p, 1.0).mean() * np.log(2),  # (1 - p) 2 log 2
        "span_crf": -np.where(span > 0, np.log(p), np.log(1 - p)).mean(),
        "countdown": (late**2 / 2).mean(),
        "edges": edges.mean() / 2,
        "span_scores": -np.log(share_of_spans(start[expands], end[expands], priors)).mean(),
        "type_before_span": type_floor,
    }


def share_of_spans(
    start: NDArray[np.int64], end: NDArray[np.int64], priors: TargetPriors
) -> NDArray[np.float64]:
    """Probability of spans by the shares of first and last bars, over those of 2 to 20 bars."""
    bars = np.arange(105)
    lengths = bars - bars[:, None] + 1
    shares = np.outer(priors.start_share, priors.end_share)
    shares = np.where((lengths >= 2) & (lengths <= 20), shares, 0.0)
    assert ((end - start >= 1) & (end - start < 20)).all(), "spans that stand for themselves"
    return shares[start, end] / shares.sum()


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "jade-compact": ("jade-compact", {}),
    "with a CRF": ("jade-compact", {"heads": ("type", "pointers", "span_crf", "countdown")}),
    "jade": ("jade", {}),
    "jade-span": ("jade-span", {}),
    "simple-lstm": ("simple-lstm", {"num_features": 11, "num_classes": 3}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_loss_is_the_floors(
    variant: str, batch: dict[str, Tensor], priors: TargetPriors
) -> None:
    preset, overrides = VARIANTS[variant]
    model = models.build(preset, **overrides)  # in training, dropout and all
    model.initialise(priors)
    expected = floors(batch, priors)
    actual = model.losses(model(batch), batch)
    for name, loss in actual.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-5), name


def test_the_spans_floor_is_the_lowest_of_all_constants(
    batch: dict[str, Tensor], priors: TargetPriors
) -> None:
    model = models.build("jade-compact")
    model.initialise(priors)
    weight = model.heads["span"].pos_weight
    assert weight.item() == pytest.approx((1 - priors.span_share) / priors.span_share)
    logits = torch.arange(-20, 21) / 20
    by_constant = [
        losses.span_bce(torch.full_like(batch["span"], float(x)), batch["span"], weight).item()
        for x in logits
    ]
    assert logits[int(np.argmin(by_constant))].item() == 0.0
    assert floors(batch, priors)["span"] == pytest.approx(min(by_constant), rel=1e-5)


def test_the_first_predictions_are_the_priors(
    batch: dict[str, Tensor], priors: TargetPriors
) -> None:
    model = models.build("jade-compact").eval()
    model.initialise(priors)
    predictions = model.decode(model(batch))
    shares = torch.from_numpy(priors.class_shares).float()
    assert torch.allclose(predictions["type_probability"], shares.expand(NUM_WINDOWS, 3))
    expected = torch.full((NUM_WINDOWS, 105), priors.span_share)
    assert torch.allclose(predictions["span_probability"], expected)
    assert torch.allclose(predictions["countdown"], torch.tensor(priors.mean_countdown).float())


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_moves_from_there(
    variant: str, batch: dict[str, Tensor], priors: TargetPriors
) -> None:
    preset, overrides = VARIANTS[variant]
    model = models.build(preset, **overrides)
    model.initialise(priors)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves the last layers, which then reach the rest
        optimiser.zero_grad()
        torch.stack(list(model.losses(model(batch), batch).values())).sum().backward()
        optimiser.step()
    unmoved = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert [name for name in unmoved if not name.startswith("log_sigmas.")] == []


def test_pretraining_heads_start_at_even_odds_and_at_zero(
    batch: dict[str, Tensor], priors: TargetPriors
) -> None:
    model = models.build("multitask", hidden_size=8).eval()
    model.initialise(priors)
    for name, classes in (("expansion", 2), ("swing", 3), ("candle", 4)):
        assert torch.allclose(model(batch)[name].softmax(2), torch.tensor(1 / classes))
    model = models.build("jade-mae", hidden_size=8).eval()
    model.initialise(priors)
    assert not model(batch)["reconstruction"].any()


def test_log_odds_are_finite_and_undo_the_logistic() -> None:
    assert torch.tensor(log_odds(0.3)).sigmoid().item() == pytest.approx(0.3)
    assert -20 < log_odds(0.0) < 0 < log_odds(1.0) < 20
