"""One fused pass over bars, and the state it carries from one batch to the next.

Batch builds, appends, streams and checks all run this; how the bars are cut changes no bit.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from moola_features import spec
from moola_features.config import FeatureConfig
from moola_features.errors import StreamError

if TYPE_CHECKING:
    from moola_features.kernels.compiled import Kernel

_ZSCORE_DEPTH = spec.ZSCORE_PERIOD
_MOST_BARS = 1 << 62  # of a segment, so that counting on leaves room


class FeaturePass:
    """A family's kernel with its parameters and its carried state.

    Parameters
    ----------
    config
        What to compute.

    Examples
    --------
    >>> import numpy as np
    >>> from moola_features import FeatureConfig
    >>> carried = FeaturePass(FeatureConfig())
    >>> price = np.array([1.0, 2.0])
    >>> values, valid = np.empty((2, 11), np.float32), np.empty(2, bool)
    >>> carried.run(price, price, price, price, np.array([0]), values, valid)
    >>> carried.state()["index"]
    2
    """

    def __init__(self, config: FeatureConfig) -> None:
        from moola_features.kernels import layout

        self.config = config
        self.num_columns = len(spec.columns(config))
        self.parameters = _parameters(config)
        self.carried = np.zeros(1, layout.STATE)
        self.carried["swing_high_index"] = self.carried["swing_low_index"] = -1
        self.history = np.zeros((4, history_depth(config)))
        self.kernel = kernel_of(config).load()

    def run(
        self,
        open_: NDArray[np.float64],
        high: NDArray[np.float64],
        low: NDArray[np.float64],
        close: NDArray[np.float64],
        starts: NDArray[np.int64],
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
    ) -> None:
        """Continue over a batch of bars.

        Parameters
        ----------
        open_, high, low, close
            float64 ``[n]``, contiguous, checked.
        starts
            int64, ascending: positions in the batch at which a segment begins.
        values
            float32 ``[n, F]``, C-contiguous: gets the features.
        valid
            bool ``[n]``: gets the validity.
        """
        self.kernel(
            open_, high, low, close, starts,
            self.parameters, self.carried, self.history, values, valid,
        )  # fmt: skip

    def freeze(self) -> bytes:
        """Return the carried state as bytes: equal bytes, equal results from here on."""
        return self.carried.tobytes() + self.history.tobytes()

    def thaw(self, frozen: bytes) -> None:
        """Go on from the state that :meth:`freeze` of the same configuration returned."""
        size = self.carried.nbytes
        self.carried[:] = np.frombuffer(frozen, self.carried.dtype, 1)
        self.history[:] = np.frombuffer(frozen, np.float64, offset=size).reshape(self.history.shape)

    def age(self, num_bars: int) -> None:
        """Let the segment have begun so many bars earlier than the state knows."""
        state = self.carried[0]
        state["index"] += num_bars
        for name in ("extreme_index", "swing_high_index", "swing_low_index"):
            known = state["leg"] != 0 if name == "extreme_index" else state[name] >= 0
            state[name] += num_bars if known else 0

    def state(self) -> dict[str, Any]:
        """Return the carried state as plain JSON types; floats survive JSON to the bit."""
        record = self.carried[0]
        fields = {name: record[name].item() for name in self.carried.dtype.names or ()}
        return {**fields, "history": self.history.tolist()}

    @classmethod
    def from_state(cls, config: FeatureConfig, state: dict[str, Any]) -> Self:
        """Make a pass that goes on from a saved state.

        Raises
        ------
        StreamError
            A state that lacks a field or was saved under another configuration.
        """
        made = cls(config)
        names = made.carried.dtype.names or ()
        missing = [name for name in (*names, "history") if name not in state]
        if missing:
            raise StreamError(f"state lacks {missing[0]!r}; pass what state() returned, whole")
        try:
            history = np.asarray(state["history"], dtype=np.float64)
            for name in names:
                made.carried[name] = state[name]
        except (TypeError, ValueError, OverflowError) as error:
            raise StreamError(f"state holds a value that is no number: {error}") from error
        numbers = np.append(history, [float(made.carried[name][0]) for name in names])
        if not np.isfinite(numbers).all():
            raise StreamError("state holds a value that is not finite; pass what state() returned")
        if history.shape != made.history.shape:
            raise StreamError(
                f"state carries history of shape {list(history.shape)}, this configuration needs "
                f"{list(made.history.shape)}; use the configuration that the state was saved with"
            )
        if not _is_possible(made.carried[0]):
            raise StreamError(
                "state counts bars that cannot have been; pass what state() returned, whole"
            )
        made.history[:] = history
        return made


def _is_possible(state: np.void) -> bool:
    """Whether positions lie in the segment that has been seen, or stand for none."""
    index, leg = int(state["index"]), int(state["leg"])
    swings = (int(state["swing_high_index"]), int(state["swing_low_index"]))
    return (
        0 <= index <= _MOST_BARS
        and leg in (-1, 0, 1)
        and 0 <= int(state["extreme_index"]) <= index
        and all(-1 <= position < max(index, 1) for position in swings)
        and bool(state["mean_range"] >= 0)
    )


def kernel_of(config: FeatureConfig) -> Kernel:
    """Return a family's kernel, not yet compiled."""
    # Imported here: Numba costs a tenth of a second, which `info` or `--help` should not pay.
    module = importlib.import_module(f"moola_features.kernels.{config.family}")
    kernel: Kernel = getattr(module, config.family)
    return kernel


def history_depth(config: FeatureConfig) -> int:
    """Bars before a batch that its first bar looks back on."""
    if config.family == "returns":
        return _ZSCORE_DEPTH
    return max(config.atr_period, spec.CONTEXT_PERIOD if config.context else 0)


def _parameters(config: FeatureConfig) -> NDArray[np.void]:
    from moola_features.kernels import layout

    record = np.zeros(1, layout.PARAMETERS)
    weight = 2.0 / (config.range_period + 1)
    record["range_weight"] = weight
    record["range_rest"] = 1.0 - weight
    record["swing_rule"] = spec.SWING_RULES.index(config.swing_rule)
    for name in (
        "atr_period", "k", "early_lookback", "early_retrace", "distance_clip", "range_clip",
        "proxy_clip", "window_length", "first_valid_index", "consol_proxy", "context",
    ):  # fmt: skip
        record[name] = getattr(config, name)
    record.flags.writeable = False  # the kernels' signature says so, and an exact match is fastest
    return record
