"""Convolutions of every geometry, forward and transposed, against PyTorch's on masked tensors."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from slimse.kernels.launching import by_width
from slimse.kernels.slim_conv1d import slim_conv1d_backward, slim_conv1d_forward
from slimse.kernels.slim_conv_transpose1d import slim_conv_transpose1d_backward, slim_conv_transpose1d_forward

from slimse.width import apply_width

GEOMETRIES = [
    # batch, time, inputs, outputs, kernel, stride, padding, dilation
    (1, 1, 1, 1, 1, 1, 0, 1),
    (2, 9, 3, 5, 8, 4, 0, 1),
    (2, 11, 5, 18, 3, 1, 1, 1),
    (1, 13, 17, 4, 5, 2, 4, 1),
    (2, 17, 4, 6, 3, 2, 2, 3),
    (1, 7, 20, 3, 7, 3, 5, 2),
]
KINDS = ["uniform", "ragged"]


def cut(x, width):
    """``x`` with inactive channels zero."""
    return apply_width(x, torch.full(x.shape[:2], width) if isinstance(width, int) else width)


def convolve(x, weight, bias, width_in, width_out, transposed, relu=False, **geometry):
    """Reference: dense, masked before and after, and as wide as a number says."""
    convolution = F.conv_transpose1d if transposed else F.conv1d
    out = convolution(cut(x, width_in).mT, weight.movedim(1, 2), bias, **geometry).mT
    out = cut(torch.relu(out) if relu else out, width_out)
    return out[:, :, :width_out] if isinstance(width_out, int) else out


def make(case, kind, device, transposed, dtype=torch.float32):
    """Tensors, widths and geometry of a case."""
    batch, time, inputs, outputs, kernel, stride, padding, dilation = case
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    positions = (time + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if transposed:
        positions = (time - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
    weight_shape = (inputs, kernel, outputs) if transposed else (outputs, kernel, inputs)
    x, weight, bias = (
        0.4 * torch.randn(shape, device=device).to(dtype) for shape in ((batch, time, inputs), weight_shape, (outputs,))
    )
    if kind == "uniform":
        widths = (inputs + 1) // 2, (outputs + 1) // 2
    else:
        widths = tuple(
            torch.randint(0, channels + 1, (batch, count), device=device)
            for channels, count in ((inputs, time), (outputs, positions))
        )
    return x, weight, bias, widths, geometry


def reference(x, weight, bias, widths, geometry, transposed, relu, dtype=torch.float64):
    """Output, a gradient of it and the gradients of the reference."""
    leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in (x, weight, bias)]
    out = convolve(*leaves, *widths, transposed, relu, **geometry)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(x)
    return out.detach(), grad, torch.autograd.grad(out, leaves, grad.to(dtype))


def run(x, weight, bias, widths, geometry, transposed, relu, grad, after=None, **options):
    """Output and gradients of the kernels."""
    forward, backward = (
        (slim_conv_transpose1d_forward, slim_conv_transpose1d_backward)
        if transposed
        else (slim_conv1d_forward, slim_conv1d_backward)
    )
    out = forward(x, weight, bias, *widths, **geometry, relu=relu, **options)
    grads = backward(grad, x, weight, bias, *widths, **geometry, relu=relu, out=out if after is None else after)
    return out, grads


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_matches_the_twin_in_every_geometry(distance, device, case, kind, transposed):
    x, weight, bias, widths, geometry = make(case, kind, device, transposed)
    for relu in (False, True):
        expected, grad, grads = reference(x, weight, bias, widths, geometry, transposed, relu)
        ours, mine = run(x, weight, bias, widths, geometry, transposed, relu, grad, expected.to(x))
        assert distance(ours, expected) <= 1e-5
        for name, a, b in zip(("x", "weight", "bias"), mine, grads, strict=True):
            assert distance(a, b) <= 1e-5, name


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
def test_all_channels_of_a_kernel_of_whole_strides(distance, device, transposed):
    for case in ((2, 10, 3, 5, 8, 4, 0, 1), (2, 9, 3, 4, 4, 2, 1, 1)):
        x, weight, bias, _, geometry = make(case, "uniform", device, transposed)
        widths = (x.shape[2], bias.shape[0])
        expected, grad, grads = reference(x, weight, bias, widths, geometry, transposed, False)
        ours, mine = run(x, weight, bias, widths, geometry, transposed, False, grad)
        assert distance(ours, expected) <= 1e-5
        assert all(distance(a, b) <= 1e-5 for a, b in zip(mine, grads, strict=True))


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
def test_every_width_of_either_side(distance, device, transposed):
    x, weight, bias, _, geometry = make((1, 4, 5, 3, 3, 2, 1, 1), "uniform", device, transposed)
    for widths in product(range(6), range(4)):
        expected, grad, grads = reference(x, weight, bias, widths, geometry, transposed, False)
        ours, mine = run(x, weight, bias, widths, geometry, transposed, False, grad)
        assert distance(ours, expected) <= 1e-5, widths
        assert all(distance(a, b) <= 1e-5 for a, b in zip(mine, grads, strict=True)), widths


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
@pytest.mark.parametrize("kind", KINDS)
def test_inactive_channels_are_never_used(device, kind, transposed):
    x, weight, bias, widths, geometry = make((2, 9, 20, 18, 3, 2, 1, 2), kind, device, transposed)
    if kind == "ragged":
        widths = tuple(width.clamp(max=7) for width in widths)
    _, grad, _ = reference(x, weight, bias, widths, geometry, transposed, False)
    out, grads = run(x, weight, bias, widths, geometry, transposed, False, grad)
    k_in, k_out = (width if isinstance(width, int) else 7 for width in widths)
    x, weight, bias = x.clone(), weight.clone(), bias.clone()
    x[:, :, k_in:] = float("nan")
    bias[k_out:] = float("nan")
    rows, columns = (k_in, k_out) if transposed else (k_out, k_in)
    weight[rows:] = float("nan")
    weight[:, :, columns:] = float("nan")
    again, grads_again = run(x, weight, bias, widths, geometry, transposed, False, grad)
    assert torch.equal(again, out)
    assert all(torch.equal(a, b) for a, b in zip(grads_again, grads, strict=True))


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
def test_slices_and_narrow_inputs(distance, device, transposed):
    x, weight, bias, _, geometry = make((3, 12, 8, 5, 3, 1, 1, 1), "uniform", device, transposed)
    widths = (6, 5)
    for part in (x[1:, 2:9], x[:, ::2], x.mT.contiguous().mT, x[:1].expand(2, -1, -1), x[:, :, :6], x[..., :6].clone()):
        expected, grad, grads = reference(
            F.pad(part, (0, 8 - part.shape[2])), weight, bias, widths, geometry, transposed, False
        )
        ours, mine = run(part, weight, bias, widths, geometry, transposed, False, grad.mT.contiguous().mT)
        assert distance(ours, expected) <= 1e-5
        for a, b in zip(mine, (grads[0][:, :, : part.shape[2]], *grads[1:]), strict=True):
            assert distance(a, b) <= 1e-5


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transpose"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_torch(distance, device, dtype, kind, transposed):
    x, weight, bias, widths, geometry = make((2, 9, 12, 10, 5, 2, 2, 1), kind, device, transposed, dtype)
    exact, grad, exact_grads = reference(x, weight, bias, widths, geometry, transposed, False)
    torchs, _, torchs_grads = reference(x, weight, bias, widths, geometry, transposed, False, dtype)
    ours, grads = run(x, weight, bias, widths, geometry, transposed, False, grad)
    for mine, theirs, true in zip((ours, *grads), (torchs, *torchs_grads), (exact, *exact_grads), strict=True):
        assert mine.dtype == dtype
        assert distance(mine, true) <= 2 * distance(theirs, true) + torch.finfo(dtype).eps


def test_an_order_changes_nothing(distance, device):
    x, weight, bias, widths, geometry = make((2, 30, 5, 6, 3, 1, 1, 1), "ragged", device, False)
    out = slim_conv1d_forward(x, weight, bias, *widths, **geometry)
    # The interpreter's products may sum a row in another order at another place of a tile.
    ordered = slim_conv1d_forward(x, weight, bias, *widths, **geometry, order=by_width(widths[1]))
    assert distance(ordered, out) <= 1e-6


def test_output_padding_and_no_output(distance, device):
    x, weight, bias, _, _ = make((2, 5, 3, 4, 3, 2, 0, 1), "uniform", device, True)
    options = {"stride": 2, "padding": 1, "output_padding": 1}
    expected = convolve(x.double(), weight.double(), bias.double(), 2, 3, True, **options)
    assert distance(slim_conv_transpose1d_forward(x, weight, bias, 2, 3, **options), expected) <= 1e-5
    x, weight, bias, _, _ = make((2, 4, 3, 4, 5, 2, 0, 1), "uniform", device, False)
    short, out = x[:, : weight.shape[1] - 1], x.new_zeros(2, 0, 3)
    assert slim_conv1d_forward(short, weight, None, 2, 3, 2).shape == out.shape
    for grad, like in zip(slim_conv1d_backward(out, short, weight, None, 2, 3, 2), (short, weight, bias), strict=True):
        assert grad.shape == like.shape
        assert not grad.any()


def test_wrong_arguments_name_what_was_expected(device):
    x, weight, bias, widths, _ = make((2, 9, 4, 6, 3, 1, 0, 1), "uniform", device, False)
    calls = [
        ("width_in = 5", {"width_in": 5}),
        ("width_out is torch.float32", {"width_out": torch.ones(2, 7, device=device)}),
        ("stride = 0", {"stride": 0}),
        ("padding = -1", {"padding": -1}),
        ("dilation = 0", {"dilation": 0}),
        ("precision = 'half'", {"precision": "half"}),
        ("weight has shape", {"weight": weight[0]}),
        ("bias has shape", {"bias": bias[1:]}),
        ("at least width_in = 4", {"x": x[:, :, :3], "width_in": 4}),
    ]
    given = {"x": x, "weight": weight, "bias": bias, "width_in": widths[0], "width_out": widths[1]}
    for message, change in calls:
        with pytest.raises(ValueError, match=message):
            slim_conv1d_forward(**{**given, **change})
    with pytest.raises(ValueError, match="output_padding = 1"):
        slim_conv_transpose1d_forward(x, x.new_zeros(4, 3, 6), None, 4, 6, output_padding=1)
    with pytest.raises(ValueError, match="grad has shape"):
        slim_conv1d_backward(x, x, weight, None, 2, 3)
