"""A causal running level: what the network's input is divided by and its output multiplied with, sample by sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

OFFSET_SECONDS, SLOW_SECONDS, FAST_SECONDS = 0.1, 2.0, 0.02
"""Time constants of the means: of the samples (their constant offset), and of their power."""
FAST_SHARE = 0.125
"""The level rises at once where the fast mean of the power is more than 9 dB above the slow one."""
FLOOR = 1e-6
"""Level, -120 dBFS, below which sound fades out. It keeps the division finite."""
_BLOCK = 64


class LevelState(NamedTuple):
    """What a running level remembers of streams between two calls."""

    sums: Tensor
    """Leaky sums ``[B, 3]``: of the samples, of their power slowly, of their power fast."""
    seen: Tensor
    """The same sums of ones ``[B, 3]``; they divide ``sums``, so that the means are right from the first sample on."""
    gain: Tensor
    """What to multiply the next outputs with ``[B, n]``: of the samples whose output has not come yet."""


class RunningLevel(nn.Module):
    """Divide a signal by its level so far, and remember what to multiply the result with.

    With ``m`` the exponentially weighted mean of the samples before this one (0.1 s), and ``s`` and ``f`` those of the
    power of ``x - m`` up to this sample (2 s and 0.02 s):

        ``level = sqrt(max(s, f / 8))``
        ``normalised = (x - m) / (level + 1e-6)``
        ``gain = level * f / (f + 1e-12)``

    The means are fast at the start, as there is little to average, and slow later. A sudden sound raises the level at
    once; after it, the level falls over seconds. ``gain`` differs from the divisor below -100 dBFS alone: silence
    comes out as silence. At the first sample of a signal ``x - m`` is 0.

    Args:
        sample_rate: Hz.

    Shape:
        ``[B, n]``, any ``n``. The pieces of a signal, one after the other, give what the whole signal gives.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.rates = tuple(1 / (seconds * sample_rate) for seconds in (OFFSET_SECONDS, SLOW_SECONDS, FAST_SECONDS))

    def initial_state(self, like: Tensor) -> LevelState:
        """Before the first sample of ``len(like)`` streams."""
        return LevelState(*(like.new_zeros(len(like), n) for n in (3, 3, 0)))

    def forward(self, x: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        """Normalise the next samples ``[B, n]``; the new state has their gains behind those that wait."""
        if not x.shape[1]:
            return x, state
        totals, counts = state.sums.unbind(1), state.seen.unbind(1)
        # Autocast would round the means, and a level that jumps is heard.
        with torch.autocast(x.device.type, enabled=False):
            means, shares = _sums(x, totals[0], counts[0], self.rates[0])
            earlier, share = (
                torch.cat([a[:, None], b[:, :-1]], 1) for a, b in ((totals[0], means), (counts[0], shares))
            )
            # Where nothing came before, any difference would be rounding, which the division would blow up.
            x = torch.where(share > 0, x - earlier / share.clamp(min=1e-12), 0)
            slow, slow_shares = _sums(x.square(), totals[1], counts[1], self.rates[1])
            fast, fast_shares = _sums(x.square(), totals[2], counts[2], self.rates[2])
            recent = fast / fast_shares
            level = torch.maximum(slow / slow_shares, FAST_SHARE * recent).sqrt()
            gain = level * (recent / (recent + FLOOR**2))
            sums = torch.stack([part[:, -1] for part in (means, slow, fast)], 1)
            seen = torch.stack([part[:, -1] for part in (shares, slow_shares, fast_shares)], 1)
            return x / (level + FLOOR), LevelState(sums, seen, torch.cat([state.gain, gain], dim=1))


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
