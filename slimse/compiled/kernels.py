"""The network as compiled loops: any number of frames of one stream, a width per frame, no Python in between.

`_run` does what `SlimDemucs._run` does, level by level. The arguments that its parts share:

- ``w``: all weights, float32, or float16 as ``uint16``. A width reads a prefix. See `slimse.compiled.layout`, as for
  ``const`` (biases, filter taps, zeros) and the tables ``shape``, ``levels``, ``mats`` and ``counts``.
- ``mem``: the state of the stream. ``scratch``: what lies between two products.
- ``ints``: counters of the stream, then indices in scratch.

Channels are padded to whole vectors with weights of zero, so padding stays zero.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from numba import njit

from ..nn.resample import LOOKAHEAD, TAPS, ZEROS
from . import layout as f
from .vector import WIDE, add, glu, glu_narrow, make_tile, move

_tile_8x1, _tile_8x2, _tile_4x1, _tile_4x4 = make_tile(8, 1), make_tile(8, 2), make_tile(4, 1), make_tile(4, 4)
_tile_1x1, _tile_4x2, _tile_1x2, _tile_1x4 = make_tile(1, 1), make_tile(4, 2), make_tile(1, 2), make_tile(1, 4)
_NONE, _ZERO, _HALF = np.float32(-np.inf), np.float32(0), np.float32(0.5)
_LANES, _BLOCK = f.LANES, f.BLOCK
_DEPTH = 128
"""Rows of a weight that stay in the first-level cache while many positions pass."""


def _forget_stale() -> None:
    """Delete compiled code that is older than a source: numba looks at the file of a function, not at what it calls."""
    folder = Path(__file__).parent
    newest = max(path.stat().st_mtime for path in folder.glob("*.py"))
    for index in folder.glob("__pycache__/*.nbi"):
        # In a folder that belongs to another user, an installer has renewed all sources at once, and numba sees it.
        with suppress(PermissionError, FileNotFoundError):
            if index.stat().st_mtime < newest:
                index.unlink()


_forget_stale()


def _jit(function):
    """Compile at the first call, without Python's lock; later processes load the result from numba's cache."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache folder can be written to.
        return njit(nogil=True)(function)


@_jit
def _rows(rows, wide, job):
    """Up to four vectors of columns for ``rows`` rows, in the largest tiles that fit."""
    column = 0
    while column < wide:
        row = 0
        if wide == 4 and (WIDE == 4 or rows < 4):
            while WIDE == 4 and row + 4 <= rows:
                _tile_4x4(row, column, job)
                row += 4
            while row < rows:
                _tile_1x4(row, column, job)
                row += 1
            column += 4
        elif WIDE == 4 and wide - column >= 2:
            while row + 8 <= rows:
                _tile_8x2(row, column, job)
                row += 8
            while row + 4 <= rows:
                _tile_4x2(row, column, job)
                row += 4
            while row < rows:
                _tile_1x2(row, column, job)
                row += 1
            column += 2
        else:
            while WIDE == 4 and row + 8 <= rows:
                _tile_8x1(row, column, job)
                row += 8
            while row + 4 <= rows:
                _tile_4x1(row, column, job)
                row += 4
            while row < rows:
                _tile_1x1(row, column, job)
                row += 1
            column += 1


@_jit
def _product(x, x_at, x_step, rows, inputs, w, const, mats, m, vectors, out, out_at, out_step, floor, fresh):
    """``out = max(floor, x[:, :inputs] @ weight m + bias)``; ``fresh`` False adds to ``out`` instead of to the bias."""
    w_at, bias_at, step, following, group = mats[m, 0], mats[m, 1], mats[m, 2], mats[m, 3], mats[m, 4]
    depth = _DEPTH if rows >= 16 else inputs
    for first in range(0, vectors, 4):
        wide = min(4, vectors - first)
        to = out_at + first * _LANES
        here = w_at + first // 4 * group
        for start in range(0, inputs, depth):
            count = min(depth, inputs - start)
            least = floor if start + count == inputs else _NONE
            init, init_at, init_step = out, to, out_step
            if start == 0 and fresh:
                init, init_at, init_step = const, bias_at + first * _LANES, 0
            job = (
                *(x, x_at + start, x_step, w, here + start * step, step, following),
                *(out, to, out_step, init, init_at, init_step, count, least),
            )
            _rows(rows, wide, job)


@_jit
def _vectors(channels):
    return (channels + _LANES - 1) // _LANES


# Resampling ------------------------------------------------------------------------------------------------------


@_jit
def _filter(x, x_at, const, out, out_at, count):
    """The half-sample filter at ``count`` positions; up to 63 more are written."""
    for start in range(0, count, 4 * _LANES):
        job = (
            const,
            f.TAPS_AT,
            0,
            x,
            x_at + start,
            1,
            _LANES,
            out,
            out_at + start,
            0,
            const,
            f.ZEROS_AT,
            0,
            TAPS,
            _NONE,
        )
        _tile_1x4(0, 0, job)


@_jit
def _upsample(mem, scratch, ints, const, shape, stage, count, out_at, final):
    """Double ``count`` samples that lie behind those that wait; returns how many it put at ``out_at`` in ``mem``."""
    x_at = shape[f.UP_AT] + stage * shape[f.UP_STEP]
    total = ints[f.UP_COUNT + stage] + count
    if final:
        mem[x_at + total : x_at + total + LOOKAHEAD] = _ZERO
        total += LOOKAHEAD
    ready = max(total - TAPS + 1, 0)
    _filter(mem, x_at, const, scratch, shape[f.FIR_AT], ready)
    x, between = mem[x_at + ZEROS - 1 : x_at + total], scratch[shape[f.FIR_AT] :]
    out = mem[out_at : out_at + 2 * ready]
    for i in range(ready):
        out[2 * i] = x[i]
        out[2 * i + 1] = between[i]
    move(mem, x_at + ready, mem, x_at, total - ready)
    ints[f.UP_COUNT + stage] = total - ready
    return 2 * ready


@_jit
def _downsample(mem, scratch, ints, const, shape, stage, count, out_at, final):
    """Halve the rate of ``count`` samples; otherwise as `_upsample`."""
    x_at = shape[f.DOWN_AT] + stage * shape[f.DOWN_STEP]
    total = ints[f.DOWN_COUNT + stage] + count
    if final:
        more = total % 2 + 2 * (ZEROS - 1)
        mem[x_at + total : x_at + total + more] = _ZERO
        total += more
    pairs = total // 2
    ready = max(pairs - TAPS + 1, 0)
    if ready:
        x = mem[x_at : x_at + 2 * pairs]
        odd_at, fir_at = shape[f.FIR_AT], shape[f.FIR_AT] + shape[f.FIR_STEP]
        odd, between = scratch[odd_at : odd_at + pairs], scratch[fir_at : fir_at + ready]
        for i in range(pairs):
            odd[i] = x[2 * i + 1]
        _filter(scratch, odd_at, const, scratch, fir_at, ready)
        out = mem[out_at : out_at + ready]
        for i in range(ready):
            out[i] = _HALF * (x[2 * (ZEROS + i)] + between[i])
    move(mem, x_at + 2 * ready, mem, x_at, total - 2 * ready)
    ints[f.DOWN_COUNT + stage] = total - 2 * ready
    return ready


# Blocks ------------------------------------------------------------------------------------------------------------


@_jit
def _glu(scratch, gates_at, vectors, out, out_at):
    """Values times sigmoids of gates, which take turns in one row."""
    for v in range(vectors):
        glu(scratch, gates_at + 2 * v * _LANES, out, out_at + v * _LANES)


@_jit
def _encode(i, rows, active, w, const, mem, scratch, ints, shape, levels, mats):
    """Encoder block ``i``, ``active`` channels wide, on the windows at PICKED, into the positions at TARGET."""
    before, step = levels[i - 1, f.STEP], levels[i, f.STEP]
    inputs, hop, m = shape[f.KERNEL] * before, shape[f.STRIDE] * before, f.OF_LEVEL * (i - 1)
    hidden_at, gates_at = shape[f.HIDDEN_AT], shape[f.GATES_AT]
    hidden = _vectors(active)
    regular = True
    for p in range(1, rows):
        regular = regular and ints[f.PICKED + p] - ints[f.PICKED + p - 1] == hop
    if regular:
        _product(
            mem, ints[f.PICKED], hop, rows, inputs, w, const, mats, m + f.ENC_CONV, hidden,
            scratch, hidden_at, step, _ZERO, True,
        )  # fmt: skip
    else:
        for p in range(rows):
            move(mem, ints[f.PICKED + p], scratch, shape[f.SUM_AT] + p * inputs, inputs)
        _product(
            scratch, shape[f.SUM_AT], inputs, rows, inputs, w, const, mats, m + f.ENC_CONV, hidden,
            scratch, hidden_at, step, _ZERO, True,
        )  # fmt: skip
    _product(
        scratch, hidden_at, step, rows, active, w, const, mats, m + f.ENC_GLU, 2 * step // _LANES,
        scratch, gates_at, 2 * step, _NONE, True,
    )  # fmt: skip
    for p in range(rows):
        _glu(scratch, gates_at + p * 2 * step, step // _LANES, mem, ints[f.TARGET + p])


@_jit
def _decode(i, rows, slot, active, channels, w, const, mem, scratch, ints, shape, levels, mats):
    """Decoder block ``i`` before the overlap, ``active`` channels wide, into rows from ``slot`` on.

    Its positions are the rows PICKED of the activations in ``scratch``, their skips lie at TARGET.
    """
    step, m = levels[i, f.STEP], f.OF_LEVEL * (i - 1)
    columns = mats[m + f.DEC_CONV, f.VECTORS]
    x_at, sum_at, hidden_at, gates_at = shape[f.X_AT], shape[f.SUM_AT], shape[f.HIDDEN_AT], shape[f.GATES_AT]
    hidden = _vectors(active)
    for p in range(rows):
        position = ints[f.PICKED + p]
        ints[f.SLOTS + position] = slot + p
        x_row, skip_row, to = x_at + position * step, ints[f.TARGET + p], sum_at + p * step
        for v in range(0, step, _LANES):
            add(scratch, x_row + v, mem, skip_row + v, _NONE, scratch, to + v)
    glu_m, gates = (m + f.NARROW, 1) if active <= f.NARROW_UNITS else (m + f.DEC_GLU, 2 * hidden)
    _product(
        scratch, sum_at, step, rows, channels, w, const, mats, glu_m, gates,
        scratch, gates_at, 2 * step, _NONE, True,
    )  # fmt: skip
    for p in range(rows):
        if active <= f.NARROW_UNITS:
            glu_narrow(scratch, gates_at + p * 2 * step, scratch, hidden_at + p * step)
        else:
            _glu(scratch, gates_at + p * 2 * step, hidden, scratch, hidden_at + p * step)
    row = columns * _LANES
    _product(
        scratch, hidden_at, step, rows, active, w, const, mats, m + f.DEC_CONV, columns,
        scratch, shape[f.WIDE_AT] + slot * row, row, _NONE, True,
    )  # fmt: skip
