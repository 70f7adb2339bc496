"""Gradients of the LSTM: dimensions and widths as in `slim_lstm`.

As the hidden state before every step is known, the gates of all steps are computed again in two products over all steps
at once, and from these the cell state before every step, unit by unit. The loop over time then carries the gradients of
both states back, one small product per step, and writes the gradients at the gates; those of weights and input are
products over all steps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks, launching
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
from .rows import Prefix
from .slim_lstm import check_lstm
from .tiles import chip_of


@triton.jit(do_not_specialize=["n_time", "width"])
def slim_lstm_cells(
    gates_ptr,  # (B, n_time, H, 4)
    cell_ptr,  # (B, H) fp32: before the first step
    before_ptr,  # (B, n_time, H) fp32: cell state before every step
    width_ptr,  # (B, n_time) int32 or None
    n_time,
    width,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """The cell state before every step, from the gates of all steps."""
    item = tl.program_id(0).to(tl.int64)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = offs_h < H
    c = load_fp32(cell_ptr + item * H + offs_h, mask)
    for t in range(0, n_time):
        step = item * n_time + t
        k = width if width_ptr is None else tl.minimum(tl.load(width_ptr + step), H)
        tl.store(before_ptr + step * H + offs_h, c, mask=mask)
        gates = gates_ptr + (step * H + offs_h) * 4
        active = offs_h < k
        write = tl.sigmoid(load_fp32(gates, active))
        keep = tl.sigmoid(load_fp32(gates + 1, active))
        new = tanh(load_fp32(gates + 2, active))
        c = tl.where(active, keep * c + write * new, c)


@triton.jit
def _downdate(
    grad_h,  # (units, items): gradients at the states after the step, without that of the output
    grad_c,
    grad_ptr,  # (steps, H)
    gates_ptr,  # (steps, H, 4)
    before_ptr,  # (steps, H) fp32: cell state before the step
    grad_gates_ptr,  # (steps, H, 4)
    step,
    offs_u,
    active,
    H: tl.constexpr,
):
    """Gradients at the gates, at the hidden state before the step past the product, and at the cell state before."""
    units = (step * H)[None, :] + offs_u[:, None]
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


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_lstm_resident_backward(
    grad_ptr,  # (n_batch, n_time, H)
    gates_ptr,  # (n_batch, n_time, H, 4)
    before_ptr,  # (n_batch, n_time, H) fp32
    weight_ptr,  # (H, 4, H), rows and columns [:width] are read
    grad_gates_ptr,  # (n_batch, n_time, H, 4)
    state_ptr,  # (2, n_batch, H) fp32: gradient at the last hidden state, and at the first
    cell_ptr,  # (n_batch, H) fp32: gradient at the last cell state, then at the first
    n_batch,
    n_time,
    width,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps back, weights and gradients of the states on chip."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    offs_u = tl.arange(0, BLOCK_U)
    active = (offs_u < width)[:, None] & mask_b[None, :]
    # Columns first: the gradient goes back from gates to states.
    weight_i = tl.trans(load_record_block(weight_ptr, 0, offs_u, offs_u, width, 4, H, BLOCK_U))
    weight_f = tl.trans(load_record_block(weight_ptr, 1, offs_u, offs_u, width, 4, H, BLOCK_U))
    weight_g = tl.trans(load_record_block(weight_ptr, 2, offs_u, offs_u, width, 4, H, BLOCK_U))
    weight_o = tl.trans(load_record_block(weight_ptr, 3, offs_u, offs_u, width, 4, H, BLOCK_U))
    units = (items * H)[None, :] + offs_u[:, None]
    grad_h = load_fp32(state_ptr + units, active)
    grad_c = load_fp32(cell_ptr + units, active)
    for back in range(0, n_time):
        step = items * n_time + (n_time - 1 - back)
        grad_i, grad_f, grad_g, grad_o, grad_h, grad_c = _downdate(
            grad_h, grad_c, grad_ptr, gates_ptr, before_ptr, grad_gates_ptr, step, offs_u, active, H
        )
        # A sum of its own: see the GRU.
        acc = product(weight_i, grad_i.to(weight_i.dtype), PRECISION=PRECISION)
        acc = product(weight_f, grad_f.to(weight_i.dtype), acc, PRECISION=PRECISION)
        acc = product(weight_g, grad_g.to(weight_i.dtype), acc, PRECISION=PRECISION)
        acc = product(weight_o, grad_o.to(weight_i.dtype), acc, PRECISION=PRECISION)
        grad_h += acc
    tl.store(state_ptr + n_batch.to(tl.int64) * H + units, grad_h, mask=active)
    tl.store(cell_ptr + units, grad_c, mask=active)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def slim_lstm_streamed_backward(
    grad_ptr,  # (n_batch, n_time, H)
    gates_ptr,  # (n_batch, n_time, H, 4)
    before_ptr,  # (n_batch, n_time, H) fp32
    weight_ptr,  # (H, 4, H), rows and columns [:k] are read
    grad_gates_ptr,  # (n_batch, n_time, H, 4)
    state_ptr,  # (2, n_batch, H) fp32: gradient at the hidden state after a step and before it, in turn
    cell_ptr,  # (n_batch, H) fp32: gradient at the last cell state, then at the first
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
    """All steps back, weights from the cache."""
    items, mask_b = load_item_tile(n_batch, BLOCK_B)
    turn = n_batch.to(tl.int64) * H
    for back in range(0, n_time):
        step = items * n_time + (n_time - 1 - back)
        k = step_width(width_ptr, step, mask_b, width, H)
        k_max = tl.max(k, axis=0)
        after = state_ptr + (back % 2) * turn + items * H
        before = state_ptr + (1 - back % 2) * turn + items * H
        for u in range(0, H, BLOCK_U):
            offs_u = u + tl.arange(0, BLOCK_U)
            exists = (offs_u < H)[:, None] & mask_b[None, :]
            active = offs_u[:, None] < k[None, :]
            cells = cell_ptr + (items * H)[None, :] + offs_u[:, None]
            grad_h = load_fp32(after[None, :] + offs_u[:, None], exists)
            grad_c = load_fp32(cells, exists)
            _, _, _, _, grad_h, grad_c = _downdate(
                grad_h, grad_c, grad_ptr, gates_ptr, before_ptr, grad_gates_ptr, step, offs_u, active, H
            )
            tl.store(before[None, :] + offs_u[:, None], grad_h, mask=exists)
            tl.store(cells, grad_c, mask=exists)
        # The products read what other threads of this program have written, and so does the next step.
        tl.debug_barrier()
        grad_gates = grad_gates_ptr + step * (4 * H)
        add_sent_back(grad_gates, weight_ptr, before, k, k_max, 4, H, BLOCK_B, BLOCK_U, BLOCK_J, PRECISION)
        tl.debug_barrier()


def slim_lstm_backward(
    grad: Tensor,
    grad_last: tuple[Tensor, Tensor],
    out: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    width: int | Tensor,
    state: tuple[Tensor, Tensor],
    *,
    precision: str = "ieee",
    config: RecurrentConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Gradients of `slim_lstm_forward` at ``x``, both weights, ``bias`` and the two states; deterministic.

    Args:
        grad: as the output, its gradient.
        grad_last: ``[B, H]`` each, gradients of the last states.
        out: ``[B, T, H]`` or ``[B, T, width]``, the output.
        x: as in the forward pass, like all that follow.
        weight_ih: ``[H, 4, I]``.
        weight_hh: ``[H, 4, H]``.
        bias: ``[H, 4]``.
        width: a number, or an integer tensor ``[B, T]``.
        state: ``h`` and ``c``, ``[B, H]`` each.
        precision: of float32 products.
        config: launch parameters; `recurrence.select_config` by default.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, (h, c) = check_lstm(x, weight_ih, weight_hh, bias, width, state, precision)
    config = config or select_config(prefix, weight_hh.dtype, precision, backward=True, chip=chip_of(x.device))
    batch, time, units = x.shape[0], x.shape[1], weight_hh.shape[0]
    grad, out = (checks.output_grad(t, None, (batch, time), prefix, units) for t in (grad, out))
    grad_h, grad_c = (
        checks.check_state(name, t, (batch, units), weight_hh)
        for name, t in zip(("grad_last[0]", "grad_last[1]"), grad_last, strict=True)
    )
    before = states_before(out.unsqueeze(2), h.unsqueeze(0), prefix).squeeze(2)
    shared = {"width_in": prefix, "precision": precision}
    # The bias belongs to one of the two products only.
    gates = project(x, weight_ih.unsqueeze(0), bias, prefix, precision=precision)
    gates += project(before, weight_hh.unsqueeze(0), torch.zeros_like(bias), prefix, **shared)
    cells, grad_gates = _cells_before(gates, c, prefix, units), torch.empty_like(gates)
    states, grad_cells = grad_h.float().expand(2, batch, units).contiguous(), grad_c.float().clone()
    if out.numel() > 0:
        kernels = (slim_lstm_resident_backward, slim_lstm_streamed_backward)
        tensors = (grad, gates, cells, weight_hh, grad_gates, states, grad_cells)
        launch_loop(kernels, config, tensors, prefix, (batch, time), {"H": units}, precision)
    first = states[1 if config.resident and time else time % 2]
    grad_x, grad_ih, grad_bias = project_grads(grad_gates, x, weight_ih.unsqueeze(0), width=prefix, precision=precision)
    _, grad_hh, _ = project_grads(grad_gates, before, weight_hh.unsqueeze(0), width=prefix, input_grad=False, **shared)
    return grad_x, grad_ih[0], grad_hh[0], grad_bias[0], (first.to(h.dtype), grad_cells.to(c.dtype))


def _cells_before(gates: Tensor, cell: Tensor, width: Prefix, units: int) -> Tensor:
    """The cell state before every step, ``[B, T, H]`` fp32."""
    batch, time, _ = gates.shape
    before = torch.empty(batch, time, units, dtype=torch.float32, device=gates.device)
    if before.numel() > 0:
        block = min(triton.next_power_of_2(units), 64)
        grid = (batch, triton.cdiv(units, block))
        tensors = (gates, cell, before, width.rows)
        launching.launch(
            slim_lstm_cells, grid, *tensors, time, width.bound, H=units, BLOCK_H=block, num_warps=2, num_stages=1
        )
    return before
