"""Pointwise layer and GLU in one launch, with the active prefix of its input or of its output.

Dimensions:
    rows: ``B * T`` positions.
    C_IN, C_OUT: channels before and after. A row of width ``k`` has the leading ``k`` input (output) channels active.

Cut on the input, a row of the weight holds all values, then all gates; cut on the output, a unit's value row and gate
row lie side by side, so that both come from one product with ``2 k`` leading rows. Either way the active part is a
run of leading rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks, launching
from .overlap_add import overlap_add
from .prefix_gemm import (
    load_cut_block,
    load_row_tile,
    load_row_widths,
    load_weight_block,
    product,
    program_tile,
    row_product,
    row_starts,
    weight_grad,
)
from .rows import Prefix, Rows, addend
from .tiles import Tile, chip_of, product_tile
from .window_gemm import window_product


@triton.jit
def glu_units(
    row_ptr,  # (BLOCK_T,) pointers to rows of C_IN
    skip_ptr,  # (BLOCK_T,) pointers to rows that are added to them, or None
    weight_ptr,  # (C_OUT, 2, C_IN), rows [:k] are read
    bias_ptr,  # (C_OUT, 2)
    h,
    k_max,
    C_IN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Values and sigmoids of the gates of units ``[h, h + BLOCK_H)``, fp32."""
    halves = tl.minimum(2 * h + tl.arange(0, 2 * BLOCK_H), 2 * k_max - 1)
    acc = tl.zeros([BLOCK_T, 2 * BLOCK_H], dtype=tl.float32)
    acc = row_product(acc, row_ptr, skip_ptr, weight_ptr, halves, C_IN, C_IN, BLOCK_K, PRECISION)
    acc += tl.load(bias_ptr + halves).to(tl.float32)[None, :]
    value, gate = tl.split(tl.reshape(acc, [BLOCK_T, BLOCK_H, 2]))
    return value, tl.sigmoid(gate)


@triton.jit(do_not_specialize=["stride_b", "stride_skip", "n_rows", "n_pos", "n_cols", "n_frames", "width"])
def slim_linear_glu_output(
    x_ptr,  # (B, n_pos, C_IN), item stride stride_b, positions CHANNELS apart
    skip_ptr,  # (B, n_pos, C_IN), item stride stride_skip, positions SKIP_CHANNELS apart, or None
    weight_ptr,  # (C_OUT, 2, C_IN), rows [:k] are read
    bias_ptr,  # (C_OUT, 2)
    grad_ptr,  # (n_rows, C_OUT) for the gradient: that of the output, columns [:k] of a row are read, or None
    out_ptr,  # (n_rows, C_OUT), columns [:k] of a row are written
    grad_out_ptr,  # (n_rows, C_OUT, 2) for the gradient at the input of the GLU, or None
    width_ptr,  # as those of `load_row_widths`
    counts_ptr,
    order_ptr,  # as that of `load_row_tile`
    stride_b,
    stride_skip,
    n_rows,
    n_pos,
    n_cols,  # tiles of columns
    n_frames,
    width,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SKIP_CHANNELS: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    ZERO: tl.constexpr,  # whether inactive columns are written as zeros
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Units, and for the backward pass the gradient at the values and gates they come from."""
    tile, column = program_tile(n_cols)
    rows, mask_t = load_row_tile(order_ptr, tile, n_rows, n_pos, n_frames, FRAMES, BLOCK_T)
    row_width, k_max = load_row_widths(width_ptr, counts_ptr, rows, mask_t, n_pos, n_frames, width, C_OUT, FRAMES)
    h = column * BLOCK_H
    offs_h = h + tl.arange(0, BLOCK_H)
    mask = mask_t[:, None] & (offs_h < C_OUT)[None, :]
    starts = rows.to(tl.int64)[:, None] * C_OUT + offs_h[None, :]
    if h < k_max:
        row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, 1, CHANNELS)
        add_ptr = None if skip_ptr is None else skip_ptr + row_starts(rows, n_pos, stride_skip, 1, SKIP_CHANNELS)
        value, gate = glu_units(
            row_ptr, add_ptr, weight_ptr, bias_ptr, h, k_max, C_IN, BLOCK_T, BLOCK_H, BLOCK_K, PRECISION
        )
        out = value * gate
        if ZERO:
            out = tl.where(offs_h[None, :] < row_width[:, None], out, 0.0)
        tl.store(out_ptr + starts, out, mask=mask)
        if grad_ptr is not None:
            grad = load_cut_block(grad_ptr + rows.to(tl.int64) * C_OUT, row_width, offs_h, C_OUT, BLOCK_H)
            grad = grad.to(tl.float32)
            both = tl.reshape(tl.join(grad * gate, grad * value * gate * (1.0 - gate)), [BLOCK_T, 2 * BLOCK_H])
            offs_j = 2 * h + tl.arange(0, 2 * BLOCK_H)
            ptrs = grad_out_ptr + rows.to(tl.int64)[:, None] * (2 * C_OUT) + offs_j[None, :]
            tl.store(ptrs, both, mask=mask_t[:, None] & (offs_j < 2 * C_OUT)[None, :])
    elif ZERO:
        tl.store(out_ptr + starts, tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32), mask=mask)


@triton.jit(do_not_specialize=["stride_b", "stride_skip", "n_rows", "n_pos", "n_cols", "n_frames", "width"])
def slim_linear_glu_input(
    x_ptr,  # (B, n_pos, C_IN), item stride stride_b, positions CHANNELS apart; columns [:k] of a row are used
    skip_ptr,  # (B, n_pos, C_IN), item stride stride_skip, positions SKIP_CHANNELS apart, or None
    weight_ptr,  # (C_IN, 2 * C_OUT), rows [:k] are read
    bias_ptr,  # (2 * C_OUT,)
    grad_ptr,  # (n_rows, C_OUT) for the gradient: that of the output, or None
    out_ptr,  # (n_rows, C_OUT), or (n_rows, 2 * C_OUT) for the gradient
    width_ptr,  # as those of `load_row_widths`
    counts_ptr,
    order_ptr,  # as that of `load_row_tile`
    stride_b,
    stride_skip,
    n_rows,
    n_pos,
    n_cols,  # tiles of columns
    n_frames,
    width,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    SKIP_CHANNELS: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    EVEN: tl.constexpr,  # whether all rows have one width, a multiple of BLOCK_H
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``GLU(x @ weight + bias)``, or the gradient at the input of the GLU."""
    tile, column = program_tile(n_cols)
    rows, mask_t = load_row_tile(order_ptr, tile, n_rows, n_pos, n_frames, FRAMES, BLOCK_T)
    row_width, k_max = load_row_widths(width_ptr, counts_ptr, rows, mask_t, n_pos, n_frames, width, C_IN, FRAMES)
    offs_c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    row_ptr = x_ptr + row_starts(rows, n_pos, stride_b, 1, CHANNELS)
    value = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    gate = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    for h in range(0, k_max, BLOCK_H):
        offs_h = h + tl.arange(0, BLOCK_H)
        units = tl.minimum(offs_h, k_max - 1)
        hidden = load_cut_block(row_ptr, row_width, offs_h, C_IN, BLOCK_H, EVEN)
        if skip_ptr is not None:
            skip_rows = skip_ptr + row_starts(rows, n_pos, stride_skip, 1, SKIP_CHANNELS)
            skip = load_cut_block(skip_rows, row_width, offs_h, C_IN, BLOCK_H, EVEN)
            hidden = (hidden.to(tl.float32) + skip.to(tl.float32)).to(hidden.dtype)
        weight_value = load_weight_block(weight_ptr, 2 * units, offs_c, C_OUT, C_OUT % BLOCK_C == 0)
        value = product(hidden, weight_value, value, PRECISION=PRECISION)
        weight_gate = load_weight_block(weight_ptr, 2 * units + 1, offs_c, C_OUT, C_OUT % BLOCK_C == 0)
        gate = product(hidden, weight_gate, gate, PRECISION=PRECISION)
    mask_c = offs_c < C_OUT
    mask = mask_t[:, None] & mask_c[None, :]
    value += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias_ptr + C_OUT + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    gate = tl.sigmoid(gate)
    rows = rows.to(tl.int64)
    if grad_ptr is None:
        tl.store(out_ptr + rows[:, None] * C_OUT + offs_c[None, :], value * gate, mask=mask)
    else:
        grad = tl.load(grad_ptr + rows[:, None] * C_OUT + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        out_ptrs = out_ptr + rows[:, None] * (2 * C_OUT) + offs_c[None, :]
        tl.store(out_ptrs, grad * gate, mask=mask)
        tl.store(out_ptrs + C_OUT, grad * value * gate * (1.0 - gate), mask=mask)


def input_cut(
    rows: Rows,
    skip: Rows | None,
    weight: Tensor,
    bias: Tensor,
    width: Prefix,
    *,
    grad: Tensor | None = None,
    order: Tensor | None = None,
    precision: str,
) -> Tensor:
    """Launch `slim_linear_glu_input`: ``[B, T, C_out]``, or ``[B, T, 2 C_out]`` from the gradient of the output."""
    channels = weight.shape[1] // 2
    out = weight.new_empty(rows.data.shape[0], rows.per_item, channels if grad is None else 2 * channels)
    if out.numel() == 0:
        return out
    # Value and gate are two accumulators: together they are as wide as one tile.
    tile = _half_tile(rows, channels, weight, precision, broad=grad is None or width.uniform)
    given = {"weight_ptr": weight, "bias_ptr": bias, "grad_ptr": grad, "out_ptr": out, "C_OUT": channels}
    given |= {"EVEN": width.uniform and width.bound % tile.depth == 0, "PRECISION": precision}
    given |= tile.launch_options("BLOCK_T", "BLOCK_C", "BLOCK_H")
    _launch(slim_linear_glu_input, tile, channels, rows, skip, width, order, given)
    return out


def output_cut(
    rows: Rows,
    skip: Rows | None,
    weight: Tensor,
    bias: Tensor,
    width: Prefix,
    *,
    grad: Tensor | None = None,
    zero: bool = False,
    order: Tensor | None = None,
    precision: str,
) -> tuple[Tensor, Tensor | None]:
    """Launch `slim_linear_glu_output`: ``[B, T, C_out]``, and from its gradient that at the GLU's input.

    The latter is ``[B, T, 2 C_out]``, value and gate of a unit side by side. Inactive columns are undefined, or with
    ``zero`` those of the first are zero.
    """
    channels = weight.shape[0]
    out = weight.new_empty(rows.data.shape[0], rows.per_item, channels)
    halves = None if grad is None else out.new_empty(*out.shape[:2], 2 * channels)
    written = channels if zero else width.bound
    if rows.count == 0 or written == 0:
        return out, halves
    # Value and gate are one accumulator of twice the width.
    tile = _half_tile(rows, written, weight, precision, broad=grad is None or width.uniform)
    given = {"weight_ptr": weight, "bias_ptr": bias, "grad_ptr": grad, "out_ptr": out, "grad_out_ptr": halves}
    given |= {"C_OUT": channels, "ZERO": zero, "PRECISION": precision}
    given |= tile.launch_options("BLOCK_T", "BLOCK_H", "BLOCK_K")
    _launch(slim_linear_glu_output, tile, written, rows, skip, width, order, given)
    return out, halves


def _half_tile(rows: Rows, cols: int, weight: Tensor, precision: str, *, broad: bool) -> Tile:
    """A tile for ``cols`` outputs that come from twice as many sums.

    With the masks of a width per row, the gradient's own sums leave no registers for a ``broad`` one.
    """
    tile = product_tile(rows.count, 2 * cols, weight.dtype, precision, chip_of(weight.device), broad=broad)
    return replace(tile, cols=max(tile.cols // 2, 16))


def _launch(
    kernel: Any,
    tile: Tile,
    cols: int,
    rows: Rows,
    skip: Rows | None,
    width: Prefix,
    order: Tensor | None,
    given: dict[str, Any],
) -> None:
    """Start one of the two kernels on ``rows`` and what is added to them, for so many columns."""
    added, added_stride, added_channels = addend(skip)
    arguments = launching.width_arguments(width, order, tile.rows, rows.per_item)
    n_cols = triton.cdiv(cols, tile.cols)
    launching.launch(
        kernel,
        (launching.row_tiles(arguments, rows.count, rows.per_item, tile.rows) * n_cols,),
        x_ptr=rows.data,
        skip_ptr=added,
        stride_b=rows.stride_b,
        stride_skip=added_stride,
        n_rows=rows.count,
        n_pos=rows.per_item,
        n_cols=n_cols,
        width=width.bound,
        CHANNELS=rows.channels,
        SKIP_CHANNELS=added_channels,
        C_IN=rows.length,
        **arguments,
        **given,
    )


def slim_linear_glu_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    width: int | Tensor,
    cut: str,
    skip: Tensor | None = None,
    *,
    order: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Pointwise layer and GLU; see `slimse.ops.slim_linear_glu` for what it computes.

    Args:
        x: ``[B, T, C_in]``; cut on the input, it may be as narrow as the largest width.
        weight: cut on the input ``[C_in, 2 * C_out]``, on the output ``[C_out, 2, C_in]``.
        bias: cut on the input ``[2 * C_out]``, on the output ``[C_out, 2]``.
        width: active channels: a number, or an integer tensor ``[B, T]``.
        cut: ``"input"`` or ``"output"``.
        skip: as ``x``, added to it on the way in; or None.
        order: int32 ``[B * T]``, a permutation of the rows that says which share a tile, or None.
        precision: of float32 products.

    Returns:
        ``[B, T, C_out]``; cut on the output with zeros in inactive channels, or ``[B, T, width]`` for a number.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    rows, added, width = checks.check_linear_glu(x, weight, bias, width, cut, skip)
    checks.check_precision(precision)
    checks.check_order(order, rows.count)
    if cut == "input":
        return input_cut(rows, added, weight, bias, width, order=order, precision=precision)
    ragged = width.rows is not None
    out, _ = output_cut(rows, added, weight, bias, width, zero=ragged, order=order, precision=precision)
    return out if ragged else out[:, :, : width.bound]


def slim_linear_glu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    width: int | Tensor,
    cut: str,
    skip: Tensor | None = None,
    *,
    order: Tensor | None = None,
    precision: str = "ieee",
    weight_grads: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of `slim_linear_glu_forward` at ``x`` (and ``skip``), ``weight`` and ``bias``; deterministic.

    Args:
        grad: as the result of the forward pass.
        x: as in the forward pass, like all that follow.
        weight: as there.
        bias: as there.
        width: as there.
        cut: ``"input"`` or ``"output"``.
        skip: as there.
        order: as there.
        precision: of float32 products.
        weight_grads: whether gradients at weights and biases are wanted; None stands in for each otherwise.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    # The weight's gradient reads x + skip as well, so that the sum is written out once here.
    x = x if skip is None else x + skip
    rows, _, width = checks.check_linear_glu(x, weight, bias, width, cut, None)
    checks.check_precision(precision)
    checks.check_order(order, rows.count)
    outputs = weight.shape[1] // 2 if cut == "input" else weight.shape[0]
    if cut == "output" and width.rows is None:
        grad = torch.nn.functional.pad(grad, (0, outputs - width.bound))
    grad = grad.contiguous()
    checks.check_shapes(weight=(weight, tuple(weight.shape)), grad=(grad, (*x.shape[:2], outputs)))
    if cut == "output":
        _, halves = output_cut(rows, None, weight, bias, width, grad=grad, order=order, precision=precision)
        return output_cut_grads(halves, rows, weight, bias, width, precision, weight_grads=weight_grads)
    grad_glu = input_cut(rows, None, weight, bias, width, grad=grad, order=order, precision=precision)
    glu_rows = Rows.positions(grad_glu)
    grad_x = window_product(glu_rows, weight, None, width, zero=True, order=order, precision=precision)
    if not weight_grads:
        return grad_x[:, :, : x.shape[2]], None, None
    grad_weight, _ = weight_grad(rows, glu_rows, width, bias=False, precision=precision)
    missing = weight.shape[0] - x.shape[2]
    grad_weight = torch.nn.functional.pad(grad_weight.squeeze(1), (0, 0, 0, missing))
    return grad_x[:, :, : x.shape[2]], grad_weight, grad_glu.sum((0, 1))


def output_cut_grads(
    halves: Tensor, rows: Rows, weight: Tensor, bias: Tensor, width: Prefix, precision: str, *, weight_grads: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients at the rows, weight and bias of a layer that is cut on the output, from that at its GLU's input."""
    half_rows = Rows.positions(halves)
    flat, channels = weight.flatten(0, 1), weight.shape[2]
    grad_x = overlap_add(
        half_rows, flat, None, width, channels=channels, n_time=rows.per_item, unit=2, precision=precision
    )
    if not weight_grads:
        return grad_x, None, None
    by_row = width.per_row(rows.per_item)
    grad_weight, grad_bias = weight_grad(half_rows, rows, by_row, unit=2, bias=True, precision=precision)
    return grad_x, grad_weight.view_as(weight), grad_bias.view_as(bias)
