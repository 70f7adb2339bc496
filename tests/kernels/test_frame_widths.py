"""Widths by frames in the kernels, against the same widths position by position and the frames of a stream."""

import pytest
import torch

pytest.importorskip("triton")

from slimse.kernels.decoder_block import decoder_block_backward, decoder_block_forward
from slimse.kernels.encoder_block import encoder_block_backward, encoder_block_forward
from slimse.kernels.launching import FrameWidths, frame_orders
from slimse.kernels.tiles import BlockConfig

from slimse.networks.demucs.frames import FrameMap
from slimse.ops.blocks import decoder_block, encoder_block

MAP = FrameMap(5, 8, 4)
FRAMES, CHANNELS = 7, 24
KEPT, SPLIT = BlockConfig(True, 16, 32, 16, 32, 4, 2), BlockConfig(False, 16, 32, 16, 16, 4, 2)


@pytest.fixture
def choice(device):
    """One of three widths for every frame of two items."""
    return torch.randint(3, (2, FRAMES), dtype=torch.int32, device=device)


@pytest.fixture
def counts(device):
    """Active channels of the widths."""
    return torch.tensor([3, 12, CHANNELS], dtype=torch.int32, device=device)


@pytest.mark.parametrize("level", [1, 3, 4, 5])
def test_positions_belong_to_the_frames_of_a_stream(choice, counts, level):
    """A frame owns so many positions, the first one all of its receptive field, the last one the tail of a decoder."""
    rate, span = MAP.positions_per_frame(level), MAP.first_span(level)
    for place, runs in (
        (MAP.encoder(level, first=True), [span, *[rate] * (FRAMES - 1)]),
        (MAP.encoder(level, first=False), [rate] * FRAMES),
        (MAP.decoder(level), [*[rate] * (FRAMES - 1), rate + 2]),
    ):
        widths = FrameWidths(choice, counts, *place).positions(sum(runs))
        assert torch.equal(widths, counts[choice.long()].repeat_interleave(torch.tensor(runs, device=counts.device), 1))


def test_orders_are_permutations_from_narrow_to_wide(choice):
    own, both = frame_orders(choice, 3)
    keys = torch.cat([choice[:, :1].expand(-1, 2), choice, choice[:, -1:].expand(-1, 2)], 1)
    before = torch.cat([keys[:, :1], torch.maximum(keys[:, 1:], keys[:, :-1])], 1)
    for order, key in ((own, keys), (both, before)):
        assert torch.equal(order.long(), key.flatten().argsort(stable=True))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("config", [KEPT, SPLIT], ids=["kept", "split"])
@pytest.mark.parametrize(("rate", "lead"), [(1, 0), (4, 7), (16, 35), (4, 3)])
def test_an_encoder_block(distance, device, choice, counts, rate, lead, config, ordered):
    count = lead + 1 + rate * (FRAMES - 1)
    x = torch.randn(2, 4 * count + 4, 2, device=device)
    shapes = ((CHANNELS, 16), (CHANNELS,), (CHANNELS, 2 * CHANNELS), (2 * CHANNELS,))
    weights = [0.4 * torch.randn(shape, device=device) for shape in shapes]
    width = FrameWidths(choice, counts, rate, lead, frame_orders(choice, 3) if ordered else None)
    rows = width.positions(count)
    ours = encoder_block_forward(x, *weights, width, 4, config=config)
    assert distance(ours, encoder_block(*(t.double() for t in (x, *weights)), rows, 4)) <= 1e-5
    if config is KEPT and rate == 4:
        grad = torch.randn_like(ours)
        for mine, theirs in zip(
            encoder_block_backward(grad, x, *weights, width, 4),
            encoder_block_backward(grad, x, *weights, rows, 4),
            strict=True,
        ):
            assert distance(mine, theirs) <= 1e-6


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("config", [KEPT, SPLIT], ids=["kept", "split"])
@pytest.mark.parametrize("rate", [1, 4, pytest.param(16, marks=pytest.mark.exhaustive)])
def test_a_decoder_block(distance, device, choice, counts, rate, config, ordered):
    time = rate * FRAMES + (2 if rate > 1 else 0)
    x, skip = torch.randn(2, 2, time, CHANNELS, device=device)
    shapes = ((CHANNELS, 2, CHANNELS), (CHANNELS, 2), (CHANNELS, 40), (5,))
    *weights, bias = (0.4 * torch.randn(shape, device=device) for shape in shapes)
    width = FrameWidths(choice, counts, rate, rate - 1, frame_orders(choice, 3) if ordered else None)
    rows = width.positions(time)
    ours = decoder_block_forward(x, *weights, width, 4, 5, skip=skip, conv_bias=bias, relu=True, config=config)
    exact = decoder_block(*(t.double() for t in (x, *weights)), rows, 4, 5, skip.double(), bias.double(), True)
    assert distance(ours, exact) <= 1e-5
    if config is KEPT and rate == 4:
        grad = torch.randn_like(ours)
        for mine, theirs in zip(
            decoder_block_backward(grad, x, *weights, width, 4, 5, skip=skip),
            decoder_block_backward(grad, x, *weights, rows, 4, 5, skip=skip),
            strict=True,
        ):
            assert distance(mine, theirs) <= 1e-6


def test_positions_beyond_the_frames_are_computed_too(distance, device, choice, counts):
    """More than an order of frames covers: then rows stay as they come."""
    x = torch.randn(2, 4 * 60 + 4, 2, device=device)
    shapes = ((CHANNELS, 16), (CHANNELS,), (CHANNELS, 2 * CHANNELS), (2 * CHANNELS,))
    weights = [0.4 * torch.randn(shape, device=device) for shape in shapes]
    width = FrameWidths(choice, counts, 4, 7, frame_orders(choice, 3))
    ours = encoder_block_forward(x, *weights, width, 4, config=KEPT)
    assert distance(ours, encoder_block(x, *weights, width.positions(60), 4)) <= 1e-5


def test_an_order_saves_products(products, device, counts):
    choice = torch.tensor([[0, 0, 0, 2] * 6, [0, 1, 0, 2] * 6], dtype=torch.int32, device=device)
    x = torch.randn(2, 4 * 93 + 4, 1, device=device)
    shapes = ((CHANNELS, 8), (CHANNELS,), (CHANNELS, 2 * CHANNELS), (2 * CHANNELS,))
    weights, totals = [torch.randn(shape, device=device) for shape in shapes], []
    for orders in (None, frame_orders(choice, 3)):
        products.clear()
        encoder_block_forward(x, *weights, FrameWidths(choice, counts, 4, 0, orders), 4, config=KEPT)
        totals.append(products.total())
    assert totals[1] < 0.8 * totals[0]


def test_wrong_parts_are_named(device, choice, counts):
    x, weights = torch.randn(2, 12, 1, device=device), [torch.randn(8, 8, device=device), torch.randn(8, device=device)]
    weights += [torch.randn(8, 16, device=device), torch.randn(16, device=device)]
    for message, width in (
        (r"width\.choice is torch\.int64", FrameWidths(choice.long(), counts, 1, 0)),
        (r"width\.counts is torch\.int32 \(0,\)", FrameWidths(choice, counts[:0], 1, 0)),
        ("expected 2 items", FrameWidths(choice[:1], counts, 1, 0)),
        ("rate = 0", FrameWidths(choice, counts, 0, 0)),
        ("expected a permutation", FrameWidths(choice, counts, 1, 0, (counts, counts))),
    ):
        with pytest.raises(ValueError, match=message):
            encoder_block_forward(x, *weights, width, 4)
