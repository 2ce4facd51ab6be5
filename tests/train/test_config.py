"""Settings: in and out of TOML without loss, and every bad one refused in a line."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moola_train.config import RunConfig
from moola_train.errors import ConfigError
from moola_train.presets import PRESETS

LEAVES = {
    f"{section}.{name}": value
    for section, settings in RunConfig().to_dict().items()
    for name, value in settings.items()
}


def focal(weights: str) -> dict[str, Any]:
    return {"loss": {"type_loss": "focal", "class_weights": weights}}


def refused(make: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        make()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_defaults_are_the_documented_ones() -> None:
    config = RunConfig()
    assert (config.loop.seed, config.loop.epochs, config.data.batch_size) == (17, 20, 29)
    assert config.model.preset == "jade-span"
    assert PRESETS[config.model.preset].what.startswith("recommended: ")
    assert set(config.to_dict()["augment"].values()) == {0.0}


def test_toml_round_trip(tmp_path: Path) -> None:
    config = RunConfig().override(
        {"loop.max_steps": 7, "data.balanced": True, "optimiser.learning_rate": 1e-7}
    )
    (tmp_path / "run.toml").write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig.from_toml(tmp_path / "run.toml") == config


@given(st.text(), st.floats(1e-9, 10.0), st.integers(0, 2**63 - 1))
def test_any_text_and_number_survive_toml(text: str, rate: float, seed: int) -> None:
    values = {
        "model": {"preset": text},
        "optimiser": {"learning_rate": rate},
        "loop": {"seed": seed},
    }
    config = RunConfig.from_dict(values)
    assert RunConfig.from_dict(tomllib.loads(config.to_toml())) == config


def test_whole_numbers_where_floats_belong() -> None:
    config = RunConfig.from_dict({"optimiser": {"learning_rate": 1}})
    assert type(config.optimiser.learning_rate) is float


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("optimiser.learning_rate", "3e-4", 3e-4),
        ("loop.max_steps", "12", 12),
        ("loop.max_steps", "none", None),
        ("data.balanced", "true", True),
        ("model.preset", "jade-span", "jade-span"),
        ("model.preset", '"jade"', "jade"),
    ],
)
def test_flags_are_read_as_toml_reads_them(path: str, text: str, expected: Any) -> None:
    section, name = path.split(".")
    assert getattr(getattr(RunConfig().override({path: text}), section), name) == expected


@pytest.mark.parametrize("path", LEAVES)
def test_every_leaf_refuses_what_it_is_not(path: str) -> None:
    message = refused(lambda: RunConfig().override({path: [1, 2]}))
    assert path in message


@pytest.mark.parametrize(
    "path", [path for path, value in LEAVES.items() if type(value) in (int, float)]
)
def test_every_number_has_bounds(path: str) -> None:
    for value in (-1, float("nan"), float("inf"), True):
        assert path in refused(lambda value=value: RunConfig().override({path: value}))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"optimizer": {}}, "unknown section [optimizer]"),
        ({"loop": 3}, "[loop]"),
        ({"loop": {"epoch": 3}}, "unknown setting loop.epoch"),
        ({"loop": {"device": "tpu"}}, "choose one of auto, cpu, cuda"),
        ({"loss": {"balance": "kendall", "pcgrad": True}}, "choose running-mean"),
        ({"optimiser": {"plateau_patience": 9}}, "set optimiser.schedule = 'plateau', or drop it"),
        ({"optimiser": {"plateau_factor": 0.1}}, "plateau_factor is 0.1, which does nothing"),
        (
            {"optimiser": {"schedule": "constant", "final_share": 0.5}},
            "final_share is 0.5, which does nothing; set optimiser.schedule = 'cosine', or drop it",
        ),
        ({"data": {"batch_size": 0}}, "data.batch_size is 0"),
        ({"loop": {"epochs": 2.5}}, "loop.epochs is 2.5; it must be a whole number"),
        ({"data": {"classes": "none"}}, "data.classes is 'none'; name two classes or more"),
        ({"data": {"classes": "a,,b"}}, "data.classes is 'a,,b'; give names that differ"),
        ({"data": {"classes": "a, b, a"}}, "data.classes is 'a, b, a'; give names that differ"),
        ({"data": {"classes": ["a", "b"]}}, "data.classes is ['a', 'b']; it must be text"),
        ({"loss": {"class_weights": "1, 2"}}, "loss.class_weights is '1, 2', which does nothing"),
        (focal("1, x"), "loss.class_weights is '1, x'; give numbers with commas between"),
        (focal("1, -2"), "loss.class_weights is -2.0; it must be"),
        (focal("1, 0"), "loss.class_weights is 0.0; it must be"),
        (focal("1, nan"), "loss.class_weights is nan; it must be"),
        (focal("1, 2, 3"), "loss.class_weights has 3 numbers; data.classes has 2, give one for"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], part: str) -> None:
    assert part in refused(lambda: RunConfig.from_dict(values))


def test_classes_are_names_with_commas_between() -> None:
    assert RunConfig().data.class_names == ("consolidation", "retracement")
    config = RunConfig().override({"data.classes": "a, none,b"})
    assert config.data.class_names == ("a", "none", "b")
    message = refused(lambda: RunConfig().override({"data.classes": "macro,none"}))
    assert "f1_macro is the mean of all classes, rename macro" in message


def test_weights_are_numbers_with_commas_between() -> None:
    assert RunConfig().loss.weights == ()
    asked = {"loss.type_loss": "focal", "loss.class_weights": "1,1.17"}
    assert RunConfig().override(asked).loss.weights == (1.0, 1.17)


@pytest.mark.parametrize("path", ["loop", "loop.", "nothing.x", "loop.epoch", ""])
def test_unknown_leaves(path: str) -> None:
    assert "loop.epochs" in refused(lambda: RunConfig().override({path: "1"}))


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "readable" in refused(lambda: RunConfig.from_toml(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("loop = [", encoding="utf-8")
    assert "is not TOML" in refused(lambda: RunConfig.from_toml(tmp_path / "bad.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "is not TOML" in refused(lambda: RunConfig.from_toml(tmp_path / "bytes.toml"))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().loop.epochs = 3  # type: ignore[misc]
