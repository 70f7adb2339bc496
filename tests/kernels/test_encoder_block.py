"""The encoder block's kernels against the plain-torch reference."""

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from slimse.kernels.encoder_block import (
    encoder_block_backward,
    encoder_block_forward,
    select_config,
)
from slimse.kernels.launching import BlockConfig, by_width

from slimse.ops.blocks import encoder_block

FUSED = BlockConfig(True, 16, 16, 16, 16, 4, 2)
SPLIT = BlockConfig(False, 16, 16, 16, 16, 4, 2)
NAMES = ("x", "conv_weight", "conv_bias", "glu_weight", "glu_bias")


def make(batch, time, inputs, channels, device, kernel=8, stride=4, dtype=torch.float32):
    """Input, weights and a gradient of the output."""
    shapes = ((channels, kernel * inputs), (channels,), (channels, 2 * channels), (2 * channels,))
    x, *weights = (0.4 * torch.randn(shape, device=device).to(dtype) for shape in ((batch, time, inputs), *shapes))
    positions = max((time - kernel) // stride + 1, 0)
    return x, weights, torch.randn(batch, positions, channels, device=device).to(dtype)


def reference(x, weights, width, stride, grad, dtype=torch.float64):
    """Output and gradients of the reference in ``dtype``."""
    leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in (x, *weights)]
    y = encoder_block(*leaves, width, stride)
    return y.detach(), torch.autograd.grad(y, leaves, grad.to(dtype), materialize_grads=True)


def check(distance, x, weights, width, stride, grad, tolerance=1e-5, **options):
    """Compare the output with the reference's, and the gradients, which no `config` changes, for one of them."""
    y, grads = reference(x, weights, width, stride, grad)
    assert distance(encoder_block_forward(x, *weights, width, stride, **options), y) <= tolerance
    if options.pop("config", None) is SPLIT:
        return
    for name, ours, theirs in zip(
        NAMES, encoder_block_backward(grad, x, *weights, width, stride, **options), grads, strict=True
    ):
        assert distance(ours, theirs) <= tolerance, name


@pytest.mark.parametrize("config", [None, FUSED, SPLIT], ids=["selected", "fused", "split"])
@pytest.mark.parametrize("width", [0, 1, 3, 16, 17, 39, 40])
def test_matches_the_twin_at_every_kind_of_width(distance, device, width, config):
    x, weights, grad = make(2, 61, 3, 40, device)
    check(distance, x, weights, width, 4, grad, config=config)


@pytest.mark.parametrize(
    ("batch", "time", "inputs", "channels", "kernel", "stride"),
    [
        (1, 8, 1, 8, 8, 4),
        (1, 9, 1, 5, 8, 4),
        (2, 12, 4, 8, 8, 4),
        (3, 53, 1, 7, 8, 4),
        (1, 97, 16, 16, 8, 4),
        (2, 31, 2, 12, 6, 2),
        (1, 17, 8, 8, 4, 4),
        (1, 150, 2, 6, 8, 8),
    ],
)
def test_matches_the_twin_at_odd_sizes(distance, device, batch, time, inputs, channels, kernel, stride):
    x, weights, grad = make(batch, time, inputs, channels, device, kernel, stride)
    check(distance, x, weights, (channels + 1) // 2, stride, grad)
    width = torch.randint(0, channels + 1, grad.shape[:2], device=device)
    check(distance, x, weights, width, stride, grad)


@pytest.mark.parametrize("time", [0, 1, 7])
def test_shorter_than_a_window(device, time):
    x, weights, grad = make(2, time, 3, 8, device)
    assert encoder_block_forward(x, *weights, 4, 4).shape == (2, 0, 8)
    for ours, like in zip(encoder_block_backward(grad, x, *weights, 4, 4), (x, *weights), strict=True):
        assert ours.shape == like.shape
        assert not ours.any()


@pytest.mark.parametrize("config", [FUSED, SPLIT], ids=["fused", "split"])
@pytest.mark.parametrize("ordered", [False, True])
def test_every_row_at_its_own_width(distance, device, ordered, config):
    x, weights, grad = make(2, 130, 4, 24, device)
    for widths in ([3, 6, 12, 24], [0, 1, 17], [5]):
        width = torch.tensor(widths, device=device)[torch.randint(len(widths), grad.shape[:2], device=device)]
        order = by_width(width) if ordered else None
        check(distance, x, weights, width, 4, grad, config=config, order=order)


def test_widths_above_the_channels_count_as_all(distance, device):
    x, weights, grad = make(1, 40, 2, 8, device)
    width = torch.full(grad.shape[:2], 99, device=device)
    assert distance(encoder_block_forward(x, *weights, width, 4), encoder_block(x, *weights, 8, 4)) <= 1e-5


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("config", [FUSED, SPLIT], ids=["fused", "split"])
def test_inactive_channels_are_never_read(device, ragged, config):
    x, weights, grad = make(2, 45, 3, 24, device)
    width = torch.randint(0, 11, grad.shape[:2], device=device) if ragged else 10
    active = int(width.max()) if ragged else width
    y = encoder_block_forward(x, *weights, width, 4, config=config)
    grads = encoder_block_backward(grad, x, *weights, width, 4)
    for weight in weights[:3]:
        weight[active:] = float("nan")
    assert torch.equal(encoder_block_forward(x, *weights, width, 4, config=config), y)
    for ours, clean in zip(encoder_block_backward(grad, x, *weights, width, 4), grads, strict=True):
        assert torch.equal(ours, clean)
    for inactive in grads[1:4]:
        assert not inactive[active:].any()


def test_slices_of_larger_buffers(distance, device):
    buffer, weights, grad = make(4, 64, 6, 12, device)
    _, weights, _ = make(1, 8, 6, 12, device)
    slices = (buffer[:, 7:50], buffer[1::2], buffer[2:3, 20:], buffer[:1].expand(3, -1, -1))
    for x in (*slices, buffer[:, ::2], buffer.mT.contiguous().mT):
        grad = torch.randn(x.shape[0], (x.shape[1] - 8) // 4 + 1, 12, device=device)
        check(distance, x, weights, 7, 4, grad)
    narrow = buffer[:, :, 2:5]
    _, weights, grad = make(4, 64, 3, 12, device)
    check(distance, narrow, weights, 7, 4, grad)
    check(distance, narrow, weights, 7, 4, grad.mT.contiguous().mT)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_torch(distance, device, dtype, ragged):
    x, weights, grad = make(2, 47, 4, 20, device, dtype=dtype)
    width = torch.randint(0, 21, grad.shape[:2], device=device) if ragged else 13
    exact, exact_grads = reference(x, weights, width, 4, grad)
    torchs, torchs_grads = reference(x, weights, width, 4, grad, dtype)
    for config in (FUSED, SPLIT):
        ours = encoder_block_forward(x, *weights, width, 4, config=config)
        assert ours.dtype == dtype
        assert distance(ours, exact) <= 2 * distance(torchs, exact)
    for name, ours, theirs, true in zip(
        NAMES, encoder_block_backward(grad, x, *weights, width, 4), torchs_grads, exact_grads, strict=True
    ):
        assert ours.dtype == dtype
        # Summing in half precision after rounding once loses less than torch's chain of roundings does.
        assert distance(ours, true) <= 2 * distance(theirs, true) + torch.finfo(dtype).eps, name


def test_a_tile_does_what_its_widest_row_needs(products, device):
    x, weights, grad = make(2, 200, 2, 48, device)
    width = torch.tensor([6, 12, 24, 48], device=device)[torch.randint(4, grad.shape[:2], device=device)]
    totals = []
    for order in (None, by_width(width)):
        products.clear()
        encoder_block_forward(x, *weights, width, 4, config=FUSED, order=order)
        rows = width.flatten() if order is None else width.flatten()[order.long()]
        for index, tile in enumerate(rows.split(FUSED.block_t)):
            for column in range(3):
                # A product for the hidden channels, one for the values and one for the gates.
                assert products[index * 3 + column, 0, 0] == 3 * -(-int(tile.max()) // FUSED.block_h)
        totals.append(products.total())
    assert totals[1] < 0.8 * totals[0]


def test_backward_is_deterministic_and_may_skip_the_input(device):
    x, weights, grad = make(2, 90, 3, 16, device)
    first, second = (encoder_block_backward(grad, x, *weights, 9, 4, input_grad=flag) for flag in (True, False))
    assert second[0] is None
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))


def test_wrong_arguments_name_what_was_expected(device):
    x, weights, grad = make(2, 40, 3, 8, device)
    rows = grad.shape[0] * grad.shape[1]
    calls = [
        ("width = 9", {"width": 9}),
        ("an integer tensor", {"width": torch.ones(2, 3, device=device)}),
        ("expected a multiple of stride", {"stride": 3}),
        ("precision = 'half'", {"precision": "half"}),
        ("expected a permutation", {"order": torch.arange(rows, device=device)}),
    ]
    for message, change in calls:
        with pytest.raises(ValueError, match=message):
            encoder_block_forward(x, *weights, **{"width": 4, "stride": 4, **change})
    with pytest.raises(ValueError, match="glu_weight has shape"):
        encoder_block_forward(x, weights[0], weights[1], weights[2][:, 1:], weights[3], 4, 4)
    with pytest.raises(ValueError, match="conv_weight is not contiguous"):
        encoder_block_forward(x, weights[0].t().contiguous().t(), *weights[1:], 4, 4)
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        encoder_block_forward(x.double(), *weights, 4, 4)


def test_selected_blocks_are_powers_of_two_that_a_product_takes():
    for rows, channels, dtype in product(
        (1, 64, 4_000_000), (1, 8, 32, 48, 64, 128, 192, 512), (torch.float16, torch.bfloat16, torch.float32)
    ):
        config = select_config((rows, 4 * channels, channels), dtype)
        for size in (config.block_t, config.block_c, config.block_h, config.block_k):
            assert size >= 16
            assert size & (size - 1) == 0
        assert config.fused == (config.block_c >= channels)
