"""Balance: three ways to one loss, and gradients that do not pull against each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from moola_train.balance import Balance, Fixed, Kendall, RunningMean, make_balance
from moola_train.errors import ConfigError
from moola_train.pcgrad import pcgrad
from tests.train.dispatch import NoHostSync

TERMS = ("type", "pointers", "span", "countdown")


def scalars(*values: float, names: tuple[str, ...] = TERMS) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in zip(names, values, strict=False)}


def sigmas(**values: float) -> nn.ParameterDict:
    return nn.ParameterDict(
        {name: nn.Parameter(torch.tensor(value)) for name, value in values.items()}
    )


# --- Kendall ---------------------------------------------------------------------------------


def test_kendall_by_hand() -> None:
    log_sigmas = sigmas(pointers=-0.3, span=0.0)
    balance = Kendall(log_sigmas, ["type", "pointers", "span"])
    total = balance(scalars(0.7, 0.02, 1.5))
    expected = 0.7 + 0.02 / (2 * math.exp(-0.3) ** 2) - 0.3 + 1.5 / 2
    assert total.item() == pytest.approx(expected, rel=1e-6)
    total.backward()
    # d/ds (L exp(-2 s) / 2 + s) = 1 - L exp(-2 s)
    gradient = log_sigmas["pointers"].grad
    assert gradient is not None
    assert gradient.item() == pytest.approx(1 - 0.02 * math.exp(0.6), rel=1e-6)
    assert balance.log() == pytest.approx({"sigma/pointers": math.exp(-0.3), "sigma/span": 1.0})


def test_kendalls_sigma_settles_where_its_square_is_the_loss() -> None:
    log_sigmas = sigmas(span=0.0)
    balance = Kendall(log_sigmas)
    optimiser = torch.optim.SGD(log_sigmas.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        balance(scalars(0.25, names=("span",))).backward()
        optimiser.step()
    assert balance.log()["sigma/span"] == pytest.approx(0.5, rel=1e-3)


def test_the_sigmas_stay_the_models() -> None:
    """Registered twice, they would reach the optimiser twice and the checkpoint twice."""
    log_sigmas = sigmas(span=0.0)
    balance = Kendall(log_sigmas)
    assert list(balance.parameters()) == []
    assert balance.state_dict() == {}
    log_sigmas.double()
    assert balance(scalars(1.0, names=("span",))).dtype == torch.float64


@pytest.mark.parametrize(
    ("log_sigmas", "words"),
    [
        (nn.ParameterDict(), "the model has no log sigmas"),
        (sigmas(swing=0.0), "log sigma 'swing' has no loss among type, pointers"),
    ],
)
def test_sigmas_must_fit(log_sigmas: nn.ParameterDict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Kendall(log_sigmas, TERMS)


# --- running mean ----------------------------------------------------------------------------


def test_running_mean_by_hand() -> None:
    balance = RunningMean({"type": 0.5, "span": 2.0}, momentum=0.9, warmup_steps=2)
    expected_means = {"type": [2.0, 3.0, 3.3], "span": [10.0, 20.0, 18.1]}
    steps = [(2.0, 10.0), (4.0, 30.0), (6.0, 1.0)]
    for step, (first, second) in enumerate(steps):
        total = balance(scalars(first, second, names=("type", "span")))
        means = [expected_means[name][step] for name in ("type", "span")]
        assert total.item() == pytest.approx(0.5 * first / means[0] + 2 * second / means[1])
        assert list(balance.log().values()) == pytest.approx(means)


def test_running_mean_gives_every_term_its_weight() -> None:
    """Whatever the scale of a loss, its share of the gradient is its weight over its mean."""
    balance = make_balance("running-mean", TERMS)
    losses = scalars(700.0, 0.01, 3.0, 0.5)
    leaves = {name: loss.requires_grad_() for name, loss in losses.items()}
    balance(leaves).backward()
    for name, weight in zip(TERMS, (0.1, 0.7, 0.1, 0.1), strict=True):
        gradient = leaves[name].grad
        assert gradient is not None
        assert gradient.item() * leaves[name].item() == pytest.approx(weight, rel=1e-6)


def test_running_mean_of_real_steps_is_the_plain_mean_first() -> None:
    balance = RunningMean({"type": 1.0})
    values = [float(step) for step in range(1, 14)]
    mean = 0.0
    for step, value in enumerate(values, start=1):
        balance(scalars(value, names=("type",)))
        mean = sum(values[:step]) / step if step <= 10 else 0.95 * mean + 0.05 * value
        assert balance.log()["mean/type"] == pytest.approx(mean, rel=1e-6)


def test_a_batch_without_labels_leaves_the_mean_alone() -> None:
    balance = RunningMean({"type": 1.0, "span": 1.0})
    balance(scalars(2.0, 4.0, names=("type", "span")))
    total = balance(scalars(0.0, 4.0, names=("type", "span")))
    assert total.item() == 1.0
    assert balance.log() == {"mean/type": 2.0, "mean/span": 4.0}
    assert balance.num_steps.tolist() == [1, 2]


def test_evaluation_leaves_the_mean_alone() -> None:
    balance = RunningMean({"type": 1.0})
    balance(scalars(2.0, names=("type",)))
    balance.eval()
    assert balance(scalars(8.0, names=("type",))).item() == 4.0
    assert balance.log() == {"mean/type": 2.0}
    fresh = RunningMean({"type": 1.0}).eval()
    assert fresh(scalars(8.0, names=("type",))).item() == 8.0


def test_the_running_mean_goes_on_from_its_state() -> None:
    one, other = RunningMean({"type": 1.0}), RunningMean({"type": 1.0})
    for value in (3.0, 5.0, 4.0):
        one(scalars(value, names=("type",)))
    other.load_state_dict(one.state_dict())
    for value in (1.0, 9.0):
        losses = scalars(value, names=("type",))
        assert torch.equal(one(losses), other(losses))


def test_a_step_does_not_change_an_earlier_graph() -> None:
    balance = RunningMean({"type": 1.0})
    loss = torch.tensor(2.0, requires_grad=True)
    early = balance({"type": loss * 1.0})
    balance(scalars(100.0, names=("type",)))
    early.backward()
    assert loss.grad is not None
    assert loss.grad.item() == 0.5


# --- making one ------------------------------------------------------------------------------


def test_each_can_be_made() -> None:
    log_sigmas = sigmas(pointers=-0.3)
    assert isinstance(make_balance("kendall", TERMS, log_sigmas=log_sigmas), Kendall)
    running = make_balance("running-mean", (*TERMS, "edges"), weights={"span": 0.4})
    assert isinstance(running, RunningMean)
    assert running.weights == {
        "type": 0.1, "pointers": 0.7, "span": 0.4, "countdown": 0.1, "edges": 0.1,
    }  # fmt: skip
    fixed = make_balance("fixed", TERMS, weights={"pointers": 3})
    assert isinstance(fixed, Fixed)
    assert fixed(scalars(1.0, 2.0, 4.0, 8.0)).item() == 1 + 6 + 4 + 8
    assert fixed.log()["weight/pointers"] == 3.0


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("kendall+running-mean", None, "kendall and running-mean exclude each other"),
        ("softmax", None, "balance is 'softmax'; choose one of kendall, running-mean, fixed"),
        ("kendall", {"span": 1.0}, "balance 'kendall' learns its own"),
        ("kendall", None, "the model has no log sigmas"),
        ("fixed", {"swing": 1.0}, "weight of 'swing'"),
        ("fixed", {"span": -1.0}, "weight of 'span' is -1.0"),
        ("running-mean", {"span": math.nan}, "weight of 'span' is nan"),
    ],
)
def test_settings_that_contradict(name: str, weights: dict[str, float] | None, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_balance(name, TERMS, weights=weights)
    assert words in str(caught.value)


@pytest.mark.parametrize("balance", [Fixed({"pointers": 1.0}), Kendall(sigmas(pointers=0.0))])
def test_losses_of_other_terms_are_refused(balance: Balance) -> None:
    with pytest.raises(ConfigError, match="losses are span; this balance was made for pointers"):
        balance(scalars(1.0, names=("span",)))


@pytest.mark.parametrize("name", ["kendall", "running-mean", "fixed"])
def test_the_total_is_the_sum_of_the_weighted(name: str) -> None:
    log_sigmas = sigmas(pointers=-0.3) if name == "kendall" else None
    balance = make_balance(name, TERMS, log_sigmas=log_sigmas).eval()
    losses = scalars(0.7, 0.02, 1.3, 0.1)
    total = sum(loss.item() for loss in balance.weighted(losses).values())
    assert balance(losses).item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", ["kendall", "running-mean", "fixed"])
def test_no_balance_makes_the_host_wait(name: str) -> None:
    log_sigmas = sigmas(pointers=-0.3) if name == "kendall" else None
    balance = make_balance(name, TERMS, log_sigmas=log_sigmas)
    losses = {term: loss.requires_grad_() for term, loss in scalars(0.7, 0.02, 1.3, 0.0).items()}
    with NoHostSync():
        balance(losses).backward()
        pcgrad(list(balance.weighted(losses).values()), losses.values(), seed=1)


# --- PCGrad ----------------------------------------------------------------------------------


def surgery(gradients: list[list[float]], *, seed: int = 0) -> list[float]:
    """What PCGrad makes of losses with these gradients."""
    x = torch.zeros(len(gradients[0]), dtype=torch.float64, requires_grad=True)
    pcgrad([torch.tensor(g, dtype=torch.float64) @ x for g in gradients], [x], seed=seed)
    assert x.grad is not None
    found: list[float] = x.grad.tolist()
    return found


def test_conflicts_are_projected_away() -> None:
    # (1, 0) loses its part along (-1, 1): (1/2, 1/2); (-1, 1) loses its part along (1, 0): (0, 1).
    assert surgery([[1.0, 0.0], [-1.0, 1.0]]) == pytest.approx([0.5, 1.5])
    # Two that point against each other leave nothing.
    assert surgery([[1.0, 2.0], [-2.0, -4.0]]) == pytest.approx([0.0, 0.0])


def test_without_a_conflict_gradients_add_up() -> None:
    assert surgery([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]]) == pytest.approx([3.0, 4.0])
    assert surgery([[1.0, 0.0], [0.0, 0.0]]) == pytest.approx([1.0, 0.0])


def projected(gradients: list[Tensor], orders: list[tuple[int, ...]]) -> Tensor:
    """Algorithm 1 of the paper, word for word."""
    total = torch.zeros_like(gradients[0])
    for index, gradient in enumerate(gradients):
        result = gradient.clone()
        for other in orders[index]:
            if other != index and result @ gradients[other] < 0:
                along = gradients[other]
                result -= (result @ along) / (along @ along) * along
        total += result
    return total


def test_three_losses_follow_the_paper_in_one_of_its_orders() -> None:
    rows = [[1.0, 0.2, 0.0], [-1.0, 0.5, 0.3], [0.1, -1.0, -0.4]]
    gradients = [torch.tensor(row, dtype=torch.float64) for row in rows]
    orders = list(itertools.permutations(range(3)))
    possible = [projected(gradients, list(c)) for c in itertools.product(orders, repeat=3)]
    found = {seed: torch.tensor(surgery(rows, seed=seed)).double() for seed in range(12)}
    for actual in found.values():
        assert any(torch.allclose(actual, expected, atol=1e-6) for expected in possible)
    assert len({tuple(actual.tolist()) for actual in found.values()}) > 1
    assert surgery(rows, seed=5) == surgery(rows, seed=5)


def test_a_heads_own_parameters_keep_their_gradient() -> None:
    shared = torch.tensor([1.0, -1.0], requires_grad=True)
    one, other = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    frozen, unused = torch.tensor(1.0), torch.tensor(1.0, requires_grad=True)
    parameters = [shared, one, other, frozen, unused]
    pcgrad([one * shared[0], other * (shared[1] - shared[0])], parameters, seed=0)
    assert one.grad is not None
    assert other.grad is not None
    assert shared.grad is not None
    assert (one.grad.item(), other.grad.item()) == (1.0, -2.0)
    assert unused.grad is None
    # (2, 0) and (-3, 3) conflict: (1, 1) and (0, 3).
    assert shared.grad.tolist() == pytest.approx([1.0, 4.0])


def test_gradients_are_added_to_what_is_there() -> None:
    x = torch.zeros(2, requires_grad=True)
    for _ in range(2):
        pcgrad([x[0], x[1]], [x], seed=0)
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 2.0]
