"""The masked autoencoder: what it hides, what it is judged by, and that nothing leaks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moola_features.windows import Windows
from moola_train.balance import make_balance
from moola_train.errors import ConfigError
from moola_train.loaders import WindowLoader
from moola_train.loop import Loop
from moola_train.mae import (
    INTERPOLATION,
    MEAN,
    MaskedAutoencoder,
    column_means,
    draw_mask,
    interpolate,
)
from moola_train.metrics import Metric
from moola_train.models import Model, build
from moola_train.order import BatchOrder
from moola_train.pretrain_config import MASKINGS, PretrainConfig
from moola_train.runs import RunFolder

COLUMNS = ("first", "second")
LENGTH = 28


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(17)
    yield
    torch.set_num_threads(before)


def small_model(hidden_size: int = 8) -> Model:
    return build(
        "jade-mae", num_features=2, hidden_size=hidden_size, num_layers=1, window_length=LENGTH
    )


def leaky(model: Model) -> Model:
    """The same model with the old mistake: the mask acts in the loss, not before the encoder."""
    model._masked = lambda batch: batch["features"]  # type: ignore[method-assign]
    return model


def loader_of(values: np.ndarray, batch_size: int = 32, *, shuffle: bool = False) -> WindowLoader:
    order = BatchOrder(len(values), batch_size, seed=17, shuffle=shuffle, drop_last=shuffle)
    return WindowLoader(values, order, device="cpu")


def noise(num_windows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((num_windows, LENGTH, 2))
    return values.astype(np.float32)


class TestMasks:
    @pytest.mark.parametrize("strategy", MASKINGS)
    @pytest.mark.parametrize("ratio", [0.15, 0.4])
    @pytest.mark.parametrize("length", [105, 100, 106])  # of which the last patch is a short one
    def test_the_share_is_the_one_asked_for(self, strategy: str, ratio: float, length: int) -> None:
        mask = draw_mask(strategy, ratio, (length, 8_000))
        assert mask.dtype == torch.bool
        assert mask.shape == (length, 8_000)
        # Counts differ by a patch at most; their mean's error is below 7 / 100 / 2 / sqrt(8000).
        assert mask.float().mean().item() == pytest.approx(ratio, abs=0.003)

    @pytest.mark.parametrize(("strategy", "length"), [("patch", 7), ("random", 1)])
    def test_windows_of_one_place_are_refused(self, strategy: str, length: int) -> None:
        with pytest.raises(ConfigError, match=f"windows of {length} steps have one place"):
            draw_mask(strategy, 0.3, (length, 5))

    def test_random_masks_take_every_step_alike(self) -> None:
        mask = draw_mask("random", 0.15, (105, 4_000))
        assert set(mask.sum(dim=0).tolist()) == {15, 16}
        assert mask.float().mean(dim=1).sub(0.15).abs().max().item() < 0.03

    def test_blocks_are_one_stretch_anywhere(self) -> None:
        mask = draw_mask("block", 0.15, (105, 2_000))
        assert set(mask.sum(dim=0).tolist()) == {15, 16}
        edges = torch.diff(mask.int(), dim=0, prepend=torch.zeros(1, 2_000, dtype=torch.int32))
        assert torch.equal((edges == 1).sum(dim=0), torch.ones(2_000, dtype=torch.int64))
        first = mask.int().argmax(dim=0)
        assert first.min() == 0
        assert first.max() >= 105 - 16

    def test_patches_are_seven_steps_on_a_grid(self) -> None:
        mask = draw_mask("patch", 0.15, (105, 2_000))
        patches = mask.view(15, 7, 2_000)
        assert torch.equal(patches.any(dim=1), patches.all(dim=1))
        assert set(patches[:, 0].sum(dim=0).tolist()) == {2, 3}
        short = draw_mask("patch", 0.3, (10, 500))  # a patch of 7 and what is left
        assert {tuple(w) for w in short.T.int().tolist()} == {
            (1,) * 7 + (0,) * 3,
            (0,) * 7 + (1,) * 3,
        }

    @pytest.mark.parametrize("strategy", MASKINGS)
    @pytest.mark.parametrize("ratio", [0.01, 0.9])
    def test_something_is_hidden_and_something_is_not(self, strategy: str, ratio: float) -> None:
        hidden = draw_mask(strategy, ratio, (21, 300)).sum(dim=0)
        assert hidden.min() >= 1
        assert hidden.max() < 21

    @pytest.mark.parametrize("strategy", MASKINGS)
    def test_a_seed_decides(self, strategy: str) -> None:
        def drawn(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return draw_mask(strategy, 0.3, (35, 50), generator=generator)

        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_everything_happens_on_the_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    for strategy in MASKINGS:
        assert draw_mask(strategy, 0.15, (105, 8), device=device).device == device
    values = noise(64, seed=5)
    objective = MaskedAutoencoder(COLUMNS, values.mean(axis=(0, 1), dtype=np.float64))
    model = small_model()
    objective.initialise(model)
    model.to(device)
    order = BatchOrder(64, 16, seed=17, shuffle=False, drop_last=False)
    found = objective.score(model, WindowLoader(values, order, device=device))
    assert found["loss"].value == pytest.approx(found[MEAN].value, rel=1e-5)


class TestFloors:
    def test_interpolation_is_numpys(self) -> None:
        generator = np.random.default_rng(3)
        features = generator.standard_normal((30, 40, 3)).astype(np.float32)
        visible = generator.random((30, 40)) < generator.random(40)
        visible[0] |= ~visible.any(axis=0)
        actual = interpolate(torch.from_numpy(features), torch.from_numpy(visible)).numpy()
        steps = np.arange(30)
        for window, column in itertools.product(range(40), range(3)):
            seen = visible[:, window]
            expected = np.interp(steps, steps[seen], features[seen, window, column])
            np.testing.assert_allclose(actual[:, window, column], expected, atol=1e-5)

    def test_a_window_without_visible_steps_gives_nothing_away(self) -> None:
        hidden = interpolate(torch.ones(5, 2, 1), torch.zeros(5, 2, dtype=torch.bool))
        assert not hidden.any()

    def test_means_are_of_the_windows_bars_each_counted_once(self) -> None:
        table = np.full((20, 2), np.nan, np.float32)
        table[3:8], table[12:15] = [1.0, 10.0], [5.0, 50.0]
        windows = Windows(table, np.array([3, 4, 5, 12]), 3)
        np.testing.assert_allclose(column_means(windows), [20 / 8, 200 / 8])

    def test_floors_are_what_they_are_called(self) -> None:
        steps = np.arange(LENGTH, dtype=np.float32)
        values = np.zeros((64, LENGTH, 2), np.float32)
        values[:, :, 0] = 5.0  # constant: the mean is right
        values[:, :, 1] = steps / 10 + np.arange(64)[:, None]  # straight: the line is right
        objective = MaskedAutoencoder(COLUMNS, np.array([5.0, 0.0]), masking="block", ratio=0.2)
        model = small_model()
        objective.initialise(model)
        found = objective.score(model, loader_of(values))
        assert found[f"{MEAN}.first"].value == 0
        assert found[f"{INTERPOLATION}.first"].value == 0
        assert found[f"{MEAN}.second"].value > 10
        # At either end there is no line, only the last value seen.
        assert 0 < found[f"{INTERPOLATION}.second"].value < 0.1
        assert found["loss.second"].floor == found[f"{INTERPOLATION}.second"].value
        assert found[MEAN].value == pytest.approx(found[f"{MEAN}.second"].value / 2)
        assert found["loss"].better == "lower"
        assert set(found) == {
            f"{kind}{suffix}"
            for kind in ("loss", MEAN, INTERPOLATION)
            for suffix in ("", ".first", ".second")
        }

    def test_the_first_loss_is_the_means(self) -> None:
        values = noise(64, seed=5) + np.float32(3.0)
        means = values.mean(axis=(0, 1), dtype=np.float64)
        objective = MaskedAutoencoder(COLUMNS, means)
        model = small_model()
        objective.initialise(model)
        found = objective.score(model, loader_of(values))
        for suffix in ("", ".first", ".second"):
            assert found[f"loss{suffix}"].value == found[f"{MEAN}{suffix}"].value > 0

    def test_masks_of_validation_stay_and_follow_the_seed(self) -> None:
        values, model = noise(70, seed=6), small_model()
        scores = []
        for seed in (17, 17, 18):
            objective = MaskedAutoencoder(COLUMNS, np.zeros(2), seed=seed)
            torch.rand(len(scores) + 1)  # whatever was drawn in between
            scores.append(objective.score(model, loader_of(values))[MEAN].value)
        assert scores[0] == scores[1] != scores[2]


class TestLoss:
    def batch(self) -> dict[str, Tensor]:
        valid = torch.ones(LENGTH, 6, dtype=torch.bool)
        valid[:9] = False
        return {"features": torch.randn(LENGTH, 6, 2), "valid": valid}

    def test_it_counts_masked_valid_steps_only(self) -> None:
        objective = MaskedAutoencoder(COLUMNS, np.zeros(2), ratio=0.5)
        model, batch = small_model(), self.batch()
        torch.manual_seed(4)
        masked = objective.mask(batch)
        torch.manual_seed(4)
        loss = objective.losses(model, batch)["reconstruction"].item()
        asked = (masked["mask"] & batch["valid"]).numpy()  # [T, B]
        errors = np.abs(
            model(masked)["reconstruction"].transpose(0, 1).detach().numpy()
            - batch["features"].numpy()
        )[asked]
        huber = np.where(errors <= 1, errors**2 / 2, errors - 0.5)
        assert 0 < asked.sum() < asked.size
        assert loss == pytest.approx(huber.mean(), rel=1e-5)

    def test_training_masks_follow_pytorchs_generator(self) -> None:
        objective, batch = MaskedAutoencoder(COLUMNS, np.zeros(2)), self.batch()
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(objective.mask(batch)["mask"])
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert "mask" not in batch

    def test_the_mask_vector_learns(self) -> None:
        model = small_model()
        MaskedAutoencoder(COLUMNS, np.zeros(2)).losses(model, self.batch())[
            "reconstruction"
        ].backward()
        assert model.mask_vector is not None
        assert model.mask_vector.grad is not None
        assert model.mask_vector.grad.abs().min() > 0


class TestLeaks:
    """Told nothing about masked steps, a model cannot beat the floors on what has no memory."""

    @pytest.mark.parametrize("strategy", MASKINGS)
    def test_what_is_masked_changes_no_output(self, strategy: str) -> None:
        objective = MaskedAutoencoder(COLUMNS, np.zeros(2), masking=strategy)
        masked = objective.mask({"features": torch.randn(LENGTH, 5, 2)})
        hidden = masked["mask"].unsqueeze(2)
        others = {**masked, "features": torch.where(hidden, 1e6, masked["features"])}
        model = small_model()
        assert torch.equal(model(masked)["reconstruction"], model(others)["reconstruction"])
        leaky(model)
        assert not torch.equal(model(masked)["reconstruction"], model(others)["reconstruction"])

    def trained(self, folder: Path, model: Model) -> dict[str, Metric]:
        config = PretrainConfig.from_dict(
            {
                "loop": {"epochs": 8, "device": "cpu"},
                "optimiser": {"learning_rate": 2e-2, "weight_decay": 0.0},
                "loss": {"balance": "fixed"},
            }
        )
        train, validation = noise(768, seed=1), noise(512, seed=2)
        objective = MaskedAutoencoder(COLUMNS, train.mean(axis=(0, 1), dtype=np.float64), ratio=0.3)
        objective.initialise(model)
        settings: dict[str, Any] = {"config": config, "device": torch.device("cpu")}
        loaders = loader_of(train, shuffle=True), loader_of(validation)
        loop = Loop(
            model=model, objective=objective, balance=make_balance("fixed", model.heads),
            train=loaders[0], validation=loaders[1], run=RunFolder(folder), **settings,
        )  # fmt: skip
        loop.run()
        return objective.score(model, loaders[1])

    def test_an_honest_model_does_not_beat_the_floors(self, tmp_path: Path) -> None:
        found = self.trained(tmp_path / "run", small_model())
        for suffix in ("", ".first", ".second"):
            metric = found[f"loss{suffix}"]
            assert metric.floor is not None
            assert metric.value > 0.98 * metric.floor

    def test_a_leaky_model_does(self, tmp_path: Path) -> None:
        metric = self.trained(tmp_path / "run", leaky(small_model()))["loss"]
        assert metric.floor is not None
        assert metric.value < 0.3 * metric.floor
