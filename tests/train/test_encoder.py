"""The encoder: shapes, its inputs, dropout that acts, and the one flat buffer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from moola_train.encoder import Encoded, Encoder, SelfAttention
from moola_train.errors import ModelError
from moola_train.pooling import Summary, last_step, max_pool, mean_pool, weighted_pool
from moola_train.recurrent_dropout import RecurrentDropout

LENGTH = 12

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(17)
    yield
    torch.set_num_threads(before)


def windows(num_windows: int = 3, num_features: int = 5) -> Tensor:
    return torch.randn(LENGTH, num_windows, num_features)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("position", [False, True])
def test_steps_are_time_major_and_both_directions_wide(num_layers: int, position: bool) -> None:
    encoder = Encoder(num_features=5, hidden_size=4, num_layers=num_layers, position=position)
    encoded = encoder(windows())
    assert encoded.steps.shape == (LENGTH, 3, encoder.output_size)
    assert encoder.output_size == 8
    assert encoder.lstm.input_size == 5 + position
    assert not encoder.lstm.batch_first


def test_each_direction_sees_its_side_of_a_bar() -> None:
    encoder = Encoder(num_features=5, hidden_size=4)
    inputs = windows()
    changed = inputs.clone()
    changed[6] += 1
    difference = (encoder(inputs).steps - encoder(changed).steps).abs().amax(dim=1)  # [T, 2H]
    assert difference[:6, :4].max() == 0
    assert difference[6:, :4].amin(dim=1).max() > 0
    assert difference[7:, 4:].max() == 0
    assert difference[:7, 4:].amax(dim=1).min() > 0


def test_the_position_column_is_t_over_104() -> None:
    encoder = Encoder(num_features=2, hidden_size=3, position=True)
    by_hand = torch.cat([torch.zeros(105, 1, 2), torch.arange(105).reshape(105, 1, 1) / 104], dim=2)
    expected, _ = encoder.lstm(by_hand)
    assert torch.equal(encoder(torch.zeros(105, 1, 2)).steps, expected)
    with pytest.raises(ModelError, match=r"106 bars.*made for 105"):
        encoder(torch.zeros(106, 1, 2))


def test_the_position_is_never_dropped() -> None:
    encoder = Encoder(num_features=2, hidden_size=3, position=True, input_dropout=0.9)
    silent = torch.zeros(105, 4, 2)
    assert torch.equal(encoder(silent).steps, encoder.eval()(silent).steps)


def test_input_dropout_acts_in_training_only() -> None:
    encoder = Encoder(num_features=5, hidden_size=4, input_dropout=0.5)
    inputs = windows()
    assert not torch.equal(encoder(inputs).steps, encoder(inputs).steps)
    encoder.eval()
    assert torch.equal(encoder(inputs).steps, encoder(inputs).steps)


def lstm_by_hand(lstm: nn.LSTM, inputs: Tensor, kept: list[Tensor]) -> Tensor:
    """h and c step by step with h = kept * h at each of them; kept by layer, [B, 2H]."""
    size = lstm.hidden_size
    steps = inputs
    for layer in range(lstm.num_layers):
        sides = []
        for direction in range(2):
            from_input, from_hidden, bias, other_bias = lstm.all_weights[2 * layer + direction]
            mask = kept[layer][:, direction * size : (direction + 1) * size]
            hidden = cell = torch.zeros(inputs.shape[1], size)
            outputs = []
            for step in steps if direction == 0 else steps.flip(0):
                gates = step @ from_input.T + hidden @ from_hidden.T + bias + other_bias
                enter, forget, new, leave = gates.chunk(4, dim=1)
                cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
                hidden = mask * leave.sigmoid() * cell.tanh()
                outputs.append(hidden)
            side = torch.stack(outputs)
            sides.append(side if direction == 0 else side.flip(0))
        steps = torch.cat(sides, dim=2)
    return steps


@pytest.mark.parametrize("num_layers", [1, 2])
def test_recurrent_dropout_is_a_mask_on_every_h_of_a_sequence(num_layers: int) -> None:
    lstm = nn.LSTM(5, 6, num_layers, bidirectional=True)
    dropout = RecurrentDropout(6, 0.4)
    inputs = windows()
    masks = [(torch.rand(3, 12) < 0.4).float() for _ in range(num_layers)]
    steps = inputs
    for layer, dropped in enumerate(masks):
        steps = dropout.run_layer(lstm, layer, steps, dropped)
    expected = lstm_by_hand(lstm, inputs, [(1 - dropped) / 0.6 for dropped in masks])
    assert torch.allclose(steps, expected, atol=1e-6)
    assert torch.equal(steps == 0, masks[-1].bool().expand(LENGTH, -1, -1))
    # The gradients are those of the loop, too.
    weigh = torch.randn_like(steps)
    actual_gradients = torch.autograd.grad((steps * weigh).sum(), list(lstm.parameters()))
    expected_gradients = torch.autograd.grad((expected * weigh).sum(), list(lstm.parameters()))
    for actual, by_hand in zip(actual_gradients, expected_gradients, strict=True):
        assert torch.allclose(actual, by_hand, atol=1e-5)


def test_recurrent_dropout_acts_on_one_layer_and_draws_a_mask_a_sequence() -> None:
    encoder = Encoder(num_features=5, hidden_size=64, recurrent_dropout=0.25)
    inputs = windows(num_windows=40)
    dropped = encoder(inputs).steps == 0  # [T, B, 2H]
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))  # the same at every step
    first, second = dropped[0, 0], dropped[0, 1]
    assert not torch.equal(first, second)
    assert dropped[0].float().mean().item() == pytest.approx(0.25, abs=0.03)
    again = encoder(inputs).steps == 0
    assert not torch.equal(dropped, again)
    encoder.eval()
    expected, _ = encoder.lstm(inputs)
    assert torch.equal(encoder(inputs).steps, expected)


def test_the_weights_under_recurrent_dropout_are_one_buffer_in_cudnns_order() -> None:
    lstm = nn.LSTM(5, 6, 1, bidirectional=True)
    weights = RecurrentDropout(6, 0.4)._weights(lstm, 0)
    matrices_then_biases = [weights[index] for index in (0, 1, 4, 5, 2, 3, 6, 7)]
    place = 0
    for tensor in matrices_then_biases:
        assert tensor.is_contiguous()
        assert tensor.storage_offset() == place
        assert tensor.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
        place += tensor.numel()
    assert place * 4 == weights[0].untyped_storage().nbytes()


def test_nothing_puts_other_tensors_into_the_lstm() -> None:
    encoder = Encoder(num_features=5, hidden_size=4, num_layers=2)
    parameters = list(encoder.lstm.parameters())
    addresses = [parameter.data_ptr() for parameter in parameters]
    encoder.load_state_dict(copy.deepcopy(encoder.state_dict()))
    encoder.train()(windows()).steps.sum().backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter.sub_(0.1)
    assert all(a is b for a, b in zip(encoder.lstm._flat_weights, parameters, strict=True))
    assert [parameter.data_ptr() for parameter in parameters] == addresses


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("recurrent_dropout", [0.0, 0.3])
def test_on_a_gpu_the_weights_stay_one_flat_buffer(recurrent_dropout: float) -> None:
    encoder = Encoder(
        num_features=11, hidden_size=96, num_layers=2, recurrent_dropout=recurrent_dropout
    ).cuda()
    encoder.load_state_dict(copy.deepcopy(encoder.state_dict()))
    encoder = copy.deepcopy(encoder)
    storages = {weight.untyped_storage().data_ptr() for weight in encoder.lstm.parameters()}
    assert len(storages) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # cuDNN's words for weights that it must compact first
        encoder(torch.randn(105, 8, 11, device="cuda")).steps.sum().backward()


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_recurrent_dropout_gives_what_the_cpu_gives() -> None:
    lstm = nn.LSTM(11, 96, 1, bidirectional=True)
    dropout = RecurrentDropout(96, 0.3)
    inputs, dropped = torch.randn(105, 8, 11), (torch.rand(8, 192) < 0.3).float()
    expected = dropout.run_layer(lstm, 0, inputs, dropped)
    actual = dropout.cuda().run_layer(lstm.cuda(), 0, inputs.cuda(), dropped.cuda())
    assert torch.allclose(actual.cpu(), expected, atol=2e-3)
    assert torch.equal(actual.cpu() == 0, expected == 0)


@pytest.mark.parametrize("hidden_size", [129, 192])
def test_sizes_off_the_fast_path_warn(hidden_size: int) -> None:
    with pytest.warns(UserWarning, match=f"hidden_size is {hidden_size}.*choose 128 or less"):
        Encoder(num_features=2, hidden_size=hidden_size)


@pytest.mark.parametrize("hidden_size", [128, 193])
def test_sizes_on_it_or_far_beyond_do_not(hidden_size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Encoder(num_features=2, hidden_size=hidden_size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 0}, "num_features is 0"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"input_dropout": 1.0}, "input_dropout is 1.0"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout is -0.1"),
        ({"layer_dropout": 0.3}, "layer_dropout is 0.3 but there is one layer.*recurrent_dropout"),
        ({"attention_heads": 3}, "attention_heads is 3; it must divide 8"),
        ({"attention_heads": -1}, "attention_heads is -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Encoder(**{"num_features": 5, "hidden_size": 4, **settings})


def test_another_number_of_features_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\(12, 3, 5\).*time, window, 4"):
        Encoder(num_features=4, hidden_size=4)(windows())


def test_attention_does_not_look_at_bars_that_are_not_valid() -> None:
    attention = SelfAttention(8, 2)
    steps = torch.randn(LENGTH, 3, 8)
    valid = torch.ones(LENGTH, 3, dtype=torch.bool)
    valid[8:] = False
    changed = torch.where(valid.unsqueeze(2), steps, 7.0)
    assert torch.allclose(attention(steps, valid)[:8], attention(changed, valid)[:8], atol=1e-6)
    assert not torch.allclose(attention(steps, None)[:8], attention(changed, None)[:8], atol=1e-2)


def test_pools_see_valid_steps_only() -> None:
    steps = torch.randn(LENGTH, 3, 4)
    valid = torch.zeros(LENGTH, 3, dtype=torch.bool)
    valid[2:9, 0] = True
    valid[:5, 1] = True  # and of the last window none
    encoded = Encoded(torch.where(valid.unsqueeze(2), steps, 1e6), valid)
    weights = torch.rand(LENGTH, 3)
    for window, part in enumerate([slice(2, 9), slice(0, 5)]):
        seen = steps[part, window]
        share = weights[part, window] / weights[part, window].sum()
        assert torch.allclose(mean_pool(encoded)[window], seen.mean(0), atol=1e-6)
        assert torch.equal(max_pool(encoded)[window], seen.amax(0))
        assert torch.equal(last_step(encoded)[window], seen[-1])
        assert torch.allclose(weighted_pool(encoded, weights)[window], share @ seen, atol=1e-5)
    for pool in (mean_pool, max_pool):
        assert pool(encoded)[2].tolist() == [0.0] * 4


@pytest.mark.parametrize("pool", [mean_pool, max_pool, last_step])
def test_all_valid_is_the_same_as_none_said(pool: type[Summary]) -> None:
    steps = torch.randn(LENGTH, 3, 4)
    everything = torch.ones(LENGTH, 3, dtype=torch.bool)
    assert torch.allclose(pool(Encoded(steps)), pool(Encoded(steps, everything)), atol=1e-6)


def test_the_summary_projects_or_does_not() -> None:
    encoded = Encoded(torch.randn(LENGTH, 3, 4))
    plain = Summary(4, 0, "mean")
    assert torch.equal(plain(encoded), mean_pool(encoded))
    assert plain.output_size == 4
    projected = Summary(4, 6, "last")
    assert projected(encoded).shape == (3, 6)
    assert projected(encoded).min() >= 0
