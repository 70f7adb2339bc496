"""A causal running level: three leaky means over time, of which two need the first; see `slimse.ops.running_level`.

Dimensions:
    chunks: ``BLOCK`` samples of an item. Every program takes one.

A leaky sum ``y[t] = a y[t - 1] + x[t]`` over a chunk is a cumulative one of ``x[t] / a ** t``, and what went before
adds ``a ** t`` times its last value. So a launch sums every chunk, and the next one begins with all before its own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import launching

FAR = 4096
"""Chunks before a program's own that it still hears: what is farther away weighs nothing in float32."""


@triton.jit
def _fresh(z):
    """``1 - exp(-z)`` for ``z >= 0``; by a series where the difference would be lost."""
    series = z * (1.0 - z * (0.5 - z * (1.0 / 6 - z * (1.0 / 24 - z * (1.0 / 120)))))
    return tl.where(z < 0.1, series, 1.0 - tl.exp(-z))


@triton.jit
def _carry(parts_ptr, first, chunk, rate, BLOCK: tl.constexpr, FAR: tl.constexpr):
    """The leaky sum up to a chunk, from its value before all chunks and their parts."""
    carry = first * tl.exp(-rate * BLOCK * chunk)
    for start in range(tl.maximum(chunk - FAR, 0), chunk, 128):
        offs = start + tl.arange(0, 128)
        parts = tl.load(parts_ptr + offs, mask=offs < chunk, other=0.0)
        carry += tl.sum(parts * tl.exp(-rate * BLOCK * tl.maximum(chunk - 1 - offs, 0)))
    return carry


@triton.jit
def _scan(x, carry, rate, BLOCK: tl.constexpr):
    """``1 - exp(-rate)`` times the leaky sums of a chunk; ``carry`` comes before."""
    steps = tl.arange(0, BLOCK)
    sums = tl.cumsum(_fresh(rate) * x * tl.exp(rate * steps), axis=0)
    return sums * tl.exp(-rate * steps) + carry * tl.exp(-rate * (steps + 1))


@triton.jit
def _part(x, rate, n_samples, BLOCK: tl.constexpr):
    """What a chunk adds to a leaky sum at its end."""
    left = tl.minimum(n_samples, BLOCK) - 1 - tl.arange(0, BLOCK)
    return tl.sum(tl.where(left >= 0, _fresh(rate) * x * tl.exp(-rate * tl.maximum(left, 0)), 0.0))


@triton.jit
def _heard(seen, step, rate):
    """The leaky sum of ones after so many steps."""
    fresh = _fresh(rate * step)
    return fresh + seen * (1.0 - fresh)


@triton.jit(do_not_specialize=["n_samples", "n_chunks"])
def running_level_means(
    x_ptr,  # (B, n_samples)
    parts_ptr,  # (3, B, n_chunks): what each chunk adds to the three sums; the first is written
    n_samples,
    n_chunks,
    rate,
    BLOCK: tl.constexpr,
):
    """Part of a chunk in the mean of the samples."""
    item, chunk = tl.program_id(0) // n_chunks, tl.program_id(0) % n_chunks
    offs = chunk * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + item.to(tl.int64) * n_samples + offs, mask=offs < n_samples, other=0.0)
    tl.store(parts_ptr + tl.program_id(0), _part(x, rate, n_samples - chunk * BLOCK, BLOCK))


@triton.jit(do_not_specialize=["n_samples", "n_chunks"])
def running_level_powers(
    x_ptr,  # (B, n_samples)
    sums_ptr,  # (B, 3) or None: of what came before
    seen_ptr,  # (B, 3) or None
    parts_ptr,  # (3, B, n_chunks): the first is read, the others are written
    out_ptr,  # (B, n_samples): samples less their mean
    last_ptr,  # (B, 3): sums after the last sample; the first is written
    n_samples,
    n_chunks,
    rate,
    slow,
    fast,
    BLOCK: tl.constexpr,
    FAR: tl.constexpr,
):
    """Samples less their mean up to the one before, and parts of a chunk in both means of their power."""
    item, chunk = tl.program_id(0) // n_chunks, tl.program_id(0) % n_chunks
    offs = chunk * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n_samples
    row = item.to(tl.int64) * n_samples
    x = tl.load(x_ptr + row + offs, mask=mask, other=0.0)
    first, seen = 0.0, 0.0
    if sums_ptr is not None:
        first, seen = tl.load(sums_ptr + 3 * item), tl.load(seen_ptr + 3 * item)
    carry = _carry(parts_ptr + item * n_chunks, first, chunk, rate, BLOCK, FAR)
    means = _scan(x, carry, rate, BLOCK)
    # The mean before a sample: its leaky sum without it.
    before = (means - _fresh(rate) * x) * tl.exp(rate)
    share = _heard(seen, offs.to(tl.float32), rate)
    x = tl.where(mask & (share > 0), x - before / tl.maximum(share, 1e-12), 0.0)
    tl.store(out_ptr + row + offs, x, mask=mask)
    tl.store(last_ptr + 3 * item + 0 * offs, means, mask=offs == n_samples - 1)
    left, place = n_samples - chunk * BLOCK, tl.num_programs(0)
    tl.store(parts_ptr + place + tl.program_id(0), _part(x * x, slow, left, BLOCK))
    tl.store(parts_ptr + 2 * place + tl.program_id(0), _part(x * x, fast, left, BLOCK))


@triton.jit(do_not_specialize=["n_samples", "n_chunks"])
def running_level_divide(
    sums_ptr,  # (B, 3) or None
    seen_ptr,  # (B, 3) or None
    parts_ptr,  # (3, B, n_chunks)
    out_ptr,  # (B, n_samples): samples less their mean, then divided
    gain_ptr,  # (B, n_samples)
    last_ptr,  # (B, 3)
    last_seen_ptr,  # (B, 3)
    n_samples,
    n_chunks,
    rate,
    slow,
    fast,
    share,  # of the fast mean that the level has at least
    floor,
    BLOCK: tl.constexpr,
    FAR: tl.constexpr,
):
    """Level of a chunk, and what its samples are divided by and multiplied with."""
    item, chunk = tl.program_id(0) // n_chunks, tl.program_id(0) % n_chunks
    offs = chunk * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n_samples
    row = item.to(tl.int64) * n_samples
    x = tl.load(out_ptr + row + offs, mask=mask, other=0.0)
    first_slow, first_fast, seen_mean, seen_slow, seen_fast = 0.0, 0.0, 0.0, 0.0, 0.0
    if sums_ptr is not None:
        first_slow, first_fast = tl.load(sums_ptr + 3 * item + 1), tl.load(sums_ptr + 3 * item + 2)
        seen_mean = tl.load(seen_ptr + 3 * item)
        seen_slow, seen_fast = tl.load(seen_ptr + 3 * item + 1), tl.load(seen_ptr + 3 * item + 2)
    place = tl.num_programs(0)
    parts_ptr += item * n_chunks
    slow_sums = _scan(x * x, _carry(parts_ptr + place, first_slow, chunk, slow, BLOCK, FAR), slow, BLOCK)
    fast_sums = _scan(x * x, _carry(parts_ptr + 2 * place, first_fast, chunk, fast, BLOCK, FAR), fast, BLOCK)
    step = (offs + 1).to(tl.float32)
    slow_seen, fast_seen = _heard(seen_slow, step, slow), _heard(seen_fast, step, fast)
    recent = fast_sums / fast_seen
    level = tl.sqrt(tl.maximum(slow_sums / slow_seen, share * recent))
    tl.store(out_ptr + row + offs, x / (level + floor), mask=mask)
    tl.store(gain_ptr + row + offs, level * (recent / (recent + floor * floor)), mask=mask)
    end = offs == n_samples - 1
    tl.store(last_ptr + 3 * item + 1 + 0 * offs, slow_sums, mask=end)
    tl.store(last_ptr + 3 * item + 2 + 0 * offs, fast_sums, mask=end)
    tl.store(last_seen_ptr + 3 * item + 0 * offs, _heard(seen_mean, step, rate), mask=end)
    tl.store(last_seen_ptr + 3 * item + 1 + 0 * offs, slow_seen, mask=end)
    tl.store(last_seen_ptr + 3 * item + 2 + 0 * offs, fast_seen, mask=end)


def running_level_forward(
    x: Tensor, sums: Tensor, seen: Tensor, rates: tuple[float, float, float], share: float, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide a signal by its level so far; see `slimse.ops.running_level` for what it computes.

    Args:
        x: ``[B, n]`` float32, ``n`` of 1 or more.
        sums: ``[B, 3]`` float32, of what came before; ``[B, 0]`` for nothing.
        seen: as ``sums``.
        rates: of the means, per sample.
        share: of the fast mean of the power that the level's square has at least.
        floor: of the level.

    Returns:
        ``x`` divided ``[B, n]``, gain ``[B, n]``, and the new ``sums`` and ``seen``.

    Raises:
        ValueError: for another shape or dtype.
    """
    batch, samples = x.shape
    before = tuple(sums.shape), tuple(seen.shape)
    if samples < 1 or x.dtype is not sums.dtype or before not in (((batch, 3),) * 2, ((batch, 0),) * 2):
        found = f"x is {x.dtype} {tuple(x.shape)}, sums {sums.dtype} {before[0]} and seen {before[1]}"
        raise ValueError(f"{found}: expected one dtype, [{batch}, 1 or more] and [{batch}, 3 or 0]")
    x, out, gain = x.contiguous(), x.new_empty(x.shape), x.new_empty(x.shape)
    # So short that no power of a rate leaves float32.
    block = triton.next_power_of_2(max(min(1024, int(32 / max(rates))), 32) + 1) // 2
    chunks = triton.cdiv(samples, block)
    parts, last, last_seen = x.new_empty(3, batch, chunks), x.new_empty(batch, 3), x.new_empty(batch, 3)
    earlier = (sums.contiguous(), seen.contiguous()) if sums.shape[1] else (None, None)
    size, rate, slow, fast = (samples, chunks), *rates
    grid, options = (batch * chunks,), {"BLOCK": block, "num_warps": 4, "num_stages": 1}
    launching.launch(running_level_means, grid, x, parts, *size, rate, **options)
    options["FAR"] = FAR
    launching.launch(running_level_powers, grid, x, *earlier, parts, out, last, *size, rate, slow, fast, **options)
    tensors = (parts, out, gain, last, last_seen)
    launching.launch(running_level_divide, grid, *earlier, *tensors, *size, rate, slow, fast, share, floor, **options)
    return out, gain, last, last_seen
