"""What the recurrent kernels share: helpers inside a step, launch parameters, and the states between steps.

Tiles are ``(units, items)``: the recurrent weights come first in a product, so that a tile of few items still fills the
instruction. A program runs all steps of a tile of items, and does so in one of two ways:

- resident: all active units are one tile, whose weights and state stay on chip. For one width, where they fit.
- streamed: units are taken in blocks up to the largest width of a step; weights come from the cache, and the state goes
  through two buffers, with a barrier between steps. Of one width, they take turns: units beyond it are the same in both
  from the start. Of a width per step, the second one is for the new states of a step, which are copied back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launching
from .overlap_add import overlap_add
from .prefix_gemm import product, weight_grad
from .rows import Prefix, Rows, packed_time
from .tiles import AMPERE, Chip, RecurrentConfig, recurrent_config
from .window_gemm import window_product

BLOCK_B = 16
"""Items of a program: the fewest that a matrix product takes everywhere."""


@triton.jit
def tanh(x):
    """Hyperbolic tangent; this form runs on every backend and has no overflow."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def load_fp32(ptrs, mask):
    """Load as fp32, zero where ``mask`` is false."""
    return tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_item_tile(n_batch, BLOCK: tl.constexpr):
    """Items of this program, int64, and whether they exist."""
    items = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
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
def state_buffers(states, turn, t, width_ptr):
    """Where a streamed step reads the states, and where it writes them."""
    if width_ptr is not None:
        return states, states + turn
    return states + (t % 2) * turn, states + (1 - t % 2) * turn


@triton.jit
def keep_states(new, states, k, k_max, BLOCK_U: tl.constexpr):
    """Copy the new states of a step's active units back; the next step reads them."""
    for u in range(0, k_max, BLOCK_U):
        offs_u = u + tl.arange(0, BLOCK_U)
        active = offs_u[:, None] < k[None, :]
        h = tl.load(new[None, :] + offs_u[:, None], mask=active, other=0.0)
        tl.store(states[None, :] + offs_u[:, None], h, mask=active)
    tl.debug_barrier()


@triton.jit
def add_sent_back(
    grads_ptr,  # (items,) pointers to (H, GATES): gradients at the gates of a step
    weight_ptr,  # (H, GATES, H) of a group
    before_ptr,  # (items,) pointers to (H,) fp32: gradient at the state before the step
    k,
    k_max,
    GATES: tl.constexpr,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to the gradient at the state what the active gates that it went into send back through the weights."""
    for j in range(0, k_max, BLOCK_J):
        offs_j = j + tl.arange(0, BLOCK_J)
        acc = tl.zeros([BLOCK_J, BLOCK_B], dtype=tl.float32)
        for u in range(0, k_max, BLOCK_U):
            offs_u = u + tl.arange(0, BLOCK_U)
            active = offs_u[:, None] < k[None, :]
            for gate in tl.static_range(GATES):
                grads = tl.load(grads_ptr[None, :] + GATES * offs_u[:, None] + gate, mask=active, other=0.0)
                weight = load_record_block(weight_ptr, gate, offs_u, offs_j, k_max, GATES, H, BLOCK_J)
                acc = product(tl.trans(weight), grads, acc, PRECISION=PRECISION)
        ptrs = before_ptr[None, :] + offs_j[:, None]
        active = offs_j[:, None] < k[None, :]
        tl.store(ptrs, load_fp32(ptrs, active) + acc, mask=active)


def select_config(
    width: Prefix, dtype: torch.dtype, precision: str = "ieee", *, backward: bool = False, chip: Chip = AMPERE
) -> RecurrentConfig:
    """Launch parameters for the active units of every step."""
    return recurrent_config(width.bound, width.rows, dtype, precision, backward=backward, chip=chip)


def launch_loop(
    kernels: tuple[Any, Any],
    config: RecurrentConfig,
    tensors: tuple[Tensor, ...],
    width: Prefix,
    steps: tuple[int, int],
    sizes: dict[str, int],
    precision: str,
) -> None:
    """Start the loop over time.

    Args:
        kernels: the resident and the streamed one.
        config: which of them, and its launch parameters.
        tensors: arguments that both have.
        width: active units of every step.
        steps: items and steps of each.
        sizes: constants: units ``H`` and, where there are some, groups ``M``.
        precision: of float32 products.
    """
    grid = (triton.cdiv(steps[0], BLOCK_B), sizes.get("M", 1))
    constants = {**sizes, "BLOCK_B": BLOCK_B, "BLOCK_U": config.block_u, "PRECISION": precision}
    if config.block_u * BLOCK_B < 32 * config.num_warps:
        raise ValueError(f"{config}: expected a tile of at least one element per thread, as states change in place")
    scalars, options = (*steps, width.bound), {"num_warps": config.num_warps, "num_stages": 2}
    if config.resident:
        launching.launch(kernels[0], grid, *tensors, *scalars, **constants, **options)
    else:
        launching.launch(
            kernels[1], grid, *tensors, width.rows, *scalars, **constants, BLOCK_J=config.block_j, **options
        )


def last_state(states: Tensor, config: RecurrentConfig, width: Prefix, steps: int) -> Tensor:
    """Which of the two buffers of a forward pass holds the state after so many steps."""
    if steps == 0:
        return states[0]
    return states[1] if config.resident else states[steps % 2 if width.rows is None else 0]


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
        # A unit that sleeps keeps the state of its last active step.
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
    precision: str,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of `project` at ``x`` (None without ``input_grad``), ``weight`` and ``bias``."""
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
        in_weight, in_bias = weight_grad(
            mine, seen, width, width_in=width_in, unit=gates, bias=True, precision=precision
        )
        to_weight.append(torch.nn.functional.pad(in_weight.squeeze(1), (0, inputs - length)))
        to_bias.append(in_bias)
    grad_x = torch.cat(to_x, 2)[:, :, : x.shape[2]] if input_grad else None
    return grad_x, torch.stack(to_weight).view_as(weight), torch.stack(to_bias).view(groups, units, gates)


def _group_rows(x: Tensor, groups: int) -> Rows:
    """The part of the first of ``groups`` in every position of ``x``; the others follow."""
    return Rows(packed_time(x), x.shape[1], 1, x.shape[2] // groups)
