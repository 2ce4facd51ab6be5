"""How a network starts: recurrent weights that keep their norm, outputs that know the priors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NUM_GATES = 4  # input, forget, cell, output: the order of PyTorch and of cuDNN
FORGET_GATE = 1
SMALLEST_SHARE = 1e-6  # below it, or as near to 1, a share's logit would run away


@torch.no_grad()
def initialise_lstm(lstm: nn.LSTM) -> None:
    """Set an LSTM's weights in place, so that its flat buffer stays one.

    Recurrent weights are orthogonal, one H x H block a gate (Saxe et al., ICLR 2014): a gate keeps
    the norm of what it reads. Input weights are Glorot's, a gate as well. All biases are zero but
    the forget gate's, which is 1 (Jozefowicz et al., ICML 2015). PyTorch adds two bias vectors, so
    the 1 stands in ``bias_ih`` and ``bias_hh`` stays zero.

    Parameters
    ----------
    lstm
        Any ``nn.LSTM`` without projections.

    Examples
    --------
    >>> lstm = nn.LSTM(2, 3)
    >>> initialise_lstm(lstm)
    >>> (lstm.bias_ih_l0 + lstm.bias_hh_l0).tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    for name, parameter in lstm.named_parameters():
        gates = parameter.chunk(NUM_GATES)
        if name.startswith("weight_hh"):
            for gate in gates:
                nn.init.orthogonal_(gate)
        elif name.startswith("weight_ih"):
            for gate in gates:
                nn.init.xavier_uniform_(gate)
        else:
            nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):
                nn.init.ones_(gates[FORGET_GATE])


@torch.no_grad()
def start_at(layer: nn.Linear, constant: Tensor) -> None:
    """Let a layer give one constant whatever it reads, until it has learned better.

    The weights are zero, not small: the first loss is the floor's to the last digit, and the
    layer's own gradient, which does not pass through its weights, starts it moving at once.

    Parameters
    ----------
    layer
        The last layer of a head.
    constant
        float [out_features], what it is to give.

    Examples
    --------
    >>> layer = nn.Linear(5, 2)
    >>> start_at(layer, torch.tensor([0.25, -1.0]))
    >>> layer(torch.randn(5)).tolist()
    [0.25, -1.0]
    """
    nn.init.zeros_(layer.weight)
    layer.bias.copy_(constant)


def log_odds(share: float) -> float:
    """The logit of a share, finite for shares of 0 and 1 too.

    Examples
    --------
    >>> round(log_odds(0.071), 4)
    -2.5714
    """
    kept = min(max(share, SMALLEST_SHARE), 1 - SMALLEST_SHARE)
    return math.log(kept / (1 - kept))
