"""Losses: values by hand, gradients by differences, nothing learnt from what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moola_train import losses
from moola_train.targets import TargetPriors, make_targets
from tests.train.dispatch import NoHostSync
from tests.train.labelled import CLASSES, windows_at

NAN = math.nan


def tensor(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# --- by hand ---------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    logits = tensor([[math.log(3), 0.0], [0.0, math.log(4)], [5.0, 5.0]])
    actual = losses.cross_entropy(logits, torch.tensor([0, 0, -1]))
    assert actual.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 5)) / 2)


def test_focal_by_hand() -> None:
    logits = tensor([[math.log(3), 0.0], [0.0, math.log(4)]])  # p = 3/4 and 4/5
    target = torch.tensor([0, 1])
    terms = [-((1 / 4) ** 2) * math.log(3 / 4), -((1 / 5) ** 2) * math.log(4 / 5)]
    assert losses.focal(logits, target).item() == pytest.approx(sum(terms) / 2)
    weighted = losses.focal(logits, target, alpha=tensor([1.0, 1.17]))
    assert weighted.item() == pytest.approx((terms[0] + 1.17 * terms[1]) / 2)
    cubed = losses.focal(logits, target, gamma=3.0)
    assert cubed.item() == pytest.approx((terms[0] / 4 + terms[1] / 5) / 2)


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, target = random(9, 3), torch.tensor([0, 1, 2, -1, 0, 0, 2, -1, 1])
    expected = functional.cross_entropy(logits, target, ignore_index=-1)
    torch.testing.assert_close(losses.focal(logits, target, gamma=0.0), expected)
    torch.testing.assert_close(losses.cross_entropy(logits, target), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_of_what_is_certain_is_nothing(gamma: float) -> None:
    logits = tensor([[60.0, -60.0]]).requires_grad_()
    loss = losses.focal(logits, torch.tensor([0]), gamma)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_pointer_huber_by_hand() -> None:
    prediction = tensor([[0.54, 0.30], [0.5, 0.5], [0.9, 0.9]])
    target = tensor([[0.50, 0.10], [0.5, 0.42], [NAN, NAN]])
    terms = [0.04**2 / 2, 0.08 * (0.2 - 0.04), 0.0, 0.08**2 / 2]
    assert losses.pointer_huber(prediction, target).item() == pytest.approx(sum(terms) / 4)


def test_span_bce_by_hand() -> None:
    logits = tensor([[math.log(3), 0.0], [math.log(4), 2.0]])  # p = 3/4, 1/2, 4/5
    target = tensor([[1.0, 0.0], [0.0, NAN]])
    expected = (-13.1 * math.log(3 / 4) - math.log(1 / 2) - math.log(1 / 5)) / 3
    assert losses.span_bce(logits, target, 13.1).item() == pytest.approx(expected)
    assert losses.span_bce(logits, target, tensor(13.1)).item() == pytest.approx(expected)


def test_span_bce_is_torchs_and_does_not_overflow() -> None:
    logits, target = random(4, 7), (random(4, 7, seed=1) > 0).double()
    expected = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=tensor(5.0))
    torch.testing.assert_close(losses.span_bce(logits, target, 5.0), expected)
    assert losses.span_bce(tensor([[1e4, -1e4]]), tensor([[0.0, 1.0]])).item() == 1e4


def test_countdown_huber_by_hand() -> None:
    prediction, target = tensor([[0.0, 0.5], [0.3, 0.3]]), tensor([[1.0, 0.75], [NAN, NAN]])
    actual = losses.countdown_huber(prediction, target)
    assert actual.item() == pytest.approx((0.5 + 0.25**2 / 2) / 2)
    straight = losses.countdown_huber(prediction, target, delta=0.5)
    assert straight.item() == pytest.approx((0.5 * 0.75 + 0.25**2 / 2) / 2)


def test_edges_cross_entropy_by_hand() -> None:
    logits = torch.zeros(2, 3, 2, dtype=torch.float64)
    logits[0, 1, 0] = math.log(2)  # p = 1/4, 2/4, 1/4
    logits[0, 2, 1] = math.log(3)  # q = 1/5, 1/5, 3/5
    actual = losses.edges_cross_entropy(logits, torch.tensor([1, -1]), torch.tensor([0, -1]))
    assert actual.item() == pytest.approx((-math.log(2 / 4) - math.log(1 / 5)) / 2)


def test_reconstruction_huber_by_hand() -> None:
    target = tensor([[[3.0, 0.5], [9.0, 9.0]], [[0.0, -1.0], [7.0, 7.0]]])
    mask = torch.tensor([[True, False], [True, False]])
    terms = [3.0 - 0.5, 0.125, 0.0, 0.5]
    prediction = torch.zeros(2, 2, 2, dtype=torch.float64)
    actual = losses.reconstruction_huber(prediction, target, mask)
    assert actual.item() == pytest.approx(sum(terms) / 4)
    time_major = losses.reconstruction_huber(prediction, target.transpose(0, 1), mask.T)
    torch.testing.assert_close(time_major, actual)


# --- all of them -----------------------------------------------------------------------------

TYPES = torch.tensor([2, -1, 0, 1])
POINTERS = tensor([[0.5, 0.1], [NAN, NAN], [0.2, 0.3], [0.9, 0.05]])
SPANS = tensor([[1.0, 0.0, NAN], [NAN] * 3, [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
MASK = torch.tensor([[True, False], [False, False], [True, True], [False, True]])
FEATURES = random(4, 2, 5, seed=3)

# Outputs, and the loss of them with some targets missing and with all of them missing.
CASES: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "cross_entropy": (
        random(4, 3),
        lambda output: losses.cross_entropy(output, TYPES),
        lambda output: losses.cross_entropy(output, torch.full((4,), -1)),
    ),
    "focal": (
        random(4, 3),
        lambda output: losses.focal(output, TYPES, alpha=tensor([1.0, 1.17, 0.5])),
        lambda output: losses.focal(output, torch.full((4,), -1)),
    ),
    "pointer_huber": (
        random(4, 2),
        lambda output: losses.pointer_huber(output, POINTERS),
        lambda output: losses.pointer_huber(output, torch.full_like(POINTERS, NAN)),
    ),
    "span_bce": (
        random(4, 3),
        lambda output: losses.span_bce(output, SPANS, 13.1),
        lambda output: losses.span_bce(output, torch.full_like(SPANS, NAN), 13.1),
    ),
    "countdown_huber": (
        random(4, 3),
        lambda output: losses.countdown_huber(output, SPANS),
        lambda output: losses.countdown_huber(output, torch.full_like(SPANS, NAN)),
    ),
    "edges_cross_entropy": (
        random(4, 6, 2),
        lambda output: losses.edges_cross_entropy(output, TYPES, (TYPES + 2).where(TYPES >= 0, -1)),
        lambda output: losses.edges_cross_entropy(output, *torch.full((2, 4), -1)),
    ),
    "reconstruction_huber": (
        random(4, 2, 5),
        lambda output: losses.reconstruction_huber(output, FEATURES, MASK),
        lambda output: losses.reconstruction_huber(output, FEATURES, MASK & False),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_differences(name: str) -> None:
    output, loss, _ = CASES[name]
    assert torch.autograd.gradcheck(loss, [output.clone().requires_grad_()])


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_teaches_nothing(name: str) -> None:
    output, loss, _ = CASES[name]
    leaf = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.isfinite(gradient).all()
    missing = gradient[1]  # in every case nothing is known of the second window
    assert (missing == 0).all()
    assert (gradient[0] != 0).any()
    changed = output.clone()
    changed[1] += 7.0
    torch.testing.assert_close(loss(changed), loss(output), rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_where_all_is_missing_the_loss_is_zero(name: str) -> None:
    output, _, nothing = CASES[name]
    leaf = output.clone().requires_grad_()
    loss = nothing(leaf)
    assert loss.shape == ()
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_no_loss_makes_the_host_wait(name: str) -> None:
    output, loss, _ = CASES[name]
    leaf = output.clone().requires_grad_()
    with NoHostSync():
        torch.autograd.grad(loss(leaf), leaf)


def test_waiting_would_be_seen() -> None:
    values = torch.ones(3)
    for wait in (values.sum().item, values.nonzero, lambda: values[values > 0]):
        with NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):
            wait()


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_reckoned_with_in_full(name: str) -> None:
    output, loss, _ = CASES[name]
    half = output.bfloat16()
    actual = loss(half)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, loss(half.double()).float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_broken_output_is_not_hidden(name: str) -> None:
    output, loss, _ = CASES[name]
    assert not torch.isfinite(loss(torch.full_like(output, NAN)))


def test_the_constant_of_the_priors_has_the_floors_loss() -> None:
    """What an output layer starts from is where no other constant has a lower loss."""
    labels = windows_at(range(0, 7_000, 1_000))
    targets = {name: torch.from_numpy(values) for name, values in make_targets(labels).items()}
    priors = TargetPriors.of(make_targets(labels), CLASSES)
    logits = torch.from_numpy(priors.class_shares).log().expand(7, 2)
    entropy = -(priors.class_shares * torch.from_numpy(priors.class_shares).log().numpy()).sum()
    assert losses.cross_entropy(logits, targets["type"]).item() == pytest.approx(entropy)
    share = priors.span_share
    balanced = losses.span_bce(torch.zeros(7, 105), targets["span"], (1 - share) / share)
    assert balanced.item() == pytest.approx(2 * (1 - share) * math.log(2), rel=1e-6)
