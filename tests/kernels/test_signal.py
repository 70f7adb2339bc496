"""Resampling and running level on kernels, in one piece and in several, against their references in float64."""

import pytest
import torch

pytest.importorskip("triton")

from slimse.nn import LevelState, RunningLevel, SincDownsample, SincUpsample

PIECES = (700, 1, 130, 299, 64)


def both(make, device):
    """A module on kernels, and its reference in float64."""
    return make(backend="triton").to(device), make(backend="reference").double().to(device)


@torch.no_grad()
@pytest.mark.parametrize("make", [SincUpsample, SincDownsample])
@pytest.mark.parametrize("samples", [1, 57, 2050])
def test_whole_signals_are_resampled(make, samples, device, distance):
    ours, exact = both(make, device)
    x = torch.randn(3, samples, device=device)
    for buffer in (x[:, :0], ours.initial_buffer(x)):
        out = ours(x, buffer, final=True)[0]
        assert distance(out, exact(x.double(), exact.initial_buffer(x.double()), final=True)[0]) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("make", [SincUpsample, SincDownsample])
def test_pieces_are_resampled_as_the_whole(make, device, distance):
    ours, exact = both(make, device)
    x = torch.randn(2, sum(PIECES), device=device)
    buffer, parts = ours.initial_buffer(x), []
    for number, piece in enumerate(x.split(PIECES, 1)):
        out, buffer = ours(piece, buffer, final=number == len(PIECES) - 1)
        parts.append(out)
    whole = exact(x.double(), exact.initial_buffer(x.double()), final=True)[0]
    assert distance(torch.cat(parts, 1), whole) < 1e-6


@torch.no_grad()
def test_level_in_one_piece_and_in_several(device, distance):
    ours, exact = both(lambda **choice: RunningLevel(16_000, **choice), device)
    # A constant offset, a loud start, silence and a soft end, over several blocks of a program.
    x = (
        torch.randn(2, 3000, device=device) * torch.tensor([1.0, 0.0, 1e-4], device=device).repeat_interleave(1000)
        + 0.3
    )
    expected, (sums, seen, gain) = exact(x.double(), exact.initial_state(x.double()))
    none = x[:, :0]
    for sizes in ((3000,), (1, 1023, 1, 1975)):
        state, parts = LevelState(none, none, none), []
        for piece in x.split(sizes, 1):
            out, state = ours(piece, state)
            parts.append(out)
        for mine, true in ((torch.cat(parts, 1), expected), (state.gain, gain), (state.sums, sums), (state.seen, seen)):
            assert distance(mine, true) < 1e-4


def test_gradients_come_from_the_twins(device):
    ours, exact = both(SincUpsample, device)
    x, grads = torch.randn(1, 200, device=device), []
    for module in (ours, exact):
        leaf = x.to(module.filters.dtype, copy=True).requires_grad_()
        module(leaf, leaf[:, :0], final=True)[0].square().sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(grads[0].double(), grads[1], rtol=1e-4, atol=1e-4)


def test_wrong_arguments_name_what_was_expected(device):
    from slimse.kernels.running_level import running_level_forward
    from slimse.kernels.sinc_resample import sinc_resample_forward

    x, filters = torch.randn(2, 9, device=device), torch.randn(175, 64, device=device)
    with pytest.raises(ValueError, match=r"history \(1, 3\).*expected \[batch, samples\]"):
        sinc_resample_forward(x, x[:1, :3], filters, True, True)
    with pytest.raises(ValueError, match=r"sums torch.float32 \(2, 2\)"):
        running_level_forward(x, x[:, :2], x[:, :2], (0.1, 0.1, 0.1), 0.1, 0.1)
