"""Running sums agree with the definition, whatever the length and the dimension."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from moola_train.running_sum import running_sum


@given(length=st.integers(1, 300), seed=st.integers(0, 1_000), dim=st.sampled_from([0, 1, -1]))
def test_it_is_the_sum_up_to_each_place(length: int, seed: int, dim: int) -> None:
    shape = [3, 3]
    shape[dim] = length
    values = np.random.default_rng(seed).normal(size=shape)
    found = running_sum(torch.from_numpy(values), dim=dim)
    np.testing.assert_allclose(found.numpy(), np.cumsum(values, axis=dim), rtol=0, atol=1e-12)
    whole = torch.from_numpy(values.round(1) * 10).round().float()  # whole numbers: exact
    assert torch.equal(running_sum(whole, dim=dim), whole.cumsum(dim))


def test_it_can_be_learnt_through() -> None:
    values = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: running_sum(given, dim=0), values)
