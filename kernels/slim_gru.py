"""Grouped GRU with a prefix of active units per step: all steps in one launch, besides the input's product.

Dimensions:
    M: groups; H: units of a group, with a record of three gates each: reset, update, new.
    A step of width ``k`` updates the leading ``k`` units of every group and lets them see each other; the others keep
    their state and put out zero.

The input's part of all gates is one product over all steps; what remains for the loop over time is a small product per
step. The state is fp32 throughout.
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
def _load_gates(gates_ptr, step, group, offs_u, mask, M: tl.constexpr, H: tl.constexpr):
    """The input's part of the gates of a step, (units, items) each, as it lies in memory."""
    ptrs = gates_ptr + (step * (M * 3 * H))[None, :] + (group * (3 * H) + 3 * offs_u)[:, None]
    reset = tl.load(ptrs, mask=mask, other=0.0)
    update = tl.load(ptrs + 1, mask=mask, other=0.0)
    return reset, update, tl.load(ptrs + 2, mask=mask, other=0.0)


@triton.jit
def _load_bias(bias_ptr, group, offs_u, H: tl.constexpr):
    """The recurrent bias of the gates of units."""
    ptrs = bias_ptr + group * (3 * H) + 3 * offs_u
    known = offs_u < H
    return load_fp32(ptrs, known)[:, None], load_fp32(ptrs + 1, known)[:, None], load_fp32(ptrs + 2, known)[:, None]


@triton.jit
def _update(sum_r, sum_z, sum_n, gate_r, gate_z, gate_n, h):
    """The state after a step, from the recurrent part of the gates with its bias, and the input's."""
    reset = tl.sigmoid(gate_r.to(tl.float32) + sum_r)
    update = tl.sigmoid(gate_z.to(tl.float32) + sum_z)
    new = tanh(gate_n.to(tl.float32) + reset * sum_n)
    return new + update * (h - new)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_gru_resident(
    gates_ptr,  # (n_batch, n_time, M, H, 3)
    weight_ptr,  # (M, H, 3, H), rows and columns [:width] are read
    bias_ptr,  # (M, H, 3)
    state_ptr,  # (2, M, n_batch, H) fp32: before, after
    out_ptr,  # (n_batch, n_time, M, H), units [:width] are written
    n_batch,
    n_time,
    width,
    M: tl.constexpr,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of a tile of items and a group, weights and state on chip."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    group = tl.program_id(1)
    offs_u = tl.arange(0, BLOCK_U)
    active = (offs_u < width)[:, None] & mask_b[None, :]
    weights = weight_ptr + group * (3 * H * H)
    weight_r = load_record_block(weights, 0, offs_u, offs_u, width, 3, H, BLOCK_U)
    weight_z = load_record_block(weights, 1, offs_u, offs_u, width, 3, H, BLOCK_U)
    weight_n = load_record_block(weights, 2, offs_u, offs_u, width, 3, H, BLOCK_U)
    bias_r, bias_z, bias_n = _load_bias(bias_ptr, group, offs_u, H)
    states = state_ptr + ((group * n_batch + items) * H)[None, :] + offs_u[:, None]
    h = load_fp32(states, active)
    gate_r, gate_z, gate_n = _load_gates(gates_ptr, items * n_time, group, offs_u, active, M, H)
    for t in range(0, n_time):
        step = items * n_time + t
        # The gates of the next step are on their way while this one computes.
        ahead = items * n_time + tl.minimum(t + 1, n_time - 1)
        next_r, next_z, next_n = _load_gates(gates_ptr, ahead, group, offs_u, active, M, H)
        seen = h.to(weight_r.dtype)
        sum_r = product(weight_r, seen, PRECISION=PRECISION) + bias_r
        sum_z = product(weight_z, seen, PRECISION=PRECISION) + bias_z
        sum_n = product(weight_n, seen, PRECISION=PRECISION) + bias_n
        h = tl.where(active, _update(sum_r, sum_z, sum_n, gate_r, gate_z, gate_n, h), h)
        tl.store(out_ptr + (step * (M * H))[None, :] + (group * H + offs_u)[:, None], h, mask=active)
        gate_r, gate_z, gate_n = next_r, next_z, next_n
    tl.store(states + M * n_batch.to(tl.int64) * H, h, mask=active)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_gru_streamed(
    gates_ptr,  # (n_batch, n_time, M, H, 3)
    weight_ptr,  # (M, H, 3, H), rows and columns [:k] are read
    bias_ptr,  # (M, H, 3)
    state_ptr,  # (2, M, n_batch, H) fp32, twice the state: see `recurrence`
    out_ptr,  # (n_batch, n_time, M, H), units [:k] are written
    width_ptr,  # (n_batch, n_time) int32 or None
    n_batch,
    n_time,
    width,
    M: tl.constexpr,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of a tile of items and a group, weights from the cache."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    group = tl.program_id(1)
    weights = weight_ptr + group * (3 * H * H)
    states = state_ptr + (group * n_batch + items) * H
    turn = M * n_batch.to(tl.int64) * H
    for t in range(0, n_time):
        step = items * n_time + t
        k = step_width(width_ptr, step, mask_b, width, H)
        k_max = tl.max(k, axis=0)
        old, new = state_buffers(states, turn, t, width_ptr)
        for u in range(0, k_max, BLOCK_U):
            offs_u = u + tl.arange(0, BLOCK_U)
            active = offs_u[:, None] < k[None, :]
            gate_r, gate_z, gate_n = _load_gates(gates_ptr, step, group, offs_u, active, M, H)
            sum_r = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_z = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_n = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            for j in range(0, k_max, BLOCK_J):
                offs_j = j + tl.arange(0, BLOCK_J)
                seen = tl.trans(load_cut_block(old, k, offs_j, H, BLOCK_J)).to(weight_ptr.dtype.element_ty)
                weight_r = load_record_block(weights, 0, offs_u, offs_j, k_max, 3, H, BLOCK_J)
                sum_r = product(weight_r, seen, sum_r, PRECISION=PRECISION)
                weight_z = load_record_block(weights, 1, offs_u, offs_j, k_max, 3, H, BLOCK_J)
                sum_z = product(weight_z, seen, sum_z, PRECISION=PRECISION)
                weight_n = load_record_block(weights, 2, offs_u, offs_j, k_max, 3, H, BLOCK_J)
                sum_n = product(weight_n, seen, sum_n, PRECISION=PRECISION)
            bias_r, bias_z, bias_n = _load_bias(bias_ptr, group, offs_u, H)
            h = load_fp32(old[None, :] + offs_u[:, None], active)
            h = _update(sum_r + bias_r, sum_z + bias_z, sum_n + bias_n, gate_r, gate_z, gate_n, h)
            tl.store(out_ptr + (step * (M * H))[None, :] + (group * H + offs_u)[:, None], h, mask=active)
            tl.store(new[None, :] + offs_u[:, None], h, mask=active)
        # The next step reads what other threads of this program have written.
        tl.debug_barrier()
        if width_ptr is not None:
            keep_states(new, old, k, k_max, BLOCK_U)


def slim_gru_forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    width: int | Tensor,
    state: Tensor,
    *,
    precision: str = "ieee",
    config: RecurrentConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """Run all steps in two launches; see `slimse.ops.slim_gru` for what it computes.

    Args:
        x: ``[B, T, M * I]``.
        weight_ih: ``[M, H, 3, I]``.
        weight_hh: ``[M, H, 3, H]``.
        bias_ih: ``[M, H, 3]``.
        bias_hh: ``[M, H, 3]``.
        width: active units of every group: a number, or an integer tensor ``[B, T]``.
        state: ``[M, B, H]``, the hidden state before the first step; fp32 or as the other tensors.
        precision: of float32 products.
        config: launch parameters; `recurrence.select_config` by default.

    Returns:
        Output ``[B, T, M * H]`` and the state after the last step, in the dtype of ``state``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, state = check_gru(x, weight_ih, weight_hh, bias_ih, bias_hh, width, state, precision)
    config = config or select_config(prefix, weight_hh.dtype, precision, chip=chip_of(x.device))
    groups, units = weight_hh.shape[:2]
    batch, time = x.shape[:2]
    gates = project(x, weight_ih, bias_ih, prefix, precision=precision)
    whole = prefix.rows is None and prefix.bound == units
    out = gates.new_empty(batch, time, groups * units) if whole else gates.new_zeros(batch, time, groups * units)
    states = state.float().expand(2, *state.shape).contiguous()
    if out.numel() == 0:
        return out, state.clone()
    tensors = (gates, weight_hh, bias_hh, states, out)
    sizes = {"M": groups, "H": units}
    launch_loop((slim_gru_resident, slim_gru_streamed), config, tensors, prefix, (batch, time), sizes, precision)
    return out, last_state(states, config, prefix, time).to(state.dtype)


def check_gru(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    width: int | Tensor,
    state: Tensor,
    precision: str,
) -> tuple[Prefix, Tensor]:
    """Check what the layer is given; return the width and the state, contiguous."""
    if weight_ih.ndim != 4:
        raise ValueError(f"weight_ih has shape {tuple(weight_ih.shape)}: expected [groups, units, 3, inputs]")
    groups, units, _, inputs = weight_ih.shape
    checks.check_shapes(
        weight_ih=(weight_ih, (groups, units, 3, inputs)),
        weight_hh=(weight_hh, (groups, units, 3, units)),
        bias_ih=(bias_ih, (groups, units, 3)),
        bias_hh=(bias_hh, (groups, units, 3)),
    )
    checks.check_input("x", x, weight_ih, groups * inputs)
    checks.check_precision(precision)
    state = checks.check_state("state", state, (groups, x.shape[0], units), weight_ih)
    return checks.split_width("width", width, units, tuple(x.shape[:2])), state
