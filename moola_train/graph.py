"""The whole training step as one CUDA graph: recorded once, launched by a single call.

Around the LSTM a step launches dozens of small kernels; a graph launches them all at once. It
replays fixed kernels on fixed memory. So a batch is copied into buffers that stay, the learning
rates are tensors, and what is drawn at random comes from PyTorch's generator, whose seed and offset
a graph reads anew at every replay: seeded at each step, it draws what the same step would draw
without a graph. A recording that is not the step is found out before a second one is made.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from moola_train.distributed import together
from moola_train.errors import ConfigError, RunError
from moola_train.models import Model
from moola_train.step import Step

WARMUP_STEPS = 3  # libraries choose kernels and allocate workspaces in the first ones

# How far the replayed step may be from the same step without a graph. Kernels that add up in no
# fixed order differ in their last digits, of which AdamW takes the sign where a gradient is almost
# 0; a wrong batch, seed or rate moves the weights elsewhere altogether.
LOSS_TOLERANCE = 1e-3  # of each loss, and of the gradients' norm
UPDATE_TOLERANCE = 0.1  # of how far the step moved the weights

OFF = "set loop.cuda_graph = false"

Run = Callable[[], None]


class Recorder(Protocol):
    """What can turn a call into its replay."""

    def warm_up(self, run: Run) -> None:
        """Run it a few times, apart from other work."""

    def record(self, run: Run) -> Run:
        """Record it, without an effect, and return what replays it."""


class CudaRecorder:
    """Records what a call launches on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def warm_up(self, run: Run) -> None:
        """Run it on a stream of its own, as what records it will."""
        side: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARMUP_STEPS):
                run()
        current.wait_stream(side)

    def record(self, run: Run) -> Run:
        """Capture it; the graph lives as long as its replay is held."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            run()
        return graph.replay


class GraphedStep:
    """A `Step` that is recorded at its first batch and then replayed.

    It is recorded again when the encoder thaws, for then there are more gradients.

    Parameters
    ----------
    step
        The step.
    recorder
        What records it.
    paused
        Makes a context in which no other thread calls the device, such as
        ``WindowLoader.paused``.

    Raises
    ------
    ConfigError
        A step that no graph can hold.
    """

    def __init__(
        self,
        step: Step,
        recorder: Recorder,
        paused: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        require_recordable(step.model)
        self._step = step
        self._recorder = recorder
        self._paused = paused
        self._buffers: dict[str, Tensor] = {}
        self._replay: Run | None = None
        self._frozen = False

    def __call__(self, batch: Mapping[str, Tensor], number: int) -> None:
        """Make a step, the run's so-manieth from 0; batches are of one shape.

        Raises
        ------
        RunError
            The step cannot be recorded, or its replay is another step.
        """
        frozen = self._step.schedule.freezes(number)
        if self._replay is None or frozen != self._frozen:
            self._frozen = frozen
            self._start(batch, number)
            return
        self._fill(batch)
        self._step.prepare(number)
        self._replay()

    def _start(self, batch: Mapping[str, Tensor], number: int) -> None:
        """Record the step, make it, and compare it with itself made without a graph."""
        step = self._step
        self._replay = None  # memory of an earlier recording
        self._buffers = {name: rows.clone() for name, rows in batch.items()}
        before = _copies(step)
        step.prepare(number)
        try:
            with self._paused():
                self._recorder.warm_up(self._run)
                _restore(step, before)
                step.prepare(number)
                self._run()
                expected = _copies(step)
                self._replay = self._record()
                _restore(step, before)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0][:200]
            raise RunError(
                f"loop.cuda_graph: step {number} cannot be recorded ({first}); {OFF}"
            ) from error
        self._fill(batch)
        step.prepare(number)
        self._replay()
        require_same(before, expected, _copies(step), step.tally.names)

    def _record(self) -> Run:
        # Nothing is computed while recording. Batch, seed and rates are others than those of the
        # step on purpose: whatever of them was frozen into the graph shows in the comparison.
        for buffer in self._buffers.values():
            buffer.zero_()
        torch.manual_seed(0)
        self._step.optimiser.set_rates(dict.fromkeys(self._step.schedule.rates(0), 0.0))
        return self._recorder.record(self._run)

    def _run(self) -> None:
        self._step.compute(self._buffers)

    def _fill(self, batch: Mapping[str, Tensor]) -> None:
        for name, buffer in self._buffers.items():
            buffer.copy_(batch[name])


def require_recordable(model: Model) -> None:
    """Refuse what no graph can hold, or what would not resume to the bit under one.

    Raises
    ------
    ConfigError
        Several processes, or dropout between LSTM layers: cuDNN keeps a state of its own for it,
        which a seed reaches only by way of the host.
    """
    if together():
        raise ConfigError(
            f"loop.cuda_graph with several processes: their exchange is not recorded; {OFF}"
        )
    encoder = model.encoder
    if encoder.lstm.dropout > 0 and encoder.recurrent_dropout is None:
        raise ConfigError(
            f"loop.cuda_graph with dropout of {encoder.lstm.dropout} between LSTM layers, which "
            f"cuDNN draws where no seed reaches; {OFF}, or set model.recurrent_dropout"
        )


def require_same(
    before: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    replayed: Mapping[str, Tensor],
    terms: tuple[str, ...],
) -> None:
    """Refuse a replay that is not the step.

    Parameters
    ----------
    before
        What a step changes, before it; see :meth:`moola_train.step.Step.tensors`.
    expected, replayed
        The same after the step without a graph, and after its replay.
    terms
        What the tally adds up.

    Raises
    ------
    RunError
        A loss or the weights differ by more than the tolerance; the message names both.
    """
    start = before.get("tally.sums", torch.zeros_like(expected["tally.sums"]))
    for name, wanted, found in zip(
        terms,
        (expected["tally.sums"] - start).tolist(),
        (replayed["tally.sums"] - start).tolist(),
        strict=True,
    ):
        both_nan = math.isnan(found) and math.isnan(wanted)  # the tally will say so
        if not both_nan and not math.isclose(found, wanted, rel_tol=LOSS_TOLERANCE):
            raise RunError(
                f"loop.cuda_graph: the replayed step has {name!r} {found:.6g}, without a graph it "
                f"is {wanted:.6g} (tolerance {LOSS_TOLERANCE:g} of it); {OFF}"
            )
    moved = _distance(before, expected)
    off = _distance(expected, replayed)
    if not off <= UPDATE_TOLERANCE * moved:
        raise RunError(
            f"loop.cuda_graph: the replayed step leaves weights {off:.3g} away from those without "
            f"a graph, which moved by {moved:.3g} (tolerance {UPDATE_TOLERANCE:g} of it); {OFF}"
        )


def _distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """How far the model's weights are apart, as one vector."""
    names = [name for name in first if name.startswith("model.")]
    squares = [(first[name].double() - second[name].double()).square().sum() for name in names]
    return float(torch.stack(squares).sum().sqrt())


def _copies(step: Step) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in step.tensors().items()}


@torch.no_grad()
def _restore(step: Step, before: Mapping[str, Tensor]) -> None:
    """Put back what a step changes; what it made itself begins at 0, as AdamW's moments do."""
    for name, tensor in step.tensors().items():
        if name in before:
            tensor.copy_(before[name])
        else:
            tensor.zero_()
