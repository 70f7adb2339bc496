"""References around the network: sinc resampling by two, and the running level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_BLOCK = 64


def sinc_resample(x: Tensor, history: Tensor, filters: Tensor, up: bool, final: bool) -> tuple[Tensor, Tensor]:
    """Double or halve the rate of a signal, or of its next samples.

    Args:
        x: ``[B, n]``.
        history: ``[B, m]``, samples that came before; none (``m = 0``) at the start of a signal.
        filters: ``[TAPS + N - 1, N]``: column ``j`` is the filter that gives a signal half a sample later, from row
            ``j`` on. One product with it filters ``N`` outputs: the same sums as a convolution of one channel, which
            the CPU libraries run at a small part of their matrix speed.
        up: or down.
        final: whether silence follows.

    Returns:
        All samples that are ready ``[B, p]``, and the history of the next call; none after the ``final`` one.
        Of a whole signal ``p`` is ``2 n``, or ``ceil(n / 2)``.
    """
    taps = len(filters) - filters.shape[1] + 1
    zeros = taps // 2
    if not history.shape[1]:
        history = x.new_zeros(len(x), zeros - 1 if up else taps)
    x = torch.cat([history, x], dim=1)
    if final:
        x = nn.functional.pad(x, (0, zeros if up else x.shape[1] % 2 + taps - 2))
    count = (x.shape[1] if up else x.shape[1] // 2) - taps + 1
    if count <= 0:
        return x[:, :0], x[:, :0] if final else x
    rest = x[:, :0] if final else x[:, count if up else 2 * count :].clone()
    if up:
        even = x[:, zeros - 1 : zeros - 1 + count]
        return torch.stack([even, _half_sample(x, filters)], dim=2).flatten(1), rest
    even, odd = x[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2)).unbind(2)
    return 0.5 * (even[:, zeros : zeros + count] + _half_sample(odd, filters)), rest


def _half_sample(x: Tensor, filters: Tensor) -> Tensor:
    """``[B, n]`` to ``[B, n - TAPS + 1]``: the signal half a sample after the middle of each window."""
    rows, block = filters.shape
    count = x.shape[1] - (rows - block)
    blocks = -(-count // block)
    padded = nn.functional.pad(x, (0, blocks * block - count))
    windows = padded.unfold(1, rows, block)
    # Autocast would run the filter in bf16, and its rounding would be noise 50 dB below the signal.
    with torch.autocast(x.device.type, enabled=False):
        return (windows @ filters.to(x.dtype)).reshape(x.shape[0], -1)[:, :count]


def running_level(
    x: Tensor, sums: Tensor, seen: Tensor, rates: tuple[float, float, float], share: float, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide a signal by its level so far; `slimse.nn.RunningLevel` has the formula.

    Args:
        x: ``[B, n]``, ``n`` of 1 or more.
        sums: ``[B, 3]``, leaky sums: of the samples, of their power slowly, of their power fast; ``[B, 0]`` at the
            start of a signal.
        seen: as ``sums``, the same of ones; they divide ``sums``, so that the means are right from the first sample on.
        rates: of the three means, per sample.
        share: of the fast mean of the power that the level's square has at least.
        floor: of the level.

    Returns:
        ``x`` divided ``[B, n]``, what to multiply the outputs with ``[B, n]``, and the new ``sums`` and ``seen``.
    """
    if not sums.shape[1]:
        sums = seen = x.new_zeros(len(x), 3)
    totals, counts = sums.unbind(1), seen.unbind(1)
    # Autocast would round the means, and a level that jumps is heard.
    with torch.autocast(x.device.type, enabled=False):
        means, shares = _sums(x, totals[0], counts[0], rates[0])
        earlier, known = (torch.cat([a[:, None], b[:, :-1]], 1) for a, b in ((totals[0], means), (counts[0], shares)))
        # Where nothing came before, any difference would be rounding, which the division would blow up.
        x = torch.where(known > 0, x - earlier / known.clamp(min=1e-12), 0)
        slow, slow_shares = _sums(x.square(), totals[1], counts[1], rates[1])
        fast, fast_shares = _sums(x.square(), totals[2], counts[2], rates[2])
        recent = fast / fast_shares
        level = torch.maximum(slow / slow_shares, share * recent).sqrt()
        gain = level * (recent / (recent + floor**2))
        sums = torch.stack([part[:, -1] for part in (means, slow, fast)], 1)
        seen = torch.stack([part[:, -1] for part in (shares, slow_shares, fast_shares)], 1)
        return x / (level + floor), gain, sums, seen


def _sums(x: Tensor, total: Tensor, seen: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Leaky sums of ``x`` ``[B, n]`` and of ones, up to every sample; the quotient is the weighted mean."""
    sums = _leaky_sum(-math.expm1(-rate) * x, total, rate)
    steps = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=torch.float64)
    # In float64: the first weights of a slow mean are the difference of two numbers near 1.
    fresh = -torch.expm1(-rate * steps)
    return sums, (fresh + seen.double().unsqueeze(1) * (1 - fresh)).to(x.dtype)


def _leaky_sum(x: Tensor, carry: Tensor, rate: float) -> Tensor:
    """``y[t] = exp(-rate) y[t - 1] + x[t]`` along the last axis of ``[B, n]``, from ``y[-1] = carry`` ``[B]`` on.

    Blocks by a product with a triangular matrix, and what goes from block to block by the same again.
    """
    count = x.shape[1]
    blocks = nn.functional.pad(x, (0, -count % _BLOCK)).unflatten(1, (-1, _BLOCK))
    steps = torch.arange(_BLOCK, device=x.device, dtype=torch.float64)
    ages = steps - steps.unsqueeze(1)
    kernel = torch.where(ages >= 0, torch.exp(-rate * ages.clamp(min=0)), 0).to(x.dtype)
    sums = blocks @ kernel
    before = carry.unsqueeze(1)
    if blocks.shape[1] > 1:
        before = torch.cat([before, _leaky_sum(sums[:, :-1, -1], carry, rate * _BLOCK)], dim=1)
    decay = torch.exp(-rate * (steps + 1)).to(x.dtype)
    return (sums + before.unsqueeze(2) * decay).flatten(1)[:, :count]
