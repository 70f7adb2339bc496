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
    launch_loop,
    load_fp32,
    load_item_tile,
    load_record_block,
    project,
    select_config,
    step_width,
    tanh,
)
from .rows import Prefix
from .tiles import chip_of


@triton.jit
def _update(
    sum_r,  # (units, items): weights times state
    sum_z,
    sum_n,
    h,
    gates_ptr,  # (steps, M, H, 3)
    bias_ptr,  # (M, H, 3)
    out_ptr,  # (steps, M, H)
    step,
    mask_b,
    group,
    offs_u,
    active,
    M: tl.constexpr,
    H: tl.constexpr,
):
    """The state after a step, which is also written out."""
    known = offs_u < H
    gates = gates_ptr + (step * (M * 3 * H))[None, :] + (group * (3 * H) + 3 * offs_u)[:, None]
    bias = bias_ptr + group * (3 * H) + 3 * offs_u
    reset = tl.sigmoid(load_fp32(gates, active) + sum_r + load_fp32(bias, known)[:, None])
    update = tl.sigmoid(load_fp32(gates + 1, active) + sum_z + load_fp32(bias + 1, known)[:, None])
    new = tanh(load_fp32(gates + 2, active) + reset * (sum_n + load_fp32(bias + 2, known)[:, None]))
    out = new + update * (h - new)
    ptrs = out_ptr + (step * (M * H))[None, :] + (group * H + offs_u)[:, None]
    tl.store(ptrs, tl.where(active, out, 0.0), mask=known[:, None] & mask_b[None, :])
    return tl.where(active, out, h)


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
    states = state_ptr + ((group * n_batch + items) * H)[None, :] + offs_u[:, None]
    h = load_fp32(states, active)
    for t in range(0, n_time):
        seen = h.to(weight_r.dtype)
        sum_r = product(weight_r, seen, PRECISION=PRECISION)
        sum_z = product(weight_z, seen, PRECISION=PRECISION)
        sum_n = product(weight_n, seen, PRECISION=PRECISION)
        step = items * n_time + t
        h = _update(sum_r, sum_z, sum_n, h, gates_ptr, bias_ptr, out_ptr, step, mask_b, group, offs_u, active, M, H)
    tl.store(states + M * n_batch.to(tl.int64) * H, h, mask=active)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_gru_streamed(
    gates_ptr,  # (n_batch, n_time, M, H, 3)
    weight_ptr,  # (M, H, 3, H), rows and columns [:k] are read
    bias_ptr,  # (M, H, 3)
    state_ptr,  # (2, M, n_batch, H) fp32: before a step and after it, in turn
    out_ptr,  # (n_batch, n_time, M, H)
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
        old, new = states + (t % 2) * turn, states + (1 - t % 2) * turn
        for u in range(0, H, BLOCK_U):
            offs_u = u + tl.arange(0, BLOCK_U)
            sum_r = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_z = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_n = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            for j in range(0, tl.where(u < k_max, k_max, 0), BLOCK_J):
                offs_j = j + tl.arange(0, BLOCK_J)
                seen = tl.trans(load_cut_block(old, k, offs_j, H, BLOCK_J)).to(weight_ptr.dtype.element_ty)
                weight_r = load_record_block(weights, 0, offs_u, offs_j, k_max, 3, H, BLOCK_J)
                sum_r = product(weight_r, seen, sum_r, PRECISION=PRECISION)
                weight_z = load_record_block(weights, 1, offs_u, offs_j, k_max, 3, H, BLOCK_J)
                sum_z = product(weight_z, seen, sum_z, PRECISION=PRECISION)
                weight_n = load_record_block(weights, 2, offs_u, offs_j, k_max, 3, H, BLOCK_J)
                sum_n = product(weight_n, seen, sum_n, PRECISION=PRECISION)
            active = offs_u[:, None] < k[None, :]
            exists = (offs_u < H)[:, None] & mask_b[None, :]
            h = load_fp32(old[None, :] + offs_u[:, None], exists)
            h = _update(sum_r, sum_z, sum_n, h, gates_ptr, bias_ptr, out_ptr, step, mask_b, group, offs_u, active, M, H)
            tl.store(new[None, :] + offs_u[:, None], h, mask=exists)
        # The next step reads what other threads of this program have written.
        tl.debug_barrier()


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
    whole = prefix.rows is not None or prefix.bound == units or not config.resident
    out = gates.new_empty(batch, time, groups * units) if whole else gates.new_zeros(batch, time, groups * units)
    states = state.float().expand(2, *state.shape).contiguous()
    if out.numel() == 0:
        return out, state.clone()
    tensors = (gates, weight_hh, bias_hh, states, out)
    sizes = {"M": groups, "H": units}
    launch_loop((slim_gru_resident, slim_gru_streamed), config, tensors, prefix, (batch, time), sizes, precision)
    return out, states[1 if config.resident else time % 2].to(state.dtype)


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
