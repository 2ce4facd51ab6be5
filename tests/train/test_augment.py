"""Augmentations change what they say and nothing else, and targets stay true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moola_train import augment as augmentations
from moola_train.augment import Augment, jitter, magnitude_warp, resample, time_warp, window_warp
from moola_train.config import AugmentConfig
from moola_train.errors import ConfigError
from moola_train.targets import countdown_of, pointers_of
from tests.train.loops import Changed, config_of, loader_of, loop_of

LENGTH, COUNT = 105, 64
NAMES = ("jitter", "magnitude_warp", "window_warp", "time_warp", "mixup")
TARGETS = ("type", "start", "end", "pointers", "span", "countdown")


def batch_of(seed: int = 0) -> dict[str, Tensor]:
    """Column 0 is 1 inside the expansion, column 1 is the bar's position."""
    random = np.random.default_rng(seed)
    start = random.integers(20, 80, COUNT)
    end = start + random.integers(2, 20, COUNT)
    start[::8] = end[::8] = -1
    made = targets_of(start, end)
    features = torch.from_numpy(random.normal(size=(LENGTH, COUNT, 4)).astype(np.float32))
    features[..., 0] = made["span"].T
    features[..., 1] = torch.arange(LENGTH).unsqueeze(1)
    return {
        "features": features, "index": torch.arange(COUNT),
        "type": torch.from_numpy(random.integers(0, 2, COUNT)), **made,
    }  # fmt: skip


def targets_of(start: Any, end: Any) -> dict[str, Tensor]:
    first, last = np.asarray(start)[:, None], np.asarray(end)[:, None]
    position = np.arange(LENGTH)
    span = (position >= first) & (position <= last) & (first >= 0)
    arrays = {
        "start": np.asarray(start), "end": np.asarray(end), "span": span.astype(np.float32),
        "pointers": pointers_of(start, end), "countdown": countdown_of(start),
    }  # fmt: skip
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and np.array_equal(
        first.numpy(), second.numpy(), equal_nan=first.is_floating_point()
    )


def test_off_is_untouched() -> None:
    batch = batch_of()
    state = torch.get_rng_state()
    out = Augment(AugmentConfig())(batch)
    assert all(out[name] is batch[name] for name in batch)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_given_is_not_changed(name: str) -> None:
    batch, kept = batch_of(), batch_of()
    Augment(AugmentConfig(**{name: 1.0}))(batch)
    assert all(same(batch[key], kept[key]) for key in kept)


@pytest.mark.parametrize("name", NAMES)
def test_draws_from_the_seed_alone(name: str) -> None:
    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Augment(AugmentConfig(**{name: 0.7}))(batch_of())["features"]

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


@pytest.mark.parametrize("name", NAMES)
def test_probability_is_that_of_a_window(name: str) -> None:
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        batch = batch_of()
        out = Augment(AugmentConfig(**{name: 0.3}))(batch)
        changed += int((out["features"] != batch["features"]).any(dim=2).any(dim=0).sum())
    # 1,280 draws: five standard deviations on each side; mixup may draw itself, or weight 1.
    low = 0.15 if name == "mixup" else 0.235
    assert low < changed / (20 * COUNT) < 0.365


@pytest.mark.parametrize("name", ["jitter", "magnitude_warp", "mixup"])
def test_where_bars_stay_targets_stay(name: str) -> None:
    batch = batch_of()
    out = Augment(AugmentConfig(**{name: 1.0}))(batch)
    assert all(out[key] is batch[key] for key in TARGETS)


def test_jitter_is_three_hundredths_of_the_spread() -> None:
    torch.manual_seed(0)
    features = torch.randn(1000, 8, 2) * torch.tensor([5.0, 0.1])
    noise = (jitter(features) - features).std(dim=(0, 1))
    assert torch.allclose(noise, torch.tensor([0.15, 0.003]), rtol=0.05)
    flat = torch.ones(10, 3, 2)
    assert torch.equal(jitter(flat), flat)


def test_magnitude_warp_is_a_smooth_factor_near_one() -> None:
    torch.manual_seed(0)
    factor = magnitude_warp(torch.ones(LENGTH, 500, 2))
    assert factor.mean().item() == pytest.approx(1.0, abs=0.02)
    assert factor[0].std().item() == pytest.approx(augmentations.WARP_SPREAD, rel=0.1)
    assert factor.diff(dim=0).abs().max() < 0.05, "no jump from bar to bar"


@pytest.mark.parametrize("draw", [window_warp, time_warp])
def test_places_run_from_the_first_bar_to_the_last(draw: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    places = draw(torch.zeros(LENGTH, 200, 3))
    assert places.shape == (LENGTH, 200)
    assert torch.equal(places[0], torch.zeros(200))
    assert torch.allclose(places[-1], torch.full((200,), LENGTH - 1.0))
    assert (places.diff(dim=0) > 0).all()
    moved = (places - torch.arange(LENGTH).unsqueeze(1)).abs().max(dim=0).values
    assert (moved > 0.2).all()
    if draw is window_warp:
        assert moved.max() <= augmentations.WINDOW_SHARE * LENGTH


@pytest.mark.parametrize("name", ["window_warp", "time_warp"])
def test_where_bars_move_targets_move_along(name: str) -> None:
    torch.manual_seed(3)
    batch = batch_of()
    out = Augment(AugmentConfig(**{name: 1.0}))(batch)
    has = batch["start"] >= 0
    assert (out["start"] != batch["start"])[has].any()
    assert torch.equal(out["start"][~has], batch["start"][~has])
    # All targets are those of the new edges, to the bit.
    expected = targets_of(out["start"].numpy(), out["end"].numpy())
    assert all(same(out[key], expected[key]) for key in expected)
    assert same(out["type"], batch["type"])
    assert same(out["index"], batch["index"])
    # The new edge is where the old one is read: column 1 says what is read.
    read = out["features"][..., 1]
    for key in ("start", "end"):
        error = (read - batch[key]).abs()  # [T, B]
        at_edge = error.gather(0, out[key].clamp(min=0).unsqueeze(0))[0]
        assert torch.equal(at_edge[has], error.min(dim=0).values[has])
    # What was inside is inside: column 0 follows the new span up to its edges.
    inside = out["features"][..., 0].T
    agree = ((inside > 0.5) == (out["span"] > 0.5)).float().mean()
    assert agree > 0.99
    assert (out["end"] >= out["start"]).all()


def test_standing_still_changes_no_bit() -> None:
    batch = batch_of()
    still = torch.arange(LENGTH, dtype=torch.float32).unsqueeze(1).expand(-1, COUNT)
    out = resample(batch, still)
    assert all(same(out[key], batch[key]) for key in batch)


def test_unknown_bars_stay_unknown_where_nothing_moves() -> None:
    batch = batch_of()
    batch["span"][1, 7] = float("nan")
    still = torch.arange(LENGTH, dtype=torch.float32).unsqueeze(1).expand(-1, COUNT)
    assert resample(batch, still)["span"][1, 7].isnan()


def test_targets_that_cannot_move_are_refused() -> None:
    batch = batch_of() | {"swing": torch.zeros(COUNT, LENGTH, dtype=torch.int64)}
    Augment(AugmentConfig(jitter=1.0, mixup=1.0))(batch)
    with pytest.raises(ConfigError, match=r"augment\.time_warp moves or turns bars, and 'swing'"):
        Augment(AugmentConfig(time_warp=0.1))(batch)


def test_windows_without_targets_are_warped_alone() -> None:
    features = batch_of()["features"]
    out = Augment(AugmentConfig(window_warp=1.0))({"features": features})
    assert set(out) == {"features"}
    assert not torch.equal(out["features"], features)


def test_mixup_keeps_at_least_half_of_the_window() -> None:
    torch.manual_seed(0)
    features = torch.eye(COUNT).expand(5, COUNT, COUNT)  # window i is 1 in column i
    out = Augment(AugmentConfig(mixup=1.0))({"features": features})["features"]
    own = out[0].diagonal()
    assert (own >= 0.5).all()
    assert ((own > 0.5) & (own < 1)).any()
    assert torch.allclose(out.sum(dim=2), torch.ones(5, COUNT))


def test_validation_is_never_augmented(tmp_path: Any) -> None:
    seen: dict[str, list[Tensor]] = {"train": [], "val": []}

    class Watching(Changed):
        def losses(self, model: Any, batch: Any) -> dict[str, Tensor]:
            seen["train"].append(batch["features"].clone())
            return super().losses(model, batch)

        def score(self, model: Any, loader: Any) -> Any:
            hook = model.encoder.register_forward_pre_hook(
                lambda _module, inputs: seen["val"].append(inputs[0].clone())
            )
            try:
                return super().score(model, loader)
            finally:
                hook.remove()

    every = {f"augment.{name}": 1.0 for name in NAMES}
    config = config_of(**{"loop.epochs": 1}, **every)
    loop_of(tmp_path / "run", config, objective=Watching()).run()
    for part, touched in (("train", True), ("val", False)):
        plain = [batch["features"] for batch in loader_of(part, config)]
        assert len(plain) == len(seen[part])
        for expected, actual in zip(plain, seen[part], strict=True):
            assert torch.equal(expected, actual) is not touched
