"""The layers of the network as compiled loops over streams and frames.

All streams of a call are at the same place of their signals: they have as many samples that wait and run as many
frames. Every frame has a width of its own, and a layer runs the positions of one width together, whichever stream they
belong to. Channels are padded to whole vectors with weights of zero, so padding stays zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...nn.resample import LOOKAHEAD, TAPS, ZEROS
from . import layout as f
from .jit import jit
from .vector import LANES, NONE, add, call_product, glu, glu_narrow, gru_cell, lstm_cell, make_tile, move

ZERO, HALF = np.float32(0), np.float32(0.5)
RELU, FRESH = 1, 2
"""What a product does besides summing: a floor of 0; beginning with the bias instead of with what is there."""
tile_1x4 = make_tile(1, 4)


class Net(NamedTuple):
    """A network: what all calls read. See `slimse.runtimes.numba.layout` for the records and where things lie."""

    plan: Any
    levels: Any
    mats: Any
    counts: Any
    """Active channels ``[level, UF]``."""
    const: Any
    """Filter taps, zeros, biases, scales."""
    route: Any
    """Weights of the router."""
    product: Any
    """Address of the matrix product for its kind of weights."""


class Memory(NamedTuple):
    """What calls write."""

    mem: Any
    """State of all streams, one after the other, ``plan.size`` numbers each."""
    counters: Any
    """``[streams, COUNTERS]``."""
    scratch: Any
    """What lies between two products."""
    index: Any
    """Where rows of a product are read and where they go."""


class Pass(NamedTuple):
    """Frames that run together."""

    slots: Any
    """The streams: their rows in ``counters`` and ``choice``."""
    choice: Any
    """Index of the UF of every frame, ``[streams, width]``; the last holds for all frames behind it."""
    width: Any
    frame: Any
    """Number of the first frame in ``choice``."""
    frames: Any
    first: Any
    """Whether the signals begin here."""
    final: Any
    """Whether they end here, so that what awaits samples that never come is given out."""


@jit
def chosen(run, k, t):
    """Index of the UF of frame ``t`` of the ``k``-th stream."""
    return run.choice[run.slots[k], min(run.frame + t, run.width - 1)]


@jit
def vectors_of(channels):
    """Vectors that hold so many channels."""
    return (channels + LANES - 1) // LANES


@jit
def product(net, m, x, x_at, x_step, rows, inputs, vectors, out, out_at, out_step, limits):
    """``out = x[:, :inputs] @ weight m + bias``; see `slimse.runtimes.numba.products`."""
    mat = net.mats[m]
    call_product(
        net.product, x, x_at, x_step, rows, inputs, mat.w_at, mat.step, mat.following, mat.group,
        net.const, mat.scale_at, net.const, mat.bias_at, vectors, out, out_at, out_step, limits,
    )  # fmt: skip


# Resampling ------------------------------------------------------------------------------------------------------


@jit
def half_sample(x, x_at, const, out, out_at, count):
    """The half-sample filter at ``count`` positions; up to 63 more are written."""
    for start in range(0, count, 4 * LANES):
        job = (
            *(const, f.TAPS_AT, 0, x, x_at + start, 1, LANES, const, 0),
            *(out, out_at + start, 0, const, f.ZEROS_AT, 0, TAPS, NONE),
        )
        tile_1x4(0, 0, job)


@jit
def upsample(net, memory, slot, stage, count, out_at, final):
    """Double ``count`` samples that lie behind those that wait; returns how many it put at ``out_at`` in ``mem``."""
    plan, mem, scratch = net.plan, memory.mem, memory.scratch
    x_at = slot * plan.size + plan.up_at + stage * plan.up_step
    total = memory.counters[slot, f.UP_COUNT + stage] + count
    if final:
        mem[x_at + total : x_at + total + LOOKAHEAD] = ZERO
        total += LOOKAHEAD
    ready = max(total - TAPS + 1, 0)
    half_sample(mem, x_at, net.const, scratch, plan.fir_at, ready)
    x, between = mem[x_at + ZEROS - 1 : x_at + total], scratch[plan.fir_at :]
    out = mem[out_at : out_at + 2 * ready]
    for i in range(ready):
        out[2 * i] = x[i]
        out[2 * i + 1] = between[i]
    move(mem, x_at + ready, mem, x_at, total - ready)
    memory.counters[slot, f.UP_COUNT + stage] = total - ready
    return 2 * ready


@jit
def downsample(net, memory, slot, stage, count, out_at, final):
    """Halve the rate of ``count`` samples; otherwise as `upsample`."""
    plan, mem, scratch = net.plan, memory.mem, memory.scratch
    x_at = slot * plan.size + plan.down_at + stage * plan.down_step
    total = memory.counters[slot, f.DOWN_COUNT + stage] + count
    if final:
        more = total % 2 + 2 * (ZEROS - 1)
        mem[x_at + total : x_at + total + more] = ZERO
        total += more
    pairs = total // 2
    ready = max(pairs - TAPS + 1, 0)
    if ready:
        x = mem[x_at : x_at + 2 * pairs]
        odd_at, fir_at = plan.fir_at, plan.fir_at + plan.fir_step
        odd, between = scratch[odd_at : odd_at + pairs], scratch[fir_at : fir_at + ready]
        for i in range(pairs):
            odd[i] = x[2 * i + 1]
        half_sample(scratch, odd_at, net.const, scratch, fir_at, ready)
        out = mem[out_at : out_at + ready]
        for i in range(ready):
            out[i] = HALF * (x[2 * (ZEROS + i)] + between[i])
    move(mem, x_at + 2 * ready, mem, x_at, total - 2 * ready)
    memory.counters[slot, f.DOWN_COUNT + stage] = total - 2 * ready
    return ready


# Blocks ------------------------------------------------------------------------------------------------------------


@jit
def glu_row(scratch, gates_at, vectors, out, out_at):
    """Values times sigmoids of gates, which take turns in one row."""
    for v in range(vectors):
        glu(scratch, gates_at + 2 * v * LANES, out, out_at + v * LANES)


@jit
def encode(net, memory, i, rows, active):
    """Encoder block ``i``, ``active`` channels wide, on the windows at PICKED, into the positions at TARGET."""
    plan, mem, scratch, index = net.plan, memory.mem, memory.scratch, memory.index
    before, step = net.levels[i - 1].step, net.levels[i].step
    inputs, hop, m = plan.kernel * before, plan.stride * before, f.OF_LEVEL * (i - 1)
    regular = True
    for p in range(1, rows):
        regular = regular and index[f.PICKED + p] - index[f.PICKED + p - 1] == hop
    x, x_at, x_step = mem, index[f.PICKED], hop
    if not regular:
        for p in range(rows):
            move(mem, index[f.PICKED + p], scratch, plan.sum_at + p * inputs, inputs)
        x, x_at, x_step = scratch, plan.sum_at, inputs
    hidden_at, gates_at, columns = plan.hidden_at, plan.gates_at, vectors_of(active)
    product(net, m + f.ENC_CONV, x, x_at, x_step, rows, inputs, columns, scratch, hidden_at, step, RELU | FRESH)
    gates = 2 * step
    product(net, m + f.ENC_GLU, scratch, hidden_at, step, rows, active, gates // LANES, scratch, gates_at, gates, FRESH)
    for p in range(rows):
        glu_row(scratch, gates_at + p * gates, step // LANES, mem, index[f.TARGET + p])


@jit
def encoder(net, memory, run, i):
    """All new positions of encoder level ``i``, those of equal width together."""
    plan, index = net.plan, memory.index
    rate, lag, step = net.levels[i].rate, net.levels[i].lag, net.levels[i].step
    hop = plan.stride * net.levels[i - 1].step
    x_at, out_at, lead = net.levels[i - 1].at, net.levels[i].at, lag
    if not run.first:
        lead = 0
        out_at += lag * step
        if i > 1:
            x_at += lag * hop
    for uf in range(plan.ufs):
        rows = 0
        for k in range(len(run.slots)):
            start = run.slots[k] * plan.size
            for t in range(run.frames):
                if chosen(run, k, t) != uf:
                    continue
                for position in range(lead + t * rate if t else 0, lead + (t + 1) * rate):
                    index[f.PICKED + rows] = start + x_at + position * hop
                    index[f.TARGET + rows] = start + out_at + position * step
                    rows += 1
                    if rows == f.BLOCK:
                        encode(net, memory, i, rows, net.counts[i, uf])
                        rows = 0
        if rows:
            encode(net, memory, i, rows, net.counts[i, uf])


@jit
def decode(net, memory, i, rows, slot, active, channels):
    """Decoder block ``i`` before the overlap, ``active`` channels wide, into rows from ``slot`` on.

    Its positions are the rows PICKED of the activations in ``scratch``, their skips lie at TARGET.
    """
    plan, mem, scratch, index = net.plan, memory.mem, memory.scratch, memory.index
    step, m = net.levels[i].step, f.OF_LEVEL * (i - 1)
    columns = net.mats[m + f.DEC_CONV].vectors
    sum_at, hidden_at, gates_at = plan.sum_at, plan.hidden_at, plan.gates_at
    for p in range(rows):
        position = index[f.PICKED + p]
        index[f.SLOTS + position] = slot + p
        x_row, skip_row, to = plan.x_at + position * step, index[f.TARGET + p], sum_at + p * step
        for v in range(0, step, LANES):
            add(scratch, x_row + v, mem, skip_row + v, NONE, scratch, to + v)
    narrow, hidden = active <= f.NARROW_UNITS, vectors_of(active)
    glu_m, gates = (m + f.NARROW, 1) if narrow else (m + f.DEC_GLU, 2 * hidden)
    product(net, glu_m, scratch, sum_at, step, rows, channels, gates, scratch, gates_at, 2 * step, FRESH)
    for p in range(rows):
        if narrow:
            glu_narrow(scratch, gates_at + p * 2 * step, scratch, hidden_at + p * step)
        else:
            glu_row(scratch, gates_at + p * 2 * step, hidden, scratch, hidden_at + p * step)
    row = columns * LANES
    wide_at = plan.wide_at + slot * row
    product(net, m + f.DEC_CONV, scratch, hidden_at, step, rows, active, columns, scratch, wide_at, row, FRESH)


@jit
def decoder(net, memory, run, i, positions):
    """All positions of decoder level ``i``, ``positions`` of every stream, those of equal width together."""
    plan, index, level = net.plan, memory.index, net.levels[i]
    rate, step, channels = level.rate, level.step, net.counts[i, plan.ufs - 1]
    owners, slot = max(run.frames, 1), 0
    for uf in range(plan.ufs):
        rows = 0
        for k in range(len(run.slots)):
            skip_at = run.slots[k] * plan.size + level.at
            for t in range(owners):
                if chosen(run, k, t) != uf:
                    continue
                for position in range(t * rate, (t + 1) * rate if t + 1 < owners else positions):
                    index[f.PICKED + rows] = k * positions + position
                    index[f.TARGET + rows] = skip_at + position * step
                    rows += 1
                    if rows == f.BLOCK:
                        decode(net, memory, i, rows, slot, net.counts[i, uf], channels)
                        slot, rows = slot + rows, 0
        if rows:
            decode(net, memory, i, rows, slot, net.counts[i, uf], channels)
            slot += rows


@jit
def overlap(net, memory, i, start, base, positions, final, out, out_at):
    """Sum what the positions of level ``i`` from ``base`` on give to each stride, then ReLU."""
    plan, mem, scratch, index = net.plan, memory.mem, memory.scratch, memory.index
    mat = net.mats[f.OF_LEVEL * (i - 1) + f.DEC_CONV]
    row, wide_at = mat.vectors * LANES, plan.wide_at
    span, reach = plan.stride * net.levels[i - 1].step, plan.kernel // plan.stride
    floor, tail_at, total = ZERO if i > 1 else NONE, start + net.levels[i - 1].tail_at, plan.sum_at
    slots = f.SLOTS + base
    for q in range(positions + reach - 1):
        waits = q >= positions and not final
        to = tail_at + (q - positions) * span if waits else out_at + q * span
        if reach == 2 and 0 < q < positions:
            one, two = wide_at + index[slots + q] * row, wide_at + index[slots + q - 1] * row + span
            for v in range(0, span, LANES):
                add(scratch, one + v, scratch, two + v, floor, out, to + v)
            continue
        for v in range(0, span, LANES):
            # Behind the last position there is no first stride that has the bias.
            zeros = mat.bias_at + v if q >= positions and final else f.ZEROS_AT
            add(net.const, zeros, net.const, f.ZEROS_AT, NONE, scratch, total)
            if q < reach - 1:
                add(scratch, total, mem, tail_at + q * span + v, NONE, scratch, total)
            for t in range(max(q - positions + 1, 0), min(reach - 1, q) + 1):
                part = wide_at + index[slots + q - t] * row + t * span + v
                add(scratch, total, scratch, part, NONE, scratch, total)
            if waits:
                add(scratch, total, net.const, f.ZEROS_AT, NONE, mem, to + v)
            else:
                add(scratch, total, net.const, f.ZEROS_AT, floor, out, to + v)


# Recurrent layers ----------------------------------------------------------------------------------------------------


@jit
def gru(net, memory, run):
    """The grouped GRU: the products with the inputs for all frames at once, then step by step."""
    plan, mem, scratch = net.plan, memory.mem, memory.scratch
    level, groups, units, streams, frames = net.levels[plan.depth], plan.groups, plan.units, len(run.slots), run.frames
    step, width, m = level.step, net.counts[plan.depth, plan.ufs - 1] // groups, f.OF_LEVEL * plan.depth
    vectors, gates, row = 3 * units // LANES, 3 * units, 3 * units * groups
    x_at, now_at = plan.rnn_x_at, plan.gates_at
    old_at, past_at = x_at + streams * frames * step, now_at + streams * frames * row
    for k in range(streams):
        move(mem, run.slots[k] * plan.size + level.at, scratch, x_at + k * frames * step, frames * step)
    for group in range(groups):
        at, to = x_at + group * width, now_at + group * gates
        product(net, m + 2 * group, scratch, at, step, streams * frames, width, vectors, scratch, to, row, FRESH)
    for t in range(frames):
        for group in range(groups):
            for k in range(streams):
                state_at = run.slots[k] * plan.size + plan.rnn_at + group * units
                move(mem, state_at, scratch, old_at + k * units, units)
            hh = m + 2 * group + 1
            product(net, hh, scratch, old_at, units, streams, width, vectors, scratch, past_at, gates, FRESH)
            # The size of a group need not be a multiple of a vector, so its outputs do not go straight to their place.
            for k in range(streams):
                state_at, h_at = run.slots[k] * plan.size + plan.rnn_at + group * units, old_at + k * units
                now, past = now_at + (k * frames + t) * row + group * gates, past_at + k * gates
                for v in range(0, units, LANES):
                    gru_cell(scratch, now + v, scratch, past + v, units, mem, state_at + v, scratch, h_at + v)
                move(scratch, h_at, scratch, plan.x_at + (k * frames + t) * step + group * width, width)


@jit
def lstm(net, memory, run):
    """Layers of the LSTM, each over all frames of a stream, then the next stream."""
    plan, mem, scratch = net.plan, memory.mem, memory.scratch
    depth, units, gates_at, step = plan.depth, plan.units, plan.gates_at, net.levels[plan.depth].step
    for k in range(len(run.slots)):
        start, x_at = run.slots[k] * plan.size, plan.x_at + k * run.frames * step
        move(mem, start + net.levels[depth].at, scratch, x_at, run.frames * step)
        for layer in range(plan.layers):
            m, h_at = f.OF_LEVEL * depth + 2 * layer, start + plan.rnn_at + 2 * layer * units
            for t in range(run.frames):
                active = net.counts[depth, chosen(run, k, t)]
                inputs = active if layer else net.counts[depth, plan.ufs - 1]
                at, vectors = x_at + t * step, vectors_of(active)
                product(net, m, scratch, at, 0, 1, inputs, 4 * vectors, scratch, gates_at, 0, FRESH)
                product(net, m + 1, mem, h_at, 0, 1, active, 4 * vectors, scratch, gates_at, 0, 0)
                for v in range(vectors):
                    h, left = h_at + v * LANES, active - v * LANES
                    lstm_cell(scratch, gates_at + 4 * v * LANES, mem, h, h + units, left, scratch, at + v * LANES)
                for v in range(vectors * LANES, step):
                    scratch[at + v] = ZERO
