"""On a GPU: a graph of the step trains as the step does, and resumes to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moola_train.config import LoopConfig
from moola_train.devices import prepare_device
from moola_train.errors import RunError
from moola_train.loop import Loop
from moola_train.memory import fits
from tests.train.loops import EVERYTHING, config_of, loop_of
from tests.train.test_graph import OnTheHost, Waiting
from tests.train.test_resume import assert_same_runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    prepare_device(LoopConfig(device="cuda", deterministic=True))
    yield
    prepare_device(LoopConfig())


def graphed(
    path: Path, *, placement: str = "device", objective: Any = None, **settings: Any
) -> Loop:
    config = config_of(**{"loop.cuda_graph": True, "loop.device": "cuda", **settings})
    return loop_of(path, config, device="cuda:0", placement=placement, objective=objective)


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("settings", [{}, EVERYTHING, {"loop.precision": "bf16"}])
def test_a_replayed_run_is_the_run_to_the_bit(
    tmp_path: Path, placement: str, settings: dict[str, Any]
) -> None:
    logged = {"loop.log_steps": 4, **settings}
    first = graphed(tmp_path / "first", placement=placement, **logged)
    first._take = first._step
    assert first.run() == graphed(tmp_path / "second", placement=placement, **logged).run()
    assert_same_runs(tmp_path / "first", tmp_path / "second")


@pytest.mark.parametrize("recorded", [True, False])
def test_a_stopped_run_ends_the_same(tmp_path: Path, recorded: bool) -> None:
    settings = {
        **EVERYTHING, "loop.max_steps": 14, "loop.deterministic": True, "loop.cuda_graph": recorded
    }  # fmt: skip
    graphed(tmp_path / "whole", **settings).run()
    graphed(tmp_path / "parts", **{**settings, "loop.max_steps": 9}).run()
    loop = graphed(tmp_path / "parts", **settings)
    assert loop.resume()
    loop.run()
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_step_is_one_launch(tmp_path: Path) -> None:
    loop = graphed(tmp_path / "run")
    batch = next(iter(loop._train))
    loop._take(batch, 0)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        loop._take(batch, 1)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    assert names.count("cudaGraphLaunch") == 1
    # What is left are copies into the buffers, the rates, the step's number and the seed.
    assert sum(name == "cudaLaunchKernel" for name in names) < 20


@pytest.mark.parametrize(
    ("objective", "message"),
    [(OnTheHost, "the replayed step has 'span'"), (Waiting, "step 0 cannot be recorded")],
)
def test_what_is_not_the_step_is_refused(tmp_path: Path, objective: Any, message: str) -> None:
    with pytest.raises(RunError, match=message):
        graphed(tmp_path / "run", objective=objective()).run()


def test_what_did_not_fit_is_free_again() -> None:
    before = torch.cuda.memory_allocated()

    def run() -> None:
        held = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda")]
        while True:
            held.append(torch.empty(1 << 34, dtype=torch.uint8, device="cuda"))

    assert not fits(run)
    assert torch.cuda.memory_allocated() == before
