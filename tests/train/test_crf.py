"""The chain against every path there is, and against finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from moola_train.crf import SpanCrf, log_partition, path_score, single_span, viterbi

Scores = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_scores(length: int, num_tags: int = 2, num_windows: int = 5, seed: int = 0) -> Scores:
    """Emissions [B, T, S], transitions [S, S], start [S] and end [S], in double."""
    made = torch.Generator().manual_seed(seed)
    shapes = [(num_windows, length, num_tags), (num_tags, num_tags), (num_tags,), (num_tags,)]
    emissions, transitions, start, end = (
        torch.randn(shape, generator=made, dtype=torch.float64) for shape in shapes
    )
    return 2 * emissions, transitions, start, end


def every_path(length: int, num_tags: int = 2) -> Tensor:
    """All paths, [S ** T, T]."""
    return torch.tensor(list(itertools.product(range(num_tags), repeat=length)))


def score_by_hand(scores: Scores, window: int, path: list[int]) -> float:
    emissions, transitions, start, end = scores
    total = float(start[path[0]] + end[path[-1]])
    total += sum(float(emissions[window, step, tag]) for step, tag in enumerate(path))
    return total + sum(
        float(transitions[tag, following]) for tag, following in itertools.pairwise(path)
    )


@pytest.mark.parametrize(
    ("length", "num_tags"), [*((n, 2) for n in range(1, 9)), *((n, 3) for n in range(1, 7))]
)
def test_partition_and_viterbi_are_those_of_all_paths(length: int, num_tags: int) -> None:
    scores = random_scores(length, num_tags)
    paths = every_path(length, num_tags)
    log_z = log_partition(*scores)
    best = viterbi(*scores)
    for window in range(len(log_z)):
        by_hand = torch.tensor(
            [score_by_hand(scores, window, path) for path in paths.tolist()], dtype=torch.float64
        )
        assert log_z[window].item() == pytest.approx(by_hand.logsumexp(0).item(), rel=1e-12)
        assert best[window].tolist() == paths[by_hand.argmax()].tolist()


def test_path_scores_are_those_added_by_hand() -> None:
    scores = random_scores(6)
    path = torch.randint(0, 2, (5, 6), generator=torch.Generator().manual_seed(1))
    expected = [score_by_hand(scores, window, path[window].tolist()) for window in range(5)]
    assert path_score(*scores, path).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("length", [2, 3, 7, 8])
def test_single_span_is_the_best_of_the_paths_that_have_at_most_one(length: int) -> None:
    scores = random_scores(length, num_windows=40)
    scores[0][:20, :, 1] -= 4  # in half of the windows a span is unlikely
    first, last = single_span(*scores)
    spans = [(-1, -1), *((a, b) for a in range(length) for b in range(a, length))]
    num_none = 0
    for window in range(40):
        totals = [
            score_by_hand(scores, window, [int(a <= step <= b) for step in range(length)])
            for a, b in spans
        ]
        expected = spans[max(range(len(spans)), key=totals.__getitem__)]
        assert (int(first[window]), int(last[window])) == expected
        num_none += expected == (-1, -1)
    assert 0 < num_none < 40  # both answers were put to the test


def test_single_span_differs_from_viterbi_where_that_has_two() -> None:
    tags = torch.tensor([0.0, 3.0, 3.0, -9.0, -9.0, 4.0, 0.0])
    emissions = torch.stack([torch.zeros(7), tags - 1], dim=1).unsqueeze(0)
    flat = torch.zeros(2)
    path = viterbi(emissions, torch.zeros(2, 2), flat, flat)
    assert path.tolist() == [[0, 1, 1, 0, 0, 1, 0]]
    first, last = single_span(emissions, torch.zeros(2, 2), flat, flat)
    assert (first.item(), last.item()) == (1, 2)


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_gradients_are_the_finite_differences(length: int) -> None:
    scores = random_scores(length, num_windows=2)
    path = torch.randint(0, 2, (2, length), generator=torch.Generator().manual_seed(3))

    def likelihood(*given: Tensor) -> Tensor:
        return log_partition(*given) - path_score(*given, path)

    inputs = tuple(tensor.requires_grad_() for tensor in scores)
    if length == 1:  # no step, no transition
        transitions = inputs[1].detach()
        start, end = inputs[2:]
        assert torch.autograd.gradcheck(
            lambda e, s, f: likelihood(e, transitions, s, f), (inputs[0], start, end)
        )
    else:
        assert torch.autograd.gradcheck(likelihood, inputs)


def test_pairwise_products_are_the_forward_algorithm_over_a_whole_window() -> None:
    emissions, transitions, start, end = random_scores(105)
    alpha = start + emissions[:, 0]
    for step in range(1, 105):
        alpha = torch.logsumexp(alpha.unsqueeze(2) + transitions, dim=1) + emissions[:, step]
    expected = torch.logsumexp(alpha + end, dim=1)
    assert torch.allclose(
        log_partition(emissions, transitions, start, end), expected, rtol=1e-13, atol=0
    )


def test_log_space_holds_where_probabilities_overflow() -> None:
    emissions = torch.zeros(1, 105, 2)
    emissions[:, :, 1] = 1e4
    crf = SpanCrf()
    certain = crf.negative_log_likelihood(emissions, torch.ones(1, 105, dtype=torch.int64))
    absurd = crf.negative_log_likelihood(emissions, torch.zeros(1, 105, dtype=torch.int64))
    assert certain.item() == 0.0
    assert absurd.item() == pytest.approx(1.05e6)


def test_probabilities_of_all_paths_sum_to_one() -> None:
    crf = SpanCrf()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(5))
    paths = every_path(7)
    emissions = random_scores(7, num_windows=1)[0].expand(len(paths), -1, -1)
    log_probability = -crf.negative_log_likelihood(emissions, paths)
    assert log_probability.logsumexp(0).item() == pytest.approx(0.0, abs=1e-5)


def test_windows_of_a_batch_do_not_touch_each_other() -> None:
    emissions, *rest = random_scores(9)
    alone = torch.cat([log_partition(window.unsqueeze(0), *rest) for window in emissions])
    assert torch.equal(alone, log_partition(emissions, *rest))
    paths = torch.cat([viterbi(window.unsqueeze(0), *rest) for window in emissions])
    assert torch.equal(paths, viterbi(emissions, *rest))
