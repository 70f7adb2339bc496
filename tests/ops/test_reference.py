"""The plain-torch references against `torch.nn` and against themselves at other widths."""

from itertools import product

import pytest
import torch
from torch import nn

from slimse.ops import diagonal_gru, slim_conv1d, slim_conv_transpose1d, slim_gru, slim_linear_glu, slim_lstm
from slimse.width import SoftWidth


def double(*shape):
    return torch.randn(shape, dtype=torch.float64)


def records(tensor, gates, groups=1):
    """`torch.nn`'s ``[gates * H, ...]`` as one record per unit."""
    return (
        tensor.detach().unflatten(0, (gates, -1)).transpose(0, 1).unsqueeze(0).expand(groups, *[-1] * (tensor.ndim + 1))
    )


def cut_rows(tensor, gates, k):
    return tensor.unflatten(0, (gates, -1))[:, :k].flatten(0, 1)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_gru_is_torchs_gru_of_the_active_units(k):
    theirs = nn.GRU(5, 6, batch_first=True).double()
    x, state = double(2, 7, 5), double(1, 2, 6)
    weights = [records(p, 3) for p in theirs.parameters()]
    out, new = slim_gru(x, *weights, k, state)
    small = nn.GRU(5, k, batch_first=True).double()
    with torch.no_grad():
        for p, full in zip(small.parameters(), theirs.parameters(), strict=True):
            cut = cut_rows(full, 3, k)
            p.copy_(cut[:, :k] if full.shape == (18, 6) else cut)
    expected, last = small(x, state[:, :, :k].contiguous())
    torch.testing.assert_close(out[..., :k], expected)
    assert not out[..., k:].any()
    torch.testing.assert_close(new[:, :, :k], last)
    assert torch.equal(new[:, :, k:], state[:, :, k:])


def test_groups_of_a_gru_are_independent():
    x, state = double(2, 5, 12), double(3, 2, 6)
    weights = [double(3, 6, 3, *last) for last in ((4,), (6,), (), ())]
    out, new = slim_gru(x, *weights, 4, state)
    for group in range(3):
        one = slice(group, group + 1)
        alone, last = slim_gru(x[..., 4 * group : 4 * group + 4], *(w[one] for w in weights), 4, state[one])
        torch.testing.assert_close(out[..., 6 * group : 6 * group + 6], alone)
        torch.testing.assert_close(new[one], last)


def test_diagonal_gru_is_a_gru_with_diagonal_weights():
    gates_x, weight_hh, bias_hh, state = double(2, 9, 3, 4), double(3, 4), double(3, 4), double(2, 4)
    out, new = diagonal_gru(gates_x, weight_hh, bias_hh, state)
    theirs = nn.GRU(12, 4, batch_first=True).double()
    with torch.no_grad():
        for p, value in zip(
            theirs.parameters(),
            (torch.eye(12), torch.cat([w.diag() for w in weight_hh]), torch.zeros(12), bias_hh.flatten()),
            strict=True,
        ):
            p.copy_(value)
        expected, last = theirs(gates_x.flatten(2), state.unsqueeze(0))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(new, last[0])


def run_gru(x, weights, width, state):
    out, new = slim_gru(x, *weights, width, state.unsqueeze(0))
    return out, (new[0],)


def run_lstm(x, weights, width, state):
    return slim_lstm(x, *(w[0] for w in weights[:2]), (weights[2] + weights[3])[0], width, (state, 2 * state))


@pytest.mark.parametrize(("run", "gates"), [(run_gru, 3), (run_lstm, 4)], ids=["gru", "lstm"])
def test_recurrent_widths_agree(run, gates):
    """Ragged against one call per step, whole against two pieces, soft against ragged."""
    x, state = double(2, 6, 5), double(2, 4)
    weights = [double(1, 4, gates, *last) for last in ((5,), (4,), (), ())]
    width = torch.tensor([[1, 4, 2, 2, 3, 0], [4, 1, 1, 3, 0, 2]])
    out, new = run(x, weights, width, state)
    mask = (torch.arange(4) < width.unsqueeze(-1)).double()
    soft, soft_new = run(x, weights, SoftWidth(mask), state)
    torch.testing.assert_close(soft, out)
    torch.testing.assert_close(soft_new, new)
    for item in range(2):
        now = (state[item : item + 1],) if run is run_gru else (state[item : item + 1], 2 * state[item : item + 1])
        for step, k in enumerate(width[item].tolist()):
            piece = x[item : item + 1, step : step + 1]
            if run is run_gru:
                y, now = run_gru(piece, weights, k, now[0])
            else:
                y, now = slim_lstm(piece, weights[0][0], weights[1][0], (weights[2] + weights[3])[0], k, now)
            torch.testing.assert_close(out[item, step, :k], y[0, 0, :k])
            assert not out[item, step, k:].any()
        for whole, last in zip(new, now, strict=True):
            torch.testing.assert_close(whole[item : item + 1], last)


CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 8, "stride": 4},
    {"kernel_size": 3, "stride": 2, "padding": 2},
    {"kernel_size": 3, "padding": 1, "dilation": 2},
    {"kernel_size": 5, "stride": 3, "dilation": 3, "padding": 4},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolution_is_torchs_convolution_of_the_active_channels(options):
    x, conv = double(2, 23, 6), nn.Conv1d(6, 5, **options).double()
    rest = {name: value for name, value in options.items() if name != "kernel_size"}
    for k_in, k_out, relu in product((1, 6), (2, 5), (False, True)):
        expected = nn.functional.conv1d(x[..., :k_in].mT, conv.weight[:k_out, :k_in], conv.bias[:k_out], **rest).mT
        expected = expected.relu() if relu else expected
        out = slim_conv1d(x, conv.weight.mT, conv.bias, k_in, k_out, relu=relu, **rest)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("options", [*CONVOLUTIONS[:4], {"kernel_size": 3, "stride": 2, "output_padding": 1}])
def test_transposed_convolution_is_torchs_of_the_active_channels(options):
    x, conv = double(2, 9, 6), nn.ConvTranspose1d(6, 5, **options).double()
    rest = {name: value for name, value in options.items() if name != "kernel_size"}
    for k_in, k_out, relu in product((1, 6), (2, 5), (False, True)):
        expected = nn.functional.conv_transpose1d(
            x[..., :k_in].mT, conv.weight[:k_in, :k_out], conv.bias[:k_out], **rest
        ).mT
        expected = expected.relu() if relu else expected
        out = slim_conv_transpose1d(x, conv.weight.mT, conv.bias, k_in, k_out, relu=relu, **rest)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("op", [slim_conv1d, slim_conv_transpose1d])
def test_convolutions_with_a_width_per_position(op):
    x, weight, bias = double(2, 12, 6), double(6, 3, 6), double(6)
    width_in = torch.randint(0, 5, (2, 12))
    full = op(x, weight, bias, 6, 6, stride=2)
    width_out = torch.randint(0, 6, full.shape[:2])
    out = op(x, weight, bias, width_in, width_out, stride=2)
    silent = x.where(torch.arange(6) < width_in.unsqueeze(-1), 0)
    expected = op(silent, weight, bias, 6, 6, stride=2).where(torch.arange(6) < width_out.unsqueeze(-1), 0)
    torch.testing.assert_close(out, expected)
    soft = [SoftWidth((torch.arange(6) < width.unsqueeze(-1)).double()) for width in (width_in, width_out)]
    torch.testing.assert_close(op(x, weight, bias, *soft, stride=2), expected)


def test_pointwise_glu_cut_on_either_side():
    x, skip = double(2, 7, 6), double(2, 7, 6)
    weight, bias = double(6, 8), double(8)
    width = torch.randint(0, 7, (2, 7))
    silent = (x + skip).where(torch.arange(6) < width.unsqueeze(-1), 0)
    expected = nn.functional.glu(silent @ weight + bias, dim=-1)
    torch.testing.assert_close(slim_linear_glu(x, weight, bias, width, "input", skip), expected)
    weight, bias = double(4, 2, 6), double(4, 2)
    expected = (x @ weight[:, 0].T + bias[:, 0]) * torch.sigmoid(x @ weight[:, 1].T + bias[:, 1])
    torch.testing.assert_close(slim_linear_glu(x, weight, bias, 3, "output"), expected[..., :3])
    width = torch.randint(0, 4, (2, 7))
    expected = expected.where(torch.arange(4) < width.unsqueeze(-1), 0)
    torch.testing.assert_close(slim_linear_glu(x, weight, bias, width, "output"), expected)
    with pytest.raises(ValueError, match="cut = 'both'"):
        slim_linear_glu(x, weight, bias, 3, "both")
