"""Grouped GRU with a prefix of active units per step: all steps in one launch, besides the input's product.

Dimensions: as in `recurrent_loop`. A step of width ``k`` updates the leading ``k`` units of every group; the others put
out zero.

The input's part of all gates is one product over all steps; what remains for the loop over time is a small product per
step. For the gradient, as the state before every step is known, the gates of all steps are computed again in two
products over all steps at once. The loop then carries the gradient of the state back and writes the gradients at the
gates; those of weights and input are products over all steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
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

    Returns:
        Output ``[B, T, M * H]`` and the state after the last step, in the dtype of ``state``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, state = _check(x, weight_ih, weight_hh, bias_ih, bias_hh, width, state, precision)
    config = select_config(prefix, weight_hh.dtype, precision, chip=chip_of(x.device))
    groups, units = weight_hh.shape[:2]
    batch, time = x.shape[:2]
    gates = project(x, weight_ih, bias_ih, prefix, precision=precision)
    whole = prefix.rows is None and prefix.bound == units
    out = gates.new_empty(batch, time, groups * units) if whole else gates.new_zeros(batch, time, groups * units)
    states, seen = start_states(state, config, weight_hh)
    if out.numel() == 0:
        return out, state.clone()
    tensors = (gates, weight_hh, bias_hh, states, None, out, seen)
    launch_loop(FORWARD, config, tensors, prefix, (batch, time), weight_hh, precision)
    return out, states.to(state.dtype)


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
    input_grad: bool = True,
    weight_grads: bool = True,
) -> tuple[Tensor | None, ...]:
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
        input_grad: whether the gradient at ``x`` is wanted; None stands in for it otherwise.
        weight_grads: whether gradients at weights and biases are wanted; None stands in for each otherwise.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix, state = _check(x, weight_ih, weight_hh, bias_ih, bias_hh, width, state, precision)
    config = select_config(prefix, weight_hh.dtype, precision, backward=True, chip=chip_of(x.device))
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
    states = torch.empty_like(grad_last, dtype=torch.float32).copy_(grad_last)
    tensors = (grad, gates, sums, before, weight_hh, grad_gates, grad_sums, states, None)
    if out.numel() > 0:
        launch_loop(BACKWARD, config, tensors, prefix, (batch, time), weight_hh, precision)
    shared = {"width": prefix, "precision": precision, "weight_grads": weight_grads}
    grad_x, grad_ih, grad_bias_ih = project_grads(grad_gates, x, weight_ih, input_grad=input_grad, **shared)
    _, grad_hh, grad_bias_hh = project_grads(grad_sums, before, weight_hh, width_in=prefix, input_grad=False, **shared)
    return grad_x, grad_ih, grad_hh, grad_bias_ih, grad_bias_hh, states.to(state.dtype)


def _check(
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
