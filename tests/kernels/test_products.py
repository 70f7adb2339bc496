"""How fp32 factors are rounded to TF32, and launch parameters by what a chip reports."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from slimse.kernels.encoder_block import encoder_block_forward
from slimse.kernels.launching import launch, row_tiles
from slimse.kernels.prefix_gemm import product
from slimse.kernels.tiles import BLOCKS, PRODUCTS, RECURRENCES, Chip, block_config, product_tile, recurrent_config

from slimse.ops.blocks import encoder_block

CHIPS = {
    "ampere": Chip(80, 163 * 1024),
    "consumer": Chip(86, 99 * 1024),
    "hopper": Chip(90, 227 * 1024),
    "blackwell": Chip(100, 227 * 1024),
    "amd": Chip(0, 64 * 1024),
}


@triton.jit
def multiply(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """A product of square matrices."""
    offs = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + offs, product(tl.load(a_ptr + offs), tl.load(b_ptr + offs), PRECISION=PRECISION))


def rounded(x):
    """The nearest number with ten bits behind the leading one, ties away from zero."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa.abs() * 2048 + 0.5).floor() * mantissa.sign(), exponent - 11)


def test_tf32_factors_are_rounded_not_cut(device):
    a, b = torch.randn(16, 16, device=device), torch.eye(16, device=device)
    a[0, 0], a[1, 0], a[2, 0] = 1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-20
    out = torch.empty_like(a)
    launch(multiply, (1,), a, b, out, SIZE=16, PRECISION="tf32", num_warps=4, num_stages=1)
    assert torch.equal(out.double(), rounded(a))
    assert out[:3, 0].tolist() == [1 + 2**-10, -1 - 2**-10, 1.0]
    launch(multiply, (1,), b, a, out, SIZE=16, PRECISION="tf32", num_warps=4, num_stages=1)
    assert torch.equal(out.double(), rounded(a))


def test_tf32_keeps_what_is_no_number(device):
    a, b = torch.zeros(16, 16, device=device), torch.eye(16, device=device)
    # What NVIDIA's arithmetic makes of 0 / 0 has all bits set: rounding up must not carry into its sign.
    a.view(torch.int32)[0, 0] = 0x7FFFFFFF
    out = torch.empty_like(a)
    launch(multiply, (1,), a, b, out, SIZE=16, PRECISION="tf32", num_warps=4, num_stages=1)
    assert out[0, 0].isnan()
    assert not out[1:].isnan().any()


def test_a_block_in_tf32_is_as_close_as_rounding_allows(distance, device):
    x, weights = torch.randn(1, 68, 16, device=device).abs(), []
    for shape in ((32, 128), (32,), (32, 64), (64,)):
        weights.append(0.3 * torch.randn(shape, device=device).abs())
    exact = encoder_block(*(t.double() for t in (x, *weights)), 32, 4)
    ours = encoder_block_forward(x, *weights, 32, 4, precision="tf32")
    error = distance(ours, exact)
    # Cutting the factors of sums that are all positive would leave at least 2^-11 of them out.
    assert 1e-6 < error < 2**-12
    assert distance(encoder_block_forward(x, *weights, 32, 4, precision="tf32x3"), exact) < 1e-6


def test_every_chip_has_launch_parameters_for_every_number_format():
    for chip in CHIPS.values():
        for dtype, precision in (
            *((torch.float16, "ieee"), (torch.bfloat16, "tf32")),
            *((torch.float32, precision) for precision in ("ieee", "tf32", "tf32x3")),
        ):
            assert product_tile(10_000, 500, dtype, precision, chip).cols >= 16
            assert recurrent_config(128, None, dtype, precision, chip=chip).block_u >= 16
            for op in BLOCKS:
                assert block_config(op, (10_000, 64, 32), dtype, precision, chip).num_warps in (4, 8)
    assert {kind for kind, _ in (*PRODUCTS, *RECURRENCES)} == {*CHIPS}
    assert {name: chip.kind for name, chip in CHIPS.items()} == {name: name for name in CHIPS}
    # RTX 50 is of the generation of B200, with a third of its shared memory and none of its instructions.
    assert Chip(120, 99 * 1024).kind == "consumer"
    assert Chip(89, 99 * 1024).kind == "consumer"


def test_half_precision_weights_of_a_recurrence_stay_on_chip_where_they_fit():
    for chip, resident in ((CHIPS["hopper"], True), (CHIPS["consumer"], False)):
        assert recurrent_config(128, None, torch.bfloat16, chip=chip).resident == resident
        assert recurrent_config(64, None, torch.bfloat16, chip=chip).resident


def test_more_rows_than_kernels_can_number_are_refused():
    assert row_tiles({"FRAMES": None}, 2**31 - 128, 2**20, 128) == 2**24 - 1
    with pytest.raises(ValueError, match=r"2147483648 positions in one call: expected less than 2\^31"):
        row_tiles({"FRAMES": None}, 2**31, 2**20, 128)
