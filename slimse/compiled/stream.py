"""The network over frames, and the stream around it, as compiled loops; see `slimse.compiled.kernels`."""

from __future__ import annotations

import numpy as np

from ..nn.level import FAST_SHARE
from ..nn.level import FLOOR as LEVEL_FLOOR
from ..runtimes.base import STEP_FRAMES
from . import layout as f
from .kernels import _LANES, _NONE, _ZERO, _decode, _downsample, _encode, _jit, _product, _upsample, _vectors
from .vector import add, gru_cell, lstm_cell, move

_TINY = 1e-30


@_jit
def _chosen(choice, frame):
    """Index of the UF of a frame; the last entry holds for all frames behind it."""
    return choice[min(frame, len(choice) - 1)]


@_jit
def _encoder(i, first, frame, frames, choice, w, const, mem, scratch, ints, shape, levels, mats, counts):
    """All new positions of encoder level ``i``, those of equal width together."""
    rate, lag = levels[i, f.RATE], levels[i, f.LAG]
    x_at, out_at = levels[i - 1, f.AT], levels[i, f.AT]
    hop = shape[f.STRIDE] * levels[i - 1, f.STEP]
    lead = lag
    if not first:
        lead = 0
        out_at += lag * levels[i, f.STEP]
        if i > 1:
            x_at += lag * hop
    for uf in range(shape[f.UFS]):
        rows = 0
        for t in range(frames):
            if _chosen(choice, frame + t) != uf:
                continue
            for position in range(lead + t * rate if t else 0, lead + (t + 1) * rate):
                ints[f.PICKED + rows] = x_at + position * hop
                ints[f.TARGET + rows] = out_at + position * levels[i, f.STEP]
                rows += 1
                if rows == f.BLOCK:
                    _encode(i, rows, counts[i, uf], w, const, mem, scratch, ints, shape, levels, mats)
                    rows = 0
        if rows:
            _encode(i, rows, counts[i, uf], w, const, mem, scratch, ints, shape, levels, mats)


@_jit
def _decoder(i, final, frame, frames, choice, w, const, mem, scratch, ints, shape, levels, mats, counts):
    """All positions of decoder level ``i``, those of equal width together; returns how many."""
    rate, channels = levels[i, f.RATE], counts[i, shape[f.UFS] - 1]
    positions = frames * rate + (levels[i, f.LAG] if final else 0)
    owners, slot = max(frames, 1), 0
    for uf in range(shape[f.UFS]):
        rows = 0
        for t in range(owners):
            if _chosen(choice, frame + t) != uf:
                continue
            for position in range(t * rate, (t + 1) * rate if t + 1 < owners else positions):
                ints[f.PICKED + rows] = position
                ints[f.TARGET + rows] = levels[i, f.AT] + position * levels[i, f.STEP]
                rows += 1
                if rows == f.BLOCK:
                    _decode(i, rows, slot, counts[i, uf], channels, w, const, mem, scratch, ints, shape, levels, mats)
                    slot, rows = slot + rows, 0
        if rows:
            _decode(i, rows, slot, counts[i, uf], channels, w, const, mem, scratch, ints, shape, levels, mats)
            slot += rows
    return positions


@_jit
def _overlap(i, positions, base, final, out, out_at, const, mem, scratch, ints, shape, levels, mats):
    """Sum what the positions of level ``i`` from ``base`` on give to each stride, then ReLU; returns the strides."""
    m = f.OF_LEVEL * (i - 1) + f.DEC_CONV
    row, bias_at, wide_at = mats[m, f.VECTORS] * _LANES, mats[m, f.BIAS_AT], shape[f.WIDE_AT]
    span, reach = shape[f.STRIDE] * levels[i - 1, f.STEP], shape[f.KERNEL] // shape[f.STRIDE]
    floor, tail_at, total = _ZERO if i > 1 else _NONE, levels[i - 1, f.TAIL_AT], shape[f.SUM_AT]
    slots = f.SLOTS + base
    for q in range(positions + reach - 1):
        waits = q >= positions and not final
        to = tail_at + (q - positions) * span if waits else out_at + q * span
        if reach == 2 and 0 < q < positions:
            one, two = wide_at + ints[slots + q] * row, wide_at + ints[slots + q - 1] * row + span
            for v in range(0, span, _LANES):
                add(scratch, one + v, scratch, two + v, floor, out, to + v)
            continue
        for v in range(0, span, _LANES):
            # Behind the last position there is no first stride that has the bias.
            zeros = bias_at + v if q >= positions and final else f.ZEROS_AT
            add(const, zeros, const, f.ZEROS_AT, _NONE, scratch, total)
            if q < reach - 1:
                add(scratch, total, mem, tail_at + q * span + v, _NONE, scratch, total)
            for t in range(max(q - positions + 1, 0), min(reach - 1, q) + 1):
                part = wide_at + ints[slots + q - t] * row + t * span + v
                add(scratch, total, scratch, part, _NONE, scratch, total)
            if waits:
                add(scratch, total, const, f.ZEROS_AT, _NONE, mem, to + v)
            else:
                add(scratch, total, const, f.ZEROS_AT, floor, out, to + v)
    return positions + (reach - 1 if final else 0)


@_jit
def _gru(frames, channels, w, const, mem, scratch, shape, levels, mats):
    """The grouped GRU: the products with the inputs for all frames at once, then step by step."""
    depth, groups, units = shape[f.DEPTH], shape[f.GROUPS], shape[f.UNITS]
    step, size, m = levels[depth, f.STEP], channels // groups, f.OF_LEVEL * depth
    vectors, row, now_at = 3 * units // _LANES, 3 * units * groups, shape[f.GATES_AT]
    past_at = now_at + frames * row
    for group in range(groups):
        _product(
            mem, levels[depth, f.AT] + group * size, step, frames, size, w, const, mats, m + 2 * group, vectors,
            scratch, now_at + group * 3 * units, row, _NONE, True,
        )  # fmt: skip
    for t in range(frames):
        for group in range(groups):
            state_at, x_at = shape[f.RNN_AT] + group * units, now_at + t * row + group * 3 * units
            _product(
                mem, state_at, 0, 1, size, w, const, mats, m + 2 * group + 1, vectors,
                scratch, past_at, 0, _NONE, True,
            )  # fmt: skip
            # A group whose size is no multiple of a vector writes zeros into the next, which comes later.
            to = shape[f.X_AT] + t * step + group * size
            for v in range(0, units, _LANES):
                gru_cell(scratch, x_at + v, scratch, past_at + v, units, mem, state_at + v, scratch, to + v)


@_jit
def _lstm(frame, frames, choice, w, const, mem, scratch, shape, levels, mats, counts):
    """Layers of the LSTM, each over all frames."""
    depth, units = shape[f.DEPTH], shape[f.UNITS]
    x, x_at, step = mem, levels[depth, f.AT], levels[depth, f.STEP]
    gates_at = shape[f.GATES_AT]
    for layer in range(shape[f.LAYERS]):
        m, h_at = f.OF_LEVEL * depth + 2 * layer, shape[f.RNN_AT] + 2 * layer * units
        for t in range(frames):
            active = counts[depth, _chosen(choice, frame + t)]
            inputs = active if layer else counts[depth, shape[f.UFS] - 1]
            to, vectors = shape[f.X_AT] + t * step, _vectors(active)
            _product(
                x, x_at + t * step, 0, 1, inputs, w, const, mats, m, 4 * vectors,
                scratch, gates_at, 0, _NONE, True,
            )  # fmt: skip
            _product(
                mem, h_at, 0, 1, active, w, const, mats, m + 1, 4 * vectors,
                scratch, gates_at, 0, _NONE, False,
            )  # fmt: skip
            for v in range(vectors):
                h, left = h_at + v * _LANES, active - v * _LANES
                lstm_cell(scratch, gates_at + 4 * v * _LANES, mem, h, h + units, left, scratch, to + v * _LANES)
            for v in range(vectors * _LANES, step):
                scratch[to + v] = _ZERO
        x, x_at = scratch, shape[f.X_AT]


@_jit
def _run(count, frame, frames, final, choice, w, const, mem, scratch, ints, shape, levels, mats, counts):
    """Push ``count`` samples through that lie where the first stage expects them; returns how many came out.

    They make up exactly ``frames`` frames, whose UFs are ``choice[frame:]``. ``final`` also gives out what awaits
    samples that never come. The result begins at the last of the down-sampling buffers.
    """
    stages, depth, stride = shape[f.STAGES], shape[f.DEPTH], shape[f.STRIDE]
    first = ints[f.SAMPLES] == 0
    kept = 0 if first else levels[0, f.LAG]
    for stage in range(stages):
        to = levels[0, f.AT] + kept
        if stage + 1 < stages:
            to = shape[f.UP_AT] + (stage + 1) * shape[f.UP_STEP] + ints[f.UP_COUNT + stage + 1]
        count = _upsample(mem, scratch, ints, const, shape, stage, count, to, final)
    for i in range(1, depth + 1):
        _encoder(i, first, frame, frames, choice, w, const, mem, scratch, ints, shape, levels, mats, counts)
    used = (frames * levels[1, f.RATE] + (levels[1, f.LAG] if first else 0)) * stride
    move(mem, levels[0, f.AT] + used, mem, levels[0, f.AT], kept + count - used)
    if shape[f.GROUPS]:
        _gru(frames, counts[depth, shape[f.UFS] - 1], w, const, mem, scratch, shape, levels, mats)
    else:
        _lstm(frame, frames, choice, w, const, mem, scratch, shape, levels, mats, counts)
    out_at = shape[f.DOWN_AT] + (ints[f.DOWN_COUNT] if stages else 0)
    for i in range(depth, 0, -1):
        positions = _decoder(i, final, frame, frames, choice, w, const, mem, scratch, ints, shape, levels, mats, counts)
        if i > 1:
            _overlap(i, positions, 0, final, scratch, shape[f.X_AT], const, mem, scratch, ints, shape, levels, mats)
        else:
            count = stride * _overlap(
                i, positions, 0, final, mem, out_at, const, mem, scratch, ints, shape, levels, mats
            )
        start, moved = levels[i, f.AT], frames * levels[i, f.RATE] * levels[i, f.STEP]
        move(mem, start + moved, mem, start, levels[i, f.LAG] * levels[i, f.STEP])
    for stage in range(stages):
        to = shape[f.DOWN_AT] + (stage + 1) * shape[f.DOWN_STEP]
        if stage + 1 < stages:
            to += ints[f.DOWN_COUNT + stage + 1]
        count = _downsample(mem, scratch, ints, const, shape, stage, count, to, final)
    return count


@_jit
def _sample(x, pending_at, mem, pending, j):
    """Sample ``j`` of those that wait and those that come."""
    return mem[pending_at + j] if j < pending else x[j - pending]


@_jit
def _level(x, start, count, mem, ints, const, shape):
    """What to divide the input by and multiply the output with, from the next ``count`` samples; not if running."""
    at, pending_at, pending = shape[f.LEVEL_AT], shape[f.PENDING_AT], ints[f.PENDING]
    mode = mem[at]
    if mode in (f.NO_LEVEL, f.RUNNING_LEVEL):
        return np.float32(1), np.float32(1)
    if mode == f.SEEN_LEVEL and count:
        total, power = mem[at + 2] + np.float32(count), 0.0
        for j in range(start, start + count):
            power += _sample(x, pending_at, mem, pending, j) ** 2
        mem[at + 1] += (np.float32(power / count) - mem[at + 1]) * (np.float32(count) / total)
        mem[at + 2] = total
    scale = np.sqrt(mem[at + 1]) if mode == f.SEEN_LEVEL else mem[at + 1]
    return const[f.FLOOR] + scale, scale


@_jit
def normalise(x, sums, rates, out, gain):
    """`slimse.nn.RunningLevel` on ``[n]``; ``sums`` ``[6]`` is brought forward. ``out`` may be ``x``."""
    offset, slow, fast = float(sums[0]), float(sums[1]), float(sums[2])
    one, two, three = float(sums[3]), float(sums[4]), float(sums[5])
    share, share_slow, share_fast = -np.expm1(-rates[0]), -np.expm1(-rates[1]), -np.expm1(-rates[2])
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
    # Numbers too small for a full mantissa, as silence leaves them, take processors many times as long.
    sums[0] = offset if abs(offset) > _TINY else 0.0
    sums[1] = slow if slow > _TINY else 0.0
    sums[2] = fast if fast > _TINY else 0.0
    sums[3], sums[4], sums[5] = one, two, three


@_jit
def take(mem, ints, const, shape, to, count):
    """Normalise ``count`` new samples at ``to`` if the level is running; their gains wait for the output."""
    at, gain_at = shape[f.LEVEL_AT], shape[f.GAIN_AT] + ints[f.GAINS]
    if mem[at] == f.RUNNING_LEVEL:
        x, rates = mem[to : to + count], const[f.RATES_AT : f.RATES_AT + 3]
        normalise(x, mem[at + 1 : at + 7], rates, x, mem[gain_at : gain_at + count])
        ints[f.GAINS] += count


@_jit
def give(out, mem, ints, shape, count):
    """Multiply ``count`` samples of output with their gains if the level is running."""
    if mem[shape[f.LEVEL_AT]] == f.RUNNING_LEVEL:
        gain_at, left = shape[f.GAIN_AT], ints[f.GAINS] - count
        for j in range(count):
            out[j] *= mem[gain_at + j]
        for j in range(left):
            mem[gain_at + j] = mem[gain_at + count + j]
        ints[f.GAINS] = left


@_jit
def feed(x, choice, out, finish, pad, w, const, mem, scratch, ints, shape, levels, mats, counts):
    """Take the samples ``x``, write all that are ready to ``out``; returns how many frames ran.

    ``x`` is float32 ``[n]``; ``choice`` int64, the index of the UF of every frame that runs, whose last entry holds for
    all behind it; ``out`` float32, as long as what becomes ready. ``finish`` is -1, or the frames that are left if the
    signal ends behind ``x``, the last of them made whole by ``pad`` samples of silence. The others are the arrays of
    `Weights`, of `Places` and of a stream.
    """
    pending_at, pending = shape[f.PENDING_AT], ints[f.PENDING]
    total, done, ready, frame = pending + len(x), 0, 0, 0
    x_at, out_at = levels[0, f.AT], shape[f.DOWN_AT] + shape[f.STAGES] * shape[f.DOWN_STEP]
    last = False
    while not last:
        need = shape[f.HOP] if ints[f.SAMPLES] else shape[f.FIRST]
        frames = min(1 + (total - done - need) // shape[f.HOP], STEP_FRAMES)
        last = frames < 1
        if last and finish < 0:
            break
        used = total - done if last else need + (frames - 1) * shape[f.HOP]
        divisor, factor = _level(x, done, used, mem, ints, const, shape)
        end = done + used
        while done < end or last:
            now = finish if last else min(frames, shape[f.FRAMES])
            need = shape[f.HOP] if ints[f.SAMPLES] else shape[f.FIRST]
            count = used if last else need + (now - 1) * shape[f.HOP]
            to = shape[f.UP_AT] + ints[f.UP_COUNT]
            if not shape[f.STAGES]:
                to = x_at + (levels[0, f.LAG] if ints[f.SAMPLES] else 0)
            for j in range(count):
                mem[to + j] = _sample(x, pending_at, mem, pending, done + j) / divisor
            take(mem, ints, const, shape, to, count)
            if last:
                for j in range(count, count + pad):
                    mem[to + j] = _ZERO
                count += pad
            got = _run(count, frame, now, last, choice, w, const, mem, scratch, ints, shape, levels, mats, counts)
            got = min(got, len(out) - ready)
            for j in range(got):
                out[ready + j] = mem[out_at + j] * factor
            give(out[ready : ready + got], mem, ints, shape, got)
            ready += got
            ints[f.SAMPLES] += count
            done, frames, frame = done + count, frames - now, frame + now
            if last:
                break
    for j in range(total - done):
        mem[pending_at + j] = _sample(x, pending_at, mem, pending, done + j)
    ints[f.PENDING] = total - done
    return frame
