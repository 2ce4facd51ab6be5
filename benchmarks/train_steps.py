"""One training step and what it is held against: the same on a fixed batch, its LSTM, a DataLoader.

Each contender's turn is a short epoch; the host waits for the device at the end of a turn only.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.comparison import Contender, Row
from moola_features.windows import Windows
from moola_train.balance import make_balance
from moola_train.config import LoopConfig, RunConfig
from moola_train.devices import prepare_device
from moola_train.graph import CudaRecorder, GraphedStep
from moola_train.loaders import WindowLoader
from moola_train.models import Model, build
from moola_train.optimiser import Schedule
from moola_train.order import BatchOrder
from moola_train.step import Step as LoopStep
from moola_train.targets import LabelledWindows, make_targets

PRESET = "jade-compact"
NUM_FEATURES = 11
LENGTH = 105
SEED = 17
FIXED, BARE, DATA_LOADER, GRAPH = "fixed", "bare", "data_loader", "graph"

# cuDNN's kernels that stay on the device for all time steps of a small LSTM, forward and backward.
_PERSISTENT = re.compile(r"RNN_blockPersist_(fp|bp)_LSTM")
# Any kernel of cuDNN's that belongs to a recurrent layer, whichever way it took.
_RECURRENT = re.compile(r"\w*(?:RNN|LSTM)\w*")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table: a model's size, a batch's, and the precision."""

    hidden: int
    layers: int
    batch: int
    precision: str

    def __str__(self) -> str:
        layers = f"{self.layers} layer{'s' if self.layers > 1 else ''}"
        return f"hidden {self.hidden}, {layers}, batch {self.batch:,}, {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Measured(Case):
    """What was measured of a case.

    Attributes
    ----------
    rates
        Median windows/s: of training by placement, of the fixed batch, the bare LSTM, a DataLoader,
        and on a GPU of training with a graph of the step.
    over_fixed
        By placement: training over the same step on one fixed batch, turn by turn.
    over_bare, over_data_loader
        Training, its windows gathered on the device, over the bare LSTM and over the DataLoader.
    over_eager
        The same with a graph of the step, over that without; None on a CPU.
    lstm_dtype
        What the LSTM computes in.
    kernels
        cuDNN's recurrent kernels in a profile of one step; none on a CPU.
    """

    rates: dict[str, float]
    over_fixed: dict[str, float]
    over_bare: float
    over_data_loader: float
    over_eager: float | None = None
    lstm_dtype: str
    kernels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a turn is to last, how many there are, and out of how many bars windows come."""

    turn_seconds: float
    rounds: int
    num_bars: int


class HeadLosses:
    """An objective that trains the heads and validates nothing."""

    def losses(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss of each head."""
        return model.losses(model(batch), batch)


class Step:
    """The loop's training step, or a graph of it, without augmentation, averages and logs."""

    def __init__(self, case: Case, device: torch.device, *, recorded: bool = False) -> None:
        torch.manual_seed(SEED)
        settings = {"loop.precision": case.precision, "loop.cuda_graph": recorded}
        config = RunConfig().override(settings)
        model = build(PRESET, hidden_size=case.hidden, num_layers=case.layers)
        self.model = model.to(device)
        self._device = device
        self._bf16 = case.precision == "bf16"
        self._number = 0
        step = LoopStep(
            model=model, objective=HeadLosses(), config=config, device=device,
            balance=make_balance("kendall", model.heads.keys(), log_sigmas=model.log_sigmas),
            schedule=Schedule(config.optimiser, 1_000, config.loop.epochs),
        )  # fmt: skip
        self._take: Callable[[Mapping[str, Tensor], int], None] = step
        if recorded:
            self._take = GraphedStep(step, CudaRecorder(device), contextlib.nullcontext)

    def __call__(self, batch: Mapping[str, Tensor]) -> None:
        self._take(batch, self._number)
        self._number += 1

    def lstm_dtype(self, batch: Mapping[str, Tensor]) -> torch.dtype:
        """What the LSTM computes in: autocast may choose another type for it than it is asked."""
        with torch.no_grad(), self._autocast():
            steps: Tensor = self.model.encoder.lstm(batch["features"])[0]
        return steps.dtype

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)


class Labelled:
    """A dataset for PyTorch's DataLoader: one window and its targets at a time."""

    def __init__(self, windows: Windows, targets: Mapping[str, NDArray[Any]]) -> None:
        self._windows = windows
        self._targets = targets

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        start = self._windows.starts[row]
        window = self._windows.features[start : start + self._windows.length]
        return {"features": window} | {name: target[row] for name, target in self._targets.items()}


def measure(case: Case, device: torch.device, effort: Effort) -> Measured:
    """Time a training step beside its company, and see which kernels it runs."""
    prepare_device(LoopConfig(device=device.type, precision=case.precision))
    step = Step(case, device)
    num_steps = steps_in(effort.turn_seconds, step, case, device)
    windows, targets = make_windows(num_steps * case.batch, effort.num_bars)
    fixed = next(iter(_loader(windows, targets, case.batch, device, "device")))
    lstm_dtype = step.lstm_dtype(fixed)
    contenders = [
        *(
            _training(placement, step, _loader(windows, targets, case.batch, device, placement))
            for placement in ("device", "host")
        ),
        Contender(name=FIXED, amount=len(windows), run=lambda: _each(step, [fixed] * num_steps)),
        _bare_lstm(case, fixed["features"], num_steps, lstm_dtype),
        _data_loader(case, step, windows, targets, device),
    ]
    if device.type == "cuda":
        recorded = Step(case, device, recorded=True)
        recorded(fixed)  # recorded here, while no loader's thread is about
        loader = _loader(windows, targets, case.batch, device, "device")
        contenders.append(_training(GRAPH, recorded, loader))
    kernels = recurrent_kernels(lambda: step(fixed), device)
    rates = take_turns(contenders, device, effort.rounds)
    rows = {
        (ours, theirs): Row.of(ours, "windows/s", rates[ours], rates[theirs])
        for ours, theirs in itertools.product(("device", "host"), (FIXED, BARE, DATA_LOADER))
    }
    over_eager = None
    if GRAPH in rates:
        pairs = zip(rates[GRAPH], rates["device"], strict=True)
        over_eager = float(np.median([graph / eager for graph, eager in pairs]))
    medians = {name: float(np.median(taken)) for name, taken in rates.items()}
    ratios = {pair: float(row.ratio or 0) for pair, row in rows.items()}
    return Measured(
        **asdict(case), rates=medians, kernels=kernels,
        lstm_dtype=str(lstm_dtype).removeprefix("torch."),
        over_fixed={placement: ratios[placement, FIXED] for placement in ("device", "host")},
        over_bare=ratios["device", BARE], over_data_loader=ratios["device", DATA_LOADER],
        over_eager=over_eager,
    )  # fmt: skip


def make_windows(num_windows: int, num_bars: int) -> tuple[Windows, dict[str, NDArray[Any]]]:
    """Draw windows from all over a table of noise, and targets of every kind: speed sees no sense.

    Every fourth window has no expansion; the others have one of 3 to 12 bars.
    """
    random = np.random.default_rng(SEED)
    table = random.standard_normal((num_bars, NUM_FEATURES), dtype=np.float32)
    starts = random.integers(0, num_bars - LENGTH + 1, num_windows)
    first = random.integers(20, 93, num_windows)
    first[::4] = -1
    last = np.where(first < 0, -1, first + random.integers(2, 12, num_windows))
    names = tuple(map(str, range(num_windows)))
    labels = LabelledWindows(
        window_id=names, base_id=names, type=random.integers(0, 3, num_windows),
        start=first, end=last, classes=("none", "consolidation", "retracement"), length=LENGTH,
    )  # fmt: skip
    return Windows(table, starts, LENGTH), make_targets(labels)


def steps_in(seconds: float, step: Step, case: Case, device: torch.device) -> int:
    """How many steps fill a turn: at least two, so that there is one to prepare a batch during."""
    windows, targets = make_windows(case.batch, case.batch + LENGTH)
    (batch,) = _loader(windows, targets, case.batch, device, "device")
    took = []
    for _ in range(4):
        wait_for(device)
        began = time.perf_counter()
        step(batch)
        wait_for(device)
        took.append(time.perf_counter() - began)
    return max(2, round(seconds / min(took)))


def take_turns(
    contenders: Sequence[Contender], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Windows/s of each turn by contender; a first turn of each warms up and is not counted."""
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds + 1):
        for contender in contenders:
            wait_for(device)
            began = time.perf_counter()
            contender.run()
            wait_for(device)
            if turn:
                taken = time.perf_counter() - began
                rates[contender.name].append(contender.amount / taken)
    return rates


def recurrent_kernels(run: Callable[[], Any], device: torch.device) -> tuple[str, ...]:
    """Names of cuDNN's recurrent kernels that a call runs, as torch.profiler sees them."""
    if device.type != "cuda":
        return ()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    run()
    wait_for(device)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        wait_for(device)
    events = profile.events()
    return only_recurrent(event.name for event in events if event.device_type.name == "CUDA")


def only_recurrent(kernels: Iterable[str]) -> tuple[str, ...]:
    """Pick cuDNN's recurrent kernels out of full kernel names, short and sorted.

    Examples
    --------
    >>> only_recurrent(["void RNN_blockPersist_fp_LSTM<float, float>(int)", "ampere_sgemm_32x128"])
    ('RNN_blockPersist_fp_LSTM',)
    """
    found = (_RECURRENT.search(name.split("<")[0].split("(")[0]) for name in kernels)
    return tuple(sorted({match[0] for match in found if match}))


def is_persistent(kernels: Iterable[str]) -> bool:
    """Whether cuDNN's persistent kernels for small LSTMs ran, forward and backward.

    Examples
    --------
    >>> is_persistent(["RNN_blockPersist_fp_LSTM", "RNN_blockPersist_bp_LSTM_HMMA"])
    True
    >>> is_persistent(["RNN_blockPersist_fp_LSTM", "LSTM_elementWise_bp1"])
    False
    """
    directions = {match[1] for match in map(_PERSISTENT.search, kernels) if match}
    return directions == {"fp", "bp"}


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _each(step: Step, batches: Iterable[Mapping[str, Tensor]]) -> None:
    for batch in batches:
        step(batch)


def _loader(
    windows: Windows,
    targets: Mapping[str, NDArray[Any]],
    batch: int,
    device: torch.device,
    placement: str,
) -> WindowLoader:
    order = BatchOrder(len(windows), batch, seed=SEED)
    return WindowLoader(windows, order, device=device, placement=placement, targets=targets)


def _training(name: str, step: Step, loader: WindowLoader) -> Contender:
    return Contender(name=name, amount=loader.order.num_items, run=lambda: _each(step, loader))


def _bare_lstm(case: Case, features: Tensor, num_steps: int, dtype: torch.dtype) -> Contender:
    """Forward and backward of the same LSTM, in the type it has in the model, and nothing else."""
    lstm = nn.LSTM(NUM_FEATURES, case.hidden, case.layers, bidirectional=True)
    lstm = lstm.to(features.device, dtype)
    inputs = features.to(dtype)
    gradient = torch.ones(*inputs.shape[:2], 2 * case.hidden, dtype=dtype, device=features.device)

    def run() -> None:
        for _ in range(num_steps):
            lstm(inputs)[0].backward(gradient)
            lstm.zero_grad(set_to_none=True)

    return Contender(name=BARE, amount=num_steps * case.batch, run=run, is_rival=False)


def _data_loader(
    case: Case,
    step: Step,
    windows: Windows,
    targets: Mapping[str, NDArray[Any]],
    device: torch.device,
) -> Contender:
    """Train on what PyTorch's loader collates by default, for a tenth of the batches."""
    loader: Any = torch.utils.data.DataLoader(
        Labelled(windows, targets),  # type: ignore[arg-type]  # it has a length and items
        batch_size=case.batch,
        shuffle=True,
        pin_memory=device.type == "cuda",
    )
    num_steps = max(2, len(loader) // 10)

    def batches() -> Iterable[dict[str, Tensor]]:
        for collated in itertools.islice(loader, num_steps):
            batch = {k: v.to(device, non_blocking=True) for k, v in collated.items()}
            batch["features"] = batch["features"].transpose(0, 1).contiguous()  # [T, B, F]
            yield batch

    return Contender(
        name=DATA_LOADER, amount=num_steps * case.batch, run=lambda: _each(step, batches())
    )
