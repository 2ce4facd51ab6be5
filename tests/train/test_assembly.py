"""What fitting and pretraining put together alike: how windows are shuffled, and what is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from moola_features.windows import Windows
from moola_train import order
from moola_train.assembly import make_loaders, make_model
from moola_train.checkpoint import load_checkpoint
from moola_train.config import RunConfig
from moola_train.distributed import World
from moola_train.errors import ConfigError, RunError
from moola_train.fit import fit
from moola_train.loaders import WindowLoader
from moola_train.pretrain import pretrain
from moola_train.pretrain_config import PretrainConfig
from moola_train.runs import LATEST, WEIGHTS
from tests.train.small import SETTINGS, Task, make_task

CPU = torch.device("cpu")
TABLE = np.arange(600, dtype=np.float32).reshape(300, 2)
PARTS = {
    "train": Windows(TABLE, np.arange(200), 5),
    "val": Windows(TABLE, np.arange(220, 280), 5),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("assembly"))


@pytest.fixture
def _no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table fits in the host's memory."""
    monkeypatch.setattr(order, "_MEMORY_SHARE", 0.0)


def loaders_of(parts: Any = PARTS, **settings: Any) -> dict[str, WindowLoader]:
    weights = settings.pop("weights", None)
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return make_loaders(parts, RunConfig().override(given), CPU, weights=weights)


class TestShuffle:
    def test_what_fits_is_shuffled_in_full(self) -> None:
        loaders = loaders_of()
        assert loaders["train"].order.block is None
        assert loaders["train"].order.shuffle
        assert not loaders["val"].order.shuffle

    @pytest.mark.usefixtures("_no_memory")
    def test_what_does_not_fit_is_shuffled_in_blocks(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, logger="moola_train"):
            loaders = loaders_of()
        assert loaders["train"].order.block == order.BLOCK_ITEMS == 65_536
        assert loaders["val"].order.block is None
        assert "a table of 0.00 GB is shuffled in blocks of 65536 windows" in caplog.messages

    @pytest.mark.usefixtures("_no_memory")
    @pytest.mark.parametrize(
        "settings",
        [
            {"data__placement": "device"},
            {"data__shuffle": "full"},
            {"data__balanced": True, "weights": np.ones(200)},
        ],
    )
    def test_except(self, settings: dict[str, Any]) -> None:
        assert loaders_of(**settings)["train"].order.block is None

    def test_blocks_can_be_asked_for(self) -> None:
        assert loaders_of(data__shuffle="blocks")["train"].order.block == order.BLOCK_ITEMS

    def test_blocks_and_draws_exclude_each_other(self) -> None:
        with pytest.raises(ConfigError, match=r"data\.shuffle = 'blocks' with data\.balanced"):
            RunConfig().override({"data.shuffle": "blocks", "data.balanced": True})

    def test_only_what_the_windows_touch_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        monkeypatch.setattr("moola_train.assembly.shuffle_block", sizes.append)
        loaders_of()
        assert sizes == [204 * 2 * 4]  # 200 windows of 5 bars, each a bar after the other


class TestPlacement:
    def said(self, caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
        with caplog.at_level(logging.INFO, logger="moola_train"):
            loaders_of(**settings)
        return caplog.messages

    def test_is_said_once_for_both_parts(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.said(caplog) == [
            "windows are gathered on the host: the device is the CPU, which reads the table where "
            "it is"
        ]

    def test_is_said_of_each_where_they_differ(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def choose(_placement: str, _device: Any, size: int) -> tuple[str, str]:
            return ("device" if size < 3_000 else "host"), f"it has {size} bytes"

        monkeypatch.setattr("moola_train.assembly.choose_placement", choose)
        monkeypatch.setattr("moola_train.loaders.choose_placement", choose)
        sizes = {name: (len(part) + 4) * 8 + len(part) * 8 for name, part in PARTS.items()}
        assert set(self.said(caplog)) == {
            f"windows are gathered on the host: it has {sizes['train']} bytes",
            f"windows are gathered on the device: it has {sizes['val']} bytes",
        }


def test_each_process_takes_its_share_and_validates_on_everything() -> None:
    config = RunConfig().override({"data.batch_size": 10})
    loaders = [
        make_loaders(PARTS, config, CPU, world=World(rank=rank, size=2, local_rank=rank))
        for rank in range(2)
    ]
    assert [(found["train"].order.rank, len(found["train"])) for found in loaders] == [
        (0, 10), (1, 10),
    ]  # fmt: skip
    assert {found["val"].order.world_size for found in loaders} == {1}


def test_sigmas_that_a_preset_has_not_cannot_be_learnt() -> None:
    config = RunConfig().override({"model.preset": "simple-lstm"})
    with pytest.raises(ConfigError) as raised:
        make_model(config, 11)
    assert str(raised.value) == (
        "loss.balance is 'kendall', and preset 'simple-lstm' has no log sigmas to learn; give "
        "--set loss.balance=fixed"
    )
    model = make_model(config.override({"loss.balance": "fixed"}), 11)
    assert len(model.log_sigmas) == 0


@pytest.mark.parametrize("preset", ["jade", "multitask"])
def test_one_layer_has_no_dropout_between_layers(preset: str) -> None:
    settings = {"model.preset": preset, "model.hidden": 8, "loss.balance": "fixed"}
    config = RunConfig().override(settings)
    assert make_model(config.override({"model.layers": 1}), 11).settings.layer_dropout == 0
    assert make_model(config.override({"model.layers": 3}), 11).settings.layer_dropout > 0


class TestBeyondTheMemory:
    """Runs whose table is said not to fit."""

    @pytest.mark.usefixtures("_no_memory")
    def test_fit_shuffles_blocks(self, task: Task, tmp_path: Any) -> None:
        config = RunConfig.from_dict(SETTINGS)
        fit(task.store, task.labels, task.split, tmp_path / "run", config)
        saved = load_checkpoint(tmp_path / "run" / LATEST)["loader"]["order"]
        assert saved["block"] == order.BLOCK_ITEMS

    def test_a_run_goes_on_as_it_began_on_a_machine_of_less_memory(
        self, task: Task, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = RunConfig.from_dict(SETTINGS)
        part = config.override({"loop.max_steps": 3})
        fit(task.store, task.labels, task.split, tmp_path / "whole", config)
        fit(task.store, task.labels, task.split, tmp_path / "run", part)
        monkeypatch.setattr(order, "_MEMORY_SHARE", 0.0)
        fit(task.store, task.labels, task.split, tmp_path / "run", config, resume=True)
        saved = load_checkpoint(tmp_path / "run" / LATEST)
        assert saved["loader"]["order"]["block"] is None
        weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "run")]
        assert weights[0] == weights[1]
        # What was asked for stays what it is.
        asked = config.override({"data.shuffle": "blocks"})
        fit(task.store, task.labels, task.split, tmp_path / "asked", asked)
        with pytest.raises(RunError, match=r"with data\.shuffle = 'blocks', not 'full'"):
            fit(
                task.store, task.labels, task.split, tmp_path / "asked",
                config.override({"data.shuffle": "full"}), resume=True,
            )  # fmt: skip

    @pytest.mark.usefixtures("_no_memory")
    def test_pretrain_shuffles_blocks(self, task: Task, tmp_path: Any) -> None:
        assert task.store is not None
        settings = {**SETTINGS, "data": {"batch_size": 32}, "pretrain": {"stride": 13}}
        settings["model"] = {**SETTINGS["model"], "preset": "jade-mae"}
        config = PretrainConfig.from_dict(settings)
        pretrain(task.store, tmp_path / "encoder.safetensors", tmp_path / "run", config)
        saved = load_checkpoint(tmp_path / "run" / LATEST)["loader"]["order"]
        assert saved["block"] == order.BLOCK_ITEMS
