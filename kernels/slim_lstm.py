"""LSTM with a prefix of active units per step: all steps in one launch, besides the input's product.

Dimensions:
    H: units, with a record of four gates each: input, forget, cell, output.
    A step of width ``k`` updates the leading ``k`` units and lets them see each other; the others keep hidden and cell
    state and put out zero.

The input's part of all gates is one product over all steps; what remains for the loop over time is a small product per
step. Hidden and cell state are fp32 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .prefix_gemm import load_cut_block, product
from .recurrence import (
    RecurrentConfig,
    keep_states,
    last_state,
    launch_loop,
    load_fp32,
    load_item_tile,
    load_record_block,
    project,
    select_config,
    state_buffers,
    step_width,
    tanh,
)
from .rows import Prefix
from .tiles import chip_of


@triton.jit
def _load_gates(gates_ptr, step, offs_u, mask, H: tl.constexpr):
    """The input's part of the gates of a step, (units, items) each, as it lies in memory."""
    ptrs = gates_ptr + (step * (4 * H))[None, :] + (4 * offs_u)[:, None]
    write = tl.load(ptrs, mask=mask, other=0.0)
    keep = tl.load(ptrs + 1, mask=mask, other=0.0)
    new = tl.load(ptrs + 2, mask=mask, other=0.0)
    return write, keep, new, tl.load(ptrs + 3, mask=mask, other=0.0)


@triton.jit
def _update(sum_i, sum_f, sum_g, sum_o, gate_i, gate_f, gate_g, gate_o, c):
    """Hidden and cell state after a step, from the recurrent part of the gates and the input's with the bias."""
    write = tl.sigmoid(gate_i.to(tl.float32) + sum_i)
    keep = tl.sigmoid(gate_f.to(tl.float32) + sum_f)
    new = tanh(gate_g.to(tl.float32) + sum_g)
    show = tl.sigmoid(gate_o.to(tl.float32) + sum_o)
    cell = keep * c + write * new
    return show * tanh(cell), cell


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_lstm_resident(
    gates_ptr,  # (n_batch, n_time, H, 4)
    weight_ptr,  # (H, 4, H), rows and columns [:width] are read
    state_ptr,  # (2, n_batch, H) fp32: before, after
    cell_ptr,  # (n_batch, H) fp32, before and after
    out_ptr,  # (n_batch, n_time, H), units [:width] are written
    n_batch,
    n_time,
    width,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of a tile of items, weights and states on chip."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    offs_u = tl.arange(0, BLOCK_U)
    active = (offs_u < width)[:, None] & mask_b[None, :]
    weight_i = load_record_block(weight_ptr, 0, offs_u, offs_u, width, 4, H, BLOCK_U)
    weight_f = load_record_block(weight_ptr, 1, offs_u, offs_u, width, 4, H, BLOCK_U)
    weight_g = load_record_block(weight_ptr, 2, offs_u, offs_u, width, 4, H, BLOCK_U)
    weight_o = load_record_block(weight_ptr, 3, offs_u, offs_u, width, 4, H, BLOCK_U)
    units = (items * H)[None, :] + offs_u[:, None]
    h = load_fp32(state_ptr + units, active)
    c = load_fp32(cell_ptr + units, active)
    gate_i, gate_f, gate_g, gate_o = _load_gates(gates_ptr, items * n_time, offs_u, active, H)
    for t in range(0, n_time):
        step = items * n_time + t
        # The gates of the next step are on their way while this one computes.
        ahead = items * n_time + tl.minimum(t + 1, n_time - 1)
        next_i, next_f, next_g, next_o = _load_gates(gates_ptr, ahead, offs_u, active, H)
        seen = h.to(weight_i.dtype)
        sum_i = product(weight_i, seen, PRECISION=PRECISION)
        sum_f = product(weight_f, seen, PRECISION=PRECISION)
        sum_g = product(weight_g, seen, PRECISION=PRECISION)
        sum_o = product(weight_o, seen, PRECISION=PRECISION)
        out, cell = _update(sum_i, sum_f, sum_g, sum_o, gate_i, gate_f, gate_g, gate_o, c)
        h, c = tl.where(active, out, h), tl.where(active, cell, c)
        tl.store(out_ptr + (step * H)[None, :] + offs_u[:, None], h, mask=active)
        gate_i, gate_f, gate_g, gate_o = next_i, next_f, next_g, next_o
    tl.store(state_ptr + n_batch.to(tl.int64) * H + units, h, mask=active)
    tl.store(cell_ptr + units, c, mask=active)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_lstm_streamed(
    gates_ptr,  # (n_batch, n_time, H, 4)
    weight_ptr,  # (H, 4, H), rows and columns [:k] are read
    state_ptr,  # (2, n_batch, H) fp32, twice the state: see `recurrence`
    cell_ptr,  # (n_batch, H) fp32, before and after
    out_ptr,  # (n_batch, n_time, H), units [:k] are written
    width_ptr,  # (n_batch, n_time) int32 or None
    n_batch,
    n_time,
    width,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of a tile of items, weights from the cache."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    states, turn = state_ptr + items * H, n_batch.to(tl.int64) * H
    for t in range(0, n_time):
        step = items * n_time + t
        k = step_width(width_ptr, step, mask_b, width, H)
        k_max = tl.max(k, axis=0)
        old, new = state_buffers(states, turn, t, width_ptr)
        for u in range(0, k_max, BLOCK_U):
            offs_u = u + tl.arange(0, BLOCK_U)
            active = offs_u[:, None] < k[None, :]
            gate_i, gate_f, gate_g, gate_o = _load_gates(gates_ptr, step, offs_u, active, H)
            sum_i = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_f = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_g = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_o = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            for j in range(0, k_max, BLOCK_J):
                offs_j = j + tl.arange(0, BLOCK_J)
                seen = tl.trans(load_cut_block(old, k, offs_j, H, BLOCK_J)).to(weight_ptr.dtype.element_ty)
                weight_i = load_record_block(weight_ptr, 0, offs_u, offs_j, k_max, 4, H, BLOCK_J)
                sum_i = product(weight_i, seen, sum_i, PRECISION=PRECISION)
                weight_f = load_record_block(weight_ptr, 1, offs_u, offs_j, k_max, 4, H, BLOCK_J)
                sum_f = product(weight_f, seen, sum_f, PRECISION=PRECISION)
                weight_g = load_record_block(weight_ptr, 2, offs_u, offs_j, k_max, 4, H, BLOCK_J)
                sum_g = product(weight_g, seen, sum_g, PRECISION=PRECISION)
                weight_o = load_record_block(weight_ptr, 3, offs_u, offs_j, k_max, 4, H, BLOCK_J)
                sum_o = product(weight_o, seen, sum_o, PRECISION=PRECISION)
            # In place: no other thread has these, as a tile has an element for each.
            cells = cell_ptr + (items * H)[None, :] + offs_u[:, None]
            h, c = _update(sum_i, sum_f, sum_g, sum_o, gate_i, gate_f, gate_g, gate_o, load_fp32(cells, active))
            tl.store(out_ptr + (step * H)[None, :] + offs_u[:, None], h, mask=active)
            tl.store(new[None, :] + offs_u[:, None], h, mask=active)
            tl.store(cells, c, mask=active)
        # The next step reads what other threads of this program have written.
        tl.debug_barrier()
        if width_ptr is not None:
            keep_states(new, old, k, k_max, BLOCK_U)


def slim_lstm_forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    width: int | Tensor,
    state: tuple[Tensor, Tensor],
    *,
    precision: str = "ieee",
    config: RecurrentConfig | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run all steps in two launches; see `slimse.ops.slim_lstm` for what it computes.

    Args:
        x: ``[B, T, I]``; may be narrower than ``weight_ih``.
        weight_ih: ``[H, 4, I]``.
        weight_hh: ``[H, 4, H]``.
        bias: ``[H, 4]``.
        width: active units: a number, or an integer tensor ``[B, T]``.
        state: ``h`` and ``c``, ``[B, H]`` each, before the first step; fp32 or as the other tensors.
        precision: of float32 products.
        config: launch parameters; `recurrence.select_config` by default.

    Returns:
        Output ``[B, T, H]``, for a width that is a number ``[B, T, width]``; and the state after the last step.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, (h, c) = check_lstm(x, weight_ih, weight_hh, bias, width, state, precision)
    config = config or select_config(prefix, weight_hh.dtype, precision, chip=chip_of(x.device))
    batch, time, units = x.shape[0], x.shape[1], weight_hh.shape[0]
    gates = project(x, weight_ih.unsqueeze(0), bias, prefix, precision=precision)
    ragged = prefix.rows is not None
    out = gates.new_zeros(batch, time, units) if ragged else gates.new_empty(batch, time, units)
    states, cells = h.float().expand(2, batch, units).contiguous(), c.float().clone()
    if out.numel() > 0:
        kernels, tensors = (slim_lstm_resident, slim_lstm_streamed), (gates, weight_hh, states, cells, out)
        launch_loop(kernels, config, tensors, prefix, (batch, time), {"H": units}, precision)
    last = last_state(states, config, prefix, time)
    return out if ragged else out[:, :, : prefix.bound], (last.to(h.dtype), cells.to(c.dtype))


def check_lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    width: int | Tensor,
    state: tuple[Tensor, Tensor],
    precision: str,
) -> tuple[Prefix, tuple[Tensor, Tensor]]:
    """Check what the layer is given; return the width and the states, contiguous."""
    if weight_ih.ndim != 3:
        raise ValueError(f"weight_ih has shape {tuple(weight_ih.shape)}: expected [units, 4, inputs]")
    units, _, inputs = weight_ih.shape
    checks.check_shapes(
        weight_ih=(weight_ih, (units, 4, inputs)),
        weight_hh=(weight_hh, (units, 4, units)),
        bias=(bias, (units, 4)),
    )
    checks.check_input("x", x, weight_ih, min(inputs, x.shape[-1]))
    checks.check_precision(precision)
    shape = (x.shape[0], units)
    h, c = (checks.check_state(name, t, shape, weight_ih) for name, t in zip(("h", "c"), state, strict=True))
    return checks.split_width("width", width, units, tuple(x.shape[:2])), (h, c)
