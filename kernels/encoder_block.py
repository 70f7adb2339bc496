"""Encoder block: ``GLU(relu(window @ W1[:k].T + b1[:k]) @ W2[:k] + b2)`` on overlapping windows of the input.

Dimensions:
    rows: ``B * P`` output positions; row ``n`` is position ``n % n_pos`` of item ``n // n_pos``.
    WINDOW: ``K * C_in`` elements of a window; windows start ``STEP = S * C_in`` elements apart, so that the matrix of
        all windows is the input itself, read with overlapping rows.
    C: hidden and output channels. A row of width ``k`` has the leading ``k`` hidden channels active.

The fused kernel loops over hidden channels up to the largest width of its rows and never writes them out. Where the
output does not fit one tile, every tile computes the hidden channels again; two launches are then cheaper. The
backward pass writes them out too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .launching import Rows
from .prefix_gemm import (
    load_hidden_block,
    load_row_block,
    load_row_tile,
    load_weight_block,
    overlap_add,
    row_product,
    row_starts,
    select_tile,
    weight_grad,
)


@triton.jit(do_not_specialize=["n_rows", "n_pos", "width"])
def _fused_kernel(
    x_ptr,  # (B, T, C_in), item stride stride_b
    conv_weight_ptr,  # (C, WINDOW), rows [:k] are read
    conv_bias_ptr,  # (C,)
    glu_weight_ptr,  # (C, 2 * C), rows [:k] are read
    glu_bias_ptr,  # (2 * C,)
    y_ptr,  # (n_rows, C)
    width_ptr,  # (n_rows,) int32 or None
    order_ptr,  # (n_rows,) int32 or None
    steps_ptr,  # (row tiles, channel tiles) int32 or None
    stride_b,
    n_rows,
    n_pos,
    width,
    STEP: tl.constexpr,
    WINDOW: tl.constexpr,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows, mask_t, row_width, k_max = load_row_tile(order_ptr, width_ptr, width, n_rows, C, BLOCK_T)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, STEP)
    value = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    gate = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    steps = 0
    if WINDOW <= BLOCK_K:
        window = load_row_block(row_ptr, 0, WINDOW, BLOCK_K)
    for h in range(0, k_max, BLOCK_H):
        offs_h = h + tl.arange(0, BLOCK_H)
        units = tl.minimum(offs_h, k_max - 1)
        acc = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
        if WINDOW <= BLOCK_K:
            weight = load_row_block(conv_weight_ptr + units * WINDOW, 0, WINDOW, BLOCK_K)
            acc = tl.dot(window, tl.trans(weight), acc, input_precision=PRECISION)
        else:
            acc = row_product(acc, row_ptr, None, conv_weight_ptr, units, WINDOW, BLOCK_K, PRECISION)
        acc = tl.maximum(acc + tl.load(conv_bias_ptr + units).to(tl.float32)[None, :], 0.0)
        hidden = tl.where(offs_h[None, :] < row_width[:, None], acc, 0.0).to(glu_weight_ptr.dtype.element_ty)
        weight_value = load_weight_block(glu_weight_ptr, 2 * units, offs_c, C, C % BLOCK_C == 0)
        value = tl.dot(hidden, weight_value, value, input_precision=PRECISION)
        weight_gate = load_weight_block(glu_weight_ptr, 2 * units + 1, offs_c, C, C % BLOCK_C == 0)
        gate = tl.dot(hidden, weight_gate, gate, input_precision=PRECISION)
        steps += 1
    mask_c = offs_c < C
    value += tl.load(glu_bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(glu_bias_ptr + C + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + rows.to(tl.int64)[:, None] * C + offs_c[None, :]
    tl.store(y_ptrs, value * tl.sigmoid(gate), mask=mask_t[:, None] & mask_c[None, :])
    if steps_ptr is not None:
        tl.store(steps_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), steps)


@triton.jit(do_not_specialize=["n_rows", "n_pos", "width"])
def _hidden_kernel(
    x_ptr,  # rows of LENGTH, row p of item b at b * stride_b + p * STEP
    weight_ptr,  # (C, LENGTH), rows [:k] are read
    bias_ptr,  # (C,), or None for the gradient
    forward_ptr,  # (n_rows, C) for the gradient: the hidden channels of the forward pass, or None
    out_ptr,  # (n_rows, C), columns [:k] of a row are written
    width_ptr,  # (n_rows,) int32 or None
    order_ptr,  # (n_rows,) int32 or None
    stride_b,
    n_rows,
    n_pos,
    width,
    STEP: tl.constexpr,
    LENGTH: tl.constexpr,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``relu(rows @ weight.T + bias)``, or ``(rows @ weight.T) * (forward > 0)``."""
    rows, mask_t, row_width, k_max = load_row_tile(order_ptr, width_ptr, width, n_rows, C, BLOCK_T)
    if tl.program_id(1) * BLOCK_H < k_max:
        offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        units = tl.minimum(offs_h, k_max - 1)
        acc = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
        row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, STEP)
        acc = row_product(acc, row_ptr, None, weight_ptr, units, LENGTH, BLOCK_K, PRECISION)
        if forward_ptr is None:
            acc = tl.maximum(acc + tl.load(bias_ptr + units).to(tl.float32)[None, :], 0.0)
        else:
            forward = load_hidden_block(forward_ptr, rows, row_width, offs_h, C, BLOCK_H)
            acc = tl.where(forward.to(tl.float32) > 0, acc, 0.0)
        out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * C + offs_h[None, :]
        tl.store(out_ptrs, acc, mask=mask_t[:, None] & (offs_h < C)[None, :])


@triton.jit(do_not_specialize=["n_rows", "width"])
def _glu_kernel(
    hidden_ptr,  # (n_rows, C), columns [:k] of a row are used
    weight_ptr,  # (C, 2 * C), rows [:k] are read
    bias_ptr,  # (2 * C,)
    grad_ptr,  # (n_rows, C) for the gradient: that of the output, or None
    out_ptr,  # (n_rows, C), or (n_rows, 2 * C) for the gradient
    width_ptr,  # (n_rows,) int32 or None
    order_ptr,  # (n_rows,) int32 or None
    n_rows,
    width,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``GLU(hidden @ weight + bias)``, or the gradient at the input of the GLU."""
    rows, mask_t, row_width, k_max = load_row_tile(order_ptr, width_ptr, width, n_rows, C, BLOCK_T)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    value = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    gate = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    for h in range(0, k_max, BLOCK_H):
        offs_h = h + tl.arange(0, BLOCK_H)
        units = tl.minimum(offs_h, k_max - 1)
        hidden = load_hidden_block(hidden_ptr, rows, row_width, offs_h, C, BLOCK_H)
        weight_value = load_weight_block(weight_ptr, 2 * units, offs_c, C, C % BLOCK_C == 0)
        value = tl.dot(hidden, weight_value, value, input_precision=PRECISION)
        weight_gate = load_weight_block(weight_ptr, 2 * units + 1, offs_c, C, C % BLOCK_C == 0)
        gate = tl.dot(hidden, weight_gate, gate, input_precision=PRECISION)
    mask_c = offs_c < C
    mask = mask_t[:, None] & mask_c[None, :]
    value += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias_ptr + C + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    gate = tl.sigmoid(gate)
    rows = rows.to(tl.int64)
    if grad_ptr is None:
        tl.store(out_ptr + rows[:, None] * C + offs_c[None, :], value * gate, mask=mask)
    else:
        grad = tl.load(grad_ptr + rows[:, None] * C + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        out_ptrs = out_ptr + rows[:, None] * (2 * C) + offs_c[None, :]
        tl.store(out_ptrs, grad * gate, mask=mask)
        tl.store(out_ptrs + C, grad * value * gate * (1.0 - gate), mask=mask)


@dataclass(frozen=True)
class EncoderBlockConfig:
    """Launch parameters of the forward pass.

    Args:
        fused: one launch that keeps the hidden channels on chip, or two that write them out.
        block_t: rows of a tile.
        block_c: output channels of a tile.
        block_h: hidden channels per step of the loop over the width.
        block_k: window elements per step.
        num_warps: of a program.
        num_stages: of the software pipeline.
    """

    fused: bool
    block_t: int
    block_c: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int


def select_config(
    shape: tuple[int, int, int], dtype: torch.dtype, precision: str = "ieee", capability: int = 80
) -> EncoderBlockConfig:
    """Launch parameters for a tile that fits its registers; spills were looked for with ahead-of-time builds.

    Args:
        shape: rows, window elements ``K * C_in``, channels ``C``.
        dtype: of all tensors.
        precision: of float32 products.
        capability: see `launching.capability`.

    Returns:
        A fused configuration where one tile holds all output channels, else one of two launches.
    """
    rows, window, channels = shape
    half = dtype != torch.float32
    fma = not half and precision != "tf32"
    block_c = min(max(triton.next_power_of_2(channels), 16), 128)
    block_t = 64 if fma or (capability < 90 and block_c > 32) else 128
    block_t = min(max(triton.next_power_of_2(rows), 16), 32 if fma and block_c == 128 else block_t)
    block_h = 16 if fma or (not half and block_c == 128) else 32
    block_k = min(max(triton.next_power_of_2(window), 16), 16 if fma else 64 if half else 32)
    num_warps = 8 if fma or block_t * block_c > 4096 else 4
    return EncoderBlockConfig(channels <= block_c, block_t, block_c, block_h, block_k, num_warps, 2 if fma else 3)


def launch_grid(shape: tuple[int, int, int], config: EncoderBlockConfig) -> tuple[int, int]:
    """Row tiles and channel tiles of the fused kernel for ``shape`` (as in `select_config`)."""
    return triton.cdiv(shape[0], config.block_t), triton.cdiv(shape[2], config.block_c)


def encoder_block_forward(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    width: int | Tensor,
    stride: int,
    *,
    order: Tensor | None = None,
    precision: str = "ieee",
    config: EncoderBlockConfig | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Run an encoder block; see `slimse.ops.encoder_block` for what it computes.

    Args:
        x: ``[B, T, C_in]``; slices along batch and time are read where they lie.
        conv_weight: ``[C, K * C_in]``, taps major.
        conv_bias: ``[C]``.
        glu_weight: ``[C, 2 C]``.
        glu_bias: ``[2 C]``.
        width: active hidden channels: a number, or an integer tensor ``[B, P]``.
        stride: ``S``; ``K`` must be a multiple of it.
        order: int32 ``[B * P]``, a permutation of the rows that says which share a tile; `launching.by_width` makes
            tiles of rows of like width. The result is the same whatever it is.
        precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        config: launch parameters; `select_config` by default.
        steps: int32, shape `launch_grid`, for tests: receives the steps over hidden channels that each tile took.

    Returns:
        ``[B, P, C]``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    windows = _check(x, conv_weight, conv_bias, glu_weight, glu_bias, stride)
    launching.check_precision(precision)
    launching.check_order(order, windows.count)
    batch, channels = x.shape[0], conv_weight.shape[0]
    width, row_width = launching.split_width(width, channels, (batch, windows.per_item))
    shape = (windows.count, windows.length, channels)
    config = config or select_config(shape, x.dtype, precision, launching.capability(x.device))
    launching.check_steps(steps, launch_grid(shape, config))
    y = x.new_empty(batch, windows.per_item, channels)
    if y.numel() == 0:
        return y
    if not config.fused:
        if steps is not None:
            raise ValueError(f"steps with {config}: expected a fused configuration")
        hidden = _hidden(windows, conv_weight, conv_bias, None, width, row_width, order, precision)
        _glu(hidden, glu_weight, glu_bias, None, y, width, row_width, order, precision)
        return y
    launching.launch(
        _fused_kernel,
        launch_grid(shape, config),
        windows.data,
        conv_weight,
        conv_bias,
        glu_weight,
        glu_bias,
        y,
        row_width,
        order,
        steps,
        windows.stride_b,
        windows.count,
        windows.per_item,
        width,
        STEP=windows.step,
        WINDOW=windows.length,
        C=channels,
        BLOCK_T=config.block_t,
        BLOCK_C=config.block_c,
        BLOCK_H=config.block_h,
        BLOCK_K=config.block_k,
        PRECISION=precision,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return y


def encoder_block_backward(
    grad: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    width: int | Tensor,
    stride: int,
    *,
    order: Tensor | None = None,
    precision: str = "ieee",
    input_grad: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
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
        width: a number, or an integer tensor ``[B, P]``.
        stride: ``S``.
        order: int32 ``[B * P]`` or None.
        precision: of float32 products.
        input_grad: whether the gradient at ``x`` is wanted; None stands in for it otherwise.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    windows = _check(x, conv_weight, conv_bias, glu_weight, glu_bias, stride)
    launching.check_precision(precision)
    launching.check_order(order, windows.count)
    batch, channels = x.shape[0], conv_weight.shape[0]
    grad = grad.contiguous()
    launching.check_shapes(conv_bias=(conv_bias, (channels,)), grad=(grad, (batch, windows.per_item, channels)))
    width, row_width = launching.split_width(width, channels, (batch, windows.per_item))
    hidden = _hidden(windows, conv_weight, conv_bias, None, width, row_width, order, precision)
    grad_glu = x.new_empty(batch, windows.per_item, 2 * channels)
    _glu(hidden, glu_weight, glu_bias, grad, grad_glu, width, row_width, order, precision)
    glu_rows = Rows.positions(grad_glu)
    grad_hidden = _hidden(glu_rows, glu_weight, None, hidden, width, row_width, order, precision)
    grad_x = None
    if input_grad:
        grad_x = overlap_add(
            grad_hidden,
            conv_weight,
            None,
            width,
            row_width,
            batch=batch,
            reach=windows.length // windows.step,
            channels=x.shape[2],
            n_time=x.shape[1],
            precision=precision,
        )
    grad_conv, grad_conv_bias = weight_grad(grad_hidden, windows, width, row_width, bias=True, precision=precision)
    grad_glu_weight, _ = weight_grad(hidden, glu_rows, width, row_width, bias=False, precision=precision)
    return grad_x, grad_conv, grad_conv_bias, grad_glu_weight, grad_glu.sum((0, 1))


def _check(
    x: Tensor, conv_weight: Tensor, conv_bias: Tensor, glu_weight: Tensor, glu_bias: Tensor, stride: int
) -> Rows:
    """Check what a block is given and return its windows."""
    channels, window = conv_weight.shape if conv_weight.ndim == 2 else (0, 0)
    launching.check_shapes(
        conv_weight=(conv_weight, (channels, window)),
        conv_bias=(conv_bias, (channels,)),
        glu_weight=(glu_weight, (channels, 2 * channels)),
        glu_bias=(glu_bias, (2 * channels,)),
    )
    launching.check_input("x", x, conv_weight, x.shape[-1])
    if stride < 1 or window == 0 or window % (stride * x.shape[2]):
        expected = f"a multiple of stride = {stride} x {x.shape[2]} channels"
        raise ValueError(f"windows of {window} elements: expected {expected}")
    return Rows.windows(x, stride, window)


def _hidden(
    rows: Rows,
    weight: Tensor,
    bias: Tensor | None,
    forward: Tensor | None,
    width: int,
    row_width: Tensor | None,
    order: Tensor | None,
    precision: str,
) -> Tensor:
    """Launch `_hidden_kernel` on the active channels."""
    channels = weight.shape[0]
    out = weight.new_empty(rows.count, channels)
    if rows.count == 0 or width == 0:
        return out
    tile = select_tile(rows.count, width, weight.dtype, precision)
    launching.launch(
        _hidden_kernel,
        (triton.cdiv(rows.count, tile.rows), triton.cdiv(width, tile.cols)),
        rows.data,
        weight,
        bias,
        forward,
        out,
        row_width,
        order,
        rows.stride_b,
        rows.count,
        rows.per_item,
        width,
        STEP=rows.step,
        LENGTH=rows.length,
        C=channels,
        BLOCK_T=tile.rows,
        BLOCK_H=tile.cols,
        BLOCK_K=tile.depth,
        PRECISION=precision,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


def _glu(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad: Tensor | None,
    out: Tensor,
    width: int,
    row_width: Tensor | None,
    order: Tensor | None,
    precision: str,
) -> None:
    """Launch `_glu_kernel`, which fills ``out``."""
    rows, channels = hidden.shape
    if rows == 0:
        return
    # Value and gate are two accumulators: together they are as wide as one tile.
    tile = select_tile(rows, 2 * channels, hidden.dtype, precision)
    block_c = max(tile.cols // 2, 16)
    launching.launch(
        _glu_kernel,
        (triton.cdiv(rows, tile.rows), triton.cdiv(channels, block_c)),
        hidden,
        weight,
        bias,
        grad,
        out,
        row_width,
        order,
        rows,
        width,
        C=channels,
        BLOCK_T=tile.rows,
        BLOCK_C=block_c,
        BLOCK_H=tile.depth,
        PRECISION=precision,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
