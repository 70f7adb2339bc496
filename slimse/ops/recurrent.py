"""Recurrent twins: grouped GRU at full width and an LSTM whose hidden units can be cut."""

from __future__ import annotations

import torch
from torch import Tensor

from ..width import SoftWidth, Width, max_width


def grouped_gru(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """``M`` independent GRUs side by side, each on its own slice of the channels (gates as in `torch.nn.GRU`).

    Args:
        x: ``[B, T, M * I]``.
        weight_ih: ``[M, I, 3 * H]``, gates reset, update, new.
        weight_hh: ``[M, H, 3 * H]``.
        bias_ih: ``[M, 1, 3 * H]``.
        bias_hh: ``[M, 1, 3 * H]``.
        state: ``[M, B, H]``, the hidden state before the first step.

    Returns:
        Output ``[B, T, M * H]`` and the state after the last step.
    """
    batch, time, _ = x.shape
    groups, inputs, _ = weight_ih.shape
    hidden = weight_hh.shape[1]
    grouped = x.reshape(batch * time, groups, inputs).transpose(0, 1)
    projected = torch.baddbmm(bias_ih, grouped, weight_ih).view(groups, batch, time, 3 * hidden)
    outputs = []
    for now in projected.unbind(2):
        recurrent = torch.baddbmm(bias_hh, state, weight_hh)
        reset_update = torch.sigmoid(now[..., : 2 * hidden] + recurrent[..., : 2 * hidden])
        reset, update = reset_update.chunk(2, dim=-1)
        new = torch.tanh(now[..., 2 * hidden :] + reset * recurrent[..., 2 * hidden :])
        state = new + update * (state - new)
        outputs.append(state)
    if not outputs:
        return x.new_zeros(batch, 0, groups * hidden), state
    out = torch.stack(outputs, dim=2)
    return out.permute(1, 2, 0, 3).reshape(batch, time, groups * hidden), state


def _step_mask(width: Width, units: int, time: int) -> list[Tensor | None]:
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
        Output ``[B, T, k]`` with ``k`` the largest active count, and the state after the last step.
    """
    batch, time, inputs = x.shape
    units = max_width(width, weight_ih.shape[0])
    projected = torch.addmm(
        bias[:units].reshape(-1),
        x.reshape(batch * time, inputs),
        weight_ih[:units, :, :inputs].reshape(4 * units, -1).t(),
    ).view(batch, time, units, 4)
    recurrent = weight_hh[:units, :, :units].reshape(4 * units, units).t()
    full_h, full_c = state
    h, c = full_h[:, :units], full_c[:, :units]
    outputs = []
    for now, mask in zip(projected.unbind(1), _step_mask(width, units, time), strict=True):
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
    return result, (torch.cat([h, full_h[:, units:]], 1), torch.cat([c, full_c[:, units:]], 1))


def _keep(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` where ``mask`` is 1, ``old`` where it is 0, a blend between."""
    return torch.where(mask, new, old) if mask.dtype == torch.bool else old + mask * (new - old)
