"""Decoder block: ``overlap_add(GLU(x @ W3[:k].T + b3[:k]) @ W4[:k])``, a pointwise layer and a transposed convolution.

Dimensions:
    rows: ``B * T`` input positions.
    blocks: ``B * n_blocks`` output blocks of ``S`` positions, ``cols = S * C_out`` elements; an item has
        ``n_blocks = T + taps - 1`` of them, where ``taps = K / S``. Block ``m`` sums tap ``i`` of row ``m - i``.
    C: input and hidden channels. A row of width ``k`` has the leading ``k`` hidden channels active.

A hidden channel's value and gate rows lie side by side, so both come from one product with ``2 k`` leading rows. The
fused kernel gathers: every output block computes the hidden channels of its ``taps`` rows, loops over them up to
their largest width, and never writes them out. As they are computed once per tap and per tile of columns, two launches
are cheaper where the columns do not fit one tile. The backward pass writes them out too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks, launching
from .overlap_add import Layout, load_tap_rows, overlap_add, store_blocks
from .prefix_gemm import (
    load_row_block,
    load_row_tile,
    load_weight_block,
    product,
    program_tile,
    row_starts,
    weight_grad,
)
from .rows import FrameWidths, Prefix, Rows, addend, by_width
from .slim_linear_glu import glu_units, output_cut, output_cut_grads
from .tiles import AMPERE, BlockConfig, Chip, block_config, chip_of
from .window_gemm import window_product


@triton.jit
def _load_sums(row_ptr, add_ptr, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """Whole rows at ``row_ptr``, and what is added to them, rounded once, as the same sum in half precision is."""
    x = load_row_block(row_ptr, 0, LENGTH, BLOCK)
    if add_ptr is None:
        return x
    return (x.to(tl.float32) + load_row_block(add_ptr, 0, LENGTH, BLOCK).to(tl.float32)).to(x.dtype)


@triton.jit
def _tap_product(
    acc,
    x,  # (BLOCK_T, BLOCK_K): rows of the tap
    glu_weight,  # (2 * BLOCK_H, BLOCK_K): value and gate rows of the units
    glu_bias,  # (2 * BLOCK_H,) fp32
    conv_weight_ptr,  # (C, taps * cols)
    row_width,
    offs_h,
    k_max,
    tap: tl.constexpr,
    offs_c,
    OUT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc`` and what hidden channels ``offs_h`` of the rows of a tap add to it."""
    sums = tl.zeros([BLOCK_T, 2 * BLOCK_H], dtype=tl.float32)
    sums = product(x, tl.trans(glu_weight), sums, PRECISION=PRECISION) + glu_bias[None, :]
    value, gate = tl.split(tl.reshape(sums, [BLOCK_T, BLOCK_H, 2]))
    hidden = tl.where(offs_h[None, :] < row_width[:, None], value * tl.sigmoid(gate), 0.0)
    units = tl.minimum(offs_h, k_max - 1) * OUT.taps + tap
    weight = load_weight_block(conv_weight_ptr, units, offs_c, OUT.cols, OUT.cols % BLOCK_C == 0)
    return product(hidden.to(weight.dtype), weight, acc, PRECISION=PRECISION)


@triton.jit(do_not_specialize=["stride_b", "stride_skip", "n_rows", "n_pos", "n_blocks", "n_cols", "n_frames", "width"])
def decoder_block_fused(
    x_ptr,  # (B, n_pos, C), items stride_b positions apart, positions CHANNELS elements
    skip_ptr,  # (B, n_pos, C), items stride_skip positions apart, positions SKIP_CHANNELS elements; or None
    glu_weight_ptr,  # (C, 2, C), rows [:k] are read
    glu_bias_ptr,  # (C, 2)
    conv_weight_ptr,  # (C, taps * cols), rows [:k] are read
    conv_bias_ptr,  # (C_out,) or None
    out_ptr,  # (n_rows, cols)
    width_ptr,  # as those of `load_row_widths`
    counts_ptr,
    order_ptr,  # as that of `load_row_tile`: of the output blocks
    stride_b,
    stride_skip,
    n_rows,  # B * n_blocks
    n_pos,
    n_blocks,
    n_cols,  # tiles of columns
    n_frames,
    width,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SKIP_CHANNELS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,  # `Layout`
    RELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All of a block for a tile of output blocks.

    Rows of one step and up to two taps are read once and kept, and share what is read of the weights; others are read
    at every step over the hidden channels.
    """
    tile, column = program_tile(n_cols)
    blocks, mask_t = load_row_tile(order_ptr, tile, n_rows, n_blocks, n_frames, FRAMES, BLOCK_T)
    offs_c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    if C <= BLOCK_K and OUT.taps <= 2:
        rows, width_0, k_max = load_tap_rows(
            blocks, mask_t, 0, width_ptr, counts_ptr, n_pos, n_blocks, n_frames, width, C, FRAMES
        )
        row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, 1, CHANNELS)
        add_ptr = None if skip_ptr is None else skip_ptr + row_starts(rows, n_pos, stride_skip, 1, SKIP_CHANNELS)
        x_0 = _load_sums(row_ptr, add_ptr, C, BLOCK_K)
        if OUT.taps == 2:
            rows, width_1, k_1 = load_tap_rows(
                blocks, mask_t, 1, width_ptr, counts_ptr, n_pos, n_blocks, n_frames, width, C, FRAMES
            )
            k_max = tl.maximum(k_max, k_1)
            row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, 1, CHANNELS)
            add_ptr = None if skip_ptr is None else skip_ptr + row_starts(rows, n_pos, stride_skip, 1, SKIP_CHANNELS)
            x_1 = _load_sums(row_ptr, add_ptr, C, BLOCK_K)
        for h in range(0, k_max, BLOCK_H):
            halves = tl.minimum(2 * h + tl.arange(0, 2 * BLOCK_H), 2 * k_max - 1)
            glu_weight = load_row_block(glu_weight_ptr + halves * C, 0, C, BLOCK_K)
            glu_bias = tl.load(glu_bias_ptr + halves).to(tl.float32)
            offs_h = h + tl.arange(0, BLOCK_H)
            acc = _tap_product(
                acc,
                x_0,
                glu_weight,
                glu_bias,
                conv_weight_ptr,
                width_0,
                offs_h,
                k_max,
                0,
                offs_c,
                OUT,
                BLOCK_T,
                BLOCK_C,
                BLOCK_H,
                PRECISION,
            )
            if OUT.taps == 2:
                acc = _tap_product(
                    acc,
                    x_1,
                    glu_weight,
                    glu_bias,
                    conv_weight_ptr,
                    width_1,
                    offs_h,
                    k_max,
                    1,
                    offs_c,
                    OUT,
                    BLOCK_T,
                    BLOCK_C,
                    BLOCK_H,
                    PRECISION,
                )
    else:
        for tap in range(0, OUT.taps):
            rows, row_width, k_max = load_tap_rows(
                blocks, mask_t, tap, width_ptr, counts_ptr, n_pos, n_blocks, n_frames, width, C, FRAMES
            )
            row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, 1, CHANNELS)
            add_ptr = None if skip_ptr is None else skip_ptr + row_starts(rows, n_pos, stride_skip, 1, SKIP_CHANNELS)
            for h in range(0, k_max, BLOCK_H):
                value, gate = glu_units(
                    row_ptr, add_ptr, glu_weight_ptr, glu_bias_ptr, h, k_max, C, BLOCK_T, BLOCK_H, BLOCK_K, PRECISION
                )
                offs_h = h + tl.arange(0, BLOCK_H)
                hidden = tl.where(offs_h[None, :] < row_width[:, None], value * gate, 0.0)
                units = tl.minimum(offs_h, k_max - 1) * OUT.taps + tap
                weight = load_weight_block(conv_weight_ptr, units, offs_c, OUT.cols, OUT.cols % BLOCK_C == 0)
                acc = product(hidden.to(weight.dtype), weight, acc, PRECISION=PRECISION)
    store_blocks(
        acc,
        conv_bias_ptr,
        out_ptr,
        None,
        blocks,
        mask_t,
        offs_c,
        0,
        n_blocks,
        n_blocks * OUT.span,
        OUT.channels,
        OUT,
        False,
        RELU,
    )


def select_config(
    shape: tuple[int, int, int], dtype: torch.dtype, precision: str = "ieee", chip: Chip = AMPERE
) -> BlockConfig:
    """Launch parameters for output blocks, columns ``S * C_out``, channels ``C``; fused where one tile has all."""
    return block_config("decoder_block", shape, dtype, precision, chip)


def decoder_block_forward(
    x: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    width: int | Tensor | FrameWidths,
    stride: int,
    channels: int,
    *,
    skip: Tensor | None = None,
    conv_bias: Tensor | None = None,
    relu: bool = False,
    order: tuple[Tensor, Tensor] | None = None,
    precision: str = "ieee",
    config: BlockConfig | None = None,
) -> Tensor:
    """Run a decoder block; see `slimse.ops.decoder_block` for what it computes.

    Args:
        x: ``[B, T, C]``; slices along batch and time are read where they lie.
        glu_weight: ``[C, 2, C]``.
        glu_bias: ``[C, 2]``.
        conv_weight: ``[C, K * C_out]``, taps major.
        width: active hidden channels: a number, an integer tensor ``[B, T]``, or `FrameWidths` of the ``T`` positions.
        stride: ``S``; ``K`` must be a multiple of it.
        channels: ``C_out``.
        skip: ``[B, T, C]``, added to ``x`` on the way in.
        conv_bias: ``[C_out]``, added to the output.
        relu: whether a ReLU follows, for outputs that await no more overlap.
        order: int32 ``[B * T]`` and ``[B * (T + K / S - 1)]``, permutations of the rows and of the output blocks that
            say which share a tile; `decoder_order` makes tiles of like width. The result is the same whatever they are.
        precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        config: launch parameters; `select_config` by default.

    Returns:
        ``[B, S T + K - S, C_out]``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    rows, added, reach, prefix = checks.check_decoder(
        x, skip, glu_weight, glu_bias, conv_weight, conv_bias, width, stride, channels, precision
    )
    batch, time, inputs = x.shape
    blocks, cols = time + reach - 1, stride * channels
    row_order, block_order = checks.check_orders(order, batch * time, batch * blocks)
    shape = (batch * blocks, cols, inputs)
    config = config or select_config(shape, x.dtype, precision, chip_of(x.device))
    shared = {"relu": relu, "precision": precision}
    if config.fused and rows.count > 0:
        weights = (glu_weight, glu_bias, conv_weight, conv_bias)
        layout = Layout.of(channels, reach * stride, stride, 1, 0, whole=True)
        return _launch_fused(rows, added, weights, prefix, layout, config, order=block_order, **shared)
    hidden, _ = output_cut(rows, added, glu_weight, glu_bias, prefix, order=row_order, precision=precision)
    shared |= {"channels": channels, "n_time": blocks * stride, "stride": stride, "order": block_order}
    return overlap_add(Rows.positions(hidden), conv_weight, conv_bias, prefix, **shared)


def _launch_fused(
    rows: Rows,
    added: Rows | None,
    weights: tuple[Tensor, Tensor, Tensor, Tensor | None],
    width: Prefix,
    layout: Layout,
    config: BlockConfig,
    *,
    relu: bool,
    order: Tensor | None,
    precision: str,
) -> Tensor:
    """Launch `decoder_block_fused`; arguments as those of `decoder_block_forward`, checked."""
    batch, blocks = rows.data.shape[0], rows.per_item + layout.taps - 1
    out = rows.data.new_empty(batch, blocks * layout.span, layout.channels)
    skip, skip_stride, skip_channels = addend(added)
    glu_weight, glu_bias, conv_weight, conv_bias = weights
    arguments = launching.width_arguments(width, order, config.block_t, blocks, gathers=True)
    n_cols = triton.cdiv(layout.cols, config.block_c)
    launching.launch(
        decoder_block_fused,
        (launching.row_tiles(arguments, batch * blocks, blocks, config.block_t) * n_cols,),
        x_ptr=rows.data,
        skip_ptr=skip,
        glu_weight_ptr=glu_weight,
        glu_bias_ptr=glu_bias,
        conv_weight_ptr=conv_weight,
        conv_bias_ptr=conv_bias,
        out_ptr=out,
        stride_b=rows.stride_b,
        stride_skip=skip_stride,
        n_rows=batch * blocks,
        n_pos=rows.per_item,
        n_blocks=blocks,
        n_cols=n_cols,
        width=width.bound,
        CHANNELS=rows.channels,
        SKIP_CHANNELS=skip_channels,
        C=rows.length,
        OUT=layout,
        RELU=relu,
        PRECISION=precision,
        **arguments,
        **config.launch_options(),
    )
    return out


def decoder_block_backward(
    grad: Tensor,
    x: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    width: int | Tensor | FrameWidths,
    stride: int,
    channels: int,
    *,
    skip: Tensor | None = None,
    out: Tensor | None = None,
    order: tuple[Tensor, Tensor] | None = None,
    precision: str = "ieee",
    weight_grads: bool = True,
) -> tuple[Tensor | None, ...]:
    """Gradients of `decoder_block_forward` at ``x`` (and ``skip``) and its weights and biases; deterministic.

    The hidden channels are computed again and written out together with the gradient at their values and gates; the
    other gradients are products over these. Those of inactive channels are zero.

    Args:
        grad: ``[B, S T + K - S, C_out]``.
        x: as in the forward pass, like those that follow.
        glu_weight: ``[C, 2, C]``.
        glu_bias: ``[C, 2]``.
        conv_weight: ``[C, K * C_out]``.
        width: a number, an integer tensor ``[B, T]``, or `FrameWidths`.
        stride: ``S``.
        channels: ``C_out``.
        skip: ``[B, T, C]`` or None.
        out: the forward's result where it ended in a ReLU, else None.
        order: as in the forward pass.
        precision: of float32 products.
        weight_grads: whether gradients at weights and biases are wanted; None stands in for each otherwise.

    Returns:
        Gradients at ``x``, ``glu_weight``, ``glu_bias``, ``conv_weight`` and ``conv_bias``. The first is that at
        ``skip`` too; the last is that of a bias whether or not there was one.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    # The weights' gradients read x + skip as well, so that the sum is written out once here.
    x = x if skip is None else x + skip
    rows, _, reach, prefix = checks.check_decoder(
        x, None, glu_weight, glu_bias, conv_weight, None, width, stride, channels, precision
    )
    batch, time, _ = x.shape
    row_order, _ = checks.check_orders(order, batch * time, batch * (time + reach - 1))
    grad = (grad if out is None else torch.where(out > 0, grad, 0)).contiguous()
    shape = (batch, (time + reach - 1) * stride, channels)
    checks.check_shapes(conv_weight=(conv_weight, tuple(conv_weight.shape)), grad=(grad, shape))
    windows = Rows(grad, time, stride, conv_weight.shape[1])
    shared = {"order": row_order, "precision": precision}
    grad_hidden = window_product(windows, conv_weight, None, prefix, **shared)
    hidden, halves = output_cut(rows, None, glu_weight, glu_bias, prefix, grad=grad_hidden, **shared)
    glu_grads = output_cut_grads(halves, rows, glu_weight, glu_bias, prefix, precision, weight_grads=weight_grads)
    if not weight_grads:
        return *glu_grads, None, None
    grad_conv, _ = weight_grad(Rows.positions(hidden), windows, prefix.per_row(time), bias=False, precision=precision)
    return *glu_grads, grad_conv.flatten(1), grad.sum((0, 1))


def decoder_order(width: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Orders from narrow to wide of the rows, and of the output blocks by the widest of the rows that each gathers.

    Args:
        width: integer ``[B, T]``.
        reach: ``K / S``.

    Returns:
        int32 ``[B * T]`` and ``[B * (T + reach - 1)]``.
    """
    padded = torch.nn.functional.pad(width, (reach - 1, reach - 1))
    return by_width(width), by_width(padded.unfold(1, reach, 1).amax(-1))
