"""One frame of many streams as one compiled call, which reads every weight once; see `slimse.compiled.kernels`.

``mems`` and ``counters`` hold a row per slot, what `slimse.compiled.stream` calls ``mem`` and ``ints``. Every stream is
past its first frame. The grouped GRU is the only bottleneck here.
"""

from __future__ import annotations

from . import layout as f
from .kernels import _LANES, _NONE, _decode, _downsample, _encode, _jit, _product, _upsample
from .stream import _overlap, _sample, give, take
from .vector import gru_cell, move


@_jit
def _encoder(i, slots, choice, w, const, mem, size, scratch, ints, shape, levels, mats, counts):
    """The new positions of encoder level ``i`` of all streams, those of equal width together."""
    rate, lag, step = levels[i, f.RATE], levels[i, f.LAG], levels[i, f.STEP]
    hop = shape[f.STRIDE] * levels[i - 1, f.STEP]
    x_at, out_at = levels[i - 1, f.AT] + (lag * hop if i > 1 else 0), levels[i, f.AT] + lag * step
    for uf in range(shape[f.UFS]):
        rows = 0
        for k in range(len(slots)):
            if choice[k] != uf:
                continue
            for position in range(rate):
                ints[f.PICKED + rows] = slots[k] * size + x_at + position * hop
                ints[f.TARGET + rows] = slots[k] * size + out_at + position * step
                rows += 1
                if rows == f.BLOCK:
                    _encode(i, rows, counts[i, uf], w, const, mem, scratch, ints, shape, levels, mats)
                    rows = 0
        if rows:
            _encode(i, rows, counts[i, uf], w, const, mem, scratch, ints, shape, levels, mats)


@_jit
def _decoder(i, slots, choice, w, const, mem, size, scratch, ints, shape, levels, mats, counts):
    """All positions of decoder level ``i`` of all streams, those of equal width together."""
    rate, step, channels = levels[i, f.RATE], levels[i, f.STEP], counts[i, shape[f.UFS] - 1]
    slot = 0
    for uf in range(shape[f.UFS]):
        rows = 0
        for k in range(len(slots)):
            if choice[k] != uf:
                continue
            for position in range(rate):
                ints[f.PICKED + rows] = k * rate + position
                ints[f.TARGET + rows] = slots[k] * size + levels[i, f.AT] + position * step
                rows += 1
                if rows == f.BLOCK:
                    _decode(i, rows, slot, counts[i, uf], channels, w, const, mem, scratch, ints, shape, levels, mats)
                    slot, rows = slot + rows, 0
        if rows:
            _decode(i, rows, slot, counts[i, uf], channels, w, const, mem, scratch, ints, shape, levels, mats)
            slot += rows


@_jit
def _gru(slots, channels, w, const, mem, size, scratch, shape, levels, mats):
    """A step of the grouped GRU of all streams."""
    depth, groups, units, streams = shape[f.DEPTH], shape[f.GROUPS], shape[f.UNITS], len(slots)
    step, width, m = levels[depth, f.STEP], channels // groups, f.OF_LEVEL * depth
    vectors, row = 3 * units // _LANES, 3 * units
    x_at, now_at = shape[f.WIDE_AT], shape[f.GATES_AT]
    state_at, past_at = x_at + streams * step, now_at + streams * row
    for k in range(streams):
        move(mem, slots[k] * size + levels[depth, f.AT], scratch, x_at + k * step, step)
    for group in range(groups):
        for k in range(streams):
            start = slots[k] * size + shape[f.RNN_AT] + group * units
            move(mem, start, scratch, state_at + k * units, units)
        _product(
            scratch, x_at + group * width, step, streams, width, w, const, mats, m + 2 * group, vectors,
            scratch, now_at, row, _NONE, True,
        )  # fmt: skip
        _product(
            scratch, state_at, units, streams, width, w, const, mats, m + 2 * group + 1, vectors,
            scratch, past_at, row, _NONE, True,
        )  # fmt: skip
        for k in range(streams):
            state, to = slots[k] * size + shape[f.RNN_AT] + group * units, shape[f.X_AT] + k * step + group * width
            now, past = now_at + k * row, past_at + k * row
            for v in range(0, units, _LANES):
                gru_cell(scratch, now + v, scratch, past + v, units, mem, state + v, scratch, past + v)
            # Whole vectors would write zeros over the next stream's first group where `width` is no multiple of them.
            move(scratch, past, scratch, to, width)


@_jit
def _take(x, mem, own, scratch, const, shape, levels):
    """Up-sample the next hop of a stream."""
    stages, hop, pending_at, pending = shape[f.STAGES], shape[f.HOP], shape[f.PENDING_AT], own[f.PENDING]
    signal_at = levels[0, f.AT] + levels[0, f.LAG]
    to = shape[f.UP_AT] + own[f.UP_COUNT] if stages else signal_at
    for j in range(hop):
        mem[to + j] = _sample(x, pending_at, mem, pending, j)
    take(mem, own, const, shape, to, hop)
    for j in range(pending):
        mem[pending_at + j] = _sample(x, pending_at, mem, pending, hop + j)
    own[f.SAMPLES] += hop
    count = hop
    for stage in range(stages):
        to = signal_at
        if stage + 1 < stages:
            to = shape[f.UP_AT] + (stage + 1) * shape[f.UP_STEP] + own[f.UP_COUNT + stage + 1]
        count = _upsample(mem, scratch, own, const, shape, stage, count, to, False)


@_jit
def _give(out, mem, own, scratch, const, shape, levels):
    """Down-sample the new output of a stream."""
    stages, count = shape[f.STAGES], shape[f.STRIDE] * levels[1, f.RATE]
    for stage in range(stages):
        to = shape[f.DOWN_AT] + (stage + 1) * shape[f.DOWN_STEP]
        if stage + 1 < stages:
            to += own[f.DOWN_COUNT + stage + 1]
        count = _downsample(mem, scratch, own, const, shape, stage, count, to, False)
    start = shape[f.DOWN_AT] + stages * shape[f.DOWN_STEP]
    for j in range(count):
        out[j] = mem[start + j]
    give(out[:count], mem, own, shape, count)


@_jit
def tick(x, slots, choice, out, w, const, mems, counters, scratch, ints, shape, levels, mats, counts):
    """Run one frame of the streams ``slots`` at the UFs of index ``choice``; a row of ``x`` and ``out`` per slot."""
    size, depth, streams = mems.shape[1], shape[f.DEPTH], len(slots)
    mem = mems.reshape(-1)
    for slot in slots:
        _take(x[slot], mems[slot], counters[slot], scratch, const, shape, levels)
    for i in range(1, depth + 1):
        _encoder(i, slots, choice, w, const, mem, size, scratch, ints, shape, levels, mats, counts)
    _gru(slots, counts[depth, shape[f.UFS] - 1], w, const, mem, size, scratch, shape, levels, mats)
    for i in range(depth, 0, -1):
        _decoder(i, slots, choice, w, const, mem, size, scratch, ints, shape, levels, mats, counts)
        rate, step = levels[i, f.RATE], levels[i, f.STEP]
        for k in range(streams):
            own, counter = mems[slots[k]], counters[slots[k]]
            if i > 1:
                to = shape[f.X_AT] + k * levels[i - 1, f.RATE] * levels[i - 1, f.STEP]
                _overlap(i, rate, k * rate, False, scratch, to, const, own, scratch, ints, shape, levels, mats)
            else:
                to = shape[f.DOWN_AT] + (counter[f.DOWN_COUNT] if shape[f.STAGES] else 0)
                _overlap(i, rate, k * rate, False, own, to, const, own, scratch, ints, shape, levels, mats)
            start = levels[i, f.AT]
            move(own, start + rate * step, own, start, levels[i, f.LAG] * step)
    for slot in slots:
        own, start = mems[slot], levels[0, f.AT]
        move(own, start + shape[f.STRIDE] * levels[1, f.RATE], own, start, levels[0, f.LAG])
        _give(out[slot], own, counters[slot], scratch, const, shape, levels)
