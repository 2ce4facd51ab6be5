"""The encoder: a bidirectional LSTM over the bars of a window, time-major throughout."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from moola_train.errors import ModelError
from moola_train.initial import initialise_lstm
from moola_train.recurrent_dropout import RecurrentDropout

FASTEST_HIDDEN_SIZE = 128  # cuDNN's persistent kernels for small layers, forward and backward
FORWARD_HIDDEN_SIZE = 192  # up to here only forward, and the two kinds do not go together


@dataclass(frozen=True)
class Encoded:
    """What an encoder says about each bar.

    Parameters
    ----------
    steps
        float [T, B, S], S being the encoder's ``output_size``.
    valid
        bool [T, B], which bars to pool over; None for all.
    """

    steps: Tensor
    valid: Tensor | None = None


class SelfAttention(nn.Module):
    """LayerNorm(x + attention(x)) over all bars of a window (Vaswani et al., 2017).

    Parameters
    ----------
    size
        Width of a step.
    num_heads
        Attention heads; they divide ``size``.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, num_heads)
        self.norm = nn.LayerNorm(size)

    def forward(self, steps: Tensor, valid: Tensor | None) -> Tensor:
        """Attend over the valid bars: [T, B, S] -> [T, B, S]."""
        ignored = None if valid is None else ~valid.T  # [B, T]
        attended, _ = self.attention(
            steps, steps, steps, key_padding_mask=ignored, need_weights=False
        )
        return cast(Tensor, self.norm(steps + attended))


class Encoder(nn.Module):
    """Dropout on the input, a bidirectional LSTM, and self-attention where asked for.

    The LSTM's weights are never replaced, so on CUDA they stay views of the one buffer that cuDNN
    reads; casting, moving and loading keep that.

    Parameters
    ----------
    num_features
        Columns of the input, without the position.
    hidden_size
        Units per direction. 129 to 192 warn: there cuDNN leaves its fast path.
    num_layers
        LSTM layers.
    window_length
        Bars of a window; the position column is t / (window_length - 1).
    position
        Whether to append the position column.
    attention_heads
        Heads of the self-attention behind the LSTM; 0 for none.
    input_dropout
        Chance that one value of the input is dropped. The position is never dropped.
    layer_dropout
        Chance that one value between two LSTM layers is dropped; there must be two.
    recurrent_dropout
        Chance that a unit is dropped for a whole sequence, in the recurrence too. See
        `RecurrentDropout`; it acts on a single layer as well.

    Raises
    ------
    ModelError
        A size below 1, a chance outside [0, 1), a layer dropout that has no layers to stand
        between.

    Examples
    --------
    >>> encoder = Encoder(num_features=11, hidden_size=8)
    >>> encoder(torch.zeros(105, 4, 11)).steps.shape
    torch.Size([105, 4, 16])
    """

    def __init__(
        self,
        *,
        num_features: int,
        hidden_size: int,
        num_layers: int = 1,
        window_length: int = 105,
        position: bool = False,
        attention_heads: int = 0,
        input_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _require_sizes(num_features=num_features, hidden_size=hidden_size, num_layers=num_layers)
        require_chances(
            input_dropout=input_dropout,
            layer_dropout=layer_dropout,
            recurrent_dropout=recurrent_dropout,
        )
        if layer_dropout > 0 and num_layers == 1:
            raise ModelError(
                f"layer_dropout is {layer_dropout} but there is one layer, where it does nothing; "
                "set layer_dropout = 0, or use recurrent_dropout, which acts on one layer too"
            )
        _warn_off_fast_path(hidden_size)
        self.num_features = num_features
        self.output_size = 2 * hidden_size
        self.input_dropout = nn.Dropout(input_dropout)
        self.lstm = nn.LSTM(
            num_features + position,
            hidden_size,
            num_layers,
            dropout=layer_dropout,
            bidirectional=True,
        )
        initialise_lstm(self.lstm)
        self.recurrent_dropout = (
            RecurrentDropout(hidden_size, recurrent_dropout) if recurrent_dropout > 0 else None
        )
        self.attention = _attention(self.output_size, attention_heads)
        positions = torch.arange(window_length, dtype=torch.float32) / max(window_length - 1, 1)
        self.register_buffer("positions", positions if position else None, persistent=False)
        self.positions: Tensor | None

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Encoded:
        """Read windows.

        Parameters
        ----------
        features
            float [T, B, F], time-major.
        valid
            bool [T, B], which bars count when pooled or attended to; None for all.

        Returns
        -------
        Encoded
            ``steps`` [T, B, 2H], or [T, B, S] behind attention.

        Raises
        ------
        ModelError
            Another number of features, or longer windows than the position column knows.
        """
        self._check(features)
        inputs = self.input_dropout(features.to(self.lstm.all_weights[0][0].dtype))
        if self.positions is not None:
            length, num_windows = inputs.shape[:2]
            column = self.positions[:length, None, None].expand(length, num_windows, 1)
            inputs = torch.cat([inputs, column.to(inputs.dtype)], dim=2)  # [T, B, F + 1]
        if self.recurrent_dropout is not None and self.training:
            steps = self.recurrent_dropout(self.lstm, inputs)
        else:
            steps, _ = self.lstm(inputs)
        if self.attention is not None:
            steps = self.attention(steps, valid)
        return Encoded(steps, valid)

    def _check(self, features: Tensor) -> None:
        if features.ndim != 3 or features.shape[2] != self.num_features:
            raise ModelError(
                f"features have shape {tuple(features.shape)}, but this model reads "
                f"[time, window, {self.num_features}]; build it for the columns of the store"
            )
        if self.positions is not None and features.shape[0] > len(self.positions):
            raise ModelError(
                f"windows have {features.shape[0]} bars, but the position column was made for "
                f"{len(self.positions)}; set window_length to the store's"
            )


def require_chances(**chances: float) -> None:
    """Refuse dropout chances outside [0, 1)."""
    for name, chance in chances.items():
        if not 0 <= chance < 1:
            raise ModelError(f"{name} is {chance}; it must be at least 0 and below 1")


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ModelError(f"{name} is {size}; it must be at least 1")


def _warn_off_fast_path(hidden_size: int) -> None:
    if FASTEST_HIDDEN_SIZE < hidden_size <= FORWARD_HIDDEN_SIZE:
        warnings.warn(
            f"hidden_size is {hidden_size}: between {FASTEST_HIDDEN_SIZE + 1} and "
            f"{FORWARD_HIDDEN_SIZE} cuDNN leaves its fast kernels; choose "
            f"{FASTEST_HIDDEN_SIZE} or less",
            stacklevel=3,
        )


def _attention(size: int, num_heads: int) -> SelfAttention | None:
    if num_heads < 0 or (num_heads > 0 and size % num_heads != 0):
        raise ModelError(
            f"attention_heads is {num_heads}; it must divide {size}, the encoder's width, "
            "or be 0 for none"
        )
    return SelfAttention(size, num_heads) if num_heads else None
