"""One point of a benchmark: a UF or a mixture of them, batch, length and number format, with inputs to match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.roofline import CONFIG, positions
from slimse.width import FrameWidths, LevelWidth, Schedule, by_position

MIXTURE = {0.125: 0.33, 0.25: 0.40, 0.5: 0.25, 1.0: 0.02}
"""Shares of the UFs that a router picked in the paper at a target of 0.25."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By number format; all others are float32, computed in another way."""


@dataclass(frozen=True)
class Setup:
    """One point: a UF (None for the mixture), and what it runs on."""

    uf: float | None
    batch: int
    seconds: float
    kind: str
    device: str
    backend: str = "auto"
    compiler: str = "inductor"

    @property
    def dtype(self) -> torch.dtype:
        """Of all tensors."""
        return DTYPES.get(self.kind, torch.float32)

    @property
    def choice(self) -> dict[str, str]:
        """How an op runs: its backend, and the precision of the kernels' float32 products."""
        return {"backend": self.backend, "precision": self.kind if self.kind.startswith("tf32") else "ieee"}

    def frames(self) -> int:
        """Frames of a clip."""
        return positions(CONFIG.depth, self.seconds)

    def ufs(self, frames: int) -> Tensor:
        """Of the mixture, one UF per item and frame."""
        generator = torch.Generator().manual_seed(0)
        shares = torch.tensor([*MIXTURE.values()])
        choice = torch.multinomial(shares, self.batch * frames, replacement=True, generator=generator)
        return torch.tensor([*MIXTURE])[choice].view(self.batch, -1).to(self.device)

    def width(self, channels: int, count: int, *, by_frames: bool = False) -> tuple[LevelWidth, float]:
        """Width of a layer at ``count`` positions, evenly spread over the frames, and its mean.

        ``by_frames`` is as a network gives it to its blocks; layers of their own know positions alone.
        """
        if self.uf is not None:
            k = CONFIG.ufs.channels(self.uf, channels)
            return k, k
        frames = self.frames()
        schedule: Schedule = CONFIG.ufs.schedule(self.ufs(frames), self.batch, frames)
        rate = max(round(count / frames), 1)
        width = schedule.ordered().level_width(channels, count, rate, rate - 1)
        assert isinstance(width, FrameWidths)
        rows = width.positions(count)
        return (width if by_frames else rows), float(rows.float().mean())

    def random(self, *shape: int) -> Tensor:
        """Random numbers, small enough for any depth."""
        return (0.1 * torch.randn(shape, device=self.device)).to(self.dtype)

    def mask(self, width: LevelWidth, channels: int, count: int) -> Tensor:
        """``[batch, channels, count]``: ones in active channels."""
        width = by_position(width, count)
        rows = torch.full((self.batch, count), width, device=self.device) if isinstance(width, int) else width
        assert isinstance(rows, Tensor)
        return (torch.arange(channels, device=self.device)[:, None] < rows[:, None]).to(self.dtype)
