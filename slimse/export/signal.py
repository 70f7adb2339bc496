"""Level and resampling of a stream as ONNX nodes, as `RunningLevel`, `SincUpsample` and `SincDownsample` have them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..nn.level import FAST_SECONDS, FAST_SHARE, FLOOR, OFFSET_SECONDS, SLOW_SECONDS
from ..nn.resample import LOOKAHEAD, TAPS, ZEROS, filter_taps
from .builder import Scope

UP_BUFFER, DOWN_BUFFER = TAPS - 1, 2 * (TAPS - 1)
_BLOCK = 64
_TINY = 1e-12


def running_level(s: Scope, samples: str, count: int, rate: int, sums: str, position: str) -> tuple[str, str, str]:
    """`RunningLevel` on ``[1, count]`` samples.

    Args:
        s: where to write.
        samples: value to normalise.
        count: its length.
        rate: sample rate, Hz.
        sums: leaky sums from the call before, ``[1, 3]``, zeros at first.
        position: samples of the signal before these, ``[1, 1]``; below 0 where it has not begun, and then the samples
            are zeros.

    Returns:
        Normalised samples and gains, ``[1, count]`` each, and the new sums.
    """
    rates = np.array([1 / (seconds * rate) for seconds in (OFFSET_SECONDS, SLOW_SECONDS, FAST_SECONDS)])
    before, slow_share, fast_share = _shares(s, count, rates, position)
    offset, slow, fast = s.split(sums, 1, 1, 1, axis=1)
    (totals,) = _leaky_sums(s, samples, count, rates[:1], [offset])
    earlier = s.concat(offset, s.slice(totals, 0, count - 1, axis=1), axis=1)
    mean = s.op("Div", earlier, s.op("Max", before, s.const(_TINY)))
    # Where nothing came before, any difference would be rounding, which the division would blow up.
    x = s.op("Where", s.op("Greater", before, s.const(0)), s.op("Sub", samples, mean), s.const(0))
    slow_sum, fast_sum = _leaky_sums(s, s.op("Mul", x, x), count, rates[1:], [slow, fast])
    recent = s.op("Div", fast_sum, fast_share)
    power = s.op("Max", s.op("Div", slow_sum, slow_share), s.op("Mul", recent, s.const(FAST_SHARE)))
    level = s.op("Sqrt", power)
    gain = s.op("Mul", level, s.op("Div", recent, s.op("Add", recent, s.const(FLOOR**2))))
    last = s.concat(*(s.slice(part, count - 1, count, axis=1) for part in (totals, slow_sum, fast_sum)), axis=1)
    return s.op("Div", x, s.op("Add", level, s.const(FLOOR))), gain, last


def _shares(s: Scope, count: int, rates: NDArray[np.float64], position: str) -> tuple[str, ...]:
    """Leaky sums of ones, ``[1, count]`` per rate; the first rate's without the sample itself.

    ``1 - exp(-2 y)`` by ``tanh(y)``: the difference of two numbers near 1 would be rounding.
    """
    samples = np.arange(count) + np.array([[0], [1], [1]])
    seen = s.op("Max", s.op("Add", position, s.const(samples)), s.const(0))
    tanh = s.op("Tanh", s.op("Mul", seen, s.const(rates[:, None] / 2)))
    shares = s.op("Div", s.op("Add", tanh, tanh), s.op("Add", tanh, s.const(1)))
    offset, slow, fast = s.split(shares, 1, 1, 1)
    return offset, s.op("Max", slow, s.const(_TINY)), s.op("Max", fast, s.const(_TINY))


def _leaky_sums(s: Scope, x: str, count: int, rates: NDArray[np.float64], carries: list[str]) -> list[str]:
    """As `slimse.nn.level`: per rate, sums ``[1, count]`` of ``x``, going on from ``[1, 1]``.

    Blocks by one product with a triangular matrix, and what goes from block to block by another.
    """
    block = math.gcd(_BLOCK, count)
    blocks, steps = count // block, np.arange(block)
    ages = steps - steps[:, None]
    kernels = [-math.expm1(-r) * np.where(ages >= 0, np.exp(-r * ages.clip(0)), 0) for r in rates]
    inner = s.op("MatMul", s.reshape(x, blocks, block), s.const(np.concatenate(kernels, axis=1)))
    sums = []
    for part, rate, carry in zip(s.split(inner, *[block] * len(rates), axis=1), rates, carries, strict=True):
        ends = s.reshape(s.slice(part, block - 1, block, axis=1), 1, blocks)
        before = s.concat(carry, s.slice(ends, 0, blocks - 1, axis=1), axis=1) if blocks > 1 else carry
        index = np.arange(blocks)
        ages = index - index[:, None]
        between = np.where(ages >= 0, np.exp(-rate * block * ages.clip(0)), 0)
        carried = s.reshape(s.op("MatMul", before, s.const(between)), blocks, 1)
        decayed = s.op("Mul", carried, s.const(np.exp(-rate * (steps + 1))[None]))
        sums.append(s.reshape(s.op("Add", part, decayed), 1, count))
    return sums


def upsample(s: Scope, x: str, count: int, buffer: str) -> tuple[str, str]:
    """`SincUpsample` of ``[count]`` samples behind a buffer ``[UP_BUFFER]``: ``[2 * count]``, and the new buffer."""
    x = s.concat(buffer, x)
    block = min(32, count)
    matrix = np.zeros((TAPS + block - 1, 2 * block))
    for column in range(block):
        matrix[ZEROS - 1 + column, 2 * column] = 1
        matrix[column : column + TAPS, 2 * column + 1] = filter_taps()
    out = _blocks(s, x, count + UP_BUFFER, -(-count // block), block, matrix)
    return _front(s, out, -(-count // block) * 2 * block, 2 * count), s.slice(x, count, count + UP_BUFFER)


def downsample(s: Scope, x: str, total: int, count: int) -> str:
    """`SincDownsample`: the first ``count`` outputs ``[count]`` of buffer and samples together, ``[total]``."""
    block = min(32, count)
    matrix = np.zeros((2 * (TAPS + block - 1), block))
    for column in range(block):
        matrix[2 * (ZEROS + column), column] = 0.5
        matrix[2 * column + 1 : 2 * (column + TAPS) : 2, column] = 0.5 * filter_taps().numpy()
    out = _blocks(s, x, total, -(-count // block), 2 * block, matrix)
    return _front(s, out, -(-count // block) * block, count)


def final_down(length: int, buffered: int) -> tuple[int, int]:
    """At the end of a signal: zeros to put behind ``length`` samples and the buffer, and outputs that there are."""
    total = length + buffered
    zeros = total % 2 + 2 * (LOOKAHEAD - 1)
    return zeros, (total + zeros) // 2 - TAPS + 1


def silence_before(s: Scope, x: str, count: int, clock: str, per_frame: int, end: int) -> str:
    """Zeros for the outputs of a stage ``[count]`` that come before its ``end``-th since the start of the stream."""
    position = s.op("Add", s.const(np.arange(count)), s.op("Mul", s.reshape(clock, 1), s.const([per_frame])))
    return str(s.op("Where", s.op("Less", position, s.const(end)), s.const(0), x))


def silence_after(s: Scope, x: str, count: int, left: str, per_frame: int, end: int) -> str:
    """Zeros for the outputs of a stage ``[count]`` from the ``end``-th of the last frame on, ``left`` frames later."""
    limit = s.op("Add", s.op("Mul", left, s.ints(per_frame)), s.ints(end))
    return str(s.op("Where", s.op("Less", s.const(np.arange(count), np.int64), limit), x, s.const(0)))


def _blocks(s: Scope, x: str, length: int, blocks: int, step: int, matrix: NDArray[np.float64]) -> str:
    """Windows of ``[length]``, ``step`` apart, times a matrix: all products in a row. Zeros follow where it ends."""
    window = len(matrix)
    missing = (blocks - 1) * step + window - length
    if missing > 0:
        x = s.concat(x, s.const(np.zeros(missing)))
    index = np.arange(blocks)[:, None] * step + np.arange(window)
    return s.reshape(s.op("MatMul", s.op("Gather", x, s.const(index, np.int64)), s.const(matrix)), -1)


def _front(s: Scope, x: str, length: int, count: int) -> str:
    return x if length == count else s.slice(x, 0, count)
