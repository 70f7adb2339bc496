"""What a step of a GRU and of an LSTM computes, forward and back, and how its weights, gates and states are read.

Dimensions: as in `recurrent_loop`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Hyperbolic tangent; this form runs on every backend and has no overflow."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def load_fp32(ptrs, mask):
    """Load as fp32, zero where ``mask`` is false."""
    return tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_item_tile(tile, n_batch, BLOCK: tl.constexpr):
    """Items of a tile, int64, and whether they exist."""
    items = tile * BLOCK + tl.arange(0, BLOCK)
    mask_b = items < n_batch
    return tl.where(mask_b, items, 0).to(tl.int64), mask_b


@triton.jit
def step_width(width_ptr, step, mask_b, width, H: tl.constexpr):
    """Active units of the items at their ``step``, 0 for items that do not exist."""
    if width_ptr is not None:
        width = tl.minimum(tl.load(width_ptr + step), H)
    return tl.where(mask_b, width, 0)


@triton.jit
def load_record_block(
    weight_ptr,  # (H, GATES, H) of a group
    gate: tl.constexpr,
    offs_u,
    offs_j,
    k_max,
    GATES: tl.constexpr,
    H: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Recurrent weights of a gate of units ``offs_u`` for the state of units ``offs_j``, zero beyond ``k_max``."""
    rows = tl.minimum(offs_u, tl.maximum(k_max, 1) - 1) * (GATES * H) + gate * H
    ptrs = weight_ptr + rows[:, None] + offs_j[None, :]
    weight = tl.load(ptrs) if H % BLOCK_J == 0 else tl.load(ptrs, mask=(offs_j < H)[None, :], other=0.0)
    return tl.where((offs_j < k_max)[None, :], weight, 0.0)


@triton.jit
def load_shared(row_ptr, k, offs):
    """Elements ``offs`` of rows that other programs wrote, zero from ``k`` on; from the cache that all share."""
    return tl.load(row_ptr[:, None] + offs[None, :], mask=offs[None, :] < k[:, None], other=0.0, cache_modifier=".cg")


GAVE_UP = tl.constexpr(2**30)
"""A count that no programs reach."""


@triton.jit
def wait_for_all(count_ptr, gave_up_ptr, count, POLLS: tl.constexpr):
    """Wait until programs have come here ``count`` times in all; what they wrote before is then to be seen.

    All of them must be on the chip at once. Returns whether they came: after ``POLLS`` polls a program gives up and
    says so at ``gave_up_ptr``, and from then on nobody waits.
    """
    tl.debug_barrier()
    seen = tl.atomic_add(count_ptr, 1, sem="acq_rel", scope="gpu") + 1
    polls = 0
    while (seen < count) & (polls < POLLS):
        seen = tl.atomic_add(count_ptr, 0, sem="acquire", scope="gpu")
        polls += 1
    if seen < count:
        tl.atomic_max(count_ptr, GAVE_UP)
        tl.store(gave_up_ptr, 1)
    tl.debug_barrier()
    return (seen >= count) & (seen < GAVE_UP)


@triton.jit
def load_gate(
    gates_ptr, gate: tl.constexpr, step, group, offs_u, mask, M: tl.constexpr, H: tl.constexpr, G: tl.constexpr
):
    """A gate's part from the input at a step, (units, items), as it lies in memory."""
    ptrs = gates_ptr + (step * (M * G * H))[None, :] + (group * (G * H) + G * offs_u)[:, None] + gate
    return tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def load_bias(bias_ptr, gate: tl.constexpr, group, offs_u, H: tl.constexpr):
    """The recurrent bias of a gate of units of a GRU; that of an LSTM is in the input's part."""
    return load_fp32(bias_ptr + group * (3 * H) + 3 * offs_u + gate, offs_u < H)[:, None]


@triton.jit
def gru_step(sum_r, sum_z, sum_n, gate_r, gate_z, gate_n, h):
    """The state after a step, from the recurrent part of the gates with its bias, and the input's."""
    reset = tl.sigmoid(gate_r.to(tl.float32) + sum_r)
    update = tl.sigmoid(gate_z.to(tl.float32) + sum_z)
    new = tanh(gate_n.to(tl.float32) + reset * sum_n)
    return new + update * (h - new)


@triton.jit
def lstm_step(sum_i, sum_f, sum_g, sum_o, gate_i, gate_f, gate_g, gate_o, c):
    """Hidden and cell state after a step, from the recurrent part of the gates and the input's with the bias."""
    write = tl.sigmoid(gate_i.to(tl.float32) + sum_i)
    keep = tl.sigmoid(gate_f.to(tl.float32) + sum_f)
    new = tanh(gate_g.to(tl.float32) + sum_g)
    show = tl.sigmoid(gate_o.to(tl.float32) + sum_o)
    cell = keep * c + write * new
    return show * tanh(cell), cell


@triton.jit
def gru_back(
    grad_h,  # (units, items): gradient at the state after the step, without that of its output
    grad_ptr,  # (steps, M, H)
    gates_ptr,  # (steps, M, H, 3): input's part
    sums_ptr,  # (steps, M, H, 3): recurrent part, with its bias
    before_ptr,  # (steps, M, H): state before the step
    grad_gates_ptr,  # (steps, M, H, 3): at the input's part
    grad_sums_ptr,  # (steps, M, H, 3): at the recurrent part
    units,  # (units, items): places in a step of M * H
    active,
):
    """Gradients at the recurrent part of the gates, and what reaches the state before the step past the product."""
    gates = gates_ptr + 3 * units
    sums = sums_ptr + 3 * units
    h = load_fp32(before_ptr + units, active)
    reset = tl.sigmoid(load_fp32(gates, active) + load_fp32(sums, active))
    update = tl.sigmoid(load_fp32(gates + 1, active) + load_fp32(sums + 1, active))
    past = load_fp32(sums + 2, active)
    new = tanh(load_fp32(gates + 2, active) + reset * past)
    total = grad_h + load_fp32(grad_ptr + units, active)
    grad_n = tl.where(active, total * (1.0 - update) * (1.0 - new * new), 0.0)
    grad_z = tl.where(active, total * (h - new) * update * (1.0 - update), 0.0)
    grad_r = grad_n * past * reset * (1.0 - reset)
    grad_past = grad_n * reset
    tl.store(grad_gates_ptr + 3 * units, grad_r, mask=active)
    tl.store(grad_gates_ptr + 3 * units + 1, grad_z, mask=active)
    tl.store(grad_gates_ptr + 3 * units + 2, grad_n, mask=active)
    tl.store(grad_sums_ptr + 3 * units, grad_r, mask=active)
    tl.store(grad_sums_ptr + 3 * units + 1, grad_z, mask=active)
    tl.store(grad_sums_ptr + 3 * units + 2, grad_past, mask=active)
    return grad_r, grad_z, grad_past, tl.where(active, total * update, grad_h)


@triton.jit
def lstm_back(
    grad_h,  # (units, items): gradients at the states after the step, without that of the output
    grad_c,
    grad_ptr,  # (steps, H)
    gates_ptr,  # (steps, H, 4)
    before_ptr,  # (steps, H) fp32: cell state before the step
    grad_gates_ptr,  # (steps, H, 4)
    units,  # (units, items): places in a step of H
    active,
):
    """Gradients at the gates, at the hidden state before the step past the product, and at the cell state before."""
    gates = gates_ptr + 4 * units
    write = tl.sigmoid(load_fp32(gates, active))
    keep = tl.sigmoid(load_fp32(gates + 1, active))
    new = tanh(load_fp32(gates + 2, active))
    show = tl.sigmoid(load_fp32(gates + 3, active))
    c = load_fp32(before_ptr + units, active)
    cell = tanh(keep * c + write * new)
    total_h = grad_h + load_fp32(grad_ptr + units, active)
    total_c = grad_c + total_h * show * (1.0 - cell * cell)
    grad_i = tl.where(active, total_c * new * write * (1.0 - write), 0.0)
    grad_f = tl.where(active, total_c * c * keep * (1.0 - keep), 0.0)
    grad_g = tl.where(active, total_c * write * (1.0 - new * new), 0.0)
    grad_o = tl.where(active, total_h * cell * show * (1.0 - show), 0.0)
    grads = grad_gates_ptr + 4 * units
    tl.store(grads, grad_i, mask=active)
    tl.store(grads + 1, grad_f, mask=active)
    tl.store(grads + 2, grad_g, mask=active)
    tl.store(grads + 3, grad_o, mask=active)
    grad_h = tl.where(active, 0.0, grad_h)
    return grad_i, grad_f, grad_g, grad_o, grad_h, tl.where(active, total_c * keep, grad_c)
