"""Streams of the network as one compiled call: levels, router, resampling and layers; see `blocks`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import carray, types

from ...nn.level import FAST_SHARE
from ...nn.level import FLOOR as LEVEL_FLOOR
from ..base import STEP_FRAMES
from . import layout as f
from .blocks import ZERO, Memory, Net, Pass, decoder, downsample, encoder, gru, lstm, overlap, upsample
from .jit import compiled, jit, sources
from .router import choose, hear
from .vector import FLUSH, move, pointer, rounding, set_rounding

TINY = 1e-30
REFUSED = -1
"""What `feed_function` gives for a sample that is not finite or too loud."""
JOB = np.dtype(
    [
        *[
            (name, np.int64)
            for name in (
                # Addresses, and how many of each there are.
                *("plan", "levels", "mats", "matrices", "counts", "const", "consts", "route", "routes", "product"),
                *("mem", "mems", "counters", "streams", "scratch", "scratches", "index", "indices"),
                # Addresses: the streams that run (int64), their UFs (int64), their budgets (float32, 0 for none).
                *("slots", "running", "choice", "choices", "width", "budgets", "route_any", "shared", "limit"),
                # 1: only choose UFs, and leave the network out.
                "route_only",
                # Numbers from a stream's samples to the next one's.
                *("x_step", "out_step"),
                # Frames that are left if the signal ends, or -1; samples of silence that make the last one whole.
                *("finish", "pad"),
            )
        ],
        ("loudest", np.float32),
    ]
)
"""What a call works on; see `feed_function`."""


@jit
def normalise(x, sums, rate_0, rate_1, rate_2, out, gain):
    """`slimse.nn.RunningLevel` on ``[n]``; ``sums`` ``[6]`` is brought forward. ``out`` may be ``x``."""
    offset, slow, fast = float(sums[0]), float(sums[1]), float(sums[2])
    one, two, three = float(sums[3]), float(sums[4]), float(sums[5])
    share, share_slow, share_fast = -np.expm1(-rate_0), -np.expm1(-rate_1), -np.expm1(-rate_2)
    for j in range(len(x)):
        v = x[j] - offset / one if one > 0 else 0.0
        offset += share * (x[j] - offset)
        one += share * (1 - one)
        slow += share_slow * (v * v - slow)
        two += share_slow * (1 - two)
        fast += share_fast * (v * v - fast)
        three += share_fast * (1 - three)
        recent = fast / three
        level = np.sqrt(max(slow / two, FAST_SHARE * recent))
        out[j] = v / (level + LEVEL_FLOOR)
        gain[j] = level * (recent / (recent + LEVEL_FLOOR * LEVEL_FLOOR))
    # In float64 they would need an age to become zero.
    sums[0] = offset if abs(offset) > TINY else 0.0
    sums[1] = slow if slow > TINY else 0.0
    sums[2] = fast if fast > TINY else 0.0
    sums[3], sums[4], sums[5] = one, two, three


@jit
def take(net, memory, slot, to, count):
    """Normalise ``count`` new samples at ``to`` if the level is running; their gains wait for the output."""
    plan, mem, counters = net.plan, memory.mem, memory.counters
    start = slot * plan.size
    at, gain_at = start + plan.level_at, start + plan.gain_at + counters[slot, f.GAINS]
    if mem[at] == f.RUNNING_LEVEL:
        x, gain = mem[to : to + count], mem[gain_at : gain_at + count]
        normalise(x, mem[at + 1 : at + 7], plan.rate_0, plan.rate_1, plan.rate_2, x, gain)
        counters[slot, f.GAINS] += count


@jit
def give(net, memory, slot, out, count):
    """Multiply ``count`` samples of output with their gains if the level is running."""
    plan, mem = net.plan, memory.mem
    start = slot * plan.size
    if mem[start + plan.level_at] == f.RUNNING_LEVEL:
        gain_at, left = start + plan.gain_at, memory.counters[slot, f.GAINS] - count
        gain = mem[gain_at : gain_at + count]
        for j in range(count):
            out[j] *= gain[j]
        move(mem, gain_at + count, mem, gain_at, left)
        memory.counters[slot, f.GAINS] = left


@jit
def sample(x, mem, pending_at, pending, j):
    """Sample ``j`` of those that wait and those that come."""
    return mem[pending_at + j] if j < pending else x[j - pending]


@jit
def measure(net, memory, slot, x, start, count):
    """Note what to divide the next ``count`` samples by and multiply their output with; both 1 if running."""
    plan, mem = net.plan, memory.mem
    at, pending_at = slot * plan.size + plan.level_at, slot * plan.size + plan.pending_at
    mode, pending = mem[at], memory.counters[slot, f.PENDING]
    if mode in (f.NO_LEVEL, f.RUNNING_LEVEL):
        mem[at + f.DIVISOR], mem[at + f.FACTOR] = 1, 1
        return
    if mode == f.SEEN_LEVEL and count:
        total, power = mem[at + 2] + np.float32(count), 0.0
        for j in range(start, start + count):
            power += sample(x, mem, pending_at, pending, j) ** 2
        mem[at + 1] += (np.float32(power / count) - mem[at + 1]) * (np.float32(count) / total)
        mem[at + 2] = total
    scale = np.sqrt(mem[at + 1]) if mode == f.SEEN_LEVEL else mem[at + 1]
    mem[at + f.DIVISOR], mem[at + f.FACTOR] = plan.floor + scale, scale


@jit
def rise(net, memory, slot, count, first, final):
    """Up-sample ``count`` new samples of a stream to where the first level reads them; returns how many they are."""
    plan = net.plan
    start = slot * plan.size
    for stage in range(plan.stages):
        to = start + net.levels[0].at + (0 if first else net.levels[0].lag)
        if stage + 1 < plan.stages:
            waiting = memory.counters[slot, f.UP_COUNT + stage + 1]
            to = start + plan.up_at + (stage + 1) * plan.up_step + waiting
        count = upsample(net, memory, slot, stage, count, to, final)
    return count


@jit
def fall(net, memory, slot, count, final):
    """Down-sample the new output of a stream to the last of its buffers; returns how many samples it is."""
    plan = net.plan
    for stage in range(plan.stages):
        to = slot * plan.size + plan.down_at + (stage + 1) * plan.down_step
        if stage + 1 < plan.stages:
            to += memory.counters[slot, f.DOWN_COUNT + stage + 1]
        count = downsample(net, memory, slot, stage, count, to, final)
    return count


@jit
def run_pass(net, memory, run, count):
    """Push ``count`` samples of every stream through, which lie where the first stage expects them.

    They make up exactly the frames of ``run``. Returns how many samples of each came out, at the last of the
    down-sampling buffers.
    """
    plan, levels, mem, scratch = net.plan, net.levels, memory.mem, memory.scratch
    streams, stride, lag = len(run.slots), plan.stride, levels[0].lag
    kept, ready = 0 if run.first else lag, count
    for k in range(streams):
        ready = rise(net, memory, run.slots[k], count, run.first, run.final)
    for i in range(1, plan.depth + 1):
        encoder(net, memory, run, i)
    used = (run.frames * levels[1].rate + (levels[1].lag if run.first else 0)) * stride
    for k in range(streams):
        at = run.slots[k] * plan.size + levels[0].at
        move(mem, at + used, mem, at, kept + ready - used)
    if plan.groups:
        gru(net, memory, run)
    else:
        lstm(net, memory, run)
    strides = 0
    for i in range(plan.depth, 0, -1):
        level, step = levels[i], levels[i].step
        positions = run.frames * level.rate + (level.lag if run.final else 0)
        decoder(net, memory, run, i, positions)
        strides = positions + (plan.kernel // stride - 1 if run.final else 0)
        for k in range(streams):
            slot = run.slots[k]
            start, base = slot * plan.size, k * positions
            if i > 1:
                to = plan.x_at + k * strides * stride * levels[i - 1].step
                overlap(net, memory, i, start, base, positions, run.final, scratch, to)
            else:
                to = start + plan.down_at + (memory.counters[slot, f.DOWN_COUNT] if plan.stages else 0)
                overlap(net, memory, i, start, base, positions, run.final, mem, to)
            move(mem, start + level.at + run.frames * level.rate * step, mem, start + level.at, level.lag * step)
    for k in range(streams):
        count = fall(net, memory, run.slots[k], stride * strides, run.final)
    return count


@jit
def refuses(x, slots, step, count, loudest):
    """Whether a sample is not finite or too loud."""
    bad = 0
    for k in range(len(slots)):
        row = x[slots[k] * step : slots[k] * step + count]
        for j in range(count):
            bad += 0 if abs(row[j]) <= loudest else 1
    return bad > 0


@jit
def enter(net, memory, slot, x, done, count, early_at):
    """Bring the next ``count`` samples of a stream to its first stage, divided by the level; returns where they are."""
    plan, mem, counters = net.plan, memory.mem, memory.counters
    start, pending = slot * plan.size, counters[slot, f.PENDING]
    divisor = mem[start + plan.level_at + f.DIVISOR]
    to = start + plan.up_at + counters[slot, f.UP_COUNT] if plan.stages else start + net.levels[0].at + early_at
    pending_at, waits = start + plan.pending_at, min(max(pending - done, 0), count)
    for j in range(waits):
        mem[to + j] = mem[pending_at + done + j] / divisor
    fresh = x[done + waits - pending :]
    for j in range(count - waits):
        mem[to + waits + j] = fresh[j] / divisor
    take(net, memory, slot, to, count)
    return to


@jit
def feed(net, memory, job, slots, choice, budgets, x, count, out):
    """See `feed_function`."""
    plan, mem, counters, lead = net.plan, memory.mem, memory.counters, slots[0]
    total, done, ready, frame = counters[lead, f.PENDING] + count, 0, 0, 0
    out_at = plan.down_at + plan.stages * plan.down_step
    last = False
    while not last:
        need = plan.hop if counters[lead, f.SAMPLES] else plan.first
        frames = min(1 + (total - done - need) // plan.hop, STEP_FRAMES)
        last = frames < 1
        if last and job.finish < 0:
            break
        used = total - done if last else need + (frames - 1) * plan.hop
        for k in range(len(slots)):
            row = x[slots[k] * job.x_step :]
            measure(net, memory, slots[k], row, done, used)
        end = done + used
        while done < end or last:
            first = counters[lead, f.SAMPLES] == 0
            need = plan.first if first else plan.hop
            now = job.finish if last else min(frames, plan.frames)
            part = used if last else need + (now - 1) * plan.hop
            run = Pass(slots, choice, job.width, frame, now, first, last)
            for k in range(len(slots)):
                slot = slots[k]
                row = x[slot * job.x_step :]
                to = enter(net, memory, slot, row, done, part, 0 if first else net.levels[0].lag)
                if budgets[slot] > 0:
                    hear(plan, memory, slot, to, part)
                if last:
                    mem[to + part : to + part + job.pad] = ZERO
            # Where no frame is left, the last one owns the tail.
            if job.route_any and not (last and now == 0 and frame):
                choose(net, memory, run, budgets, job.shared, need - plan.hop, part)
            for k in range(len(slots)):
                # A budget has a column per frame, a fixed UF may have one for all.
                for t in range(frame, min(frame + max(now, 1), job.width)):
                    choice[slots[k], t] = min(choice[slots[k], t], job.limit)
            pushed = part + (job.pad if last else 0)
            got = 0 if job.route_only else min(run_pass(net, memory, run, pushed), job.out_step - ready)
            for k in range(len(slots)):
                slot = slots[k]
                if job.route_only:
                    counters[slot, f.GAINS] = 0
                result = out[slot * job.out_step + ready : slot * job.out_step + ready + got]
                source = mem[slot * plan.size + out_at : slot * plan.size + out_at + got]
                factor = mem[slot * plan.size + plan.level_at + f.FACTOR]
                for j in range(got):
                    result[j] = source[j] * factor
                give(net, memory, slot, result, got)
                counters[slot, f.SAMPLES] += pushed
            ready, done, frames, frame = ready + got, done + part, frames - now, frame + now
            if last:
                break
    for k in range(len(slots)):
        slot = slots[k]
        pending_at, pending = slot * plan.size + plan.pending_at, counters[slot, f.PENDING]
        row = x[slot * job.x_step :]
        for j in range(total - done):
            mem[pending_at + j] = sample(row, mem, pending_at, pending, done + j)
        counters[slot, f.PENDING] = total - done
    return frame


def _feed_of(digest):
    """See `feed_function`."""

    def entry(job_at, x_at, count, out_at):
        _ = digest
        job = carray(pointer(job_at), (1,), JOB)[0]
        plan = carray(pointer(job.plan), (1,), f.PLAN)[0]
        tables = plan.depth + 1, plan.ufs
        net = Net(
            plan,
            carray(pointer(job.levels), (plan.depth + 1,), f.LEVEL),
            carray(pointer(job.mats), (job.matrices,), f.MATRIX),
            carray(pointer(job.counts), tables, np.int64),
            carray(pointer(job.const), (job.consts,), np.float32),
            carray(pointer(job.route), (job.routes,), np.float32),
            job.product,
        )
        memory = Memory(
            carray(pointer(job.mem), (job.mems,), np.float32),
            carray(pointer(job.counters), (job.streams, f.COUNTERS), np.int64),
            carray(pointer(job.scratch), (job.scratches,), np.float32),
            carray(pointer(job.index), (job.indices,), np.int64),
        )
        slots = carray(pointer(job.slots), (job.running,), np.int64)
        choice = carray(pointer(job.choice), (job.streams, job.choices), np.int64)
        budgets = carray(pointer(job.budgets), (job.streams,), np.float32)
        x = carray(pointer(x_at), (job.streams * job.x_step,), np.float32)
        out = carray(pointer(out_at), (job.streams * job.out_step,), np.float32)
        if job.loudest > 0 and refuses(x, slots, job.x_step, count, job.loudest):
            return REFUSED
        register = rounding()
        set_rounding(np.uint32(register | FLUSH))
        frames = feed(net, memory, job, slots, choice, budgets, x, count, out)
        set_rounding(register)
        return frames

    return entry


@cache
def feed_function() -> Callable[[int, int, int, int], int]:
    """Take samples of the streams of a job, write all that are ready; returns how many frames ran, or `REFUSED`.

    The C function takes the address of a `JOB`, the address of float32 samples ``[streams, x_step]``, how many of each
    row to take, and the address for ``[streams, out_step]`` of output. The streams at ``slots`` are at the same place
    of their signals. Each has in its row of ``choice`` the index of the UF of every frame that runs, the last holding
    for all behind it; where its budget is not 0, the router writes them, so there must be a column per frame. None is
    wider than the index ``limit``. A job with ``loudest`` above 0 refuses
    samples beyond it, or not finite, before anything has changed.
    """
    number = types.int64
    return compiled(_feed_of(sources()), number, number, number, number, number)[0]
