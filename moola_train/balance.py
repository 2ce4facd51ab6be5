"""How the losses of several heads become one: learned sigmas, running means, or fixed weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from moola_train.distributed import mean_over_processes
from moola_train.errors import ConfigError

MOMENTUM = 0.95
WARMUP_STEPS = 10
RUNNING_MEAN_WEIGHTS = {"pointers": 0.7}  # every other term, type, span and countdown among them:
OTHER_WEIGHT = 0.1


class Balance(nn.Module):
    """Base: weighs each term; the total is their sum.

    Parameters
    ----------
    terms
        Names of the losses, those that every call will bring.

    Attributes
    ----------
    name
        What the configuration calls it.
    """

    name: ClassVar[str]

    def __init__(self, terms: Iterable[str]) -> None:
        super().__init__()
        self.terms = tuple(terms)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum up the weighted losses.

        Parameters
        ----------
        losses
            Scalar of each term.

        Returns
        -------
        Tensor
            Scalar.

        Raises
        ------
        ConfigError
            Losses of other terms than it was made for.
        """
        return torch.stack(list(self.weighted(losses).values())).sum()

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weigh each loss by itself, as :func:`moola_train.pcgrad.pcgrad` wants them."""
        if set(losses) != set(self.terms):
            raise ConfigError(
                f"losses are {', '.join(losses)}; this balance was made for {', '.join(self.terms)}"
            )
        return self._weighted(losses)

    def log(self) -> dict[str, float]:
        """Return what the weights come from, as plain numbers; waits for the device."""
        raise NotImplementedError

    def _weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


class Fixed(Balance):
    """Weights that stay: the sum of w_i L_i.

    Parameters
    ----------
    weights
        One for each term.

    Examples
    --------
    >>> Fixed({"type": 0.5, "span": 2.0})({"type": torch.ones(()), "span": torch.ones(())}).item()
    2.5
    """

    name = "fixed"

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.weights = dict(weights)

    def log(self) -> dict[str, float]:
        """Return ``weight/TERM``."""
        return {f"weight/{term}": weight for term, weight in self.weights.items()}

    def _weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {term: weight * losses[term] for term, weight in self.weights.items()}


class RunningMean(Balance):
    """Losses over their own running mean: the sum of w_i L_i / m_i.

    m_i is the mean of the first steps, then m_i <- momentum m_i + (1 - momentum) L_i; the present
    loss is in it, and no gradient passes through it. A loss of exactly 0 says that nothing was
    labelled, and leaves its mean alone; so does evaluation.

    Parameters
    ----------
    weights
        One for each term.
    momentum
        How much of the mean stays at each step.
    warmup_steps
        Number of steps of the plain mean.

    Examples
    --------
    >>> balance = RunningMean({"type": 1.0})
    >>> [round(balance({"type": torch.tensor(loss)}).item(), 6) for loss in (2.0, 6.0)]
    [1.0, 1.5]
    """

    name = "running-mean"

    def __init__(
        self,
        weights: Mapping[str, float],
        momentum: float = MOMENTUM,
        warmup_steps: int = WARMUP_STEPS,
    ) -> None:
        super().__init__(weights)
        self.weights = dict(weights)
        self.momentum = momentum
        self.warmup_steps = warmup_steps
        self.means: Tensor
        self.num_steps: Tensor
        self.register_buffer("means", torch.ones(len(self.terms)))
        self.register_buffer("num_steps", torch.zeros(len(self.terms), dtype=torch.int64))

    def log(self) -> dict[str, float]:
        """Return ``mean/TERM``, 1 before the first step."""
        return {
            f"mean/{term}": mean for term, mean in zip(self.terms, self.means.tolist(), strict=True)
        }

    def _weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.training:
            values = torch.stack([losses[term].detach() for term in self.terms])
            self._update(mean_over_processes(values))
        # A copy, since the next step changes the means in place while this graph may still live.
        scales = self.means.clone().unbind()
        return {
            term: self.weights[term] * losses[term] / scale
            for term, scale in zip(self.terms, scales, strict=True)
        }

    @torch.no_grad()
    def _update(self, values: Tensor) -> None:
        """Move the means, without a question that the host would have to answer."""
        labelled = values != 0
        self.num_steps += labelled
        steps = self.num_steps.clamp(min=1)
        rate = torch.where(steps <= self.warmup_steps, 1.0 / steps, 1.0 - self.momentum)
        moved = self.means + rate * (values.to(self.means) - self.means)
        self.means.copy_(torch.where(labelled, moved, self.means))


class Kendall(Balance):
    """Learned uncertainties: the sum of L_i / (2 sigma_i^2) + log sigma_i.

    A term without a sigma enters as it is. The log sigmas belong to the model: they are among its
    parameters and in its state, and this module has none of its own.

    Parameters
    ----------
    log_sigmas
        Scalar parameter by term.
    terms
        Names of the losses.

    Raises
    ------
    ConfigError
        No sigma, or one without a loss.

    Notes
    -----
    Kendall, Gal, Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
    and Semantics, CVPR 2018, equation 7, with one form for all terms.

    Examples
    --------
    >>> sigmas = nn.ParameterDict({"span": nn.Parameter(torch.tensor(0.0))})
    >>> Kendall(sigmas, ["span"])({"span": torch.tensor(3.0)}).item()
    1.5
    """

    name = "kendall"

    def __init__(self, log_sigmas: nn.ParameterDict, terms: Iterable[str] | None = None) -> None:
        super().__init__(log_sigmas.keys() if terms is None else terms)
        if len(log_sigmas) == 0:
            raise ConfigError(
                "balance is 'kendall', but the model has no log sigmas; choose 'fixed' or "
                "'running-mean', or a preset that has them"
            )
        for name in log_sigmas:
            if name not in self.terms:
                raise ConfigError(
                    f"log sigma {name!r} has no loss among {', '.join(self.terms)}; remove it"
                )
        # Registered, they would be this module's parameters too, and reach the optimiser twice.
        self._held = (log_sigmas,)

    def log(self) -> dict[str, float]:
        """Return ``sigma/TERM``."""
        (log_sigmas,) = self._held
        return {f"sigma/{term}": math.exp(value.item()) for term, value in log_sigmas.items()}

    def _weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (log_sigmas,) = self._held
        weighted = {}
        for term in self.terms:
            weighted[term] = losses[term]
            if term in log_sigmas:
                log_sigma = log_sigmas[term]
                weighted[term] = losses[term] * torch.exp(-2 * log_sigma) / 2 + log_sigma
        return weighted


BALANCES = (Kendall.name, RunningMean.name, Fixed.name)


def make_balance(
    name: str,
    terms: Iterable[str],
    *,
    weights: Mapping[str, float] | None = None,
    log_sigmas: nn.ParameterDict | None = None,
) -> Balance:
    """Make a balance from its settings.

    Parameters
    ----------
    name
        ``"kendall"``, ``"running-mean"`` or ``"fixed"``.
    terms
        Names of the losses.
    weights
        Of single terms; the others keep 1 (fixed), or 0.7 for pointers and 0.1 for the rest
        (running mean).
    log_sigmas
        The model's, for ``"kendall"``.

    Raises
    ------
    ConfigError
        An unknown name, two at once, weights where sigmas are learned, a weight that is no number
        of at least 0 or has no loss.

    Examples
    --------
    >>> make_balance("running-mean", ["type", "pointers"]).weights
    {'type': 0.1, 'pointers': 0.7}
    """
    names = tuple(terms)
    _require_choice(name)
    if name == Kendall.name:
        if weights:
            raise ConfigError(
                f"weights {dict(weights)} are given, but balance 'kendall' learns its own; leave "
                "them out, or choose 'fixed' or 'running-mean'"
            )
        return Kendall(log_sigmas if log_sigmas is not None else nn.ParameterDict(), names)
    usual = {
        term: 1.0 if name == Fixed.name else RUNNING_MEAN_WEIGHTS.get(term, OTHER_WEIGHT)
        for term in names
    }
    for term, weight in (weights or {}).items():
        if term not in usual:
            raise ConfigError(f"weight of {term!r}: the losses are {', '.join(names)}; rename it")
        if isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
            raise ConfigError(f"weight of {term!r} is {weight!r}; it must be a number from 0 up")
        usual[term] = float(weight)
    return Fixed(usual) if name == Fixed.name else RunningMean(usual)


def _require_choice(name: str) -> None:
    asked = [known for known in BALANCES if known in name]
    if len(asked) > 1:
        raise ConfigError(
            f"balance is {name!r}; {asked[0]} and {asked[1]} exclude each other, for each would "
            "undo the other's scale: choose one"
        )
    if name not in BALANCES:
        raise ConfigError(f"balance is {name!r}; choose one of {', '.join(BALANCES)}")
