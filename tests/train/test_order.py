"""Batches are a function of seed, epoch and step alone, and ranks share them out exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moola_train.errors import LoaderError
from moola_train.order import BatchOrder, inverse_class_counts, shuffle_block


def epoch_of(order: BatchOrder, epoch: int = 0) -> list[NDArray[np.int64]]:
    return [order.batch(epoch, step) for step in range(order.num_batches)]


def joined(order: BatchOrder, epoch: int = 0) -> NDArray[np.int64]:
    return np.concatenate(epoch_of(order, epoch))


def test_the_order_is_the_same_for_ever() -> None:
    # Runs are resumed by later versions: if this fails, they would go on with other batches.
    order = BatchOrder(10, 5, seed=17)
    assert joined(order).tolist() == [8, 9, 6, 4, 0, 3, 1, 5, 7, 2]
    blocks = BatchOrder(80, 5, seed=17, block=2)  # the second group of 16 blocks
    assert blocks.batch(3, 7).tolist() == [28, 77, 44, 26, 66]
    draws = BatchOrder(10, 5, seed=17, weights=np.arange(10))
    assert joined(draws).tolist() == [7, 8, 9, 7, 7, 8, 7, 7, 7, 8]


@given(
    num_items=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 4),
    block=st.none() | st.integers(1, 50),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 9),
)
def test_ranks_together_hand_out_every_window_once(
    num_items: int,
    batch_size: int,
    world_size: int,
    block: int | None,
    shuffle: bool,
    seed: int,
    epoch: int,
) -> None:
    settings: dict[str, Any] = {"seed": seed, "shuffle": shuffle, "drop_last": False}
    settings["block"] = block if shuffle else None
    orders = [
        BatchOrder(num_items, batch_size, **settings, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [epoch_of(order, epoch) for order in orders]
    assert all(0 < len(rows) <= batch_size for of_rank in batches for rows in of_rank)
    everything = np.concatenate([rows for of_rank in batches for rows in of_rank])
    assert np.array_equal(np.sort(everything), np.arange(num_items))
    if not shuffle and world_size == 1:
        assert np.array_equal(everything, np.arange(num_items))


@pytest.mark.parametrize("options", [{}, {"block": 7}, {"weights": True}, {"shuffle": False}])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_make_the_batches_of_one_process(
    options: dict[str, Any], drop_last: bool
) -> None:
    if "weights" in options:
        options = {"weights": np.linspace(0, 1, 103)}
    alone = BatchOrder(103, 12, seed=5, drop_last=drop_last, **options)
    ranks = [
        BatchOrder(103, 4, seed=5, drop_last=drop_last, **options, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert {order.num_batches for order in (alone, *ranks)} == {8 if drop_last else 9}
    for step in range(alone.num_batches):
        together = np.concatenate([order.batch(1, step) for order in ranks])
        np.testing.assert_array_equal(together, alone.batch(1, step))


def test_a_rank_without_windows_has_a_batch_less() -> None:
    ranks = [
        BatchOrder(13, 4, seed=1, drop_last=False, rank=rank, world_size=3) for rank in range(3)
    ]
    assert [order.num_batches for order in ranks] == [1, 1, 2]


@pytest.mark.parametrize("options", [{}, {"block": 9}, {"weights": np.arange(100)}])
def test_a_batch_does_not_depend_on_those_asked_for_before(options: dict[str, Any]) -> None:
    forward = BatchOrder(100, 8, seed=3, **options)
    expected = {(epoch, step): forward.batch(epoch, step) for epoch in (0, 1) for step in range(12)}
    asked = BatchOrder(100, 8, seed=3, **options)
    for at in sorted(expected, key=lambda at: (at[1] * 7) % 12):
        rows = asked.batch(*at)
        np.testing.assert_array_equal(rows, expected[at])
        rows[:] = 0  # the caller's own
        np.testing.assert_array_equal(asked.batch(*at), expected[at])


@pytest.mark.parametrize("options", [{}, {"block": 9}, {"weights": np.ones(100)}])
def test_epochs_and_seeds_differ(options: dict[str, Any]) -> None:
    first = joined(BatchOrder(100, 10, seed=3, **options))
    assert not np.array_equal(first, joined(BatchOrder(100, 10, seed=3, **options), epoch=1))
    assert not np.array_equal(first, joined(BatchOrder(100, 10, seed=4, **options)))


def test_drop_last_leaves_out_other_windows_in_every_epoch() -> None:
    order = BatchOrder(10, 4, seed=2)
    left_out = {frozenset(range(10)) - set(joined(order, epoch).tolist()) for epoch in range(9)}
    assert {len(rows) for rows in left_out} == {2}
    assert len(left_out) > 3


def test_a_full_shuffle_has_no_pattern() -> None:
    # Where an item lands is uniform: over many epochs each of 8 items visits each of 8 positions.
    order = BatchOrder(8, 8, seed=11)
    landed = np.zeros((8, 8))
    for epoch in range(4_000):
        landed[order.batch(epoch, 0), np.arange(8)] += 1
    # 64 cells of 500 +- 21: none 5 deviations off.
    assert np.abs(landed - 500).max() < 5 * np.sqrt(500 * 7 / 8)


def test_a_block_shuffle_reads_few_blocks_at_a_time_and_mixes_them() -> None:
    order = BatchOrder(100 * 64, 64, seed=7, block=64)
    rows = joined(order)
    begins = range(0, 96 * 64, 16 * 64)
    groups = [set((rows[begin : begin + 16 * 64] // 64).tolist()) for begin in begins]
    assert all(len(blocks) == 16 for blocks in groups)  # 16 whole blocks, then others
    assert len(set().union(*groups)) == 96
    spread = [len(set((order.batch(0, step) // 64).tolist())) for step in range(96)]
    assert min(spread) > 8  # of 16: a batch is not of one period


def test_a_block_shuffle_holds_one_group_of_a_table_of_any_size() -> None:
    order = BatchOrder(10**10, 1_024, seed=7, block=65_536)  # 80 GB, if it were one permutation
    rows = order.batch(0, order.num_batches // 2)
    assert len(np.unique(rows)) == 1_024
    assert len(np.unique(rows // 65_536)) == 16


def test_draws_follow_their_weights() -> None:
    classes = np.repeat([-1, 0, 1], [20, 900, 80])
    order = BatchOrder(1_000, 100, seed=17, weights=inverse_class_counts(classes))
    drawn = np.concatenate([joined(order, epoch) for epoch in range(60)])
    assert len(drawn) == 60_000  # as many an epoch as there are windows
    counts = np.unique(classes[drawn], return_counts=True)[1]
    assert np.abs(counts - 20_000).max() < 5 * np.sqrt(60_000 * 2 / 9)  # 5 deviations
    of_one = np.bincount(drawn, minlength=1_000)[:20]  # within a class, all alike
    assert np.abs(of_one - 1_000).max() < 5 * np.sqrt(1_000)
    assert len(np.unique(joined(order))) < 700  # with replacement


def test_what_has_no_weight_is_never_drawn() -> None:
    weights = np.zeros(50)
    for scale in (1e-300, 1e308):
        weights[[3, 20]] = [scale / 3, scale]
        drawn = joined(BatchOrder(50, 50, seed=1, weights=weights))
        assert set(drawn.tolist()) == {3, 20}


def test_only_a_table_beyond_the_memory_is_shuffled_in_blocks() -> None:
    assert shuffle_block(599, memory_bytes=1_000) is None
    assert shuffle_block(601, memory_bytes=1_000) == 65_536
    assert shuffle_block(1) is None
    assert shuffle_block(2**60) == 65_536


def test_identity_is_that_of_the_joint_run() -> None:
    settings: dict[str, Any] = {"seed": 5, "weights": np.ones(64), "world_size": 2}
    first, second = (BatchOrder(64, 8, **settings, rank=rank) for rank in range(2))
    assert first.identity() == second.identity()
    changes: list[dict[str, Any]] = [
        {"seed": 6}, {"weights": np.arange(64)}, {"weights": None}, {"world_size": 4},
        {"drop_last": False},
    ]  # fmt: skip
    for change in changes:
        assert BatchOrder(64, 8, **{**settings, **change}).identity() != first.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 0}, "num_items is 0; give a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": 21}, "20 windows make no batch of 21 on each of 1 ranks; lower batch_size"),
        ({"seed": -1}, "seed is -1; give a whole number from 0 to 18446744073709551615"),
        ({"rank": 1}, "rank is 1; give a whole number from 0 to 0"),
        ({"world_size": 0}, "world_size is 0"),
        ({"block": 0}, "block is 0"),
        ({"shuffle": False, "block": 2}, "block is given and shuffle is False"),
        ({"shuffle": False, "weights": np.ones(20)}, "weights is given and shuffle is False"),
        ({"block": 2, "weights": np.ones(20)}, "weights and block are both given"),
        ({"weights": np.ones(19)}, r"weights are \[19\]; give one for each of 20"),
        ({"weights": -np.arange(20.0)}, r"weights\[1\] is -1.0"),
        ({"weights": [np.nan] * 20}, r"weights\[0\] is nan"),
        ({"weights": np.zeros(20)}, "weights are all 0"),
    ],
)
def test_settings_that_cannot_work_are_named(change: dict[str, Any], message: str) -> None:
    settings = {"num_items": 20, "batch_size": 4, "seed": 0, **change}
    with pytest.raises(LoaderError, match=message):
        BatchOrder(**settings)


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (0, -1), (0, 5)])
def test_batches_outside_the_epoch_are_refused(epoch: int, step: int) -> None:
    with pytest.raises(LoaderError, match="give a whole number"):
        BatchOrder(20, 4, seed=0).batch(epoch, step)
