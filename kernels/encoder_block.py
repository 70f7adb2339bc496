"""Encoder block: ``GLU(relu(window @ W1[:k].T + b1[:k]) @ W2[:k] + b2)`` on overlapping windows of the input.

Dimensions:
    rows: ``B * P`` output positions; row ``n`` is position ``n % n_pos`` of item ``n // n_pos``.
    window: ``K * C_in`` elements; windows start ``S`` positions of ``C_in`` elements apart, so that the matrix of all
        windows is the input itself, read with overlapping rows.
    C: hidden and output channels. A row of width ``k`` has the leading ``k`` hidden channels active.

The fused kernel loops over hidden channels up to the largest width of its rows and never writes them out. Where the
output does not fit one tile, every tile computes the hidden channels again; two launches, a convolution and a pointwise
layer with GLU, are then cheaper. The backward pass is made of these two as well.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks, launching
from .overlap_add import overlap_add
from .prefix_gemm import (
    load_row_block,
    load_row_tile,
    load_row_widths,
    load_weight_block,
    product,
    program_tile,
    row_product,
    row_starts,
    weight_grad,
)
from .rows import FrameWidths, Prefix, Rows
from .slim_linear_glu import input_cut
from .tiles import AMPERE, BlockConfig, Chip, block_config, chip_of
from .window_gemm import window_product


@triton.jit
def _chunk_product(
    acc,
    chunk,  # (BLOCK_T, BLOCK_K): elements ``[depth, depth + BLOCK_K)`` of the windows
    weight_ptr,  # (C, LENGTH)
    units,
    depth,
    LENGTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc + chunk @ weight[units].T`` over the elements of the chunk."""
    weight = load_row_block(weight_ptr + units * LENGTH, depth, LENGTH, BLOCK_K)
    return product(chunk, tl.trans(weight), acc, PRECISION=PRECISION)


@triton.jit(do_not_specialize=["stride_b", "n_rows", "n_pos", "n_cols", "n_frames", "width"])
def encoder_block_fused(
    x_ptr,  # (B, T, C_in), items as `Rows.stride_b` says
    conv_weight_ptr,  # (C, window), rows [:k] are read
    conv_bias_ptr,  # (C,)
    glu_weight_ptr,  # (C, 2 * C), rows [:k] are read
    glu_bias_ptr,  # (2 * C,)
    y_ptr,  # (n_rows, C)
    width_ptr,  # as those of `load_row_widths`
    counts_ptr,
    order_ptr,  # as that of `load_row_tile`
    stride_b,
    n_rows,
    n_pos,
    n_cols,  # tiles of channels
    n_frames,
    width,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,  # `Geometry` of the windows
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All of a block for a tile of rows.

    A window of up to four chunks is read once and kept, a longer one at every step over the hidden channels.
    """
    tile, column = program_tile(n_cols)
    rows, mask_t = load_row_tile(order_ptr, tile, n_rows, n_pos, n_frames, FRAMES, BLOCK_T)
    row_width, k_max = load_row_widths(width_ptr, counts_ptr, rows, mask_t, n_pos, n_frames, width, C, FRAMES)
    offs_c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, ROWS.stride, ROWS.channels, ROWS.aligned)
    value = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    gate = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    if ROWS.length <= 4 * BLOCK_K:
        window_0 = load_row_block(row_ptr, 0, ROWS.length, BLOCK_K)
        if ROWS.length > BLOCK_K:
            window_1 = load_row_block(row_ptr, BLOCK_K, ROWS.length, BLOCK_K)
        if ROWS.length > 2 * BLOCK_K:
            window_2 = load_row_block(row_ptr, 2 * BLOCK_K, ROWS.length, BLOCK_K)
        if ROWS.length > 3 * BLOCK_K:
            window_3 = load_row_block(row_ptr, 3 * BLOCK_K, ROWS.length, BLOCK_K)
    for h in range(0, k_max, BLOCK_H):
        offs_h = h + tl.arange(0, BLOCK_H)
        units = tl.minimum(offs_h, k_max - 1)
        acc = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
        if ROWS.length <= 4 * BLOCK_K:
            acc = _chunk_product(acc, window_0, conv_weight_ptr, units, 0, ROWS.length, BLOCK_K, PRECISION)
            if ROWS.length > BLOCK_K:
                acc = _chunk_product(acc, window_1, conv_weight_ptr, units, BLOCK_K, ROWS.length, BLOCK_K, PRECISION)
            if ROWS.length > 2 * BLOCK_K:
                acc = _chunk_product(
                    acc, window_2, conv_weight_ptr, units, 2 * BLOCK_K, ROWS.length, BLOCK_K, PRECISION
                )
            if ROWS.length > 3 * BLOCK_K:
                acc = _chunk_product(
                    acc, window_3, conv_weight_ptr, units, 3 * BLOCK_K, ROWS.length, BLOCK_K, PRECISION
                )
        else:
            acc = row_product(acc, row_ptr, None, conv_weight_ptr, units, ROWS.length, ROWS.length, BLOCK_K, PRECISION)
        acc = tl.maximum(acc + tl.load(conv_bias_ptr + units).to(tl.float32)[None, :], 0.0)
        hidden = tl.where(offs_h[None, :] < row_width[:, None], acc, 0.0).to(glu_weight_ptr.dtype.element_ty)
        weight_value = load_weight_block(glu_weight_ptr, 2 * units, offs_c, C, C % BLOCK_C == 0)
        value = product(hidden, weight_value, value, PRECISION=PRECISION)
        weight_gate = load_weight_block(glu_weight_ptr, 2 * units + 1, offs_c, C, C % BLOCK_C == 0)
        gate = product(hidden, weight_gate, gate, PRECISION=PRECISION)
    mask_c = offs_c < C
    value += tl.load(glu_bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(glu_bias_ptr + C + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + rows.to(tl.int64)[:, None] * C + offs_c[None, :]
    tl.store(y_ptrs, value * tl.sigmoid(gate), mask=mask_t[:, None] & mask_c[None, :])


def select_config(
    shape: tuple[int, int, int], dtype: torch.dtype, precision: str = "ieee", chip: Chip = AMPERE
) -> BlockConfig:
    """Launch parameters for rows, window elements ``K * C_in``, channels ``C``; fused where a tile has all of these."""
    rows, window, channels = shape
    return block_config("encoder_block", (rows, channels, window), dtype, precision, chip)


def encoder_block_forward(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    width: int | Tensor | FrameWidths,
    stride: int,
    *,
    order: Tensor | None = None,
    precision: str = "ieee",
    config: BlockConfig | None = None,
) -> Tensor:
    """Run an encoder block; see `slimse.ops.encoder_block` for what it computes.

    Args:
        x: ``[B, T, C_in]``; slices along batch and time are read where they lie.
        conv_weight: ``[C, K * C_in]``, taps major.
        conv_bias: ``[C]``.
        glu_weight: ``[C, 2 C]``.
        glu_bias: ``[2 C]``.
        width: active hidden channels: a number, an integer tensor ``[B, P]``, or `FrameWidths` of the ``P`` positions.
        stride: ``S``; ``K`` must be a multiple of it.
        order: int32 ``[B * P]``, a permutation of the rows that says which share a tile; `launching.by_width` makes
            tiles of rows of like width. The result is the same whatever it is.
        precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        config: launch parameters; `select_config` by default.

    Returns:
        ``[B, P, C]``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    windows, prefix = _check(x, conv_weight, conv_bias, glu_weight, glu_bias, width, stride, order, precision)
    channels = conv_weight.shape[0]
    shape = (windows.count, windows.length, channels)
    config = config or select_config(shape, x.dtype, precision, chip_of(x.device))
    if not config.fused:
        hidden = window_product(windows, conv_weight, conv_bias, prefix, relu=True, order=order, precision=precision)
        rows = Rows.positions(hidden)
        return input_cut(rows, None, glu_weight, glu_bias, prefix, order=order, precision=precision)
    y = x.new_empty(x.shape[0], windows.per_item, channels)
    if y.numel() == 0:
        return y
    arguments = launching.width_arguments(prefix, order, config.block_t, windows.per_item)
    n_cols = triton.cdiv(channels, config.block_c)
    launching.launch(
        encoder_block_fused,
        (launching.row_tiles(arguments, windows.count, windows.per_item, config.block_t) * n_cols,),
        x_ptr=windows.data,
        conv_weight_ptr=conv_weight,
        conv_bias_ptr=conv_bias,
        glu_weight_ptr=glu_weight,
        glu_bias_ptr=glu_bias,
        y_ptr=y,
        stride_b=windows.stride_b,
        n_rows=windows.count,
        n_pos=windows.per_item,
        n_cols=n_cols,
        width=prefix.bound,
        ROWS=windows.geometry,
        C=channels,
        PRECISION=precision,
        **arguments,
        **config.launch_options(),
    )
    return y


def encoder_block_backward(
    grad: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    width: int | Tensor | FrameWidths,
    stride: int,
    *,
    order: Tensor | None = None,
    precision: str = "ieee",
    input_grad: bool = True,
    weight_grads: bool = True,
) -> tuple[Tensor | None, ...]:
    """Gradients of `encoder_block_forward` at ``x`` and the four weights; deterministic.

    The hidden channels are computed again and written out with their gradient; the weights' gradients are products
    over them, that of ``x`` gathers its ``K / S`` windows. Gradients of inactive channels are zero.

    Args:
        grad: ``[B, P, C]``.
        x: as in the forward pass, like all that follow.
        conv_weight: ``[C, K * C_in]``.
        conv_bias: ``[C]``.
        glu_weight: ``[C, 2 C]``.
        glu_bias: ``[2 C]``.
        width: a number, an integer tensor ``[B, P]``, or `FrameWidths`.
        stride: ``S``.
        order: int32 ``[B * P]`` or None.
        precision: of float32 products.
        input_grad: whether the gradient at ``x`` is wanted; None stands in for it otherwise.
        weight_grads: whether gradients at weights and biases are wanted; None stands in for each otherwise.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    windows, prefix = _check(x, conv_weight, conv_bias, glu_weight, glu_bias, width, stride, order, precision)
    by_row, grad = prefix.per_row(windows.per_item), grad.contiguous()
    shape = (x.shape[0], windows.per_item, conv_weight.shape[0])
    checks.check_shapes(conv_weight=(conv_weight, tuple(conv_weight.shape)), grad=(grad, shape))
    shared = {"order": order, "precision": precision}
    hidden = window_product(windows, conv_weight, conv_bias, prefix, relu=True, **shared)
    hidden_rows = Rows.positions(hidden)
    grad_glu = Rows.positions(input_cut(hidden_rows, None, glu_weight, glu_bias, prefix, grad=grad, **shared))
    grad_hidden = Rows.positions(window_product(grad_glu, glu_weight, None, prefix, forward=hidden, **shared))
    grad_x = None
    if input_grad:
        grad_x = overlap_add(
            grad_hidden,
            conv_weight,
            None,
            prefix,
            channels=x.shape[2],
            n_time=x.shape[1],
            stride=stride,
            precision=precision,
        )
    if not weight_grads:
        return grad_x, None, None, None, None
    grad_conv, grad_conv_bias = weight_grad(grad_hidden, windows, by_row, bias=True, precision=precision)
    grad_glu_weight, _ = weight_grad(hidden_rows, grad_glu, by_row, bias=False, precision=precision)
    return grad_x, grad_conv.flatten(1), grad_conv_bias, grad_glu_weight.flatten(1), grad_glu.data.sum((0, 1))


def _check(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    width: int | Tensor | FrameWidths,
    stride: int,
    order: Tensor | None,
    precision: str,
) -> tuple[Rows, Prefix]:
    """Check what a block is given and return its windows and its width."""
    channels, window = conv_weight.shape if conv_weight.ndim == 2 else (0, 0)
    checks.check_shapes(
        conv_weight=(conv_weight, (channels, window)),
        conv_bias=(conv_bias, (channels,)),
        glu_weight=(glu_weight, (channels, 2 * channels)),
        glu_bias=(glu_bias, (2 * channels,)),
    )
    checks.check_input("x", x, conv_weight, x.shape[-1])
    if stride < 1 or window == 0 or window % (stride * x.shape[2]):
        expected = f"a multiple of stride = {stride} x {x.shape[2]} channels"
        raise ValueError(f"windows of {window} elements: expected {expected}")
    windows = Rows.windows(x, stride, window)
    checks.check_precision(precision)
    checks.check_order(order, windows.count)
    return windows, checks.split_width("width", width, channels, (x.shape[0], windows.per_item), frames=True)
