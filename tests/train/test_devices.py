"""What --deterministic guarantees, and what it says where PyTorch cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moola_train.config import LoopConfig
from moola_train.devices import prepare_device
from moola_train.errors import ConfigError, RunError
from tests.train.loops import EVERYTHING, Changed, config_of, loop_of
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


def test_other_errors_pass(tmp_path: Path) -> None:
    def fail(_call: int, _found: dict[str, Tensor], _model: Any) -> dict[str, Tensor]:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        loop_of(tmp_path / "run", config_of(), objective=Changed(losses=fail)).run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, r"loop\.device is 'cuda', and PyTorch sees no GPU"),
        ({"precision": "tf32"}, r"loop\.precision is 'tf32', which only a GPU has"),
        ({"cuda_graph": True}, r"loop\.cuda_graph is true, and the run would compute on the CPU"),
    ],
)
def test_what_needs_a_gpu(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_device(LoopConfig(**settings))
