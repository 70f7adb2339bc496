"""The loops over time of GRU and LSTM: one set of kernels; `cells` has what a step of each computes.

Dimensions:
    M: groups side by side (an LSTM has one); H: units of a group, with a record of ``GATES`` gates each: reset, update
        and new of a GRU, input, forget, cell and output of an LSTM.
    A step of width ``k`` updates the leading ``k`` units of every group and lets them see each other; the others keep
    their state.

Tiles are ``(units, items)``: the recurrent weights come first in a product, so that a tile of few items still fills the
instruction. There are two ways:

- resident: a program runs all steps of a tile of items and a group; all active units are one tile, whose weights and
  state stay on chip. For one width, where they fit.
- spread: the units of a tile of items are spread over programs. Each keeps the state of its own, and reads at each step
  what all of them were at the step before, from one of two buffers that take turns. It waits for the others between
  steps; or a launch is one step.

States are fp32 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cells import (
    gru_back,
    gru_step,
    load_bias,
    load_fp32,
    load_gate,
    load_item_tile,
    load_record_block,
    load_shared,
    lstm_back,
    lstm_step,
    step_width,
    wait_for_all,
)
from .prefix_gemm import product


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def recurrence_resident(
    gates_ptr,  # (n_batch, n_time, M, H, GATES)
    weight_ptr,  # (M, H, GATES, H), rows and columns [:width] are read
    bias_ptr,  # (M, H, 3), or None for an LSTM
    state_ptr,  # (M, n_batch, H) fp32: hidden state, before and after
    cell_ptr,  # (n_batch, H) fp32: cell state of an LSTM, before and after; or None
    out_ptr,  # (n_batch, n_time, M, H), units [:width] are written
    n_batch,
    n_time,
    width,
    M: tl.constexpr,
    H: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps of a tile of items and a group, weights and states on chip."""
    items, mask_b = load_item_tile(tl.program_id(0), n_batch, BLOCK_B)
    group = tl.program_id(1)
    offs_u = tl.arange(0, BLOCK_U)
    active = (offs_u < width)[:, None] & mask_b[None, :]
    weights = weight_ptr + group * (GATES * H * H)
    weight_0 = load_record_block(weights, 0, offs_u, offs_u, width, GATES, H, BLOCK_U)
    weight_1 = load_record_block(weights, 1, offs_u, offs_u, width, GATES, H, BLOCK_U)
    weight_2 = load_record_block(weights, 2, offs_u, offs_u, width, GATES, H, BLOCK_U)
    states = state_ptr + ((group * n_batch + items) * H)[None, :] + offs_u[:, None]
    h = load_fp32(states, active)
    first = items * n_time
    gate_0 = load_gate(gates_ptr, 0, first, group, offs_u, active, M, H, GATES)
    gate_1 = load_gate(gates_ptr, 1, first, group, offs_u, active, M, H, GATES)
    gate_2 = load_gate(gates_ptr, 2, first, group, offs_u, active, M, H, GATES)
    if GATES == 4:
        weight_3 = load_record_block(weights, 3, offs_u, offs_u, width, GATES, H, BLOCK_U)
        gate_3 = load_gate(gates_ptr, 3, first, group, offs_u, active, M, H, GATES)
        cells = cell_ptr + (items * H)[None, :] + offs_u[:, None]
        c = load_fp32(cells, active)
    else:
        bias_0 = load_bias(bias_ptr, 0, group, offs_u, H)
        bias_1 = load_bias(bias_ptr, 1, group, offs_u, H)
        bias_2 = load_bias(bias_ptr, 2, group, offs_u, H)
    for t in range(0, n_time):
        step = items * n_time + t
        # The gates of the next step are on their way while this one computes.
        ahead = items * n_time + tl.minimum(t + 1, n_time - 1)
        next_0 = load_gate(gates_ptr, 0, ahead, group, offs_u, active, M, H, GATES)
        next_1 = load_gate(gates_ptr, 1, ahead, group, offs_u, active, M, H, GATES)
        next_2 = load_gate(gates_ptr, 2, ahead, group, offs_u, active, M, H, GATES)
        seen = h.to(weight_0.dtype)
        sum_0 = product(weight_0, seen, PRECISION=PRECISION)
        sum_1 = product(weight_1, seen, PRECISION=PRECISION)
        sum_2 = product(weight_2, seen, PRECISION=PRECISION)
        if GATES == 4:
            next_3 = load_gate(gates_ptr, 3, ahead, group, offs_u, active, M, H, GATES)
            sum_3 = product(weight_3, seen, PRECISION=PRECISION)
            out, cell = lstm_step(sum_0, sum_1, sum_2, sum_3, gate_0, gate_1, gate_2, gate_3, c)
            c, gate_3 = tl.where(active, cell, c), next_3
        else:
            out = gru_step(sum_0 + bias_0, sum_1 + bias_1, sum_2 + bias_2, gate_0, gate_1, gate_2, h)
        h = tl.where(active, out, h)
        tl.store(out_ptr + (step * (M * H))[None, :] + (group * H + offs_u)[:, None], h, mask=active)
        gate_0, gate_1, gate_2 = next_0, next_1, next_2
    tl.store(states, h, mask=active)
    if GATES == 4:
        tl.store(cells, c, mask=active)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width", "first", "last", "first_tile"])
def recurrence_spread(
    gates_ptr,  # (n_batch, n_time, M, H, GATES)
    weight_ptr,  # (M, H, GATES, H), rows and columns [:k] are read
    bias_ptr,  # (M, H, 3), or None for an LSTM
    state_ptr,  # (M, n_batch, H) fp32: hidden state, before and after
    cell_ptr,  # (n_batch, H) fp32: cell state of an LSTM, before and after; or None
    out_ptr,  # (n_batch, n_time, M, H), units [:k] are written
    seen_ptr,  # (2, M, n_batch, H) as the weights: hidden states at even and at odd steps
    width_ptr,  # (n_batch, n_time) int32 or None
    count_ptr,  # (tiles of items, M) int32 zeros: programs that have done a step, or None where a launch is one step
    gave_up_ptr,  # (1,) int32 of the host, set where a program waits in vain; or None
    n_batch,
    n_time,
    width,
    first,  # step
    last,  # step, not included
    first_tile,  # of items
    M: tl.constexpr,
    H: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
    POLLS: tl.constexpr,
):
    """Some steps of a tile of items, of some units of a group."""
    tile, group = first_tile + tl.program_id(1), tl.program_id(2)
    items, mask_b = load_item_tile(tile, n_batch, BLOCK_B)
    offs_u = tl.program_id(0) * BLOCK_U + tl.arange(0, BLOCK_U)
    exists = (offs_u < H)[:, None] & mask_b[None, :]
    weights = weight_ptr + group * (GATES * H * H)
    rows = (group * n_batch + items) * H
    turn = M * n_batch.to(tl.int64) * H
    states = state_ptr + rows[None, :] + offs_u[:, None]
    h = load_fp32(states, exists)
    if GATES == 4:
        cells = cell_ptr + (items * H)[None, :] + offs_u[:, None]
        c = load_fp32(cells, exists)
    for t in range(first, last):
        step = items * n_time + t
        k = step_width(width_ptr, step, mask_b, width, H)
        k_max = tl.max(k, axis=0)
        old, new = seen_ptr + (t % 2) * turn, seen_ptr + (1 - t % 2) * turn
        if tl.program_id(0) * BLOCK_U < k_max:
            active = offs_u[:, None] < k[None, :]
            gate_0 = load_gate(gates_ptr, 0, step, group, offs_u, active, M, H, GATES)
            gate_1 = load_gate(gates_ptr, 1, step, group, offs_u, active, M, H, GATES)
            gate_2 = load_gate(gates_ptr, 2, step, group, offs_u, active, M, H, GATES)
            sum_0 = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_1 = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            sum_2 = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            if GATES == 4:
                gate_3 = load_gate(gates_ptr, 3, step, group, offs_u, active, M, H, GATES)
                sum_3 = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
            for j in range(0, k_max, BLOCK_J):
                offs_j = j + tl.arange(0, BLOCK_J)
                seen = tl.trans(load_shared(old + rows, k, offs_j))
                weight = load_record_block(weights, 0, offs_u, offs_j, k_max, GATES, H, BLOCK_J)
                sum_0 = product(weight, seen, sum_0, PRECISION=PRECISION)
                weight = load_record_block(weights, 1, offs_u, offs_j, k_max, GATES, H, BLOCK_J)
                sum_1 = product(weight, seen, sum_1, PRECISION=PRECISION)
                weight = load_record_block(weights, 2, offs_u, offs_j, k_max, GATES, H, BLOCK_J)
                sum_2 = product(weight, seen, sum_2, PRECISION=PRECISION)
                if GATES == 4:
                    weight = load_record_block(weights, 3, offs_u, offs_j, k_max, GATES, H, BLOCK_J)
                    sum_3 = product(weight, seen, sum_3, PRECISION=PRECISION)
            if GATES == 4:
                out, cell = lstm_step(sum_0, sum_1, sum_2, sum_3, gate_0, gate_1, gate_2, gate_3, c)
                c = tl.where(active, cell, c)
            else:
                sum_0 += load_bias(bias_ptr, 0, group, offs_u, H)
                sum_1 += load_bias(bias_ptr, 1, group, offs_u, H)
                sum_2 += load_bias(bias_ptr, 2, group, offs_u, H)
                out = gru_step(sum_0, sum_1, sum_2, gate_0, gate_1, gate_2, h)
            h = tl.where(active, out, h)
            tl.store(out_ptr + (step * (M * H))[None, :] + (group * H + offs_u)[:, None], h, mask=active)
        tl.store(new + rows[None, :] + offs_u[:, None], h, mask=exists)
        if count_ptr is not None:  # noqa: SIM102 (known when a kernel is compiled)
            if t + 1 < last:
                expected = (t + 1 - first) * tl.num_programs(0)
                all_came = wait_for_all(count_ptr + tile * M + group, gave_up_ptr, expected, POLLS)
                h = tl.where(all_came, h, float("nan"))
    tl.store(states, h, mask=exists)
    if GATES == 4:
        tl.store(cells, c, mask=exists)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width"])
def recurrence_resident_backward(
    grad_ptr,  # (n_batch, n_time, M, H)
    gates_ptr,  # (n_batch, n_time, M, H, GATES): of a GRU the input's part, of an LSTM their sum
    sums_ptr,  # (n_batch, n_time, M, H, 3): a GRU's recurrent part, or None
    before_ptr,  # (n_batch, n_time, M, H): a GRU's state before every step, an LSTM's cell state (fp32)
    weight_ptr,  # (M, H, GATES, H), rows and columns [:width] are read
    grad_gates_ptr,  # (n_batch, n_time, M, H, GATES)
    grad_sums_ptr,  # (n_batch, n_time, M, H, 3), or None for an LSTM
    state_ptr,  # (M, n_batch, H) fp32: gradient at the last hidden state, then at the first
    cell_ptr,  # (n_batch, H) fp32: gradient at the last cell state, then at the first; or None
    n_batch,
    n_time,
    width,
    M: tl.constexpr,
    H: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All steps back, weights and gradients of the states on chip."""
    items, mask_b = load_item_tile(tl.program_id(0), n_batch, BLOCK_B)
    group = tl.program_id(1)
    offs_u = tl.arange(0, BLOCK_U)
    active = (offs_u < width)[:, None] & mask_b[None, :]
    weights = weight_ptr + group * (GATES * H * H)
    # Columns first: the gradient goes back from gates to states.
    weight_0 = tl.trans(load_record_block(weights, 0, offs_u, offs_u, width, GATES, H, BLOCK_U))
    weight_1 = tl.trans(load_record_block(weights, 1, offs_u, offs_u, width, GATES, H, BLOCK_U))
    weight_2 = tl.trans(load_record_block(weights, 2, offs_u, offs_u, width, GATES, H, BLOCK_U))
    states = state_ptr + ((group * n_batch + items) * H)[None, :] + offs_u[:, None]
    grad_h = load_fp32(states, active)
    if GATES == 4:
        weight_3 = tl.trans(load_record_block(weights, 3, offs_u, offs_u, width, GATES, H, BLOCK_U))
        cells = cell_ptr + (items * H)[None, :] + offs_u[:, None]
        grad_c = load_fp32(cells, active)
    for back in range(0, n_time):
        step = items * n_time + (n_time - 1 - back)
        units = (step * (M * H))[None, :] + (group * H + offs_u)[:, None]
        if GATES == 4:
            grad_0, grad_1, grad_2, grad_3, grad_h, grad_c = lstm_back(
                grad_h, grad_c, grad_ptr, gates_ptr, before_ptr, grad_gates_ptr, units, active
            )
        else:
            grad_0, grad_1, grad_2, grad_h = gru_back(
                grad_h, grad_ptr, gates_ptr, sums_ptr, before_ptr, grad_gates_ptr, grad_sums_ptr, units, active
            )
        # A sum of its own: Triton 3.9 fails for sm_100 on an accumulator that the loop carries through other code.
        acc = product(weight_0, grad_0.to(weight_0.dtype), PRECISION=PRECISION)
        acc = product(weight_1, grad_1.to(weight_0.dtype), acc, PRECISION=PRECISION)
        acc = product(weight_2, grad_2.to(weight_0.dtype), acc, PRECISION=PRECISION)
        if GATES == 4:
            acc = product(weight_3, grad_3.to(weight_0.dtype), acc, PRECISION=PRECISION)
        grad_h += acc
    tl.store(states, grad_h, mask=active)
    if GATES == 4:
        tl.store(cells, grad_c, mask=active)


@triton.jit(do_not_specialize=["n_batch", "n_time", "width", "first", "last", "first_tile"])
def recurrence_spread_backward(
    grad_ptr,  # as those of `recurrence_resident_backward`
    gates_ptr,
    sums_ptr,
    before_ptr,
    weight_ptr,  # (M, H, GATES, H), rows and columns [:k] are read
    grad_gates_ptr,
    grad_sums_ptr,
    state_ptr,
    cell_ptr,
    width_ptr,  # (n_batch, n_time) int32 or None
    count_ptr,  # as in `recurrence_spread`
    gave_up_ptr,
    n_batch,
    n_time,
    width,
    first,  # step from the end
    last,  # step from the end, not included; there is one more than there are steps
    first_tile,  # of items
    M: tl.constexpr,
    H: tl.constexpr,
    GATES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
    POLLS: tl.constexpr,
):
    """Some steps back of a tile of items, of some units of a group: what the step after sends back, then the cell."""
    tile, group = first_tile + tl.program_id(1), tl.program_id(2)
    items, mask_b = load_item_tile(tile, n_batch, BLOCK_B)
    offs_u = tl.program_id(0) * BLOCK_U + tl.arange(0, BLOCK_U)
    exists = (offs_u < H)[:, None] & mask_b[None, :]
    weights = weight_ptr + group * (GATES * H * H)
    to_gates = grad_gates_ptr if GATES == 4 else grad_sums_ptr
    states = state_ptr + ((group * n_batch + items) * H)[None, :] + offs_u[:, None]
    grad_h = load_fp32(states, exists)
    if GATES == 4:
        cells = cell_ptr + (items * H)[None, :] + offs_u[:, None]
        grad_c = load_fp32(cells, exists)
    for back in range(first, last):
        step = items * n_time + (n_time - 1 - back)
        if back > 0:
            k = step_width(width_ptr, step + 1, mask_b, width, H)
            k_max = tl.max(k, axis=0)
            if tl.program_id(0) * BLOCK_U < k_max:
                acc = tl.zeros([BLOCK_U, BLOCK_B], dtype=tl.float32)
                grads_ptr = to_gates + (step + 1) * (M * GATES * H) + group * (GATES * H)
                for u in range(0, k_max, BLOCK_J):
                    others = u + tl.arange(0, BLOCK_J)
                    for gate in tl.static_range(GATES):
                        grads = tl.load(
                            grads_ptr[None, :] + GATES * others[:, None] + gate,
                            mask=others[:, None] < k[None, :],
                            other=0.0,
                            cache_modifier=".cg",
                        )
                        weight = load_record_block(weights, gate, others, offs_u, k_max, GATES, H, BLOCK_U)
                        acc = product(tl.trans(weight), grads, acc, PRECISION=PRECISION)
                grad_h += tl.where(offs_u[:, None] < k[None, :], acc, 0.0)
        if back < n_time:
            k = step_width(width_ptr, step, mask_b, width, H)
            if tl.program_id(0) * BLOCK_U < tl.max(k, axis=0):
                active = offs_u[:, None] < k[None, :]
                units = (step * (M * H))[None, :] + (group * H + offs_u)[:, None]
                if GATES == 4:
                    _, _, _, _, grad_h, grad_c = lstm_back(
                        grad_h, grad_c, grad_ptr, gates_ptr, before_ptr, grad_gates_ptr, units, active
                    )
                else:
                    _, _, _, grad_h = gru_back(
                        grad_h, grad_ptr, gates_ptr, sums_ptr, before_ptr, grad_gates_ptr, grad_sums_ptr, units, active
                    )
        if count_ptr is not None:  # noqa: SIM102
            if back + 1 < last:
                expected = (back + 1 - first) * tl.num_programs(0)
                all_came = wait_for_all(count_ptr + tile * M + group, gave_up_ptr, expected, POLLS)
                grad_h = tl.where(all_came, grad_h, float("nan"))
    tl.store(states, grad_h, mask=exists)
    if GATES == 4:
        tl.store(cells, grad_c, mask=exists)
