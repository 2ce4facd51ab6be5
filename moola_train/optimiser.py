"""AdamW with its parameter groups, the course of the learning rate, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moola_train.config import OptimiserConfig
from moola_train.models import Model

ENCODER, HEADS = "encoder", "heads"


class SkippingAdamW(torch.optim.AdamW):
    """AdamW whose fused update is left out where ``found_inf``, a scalar on the device, is 1.

    These are the attributes by which PyTorch's gradient scaler speaks to an optimiser. Deciding
    on the device spares the host a wait at every step.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Give each group the learning rate of its part of the model."""
        for group in self.param_groups:
            rate = rates[group["part"]]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # in place: a CUDA graph reads it where it is
            else:
                group["lr"] = rate


def make_optimiser(
    model: Model, balance: nn.Module, config: OptimiserConfig, *, capturable: bool = False
) -> SkippingAdamW:
    """Make AdamW: decay for weight matrices only, a learning rate of its own for the encoder.

    Biases, norms, log sigmas and a CRF's scores are not decayed: decay would pull them to values
    that mean something (Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019).

    Parameters
    ----------
    model, balance
        Whatever they train; a parameter that both hold is trained once.
    config
        Learning rate and weight decay.
    capturable
        Whether a CUDA graph can hold the update: then the learning rates are tensors.
    """
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    seen: set[int] = set()
    for name, parameter in _named(model, balance):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            part = ENCODER if name.startswith("encoder.") else HEADS
            groups.setdefault((part, decays(name, parameter)), []).append(parameter)
    rate = config.learning_rate
    return SkippingAdamW(
        [
            {
                "params": parameters,
                "part": part,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr": parameters[0].new_full((), rate) if capturable else rate,
            }
            for (part, decayed), parameters in groups.items()
        ],
        fused=True,
        capturable=capturable,
    )


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay is for a parameter: a matrix that is multiplied with, by its name.

    Examples
    --------
    >>> matrix, vector = torch.zeros(2, 2), torch.zeros(2)
    >>> decays("encoder.lstm.weight_hh_l0", matrix), decays("encoder.lstm.bias_hh_l0", vector)
    (True, False)
    >>> decays("heads.span_crf.crf.transitions", matrix)
    False
    """
    return parameter.ndim >= 2 and "weight" in name.rpartition(".")[2]


def _named(model: Model, balance: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from model.named_parameters()
    yield from ((f"balance.{name}", parameter) for name, parameter in balance.named_parameters())


class Schedule:
    """The course of the learning rate: a function of the step, and of validation for plateau.

    Parameters
    ----------
    config
        Its kind and shape.
    steps_per_epoch, epochs
        How long a whole run is.
    """

    def __init__(self, config: OptimiserConfig, steps_per_epoch: int, epochs: int) -> None:
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._num_steps = max(1, steps_per_epoch * epochs)
        self._warmup = config.warmup_epochs * steps_per_epoch
        self._scale = 1.0
        self._best = math.inf
        self._stale = 0

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate of encoder and heads at a step, from 0."""
        rate = self._config.learning_rate * self._share(step)
        if not self._config.freeze_epochs:
            return {ENCODER: rate, HEADS: rate}
        thawed = 0.0 if self.freezes(step) else self._config.unfreeze_lr_scale
        return {ENCODER: rate * thawed, HEADS: rate}

    def freezes(self, step: int) -> bool:
        """Whether only the heads are trained at a step."""
        return step < self._config.freeze_epochs * self._steps_per_epoch

    def observe(self, loss: float) -> None:
        """Take note of a validation loss: on a plateau the learning rate falls."""
        if self._config.schedule != "plateau":
            return
        if loss < self._best:
            self._best, self._stale = loss, 0
            return
        self._stale += 1
        if self._stale >= self._config.plateau_patience:
            self._scale *= self._config.plateau_factor
            self._stale = 0

    def state_dict(self) -> dict[str, float]:
        """What :meth:`observe` has learnt, as plain numbers."""
        return {"scale": self._scale, "best": self._best, "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._scale = float(state["scale"])
        self._best = float(state["best"])
        self._stale = int(state["stale"])

    def _share(self, step: int) -> float:
        if step < self._warmup:
            return (step + 1) / (self._warmup + 1)
        if self._config.schedule == "cosine":
            past = (step - self._warmup) / max(1.0, self._num_steps - self._warmup)
            least = self._config.final_share
            return least + (1 - least) * (1 + math.cos(math.pi * min(past, 1.0))) / 2
        return self._scale


class Average:
    """Exponential moving average of a model's weights; what is validated and kept as best.

    Parameters
    ----------
    model
        Whose weights to follow.
    decay
        Share of the old average that a step keeps; 0 keeps no average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live: list[Tensor] = list(model.parameters())
        self._kept = [p.detach().clone() for p in self._live] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Move a little towards the weights as they are."""
        if self._kept:
            torch._foreach_lerp_(self._kept, self._live, 1.0 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average, in place, so that flat buffers stay one."""
        for live, kept in zip(self._live, self._kept, strict=False):
            before = live.detach().clone()
            live.copy_(kept)
            kept.copy_(before)

    def state_dict(self) -> list[Tensor]:
        """The averages, in the order of the model's parameters."""
        return self._kept

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        """Go on from :meth:`state_dict`; ValueError if that is of other parameters."""
        if len(state) != len(self._kept):
            raise ValueError(f"it averages {len(state)} parameters, this run {len(self._kept)}")
        for kept, saved in zip(self._kept, state, strict=True):
            kept.copy_(saved)
