"""The decoder block's kernels against the plain-torch reference."""

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from slimse.kernels.decoder_block import (
    decoder_block_backward,
    decoder_block_forward,
    decoder_order,
    select_config,
)
from slimse.kernels.launching import BlockConfig

from slimse.ops.blocks import decoder_block

FUSED = BlockConfig(True, 16, 16, 16, 16, 4, 2)
KEPT = BlockConfig(True, 16, 16, 16, 64, 4, 2)
SPLIT = BlockConfig(False, 16, 16, 16, 16, 4, 2)
NAMES = ("x", "glu_weight", "glu_bias", "conv_weight", "conv_bias")


def make(batch, time, channels, outputs, device, kernel=8, stride=4, dtype=torch.float32):
    """Input, the three weights, the bias after the overlap, and a gradient of the output."""
    shapes = ((channels, 2, channels), (channels, 2), (channels, kernel * outputs), (outputs,))
    x, *weights = (0.4 * torch.randn(shape, device=device).to(dtype) for shape in ((batch, time, channels), *shapes))
    grad = torch.randn(batch, (time - 1) * stride + kernel, outputs, device=device).to(dtype)
    return x, weights[:3], weights[3], grad


def reference(x, weights, bias, width, stride, grad, *, skip=None, relu=False, dtype=torch.float64):
    """Output and gradients of the reference in ``dtype``."""
    x = x if skip is None else x + skip
    leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in (x, *weights, bias)]
    y = decoder_block(*leaves[:4], width, stride, grad.shape[2]) + leaves[4]
    y = torch.relu(y) if relu else y
    return y.detach(), torch.autograd.grad(y, leaves, grad.to(dtype))


def check(distance, x, weights, bias, width, stride, grad, *, skip=None, relu=False, order=None, config=None):
    """Compare the output with the reference's, and the gradients, which no `config` changes, for one of them."""
    channels = grad.shape[2]
    y, grads = reference(x, weights, bias, width, stride, grad, skip=skip, relu=relu)
    options = {"skip": skip, "conv_bias": bias, "relu": relu, "order": order, "config": config}
    out = decoder_block_forward(x, *weights, width, stride, channels, **options)
    assert distance(out, y) <= 1e-5
    if config in (KEPT, SPLIT):
        return
    # ReLU's gradient jumps at zero: ask the reference which side every output is on.
    after = y.to(out.dtype) if relu else None
    ours = decoder_block_backward(grad, x, *weights, width, stride, channels, skip=skip, out=after, order=order)
    for name, mine, theirs in zip(NAMES, ours, grads, strict=True):
        assert distance(mine, theirs) <= 1e-5, name


@pytest.mark.parametrize("config", [None, FUSED, KEPT, SPLIT], ids=["selected", "fused", "kept", "split"])
@pytest.mark.parametrize("width", [0, 1, 3, 16, 17, 23, 24])
def test_matches_the_twin_at_every_kind_of_width(distance, device, width, config):
    x, weights, bias, grad = make(2, 19, 24, 5, device)
    check(distance, x, weights, bias, width, 4, grad, config=config)


@pytest.mark.parametrize(
    ("batch", "time", "channels", "outputs", "kernel", "stride"),
    [
        (1, 1, 8, 1, 8, 4),
        (1, 2, 5, 1, 8, 4),
        (3, 7, 8, 4, 8, 4),
        (2, 18, 16, 16, 8, 4),
        (2, 11, 12, 3, 6, 2),
        (1, 13, 8, 8, 4, 4),
        (1, 17, 6, 2, 8, 8),
        (2, 3, 7, 2, 12, 3),
    ],
)
def test_matches_the_twin_at_odd_sizes(distance, device, batch, time, channels, outputs, kernel, stride):
    x, weights, bias, grad = make(batch, time, channels, outputs, device, kernel, stride)
    width = torch.randint(0, channels + 1, x.shape[:2], device=device)
    for config in (None, FUSED):
        check(distance, x, weights, bias, (channels + 1) // 2, stride, grad, config=config)
        check(distance, x, weights, bias, width, stride, grad, relu=True, config=config)


@pytest.mark.parametrize("config", [FUSED, KEPT, SPLIT], ids=["fused", "kept", "split"])
def test_no_positions(device, config):
    x, weights, bias, _ = make(2, 1, 8, 3, device)
    x = x[:, :0]
    out = decoder_block_forward(x, *weights, 4, 4, 3, conv_bias=bias, relu=True, config=config)
    assert torch.equal(out, bias.relu().expand(2, 4, 3))
    empty = torch.zeros(2, 0, device=device, dtype=torch.int32)
    assert not decoder_block_forward(x, *weights, empty, 4, 3, config=config).any()
    assert decoder_block_forward(x[:0], *weights, 4, 4, 3, config=config).shape == (0, 4, 3)
    grads = decoder_block_backward(torch.ones_like(out), x, *weights, 4, 4, 3)
    assert grads[0].shape == x.shape
    assert not any(grad.any() for grad in grads[1:4])


@pytest.mark.parametrize("config", [FUSED, KEPT, SPLIT], ids=["fused", "kept", "split"])
@pytest.mark.parametrize("ordered", [False, True])
def test_every_row_at_its_own_width(distance, device, ordered, config):
    x, weights, bias, grad = make(2, 33, 24, 3, device)
    for widths in ([3, 6, 12, 24], [0, 1, 17], [5]):
        width = torch.tensor(widths, device=device)[torch.randint(len(widths), x.shape[:2], device=device)]
        order = decoder_order(width, 2) if ordered else None
        check(distance, x, weights, bias, width, 4, grad, config=config, order=order)


def test_widths_above_the_channels_count_as_all(distance, device):
    x, weights, _, _ = make(1, 10, 8, 2, device)
    width = torch.full(x.shape[:2], 99, device=device)
    assert distance(decoder_block_forward(x, *weights, width, 4, 2), decoder_block(x, *weights, 8, 4, 2)) <= 1e-5


@pytest.mark.parametrize("config", [FUSED, KEPT, SPLIT], ids=["fused", "kept", "split"])
def test_skip_bias_and_relu_in_the_same_launch(distance, device, config):
    x, weights, bias, grad = make(2, 23, 12, 5, device)
    skip = torch.randn(3, 40, 12, device=device)[1:, 6:29]
    for width in (7, torch.randint(0, 13, x.shape[:2], device=device)):
        check(distance, x, weights, bias, width, 4, grad, skip=skip, relu=True, config=config)
        check(distance, x, weights, bias, width, 4, grad, skip=skip, config=config)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("config", [FUSED, KEPT, SPLIT], ids=["fused", "kept", "split"])
def test_inactive_channels_are_never_read(device, ragged, config):
    x, weights, _, grad = make(2, 14, 24, 3, device)
    width = torch.randint(0, 11, x.shape[:2], device=device) if ragged else 10
    active = int(width.max()) if ragged else width
    y = decoder_block_forward(x, *weights, width, 4, 3, config=config)
    grads = decoder_block_backward(grad, x, *weights, width, 4, 3)
    for weight in weights:
        weight[active:] = float("nan")
    assert torch.equal(decoder_block_forward(x, *weights, width, 4, 3, config=config), y)
    for ours, clean in zip(decoder_block_backward(grad, x, *weights, width, 4, 3), grads, strict=True):
        assert torch.equal(ours, clean)
    for inactive in grads[1:4]:
        assert not inactive[active:].any()


def test_slices_of_larger_buffers(distance, device):
    buffer, weights, bias, _ = make(4, 20, 12, 3, device)
    slices = (buffer[:, 7:16], buffer[1::2], buffer[2:3, 11:], buffer[:1].expand(3, -1, -1))
    for x in (*slices, buffer[:, ::2], buffer.mT.contiguous().mT):
        grad = torch.randn(x.shape[0], (x.shape[1] + 1) * 4, 3, device=device)
        check(distance, x, weights, bias, 7, 4, grad.mT.contiguous().mT, skip=x)
    narrow = torch.randn(2, 9, 30, device=device)[:, :, 4:16]
    check(distance, narrow, weights, bias, 7, 4, torch.randn(2, 40, 3, device=device))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_close_as_torch(distance, device, dtype, ragged):
    x, weights, bias, grad = make(2, 11, 20, 4, device, dtype=dtype)
    width = torch.randint(0, 21, x.shape[:2], device=device) if ragged else 13
    skip = torch.randn_like(x)
    exact, exact_grads = reference(x, weights, bias, width, 4, grad, skip=skip)
    torchs, torchs_grads = reference(x, weights, bias, width, 4, grad, skip=skip, dtype=dtype)
    for config in (FUSED, SPLIT):
        ours = decoder_block_forward(x, *weights, width, 4, 4, skip=skip, conv_bias=bias, config=config)
        assert ours.dtype == dtype
        assert distance(ours, exact) <= 2 * distance(torchs, exact)
    ours = decoder_block_backward(grad, x, *weights, width, 4, 4, skip=skip)
    for name, mine, theirs, true in zip(NAMES, ours, torchs_grads, exact_grads, strict=True):
        assert mine.dtype == dtype
        # Of sums that torch happens to round to the last bit, twice its distance is less than one rounding.
        assert distance(mine, true) <= 2 * distance(theirs, true) + torch.finfo(dtype).eps, name


def test_a_tile_does_what_its_widest_row_needs(products, device):
    x, weights, _, _ = make(2, 50, 48, 6, device)
    width = torch.tensor([6, 12, 24, 48], device=device)[torch.randint(4, (2, 10), device=device)].repeat_interleave(
        5, 1
    )
    padded = torch.nn.functional.pad(width, (1, 1))
    widest, totals = torch.maximum(padded[:, 1:], padded[:, :-1]).flatten(), []
    for order in (None, decoder_order(width, 2)):
        products.clear()
        decoder_block_forward(x, *weights, width, 4, 6, config=KEPT, order=order)
        rows = widest if order is None else widest[order[1].long()]
        for index, tile in enumerate(rows.split(KEPT.block_t)):
            for column in range(2):
                # Of either tap a product for values and gates, and one with the columns.
                assert products[index * 2 + column, 0, 0] == 4 * -(-int(tile.max()) // KEPT.block_h)
        totals.append(products.total())
    assert totals[1] < 0.9 * totals[0]


def test_orders_put_like_widths_side_by_side():
    width = torch.tensor([[4, 1, 1, 8], [1, 1, 1, 1]])
    rows, blocks = decoder_order(width, 2)
    assert rows.tolist() == [1, 2, 4, 5, 6, 7, 0, 3]
    widest = torch.tensor([4, 4, 1, 8, 8, 1, 1, 1, 1, 1])
    assert widest[blocks.long()].tolist() == sorted(widest.tolist())
    assert sorted(blocks.tolist()) == list(range(10))


def test_wrong_arguments_name_what_was_expected(device):
    x, weights, _, _ = make(2, 10, 8, 3, device)
    rows = torch.arange(20, device=device, dtype=torch.int32)
    calls = [
        ("width = 9", {"width": 9}),
        ("an integer tensor", {"width": torch.ones(2, 3, device=device)}),
        ("expected a multiple of stride", {"stride": 5}),
        ("precision = 'half'", {"precision": "half"}),
        ("expected a permutation", {"order": (rows, rows)}),
        ("skip has shape", {"skip": x[:, 1:]}),
        ("conv_bias has shape", {"conv_bias": x[0, 0]}),
    ]
    for message, change in calls:
        with pytest.raises(ValueError, match=message):
            decoder_block_forward(x, *weights, **{"width": 4, "stride": 4, "channels": 3, **change})
    with pytest.raises(ValueError, match="glu_weight has shape"):
        decoder_block_forward(x, weights[0][:, :1], *weights[1:], 4, 4, 3)
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        decoder_block_forward(x.double(), *weights, 4, 4, 3)


def test_selected_blocks_are_powers_of_two_that_a_product_takes():
    for blocks, outputs, dtype in product(
        (1, 64, 4_000_000), (1, 8, 32, 48, 64, 128, 256), (torch.float16, torch.bfloat16, torch.float32)
    ):
        config = select_config((blocks, 4 * outputs, 2 * outputs), dtype)
        for size in (config.block_t, config.block_c, config.block_h, config.block_k):
            assert size >= 16
            assert size & (size - 1) == 0
        assert config.fused == (config.block_c >= 4 * outputs)
