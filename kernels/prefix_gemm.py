"""Matrix products over the active prefix of a slimmed axis: what all kernels share, and the gradient of a weight.

Dimensions:
    rows: positions of all batch items one after another; row ``n`` is position ``n % n_pos`` of item ``n // n_pos``.
        A row is one run of elements, or several ``taps`` (see `rows.Rows`).
    J: columns of the slimmed axis, ``UNIT`` per unit; a row of width ``k`` has its leading ``UNIT * k`` columns active.
    LENGTH: elements of a run; where runs are cut too, its leading elements are active.

Hidden matrices ``(rows, J)`` are written and read only where a row is active: inactive columns are uninitialized.
Indices past an edge are clamped to a valid one, whose products are then dropped or multiplied by zero; loads need no
mask that way, and an inactive weight row is never read.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .rows import Prefix, Rows
from .tiles import chip_of, product_tile


@triton.jit
def round_tf32(x, BITS: tl.constexpr):
    """fp32 rounded to TF32's eleven bits, ties away from zero; NaN stays NaN."""
    if not BITS:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def product(a, b, acc=None, PRECISION: tl.constexpr = "ieee"):
    """``acc + a @ b``, or ``a @ b`` alone.

    Tensor cores cut fp32 factors to TF32, which makes every product a little smaller, so that errors add up over the
    layers. They are rounded first: by an instruction of NVIDIA's, or ``"by bits"`` where there is none.
    """
    if PRECISION == "tf32" and a.dtype == tl.float32:
        a, b = round_tf32(a, False), round_tf32(b, False)
    elif PRECISION == "tf32 by bits" and a.dtype == tl.float32:
        a, b = round_tf32(a, True), round_tf32(b, True)
    kind: tl.constexpr = "tf32" if PRECISION == "tf32 by bits" else PRECISION
    if acc is None:
        return tl.dot(a, b, input_precision=kind)
    return tl.dot(a, b, acc, input_precision=kind)


@triton.jit
def program_tile(n_cols):
    """Tile of rows and of columns of a program; columns are fastest, so that the rows come from memory once."""
    return tl.program_id(0) // n_cols, tl.program_id(0) % n_cols


@triton.jit
def load_row_tile(
    order_ptr,  # (n_rows,) int32, or (batch * runs,) of `FrameWidths`; or None
    tile,
    n_rows,
    n_pos,
    n_frames,
    FRAMES: tl.constexpr,  # `Frames` or None
    BLOCK_T: tl.constexpr,
):
    """Rows of a tile (0 where there is none), and whether they exist."""
    offs_t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    ORDERED: tl.constexpr = FRAMES.ordered if FRAMES is not None else False
    if ORDERED:
        runs = n_frames + FRAMES.spare
        last = n_rows // n_pos * runs - 1
        run = tl.load(order_ptr + tl.minimum(offs_t // FRAMES.rate, last))
        pos = run % runs * FRAMES.rate + offs_t % FRAMES.rate - FRAMES.skipped
        mask_t = (offs_t // FRAMES.rate <= last) & (pos >= 0) & (pos < n_pos)
        rows = tl.where(mask_t, run // runs * n_pos + pos, 0)
    else:
        mask_t = offs_t < n_rows
        rows = tl.where(mask_t, offs_t, 0)
        if order_ptr is not None:
            rows = tl.load(order_ptr + rows)
    return rows, mask_t


@triton.jit
def load_row_widths(
    width_ptr,  # (n_rows,) int32, or (batch, n_frames) `FrameWidths.choice`; or None
    counts_ptr,  # (J,) int32 or None
    rows,
    mask_t,
    n_pos,
    n_frames,
    width,
    CHANNELS: tl.constexpr,
    FRAMES: tl.constexpr,  # `Frames` or None
):
    """Active units of rows, 0 where they do not exist, and the largest."""
    if width_ptr is None:
        row_width = tl.where(mask_t, width, 0)
        k_max = width
    else:
        if FRAMES is not None:
            frame = tl.maximum(rows % n_pos + (FRAMES.rate - 1 - FRAMES.lead), 0) // FRAMES.rate
            frame = tl.minimum(frame, n_frames - 1)
            row_width = tl.load(counts_ptr + tl.load(width_ptr + rows // n_pos * n_frames + frame))
        else:
            row_width = tl.load(width_ptr + rows)
        row_width = tl.where(mask_t, tl.minimum(row_width, CHANNELS), 0)
        k_max = tl.max(row_width, axis=0)
    return row_width, k_max


@triton.jit
def row_starts(rows, n_pos, stride_b, STRIDE: tl.constexpr, CHANNELS: tl.constexpr, ALIGNED: tl.constexpr = True):
    """Offsets in elements, int64, of ``rows`` that begin ``STRIDE`` positions apart; see `Rows.stride_b`."""
    if ALIGNED:
        return ((rows // n_pos).to(tl.int64) * stride_b + rows % n_pos) * (STRIDE * CHANNELS)
    return ((rows // n_pos).to(tl.int64) * stride_b + (rows % n_pos) * STRIDE) * CHANNELS


@triton.jit
def tap_starts(
    rows,
    mask_t,
    tap,
    width_ptr,  # (batch * n_time,) int32 or None: active elements of the run at a position
    stride_b,
    n_pos,
    n_time,
    width,
    ROWS: tl.constexpr,  # their `Geometry`
):
    """Offsets of run ``tap`` of the rows, and how many of its elements are active: none outside of an item."""
    pos = (rows % n_pos) * ROWS.stride + (tap * ROWS.dilation - ROWS.padding)
    inside = mask_t & (pos >= 0) & (pos < n_time)
    pos = tl.where(inside, pos, 0)
    item = rows // n_pos
    if width_ptr is not None:
        active = tl.where(inside, tl.minimum(tl.load(width_ptr + item * n_time + pos), ROWS.length), 0)
    else:
        active = tl.where(inside, width, 0)
    return (item.to(tl.int64) * stride_b + pos) * ROWS.channels, active


@triton.jit
def load_row_block(row_ptr, depth, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """Elements ``[depth, depth + BLOCK)`` of the rows at ``row_ptr``, zero beyond ``LENGTH``."""
    offs = depth + tl.arange(0, BLOCK)
    if LENGTH % BLOCK == 0:
        return tl.load(row_ptr[:, None] + offs[None, :])
    return tl.load(row_ptr[:, None] + offs[None, :], mask=(offs < LENGTH)[None, :], other=0.0)


@triton.jit
def row_product(
    acc,
    row_ptr,  # (BLOCK_T,) pointers to rows of LENGTH
    add_ptr,  # (BLOCK_T,) pointers to rows that are added to them, or None
    weight_ptr,  # (units, PITCH)
    units,  # (BLOCK_J,) rows of the weight to use
    LENGTH: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc + rows @ weight[units].T``."""
    for depth in range(0, LENGTH, BLOCK_K):
        x = load_row_block(row_ptr, depth, LENGTH, BLOCK_K)
        if add_ptr is not None:
            # Rounded once, as the same sum in half precision is.
            x = (x.to(tl.float32) + load_row_block(add_ptr, depth, LENGTH, BLOCK_K).to(tl.float32)).to(x.dtype)
        weight = load_row_block(weight_ptr + units * PITCH, depth, LENGTH, BLOCK_K)
        acc = product(x, tl.trans(weight), acc, PRECISION=PRECISION)
    return acc


@triton.jit
def load_weight_block(weight_ptr, units, cols, COLS: tl.constexpr, EVEN: tl.constexpr):
    """``weight[units, cols]`` of a matrix that is ``COLS`` wide; zero beyond unless all ``cols`` exist (``EVEN``)."""
    ptrs = weight_ptr + units[:, None] * COLS + cols[None, :]
    if EVEN:
        return tl.load(ptrs)
    return tl.load(ptrs, mask=(cols < COLS)[None, :], other=0.0)


@triton.jit
def load_cut_block(row_ptr, active, offs, LENGTH: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr = False):
    """Elements ``offs`` of the rows at ``row_ptr``, zero where they are inactive (whatever lies there).

    With ``EVEN`` a row is active in all of ``offs`` or in none. Its load then goes to shared memory on its own; any
    other mask is one over registers, as one on the load itself would take away its width.
    """
    ptrs = row_ptr[:, None] + offs[None, :]
    if EVEN:
        return tl.load(ptrs, mask=(active > 0)[:, None], other=0.0)
    # The mask of the load is free of the width: a constant one keeps wide loads.
    data = tl.load(ptrs) if LENGTH % BLOCK == 0 else tl.load(ptrs, mask=(offs < LENGTH)[None, :], other=0.0)
    return tl.where(offs[None, :] < active[:, None], data, 0.0)


@triton.jit(
    do_not_specialize=[
        *("hidden_stride_b", "stride_b", "n_rows", "n_pos", "n_time", "n_units", "rows_per_split", "width", "width_in")
    ]
)
def prefix_gemm_weight_grad(
    hidden_ptr,  # rows of J, HIDDEN_CHANNELS apart
    data_ptr,  # rows of several runs
    partial_ptr,  # (splits, n_units, taps, length) fp32
    bias_ptr,  # (splits, n_units) fp32 or None
    width_ptr,  # (n_rows,) int32 or None: active units of a row of hidden
    width_in_ptr,  # (batch * n_time,) int32 or None: active elements of a run
    hidden_stride_b,
    stride_b,
    n_rows,
    n_pos,
    n_time,
    n_units,
    rows_per_split,
    width,
    width_in,
    ROWS: tl.constexpr,  # `Geometry` of the data
    CUT: tl.constexpr,  # whether a run may be inactive in part
    HIDDEN_CHANNELS: tl.constexpr,
    J: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of the gradient of a weight, summed over one run of the rows."""
    offs_j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    tap = tl.program_id(1) % ROWS.taps
    offs_m = tl.program_id(1) // ROWS.taps * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    acc = tl.zeros([BLOCK_J, BLOCK_M], dtype=tl.float32)
    bias = tl.zeros([BLOCK_J], dtype=tl.float32)
    for start in range(first, last, BLOCK_T):
        offs_t = start + tl.arange(0, BLOCK_T)
        rows = tl.where(offs_t < last, offs_t, first)
        if width_ptr is not None:
            row_width = tl.minimum(tl.load(width_ptr + rows) * UNIT, J)
        else:
            row_width = tl.full([BLOCK_T], 0, tl.int32) + width * UNIT
        row_width = tl.where(offs_t < last, row_width, 0)
        hidden_rows = hidden_ptr + row_starts(rows, n_pos, hidden_stride_b, 1, HIDDEN_CHANNELS)
        hidden = load_cut_block(hidden_rows, row_width, offs_j, J, BLOCK_J)
        if CUT:
            starts, active = tap_starts(rows, offs_t < last, tap, width_in_ptr, stride_b, n_pos, n_time, width_in, ROWS)
            data = load_cut_block(data_ptr + starts, active, offs_m, ROWS.length, BLOCK_M)
        else:
            ptrs = (data_ptr + row_starts(rows, n_pos, stride_b, ROWS.stride, ROWS.channels, ROWS.aligned))[
                :, None
            ] + offs_m[None, :]
            data = (
                tl.load(ptrs)
                if ROWS.length % BLOCK_M == 0
                else tl.load(ptrs, mask=(offs_m < ROWS.length)[None, :], other=0.0)
            )
        acc = product(tl.trans(hidden), data, acc, PRECISION=PRECISION)
        if bias_ptr is not None:
            bias += tl.sum(hidden.to(tl.float32), axis=0)
    mask_j = offs_j < n_units
    units = split.to(tl.int64) * n_units + offs_j
    ptrs = partial_ptr + ((units * ROWS.taps + tap) * ROWS.length)[:, None] + offs_m[None, :]
    tl.store(ptrs, acc, mask=mask_j[:, None] & (offs_m < ROWS.length)[None, :])
    if bias_ptr is not None and tl.program_id(1) == 0:
        tl.store(bias_ptr + units, bias, mask=mask_j)


def weight_grad(
    hidden: Rows,
    data: Rows,
    width: Prefix,
    *,
    width_in: Prefix | None = None,
    unit: int = 1,
    bias: bool,
    precision: str,
) -> tuple[Tensor, Tensor | None]:
    """Gradient ``hidden.T @ data`` of a weight whose leading rows are active, and the column sums of ``hidden``.

    The rows are summed in a fixed number of runs, and these in order: the same call gives the same bits.

    Args:
        hidden: one run of ``J`` elements a row; undefined where a row is inactive.
        data: as many rows per item.
        width: active units of the rows of ``hidden``.
        width_in: active elements of the runs of ``data`` over its positions; None for all.
        unit: columns of ``hidden`` per unit.
        bias: whether the column sums are wanted.
        precision: of float32 products.

    Returns:
        ``[J, taps, length]`` and ``[J]`` (or None) in the dtype of ``hidden``; zero where it is inactive.
    """
    units, active, rows = hidden.length, unit * width.bound, hidden.count
    dtype, device = hidden.data.dtype, hidden.data.device
    grad = torch.zeros(units, data.taps, data.length, dtype=dtype, device=device)
    grad_bias = torch.zeros(units, dtype=dtype, device=device) if bias else None
    if rows == 0 or active == 0:
        return grad, grad_bias
    tile = product_tile(active, data.length, dtype, precision, chip_of(device))
    tile = replace(tile, depth=min(tile.depth, 32))
    blocks_j, blocks_m = tile.grid(active, data.length)
    splits, per_split = _splits(rows, blocks_j * blocks_m * data.taps, tile.depth)
    partial = torch.empty(splits, active, data.taps, data.length, dtype=torch.float32, device=device)
    partial_bias = torch.empty(splits, active, dtype=torch.float32, device=device) if bias else None
    cut = width_in is not None or not data.plain
    width_in = width_in or Prefix(data.length)
    launching.launch(
        prefix_gemm_weight_grad,
        (blocks_j, blocks_m * data.taps, splits),
        *(hidden.data, data.data, partial, partial_bias, width.rows, width_in.rows),
        *(hidden.stride_b, data.stride_b, rows, data.per_item, data.data.shape[1], active, per_split),
        *(width.bound, width_in.bound),
        ROWS=data.geometry,
        CUT=cut,
        HIDDEN_CHANNELS=hidden.channels,
        J=units,
        UNIT=unit,
        PRECISION=precision,
        **tile.launch_options("BLOCK_J", "BLOCK_M", "BLOCK_T"),
    )
    grad[:active] = partial.sum(0)
    if bias:
        grad_bias[:active] = partial_bias.sum(0)
    return grad, grad_bias


def _splits(rows: int, programs: int, block_t: int) -> tuple[int, int]:
    """In how many runs the rows are summed, where each takes ``programs``, and how many rows a run has."""
    splits = max(1, min(triton.cdiv(512, programs), triton.cdiv(rows, 16 * block_t)))
    per_split = triton.cdiv(triton.cdiv(rows, splits), block_t) * block_t
    return triton.cdiv(rows, per_split), per_split
