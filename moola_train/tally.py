"""What the steps since the last log line came to, added up on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moola_train.errors import RunError

_NEVER = 0  # steps count from 1 here, so that all begins as zeros


class Tally:
    """Sums of what every step reports, and the first step that was not finite.

    Asking a GPU for a number makes the host wait for it, at every step for nothing. So the sums
    stay where they are made, and so does the verdict: what :meth:`add` returns keeps the
    optimiser from updating, and the host hears of it when it next asks.

    Parameters
    ----------
    asks_always
        Whether :meth:`add` asks at once, as a CPU may: there the answer is known.

    Examples
    --------
    >>> tally = Tally(asks_always=True)
    >>> _ = tally.add(0, {"span": torch.tensor(1.0)})
    >>> _ = tally.add(1, {"span": torch.tensor(3.0)})
    >>> tally.means()
    {'span': 2.0}
    """

    def __init__(self, *, asks_always: bool) -> None:
        self._asks_always = asks_always
        self._names: tuple[str, ...] = ()
        self._count = torch.zeros(0)
        self._sums = torch.zeros(0)
        self._first = torch.zeros(0)
        self._values = torch.zeros(0)

    @property
    def names(self) -> tuple[str, ...]:
        """What every step reports; empty before the first one."""
        return self._names

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`add` changes, in place and by name; all zeros before the first step."""
        if not self._names:
            return {}
        return {
            "count": self._count, "sums": self._sums, "first": self._first, "values": self._values,
        }  # fmt: skip

    def add(self, step: float | Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Take note of a step.

        Parameters
        ----------
        step
            Its number, from 0; a scalar on the device where a CUDA graph holds the call.
        values
            Scalars by name, the same names at every step.

        Returns
        -------
        Tensor
            Scalar on the device: 1 where a value is not finite, else 0.

        Raises
        ------
        RunError
            A value that is not finite, if the tally always asks.
        """
        found = torch.stack([value.detach().double() for value in values.values()])
        if not self._names:
            self._begin(tuple(values), torch.zeros_like(found))
        bad = ~found.isfinite().all()
        first = bad & (self._first == _NEVER)
        self._first.copy_(torch.where(first, step + 1, self._first))
        self._values.copy_(torch.where(first, found, self._values))
        self._sums += found
        self._count += 1
        if self._asks_always:
            self.require_finite()
        return bad.float()

    def require_finite(self) -> None:
        """Ask whether every step was finite; waits for the device.

        Raises
        ------
        RunError
            One was not; the message names the step and the first value that was not finite.
        """
        if not self._names or self._first.item() == _NEVER:
            return
        values = dict(zip(self._names, self._values.tolist(), strict=True))
        bad = next(name for name in values if not torch.tensor(values[name]).isfinite())
        raise RunError(
            f"step {int(self._first.item()) - 1}: {bad!r} is {values[bad]}; nothing was updated. "
            "Lower optimiser.learning_rate or optimiser.clip_norm, or check the features"
        )

    def means(self) -> dict[str, float]:
        """Mean of each value since it was last asked for, and begin anew; waits for the device."""
        self.require_finite()
        means = (self._sums / self._count.clamp(min=1)).tolist()
        self._sums.zero_()
        self._count.zero_()
        return dict(zip(self._names, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, as tensors and plain values."""
        count = int(self._count) if self._names else 0
        return {"names": list(self._names), "count": count, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        if state["names"]:
            self._begin(tuple(state["names"]), state["sums"].clone())
            self._count += int(state["count"])

    def _begin(self, names: tuple[str, ...], sums: Tensor) -> None:
        self._names = names
        self._sums = sums
        self._values = torch.zeros_like(sums)
        self._first = sums.new_full((), _NEVER)
        self._count = sums.new_zeros(())
