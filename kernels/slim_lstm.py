"""LSTM with a prefix of active units per step: all steps in one launch, besides the input's product.

Dimensions: as in `recurrent_loop`. A step of width ``k`` updates the leading ``k`` units; the others put out zero.

The input's part of all gates is one product over all steps; what remains for the loop over time is a small product per
step. For the gradient, as the hidden state before every step is known, the gates of all steps are computed again in two
products over all steps at once, and from these the cell state before every step, unit by unit. The loop then carries
the gradients of both states back and writes the gradients at the gates; those of weights and input are products over
all steps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks, launching
from .cells import load_fp32, tanh
from .recurrence import (
    BACKWARD,
    FORWARD,
    launch_loop,
    project,
    project_grads,
    select_config,
    start_states,
    states_before,
)
from .rows import Prefix
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


def slim_lstm_forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    width: int | Tensor,
    state: tuple[Tensor, Tensor],
    *,
    precision: str = "ieee",
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

    Returns:
        Output ``[B, T, H]``, for a width that is a number ``[B, T, width]``; and the state after the last step.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, (h, c) = _check(x, weight_ih, weight_hh, bias, width, state, precision)
    config = select_config(prefix, weight_hh.dtype, precision, chip=chip_of(x.device))
    batch, time, units = x.shape[0], x.shape[1], weight_hh.shape[0]
    gates = project(x, weight_ih.unsqueeze(0), bias, prefix, precision=precision)
    ragged = prefix.rows is not None
    out = gates.new_zeros(batch, time, units) if ragged else gates.new_empty(batch, time, units)
    states, seen = start_states(h, config, weight_hh)
    cells = torch.empty_like(c, dtype=torch.float32).copy_(c)
    if out.numel() > 0:
        tensors = (gates, weight_hh, None, states, cells, out, seen)
        launch_loop(FORWARD, config, tensors, prefix, (batch, time), weight_hh.unsqueeze(0), precision)
    return out if ragged else out[:, :, : prefix.bound], (states.to(h.dtype), cells.to(c.dtype))


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
    input_grad: bool = True,
    weight_grads: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, tuple[Tensor, Tensor]]:
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
        input_grad: whether the gradient at ``x`` is wanted; None stands in for it otherwise.
        weight_grads: whether gradients at weights and biases are wanted; None stands in for each otherwise.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, (h, c) = _check(x, weight_ih, weight_hh, bias, width, state, precision)
    config = select_config(prefix, weight_hh.dtype, precision, backward=True, chip=chip_of(x.device))
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
    states, grad_cells = (torch.empty_like(t, dtype=torch.float32).copy_(t) for t in (grad_h, grad_c))
    if out.numel() > 0:
        tensors = (grad, gates, None, cells, weight_hh, grad_gates, None, states, grad_cells)
        launch_loop(BACKWARD, config, tensors, prefix, (batch, time), weight_hh.unsqueeze(0), precision)
    last = (states.to(h.dtype), grad_cells.to(c.dtype))
    wanted = {"width": prefix, "precision": precision, "weight_grads": weight_grads}
    grad_x, *in_grads = project_grads(grad_gates, x, weight_ih.unsqueeze(0), input_grad=input_grad, **wanted)
    if not weight_grads:
        return grad_x, None, None, None, last
    _, grad_hh, _ = project_grads(
        grad_gates, before, weight_hh.unsqueeze(0), width_in=prefix, input_grad=False, **wanted
    )
    grad_ih, grad_bias = in_grads
    return grad_x, grad_ih[0], grad_hh[0], grad_bias[0], last


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


def _check(
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
