"""Gradients of the grouped GRU: dimensions and widths as in `slim_gru`.

As the state before every step is known, the gates of all steps are computed again in two products over all steps at
once. The loop over time then carries the gradient of the state back, one small product per step, and writes the
gradients at the gates; those of weights and input are products over all steps.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .prefix_gemm import product
from .recurrence import (
    RecurrentConfig,
    add_sent_back,
    launch_loop,
    load_fp32,
    load_item_tile,
    load_record_block,
    project,
    project_grads,
    select_config,
    states_before,
    step_width,
    tanh,
)
from .slim_gru import check_gru
from .tiles import chip_of


@triton.jit
def _downdate(
    grad_h,  # (units, items): gradient at the state after the step, without that of its output
    grad_ptr,  # (steps, M, H)
    gates_ptr,  # (steps, M, H, 3): input's part
    sums_ptr,  # (steps, M, H, 3): recurrent part, with its bias
    before_ptr,  # (steps, M, H): state before the step
    grad_gates_ptr,  # (steps, M, H, 3): at the input's part
    grad_sums_ptr,  # (steps, M, H, 3): at the recurrent part
    step,
    group,
    offs_u,
    active,
    M: tl.constexpr,
    H: tl.constexpr,
):
    """Gradients at the recurrent part of the gates, and what reaches the state before the step past the product."""
    units = (step * (M * H))[None, :] + (group * H + offs_u)[:, None]
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


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_gru_resident_backward(
    grad_ptr,  # (n_batch, n_time, M, H)
    gates_ptr,  # (n_batch, n_time, M, H, 3)
    sums_ptr,  # (n_batch, n_time, M, H, 3)
    before_ptr,  # (n_batch, n_time, M, H)
    weight_ptr,  # (M, H, 3, H), rows and columns [:width] are read
    grad_gates_ptr,  # (n_batch, n_time, M, H, 3)
    grad_sums_ptr,  # (n_batch, n_time, M, H, 3)
    state_ptr,  # (2, M, n_batch, H) fp32: gradient at the last state, and at the first
    n_batch,
    n_time,
    width,
    M: tl.constexpr,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps back, weights and gradient of the state on chip."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    group = tl.program_id(1)
    offs_u = tl.arange(0, BLOCK_U)
    active = (offs_u < width)[:, None] & mask_b[None, :]
    weights = weight_ptr + group * (3 * H * H)
    # Columns first: the gradient goes back from gates to states.
    weight_r = tl.trans(load_record_block(weights, 0, offs_u, offs_u, width, 3, H, BLOCK_U))
    weight_z = tl.trans(load_record_block(weights, 1, offs_u, offs_u, width, 3, H, BLOCK_U))
    weight_n = tl.trans(load_record_block(weights, 2, offs_u, offs_u, width, 3, H, BLOCK_U))
    states = state_ptr + ((group * n_batch + items) * H)[None, :] + offs_u[:, None]
    grad_h = load_fp32(states, active)
    for back in range(0, n_time):
        step = items * n_time + (n_time - 1 - back)
        grad_r, grad_z, grad_past, grad_h = _downdate(
            grad_h,
            grad_ptr,
            gates_ptr,
            sums_ptr,
            before_ptr,
            grad_gates_ptr,
            grad_sums_ptr,
            step,
            group,
            offs_u,
            active,
            M,
            H,
        )
        # A sum of its own: Triton 3.9 fails for sm_100 on an accumulator that the loop carries through other code.
        acc = product(weight_r, grad_r.to(weight_r.dtype), PRECISION=PRECISION)
        acc = product(weight_z, grad_z.to(weight_r.dtype), acc, PRECISION=PRECISION)
        acc = product(weight_n, grad_past.to(weight_r.dtype), acc, PRECISION=PRECISION)
        grad_h += acc
    tl.store(states + M * n_batch.to(tl.int64) * H, grad_h, mask=active)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_gru_streamed_backward(
    grad_ptr,  # (n_batch, n_time, M, H)
    gates_ptr,  # (n_batch, n_time, M, H, 3)
    sums_ptr,  # (n_batch, n_time, M, H, 3)
    before_ptr,  # (n_batch, n_time, M, H)
    weight_ptr,  # (M, H, 3, H), rows and columns [:k] are read
    grad_gates_ptr,  # (n_batch, n_time, M, H, 3)
    grad_sums_ptr,  # (n_batch, n_time, M, H, 3)
    state_ptr,  # (2, M, n_batch, H) fp32: gradient at the state after a step and before it, in turn
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
    """All steps back, weights from the cache."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    group = tl.program_id(1)
    weights = weight_ptr + group * (3 * H * H)
    states = state_ptr + (group * n_batch + items) * H
    turn = M * n_batch.to(tl.int64) * H
    for back in range(0, n_time):
        step = items * n_time + (n_time - 1 - back)
        k = step_width(width_ptr, step, mask_b, width, H)
        k_max = tl.max(k, axis=0)
        after, before = states + (back % 2) * turn, states + (1 - back % 2) * turn
        for u in range(0, H, BLOCK_U):
            offs_u = u + tl.arange(0, BLOCK_U)
            exists = (offs_u < H)[:, None] & mask_b[None, :]
            grad_h = load_fp32(after[None, :] + offs_u[:, None], exists)
            _, _, _, grad_h = _downdate(
                grad_h,
                grad_ptr,
                gates_ptr,
                sums_ptr,
                before_ptr,
                grad_gates_ptr,
                grad_sums_ptr,
                step,
                group,
                offs_u,
                offs_u[:, None] < k[None, :],
                M,
                H,
            )
            tl.store(before[None, :] + offs_u[:, None], grad_h, mask=exists)
        # The products read what other threads of this program have written, and so does the next step.
        tl.debug_barrier()
        grad_sums = grad_sums_ptr + step * (M * 3 * H) + group * (3 * H)
        add_sent_back(grad_sums, weights, before, k, k_max, 3, H, BLOCK_B, BLOCK_U, BLOCK_J, PRECISION)
        tl.debug_barrier()


def slim_gru_backward(
    grad: Tensor,
    grad_last: Tensor,
    out: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `slim_gru_forward` at ``x``, the four weights and biases, and ``state``; deterministic.

    Args:
        grad: ``[B, T, M * H]``, gradient of the output.
        grad_last: ``[M, B, H]``, gradient of the last state.
        out: ``[B, T, M * H]``, the output.
        x: as in the forward pass, like all that follow.
        weight_ih: ``[M, H, 3, I]``.
        weight_hh: ``[M, H, 3, H]``.
        bias_ih: ``[M, H, 3]``.
        bias_hh: ``[M, H, 3]``.
        width: a number, or an integer tensor ``[B, T]``.
        state: ``[M, B, H]``.
        precision: of float32 products.
        config: launch parameters; `recurrence.select_config` by default.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, state = check_gru(x, weight_ih, weight_hh, bias_ih, bias_hh, width, state, precision)
    config = config or select_config(prefix, weight_hh.dtype, precision, backward=True, chip=chip_of(x.device))
    groups, units = weight_hh.shape[:2]
    batch, time = x.shape[:2]
    grad, out = grad.contiguous(), out.contiguous()
    shape = (batch, time, groups * units)
    checks.check_shapes(weight_hh=(weight_hh, tuple(weight_hh.shape)), grad=(grad, shape), out=(out, shape))
    grad_last = checks.check_state("grad_last", grad_last, tuple(state.shape), weight_hh)
    before = states_before(out.unflatten(2, (groups, units)), state, prefix).flatten(2)
    gates = project(x, weight_ih, bias_ih, prefix, precision=precision)
    sums = project(before, weight_hh, bias_hh, prefix, width_in=prefix, precision=precision)
    grad_gates, grad_sums = gates.new_empty(gates.shape), gates.new_empty(gates.shape)
    states = grad_last.float().expand(2, *state.shape).contiguous()
    tensors = (grad, gates, sums, before, weight_hh, grad_gates, grad_sums, states)
    if out.numel() > 0:
        kernels, sizes = (slim_gru_resident_backward, slim_gru_streamed_backward), {"M": groups, "H": units}
        launch_loop(kernels, config, tensors, prefix, (batch, time), sizes, precision)
    last = states[1 if config.resident or time % 2 else 0] if time else states[0]
    shared = {"width": prefix, "precision": precision}
    grad_x, grad_ih, grad_bias_ih = project_grads(grad_gates, x, weight_ih, **shared)
    _, grad_hh, grad_bias_hh = project_grads(grad_sums, before, weight_hh, width_in=prefix, input_grad=False, **shared)
    return grad_x, grad_ih, grad_hh, grad_bias_ih, grad_bias_hh, last.to(state.dtype)
