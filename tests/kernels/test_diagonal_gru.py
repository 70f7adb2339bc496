"""The diagonal GRU's kernels against a loop in plain torch."""

import pytest
import torch

pytest.importorskip("triton")

from slimse.kernels.diagonal_gru import diagonal_gru_backward, diagonal_gru_forward

NAMES = ("gates_x", "weight_hh", "bias_hh", "state")


def make(batch, time, units, device, dtype=torch.float32):
    """Arguments, and gradients of both outputs."""
    shapes = ((batch, time, 3, units), (3, units), (3, units), (batch, units), (batch, time, units), (batch, units))
    *args, grad, grad_last = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    return args, grad, grad_last


def recurrence(gates_x, weight, bias, state):
    """A loop over the steps."""
    out = [state]
    for now in gates_x.unbind(1):
        h = out[-1]
        past = weight * h.unsqueeze(1) + bias
        reset, update = torch.sigmoid(now[:, :2] + past[:, :2]).unbind(1)
        new = torch.tanh(now[:, 2] + reset * past[:, 2])
        out.append(new + update * (h - new))
    return torch.stack(out[1:], 1) if len(out) > 1 else gates_x[:, :, 0], out[-1]


def reference(args, grad, grad_last, dtype=torch.float64):
    """Outputs and gradients in ``dtype``."""
    leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in args]
    outputs = recurrence(*leaves)
    grads = torch.autograd.grad(outputs, leaves, (grad.to(dtype), grad_last.to(dtype)), allow_unused=True)
    grads = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]
    return [t.detach() for t in outputs], grads


@pytest.mark.parametrize(("batch", "time", "units"), [(1, 1, 1), (2, 7, 5), (3, 4, 32), (1, 13, 97), (2, 0, 3)])
def test_matches_the_twin(distance, device, batch, time, units):
    args, grad, grad_last = make(batch, time, units, device)
    outputs, grads = reference(args, grad, grad_last)
    ours = diagonal_gru_forward(*args)
    assert all(distance(a, b) <= 1e-6 for a, b in zip(ours, outputs, strict=True))
    for name, mine, theirs in zip(NAMES, diagonal_gru_backward(grad, grad_last, ours[0], *args), grads, strict=True):
        assert distance(mine, theirs) <= 1e-5, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_torch(distance, device, dtype):
    args, grad, grad_last = make(2, 9, 20, device, dtype)
    exact, exact_grads = reference(args, grad, grad_last)
    torchs, torchs_grads = reference(args, grad, grad_last, dtype)
    outputs = diagonal_gru_forward(*args)
    grads = diagonal_gru_backward(grad, grad_last, outputs[0], *args)
    for mine, theirs, true in zip((*outputs, *grads), (*torchs, *torchs_grads), (*exact, *exact_grads), strict=True):
        assert mine.dtype == dtype
        assert distance(mine, true) <= 2 * distance(theirs, true) + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_give_what_the_whole_gives(device, dtype):
    (gates_x, weight, bias, state), _, _ = make(2, 9, 6, device, dtype)
    state = state.float()
    out, last = diagonal_gru_forward(gates_x, weight, bias, state)
    pieces = []
    for piece in gates_x.split([1, 5, 3], 1):
        part, state = diagonal_gru_forward(piece, weight, bias, state)
        pieces.append(part)
    assert torch.equal(torch.cat(pieces, 1), out)
    assert torch.equal(state, last)


def test_slices_of_larger_buffers(distance, device):
    (gates_x, weight, bias, state), grad, grad_last = make(4, 8, 5, device)
    for batch, time in ((slice(1, 3), slice(2, 7)), (slice(None, None, 2), slice(None, None, 3))):
        args = [gates_x.mT.contiguous().mT[batch, time], weight, bias, state.T.contiguous().T[batch]]
        pull = grad.mT.contiguous().mT[batch, time], grad_last.T.contiguous().T[batch]
        outputs, grads = reference(args, *pull)
        ours = diagonal_gru_forward(*args)
        mine = diagonal_gru_backward(*pull, ours[0].mT.contiguous().mT, *args)
        assert all(distance(a, b) <= 1e-5 for a, b in zip((*ours, *mine), (*outputs, *grads), strict=True))


def test_large_gates_do_not_overflow(device):
    (gates_x, weight, bias, state), _, _ = make(1, 3, 4, device)
    out, _ = diagonal_gru_forward(gates_x * 1000, weight, bias, state)
    assert torch.isfinite(out).all()


def test_wrong_arguments_name_what_was_expected(device):
    args, grad, grad_last = make(2, 3, 4, device)
    for message, index, wrong in (
        ("gates_x and weight_hh have shapes", 0, args[0][0]),
        ("weight_hh has shape", 1, args[1][:2]),
        ("bias_hh is torch.float16", 2, args[2].half()),
        ("state is torch.float32", 3, args[3][1:]),
    ):
        changed = [*args[:index], wrong, *args[index + 1 :]]
        with pytest.raises(ValueError, match=message):
            diagonal_gru_forward(*changed)
    with pytest.raises(ValueError, match="grad_last is"):
        diagonal_gru_backward(grad, grad_last[1:], grad, *args)
