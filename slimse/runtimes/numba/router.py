"""The router inside of the compiled network; see `slimse.router.Router`.

It hears the samples as the network gets them, divided by their level, and writes the index of every frame's UF where
the network reads it.
"""

from __future__ import annotations

import numpy as np

from ...router import SHARPNESS, SOFT
from .blocks import ZERO
from .jit import jit
from .vector import LANES, NONE, gru_cell, make_tile, move

tile_4x1, tile_1x1, tile_1x4 = make_tile(4, 1), make_tile(1, 1), make_tile(1, 4)


@jit
def place(plan, route, budget):
    """The knot below a budget, and how far in octaves it is towards the next."""
    lowest = route[plan.budgets_at]
    at = np.log(budget / lowest) / -np.log(lowest) * (plan.knots - 1)
    low = min(max(int(at), 0), plan.knots - 2)
    return low, np.float32(min(max(at - low, 0.0), 1.0))


@jit
def conditions(plan, route, budget, scratch, fixed_at):
    """The biases for a budget, which is calibrated first: those of the gates at ``fixed_at``; returns the width's."""
    low, share = place(plan, route, budget)
    asked, rest = plan.calibrated_at + low, 1 - share
    budget = np.float32(np.exp(np.log(route[asked]) * rest + np.log(route[asked + 1]) * share))
    low, share = place(plan, route, budget)
    rest, gates = 1 - share, 3 * plan.router_units
    bias_at = plan.bias_ih_at + low * gates
    for j in range(gates):
        scratch[fixed_at + j] = route[bias_at + j] * rest + route[bias_at + gates + j] * share
    return route[plan.bias_width_at + low] * rest + route[plan.bias_width_at + low + 1] * share


@jit
def bands(plan, route, mem, x_at, windows, scratch, to):
    """Rectified outputs of the filters on ``windows`` windows from ``x_at`` on, a row for each."""
    filters, stride, weights = plan.filters, plan.router_stride, plan.conv_at + plan.filters
    for v in range(0, filters, LANES):
        job = (
            *(mem, x_at, stride, route, weights + v, filters, 0, route, 0),
            *(scratch, to + v, filters, route, plan.conv_at + v, 0, plan.taps, ZERO),
        )
        row = 0
        while row + 4 <= windows:
            tile_4x1(row, 0, job)
            row += 4
        while row < windows:
            tile_1x1(row, 0, job)
            row += 1


@jit
def decide(plan, route, mem, heard_at, hidden_at, frames, budget, scratch, logits_at):
    """Logits ``[frames, UFs]`` of a stream at ``logits_at``; its hidden state is brought forward.

    Its samples begin at ``heard_at`` in ``mem``, those before the first hop being context.
    """
    filters, units, gates = plan.filters, plan.router_units, 3 * plan.router_units
    windows = plan.hop // plan.router_stride
    level_at = plan.route_at
    fixed_at = level_at + filters
    now_at, past_at = fixed_at + gates, fixed_at + 2 * gates
    bands_at = past_at + gates
    bias = conditions(plan, route, budget, scratch, fixed_at)
    bands(plan, route, mem, heard_at, frames * windows, scratch, bands_at)
    for frame in range(frames):
        row = bands_at + frame * windows * filters
        for j in range(filters):
            total = ZERO
            for window in range(windows):
                total += scratch[row + window * filters + j]
            scratch[level_at + j] = np.log1p(total / np.float32(windows) / np.float32(SOFT)) / np.float32(4)
        for v in range(0, gates, LANES):
            job = (
                *(scratch, level_at, 0, route, plan.into_at + v, gates, 0, route, 0),
                *(scratch, now_at + v, 0, scratch, fixed_at + v, 0, filters, NONE),
            )
            tile_1x1(0, 0, job)
        for j in range(gates):
            h = mem[hidden_at + j % units]
            scratch[past_at + j] = route[plan.diagonal_at + j] * h + route[plan.bias_hh_at + j]
        for v in range(0, units, LANES):
            now, past, h = now_at + v, past_at + v, hidden_at + v
            gru_cell(scratch, now, scratch, past, units, mem, h, scratch, level_at)
        wanted = bias
        for i in range(units):
            wanted += mem[hidden_at + i] * route[plan.out_at + i]
        for j in range(plan.ufs):
            distance = wanted - route[plan.octaves_at + j]
            scratch[logits_at + frame * plan.ufs + j] = -np.float32(SHARPNESS) * distance * distance


@jit
def choose(net, memory, run, budgets, shared, early, counts):
    """Choose the UFs of the frames of this pass for all streams with a budget.

    ``counts`` new samples of each, behind its context, are at ``heard_at``; of them ``early`` precede the first frame's
    hop. Silence stands in for samples to come.
    """
    plan, mem, scratch, ufs = net.plan, memory.mem, memory.scratch, net.plan.ufs
    frames, streams = max(run.frames, 1), len(run.slots)
    need = plan.context + early + frames * plan.hop
    for k in range(streams):
        slot = run.slots[k]
        if budgets[slot] <= 0:
            continue
        start, logits_at = slot * plan.size, plan.logits_at + k * frames * ufs
        heard_at, hidden_at = start + plan.heard_at, start + plan.hidden_units_at
        for j in range(plan.context + counts, need):
            mem[heard_at + j] = ZERO
        decide(plan, net.route, mem, heard_at + early, hidden_at, frames, budgets[slot], scratch, logits_at)
        move(mem, heard_at + counts, mem, heard_at, plan.context)
    if shared:
        for j in range(frames * ufs):
            total = ZERO
            for k in range(streams):
                total += scratch[plan.logits_at + k * frames * ufs + j]
            for k in range(streams):
                scratch[plan.logits_at + k * frames * ufs + j] = total
    for k in range(streams):
        slot = run.slots[k]
        if budgets[slot] <= 0:
            continue
        for t in range(frames):
            at, best = plan.logits_at + (k * frames + t) * ufs, 0
            for j in range(1, ufs):
                if scratch[at + j] > scratch[at + best]:
                    best = j
            run.choice[slot, run.frame + t] = best


@jit
def hear(plan, memory, slot, x_at, count):
    """Put ``count`` samples of a stream, as the network gets them, behind what the router has of it."""
    move(memory.mem, x_at, memory.mem, slot * plan.size + plan.heard_at + plan.context, count)
