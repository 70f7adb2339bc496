"""``rows @ weight.T``, a row being a window of a channels-last tensor: a convolution, or the gradient of its transpose.

Dimensions: as in `prefix_gemm`. Output columns ``(J,)`` are cut per row, the elements of a run per position.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .prefix_gemm import (
    load_cut_block,
    load_row_block,
    load_row_tile,
    load_row_widths,
    product,
    program_tile,
    row_product,
    row_starts,
    tap_starts,
)
from .rows import Prefix, Rows
from .tiles import chip_of, product_tile


@triton.jit
def _cut_product(
    acc,
    x_ptr,
    weight_ptr,  # (GROUPS, J, taps, PITCH)
    width_in_ptr,  # (batch * n_time,) int32 or None
    rows,
    mask_t,
    units,  # (BLOCK_J,) rows of the weight to use
    stride_b,
    n_pos,
    n_time,
    width_in,
    ROWS: tl.constexpr,  # their `Geometry`
    PITCH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc + rows @ weight[units].T`` over the active elements of every run."""
    for tap in range(0, ROWS.taps):
        starts, active = tap_starts(rows, mask_t, tap, width_in_ptr, stride_b, n_pos, n_time, width_in, ROWS)
        k_in = tl.max(active, axis=0)
        for depth in range(0, k_in, BLOCK_K):
            offs = depth + tl.arange(0, BLOCK_K)
            x = load_cut_block(x_ptr + starts, active, offs, ROWS.length, BLOCK_K)
            weight = load_row_block(weight_ptr + (units * ROWS.taps + tap) * PITCH, depth, ROWS.length, BLOCK_K)
            weight = tl.where((offs < k_in)[None, :], weight, 0.0)
            acc = product(x, tl.trans(weight), acc, PRECISION=PRECISION)
    return acc


@triton.jit(do_not_specialize=["stride_b", "n_rows", "n_pos", "n_time", "n_cols", "n_frames", "width", "width_in"])
def window_gemm_rows(
    x_ptr,  # rows of several runs; group g reads a run's length further on
    weight_ptr,  # (GROUPS, J, taps, PITCH), rows [:UNIT * k] are read
    bias_ptr,  # (GROUPS * J,) or None
    forward_ptr,  # (n_rows, GROUPS * J): result after a ReLU whose gradient this is, or None
    out_ptr,  # (n_rows, GROUPS * J), columns [:UNIT * k] of a row and group are written
    width_ptr,  # as those of `load_row_widths`
    counts_ptr,
    width_in_ptr,  # (batch * n_time,) int32 or None
    order_ptr,  # as that of `load_row_tile`
    stride_b,
    n_rows,
    n_pos,
    n_time,
    n_cols,  # tiles of columns
    n_frames,
    width,
    width_in,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,  # their `Geometry`
    PITCH: tl.constexpr,
    CUT: tl.constexpr,  # whether a run may be inactive in part
    J: tl.constexpr,
    UNIT: tl.constexpr,
    RELU: tl.constexpr,
    ZERO: tl.constexpr,  # whether inactive columns are written as zeros
    BLOCK_T: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of rows and output columns of a group."""
    tile, column = program_tile(n_cols)
    rows, mask_t = load_row_tile(order_ptr, tile, n_rows, n_pos, n_frames, FRAMES, BLOCK_T)
    row_width, k_max = load_row_widths(width_ptr, counts_ptr, rows, mask_t, n_pos, n_frames, width, J // UNIT, FRAMES)
    active = k_max * UNIT
    first = column * BLOCK_J
    if ZERO or first < active:
        group = tl.program_id(1)
        offs_j = first + tl.arange(0, BLOCK_J)
        units = group * J + tl.maximum(tl.minimum(offs_j, active - 1), 0)
        acc = tl.zeros([BLOCK_T, BLOCK_J], dtype=tl.float32)
        if first < active:
            if CUT:
                acc = _cut_product(
                    acc,
                    x_ptr + group * ROWS.length,
                    weight_ptr,
                    width_in_ptr,
                    rows,
                    mask_t,
                    units,
                    stride_b,
                    n_pos,
                    n_time,
                    width_in,
                    ROWS,
                    PITCH,
                    BLOCK_K,
                    PRECISION,
                )
            else:
                row_ptr = (
                    x_ptr
                    + group * ROWS.length
                    + row_starts(rows, n_pos, stride_b, ROWS.stride, ROWS.channels, ROWS.aligned)
                )
                acc = row_product(acc, row_ptr, None, weight_ptr, units, ROWS.length, PITCH, BLOCK_K, PRECISION)
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + units).to(tl.float32)[None, :]
        if RELU:
            acc = tl.maximum(acc, 0.0)
        starts = rows.to(tl.int64) * (J * tl.num_programs(1)) + group * J
        if forward_ptr is not None:
            forward = load_cut_block(forward_ptr + starts, row_width * UNIT, offs_j, J, BLOCK_J)
            acc = tl.where(forward.to(tl.float32) > 0, acc, 0.0)
        if ZERO:
            acc = tl.where(offs_j[None, :] < row_width[:, None] * UNIT, acc, 0.0)
        tl.store((out_ptr + starts)[:, None] + offs_j[None, :], acc, mask=mask_t[:, None] & (offs_j < J)[None, :])


def window_product(
    rows: Rows,
    weight: Tensor,
    bias: Tensor | None,
    width: Prefix,
    *,
    width_in: Prefix | None = None,
    forward: Tensor | None = None,
    unit: int = 1,
    groups: int = 1,
    relu: bool = False,
    zero: bool = False,
    order: Tensor | None = None,
    precision: str,
) -> Tensor:
    """``rows @ weight.T + bias`` with the active prefix of output columns, and of every run of a row.

    Args:
        rows: of ``taps`` runs of ``length`` elements. Group ``g`` reads those ``g * length`` elements on.
        weight: ``[groups * J, ...]``, ``taps`` runs of ``length`` or more in a row; a group's leading rows are read.
        bias: ``[groups * J]`` or None.
        width: active units of the rows.
        width_in: active elements of a run over the positions of the data; None for all.
        forward: ``[B, P, groups * J]``: the result of the forward pass after a ReLU, if this is the gradient there.
        unit: output columns per unit.
        groups: independent products side by side.
        relu: whether a ReLU follows.
        zero: whether inactive columns become zero; they are undefined otherwise.
        order: int32, a permutation of the rows that says which share a tile, or None.
        precision: of float32 products.

    Returns:
        ``[B, P, groups * J]``.
    """
    cols = weight.shape[0] // groups
    pitch = weight.numel() // (groups * cols * rows.taps)
    out = weight.new_empty(rows.data.shape[0], rows.per_item, groups * cols)
    active = unit * width.bound
    if rows.count == 0 or (active == 0 and not zero):
        return out
    written = cols if zero else active
    tile = product_tile(rows.count, written, weight.dtype, precision, chip_of(weight.device))
    cut = width_in is not None or not rows.plain
    width_in = width_in or Prefix(rows.length)
    arguments = launching.width_arguments(width, order, tile.rows, rows.per_item)
    n_cols = triton.cdiv(written, tile.cols)
    launching.launch(
        window_gemm_rows,
        (launching.row_tiles(arguments, rows.count, rows.per_item, tile.rows) * n_cols, groups),
        x_ptr=rows.data,
        weight_ptr=weight,
        bias_ptr=bias,
        forward_ptr=forward,
        out_ptr=out,
        width_in_ptr=width_in.rows,
        stride_b=rows.stride_b,
        n_rows=rows.count,
        n_pos=rows.per_item,
        n_time=rows.data.shape[1],
        n_cols=n_cols,
        width=width.bound,
        width_in=width_in.bound,
        ROWS=rows.geometry,
        PITCH=pitch,
        CUT=cut,
        J=cols,
        UNIT=unit,
        RELU=relu,
        ZERO=zero,
        PRECISION=precision,
        **arguments,
        **tile.launch_options("BLOCK_T", "BLOCK_J", "BLOCK_K"),
    )
    return out
