"""Two real processes on loopback train as one would on the joint batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moola_train.distributed import World, joined, mean_over_processes, share_of_count, together
from tests.train.small import make_task

ROOT = Path(__file__).parents[2]

GRADIENTS = """
import sys
import torch
from safetensors.torch import load_file
from moola_train import models
from moola_train.balance import make_balance
from moola_train.distributed import average_gradients, joined

torch.set_num_threads(1)
folder, balance_name = sys.argv[1], sys.argv[2]

def joint_batch():
    random = torch.Generator().manual_seed(5)
    B, T = 12, 105
    start = torch.tensor([10, -1, 30, 40, -1, -1, -1, 12, -1, -1, 50, -1])  # unevenly labelled
    end = torch.where(start >= 0, start + 6, -1)
    ticks = torch.arange(T).float()
    known = (start >= 0).unsqueeze(1)
    inside = (ticks >= start.unsqueeze(1)) & (ticks <= end.unsqueeze(1))
    countdown = (torch.clip(start.unsqueeze(1) - ticks, -20, 20) + 20) / 40
    pointers = torch.stack([(start + end) / 208, (end - start) / 104], 1).float()
    return {
        "features": torch.randn(T, B, 11, generator=random),
        "type": torch.tensor([0, -1, 1, 1, -1, -1, 0, 1, 0, -1, 1, 1]),
        "start": start, "end": end,
        "span": (inside & known).float(),
        "countdown": torch.where(known, countdown, torch.nan),
        "pointers": torch.where(known, pointers, torch.nan),
    }

def share_of(batch, rank, size):
    rows = torch.arange(12).chunk(size)[rank]
    return {k: v[:, rows] if k == "features" else v[rows] for k, v in batch.items()}

with joined(on_gpu=False) as world:
    torch.manual_seed(3)
    heads = ("type", "pointers", "span", "countdown")
    model = models.build("jade-compact", input_dropout=0.0, head_dropout=0.0, num_classes=2,
                         log_sigmas=balance_name == "kendall", hidden_size=24)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    balance = make_balance(balance_name, heads, log_sigmas=model.log_sigmas)
    batch = share_of(joint_batch(), world.rank, world.size)
    total = balance(model.losses(model(batch), batch))
    total.backward()
    average_gradients(model.parameters())
    torch.save([p.grad for p in model.parameters()], f"{folder}/{world.size}-{world.rank}.pt")
"""

LOST = """
import os, signal, sys
import torch
from safetensors.torch import load_file
from moola_features.errors import MoolaError
from moola_train.distributed import joined, mean_over_processes
try:
    with joined(on_gpu=False) as world:
        mean_over_processes(torch.ones(1))
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(1000):
            mean_over_processes(torch.ones(1))
except MoolaError as error:
    print(f"moola: {error}", file=sys.stderr)
    sys.exit(1)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def launch(script: Path, *arguments: str, size: int = 2) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={size}", str(script), *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("balance", ["kendall", "running-mean", "fixed"])
def test_gradients_are_those_of_the_joint_batch(tmp_path: Path, balance: str) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    alone = subprocess.run(
        [sys.executable, str(script), str(tmp_path), balance],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    done = launch(script, str(tmp_path), balance)
    assert done.returncode == 0, done.stderr
    expected, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    for wanted, actual, other in zip(expected, first, second, strict=True):
        assert torch.equal(actual, other)
        scale = wanted.abs().max().clamp(min=1e-3)
        assert ((actual - wanted).abs().max() / scale).item() < 1e-5
    joint = torch.cat([g.flatten() for g in expected])
    found = torch.cat([g.flatten() for g in first])
    assert ((found - joint).norm() / joint.norm()).item() < 1e-6


def test_a_killed_process_ends_the_job_with_a_message(tmp_path: Path) -> None:
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    began = time.monotonic()
    done = launch(script)
    assert done.returncode != 0
    assert time.monotonic() - began < 60
    # Who is first with its words is a race: the survivor, or the launcher that ends it.
    assert f"exitcode: -{signal.SIGKILL.value}" in " ".join(done.stderr.split()).replace(" :", ":")


def test_alone_nothing_is_exchanged() -> None:
    with joined(on_gpu=False) as world:
        assert world == World()
        assert world.writes
        assert not together()
        count = torch.tensor(3)
        assert share_of_count(count) is count
        assert mean_over_processes(count) is count


def test_two_processes_fit_as_one_on_joint_batches(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    common = (
        "-m", "moola_train", "fit", str(tmp_path / "bars.zarr"), "--labels", str(task.labels),
        "--split", str(task.split), "--preset", "jade-compact", "--epochs", "2", "--device", "cpu",
        "--set", "model.hidden=8", "--set", "model.input_dropout=0.0",
        "--set", "model.head_dropout=0.0", "--set", "loop.log_steps=1",
    )  # fmt: skip
    alone = subprocess.run(
        [sys.executable, *common, "--batch-size", "8", "--run-folder", str(tmp_path / "one")],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    joint = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            *common, "--batch-size", "4", "--run-folder", str(tmp_path / "two"),
        ],
        env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert joint.returncode == 0, joint.stderr
    assert joint.stdout.count("status") == 1  # one of them speaks
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, wanted in one.items():
        # AdamW divides by the size of a gradient: a rounding of one near 0 is not small there.
        torch.testing.assert_close(two[name], wanted, rtol=1e-3, atol=2e-4)
    steps = [
        [
            json.loads(line)["step"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    ]
    assert steps[0] == steps[1]
