"""Matrix products over the active prefix of a slimmed axis, shared by the blocks.

Dimensions:
    rows: positions of all batch items one after another; row ``n`` is position ``n % n_pos`` of item ``n // n_pos``.
    J: columns of the slimmed axis, ``UNIT`` per unit; a row of width ``k`` has its leading ``UNIT * k`` columns active.
    M: columns of the other matrix.

Hidden matrices ``(rows, J)`` are written and read only where a row is active: what lies beyond is never defined.
Indices past an edge are clamped to a valid one, whose products are then dropped or multiplied by zero; loads need no
mask that way, and an inactive weight row is never read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .launching import Rows, Tile


@triton.jit
def load_row_tile(
    order_ptr,  # (n_rows,) int32 or None
    width_ptr,  # (n_rows,) int32 or None
    width,
    n_rows,
    CHANNELS: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Row indices of this program (0 beyond the last), whether they exist, their widths, and the largest width."""
    offs_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask_t = offs_t < n_rows
    rows = tl.where(mask_t, offs_t, 0)
    if order_ptr is not None:
        rows = tl.load(order_ptr + rows)
    if width_ptr is not None:
        row_width = tl.minimum(tl.load(width_ptr + rows), CHANNELS)
        row_width = tl.where(mask_t, row_width, 0)
        k_max = tl.max(row_width, axis=0)
    else:
        row_width = tl.where(mask_t, width, 0)
        k_max = width
    return rows, mask_t, row_width, k_max


@triton.jit
def row_starts(rows, n_pos, stride_b, STEP: tl.constexpr):
    """Offsets of ``rows`` in elements, int64."""
    return (rows // n_pos).to(tl.int64) * stride_b + (rows % n_pos).to(tl.int64) * STEP


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
    weight_ptr,  # (units, LENGTH)
    units,  # (BLOCK_J,) rows of the weight to use
    LENGTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc + rows @ weight[units].T``."""
    for depth in range(0, LENGTH, BLOCK_K):
        x = load_row_block(row_ptr, depth, LENGTH, BLOCK_K)
        if add_ptr is not None:
            # Rounded once, as the same sum in half precision is.
            x = (x.to(tl.float32) + load_row_block(add_ptr, depth, LENGTH, BLOCK_K).to(tl.float32)).to(x.dtype)
        weight = load_row_block(weight_ptr + units * LENGTH, depth, LENGTH, BLOCK_K)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)
    return acc


@triton.jit
def load_weight_block(weight_ptr, units, cols, COLS: tl.constexpr, EVEN: tl.constexpr):
    """``weight[units, cols]`` of a matrix that is ``COLS`` wide; zero beyond unless all ``cols`` exist (``EVEN``)."""
    ptrs = weight_ptr + units[:, None] * COLS + cols[None, :]
    if EVEN:
        return tl.load(ptrs)
    return tl.load(ptrs, mask=(cols < COLS)[None, :], other=0.0)


@triton.jit
def load_hidden_block(hidden_ptr, rows, row_width, offs_j, J: tl.constexpr, BLOCK_J: tl.constexpr):
    """Columns ``offs_j`` of the hidden matrix, zero where a row is inactive (whatever lies there)."""
    ptrs = hidden_ptr + rows.to(tl.int64)[:, None] * J + offs_j[None, :]
    # The mask of the load is free of the width: a constant one keeps wide loads.
    hidden = tl.load(ptrs) if J % BLOCK_J == 0 else tl.load(ptrs, mask=(offs_j < J)[None, :], other=0.0)
    return tl.where(offs_j[None, :] < row_width[:, None], hidden, 0.0)


@triton.jit(do_not_specialize=["n_rows", "n_pos", "width", "rows_per_split"])
def _weight_grad_kernel(
    hidden_ptr,  # (n_rows, J)
    data_ptr,  # rows of M, row p of item b at b * stride_b + p * STEP
    partial_ptr,  # (splits, n_units, M) fp32
    bias_ptr,  # (splits, n_units) fp32 or None
    width_ptr,  # (n_rows,) int32 or None
    stride_b,
    n_rows,
    n_pos,
    n_units,
    rows_per_split,
    width,
    STEP: tl.constexpr,
    J: tl.constexpr,
    M: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    offs_j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
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
        hidden = load_hidden_block(hidden_ptr, rows, row_width, offs_j, J, BLOCK_J)
        ptrs = data_ptr + row_starts(rows, n_pos, stride_b, STEP)[:, None] + offs_m[None, :]
        data = tl.load(ptrs) if M % BLOCK_M == 0 else tl.load(ptrs, mask=(offs_m < M)[None, :], other=0.0)
        acc = tl.dot(tl.trans(hidden), data, acc, input_precision=PRECISION)
        if bias_ptr is not None:
            bias += tl.sum(hidden.to(tl.float32), axis=0)
    mask_j = offs_j < n_units
    units = split.to(tl.int64) * n_units + offs_j
    tl.store(partial_ptr + units[:, None] * M + offs_m[None, :], acc, mask=mask_j[:, None] & (offs_m < M)[None, :])
    if bias_ptr is not None and tl.program_id(1) == 0:
        tl.store(bias_ptr + units, bias, mask=mask_j)


@triton.jit(do_not_specialize=["n_rows", "n_pos", "n_blocks", "n_time", "width"])
def _overlap_add_kernel(
    hidden_ptr,  # (batch * n_pos, J)
    weight_ptr,  # (J, REACH * COLS), rows [:UNIT * k] are read
    bias_ptr,  # (OUT_CHANNELS,) or None
    out_ptr,  # (batch, n_time, OUT_CHANNELS), n_blocks blocks of COLS elements, the last of them possibly cut
    width_ptr,  # (batch * n_pos,) int32 or None
    order_ptr,  # (n_rows,) int32 or None: of the output blocks
    n_rows,  # batch * n_blocks
    n_pos,
    n_blocks,
    n_time,
    width,
    J: tl.constexpr,
    UNIT: tl.constexpr,
    COLS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    REACH: tl.constexpr,
    RELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks, mask_t, _, _ = load_row_tile(order_ptr, None, width, n_rows, J, BLOCK_T)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    for tap in tl.static_range(REACH):
        rows, row_width, k_max = load_tap_rows(blocks, mask_t, tap, width_ptr, n_pos, n_blocks, width, J // UNIT)
        active = k_max * UNIT
        for j in range(0, active, BLOCK_J):
            offs_j = j + tl.arange(0, BLOCK_J)
            hidden = load_hidden_block(hidden_ptr, rows, row_width * UNIT, offs_j, J, BLOCK_J)
            units = tl.minimum(offs_j, active - 1) * REACH + tap
            weight = load_weight_block(weight_ptr, units, offs_c, COLS, COLS % BLOCK_C == 0)
            acc = tl.dot(hidden, weight, acc, input_precision=PRECISION)
    store_blocks(acc, bias_ptr, out_ptr, blocks, mask_t, offs_c, n_blocks, n_time, COLS, OUT_CHANNELS, RELU)


@triton.jit
def load_tap_rows(blocks, mask_t, tap, width_ptr, n_pos, n_blocks, width, CHANNELS: tl.constexpr):
    """Hidden rows that tap ``tap`` of the output ``blocks`` reads, their widths (0 where none), the largest width."""
    pos = blocks % n_blocks - tap
    valid = mask_t & (pos >= 0) & (pos < n_pos)
    rows = tl.where(valid, (blocks // n_blocks) * n_pos + pos, 0)
    if width_ptr is not None:
        row_width = tl.where(valid, tl.minimum(tl.load(width_ptr + rows), CHANNELS), 0)
        k_max = tl.max(row_width, axis=0)
    else:
        row_width = tl.where(valid, width, 0)
        k_max = width
    return rows, row_width, k_max


@triton.jit
def store_blocks(
    acc,
    bias_ptr,
    out_ptr,
    blocks,
    mask_t,
    offs_c,
    n_blocks,
    n_time,
    COLS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
):
    """Write output blocks, after bias and ReLU where they are asked for; an item's last block may be cut."""
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_c % OUT_CHANNELS).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0)
    pos = (blocks % n_blocks) * (COLS // OUT_CHANNELS)
    start = ((blocks // n_blocks).to(tl.int64) * n_time + pos) * OUT_CHANNELS
    # Compared by position, so that the mask is known to be constant over channels and stores stay wide.
    mask_time = pos[:, None] + (offs_c // OUT_CHANNELS)[None, :] < n_time
    mask = mask_t[:, None] & (offs_c < COLS)[None, :] & mask_time
    tl.store((out_ptr + start)[:, None] + offs_c[None, :], acc, mask=mask)


def select_tile(rows: int, cols: int, dtype: torch.dtype, precision: str = "ieee") -> Tile:
    """A tile for ``rows`` x ``cols`` outputs that compiles without spills (seen in ahead-of-time builds)."""
    fits = 64 if dtype == torch.float32 and precision != "tf32" else 128
    rows, cols = (min(max(triton.next_power_of_2(n), 16), fits) for n in (rows, cols))
    if fits == 64:
        return Tile(rows, cols, 16, num_warps=4, num_stages=2)
    return Tile(rows, cols, 32, num_warps=8 if rows * cols > 4096 else 4, num_stages=3)


def weight_grad(
    hidden: Tensor, data: Rows, width: int, row_width: Tensor | None, *, unit: int = 1, bias: bool, precision: str
) -> tuple[Tensor, Tensor | None]:
    """Gradient ``hidden.T @ data`` of a weight whose leading rows are active, and the column sums of ``hidden``.

    The rows are summed in a fixed number of runs, and these in order: the same call gives the same bits.

    Args:
        hidden: ``[rows, J]``; undefined where a row is inactive.
        data: rows of ``M`` elements.
        width: active units, or what bounds them if ``row_width`` is given.
        row_width: int32, active units of every row, or None.
        unit: columns of ``hidden`` per unit.
        bias: whether the column sums are wanted.
        precision: of float32 products.

    Returns:
        ``[J, M]`` and ``[J]`` (or None) in the dtype of ``hidden``; rows beyond ``unit * width`` are zero.
    """
    rows, units = hidden.shape
    active, length = unit * width, data.length
    grad = hidden.new_zeros(units, length)
    grad_bias = hidden.new_zeros(units) if bias else None
    if rows == 0 or active == 0:
        return grad, grad_bias
    tile = select_tile(active, length, hidden.dtype, precision)
    block_t = max(tile.depth, 32) if hidden.dtype != torch.float32 else 32
    tiles = triton.cdiv(active, tile.rows) * triton.cdiv(length, tile.cols)
    splits = max(1, min(triton.cdiv(512, tiles), triton.cdiv(rows, 16 * block_t)))
    per_split = triton.cdiv(triton.cdiv(rows, splits), block_t) * block_t
    splits = triton.cdiv(rows, per_split)
    partial = torch.empty(splits, active, length, dtype=torch.float32, device=hidden.device)
    partial_bias = torch.empty(splits, active, dtype=torch.float32, device=hidden.device) if bias else None
    launching.launch(
        _weight_grad_kernel,
        (triton.cdiv(active, tile.rows), triton.cdiv(length, tile.cols), splits),
        hidden,
        data.data,
        partial,
        partial_bias,
        row_width,
        data.stride_b,
        rows,
        data.per_item,
        active,
        per_split,
        width,
        STEP=data.step,
        J=units,
        M=length,
        UNIT=unit,
        BLOCK_J=tile.rows,
        BLOCK_M=tile.cols,
        BLOCK_T=block_t,
        PRECISION=precision,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    grad[:active] = partial.sum(0)
    if bias:
        grad_bias[:active] = partial_bias.sum(0)
    return grad, grad_bias


def overlap_add(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width: int,
    row_width: Tensor | None,
    *,
    batch: int,
    reach: int,
    unit: int = 1,
    channels: int,
    n_time: int,
    relu: bool = False,
    order: Tensor | None = None,
    precision: str,
) -> Tensor:
    """``hidden @ weight`` laid over time: tap ``i`` of position ``p`` adds to output block ``p + i``.

    Every output block gathers its ``reach`` contributions, in order: no atomics. ``reach`` 1 is a plain product.

    Args:
        hidden: ``[batch * positions, J]``; undefined where a row is inactive.
        weight: ``[J, reach * S * channels]``; rows ``[:unit * width]`` are read.
        bias: ``[channels]`` or None.
        width: active units, or what bounds them if ``row_width`` is given.
        row_width: int32, active units of every row, or None.
        batch: items.
        reach: blocks of ``S`` positions that a kernel spans, ``K / S``.
        unit: columns of ``hidden`` per unit.
        channels: channels of the output.
        n_time: output positions; those that no tap reaches are zero (or the bias).
        relu: whether a ReLU follows.
        order: int32, a permutation of the output blocks that says which share a tile, or None.
        precision: of float32 products.

    Returns:
        ``[batch, n_time, channels]``.
    """
    rows, units = hidden.shape
    cols = weight.numel() // (units * reach)
    blocks = triton.cdiv(n_time * channels, cols)
    out = hidden.new_empty(batch, n_time, channels)
    if out.numel() == 0:
        return out
    if rows == 0:
        # Nothing to gather, not even a row to clamp to: only bias and ReLU are left.
        width, row_width = 0, None
    tile = select_tile(batch * blocks, cols, hidden.dtype, precision)
    launching.launch(
        _overlap_add_kernel,
        (triton.cdiv(batch * blocks, tile.rows), triton.cdiv(cols, tile.cols)),
        hidden,
        weight,
        bias,
        out,
        row_width,
        order,
        batch * blocks,
        rows // batch,
        blocks,
        n_time,
        width,
        J=units,
        UNIT=unit,
        COLS=cols,
        OUT_CHANNELS=channels,
        REACH=reach,
        RELU=relu,
        BLOCK_T=tile.rows,
        BLOCK_C=tile.cols,
        BLOCK_J=tile.depth,
        PRECISION=precision,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out
