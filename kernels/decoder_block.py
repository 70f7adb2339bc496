"""Decoder block: ``overlap_add(GLU(x @ W3[:k].T + b3[:k]) @ W4[:k])``, a pointwise layer and a transposed convolution.

Dimensions:
    rows: ``B * T`` input positions.
    blocks: ``B * n_blocks`` output blocks of ``S`` positions, ``COLS = S * C_out`` elements; an item has
        ``n_blocks = T + REACH - 1`` of them, where ``REACH = K / S``. Block ``m`` sums tap ``i`` of row ``m - i``.
    C: input and hidden channels. A row of width ``k`` has the leading ``k`` hidden channels active.

A hidden channel's value and gate rows lie side by side, so both come from one product with ``2 k`` leading rows. The
fused kernel gathers: every output block computes the hidden channels of its ``REACH`` rows, loops over them up to
their largest width, and never writes them out. As they are computed once per tap and per tile of columns, two launches
are cheaper where the columns do not fit one tile. The backward pass writes them out too.
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
    load_row_tile,
    load_tap_rows,
    load_weight_block,
    overlap_add,
    row_product,
    row_starts,
    select_tile,
    store_blocks,
    weight_grad,
)


@triton.jit
def _glu_product(
    row_ptr,  # (BLOCK_T,) pointers to rows of C
    skip_ptr,  # (BLOCK_T,) pointers to rows that are added to them, or None
    weight_ptr,  # (C, 2, C), rows [:k] are read
    bias_ptr,  # (C, 2)
    h,
    k_max,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Values and sigmoids of the gates of hidden channels ``[h, h + BLOCK_H)``, fp32."""
    halves = tl.minimum(2 * h + tl.arange(0, 2 * BLOCK_H), 2 * k_max - 1)
    acc = tl.zeros([BLOCK_T, 2 * BLOCK_H], dtype=tl.float32)
    acc = row_product(acc, row_ptr, skip_ptr, weight_ptr, halves, C, BLOCK_K, PRECISION)
    acc += tl.load(bias_ptr + halves).to(tl.float32)[None, :]
    value, gate = tl.split(tl.reshape(acc, [BLOCK_T, BLOCK_H, 2]))
    return value, tl.sigmoid(gate)


@triton.jit(do_not_specialize=["n_rows", "n_pos", "n_blocks", "width"])
def _fused_kernel(
    x_ptr,  # (B, n_pos, C), item stride stride_b
    skip_ptr,  # (B, n_pos, C), item stride stride_skip, or None
    glu_weight_ptr,  # (C, 2, C), rows [:k] are read
    glu_bias_ptr,  # (C, 2)
    conv_weight_ptr,  # (C, REACH * COLS), rows [:k] are read
    conv_bias_ptr,  # (OUT_CHANNELS,) or None
    out_ptr,  # (n_rows, COLS)
    width_ptr,  # (B * n_pos,) int32 or None
    order_ptr,  # (n_rows,) int32 or None: of the output blocks
    steps_ptr,  # (row tiles, column tiles) int32 or None
    stride_b,
    stride_skip,
    n_rows,  # B * n_blocks
    n_pos,
    n_blocks,
    width,
    C: tl.constexpr,
    COLS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    REACH: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks, mask_t, _, _ = load_row_tile(order_ptr, None, width, n_rows, C, BLOCK_T)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    steps = 0
    for tap in range(0, REACH):
        rows, row_width, k_max = load_tap_rows(blocks, mask_t, tap, width_ptr, n_pos, n_blocks, width, C)
        row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, C)
        add_ptr = None if skip_ptr is None else skip_ptr + row_starts(rows, n_pos, stride_skip, C)
        for h in range(0, k_max, BLOCK_H):
            value, gate = _glu_product(
                row_ptr, add_ptr, glu_weight_ptr, glu_bias_ptr, h, k_max, C, BLOCK_T, BLOCK_H, BLOCK_K, PRECISION
            )
            offs_h = h + tl.arange(0, BLOCK_H)
            hidden = tl.where(offs_h[None, :] < row_width[:, None], value * gate, 0.0)
            units = tl.minimum(offs_h, k_max - 1) * REACH + tap
            weight = load_weight_block(conv_weight_ptr, units, offs_c, COLS, COLS % BLOCK_C == 0)
            acc = tl.dot(hidden.to(weight.dtype), weight, acc, input_precision=PRECISION)
            steps += 1
    store_blocks(
        acc,
        conv_bias_ptr,
        out_ptr,
        blocks,
        mask_t,
        offs_c,
        n_blocks,
        n_blocks * (COLS // OUT_CHANNELS),
        COLS,
        OUT_CHANNELS,
        RELU,
    )
    if steps_ptr is not None:
        tl.store(steps_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), steps)


@triton.jit(do_not_specialize=["n_rows", "n_pos", "width"])
def _hidden_kernel(
    x_ptr,  # (B, n_pos, C), item stride stride_b
    skip_ptr,  # (B, n_pos, C), item stride stride_skip, or None
    weight_ptr,  # (C, 2, C), rows [:k] are read
    bias_ptr,  # (C, 2)
    out_ptr,  # (n_rows, C), columns [:k] of a row are written
    grad_ptr,  # for the gradient: windows of LENGTH elements, n_pos an item, STEP apart; or None
    conv_weight_ptr,  # (C, LENGTH) for the gradient, or None
    grad_out_ptr,  # (n_rows, C, 2) for the gradient at the input of the GLU, or None
    width_ptr,  # (n_rows,) int32 or None
    order_ptr,  # (n_rows,) int32 or None
    stride_b,
    stride_skip,
    stride_grad,
    n_rows,
    n_pos,
    width,
    C: tl.constexpr,
    STEP: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Hidden channels, and for the backward pass the gradient at the values and gates they come from."""
    rows, mask_t, _, k_max = load_row_tile(order_ptr, width_ptr, width, n_rows, C, BLOCK_T)
    h = tl.program_id(1) * BLOCK_H
    if h < k_max:
        offs_h = h + tl.arange(0, BLOCK_H)
        row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, C)
        add_ptr = None if skip_ptr is None else skip_ptr + row_starts(rows, n_pos, stride_skip, C)
        value, gate = _glu_product(
            row_ptr, add_ptr, weight_ptr, bias_ptr, h, k_max, C, BLOCK_T, BLOCK_H, BLOCK_K, PRECISION
        )
        mask = mask_t[:, None] & (offs_h < C)[None, :]
        starts = rows.to(tl.int64)[:, None] * C + offs_h[None, :]
        tl.store(out_ptr + starts, value * gate, mask=mask)
        if grad_ptr is not None:
            units = tl.minimum(offs_h, k_max - 1)
            window_ptr = grad_ptr + row_starts(rows, n_pos, stride_grad, STEP)
            grad = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
            grad = row_product(grad, window_ptr, None, conv_weight_ptr, units, LENGTH, BLOCK_K, PRECISION)
            both = tl.reshape(tl.join(grad * gate, grad * value * gate * (1.0 - gate)), [BLOCK_T, 2 * BLOCK_H])
            offs_j = 2 * h + tl.arange(0, 2 * BLOCK_H)
            ptrs = grad_out_ptr + rows.to(tl.int64)[:, None] * (2 * C) + offs_j[None, :]
            tl.store(ptrs, both, mask=mask_t[:, None] & (offs_j < 2 * C)[None, :])


@dataclass(frozen=True)
class DecoderBlockConfig:
    """Launch parameters of the forward pass.

    Args:
        fused: one launch that keeps the hidden channels on chip, or two that write them out.
        block_t: output blocks of a tile.
        block_c: columns (positions of a block x output channels) of a tile.
        block_h: hidden channels per step of the loop over the width.
        block_k: input channels per step.
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
) -> DecoderBlockConfig:
    """Launch parameters for a tile that fits its registers; spills were looked for with ahead-of-time builds.

    Args:
        shape: output blocks, columns ``S * C_out`` of a block, channels ``C``.
        dtype: of all tensors.
        precision: of float32 products.
        capability: see `launching.capability`.

    Returns:
        A fused configuration where one tile holds all columns, else one of two launches.
    """
    blocks, cols, channels = shape
    half = dtype != torch.float32
    fma = not half and precision != "tf32"
    # Without matrix instructions arithmetic is what costs: no hidden channel is worth computing once per tap.
    block_c = min(max(triton.next_power_of_2(cols), 16), 16 if fma else 256)
    block_t = 64 if fma or block_c > 128 or (capability < 90 and block_c > 64) else 128
    block_t = min(max(triton.next_power_of_2(blocks), 16), block_t)
    block_k = min(max(triton.next_power_of_2(channels), 16), 16 if fma else 64 if half else 32)
    num_warps = 8 if fma or block_t * block_c > 4096 else 4
    return DecoderBlockConfig(cols <= block_c, block_t, block_c, 16, block_k, num_warps, 2 if fma else 3)


def launch_grid(shape: tuple[int, int, int], config: DecoderBlockConfig) -> tuple[int, int]:
    """Row tiles and column tiles of the fused kernel for ``shape`` (as in `select_config`)."""
    return triton.cdiv(shape[0], config.block_t), triton.cdiv(shape[1], config.block_c)


def decoder_block_forward(
    x: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    width: int | Tensor,
    stride: int,
    channels: int,
    *,
    skip: Tensor | None = None,
    conv_bias: Tensor | None = None,
    relu: bool = False,
    order: tuple[Tensor, Tensor] | None = None,
    precision: str = "ieee",
    config: DecoderBlockConfig | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Run a decoder block; see `slimse.ops.decoder_block` for what it computes.

    Args:
        x: ``[B, T, C]``; slices along batch and time are read where they lie.
        glu_weight: ``[C, 2, C]``.
        glu_bias: ``[C, 2]``.
        conv_weight: ``[C, K * C_out]``, taps major.
        width: active hidden channels: a number, or an integer tensor ``[B, T]``.
        stride: ``S``; ``K`` must be a multiple of it.
        channels: ``C_out``.
        skip: ``[B, T, C]``, added to ``x`` on the way in.
        conv_bias: ``[C_out]``, added to the output.
        relu: whether a ReLU follows, for outputs that await no more overlap.
        order: int32 ``[B * T]`` and ``[B * (T + K / S - 1)]``, permutations of the rows and of the output blocks that
            say which share a tile; `decoder_order` makes tiles of like width. The result is the same whatever they are.
        precision: of float32 products: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.
        config: launch parameters; `select_config` by default.
        steps: int32, shape `launch_grid`, for tests: receives the steps over hidden channels that each tile took.

    Returns:
        ``[B, S T + K - S, C_out]``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    rows, added, reach = _check(x, skip, glu_weight, glu_bias, conv_weight, conv_bias, stride, channels)
    launching.check_precision(precision)
    batch, hidden_channels, cols = x.shape[0], x.shape[2], stride * channels
    blocks = x.shape[1] + reach - 1
    row_order, block_order = (None, None) if order is None else order
    launching.check_order(row_order, batch * x.shape[1])
    launching.check_order(block_order, batch * blocks)
    width, row_width = launching.split_width(width, hidden_channels, (batch, x.shape[1]))
    shape = (batch * blocks, cols, hidden_channels)
    config = config or select_config(shape, x.dtype, precision, launching.capability(x.device))
    launching.check_steps(steps, launch_grid(shape, config))
    if not config.fused or rows.count == 0:
        if steps is not None:
            raise ValueError(f"steps with {config}: expected a fused configuration and an input that is not empty")
        hidden, _ = _hidden(rows, added, glu_weight, glu_bias, None, None, width, row_width, row_order, precision)
        return overlap_add(
            hidden,
            conv_weight,
            conv_bias,
            width,
            row_width,
            batch=batch,
            reach=reach,
            channels=channels,
            n_time=blocks * stride,
            relu=relu,
            order=block_order,
            precision=precision,
        )
    out = x.new_empty(batch, blocks * stride, channels)
    launching.launch(
        _fused_kernel,
        launch_grid(shape, config),
        rows.data,
        None if added is None else added.data,
        glu_weight,
        glu_bias,
        conv_weight,
        conv_bias,
        out,
        row_width,
        block_order,
        steps,
        rows.stride_b,
        0 if added is None else added.stride_b,
        batch * blocks,
        x.shape[1],
        blocks,
        width,
        C=hidden_channels,
        COLS=cols,
        OUT_CHANNELS=channels,
        REACH=reach,
        RELU=relu,
        BLOCK_T=config.block_t,
        BLOCK_C=config.block_c,
        BLOCK_H=config.block_h,
        BLOCK_K=config.block_k,
        PRECISION=precision,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def decoder_block_backward(
    grad: Tensor,
    x: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    width: int | Tensor,
    stride: int,
    channels: int,
    *,
    skip: Tensor | None = None,
    out: Tensor | None = None,
    order: tuple[Tensor, Tensor] | None = None,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `decoder_block_forward` at ``x`` (and ``skip``) and its weights and biases; deterministic.

    The hidden channels are computed again and written out together with the gradient at their values and gates; the
    other gradients are products over these. Gradients of inactive channels are zero.

    Args:
        grad: ``[B, S T + K - S, C_out]``.
        x: as in the forward pass, like those that follow.
        glu_weight: ``[C, 2, C]``.
        glu_bias: ``[C, 2]``.
        conv_weight: ``[C, K * C_out]``.
        width: a number, or an integer tensor ``[B, T]``.
        stride: ``S``.
        channels: ``C_out``.
        skip: ``[B, T, C]`` or None.
        out: the forward's result where it ended in a ReLU, else None.
        order: as in the forward pass.
        precision: of float32 products.

    Returns:
        Gradients at ``x``, ``glu_weight``, ``glu_bias``, ``conv_weight`` and ``conv_bias``. The first is that at
        ``skip`` too; the last is that of a bias whether or not there was one.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    # The weights' gradients read x + skip as well, so that the sum is written out once here.
    x = x if skip is None else x + skip
    rows, _, reach = _check(x, None, glu_weight, glu_bias, conv_weight, None, stride, channels)
    launching.check_precision(precision)
    batch, time, inputs = x.shape
    grad = (grad if out is None else torch.where(out > 0, grad, 0)).contiguous()
    launching.check_shapes(
        glu_bias=(glu_bias, (inputs, 2)), grad=(grad, (batch, (time + reach - 1) * stride, channels))
    )
    width, row_width = launching.split_width(width, inputs, (batch, time))
    row_order = None if order is None else order[0]
    launching.check_order(row_order, batch * time)
    windows = Rows(grad, time, stride * channels, conv_weight.shape[1])
    hidden, halves = _hidden(
        rows, None, glu_weight, glu_bias, windows, conv_weight, width, row_width, row_order, precision
    )
    grad_x = overlap_add(
        halves,
        glu_weight,
        None,
        width,
        row_width,
        batch=batch,
        reach=1,
        unit=2,
        channels=inputs,
        n_time=time,
        precision=precision,
    )
    grad_glu, grad_glu_bias = weight_grad(halves, rows, width, row_width, unit=2, bias=True, precision=precision)
    grad_conv, _ = weight_grad(hidden, windows, width, row_width, bias=False, precision=precision)
    return grad_x, grad_glu.view_as(glu_weight), grad_glu_bias.view_as(glu_bias), grad_conv, grad.sum((0, 1))


def decoder_order(width: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Orders from narrow to wide of the rows, and of the output blocks by the widest of the rows that each gathers.

    Args:
        width: integer ``[B, T]``.
        reach: ``K / S``.

    Returns:
        int32 ``[B * T]`` and ``[B * (T + reach - 1)]``.
    """
    padded = torch.nn.functional.pad(width, (reach - 1, reach - 1))
    return launching.by_width(width), launching.by_width(padded.unfold(1, reach, 1).amax(-1))


def _check(
    x: Tensor,
    skip: Tensor | None,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    stride: int,
    channels: int,
) -> tuple[Rows, Rows | None, int]:
    """Check what a block is given; return its input rows, those added to them, and ``K / S``."""
    hidden = conv_weight.shape[0]
    length = conv_weight.shape[1] if conv_weight.ndim == 2 else 0
    bias = {} if conv_bias is None else {"conv_bias": (conv_bias, (channels,))}
    launching.check_shapes(
        glu_weight=(glu_weight, (hidden, 2, hidden)),
        glu_bias=(glu_bias, (hidden, 2)),
        conv_weight=(conv_weight, (hidden, length)),
        **bias,
    )
    launching.check_input("x", x, conv_weight, hidden)
    if stride < 1 or channels < 1 or length == 0 or length % (stride * channels):
        expected = f"a multiple of stride = {stride} x {channels} channels"
        raise ValueError(f"conv_weight has rows of {length} elements: expected {expected}")
    if skip is not None:
        launching.check_input("skip", skip, conv_weight, hidden)
        if skip.shape != x.shape:
            raise ValueError(f"skip has shape {tuple(skip.shape)}: expected {tuple(x.shape)}, as x")
    return Rows.positions(x), None if skip is None else Rows.positions(skip), length // (stride * channels)


def _hidden(
    rows: Rows,
    added: Rows | None,
    glu_weight: Tensor,
    glu_bias: Tensor,
    windows: Rows | None,
    conv_weight: Tensor | None,
    width: int,
    row_width: Tensor | None,
    order: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor | None]:
    """Launch `_hidden_kernel`; with the ``windows`` of the output's gradient also for the gradient."""
    channels = rows.length
    out = glu_weight.new_empty(rows.count, channels)
    grad_out = None if windows is None else glu_weight.new_empty(rows.count, 2 * channels)
    if rows.count == 0 or width == 0:
        return out, grad_out
    # Value and gate are one accumulator of twice the width.
    tile = select_tile(rows.count, 2 * width, out.dtype, precision)
    block_h = max(tile.cols // 2, 16)
    launching.launch(
        _hidden_kernel,
        (triton.cdiv(rows.count, tile.rows), triton.cdiv(width, block_h)),
        rows.data,
        None if added is None else added.data,
        glu_weight,
        glu_bias,
        out,
        None if windows is None else windows.data,
        conv_weight,
        grad_out,
        row_width,
        order,
        rows.stride_b,
        0 if added is None else added.stride_b,
        0 if windows is None else windows.stride_b,
        rows.count,
        rows.per_item,
        width,
        C=channels,
        STEP=1 if windows is None else windows.step,
        LENGTH=1 if windows is None else windows.length,
        BLOCK_T=tile.rows,
        BLOCK_H=block_h,
        BLOCK_K=tile.depth,
        PRECISION=precision,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out, grad_out
