"""A causal running level: what the network's input is divided by and its output multiplied with, sample by sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops import check_backend, running_level

OFFSET_SECONDS, SLOW_SECONDS, FAST_SECONDS = 0.1, 2.0, 0.02
"""Time constants of the means: of the samples (their constant offset), and of their power."""
FAST_SHARE = 0.125
"""The level rises at once where the fast mean of the power is more than 9 dB above the slow one."""
FLOOR = 1e-6
"""Level, -120 dBFS, below which sound fades out. It keeps the division finite."""


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
        backend: see `slimse.ops`.

    Shape:
        ``[B, n]``, any ``n``. The pieces of a signal, one after the other, give what the whole signal gives.
    """

    def __init__(self, sample_rate: int, *, backend: str = "auto") -> None:
        super().__init__()
        check_backend(backend, "ieee")
        self.backend = backend
        self.rates = tuple(1 / (seconds * sample_rate) for seconds in (OFFSET_SECONDS, SLOW_SECONDS, FAST_SECONDS))

    def initial_state(self, like: Tensor) -> LevelState:
        """Before the first sample of ``len(like)`` streams."""
        return LevelState(*(like.new_zeros(len(like), n) for n in (3, 3, 0)))

    def forward(self, x: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        """Normalise the next samples ``[B, n]``; the new state has their gains behind those that wait."""
        if not x.shape[1]:
            return x, state
        given = (x, state.sums, state.seen, self.rates, FAST_SHARE, FLOOR)
        out, gain, sums, seen = running_level(*given, backend=self.backend)
        return out, LevelState(sums, seen, torch.cat([state.gain, gain], dim=1) if state.gain.shape[1] else gain)
