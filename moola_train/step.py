"""One training step: from a batch to updated weights, asking the device for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moola_features.spec import Column
from moola_train.augment import Augment
from moola_train.balance import Balance
from moola_train.config import RunConfig
from moola_train.distributed import average_gradients, own_rank
from moola_train.models import Model
from moola_train.objectives import Objective
from moola_train.optimiser import Average, Schedule, make_optimiser
from moola_train.outcome import step_seed
from moola_train.pcgrad import pcgrad
from moola_train.tally import Tally

GRADIENT_NORM = "gradient norm"


class Step:
    """What the loop does with a batch: the host's part first, then the device's.

    :meth:`prepare` settles whatever differs from one step to the next: the seed, the learning
    rates, what is frozen. :meth:`compute` is the same operations on the same tensors every time,
    changed in place, so that one CUDA graph can hold them all.

    Parameters
    ----------
    model, objective, balance
        What is trained, for what, and how the terms are weighed.
    config
        Settings of the run.
    schedule
        The course of the learning rate.
    device
        Where the model is.
    columns
        Of the features, for the augmentations that must know them.

    Attributes
    ----------
    optimiser, average, tally
        What it changes besides the model and the balance.
    """

    def __init__(
        self,
        *,
        model: Model,
        objective: Objective,
        balance: Balance,
        config: RunConfig,
        schedule: Schedule,
        device: torch.device,
        columns: Sequence[Column] = (),
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.device = device
        self.optimiser = make_optimiser(
            model, balance, config.optimiser, capturable=config.loop.cuda_graph
        )
        self.average = Average(model, config.optimiser.ema_decay)
        self.tally = Tally(asks_always=device.type == "cpu")
        self._objective = objective
        self._balance = balance
        self._config = config
        self._augment = Augment(config.augment, columns)
        groups = self.optimiser.param_groups
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._number = torch.zeros((), dtype=torch.float64, device=device)
        self._seed = 0

    def __call__(self, batch: Mapping[str, Tensor], number: int) -> None:
        """Make a step, the run's so-manieth from 0."""
        self.prepare(number)
        self.compute(batch)

    def prepare(self, number: int) -> None:
        """Set what a step depends on besides the state before it and its batch."""
        # Whatever is drawn at a step depends on nothing but the seed and the step.
        self._seed = step_seed(self._config.loop.seed, number)
        torch.manual_seed(self._seed + own_rank())  # other windows, other dropout
        self._number.fill_(number)
        self.optimiser.set_rates(self.schedule.rates(number))
        # Without gradients AdamW passes a parameter over: no momentum, no decay.
        self.model.encoder.requires_grad_(not self.schedule.freezes(number))
        self.model.train()

    def compute(self, batch: Mapping[str, Tensor]) -> None:
        """Go from a batch to updated weights."""
        losses = self._backward(batch)
        average_gradients(self._parameters)
        clip_norm = self._config.optimiser.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, clip_norm)
        # What is not finite would spoil the weights for good, so that it must stop the update.
        found = {**losses, GRADIENT_NORM: norm}
        self.optimiser.found_inf = self.tally.add(self._number, found)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update()

    def probe(self, batch: Mapping[str, Tensor]) -> None:
        """Forward and backward of a batch, for the memory that they take; nothing is learnt."""
        try:
            self._backward(batch)
        finally:
            self.optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that :meth:`compute` changes: the tensors themselves, by name."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        found |= {f"balance.{name}": t for name, t in self._balance.state_dict().items()}
        for index, parameter in enumerate(self._parameters):
            state = self.optimiser.state.get(parameter, {})
            found |= {f"optimiser.{index}.{name}": tensor for name, tensor in state.items()}
        found |= {f"average.{i}": tensor for i, tensor in enumerate(self.average.state_dict())}
        return found | {f"tally.{name}": t for name, t in self.tally.tensors().items()}

    def _backward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the gradients of a batch, and return its losses."""
        bf16 = self._config.loop.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            losses = self._objective.losses(self.model, self._augment(dict(batch)))
        if self._config.loss.pcgrad:
            terms = list(self._balance.weighted(losses).values())
            pcgrad(terms, self._parameters, seed=self._seed)
        else:
            self._balance(losses).backward()
        return losses
