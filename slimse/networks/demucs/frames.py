"""Which frame owns which position of the U-Net."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FrameMap:
    """Which frame owns which position, for a causal U-Net of ``depth`` levels without padding.

    One frame is one position of the deepest level. A position takes the width of the frame in which a
    streamer first computes it; only then do streaming and offline agree. Frame 0 also owns the long first
    run of every encoder level, as the first frame needs a whole receptive field.
    """

    depth: int
    kernel_size: int
    stride: int

    def positions_per_frame(self, level: int) -> int:
        """Positions per frame at ``level`` (1 is the shallowest, ``depth`` the deepest)."""
        return self.stride ** (self.depth - level)

    def first_span(self, level: int) -> int:
        """Positions that frame 0 computes at encoder ``level`` (0 is the input of the first block)."""
        span = 1
        for _ in range(self.depth - level):
            span = self.stride * (span - 1) + self.kernel_size
        return span

    def encoder_frames(self, level: int, positions: int, *, first: bool, device: torch.device | None = None) -> Tensor:
        """Frame (int64 ``[positions]``) of every new position of encoder ``level`` in a call.

        Args:
            level: 1 to ``depth``.
            positions: new positions of the call.
            first: whether the call starts the signal; later calls continue one frame after another.
            device: where to put the result.
        """
        index = torch.arange(positions, device=device)
        rate = self.positions_per_frame(level)
        if not first:
            return index.div(rate, rounding_mode="floor")
        return (index - self.first_span(level) + rate).clamp(min=0).div(rate, rounding_mode="floor")

    def decoder_frames(self, level: int, positions: int, frames: int, *, device: torch.device | None = None) -> Tensor:
        """Frame (int64 ``[positions]``) of every new position of decoder ``level``; the last frame owns the tail."""
        index = torch.arange(positions, device=device)
        return index.div(self.positions_per_frame(level), rounding_mode="floor").clamp(max=frames - 1)
