"""GRU whose recurrent weights are vectors: each unit sees only its own past, so that a unit is one lane of a program.

Dimensions:
    H: hidden units, ``BLOCK_H`` of one item per program; the time loop runs inside.
    Gates in the order reset, update, new.

The state is fp32 from the first step to the last; only what is written out is rounded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks, launching
from .cells import load_fp32, tanh


@triton.jit
def _load_gates(ptrs, mask, H: tl.constexpr):
    """What there is for the reset, update and new gate, ``H`` elements apart, as fp32."""
    return load_fp32(ptrs, mask), load_fp32(ptrs + H, mask), load_fp32(ptrs + 2 * H, mask)


@triton.jit
def _store_gates(ptrs, reset, update, new, mask, H: tl.constexpr):
    """Write what `_load_gates` reads."""
    tl.store(ptrs, reset, mask=mask)
    tl.store(ptrs + H, update, mask=mask)
    tl.store(ptrs + 2 * H, new, mask=mask)


@triton.jit(do_not_specialize=["n_time"])
def diagonal_gru_scan(
    gates_ptr,  # (B, n_time, 3, H): input's part of the gates
    weight_ptr,  # (3, H)
    bias_ptr,  # (3, H)
    state_ptr,  # (B, H)
    out_ptr,  # (B, n_time, H)
    last_ptr,  # (B, H)
    n_time,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """All steps of some units of an item."""
    item = tl.program_id(0).to(tl.int64)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = offs_h < H
    weight_r, weight_z, weight_n = _load_gates(weight_ptr + offs_h, mask, H)
    bias_r, bias_z, bias_n = _load_gates(bias_ptr + offs_h, mask, H)
    h = load_fp32(state_ptr + item * H + offs_h, mask)
    for t in range(0, n_time):
        step = item * n_time + t
        gate_r, gate_z, gate_n = _load_gates(gates_ptr + step * (3 * H) + offs_h, mask, H)
        reset = tl.sigmoid(gate_r + weight_r * h + bias_r)
        update = tl.sigmoid(gate_z + weight_z * h + bias_z)
        new = tanh(gate_n + reset * (weight_n * h + bias_n))
        h = new + update * (h - new)
        tl.store(out_ptr + step * H + offs_h, h, mask=mask)
    tl.store(last_ptr + item * H + offs_h, h, mask=mask)


@triton.jit(do_not_specialize=["n_time"])
def diagonal_gru_scan_backward(
    grad_ptr,  # (B, n_time, H): gradient of the output
    grad_last_ptr,  # (B, H): of the last state
    gates_ptr,  # (B, n_time, 3, H)
    weight_ptr,  # (3, H)
    bias_ptr,  # (3, H)
    state_ptr,  # (B, H)
    out_ptr,  # (B, n_time, H): output of the forward pass
    grad_gates_ptr,  # (B, n_time, 3, H)
    grad_weight_ptr,  # (B, 3, H) fp32
    grad_bias_ptr,  # (B, 3, H) fp32
    grad_state_ptr,  # (B, H)
    n_time,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """All steps of some units of an item, from the last to the first."""
    item = tl.program_id(0).to(tl.int64)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = offs_h < H
    weight_r, weight_z, weight_n = _load_gates(weight_ptr + offs_h, mask, H)
    bias_r, bias_z, bias_n = _load_gates(bias_ptr + offs_h, mask, H)
    first = load_fp32(state_ptr + item * H + offs_h, mask)
    grad_h = load_fp32(grad_last_ptr + item * H + offs_h, mask)
    sum_weight_r = tl.zeros([BLOCK_H], dtype=tl.float32)
    sum_weight_z = tl.zeros([BLOCK_H], dtype=tl.float32)
    sum_weight_n = tl.zeros([BLOCK_H], dtype=tl.float32)
    sum_bias_r = tl.zeros([BLOCK_H], dtype=tl.float32)
    sum_bias_z = tl.zeros([BLOCK_H], dtype=tl.float32)
    sum_bias_n = tl.zeros([BLOCK_H], dtype=tl.float32)
    for back in range(0, n_time):
        t = n_time - 1 - back
        step = item * n_time + t
        h = tl.where(t > 0, load_fp32(out_ptr + tl.where(t > 0, step - 1, step) * H + offs_h, mask), first)
        gate_r, gate_z, gate_n = _load_gates(gates_ptr + step * (3 * H) + offs_h, mask, H)
        reset = tl.sigmoid(gate_r + weight_r * h + bias_r)
        update = tl.sigmoid(gate_z + weight_z * h + bias_z)
        past = weight_n * h + bias_n
        new = tanh(gate_n + reset * past)
        grad_h += load_fp32(grad_ptr + step * H + offs_h, mask)
        grad_n = grad_h * (1.0 - update) * (1.0 - new * new)
        grad_z = grad_h * (h - new) * update * (1.0 - update)
        grad_r = grad_n * past * reset * (1.0 - reset)
        grad_past = grad_n * reset
        grad_h = grad_h * update + grad_r * weight_r + grad_z * weight_z + grad_past * weight_n
        sum_weight_r += grad_r * h
        sum_weight_z += grad_z * h
        sum_weight_n += grad_past * h
        sum_bias_r += grad_r
        sum_bias_z += grad_z
        sum_bias_n += grad_past
        _store_gates(grad_gates_ptr + step * (3 * H) + offs_h, grad_r, grad_z, grad_n, mask, H)
    tl.store(grad_state_ptr + item * H + offs_h, grad_h, mask=mask)
    partial = item * (3 * H) + offs_h
    _store_gates(grad_weight_ptr + partial, sum_weight_r, sum_weight_z, sum_weight_n, mask, H)
    _store_gates(grad_bias_ptr + partial, sum_bias_r, sum_bias_z, sum_bias_n, mask, H)


def diagonal_gru_forward(gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run all steps in one launch; see `slimse.ops.diagonal_gru` for what it computes.

    Args:
        gates_x: ``[B, T, 3, H]``: what the input adds to the gates reset, update and new, with its bias.
        weight_hh: ``[3, H]``.
        bias_hh: ``[3, H]``.
        state: ``[B, H]``, the hidden state before the first step; fp32 or as the other tensors.

    Returns:
        Output ``[B, T, H]`` and the state after the last step, in the dtype of ``state``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    gates_x, state = _check(gates_x, weight_hh, bias_hh, state)
    batch, time, _, units = gates_x.shape
    out, last = gates_x.new_empty(batch, time, units), torch.empty_like(state)
    _launch(diagonal_gru_scan, (gates_x, weight_hh, bias_hh, state, out, last), gates_x)
    return out, last


def diagonal_gru_backward(
    grad: Tensor,
    grad_last: Tensor,
    out: Tensor,
    gates_x: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `diagonal_gru_forward` at its four arguments; deterministic.

    Args:
        grad: ``[B, T, H]``, gradient of the output.
        grad_last: ``[B, H]``, gradient of the last state.
        out: ``[B, T, H]``, the output.
        gates_x: as in the forward pass, like all that follow.
        weight_hh: ``[3, H]``.
        bias_hh: ``[3, H]``.
        state: ``[B, H]``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    gates_x, state = _check(gates_x, weight_hh, bias_hh, state)
    batch, time, _, units = gates_x.shape
    grad, out = grad.contiguous(), out.contiguous()
    checks.check_shapes(grad=(grad, (batch, time, units)), out=(out, (batch, time, units)))
    grad_last = checks.check_state("grad_last", grad_last, (batch, units), gates_x)
    grad_gates, grad_state = torch.empty_like(gates_x), torch.empty_like(state)
    # One sum per item, added up in order afterwards.
    partial = torch.empty(2, batch, 3, units, dtype=torch.float32, device=gates_x.device)
    given = (grad, grad_last, gates_x, weight_hh, bias_hh, state, out)
    _launch(diagonal_gru_scan_backward, (*given, grad_gates, partial[0], partial[1], grad_state), gates_x)
    grad_weight, grad_bias = partial.sum(1).to(weight_hh.dtype)
    return grad_gates, grad_weight, grad_bias, grad_state


def _check(gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Check what the layer is given; return the gates and the state, contiguous."""
    if gates_x.ndim != 4 or weight_hh.ndim != 2:
        found = f"{tuple(gates_x.shape)} and {tuple(weight_hh.shape)}"
        raise ValueError(f"gates_x and weight_hh have shapes {found}: expected [B, T, 3, H] and [3, H]")
    gates_x = gates_x.contiguous()
    batch, time, _, units = gates_x.shape
    checks.check_shapes(
        gates_x=(gates_x, (batch, time, 3, units)), weight_hh=(weight_hh, (3, units)), bias_hh=(bias_hh, (3, units))
    )
    return gates_x, checks.check_state("state", state, (batch, units), gates_x)


def _launch(kernel: triton.JITFunction, tensors: tuple[Tensor, ...], gates_x: Tensor) -> None:
    """Start one program for a few units of an item."""
    batch, time, _, units = gates_x.shape
    if batch == 0 or units == 0:
        return
    block = min(triton.next_power_of_2(units), 64)
    grid = (batch, triton.cdiv(units, block))
    launching.launch(
        kernel, grid, *tensors, time, H=units, BLOCK_H=block, num_warps=1 if block <= 32 else 2, num_stages=1
    )
