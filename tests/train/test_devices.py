"""What --deterministic guarantees, and what it says where PyTorch cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moola_train.config import LoopConfig
from moola_train.devices import full_precision, prepare_device
from moola_train.errors import ConfigError, RunError
from moola_train.presets import PRESETS
from moola_train.pretrain import pretrain
from moola_train.pretrain_config import MASKINGS, PretrainConfig
from tests.train.dispatch import Repeatable
from tests.train.loops import EVERYTHING, Changed, config_of, loop_of, model_of
from tests.train.small import SETTINGS, make_task
from tests.train.test_resume import assert_same_runs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    prepare_device(LoopConfig(device="cpu"))


def test_it_is_switched_on_and_off() -> None:
    for asked in (True, False):
        prepare_device(LoopConfig(device="cpu", deterministic=asked))
        assert torch.are_deterministic_algorithms_enabled() == asked


def test_on_a_cpu_it_changes_nothing(tmp_path: Path) -> None:
    for name, asked in (("with", True), ("without", False)):
        config = config_of(**EVERYTHING, **{"loop.deterministic": asked})
        prepare_device(config.loop)
        loop_of(tmp_path / name, config).run()
    assert_same_runs(tmp_path / "with", tmp_path / "without")


def test_an_operation_that_has_no_deterministic_form_is_named(tmp_path: Path) -> None:
    def refuse(_call: int, _found: dict[str, Tensor], _model: Any) -> dict[str, Tensor]:
        raise RuntimeError(
            "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for\n"
            "this operation"
        )

    with pytest.raises(RunError) as raised:
        loop_of(tmp_path / "run", config_of(), objective=Changed(losses=refuse)).run()
    assert str(raised.value) == (
        "loop.deterministic: cumsum_cuda_kernel does not have a deterministic implementation on "
        "this device; leave out what needs it, or set loop.deterministic = false"
    )


MODELS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("jade", "jade-compact", "jade-span", "simple-lstm")},
    "a path": {"heads": ("type", "pointers", "span_crf"), "attention_heads": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_fitting_needs_nothing_that_has_no_deterministic_form(name: str, tmp_path: Path) -> None:
    preset = name if name in PRESETS else "jade-compact"
    config = config_of(**EVERYTHING, model__preset=preset)
    loop = loop_of(tmp_path / "run", config, model=model_of(config, **MODELS[name]))
    with Repeatable():
        loop.run()


@pytest.mark.parametrize("masking", MASKINGS)
def test_masking_needs_nothing_that_has_no_deterministic_form(masking: str, tmp_path: Path) -> None:
    config = PretrainConfig.from_dict(
        {**SETTINGS, "data": {"batch_size": 32}, "pretrain": {"stride": 26, "masking": masking}}
    )
    store = make_task(tmp_path, num_bars=3_000).store
    assert store is not None
    with Repeatable():
        pretrain(store, tmp_path / "encoder.safetensors", tmp_path / "run", config)


@pytest.mark.parametrize(
    "operation",
    [
        lambda values: values.cumsum(0),
        lambda values: values.median(dim=0),
        lambda values: values.histc(),
        lambda values: torch.bincount(values.long(), values),
    ],
)
def test_what_has_no_deterministic_form_would_be_seen(operation: Any) -> None:
    with Repeatable(), pytest.raises(AssertionError, match="no deterministic form"):
        operation(torch.ones(4))
    with Repeatable():
        assert torch.ones(4, dtype=torch.int64).cumsum(0)[-1] == 4


@pytest.fixture
def operations() -> Iterator[tuple[Any, ...]]:
    """What has a precision of its own, and afterwards the one it had."""
    backends: Any = torch.backends
    found = backends.cudnn.rnn, backends.cudnn.conv, backends.cuda.matmul
    before = [each.fp32_precision for each in found]
    yield found
    for each, precision in zip(found, before, strict=True):
        each.fp32_precision = precision


def test_full_precision_ends_where_it_began(operations: tuple[Any, ...]) -> None:
    def fail() -> None:
        with full_precision():
            assert {each.fp32_precision for each in operations} == {"ieee"}
            raise KeyError

    for each in operations:
        each.fp32_precision = "tf32"
    with pytest.raises(KeyError):
        fail()
    assert {each.fp32_precision for each in operations} == {"tf32"}


def test_other_errors_pass(tmp_path: Path) -> None:
    def fail(_call: int, _found: dict[str, Tensor], _model: Any) -> dict[str, Tensor]:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        loop_of(tmp_path / "run", config_of(), objective=Changed(losses=fail)).run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, r"device is 'cuda', and PyTorch sees no GPU"),
        ({"precision": "tf32"}, r"loop\.precision is 'tf32', which only a GPU has"),
        ({"cuda_graph": True}, r"loop\.cuda_graph is true, and the run would compute on the CPU"),
    ],
)
def test_what_needs_a_gpu(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_device(LoopConfig(**settings))
