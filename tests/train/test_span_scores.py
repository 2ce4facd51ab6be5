"""One distribution over all spans: its scores, its loss, its decoding, and the type beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from moola_train.encoder import Encoded
from moola_train.heads import HEADS, HeadInput, HeadSettings
from moola_train.heads.span_scores import SpanScores, edge_shares, expected_f1, span_shares
from moola_train.heads.type_before_span import TypeBeforeSpan
from moola_train.targets import TargetPriors
from tests.reference import span_scores as twin
from tests.train.loops import priors_of

LENGTH, COUNT, STEP_SIZE, NUM_FEATURES = 24, 3, 5, 4

SETTINGS = HeadSettings(
    step_size=STEP_SIZE, summary_size=0, num_features=NUM_FEATURES, num_classes=2,
    window_length=LENGTH, dropout=0.4, focal_gamma=0.0, class_weights=(), span_threshold=0.5,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(17)
    yield
    torch.set_num_threads(before)


def inputs_of(valid: Tensor | None = None) -> HeadInput:
    steps, features = (torch.randn(LENGTH, COUNT, size) for size in (STEP_SIZE, NUM_FEATURES))
    return HeadInput(Encoded(steps, valid), torch.empty(COUNT, 0), {}, features)


def head_of() -> SpanScores:
    head = SpanScores(SETTINGS).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def one_span(start: int, end: int, *, count: int = 1) -> Tensor:
    logits = torch.full((count, LENGTH, 19), -30.0)
    logits[:, start, end - start - 1] = 30.0
    return logits


def test_scores_are_those_of_the_definition() -> None:
    head, inputs = head_of(), inputs_of()
    with torch.no_grad():
        found = head(inputs).double().numpy()
        edges = head.output(inputs.encoded.steps).double().numpy()
        summed = head.summed_steps(inputs.encoded.steps) + head.summed_features(inputs.features)
    for window in range(COUNT):
        wanted = twin.scores(
            edges[:, window, 0], edges[:, window, 1], summed[:, window].double().numpy(),
            head.score_weight.detach().double().numpy(),
            head.length_bias.detach().double().numpy(),
        )  # fmt: skip
        inside = np.isfinite(wanted)
        np.testing.assert_allclose(found[window][inside], wanted[inside], atol=1e-3)
        assert (found[window][~inside] < -1e38).all()


def test_spans_with_a_bar_that_is_not_valid_are_out() -> None:
    valid = torch.ones(LENGTH, COUNT, dtype=torch.bool)
    valid[9, 1] = False
    head = head_of()
    shares = span_shares(head(inputs_of(valid)))
    for window in range(COUNT):
        chances = {
            span: shares[window, span[0], span[1] - span[0] - 1].item()
            for span in twin.spans(LENGTH)
        }
        over = sum(chance for span, chance in chances.items() if 9 in twin.bars(span))
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert (over == 0) == (window == 1)


def test_starts_at_the_priors_of_both_edges() -> None:
    head, priors = SpanScores(SETTINGS).eval(), priors_of()
    head.initialise(priors)
    shares = span_shares(head(inputs_of()))
    wanted = {
        span: priors.start_share[span[0]] * priors.end_share[span[1]] for span in twin.spans(LENGTH)
    }
    total = sum(wanted.values())
    for span, chance in wanted.items():
        found = shares[0, span[0], span[1] - span[0] - 1].item()
        assert found == pytest.approx(chance / total, rel=1e-4)


def test_the_loss_is_the_log_chance_of_the_true_span() -> None:
    head = head_of()
    output = head(inputs_of())
    batch = {"start": torch.tensor([3, -1, 10]), "end": torch.tensor([8, -1, 11])}
    chances = span_shares(output)
    wanted = -(chances[0, 3, 4].log() + chances[2, 10, 0].log()) / 2
    assert head.loss(output, batch).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("start", "end", "stands_for"),
    [(7, 7, (6, 7)), (23, 23, (22, 23)), (0, 23, (2, 21)), (0, 0, (0, 1)), (1, 21, (1, 20))],
)
def test_spans_too_short_or_too_long_stand_for_the_one_about_their_center(
    start: int, end: int, stands_for: tuple[int, int]
) -> None:
    batch = {"start": torch.tensor([start]), "end": torch.tensor([end])}
    head = head_of()
    assert head.loss(one_span(*stands_for), batch).item() == pytest.approx(0, abs=1e-5)
    assert abs(sum(stands_for) - start - end) <= 1


def test_decodes_the_span_of_the_highest_expected_f1() -> None:
    logits = 4 * torch.randn(3, LENGTH, 19)
    logits = logits.masked_fill(~head_of().fits, -1e9)
    shares = span_shares(logits)
    decoded = head_of().decode(logits)
    for window in range(3):
        chances = {
            span: shares[window, span[0], span[1] - span[0] - 1].item()
            for span in twin.spans(LENGTH)
        }
        best, worth = twin.best_span(chances, LENGTH)
        assert (decoded["start"][window].item(), decoded["end"][window].item()) == best
        assert expected_f1(shares)[window].max().item() == pytest.approx(worth, abs=1e-5)
        for name, wanted in (
            ("start_probability", lambda span, bar: span[0] == bar),
            ("end_probability", lambda span, bar: span[1] == bar),
            ("span_probability", lambda span, bar: span[0] <= bar <= span[1]),
        ):
            sums = [sum(c for s, c in chances.items() if wanted(s, bar)) for bar in range(LENGTH)]
            np.testing.assert_allclose(decoded[name][window], sums, atol=1e-5)


def test_a_middle_course_beats_the_likeliest_span() -> None:
    # Two thirds say 4..7 or 4..13 in turn, one third a span that shares nothing with them.
    logits = torch.full((1, LENGTH, 19), -1e9)
    for (start, end), share in {(4, 7): 0.33, (4, 13): 0.33, (22, 23): 0.34}.items():
        logits[0, start, end - start - 1] = float(np.log(share))
    decoded = head_of().decode(logits)
    assert decoded["start"].item() == 4
    assert 7 <= decoded["end"].item() <= 13


def test_edge_shares_are_the_marginals() -> None:
    first, last = edge_shares(span_shares(one_span(6, 13)))
    assert first[0].argmax().item() == 6
    assert last[0].argmax().item() == 13
    assert first.sum().item() == pytest.approx(1)
    assert last.sum().item() == pytest.approx(1)


def test_the_type_reads_the_edges_and_the_bar_before() -> None:
    head = TypeBeforeSpan(SETTINGS).eval()
    with torch.no_grad():
        head.output.weight.normal_()
    scores = one_span(6, 13, count=COUNT).requires_grad_()
    inputs = dataclasses.replace(inputs_of(), outputs={"span_scores": scores})
    output = head(inputs)
    steps = inputs.encoded.steps
    read = torch.cat([steps[6], steps[13], inputs.features[5]], dim=1)
    wanted = head.output(head.projection(read).relu())
    assert torch.allclose(output, wanted, atol=1e-4)
    output.sum().backward()
    assert scores.grad is None, "the type does not move the span"


def test_a_span_is_learnt_from_sums_alone() -> None:
    """Two equal bumps, the larger sum counts: no single bar tells, only the whole."""
    random, count = np.random.default_rng(0), 40
    features = torch.zeros(LENGTH, count, NUM_FEATURES)
    start = torch.from_numpy(random.integers(1, 8, count))
    features[:, :, 0] = 0.1 * torch.randn(LENGTH, count)
    for window in range(count):
        first, second = int(start[window]), int(start[window]) + 12
        features[first : first + 4, window, 0] += 1.0
        features[second : second + 3, window, 0] += 1.0
    batch = {"start": start, "end": start + 3}
    head = SpanScores(dataclasses.replace(SETTINGS, dropout=0.0))
    priors = TargetPriors.of(targets_of(start.numpy(), (start + 3).numpy()), ("a", "b"))
    head.initialise(priors)
    inputs = HeadInput(
        Encoded(torch.zeros(LENGTH, count, STEP_SIZE)), torch.empty(count, 0), {}, features
    )
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        head.loss(head(inputs), batch).backward()
        optimiser.step()
    decoded = head.eval().decode(head(inputs))
    assert (decoded["start"] == start).float().mean().item() > 0.9
    assert (decoded["end"] == start + 3).float().mean().item() > 0.9


def targets_of(start: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
    from moola_train.targets import countdown_of, pointers_of

    position = np.arange(LENGTH)
    inside = (position >= start[:, None]) & (position <= end[:, None])
    return {
        "type": np.zeros(len(start), np.int64), "start": start, "end": end,
        "span": inside.astype(np.float32), "pointers": pointers_of(start, end, LENGTH),
        "countdown": countdown_of(start, LENGTH),
    }  # fmt: skip


def test_both_are_heads_that_a_model_can_be_made_of() -> None:
    assert HEADS["span_scores"] is SpanScores
    assert HEADS["type_before_span"].needs == ("span_scores",)
