"""One bar at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

import moola_features as mf
from benchmarks.comparison import Contender, at_most, compare


def test_update(benchmark: Any, full: bool, bars: mf.Bars) -> None:
    head = bars[: 20_000 if full else 2_000]
    columns = [
        getattr(head, name).tolist() for name in ("time", "open", "high", "low", "close")
    ]  # plain numbers, as they come from a feed

    def run() -> list[Any]:
        update = mf.Stream().update
        return [update(*bar) for bar in zip(*columns, strict=True)]

    ours = Contender(
        name="an update of the stream with one bar", run=run, amount=len(head),
        goal=at_most(3e-6), headline=True,
    )  # fmt: skip
    (streamed,) = compare(benchmark, ours, unit="s", rounds=25)
    np.testing.assert_array_equal(np.stack(streamed), mf.compute(head).values)
