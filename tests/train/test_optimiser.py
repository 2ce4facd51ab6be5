"""Who is decayed, how the learning rate goes, and what averages are."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from moola_train.balance import make_balance
from moola_train.config import OptimiserConfig
from moola_train.models import Model, build
from moola_train.optimiser import ENCODER, HEADS, Average, Schedule, make_optimiser

EVERY_HEAD = ("type", "pointers", "span", "span_crf", "countdown", "edges", "expansion")


def model_of() -> Model:
    return build("jade-compact", heads=EVERY_HEAD, hidden_size=8, attention_heads=2)


def names_by_decay(model: Model, decay: float) -> dict[bool, set[str]]:
    balance = make_balance("kendall", model.heads, log_sigmas=model.log_sigmas)
    optimiser = make_optimiser(model, balance, OptimiserConfig(weight_decay=decay))
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for group in optimiser.param_groups:
        assert group["weight_decay"] in (0.0, decay)
        for parameter in group["params"]:
            name = name_of.pop(id(parameter))
            found[group["weight_decay"] > 0].add(name)
            assert (group["part"] == ENCODER) == name.startswith("encoder.")
    assert not name_of, "every parameter is trained, and once"
    return found


def test_decay_is_for_weight_matrices_only() -> None:
    found = names_by_decay(model_of(), 0.01)
    matrices = {
        name for name, p in model_of().named_parameters() if p.ndim == 2 and "weight" in name
    }
    assert found[True] == matrices
    for part in ("bias", "norm", "log_sigmas.", "crf.transitions", "crf.start"):
        assert any(part in name for name in found[False]), part
        assert not any(part in name for name in found[True]), part
    assert "encoder.lstm.weight_hh_l0" in found[True]
    assert "encoder.attention.attention.in_proj_weight" in found[True]


def test_decay_shrinks_matrices_and_leaves_the_rest_alone() -> None:
    model = model_of()
    balance = make_balance("kendall", model.heads, log_sigmas=model.log_sigmas)
    optimiser = make_optimiser(model, balance, OptimiserConfig(weight_decay=0.5, learning_rate=0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim == 2 and "weight" in name
        assert torch.allclose(parameter, before[name] * (0.95 if decayed else 1.0)), name


def test_an_update_is_left_out_on_the_device() -> None:
    model = model_of()
    optimiser = make_optimiser(model, nn.Module(), OptimiserConfig())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    before = [p.detach().clone() for p in model.parameters()]
    optimiser.found_inf = torch.ones(())
    optimiser.step()
    assert all(map(torch.equal, before, model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.found_inf = torch.zeros(())
    optimiser.step()
    assert not any(map(torch.equal, before, model.parameters()))
    assert all(state["step"] == 1 for state in optimiser.state.values())


class TestSchedule:
    def rates(self, steps: int = 100, *, epochs: int = 10, **settings: object) -> list[float]:
        config = OptimiserConfig(learning_rate=1.0, **settings)  # type: ignore[arg-type]
        schedule = Schedule(config, 10, epochs)
        return [schedule.rates(step)[HEADS] for step in range(steps)]

    def test_warm_up_rises_in_a_straight_line(self) -> None:
        rates = self.rates(warmup_epochs=2.0, schedule="constant")
        assert rates[:20] == pytest.approx([(step + 1) / 21 for step in range(20)])
        assert rates[20:] == [1.0] * 80

    def test_cosine_falls_to_its_share(self) -> None:
        rates = self.rates(warmup_epochs=2.0, final_share=0.1)
        assert rates[20] == 1.0
        assert rates[60] == pytest.approx(0.55)  # half way between 1 and 0.1
        assert rates[99] == pytest.approx(0.1, abs=2e-3)
        assert all(first > second for first, second in pairwise(rates[20:]))

    def test_cosine_stays_there(self) -> None:
        assert self.rates(120, final_share=0.1)[100:] == pytest.approx([0.1] * 20)

    def test_no_warm_up(self) -> None:
        assert self.rates(warmup_epochs=0.0)[0] == 1.0

    def test_plateau(self) -> None:
        config = OptimiserConfig(
            learning_rate=1.0, schedule="plateau", plateau_patience=2, warmup_epochs=0.0
        )
        schedule = Schedule(config, 10, 10)
        seen = []
        for loss in (3.0, 2.0, 2.0, 2.5, 1.0, math.nan, 1.0, 1.5):
            schedule.observe(loss)
            seen.append(schedule.rates(50)[HEADS])
        assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
        other = Schedule(config, 10, 10)
        other.load_state_dict(schedule.state_dict())
        for each in (schedule, other):
            each.observe(9.0)
            assert each.rates(50)[HEADS] == 0.125

    def test_others_do_not_look_at_the_loss(self) -> None:
        schedule = Schedule(OptimiserConfig(), 10, 10)
        before = schedule.rates(50)
        for _ in range(20):
            schedule.observe(7.0)
        assert schedule.rates(50) == before

    def test_freezing(self) -> None:
        config = OptimiserConfig(learning_rate=1.0, freeze_epochs=3, unfreeze_lr_scale=0.3)
        schedule = Schedule(config, 10, 10)
        for step in (0, 29):
            assert schedule.freezes(step)
            assert schedule.rates(step)[ENCODER] == 0.0
        for step in (30, 99):
            assert not schedule.freezes(step)
            rates = schedule.rates(step)
            assert rates[ENCODER] == pytest.approx(0.3 * rates[HEADS])
        plain = Schedule(OptimiserConfig(), 10, 10)
        assert not plain.freezes(0)
        assert plain.rates(0)[ENCODER] == plain.rates(0)[HEADS]


class TestAverage:
    def test_follows_by_the_formula(self) -> None:
        layer = nn.Linear(2, 2)
        average = Average(layer, 0.75)
        expected = layer.weight.detach().clone()
        for value in (1.0, 5.0):
            nn.init.constant_(layer.weight, value)
            average.update()
            expected = 0.75 * expected + 0.25 * value
        assert torch.allclose(average.state_dict()[0], expected)

    def test_swaps_in_place_and_back(self) -> None:
        layer = nn.Linear(2, 2)
        average = Average(layer, 0.5)
        place, first = layer.weight.data_ptr(), layer.weight.detach().clone()
        nn.init.zeros_(layer.weight)
        average.swap()
        assert layer.weight.data_ptr() == place
        assert torch.equal(layer.weight, first)
        average.swap()
        assert torch.equal(layer.weight, torch.zeros(2, 2))

    def test_none_does_nothing(self) -> None:
        layer = nn.Linear(2, 2)
        average = Average(layer, 0.0)
        before = layer.weight.detach().clone()
        average.update()
        average.swap()
        assert torch.equal(layer.weight, before)
        assert average.state_dict() == []
