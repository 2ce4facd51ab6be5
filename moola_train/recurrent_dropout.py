"""Variational recurrent dropout that leaves the recurrence to the fused LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moola_train.initial import NUM_GATES

SHUT = -1e4  # an output gate's pre-activation that makes it exactly zero in every precision


class RecurrentDropout(nn.Module):
    """Drop units of an LSTM for whole sequences, h[t] = mask * h[t] / (1 - p), at every step.

    This is the dropout of Gal and Ghahramani (NIPS 2016) with one mask for the recurrent and the
    outgoing connections of a unit: one mask a sequence, direction and layer, the same at every
    step, so that no unit forgets by chance in the middle of a window. PyTorch's own ``dropout``
    acts between layers only, afresh at each step, and not at all on one layer.

    A fused LSTM offers no place for a mask inside its recurrence. But h = o * tanh(c), and o = 0
    is a dropped unit: the input is widened by one switch a unit, constant over time, which holds
    the unit's output gate shut. The scale 1 / (1 - p) is multiplied into the recurrent weights and
    into the output. So the result is exact, and the LSTM one fused call a layer. DropConnect on
    the recurrent weights (AWD-LSTM) would be cheaper, but its mask is one for the whole batch.

    What it costs: the input is wider by 2H columns, and the layer's weights are copied once per
    step into a buffer in cuDNN's order: 1.4 times the encoder's time on a CPU core (measured, H 96,
    batch 64). Nothing in evaluation, where it is not called.

    Parameters
    ----------
    hidden_size
        Units per direction.
    chance
        Chance that a unit is dropped, p.
    """

    def __init__(self, hidden_size: int, chance: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.chance = chance
        # What a switch adds to the pre-activations: to its own unit's output gate, nothing else.
        switches = torch.zeros(2, NUM_GATES, hidden_size, 2, hidden_size)
        for direction in range(2):
            switches[direction, -1, :, direction] = SHUT * torch.eye(hidden_size)
        switches = switches.reshape(2, NUM_GATES * hidden_size, 2 * hidden_size)
        self.register_buffer("switches", switches, persistent=False)
        self.switches: Tensor

    def draw(self, num_sequences: int, like: Tensor) -> Tensor:
        """Which units are dropped: 1 or 0, [B, 2H]."""
        dropped = like.new_empty(num_sequences, 2 * self.hidden_size)
        return dropped.bernoulli_(self.chance)

    def forward(self, lstm: nn.LSTM, inputs: Tensor) -> Tensor:
        """Run a bidirectional LSTM with freshly drawn masks: [T, B, F] -> [T, B, 2H]."""
        steps = inputs
        for layer in range(lstm.num_layers):
            if layer > 0:
                steps = functional.dropout(steps, lstm.dropout)
            steps = self.run_layer(lstm, layer, steps, self.draw(steps.shape[1], steps))
        return steps

    def run_layer(self, lstm: nn.LSTM, layer: int, inputs: Tensor, dropped: Tensor) -> Tensor:
        """Run one layer under given masks.

        Parameters
        ----------
        lstm
            A bidirectional LSTM, time-major.
        layer
            Which of its layers.
        inputs
            float [T, B, I], the input of that layer.
        dropped
            [B, 2H], 1 where a unit is dropped: the forward direction's, then the backward's.

        Returns
        -------
        Tensor
            [T, B, 2H], zero where dropped, and the rest times 1 / (1 - p).
        """
        length, num_sequences, _ = inputs.shape
        wide = torch.cat([inputs, dropped.expand(length, -1, -1)], dim=2)  # [T, B, I + 2H]
        state = inputs.new_zeros(2, num_sequences, self.hidden_size)
        weights = self._weights(lstm, layer)
        steps, _, _ = torch.lstm(wide, [state, state], weights, True, 1, 0.0, True, True, False)
        return steps / (1 - self.chance)

    def _weights(self, lstm: nn.LSTM, layer: int) -> list[Tensor]:
        """Both directions' weights with the switches, as views of one buffer.

        cuDNN wants all matrices first, then all biases; PyTorch's list has them by direction.
        """
        matrices: list[Tensor] = []
        biases: list[Tensor] = []
        for direction in range(2):
            weights = lstm.all_weights[2 * layer + direction]
            from_input, from_hidden = weights[:2]
            switches = self.switches[direction].to(from_input.dtype)
            matrices += [torch.cat([from_input, switches], dim=1), from_hidden / (1 - self.chance)]
            biases += weights[2:]
        tensors = matrices + biases
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        pieces = flat.split_with_sizes([tensor.numel() for tensor in tensors])
        views = [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
        return [views[index] for index in (0, 1, 4, 5, 2, 3, 6, 7)]
