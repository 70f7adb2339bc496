"""Which frame owns which position of the U-Net."""

from __future__ import annotations

from dataclasses import dataclass


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

    def encoder(self, level: int, *, first: bool) -> tuple[int, int]:
        """Rate and lead of encoder ``level`` in a call, for `Schedule.width`.

        ``first`` says that the call starts the signal; later calls continue one frame after another.
        """
        rate = self.positions_per_frame(level)
        return rate, self.first_span(level) - 1 if first else rate - 1

    def decoder(self, level: int) -> tuple[int, int]:
        """Rate and lead of decoder ``level`` in a call, for `Schedule.width`."""
        rate = self.positions_per_frame(level)
        return rate, rate - 1
