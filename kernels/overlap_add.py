"""``rows @ weight`` laid over time: a transposed convolution, or the gradient of a convolution at its input.

Dimensions:
    rows: input positions of all batch items, ``J`` elements each, ``UNIT`` per unit of the width.
    blocks: runs of ``S`` output positions, ``n_blocks`` an item; the first begins ``padding`` positions early.

A program computes all of a block, or one phase: one of its positions. Phase ``s`` of a block sums tap ``i`` of the row
``(i * dilation - s) / S`` before the block's own, where that is a whole number. Where a kernel is ``r`` whole blocks
wide, all phases sum the same rows, and a block is one run of a weight row: then they are computed together, as one
phase of a kernel of ``r`` taps and stride 1. Every output position gathers its contributions, in order: no atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .prefix_gemm import load_cut_block, load_row_tile, load_row_widths, load_weight_block, product, program_tile
from .rows import Prefix, Rows
from .tiles import chip_of, product_tile


class Layout(NamedTuple):
    """Where rows go in the output, as one constant of a kernel."""

    channels: int
    """Of an output position."""
    cols: int
    """What a program computes of a block."""
    span: int
    """Output positions of a block."""
    taps: int
    stride: int = 1
    """Between rows, in positions of what a program computes."""
    dilation: int = 1
    padding: int = 0

    @classmethod
    def of(cls, channels: int, taps: int, stride: int, dilation: int, padding: int, whole: bool) -> Layout:
        """Of a transposed convolution; blocks are computed as one phase where they can be and are wanted ``whole``."""
        if whole and dilation == 1 and taps % stride == 0:
            return cls(channels, channels * stride, stride, taps // stride, padding=padding)
        return cls(channels, channels, stride, taps, stride, dilation, padding)

    @property
    def phases(self) -> int:
        """Parts of a block that are computed apart."""
        return self.channels * self.span // self.cols


@triton.jit
def load_tap_rows(
    blocks,
    mask_t,
    shift,
    width_ptr,  # as those of `load_row_widths`
    counts_ptr,
    n_pos,
    n_blocks,
    n_frames,
    width,
    CHANNELS: tl.constexpr,
    FRAMES: tl.constexpr,
):
    """Rows ``shift`` before the output ``blocks``, their widths (0 where none), the largest width."""
    pos = blocks % n_blocks - shift
    valid = mask_t & (pos >= 0) & (pos < n_pos)
    rows = tl.where(valid, (blocks // n_blocks) * n_pos + pos, 0)
    row_width, k_max = load_row_widths(width_ptr, counts_ptr, rows, valid, n_pos, n_frames, width, CHANNELS, FRAMES)
    return rows, row_width, k_max


@triton.jit
def store_blocks(
    acc,
    bias_ptr,  # (channels,) or None
    out_ptr,  # (batch, n_time, channels)
    width_out_ptr,  # (batch * n_time,) int32 or None
    blocks,
    mask_t,
    offs_c,
    phase,
    n_blocks,
    n_time,
    width_out,
    OUT: tl.constexpr,  # `Layout`
    CUT_OUT: tl.constexpr,
    RELU: tl.constexpr,
):
    """Write output blocks, after bias and ReLU where they are asked for; an item's outer blocks may be cut."""
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_c % OUT.channels).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0)
    if CUT_OUT:
        active = output_width(width_out_ptr, blocks, mask_t, phase, n_blocks, n_time, width_out, OUT)
        acc = tl.where(offs_c[None, :] < active[:, None], acc, 0.0)
    pos = (blocks % n_blocks) * OUT.span + (phase - OUT.padding)
    start = ((blocks // n_blocks).to(tl.int64) * n_time + pos) * OUT.channels
    # Compared by position, so that the mask is known to be constant over channels and stores stay wide.
    column_pos = pos[:, None] + (offs_c // OUT.channels)[None, :]
    mask = mask_t[:, None] & (offs_c < OUT.cols)[None, :] & (column_pos < n_time)
    if OUT.padding > 0:
        mask = mask & (column_pos >= 0)
    tl.store((out_ptr + start)[:, None] + offs_c[None, :], acc, mask=mask)


@triton.jit
def output_width(
    width_out_ptr,  # (batch * n_time,) int32 or None
    blocks,
    mask_t,
    phase,
    n_blocks,
    n_time,
    width_out,
    OUT: tl.constexpr,  # `Layout`
):
    """Active channels at the ``phase`` of output blocks, 0 outside of an item."""
    pos = (blocks % n_blocks) * OUT.span + (phase - OUT.padding)
    inside = mask_t & (pos >= 0) & (pos < n_time)
    if width_out_ptr is not None:
        ptrs = width_out_ptr + (blocks // n_blocks) * n_time + tl.where(inside, pos, 0)
        width_out = tl.minimum(tl.load(ptrs), OUT.channels)
    return tl.where(inside, width_out, 0)


@triton.jit(
    do_not_specialize=[
        *("stride_b", "n_rows", "n_pos", "n_blocks", "n_time", "n_cols", "n_frames", "width", "width_out")
    ]
)
def overlap_add_gather(
    x_ptr,  # rows of J, CHANNELS apart, item stride stride_b
    weight_ptr,  # (J, taps * cols), rows [:UNIT * k] are read
    bias_ptr,  # (channels,) or None
    out_ptr,  # (batch, n_time, channels)
    width_ptr,  # as those of `load_row_widths`
    counts_ptr,
    width_out_ptr,  # (batch * n_time,) int32 or None
    order_ptr,  # as that of `load_row_tile`: of the output blocks
    stride_b,
    n_rows,  # batch * n_blocks
    n_pos,
    n_blocks,
    n_time,
    n_cols,  # tiles of columns
    n_frames,
    width,
    width_out,
    FRAMES: tl.constexpr,
    EVEN: tl.constexpr,  # whether all rows have one width, a multiple of BLOCK_J
    CHANNELS: tl.constexpr,
    J: tl.constexpr,
    UNIT: tl.constexpr,
    OUT: tl.constexpr,  # `Layout`
    CUT_OUT: tl.constexpr,  # whether output channels may be inactive
    RELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of output blocks, or of one phase of each."""
    tile, column = program_tile(n_cols)
    blocks, mask_t = load_row_tile(order_ptr, tile, n_rows, n_blocks, n_frames, FRAMES, BLOCK_T)
    phase = tl.program_id(1)
    offs_c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    k_out = OUT.channels
    if CUT_OUT:
        k_out = tl.max(output_width(width_out_ptr, blocks, mask_t, phase, n_blocks, n_time, width_out, OUT), axis=0)
    acc = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    for tap in range(0, OUT.taps):
        shift = tap * OUT.dilation - phase
        rows, row_width, k_max = load_tap_rows(
            blocks,
            mask_t,
            shift // OUT.stride,
            width_ptr,
            counts_ptr,
            n_pos,
            n_blocks,
            n_frames,
            width,
            J // UNIT,
            FRAMES,
        )
        active = k_max * UNIT
        if OUT.stride > 1:
            active = tl.where(shift % OUT.stride == 0, active, 0)
        if CUT_OUT:
            active = tl.where(column * BLOCK_C < k_out, active, 0)
        starts = ((rows // n_pos).to(tl.int64) * stride_b + rows % n_pos) * CHANNELS
        for j in range(0, active, BLOCK_J):
            offs_j = j + tl.arange(0, BLOCK_J)
            hidden = load_cut_block(x_ptr + starts, row_width * UNIT, offs_j, J, BLOCK_J, EVEN)
            units = tl.minimum(offs_j, active - 1) * OUT.taps + tap
            weight = load_weight_block(weight_ptr, units, offs_c, OUT.cols, OUT.cols % BLOCK_C == 0)
            acc = product(hidden, weight, acc, PRECISION=PRECISION)
    store_blocks(
        acc,
        bias_ptr,
        out_ptr,
        width_out_ptr,
        blocks,
        mask_t,
        offs_c,
        phase,
        n_blocks,
        n_time,
        width_out,
        OUT,
        CUT_OUT,
        RELU,
    )


def overlap_add(
    rows: Rows,
    weight: Tensor,
    bias: Tensor | None,
    width: Prefix,
    *,
    channels: int,
    n_time: int,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
    width_out: Prefix | None = None,
    unit: int = 1,
    relu: bool = False,
    order: Tensor | None = None,
    precision: str,
) -> Tensor:
    """``rows @ weight`` over time: tap ``i`` of row ``p`` adds to position ``p * stride + i * dilation - padding``.

    Args:
        rows: one run of ``J`` elements each, or fewer than the weight has rows.
        weight: ``[J, K * channels]``; rows ``[:unit * k]`` are read.
        bias: ``[channels]`` or None.
        width: active units of the rows.
        channels: channels of the output.
        n_time: output positions; those that no tap reaches are zero (or the bias).
        stride: output positions between rows.
        dilation: output positions between taps.
        padding: output positions cut off at the start.
        width_out: active channels of the output positions, the others become zero; None for all.
        unit: elements of a row per unit.
        relu: whether a ReLU follows.
        order: int32, a permutation of the blocks of ``stride`` output positions that says which share a tile, or None.
        precision: of float32 products.

    Returns:
        ``[B, n_time, channels]``.
    """
    batch, taps = rows.data.shape[0], weight.numel() // (weight.shape[0] * channels)
    out = weight.new_empty(batch, n_time, channels)
    if out.numel() == 0:
        return out
    per_item = rows.per_item
    if rows.count == 0:
        # Nothing to gather, not even a row to clamp to: only bias and ReLU are left.
        width, per_item = Prefix(0), 1
    layout = Layout.of(channels, taps, stride, dilation, padding, whole=width_out is None)
    blocks = triton.cdiv(n_time + padding, stride)
    cut_out, width_out = width_out is not None, width_out or Prefix(channels)
    # The masks of a width per row take the registers that a broad tile leaves.
    tile = product_tile(
        batch * blocks, layout.cols, weight.dtype, precision, chip_of(weight.device), broad=width.uniform
    )
    arguments = launching.width_arguments(width, order, tile.rows, blocks, gathers=True)
    n_cols = triton.cdiv(layout.cols, tile.cols)
    launching.launch(
        overlap_add_gather,
        (launching.row_tiles(arguments, batch * blocks, blocks, tile.rows) * n_cols, layout.phases),
        x_ptr=rows.data,
        weight_ptr=weight,
        bias_ptr=bias,
        out_ptr=out,
        width_out_ptr=width_out.rows,
        stride_b=rows.stride_b,
        n_rows=batch * blocks,
        n_pos=per_item,
        n_blocks=blocks,
        n_time=n_time,
        n_cols=n_cols,
        width=width.bound,
        width_out=width_out.bound,
        EVEN=width.uniform and unit * width.bound % tile.depth == 0,
        CHANNELS=rows.channels,
        J=rows.length,
        UNIT=unit,
        OUT=layout,
        CUT_OUT=cut_out,
        RELU=relu,
        PRECISION=precision,
        **arguments,
        **tile.launch_options("BLOCK_T", "BLOCK_C", "BLOCK_J"),
    )
    return out
