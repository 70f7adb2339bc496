"""Around the loops of `recurrent_loop`: launch parameters, the input's part of the gates, and states between steps."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from . import launching, recurrent_loop
from .overlap_add import overlap_add
from .prefix_gemm import weight_grad
from .rows import Prefix, Rows, packed_time
from .tiles import AMPERE, Chip, RecurrentConfig, recurrent_config
from .window_gemm import window_product

ITEMS, MOST_ITEMS = 16, 64
"""Items of a program: the fewest that a matrix product takes everywhere, and most, where programs share the units."""
POLLS = 2**20
"""Looks at a counter, about a second of them, after which a program no longer waits for others: see `cells`."""
FORWARD = (recurrent_loop.recurrence_resident, recurrent_loop.recurrence_spread)
BACKWARD = (recurrent_loop.recurrence_resident_backward, recurrent_loop.recurrence_spread_backward)


def select_config(
    width: Prefix, dtype: torch.dtype, precision: str = "ieee", *, backward: bool = False, chip: Chip = AMPERE
) -> RecurrentConfig:
    """Launch parameters for the active units of every step."""
    return recurrent_config(width.bound, width.rows, dtype, precision, backward=backward, chip=chip)


def start_states(state: Tensor, config: RecurrentConfig, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """A hidden state in fp32, which a loop changes, and twice as the weights, for programs that share its units."""
    if config.resident:
        return torch.empty_like(state, dtype=torch.float32).copy_(state), None
    copies = torch.empty(3, *state.shape, dtype=torch.float32, device=state.device).copy_(state)
    return copies[0], copies[1:].to(weight.dtype)


def launch_loop(
    kernels: tuple[triton.JITFunction, triton.JITFunction],
    config: RecurrentConfig,
    tensors: tuple[Tensor | None, ...],
    width: Prefix,
    steps: tuple[int, int],
    weight: Tensor,
    precision: str,
) -> None:
    """Start the loop over time.

    Args:
        kernels: `FORWARD` or `BACKWARD`: the resident and the spread one.
        config: which of them, and its launch parameters.
        tensors: arguments that both have, and those that only the spread one has before its widths.
        width: active units of every step.
        steps: items and steps of each.
        weight: ``[M, H, gates, H]``, whose sizes are constants.
        precision: of float32 products.

    Raises:
        RuntimeError: for programs that would wait for each other, where some have done so in vain.
    """
    if width.bound == 0:
        return
    groups, units, gates, _ = weight.shape
    batch, time = steps
    sizes = {"M": groups, "H": units, "GATES": gates, "BLOCK_U": config.block_u}
    options = {**sizes, "PRECISION": precision, "num_warps": config.num_warps, "num_stages": 2}
    if config.resident:
        grid = (triton.cdiv(batch, ITEMS), groups)
        launching.launch(
            kernels[0],
            grid,
            *tensors[: 6 if kernels is FORWARD else None],
            *steps,
            width.bound,
            BLOCK_B=ITEMS,
            **options,
        )
        return
    if kernels is BACKWARD:
        # The gradient of the first step comes after the last one.
        time += 1
    options |= {"BLOCK_J": config.block_j, "POLLS": POLLS}
    options["BLOCK_B"] = min(max(triton.next_power_of_2(batch), ITEMS), MOST_ITEMS)
    if options["BLOCK_B"] == MOST_ITEMS:
        # Four warps would not have the registers.
        options["num_warps"] = 8
    tiles, parts = triton.cdiv(batch, options["BLOCK_B"]), triton.cdiv(width.bound, config.block_u)
    most = launching.resident_programs(weight.device) // (parts * groups)
    if parts > 1 and most == 0:
        count, gave_up, pieces = None, None, [(0, tiles, step, step + 1) for step in range(time)]
    else:
        # Programs that wait for each other have to be on the chip at once.
        most = most if parts > 1 else tiles
        count, gave_up = _counters(weight.device, tiles, groups)
        pieces = [(tile, min(most, tiles - tile), 0, time) for tile in range(0, tiles, most)]
    for tile, several, first, last in pieces:
        scalars = (*steps, width.bound, first, last, tile)
        grid = (parts, several, groups)
        together = {"launch_cooperative_grid": True} if count is not None and parts > 1 else {}
        launching.launch(kernels[1], grid, *tensors, width.rows, count, gave_up, *scalars, **options, **together)


def _counters(device: torch.device, tiles: int, groups: int) -> tuple[Tensor, Tensor]:
    """What the programs of a tile and a group count by, and the flag of those that wait in vain."""
    gave_up = launching.gave_up_flag(device)
    # Read without the device, so it may be a call later.
    if gave_up.numpy().any():
        raise RuntimeError("programs of an earlier call waited in vain for each other, and its results are NaN")
    return torch.zeros(tiles, groups, dtype=torch.int32, device=device), gave_up


def states_before(out: Tensor, state: Tensor, width: Prefix) -> Tensor:
    """The state before every step, in the dtype of the output.

    Args:
        out: ``[B, T, M, H]``, zero where a unit is inactive.
        state: ``[M, B, H]``, before the first step.
        width: active units of every step. Of a number, units beyond it come out as zeros.

    Returns:
        ``[B, T, M, H]``.
    """
    first = state.transpose(0, 1).unsqueeze(1).to(out.dtype)
    if width.rows is not None:
        # An inactive unit keeps the state of its last active step.
        active = torch.arange(out.shape[3], device=out.device) < width.rows.unsqueeze(-1)
        step = torch.arange(out.shape[1], device=out.device).view(1, -1, 1)
        last = torch.where(active, step, -1).cummax(1).values.unsqueeze(2).expand_as(out)
        out = torch.where(last >= 0, out.gather(1, last.clamp(min=0)), first)
    # Of no steps there is no state before one.
    return torch.cat([first, out[:, :-1]], 1) if out.shape[1] else out


def project(
    x: Tensor, weight: Tensor, bias: Tensor, width: Prefix, *, width_in: Prefix | None = None, precision: str
) -> Tensor:
    """Gates of the active units of all steps from ``x``, group by group.

    Args:
        x: ``[B, T, M * I]``; of one group, it may be narrower.
        weight: ``[M, H, gates, I]``.
        bias: ``[M, H, gates]``.
        width: active units of every step.
        width_in: active elements of a group of ``x``; None for all.
        precision: of float32 products.

    Returns:
        ``[B, T, M * H * gates]``, undefined where a unit is inactive.
    """
    groups, _, gates, _ = weight.shape
    rows = _group_rows(x, groups)
    return window_product(
        rows,
        weight.flatten(0, 2),
        bias.flatten(),
        width,
        width_in=width_in,
        unit=gates,
        groups=groups,
        precision=precision,
    )


def project_grads(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    width: Prefix,
    width_in: Prefix | None = None,
    input_grad: bool = True,
    weight_grads: bool = True,
    precision: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `project` at ``x``, ``weight`` and ``bias``; None where they are not wanted."""
    groups, units, gates, inputs = weight.shape
    time, length = x.shape[1], x.shape[2] // groups
    grad_rows, x_rows = _group_rows(grad, groups), _group_rows(x, groups)
    to_x, to_weight, to_bias = [], [], []
    for group in range(groups):
        mine = replace(grad_rows, data=grad_rows.data[:, :, group * units * gates :][:, :, : units * gates])
        seen = replace(x_rows, data=x_rows.data[:, :, group * length :][:, :, :length])
        if input_grad:
            records, shape = weight[group].flatten(0, 1), {"channels": inputs, "n_time": time}
            to_x.append(overlap_add(mine, records, None, width, **shape, unit=gates, precision=precision))
        if weight_grads:
            shared = {"unit": gates, "bias": True, "precision": precision}
            in_weight, in_bias = weight_grad(mine, seen, width, width_in=width_in, **shared)
            to_weight.append(torch.nn.functional.pad(in_weight.squeeze(1), (0, inputs - length)))
            to_bias.append(in_bias)
    grad_x = torch.cat(to_x, 2)[:, :, : x.shape[2]] if input_grad else None
    if not weight_grads:
        return grad_x, None, None
    return grad_x, torch.stack(to_weight).view_as(weight), torch.stack(to_bias).view(groups, units, gates)


def _group_rows(x: Tensor, groups: int) -> Rows:
    """The part of the first of ``groups`` in every position of ``x``; the others follow."""
    return Rows(packed_time(x), x.shape[1], 1, x.shape[2] // groups)
