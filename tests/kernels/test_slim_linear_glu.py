"""The pointwise layer with GLU, cut on either side, against PyTorch's on masked tensors."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from slimse.kernels.launching import by_width
from slimse.kernels.slim_linear_glu import slim_linear_glu_backward, slim_linear_glu_forward

CUTS = ["input", "output"]


def make(batch, time, inputs, outputs, cut, device, dtype=torch.float32):
    """Input, weight, bias and skip."""
    shapes = ((inputs, 2 * outputs), (2 * outputs,)) if cut == "input" else ((outputs, 2, inputs), (outputs, 2))
    every = ((batch, time, inputs), *shapes, (batch, time, inputs))
    return [0.4 * torch.randn(shape, device=device).to(dtype) for shape in every]


def layer(x, weight, bias, skip, width, cut):
    """Dense, masked before or after."""
    x = x if skip is None else x + skip
    channels = weight.shape[0]
    k = torch.full(x.shape[:2], width, device=x.device) if isinstance(width, int) else width
    active = torch.arange(channels, device=x.device) < k.unsqueeze(-1)
    if cut == "input":
        return F.glu(torch.where(active, F.pad(x, (0, channels - x.shape[2])), 0) @ weight + bias, dim=-1)
    both = torch.einsum("btc,ugc->btug", x, weight) + bias
    out = torch.where(active, both[..., 0] * torch.sigmoid(both[..., 1]), 0)
    return out[:, :, :width] if isinstance(width, int) else out


def reference(tensors, width, cut, dtype=torch.float64):
    """Output, a gradient of it, and gradients."""
    leaves = [None if t is None else t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]
    out = layer(*leaves, width, cut)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(tensors[0])
    return out.detach(), grad, torch.autograd.grad(out, leaves[:3], grad.to(dtype))


def run(tensors, width, cut, grad, **options):
    """Output and gradients of the kernels."""
    x, weight, bias, skip = tensors
    out = slim_linear_glu_forward(x, weight, bias, width, cut, skip, **options)
    return out, slim_linear_glu_backward(grad, x, weight, bias, width, cut, skip, **options)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("batch", "time", "inputs", "outputs"), [(1, 1, 1, 1), (2, 9, 5, 7), (3, 7, 20, 17)])
def test_matches_the_twin(distance, device, batch, time, inputs, outputs, cut):
    tensors = make(batch, time, inputs, outputs, cut, device)
    sliced = inputs if cut == "input" else outputs
    ragged = torch.randint(0, sliced + 1, (batch, time), device=device)
    for width, skip in ((sliced, True), ((sliced + 1) // 2, False), (ragged, True), (0, False)):
        given = [*tensors[:3], tensors[3] if skip else None]
        expected, grad, grads = reference(given, width, cut)
        order = by_width(ragged) if width is ragged else None
        out, mine = run(given, width, cut, grad, order=order)
        assert distance(out, expected) <= 1e-5
        for name, a, b in zip(("x", "weight", "bias"), mine, grads, strict=True):
            assert distance(a, b) <= 1e-5, name


@pytest.mark.parametrize("cut", CUTS)
def test_every_width(distance, device, cut):
    tensors = make(1, 3, 5, 5, cut, device)
    for width in range(6):
        expected, grad, grads = reference(tensors, width, cut)
        out, mine = run(tensors, width, cut, grad)
        assert distance(out, expected) <= 1e-5, width
        assert all(distance(a, b) <= 1e-5 for a, b in zip(mine, grads, strict=True)), width


@pytest.mark.parametrize("cut", CUTS)
def test_inactive_channels_are_never_used(device, cut):
    tensors = make(2, 9, 20, 18, cut, device)
    for width in (7, torch.randint(0, 8, (2, 9), device=device)):
        _, grad, _ = reference(tensors, width, cut)
        out, grads = run(tensors, width, cut, grad)
        poisoned = [t.clone() for t in tensors]
        poisoned[1][7:] = float("nan")
        if cut == "input":
            poisoned[0][:, :, 7:] = float("nan")
        else:
            poisoned[2][7:] = float("nan")
        again, grads_again = run(poisoned, width, cut, grad)
        assert torch.equal(again, out)
        assert all(torch.equal(a, b) for a, b in zip(grads_again, grads, strict=True))


@pytest.mark.parametrize("cut", CUTS)
def test_slices_and_narrow_inputs(distance, device, cut):
    x, weight, bias, skip = make(3, 12, 8, 5, cut, device)
    parts = [x[1:, 2:9], x[:, ::2], x.mT.contiguous().mT, x[:1].expand(2, -1, -1), x[:, :0]]
    if cut == "input":
        parts.append(x[:, :, :6])
    for part in parts:
        added = skip.mT[:, : part.shape[2], : part.shape[1]].mT[: part.shape[0]]
        expected, grad, grads = reference([part, weight, bias, added], 4, cut)
        out, mine = run([part, weight, bias, added], 4, cut, grad.mT.contiguous().mT)
        assert distance(out, expected) <= 1e-5
        assert all(distance(a, b) <= 1e-5 for a, b in zip(mine, grads, strict=True))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_torch(distance, device, dtype, ragged, cut):
    tensors = make(2, 15, 20, 18, cut, device, dtype)
    width = torch.randint(0, 19, (2, 15), device=device) if ragged else 11
    exact, grad, exact_grads = reference(tensors, width, cut)
    torchs, _, torchs_grads = reference(tensors, width, cut, dtype)
    out, grads = run(tensors, width, cut, grad)
    for mine, theirs, true in zip((out, *grads), (torchs, *torchs_grads), (exact, *exact_grads), strict=True):
        assert mine.dtype == dtype
        assert distance(mine, true) <= 2 * distance(theirs, true) + torch.finfo(dtype).eps


def test_wrong_arguments_name_what_was_expected(device):
    x, weight, bias, _ = make(2, 9, 4, 6, "output", device)
    for message, call in (
        ("cut = 'both'", (x, weight, bias, 3, "both")),
        ("width = 7", (x, weight, bias, 7, "output")),
        ("weight has shape", (x, weight[:, :1], bias, 3, "output")),
        ("x has shape", (x[:, :, 1:], weight, bias, 3, "output")),
        ("skip has shape", (x, weight, bias, 3, "output", x[:, 1:])),
        ("at least width = 4", (x[:, :, :2], x.new_zeros(4, 12), x.new_zeros(12), 4, "input")),
    ):
        with pytest.raises(ValueError, match=message):
            slim_linear_glu_forward(*call)
