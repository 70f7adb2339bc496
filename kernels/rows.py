"""Rows of matrix products as they lie in channels-last tensors, and how much of each is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class FrameWidths(NamedTuple):
    """The width of every position of a layer by the frame that owns it; see `slimse.networks.demucs.frames.FrameMap`.

    Position ``p`` belongs to frame ``ceil((p - lead) / rate)``, at least the first and at most the last. Nothing is
    computed per position, and nothing waits for the device.
    """

    choice: Tensor
    """int32 ``[B, frames]``: which of the widths a frame has."""
    counts: Tensor
    """int32 ``[J]``: active channels of every width."""
    rate: int
    """Positions per frame."""
    lead: int
    """Last position of the first frame; where a frame begins at each multiple of ``rate``, ``rate - 1``."""
    orders: tuple[Tensor, Tensor] | None = None
    """By `frame_orders`: puts frames of like width into one tile; None to leave them as they come."""

    def positions(self, count: int) -> Tensor:
        """Width of ``count`` positions, int32 ``[B, count]``."""
        return self.counts[
            self.choice[:, owners(count, self.choice.shape[1], self.rate, self.lead, self.counts.device)]
        ]


def owners(count: int, frames: int, rate: int, lead: int, device: torch.device | None = None) -> Tensor:
    """The frame of ``count`` positions, int64 ``[count]``: as in `FrameWidths`."""
    index = torch.arange(count, device=device)
    return (index - lead + rate - 1).clamp(min=0).div(rate, rounding_mode="floor").clamp(max=frames - 1)


SPARE = 4
"""Runs of ``rate`` positions that the first frame owns beyond its first, and the last one beyond its last, at most."""


def frame_orders(choice: Tensor, widths: int) -> tuple[Tensor, Tensor]:
    """Runs of all items from narrow to wide, for `FrameWidths.orders`: two counting sorts for all levels of a network.

    Args:
        choice: int ``[B, frames]``, which of the ``widths`` (rising) a frame has.
        widths: how many there are.

    Returns:
        Twice int32 ``[B * (frames + SPARE)]``, run ``r`` of item ``b`` being ``b * (frames + SPARE) + r``: in the order
        of its own width, and in that of the wider of it and the run before, which an output of a transposed convolution
        gathers too. Half of the spare runs come before the first frame and are its own, half after the last.
    """
    before = SPARE // 2
    first, last = choice[:, :1].expand(-1, before), choice[:, -1:].expand(-1, SPARE - before)
    own = torch.cat([first, choice, last], 1)
    both = torch.cat([own[:, :1], torch.maximum(own[:, 1:], own[:, :-1])], 1)
    runs = torch.arange(own.numel(), dtype=torch.int32, device=choice.device)
    orders = []
    for keys in (own.flatten(), both.flatten()):
        hits = keys == torch.arange(widths, device=keys.device).unsqueeze(1)
        # A run's place: how many have a smaller key, or the same one and come before it.
        place = hits.flatten().cumsum(0).view(widths, -1).gather(0, keys.long().unsqueeze(0)).squeeze(0) - 1
        orders.append(torch.empty_like(runs).scatter_(0, place, runs))
    return orders[0], orders[1]


class Frames(NamedTuple):
    """How positions lie in frames, as one constant of a kernel."""

    rate: int
    lead: int
    ordered: bool
    spare: int = SPARE

    @property
    def skipped(self) -> int:
        """Positions that are missing from the first of the runs of an item."""
        return (SPARE // 2 + 1) * self.rate - 1 - self.lead


class Prefix(NamedTuple):
    """Active units of rows: ``bound`` of all, or as many as ``rows`` (int32) or ``frames`` says, at most ``bound``."""

    bound: int
    rows: Tensor | None = None
    frames: FrameWidths | None = None

    @property
    def uniform(self) -> bool:
        """Whether all rows have one width."""
        return self.rows is None and self.frames is None

    def per_row(self, per_item: int) -> Prefix:
        """The same with one of its own for every row, if it goes by frames."""
        return self if self.frames is None else Prefix(self.bound, self.frames.positions(per_item).contiguous())


class Geometry(NamedTuple):
    """Where the runs of rows lie, as one constant of a kernel; the fields are those of `Rows`."""

    stride: int
    channels: int
    length: int
    taps: int
    dilation: int
    padding: int
    aligned: bool
    """Whether items begin a multiple of ``stride`` positions apart, so that rows are read in wide loads."""


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
        """Positions between the items of the batch, or where `aligned` strides between them.

        The size of a position is known when a kernel is compiled; an offset in elements would be compiled for as a
        multiple of 16 and again as none.
        """
        return self._item // self.stride if self.aligned else self._item

    @property
    def _item(self) -> int:
        return self.data.stride(0) // self.channels if self.data.shape[0] > 1 else 0

    @property
    def aligned(self) -> bool:
        """See `Geometry`."""
        return self.plain and self._item % self.stride == 0

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
        return Geometry(self.stride, self.channels, self.length, self.taps, self.dilation, self.padding, self.aligned)


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
