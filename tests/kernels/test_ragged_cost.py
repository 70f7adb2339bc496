"""What a tile of narrow rows costs: the products of every program are counted and must be its widest row's need."""

import pytest
import torch

pytest.importorskip("triton")

from slimse.kernels import overlap_add, slim_gru, slim_linear_glu, slim_lstm, window_gemm
from slimse.kernels.launching import by_width
from slimse.kernels.rows import Prefix, Rows
from slimse.kernels.slim_conv1d import slim_conv1d_forward
from slimse.kernels.tiles import RecurrentConfig, Tile

SIZE = 16
CHANNELS = 48


def steps(width):
    """Blocks of channels up to ``width``."""
    return -(-int(width) // SIZE)


@pytest.fixture
def widths(monkeypatch, device):
    """Small tiles, and a width for each of 2 x 40 positions that changes every few of them."""
    for module in (overlap_add, slim_linear_glu, window_gemm):
        monkeypatch.setattr(module, "product_tile", lambda *args, **kwargs: Tile(SIZE, SIZE, SIZE, 4, 2))
    table = torch.tensor([6, 12, 24, 48], dtype=torch.int32, device=device)
    return table[torch.randint(4, (2, 10), device=device)].repeat_interleave(4, 1)


def tiles(widths, order):
    """The widest row of every tile."""
    rows = widths.flatten() if order is None else widths.flatten()[order.long()]
    return [int(tile.max()) for tile in rows.split(SIZE)]


@pytest.mark.parametrize("ordered", [False, True])
def test_cut_on_the_input(products, widths, device, ordered):
    x, weight = torch.randn(2, 40, CHANNELS, device=device), torch.randn(CHANNELS, 32, device=device)
    order = by_width(widths) if ordered else None
    slim_linear_glu.slim_linear_glu_forward(x, weight, weight[0], widths, "input", order=order)
    for index, widest in enumerate(tiles(widths, order)):
        # Values and gates are a product each.
        assert products[index, 0, 0] == 2 * steps(widest)


@pytest.mark.parametrize("ordered", [False, True])
def test_cut_on_the_output(products, widths, device, ordered):
    x, order = torch.randn(2, 40, 20, device=device), by_width(widths) if ordered else None
    windows, weight = Rows.positions(x), torch.randn(CHANNELS, 20, device=device)
    window_gemm.window_product(windows, weight, None, Prefix(CHANNELS, widths), order=order, precision="ieee")
    for index, widest in enumerate(tiles(widths, order)):
        for column in range(3):
            assert products[3 * index + column, 0, 0] == (steps(20) if column * SIZE < widest else 0)


def test_an_order_saves_products(products, widths, device):
    x, weight = torch.randn(2, 40, CHANNELS, device=device), torch.randn(CHANNELS, 32, device=device)
    counts = []
    for order in (None, by_width(widths)):
        products.clear()
        slim_linear_glu.slim_linear_glu_forward(x, weight, weight[0], widths, "input", order=order)
        counts.append(products.total())
    assert counts[1] < counts[0] < 2 * 5 * steps(CHANNELS)


def test_every_tap_of_a_convolution_reads_its_own_positions(products, widths, device):
    x, weight = torch.randn(2, 40, CHANNELS, device=device), torch.randn(16, 3, CHANNELS, device=device)
    slim_conv1d_forward(x, weight, None, widths, 16, 1, 1)
    padded = torch.nn.functional.pad(widths, (1, 1))
    needs = [tiles(padded[:, tap : tap + 40], None) for tap in range(3)]
    for index in range(5):
        assert products[index, 0, 0] == sum(steps(need[index]) for need in needs)


def test_overlap_add_gathers_active_units_only(products, widths, device):
    x, weight = torch.randn(2, 40, CHANNELS, device=device), torch.randn(CHANNELS, 8, device=device)
    rows, prefix = Rows.positions(x), Prefix(CHANNELS, widths)
    overlap_add.overlap_add(rows, weight, None, prefix, channels=2, n_time=41 * 2, stride=2, precision="ieee")
    needs = [tiles(torch.nn.functional.pad(widths, (tap, 1 - tap)), None) for tap in range(2)]
    for index in range(len(needs[0])):
        assert products[index, 0, 0] == sum(steps(need[index]) for need in needs)


def test_a_recurrent_step_is_quadratic_in_its_width(products, widths, device, monkeypatch):
    width, config = widths[:, :4].contiguous(), RecurrentConfig(False, SIZE, SIZE, 4)
    blocks = sum(steps(now.max()) ** 2 for now in width.unbind(1))
    for module in (slim_gru, slim_lstm):
        monkeypatch.setattr(module, "select_config", lambda *_, **__: config)
    for gates in (3, 4):
        x, weight = torch.randn(2, 4, 5, device=device), torch.randn(CHANNELS, gates, CHANNELS, device=device)
        into, bias = weight[:, :, :5].contiguous(), weight[:, :, 0].contiguous()
        h = torch.zeros(2, CHANNELS, device=device)
        if gates == 4:
            slim_lstm.slim_lstm_forward(x, into, weight, bias, width, (h, h))
        else:
            records = (into.unsqueeze(0), weight.unsqueeze(0), bias.unsqueeze(0), bias.unsqueeze(0))
            slim_gru.slim_gru_forward(x, *records, width, h.unsqueeze(0))
        # The product with the input comes first: one row tile, and a step for every active tile of columns.
        projected = steps(gates * int(width.max()))
        assert products.total() == gates * blocks + projected
        products.clear()
