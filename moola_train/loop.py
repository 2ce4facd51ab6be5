"""The one training loop, for fitting and pretraining alike.

A step is a function of the state before it and of (seed, step): batches come from the order,
dropout and augmentation from a generator that is seeded anew at every step. So a run that was
stopped, or killed, and goes on from its last checkpoint ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moola_features.spec import Column
from moola_train.balance import Balance
from moola_train.checkpoint import (
    load_checkpoint,
    require_same_model,
    require_same_shapes,
    save_checkpoint,
)
from moola_train.config import RunConfig
from moola_train.devices import deterministic_or_refused
from moola_train.distributed import any_process, together
from moola_train.errors import CheckpointError, ConfigError, RunError
from moola_train.first_batch import check_batch
from moola_train.graph import CudaRecorder, GraphedStep
from moola_train.loaders import WindowLoader
from moola_train.memory import enough, fits, out_of_memory, what_stands
from moola_train.metrics import Metric
from moola_train.models import Model
from moola_train.objectives import Objective
from moola_train.optimiser import Schedule
from moola_train.outcome import (
    FINISHED,
    OUT_OF_TIME,
    STALE,
    STOPPED,
    Outcome,
    Progress,
)
from moola_train.runs import BEST, LATEST, RunFolder
from moola_train.shift import as_labelled
from moola_train.signals import stop_requests
from moola_train.step import GRADIENT_NORM, Step

__all__ = ["Loop", "Outcome", "Report"]

Report = Callable[[dict[str, Any]], None]

# What loading raises of parts that are not what was saved; an attribute is missing of None.
_UNFITTING = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class Loop:
    """Trains a model, validates it between epochs, and can be stopped at any step.

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
    columns
        Of the features, for the augmentations that must know them.
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
        columns: Sequence[Column] = (),
    ) -> None:
        if config.loss.pcgrad and together():
            raise ConfigError(
                "loss.pcgrad with several processes: each would project gradients of its own "
                "share of the batch; train in one process, or set loss.pcgrad = false"
            )
        self.model = model
        self.balance = balance
        self._objective = objective
        self._train = train
        self._validation = validation
        self._config = config
        self._run = run
        self._device = device
        self._report = report or (lambda _record: None)
        self._schedule = Schedule(config.optimiser, len(train), config.loop.epochs)
        self._step = Step(
            model=model, objective=objective, balance=balance, config=config,
            schedule=self._schedule, device=device, columns=columns,
        )  # fmt: skip
        self._take: Callable[[Mapping[str, Tensor], int], None] = self._step
        if config.loop.cuda_graph:
            self._take = GraphedStep(self._step, CudaRecorder(device), train.paused)
        self._progress = Progress()
        self._checked = False
        self._validated = False  # in this run or before it was resumed
        self._clock = (time.perf_counter(), 0.0, 0)  # at the last log: time, waited, windows
        self._num_windows = 0

    def resume(self) -> bool:
        """Go on from the run's latest checkpoint, if there is one.

        Raises
        ------
        CheckpointError
            One that cannot be read, or that is of another model, order or data; or the best
            validation's weights are gone.
        """
        path = self._run.file(LATEST)
        if not path.exists():
            self._run.keep_records(0)  # what was logged before the first checkpoint comes again
            return False
        state = load_checkpoint(path, self._device)
        self._require_own_model(state, path)
        try:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self._progress = Progress.from_dict(state["progress"])
        except _UNFITTING as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} does not fit this run: {first}; name another run folder"
            ) from error
        if self._progress.best:
            self._validated = True
            self._best_weights()  # now, rather than after hours
        progress = self._progress
        progress.num_records = self._run.keep_records(progress.num_records, last_step=progress.step)
        return True

    def load_best(self) -> None:
        """Load the weights of the best validation, if there was one.

        Raises
        ------
        CheckpointError
            They are gone, cannot be read, or are of another model.
        """
        if self._progress.best:
            self.model.load_state_dict(self._best_weights())

    def _best_weights(self) -> dict[str, Tensor]:
        path, epoch = self._run.file(BEST), self._progress.best["epoch"]
        if not path.exists():
            raise CheckpointError(
                f"{path} is missing, the weights of the best validation, in epoch {epoch}; put it "
                "back, or train again in another run folder"
            )
        state = load_checkpoint(path)
        self._require_own_model(state, path)
        weights = state.get("model")
        require_same_shapes(weights, self.model.state_dict(), path)
        return dict(weights or {})

    def _require_own_model(self, state: Mapping[str, Any], path: Path) -> None:
        preset, settings = self._config.model.preset, dataclasses.asdict(self.model.settings)
        require_same_model(state, {"preset": preset, **settings}, path)

    def run(self) -> Outcome:
        """Train until the epochs are over, validation has stopped improving, or time is up."""
        minutes = self._config.loop.max_minutes
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        status = self._ended()
        try:
            with deterministic_or_refused(), stop_requests() as stopping:
                while status is None:
                    status = self._epoch(lambda: self._interrupted(stopping.is_set(), deadline))
                    if status is None:
                        if self._validation_is_due():
                            self._validate()
                        status = self._ended()
                    self._save(LATEST)
            if status in (FINISHED, OUT_OF_TIME) and not self._validated:
                # It ended before the first validation was due. Behind the checkpoint: a run that
                # goes on from there knows nothing of it, and ends as one that was never cut off.
                self._validate()
        finally:
            self.model.encoder.requires_grad_(True)
        return Outcome(status, self._progress.step, self._train.epoch, self._progress.best)

    def _validation_is_due(self) -> bool:
        every = self._config.loop.validate_epochs
        return self._train.epoch % every == 0 or self._ended() is not None

    def _ended(self) -> str | None:
        """Why there is nothing left to train, if so."""
        settings, progress = self._config.loop, self._progress
        steps_over = settings.max_steps is not None and progress.step >= settings.max_steps
        if steps_over or self._train.epoch >= settings.epochs:
            return FINISHED
        stale = settings.patience is not None and progress.stale_epochs >= settings.patience
        return STALE if stale else None

    def _interrupted(self, stopping: bool, deadline: float) -> str | None:
        """Why to leave off in the middle of an epoch, if so."""
        settings = self._config.loop
        if any_process(stopping):
            return STOPPED
        if settings.max_steps is not None and self._progress.step >= settings.max_steps:
            return FINISHED
        return OUT_OF_TIME if any_process(time.monotonic() >= deadline) else None

    def _epoch(self, interrupted: Callable[[], str | None]) -> str | None:
        """Train for the rest of an epoch; why it ended early, or None."""
        settings = self._config.loop
        self._clock = (time.perf_counter(), self._train.waited_seconds, self._num_windows)
        # The loader moves on to the next epoch once its iterator has ended, not before.
        for batch in self._train:
            if not self._checked:
                whole = as_labelled(batch, self._config.augment.shift)
                check_batch(whole, self.model.settings)
                self._checked = True
            self._make_step(batch)
            if self._progress.step % settings.log_steps == 0:
                self._log_training()
            status = interrupted()
            if status is not None:
                return status
            if self._progress.step % settings.checkpoint_steps == 0:
                self._save(LATEST)
        return None

    def _make_step(self, batch: Mapping[str, Tensor]) -> None:
        progress = self._progress
        if not fits(lambda: self._take(batch, progress.step)):
            latest = self._run.file(LATEST)
            raise out_of_memory(batch, self._step.probe, step=progress.step, checkpoint=latest)
        progress.step += 1
        self._num_windows += batch["features"].shape[1]

    def _validate(self) -> None:
        progress = self._progress
        self._validated = True
        self._step.tally.require_finite()
        self._step.average.swap()
        try:
            metrics = self._scores()
            value, better = self._watched(metrics)
            self._schedule.observe(metrics["loss"].value)
            best = progress.best.get("value", math.inf if better == "lower" else -math.inf)
            improved = value < best if better == "lower" else value > best  # NaN never does
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
            self._step.average.swap()
        self._log({"part": "val", "improved": improved, "metrics": shown})

    def _scores(self) -> dict[str, Metric]:
        size = self._validation.order.batch_size
        kept = what_stands(self._run.file(LATEST))
        with enough(
            f"validation on {self._device} with {size} windows in a batch",
            f"choose a smaller preset, or --device cpu; {kept}",
        ):
            return dict(self._objective.score(self.model, self._validation))

    def _watched(self, metrics: Mapping[str, Metric]) -> tuple[float, str]:
        name = self._config.loop.watch
        if name not in metrics or metrics[name].better is None:
            known = ", ".join(n for n, metric in metrics.items() if metric.better)
            raise RunError(f"loop.watch is {name!r}; choose one of {known}")
        return metrics[name].value, str(metrics[name].better)

    def _log_training(self) -> None:
        now, waited = time.perf_counter(), self._train.waited_seconds
        before, waited_before, windows_before = self._clock
        seconds = max(now - before, 1e-9)
        self._clock = (now, waited, self._num_windows)
        means = self._step.tally.means()
        record: dict[str, Any] = {
            "part": "train",
            "learning_rate": self._schedule.rates(self._progress.step - 1)["heads"],
            "gradient_norm": means.pop(GRADIENT_NORM),
            "terms": means,
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
        self._progress.num_records += 1
        self._report(whole)

    def _save(self, name: str) -> None:
        if not self._run.writes:
            return
        self._step.tally.require_finite()  # a checkpoint is never younger than a failure
        state = {part: holder.state_dict() for part, holder in self._parts().items()}
        known = {
            "preset": self._config.model.preset,
            "settings": dataclasses.asdict(self.model.settings),
            "progress": dataclasses.asdict(self._progress),
        }
        save_checkpoint(self._run.file(name), {**state, **known})

    def _parts(self) -> dict[str, Any]:
        """What has a state besides the progress."""
        return {
            "loader": self._train, "model": self.model, "balance": self.balance,
            "optimiser": self._step.optimiser, "schedule": self._schedule,
            "average": self._step.average, "tally": self._step.tally,
        }  # fmt: skip
