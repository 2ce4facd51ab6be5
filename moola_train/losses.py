"""The losses: one function each, a mean over what is labelled.

A missing target (type -1, NaN) takes no part; where all are missing the loss is 0, with gradients
of 0. Nothing here asks how many are missing, which would make a GPU wait for the host: terms are
multiplied by what is known instead. Outputs of half precision are reckoned with in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moola_train.distributed import share_of_count

POINTER_DELTA = 0.08  # of a window, 8.3 bars: where the Huber loss turns from square to straight
COUNTDOWN_DELTA = 1.0
RECONSTRUCTION_DELTA = 1.0
FOCAL_GAMMA = 2.0


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy: the mean of -log p_y, p = softmax(logits).

    Parameters
    ----------
    logits
        float ``[B, C]``.
    target
        int64 ``[B]``, class y of each item; -1 unknown.

    Returns
    -------
    Tensor
        Scalar.

    Examples
    --------
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -1])).exp().item()
    4.0
    """
    return known_mean(-_log_probability(logits, target), target >= 0)


def focal(
    logits: Tensor, target: Tensor, gamma: float = FOCAL_GAMMA, alpha: Tensor | None = None
) -> Tensor:
    """Focal loss: the mean of -alpha_y (1 - p_y)^gamma log p_y.

    Parameters
    ----------
    logits
        float ``[B, C]``.
    target
        int64 ``[B]``, class y of each item; -1 unknown.
    gamma
        How much less an item counts that is already told well; 0 gives the cross-entropy.
    alpha
        float ``[C]``, weight of each class; 1 when None.

    Returns
    -------
    Tensor
        Scalar: divided by the number of items, not by the sum of their weights.

    Notes
    -----
    Lin, Goyal, Girshick, He, Dollár, Focal Loss for Dense Object Detection, ICCV 2017, equation 5.

    Examples
    --------
    >>> even = focal(torch.zeros(1, 2), torch.tensor([0]))  # p = 1/2
    >>> round(even.item() / cross_entropy(torch.zeros(1, 2), torch.tensor([0])).item(), 6)
    0.25
    """
    log_share = _log_probability(logits, target)
    # 1 - p from log p by expm1: exact where p is near 1. At 0 a root has no slope.
    rest = (-torch.expm1(log_share)).clamp(min=torch.finfo(log_share.dtype).tiny)
    terms = -(rest**gamma) * log_share
    if alpha is not None:
        terms = terms * alpha.to(terms)[target.clamp(min=0)]
    return known_mean(terms, target >= 0)


def pointer_huber(prediction: Tensor, target: Tensor, delta: float = POINTER_DELTA) -> Tensor:
    """Huber loss of center and length: d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2).

    Parameters
    ----------
    prediction, target
        float ``[B, 2]``, in units of the window; NaN targets are unknown.
    delta
        Where the square ends.

    Returns
    -------
    Tensor
        Scalar: the mean over both pointers of the windows that have an expansion.

    Notes
    -----
    Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics 35 (1964).

    Examples
    --------
    >>> loss = pointer_huber(torch.tensor([[0.54, 0.3]]), torch.tensor([[0.5, 0.1]]))
    >>> round(loss.item(), 6)  # (0.04^2 / 2 + 0.08 (0.2 - 0.04)) / 2
    0.0068
    """
    return _huber(prediction, target, ~target.isnan(), delta)


def span_bce(logits: Tensor, target: Tensor, pos_weight: Tensor | float = 1.0) -> Tensor:
    """Binary cross-entropy: the mean of -w y log p - (1 - y) log(1 - p), p = sigmoid(logits).

    Parameters
    ----------
    logits
        float ``[B, T]``.
    target
        float ``[B, T]``, y in [0, 1]: whether a bar lies in the expansion; NaN unknown.
    pos_weight
        w; (1 - p) / p, with the share p of bars inside an expansion, gives both sides one weight.

    Returns
    -------
    Tensor
        Scalar: the mean over the bars that are known.

    Examples
    --------
    >>> loss = span_bce(torch.zeros(1, 4), torch.tensor([[1.0, 0, 0, float("nan")]]), 2.0)
    >>> round(loss.item() / torch.tensor(2.0).log().item(), 6)  # (2 + 1 + 1) / 3
    1.333333
    """
    known = ~target.isnan()
    values = _full(logits)
    inside = torch.where(known, target, 0.0).to(values)
    # -log sigmoid(x) = softplus(-x), which neither overflows nor loses its tail.
    missed = pos_weight * inside * functional.softplus(-values)
    return known_mean(missed + (1 - inside) * functional.softplus(values), known)


def countdown_huber(prediction: Tensor, target: Tensor, delta: float = COUNTDOWN_DELTA) -> Tensor:
    """Huber loss of the countdown, as :func:`pointer_huber`; with delta 1 half the squared error.

    Parameters
    ----------
    prediction, target
        float ``[B, T]``, targets in [0, 1]; NaN targets are unknown.
    delta
        Where the square ends.

    Returns
    -------
    Tensor
        Scalar: the mean over the bars of the windows that have an expansion.

    Examples
    --------
    >>> countdown_huber(torch.tensor([[0.5]]), torch.tensor([[1.0]])).item()
    0.125
    """
    return _huber(prediction, target, ~target.isnan(), delta)


def edges_cross_entropy(logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Cross-entropy over time of both edges: the mean of -log p_start and -log q_end.

    Parameters
    ----------
    logits
        float ``[B, T, 2]``: of the first bar and of the last; p and q are their softmax over T.
    start, end
        int64 ``[B]``, -1 where there is no expansion.

    Returns
    -------
    Tensor
        Scalar: the mean over both edges of the windows that have an expansion.

    Examples
    --------
    >>> edges_cross_entropy(torch.zeros(1, 8, 2), torch.tensor([2]), torch.tensor([5])).exp().item()
    8.0
    """
    firsts, lasts = logits.unbind(dim=2)
    return (cross_entropy(firsts, start) + cross_entropy(lasts, end)) / 2


def reconstruction_huber(
    prediction: Tensor, target: Tensor, mask: Tensor, delta: float = RECONSTRUCTION_DELTA
) -> Tensor:
    """Huber loss of the features of masked bars, as :func:`pointer_huber`.

    Parameters
    ----------
    prediction, target
        float ``[B, T, F]``, or ``[T, B, F]`` with the mask alike.
    mask
        bool ``[B, T]``: the bars that count, masked and valid.
    delta
        Where the square ends.

    Returns
    -------
    Tensor
        Scalar: the mean over the features of the bars that count.

    Examples
    --------
    >>> target = torch.tensor([[[3.0], [9.0]]])
    >>> reconstruction_huber(torch.zeros(1, 2, 1), target, torch.tensor([[True, False]])).item()
    2.5
    """
    return _huber(prediction, target, mask.unsqueeze(-1).expand_as(target), delta)


def _log_probability(logits: Tensor, target: Tensor) -> Tensor:
    """Return log softmax at each item's class, at class 0 where that is unknown."""
    shares = functional.log_softmax(_full(logits), dim=1)
    return shares.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)


def _huber(prediction: Tensor, target: Tensor, known: Tensor, delta: float) -> Tensor:
    wanted = torch.where(known, target, 0.0)
    values = _full(prediction)
    return known_mean(functional.huber_loss(values, wanted.to(values), "none", delta), known)


def known_mean(terms: Tensor, known: Tensor) -> Tensor:
    """Mean of the known terms, 0 where none is; among processes of the joint batch's."""
    count = share_of_count(known.sum())
    return (terms * known).sum() / torch.where(count > 0, count, 1)


def _full(values: Tensor) -> Tensor:
    """Half precision as float32, the rest as it is."""
    return values if values.dtype == torch.float64 else values.float()
