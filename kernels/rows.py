"""Rows of matrix products as they lie in channels-last tensors, and how much of each is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Prefix(NamedTuple):
    """Active units of rows: as many as ``rows`` says of each (int32), at most than ``bound``; or ``bound`` of all."""

    bound: int
    rows: Tensor | None = None


class Geometry(NamedTuple):
    """Where the runs of rows lie, as one constant of a kernel; the fields are those of `Rows`."""

    stride: int
    channels: int
    length: int
    taps: int
    dilation: int
    padding: int


@dataclass(frozen=True)
class Rows:
    """``batch * per_item`` rows of a channels-last tensor, each ``taps`` runs of ``length`` elements.

    Run ``i`` of row ``p`` starts at position ``p * stride + i * dilation - padding`` of its item; positions lie
    ``channels`` elements apart. Outside of an item all is zero. Rows may overlap.
    """

    data: Tensor
    per_item: int
    stride: int
    length: int
    taps: int = 1
    dilation: int = 1
    padding: int = 0

    @property
    def count(self) -> int:
        """Rows of the whole batch."""
        return self.data.shape[0] * self.per_item

    @property
    def channels(self) -> int:
        """Elements between positions."""
        return self.data.stride(1) if self.data.shape[1] > 1 else self.data.shape[2]

    @property
    def stride_b(self) -> int:
        """Positions between the items of the batch.

        The size of a position is known when a kernel is compiled; an offset in elements would be compiled for as a
        multiple of 16 and again as none.
        """
        return self.data.stride(0) // self.channels if self.data.shape[0] > 1 else 0

    @classmethod
    def windows(cls, x: Tensor, stride: int, length: int) -> Rows:
        """The windows of a strided convolution over ``x``: ``length`` elements every ``stride`` positions."""
        x, channels = packed_channels(x), x.shape[2]
        per_item = max((x.shape[1] * channels - length) // (stride * channels) + 1, 0)
        return cls(x, per_item, stride, length)

    @classmethod
    def positions(cls, x: Tensor) -> Rows:
        """Every position of ``x`` as a row."""
        return cls(packed_time(x), x.shape[1], 1, x.shape[2])

    @property
    def plain(self) -> bool:
        """Whether no row reaches out of its item."""
        return self.taps == 1 and self.padding == 0

    @property
    def geometry(self) -> Geometry:
        """What a kernel is compiled for."""
        return Geometry(self.stride, self.channels, self.length, self.taps, self.dilation, self.padding)


def packed_time(x: Tensor) -> Tensor:
    """``x`` itself where channels lie side by side and items a whole number of positions apart, else a copy."""
    batch, time, channels = x.shape
    if x.numel() == 0 or (x.stride(2) != 1 and channels > 1):
        return x.contiguous()
    step = x.stride(1) if time > 1 else channels
    whole = step >= channels and (batch == 1 or x.stride(0) % step == 0)
    return x if whole else x.contiguous()


def packed_channels(x: Tensor) -> Tensor:
    """As `packed_time`, and the positions of an item lie side by side, as windows that span several want it."""
    x = packed_time(x)
    return x if x.shape[1] <= 1 or x.stride(1) == x.shape[2] else x.contiguous()


def addend(rows: Rows | None) -> tuple[Tensor | None, int, int]:
    """Data, item stride and channels of rows that a kernel adds to others, or what stands for none."""
    return (None, 0, 1) if rows is None else (rows.data, rows.stride_b, rows.channels)


def by_width(width: Tensor) -> Tensor:
    """Order of the rows of an integer tensor ``[B, P]`` from narrow to wide, as the launchers' ``order``."""
    return width.flatten().argsort(stable=True).to(torch.int32)
