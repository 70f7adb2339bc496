"""Recurrent references: GRUs side by side and an LSTM, whose hidden units can be cut, and a diagonal GRU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..width import SoftWidth, Width, max_width


def diagonal_gru(gates_x: Tensor, weight_hh: Tensor, bias_hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A GRU whose units see only their own past: its recurrent weights are vectors (gates as in `torch.nn.GRU`).

    Args:
        gates_x: ``[B, T, 3, H]``, what the input and its bias add to the gates reset, update, new.
        weight_hh: ``[3, H]``.
        bias_hh: ``[3, H]``.
        state: ``[B, H]``, the hidden state before the first step.

    Returns:
        Output ``[B, T, H]`` and the state after the last step.

    Source: the router of arXiv 2507.04879.
    """
    outputs = []
    for now in gates_x.unbind(1):
        recurrent = weight_hh * state.unsqueeze(1) + bias_hh
        reset, update = torch.sigmoid(now[:, :2] + recurrent[:, :2]).unbind(1)
        new = torch.tanh(now[:, 2] + reset * recurrent[:, 2])
        state = new + update * (state - new)
        outputs.append(state)
    return torch.stack(outputs, dim=1) if outputs else gates_x.new_zeros(gates_x[:, :, 0].shape), state


def slim_gru(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    width: Width,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """``M`` independent GRUs side by side on slices of the channels, ``k_t`` active units each (as `torch.nn.GRU`).

    Units beyond ``k_t`` keep their state and put out zero, and no active unit sees them.

    Args:
        x: ``[B, T, M * I]``.
        weight_ih: ``[M, H, 3, I]``: the reset, update and new rows of a unit side by side; units ``[:k]`` are read.
        weight_hh: ``[M, H, 3, H]``; units ``[:k]`` and their columns ``[:k]`` are read.
        bias_ih: ``[M, H, 3]``.
        bias_hh: ``[M, H, 3]``; not to be added to ``bias_ih``, as that of the new gate is scaled by the reset gate.
        width: active units of every group over the ``T`` steps. Soft widths interpolate between keeping and updating.
        state: ``[M, B, H]``, the hidden state before the first step.

    Returns:
        Output ``[B, T, M * H]`` and the state after the last step.
    """
    batch, time, _ = x.shape
    groups, units, _, inputs = weight_ih.shape
    k = max_width(width, units)
    # Transposed views of the prefix: the products read the weights where they lie.
    weight_ih = weight_ih[:, :k].reshape(groups, 3 * k, inputs).mT
    weight_hh = weight_hh[:, :k, :, :k].reshape(groups, 3 * k, k).mT
    bias_ih, bias_hh = (bias[:, :k].reshape(groups, 1, 3 * k) for bias in (bias_ih, bias_hh))
    grouped = x.reshape(batch * time, groups, inputs).transpose(0, 1)
    projected = torch.baddbmm(bias_ih, grouped, weight_ih).view(groups, batch, time, k, 3)
    h = state[:, :, :k]
    outputs = []
    for now, mask in zip(projected.unbind(2), _step_masks(width, k, time), strict=True):
        seen = h if mask is None else _keep(mask, h, torch.zeros_like(h))
        recurrent = torch.baddbmm(bias_hh, seen, weight_hh).view(groups, batch, k, 3)
        reset, update = torch.sigmoid(now[..., :2] + recurrent[..., :2]).unbind(-1)
        new = torch.tanh(now[..., 2] + reset * recurrent[..., 2])
        out = new + update * (h - new)
        h = out if mask is None else _keep(mask, out, h)
        outputs.append(out if mask is None else _keep(mask, out, torch.zeros_like(out)))
    if not outputs:
        return x.new_zeros(batch, 0, groups * units), state
    out = torch.stack(outputs, dim=2)
    if k < units:
        out = torch.nn.functional.pad(out, (0, units - k))
        h = torch.cat([h, state[:, :, k:]], dim=2)
    return out.permute(1, 2, 0, 3).reshape(batch, time, groups * units), h


def _step_masks(width: Width, units: int, time: int) -> list[Tensor | None]:
    """Per step a multiplier ``[B, units]`` of the active units, or None where all of them are active."""
    if isinstance(width, int):
        return [None] * time
    if isinstance(width, SoftWidth):
        return list(width.mask.unbind(1))
    active = torch.arange(units, device=width.device) < width.unsqueeze(-1)
    return list(active.unbind(1))


def slim_lstm(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    width: Width,
    state: tuple[Tensor, Tensor],
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One LSTM layer with ``k_t`` active units at step ``t`` (gates as in `torch.nn.LSTM`).

    Gates are computed for units ``[:k_t]`` from the input and from ``h[t-1][:k_t]``; units beyond keep ``h`` and
    ``c`` and put out zero, so a width may change at every step with no conversion of state.

    Args:
        x: ``[B, T, I]``; may be narrower than ``weight_ih`` (then its leading columns are read).
        weight_ih: ``[H, 4, I]``: the input, forget, cell and output rows of a unit side by side.
        weight_hh: ``[H, 4, H]``.
        bias: ``[H, 4]``, the sum of both biases.
        width: active units over the ``T`` steps. Soft widths interpolate between keeping and updating a unit.
        state: ``h`` and ``c``, ``[B, H]`` each, before the first step.

    Returns:
        Output ``[B, T, H]``, for a width that is a number ``[B, T, k]``, and the state after the last step.
    """
    batch, time, inputs = x.shape
    units = max_width(width, weight_ih.shape[0])
    projected = torch.addmm(
        bias[:units].reshape(-1),
        x.reshape(batch * time, inputs),
        weight_ih[:units, :, :inputs].reshape(4 * units, inputs).t(),
    ).view(batch, time, units, 4)
    recurrent = weight_hh[:units, :, :units].reshape(4 * units, units).t()
    full_h, full_c = state
    h, c = full_h[:, :units], full_c[:, :units]
    outputs = []
    for now, mask in zip(projected.unbind(1), _step_masks(width, units, time), strict=True):
        # Narrow rows must not see the state of units beyond their width.
        seen = h if mask is None else _keep(mask, h, torch.zeros_like(h))
        gates = now + (seen @ recurrent).view(batch, units, 4)
        cell = torch.sigmoid(gates[..., 1]) * c + torch.sigmoid(gates[..., 0]) * torch.tanh(gates[..., 2])
        out = torch.sigmoid(gates[..., 3]) * torch.tanh(cell)
        if mask is None:
            h, c = out, cell
        else:
            h, c = _keep(mask, out, h), _keep(mask, cell, c)
            out = _keep(mask, out, torch.zeros_like(out))
        outputs.append(out)
    result = torch.stack(outputs, dim=1) if outputs else x.new_zeros(batch, 0, units)
    if not isinstance(width, int):
        result = torch.nn.functional.pad(result, (0, weight_ih.shape[0] - units))
    return result, (torch.cat([h, full_h[:, units:]], 1), torch.cat([c, full_c[:, units:]], 1))


def _keep(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` where ``mask`` is 1, ``old`` where it is 0, a blend between."""
    return torch.where(mask, new, old) if mask.dtype == torch.bool else old + mask * (new - old)
