"""The one training loop, for fitting and pretraining alike.

A step is a function of the state before it and of (seed, step): batches come from the order,
dropout and augmentation from a generator that is seeded anew at every step. So a run that was
stopped, or killed, and goes on from its last checkpoint ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from moola_train.augment import Augment
from moola_train.balance import Balance
from moola_train.checkpoint import load_checkpoint, save_checkpoint
from moola_train.config import RunConfig
from moola_train.errors import CheckpointError, RunError
from moola_train.loaders import WindowLoader
from moola_train.metrics import Metric
from moola_train.models import Model
from moola_train.objectives import Objective
from moola_train.optimiser import ENCODER, Average, Schedule, make_optimiser
from moola_train.pcgrad import pcgrad
from moola_train.runs import BEST, LATEST, RunFolder

Report = Callable[[dict[str, Any]], None]

_FINISHED, _STALE, _OUT_OF_TIME, _STOPPED = "finished", "early stop", "out of time", "stopped"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    status
        ``"finished"``, ``"early stop"``, ``"out of time"`` or ``"stopped"`` by a signal.
    step, epoch
        How far it came.
    best
        The watched metric at its best, and the metrics of that epoch.
    """

    status: str
    step: int
    epoch: int
    best: dict[str, Any]


@dataclass
class _Progress:
    """What the loop remembers besides weights; all of it goes into a checkpoint."""

    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    stale_epochs: int = 0
    summed: dict[str, float] = field(default_factory=dict)
    num_summed: int = 0


class Loop:
    """Trains a model, validates it after every epoch, and can be stopped at any step.

    Parameters
    ----------
    model, objective, balance
        What is trained, for what, and how the terms are weighed.
    train, validation
        Batches of the two parts; a validation batch is never augmented.
    config
        Settings of the run.
    run
        Where metrics and checkpoints go.
    device
        Where the model is.
    report
        Called with every record that is logged.
    """

    def __init__(
        self,
        *,
        model: Model,
        objective: Objective,
        balance: Balance,
        train: WindowLoader,
        validation: WindowLoader,
        config: RunConfig,
        run: RunFolder,
        device: torch.device,
        report: Report | None = None,
    ) -> None:
        self.model = model
        self.balance = balance
        self._objective = objective
        self._train = train
        self._validation = validation
        self._config = config
        self._run = run
        self._device = device
        self._report = report or (lambda _record: None)
        self._optimiser = make_optimiser(model, balance, config.optimiser, device)
        self._schedule = Schedule(config.optimiser, len(train), config.loop.epochs)
        self._average = Average(model, config.optimiser.ema_decay)
        self._augment = Augment(config.augment)
        self._progress = _Progress()
        self._stopping = threading.Event()
        self._clock = (time.perf_counter(), 0.0, 0)  # at the last log: time, waited, windows
        self._num_windows = 0

    def resume(self) -> bool:
        """Go on from the run's latest checkpoint, if there is one."""
        path = self._run.file(LATEST)
        if not path.exists():
            return False
        state = load_checkpoint(path, self._device)
        try:
            self.model.load_state_dict(state["model"])
            self.balance.load_state_dict(state["balance"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._schedule.load_state_dict(state["schedule"])
            self._average.load_state_dict(state["average"])
            self._train.load_state_dict(state["loader"])
            self._progress = _Progress(**state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{path} does not fit this run: {first}; name another run folder"
            ) from error
        self._run.forget_after(self._progress.step)
        return True

    def run(self) -> Outcome:
        """Train until the epochs are over, validation has stopped improving, or time is up."""
        began = time.monotonic()
        settings = self._config.loop
        with _signals(self._stopping):
            while self._train.epoch < settings.epochs:
                status = self._epoch(began)
                if status is not None:
                    self._save(LATEST)
                    return self._outcome(status)
                self._validate()
                self._save(LATEST)
                patience = settings.patience
                if patience is not None and self._progress.stale_epochs >= patience:
                    return self._outcome(_STALE)
        return self._outcome(_FINISHED)

    def _epoch(self, began: float) -> str | None:
        """Train for the rest of an epoch; why it ended early, or None."""
        settings = self._config.loop
        self._clock = (time.perf_counter(), self._train.waited_seconds, self._num_windows)
        # The loader moves on to the next epoch once its iterator has ended, not before.
        for batch in self._train:
            self._step(batch)
            step = self._progress.step
            if step % settings.log_steps == 0:
                self._log_training()
            if self._stopping.is_set():
                return _STOPPED
            if settings.max_steps is not None and step >= settings.max_steps:
                return _FINISHED
            minutes = (time.monotonic() - began) / 60
            if settings.max_minutes is not None and minutes >= settings.max_minutes:
                return _OUT_OF_TIME
            if step % settings.checkpoint_steps == 0:
                self._save(LATEST)
        return None

    def _step(self, batch: Mapping[str, Tensor]) -> None:
        progress, settings = self._progress, self._config.optimiser
        # Whatever is drawn at a step depends on nothing but the seed and the step.
        torch.manual_seed((self._config.loop.seed << 32) + progress.step)
        rates = self._schedule.rates(progress.step)
        self._set_rates(rates)
        self.model.train()
        with self._autocast():
            losses = self._objective.losses(self.model, self._augment(dict(batch)))
        if self._config.loss.pcgrad:
            parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
            terms = list(self.balance.weighted(losses).values())
            pcgrad(terms, parameters, seed=progress.step)
        else:
            self.balance(losses).backward()
        norm = torch.nn.utils.clip_grad_norm_(
            [p for group in self._optimiser.param_groups for p in group["params"]],
            settings.clip_norm,
        )
        self._require_finite(losses, norm)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._average.update()
        progress.step += 1
        self._num_windows += batch["features"].shape[1]
        for name, loss in {**losses, "gradient_norm": norm}.items():
            progress.summed[name] = progress.summed.get(name, 0.0) + float(loss.detach())
        progress.num_summed += 1

    def _set_rates(self, rates: dict[str, float]) -> None:
        frozen = rates[ENCODER] == 0.0
        for group in self._optimiser.param_groups:
            group["lr"] = rates[group["part"]]
        if self._config.optimiser.freeze_epochs:
            self.model.encoder.requires_grad_(not frozen)

    def _require_finite(self, losses: Mapping[str, Tensor], norm: Tensor) -> None:
        """Stop before the update: what is not finite would spoil the weights for good."""
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad and math.isfinite(float(norm)):
            return
        what = f"loss term {bad[0]!r} is {values[bad[0]]}" if bad else f"gradient norm is {norm}"
        raise RunError(
            f"step {self._progress.step}: {what}; nothing was updated. Lower "
            "optimiser.learning_rate or optimiser.clip_norm, or check the features"
        )

    def _validate(self) -> None:
        progress = self._progress
        self._average.swap()
        try:
            metrics = self._objective.score(self.model, self._validation)
            value, better = self._watched(metrics)
            self._schedule.observe(metrics["loss"].value)
            best = progress.best.get("value")
            improved = best is None or (value < best if better == "lower" else value > best)
            shown = {name: dataclasses.asdict(metric) for name, metric in metrics.items()}
            if improved:
                progress.best = {
                    "watch": self._config.loop.watch, "value": value,
                    "epoch": self._train.epoch, "step": progress.step, "metrics": shown,
                }  # fmt: skip
                progress.stale_epochs = 0
                self._save(BEST)
            else:
                progress.stale_epochs += 1
        finally:
            self._average.swap()
        self._log({"part": "val", "improved": improved, "metrics": shown})

    def _watched(self, metrics: Mapping[str, Metric]) -> tuple[float, str]:
        name = self._config.loop.watch
        if name not in metrics or metrics[name].better is None:
            known = ", ".join(n for n, metric in metrics.items() if metric.better)
            raise RunError(f"loop.watch is {name!r}; choose one of {known}")
        return metrics[name].value, str(metrics[name].better)

    def _log_training(self) -> None:
        progress = self._progress
        now, waited = time.perf_counter(), self._train.waited_seconds
        before, waited_before, windows_before = self._clock
        seconds = max(now - before, 1e-9)
        self._clock = (now, waited, self._num_windows)
        means = {name: total / progress.num_summed for name, total in progress.summed.items()}
        progress.summed, progress.num_summed = {}, 0
        record: dict[str, Any] = {
            "part": "train",
            "learning_rate": self._schedule.rates(progress.step - 1)["heads"],
            "terms": {name: value for name, value in means.items() if name != "gradient_norm"},
            "gradient_norm": means["gradient_norm"],
            "balance": self.balance.log(),
            "timing": {
                "windows_per_second": (self._num_windows - windows_before) / seconds,
                "waiting_share": (waited - waited_before) / seconds,
            },
        }
        if self._device.type == "cuda":
            record["timing"]["device_bytes"] = torch.cuda.max_memory_allocated(self._device)
        self._log(record)

    def _log(self, record: dict[str, Any]) -> None:
        whole = {"step": self._progress.step, "epoch": self._train.epoch, **record}
        self._run.log(whole)
        self._report(whole)

    def _save(self, name: str) -> None:
        if not self._run.writes:
            return
        save_checkpoint(
            self._run.file(name),
            {
                "model": self.model.state_dict(),
                "settings": dataclasses.asdict(self.model.settings),
                "balance": self.balance.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "schedule": self._schedule.state_dict(),
                "average": self._average.state_dict(),
                "loader": self._train.state_dict(),
                "progress": dataclasses.asdict(self._progress),
            },
        )

    def _autocast(self) -> torch.autocast:
        bf16 = self._config.loop.precision == "bf16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16)

    def _outcome(self, status: str) -> Outcome:
        return Outcome(status, self._progress.step, self._train.epoch, self._progress.best)


class _signals:  # noqa: N801 - used like a function
    """Turn the first Ctrl-C or SIGTERM into a request; the second one acts at once."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()
