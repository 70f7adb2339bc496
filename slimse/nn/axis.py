"""Axes of channels that a UF cuts: what a layer of a slimmed network reads and puts out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..width import UF, channels

Parts: TypeAlias = "Tensor | tuple[int, list[Parts]] | None"
"""Views of a tensor, or an axis and the views that follow one another along it; None for no tensor."""


def joined(parts: Parts) -> Tensor | None:
    """One tensor of all parts: itself where there is one, otherwise a copy."""
    if isinstance(parts, tuple):
        return torch.cat([part for part in map(joined, parts[1]) if part is not None], parts[0])
    return parts


class Segment(NamedTuple):
    """A run of channels of which a prefix of whole blocks is active."""

    size: int
    """Channels."""
    blocks: int
    """Equal blocks that they divide into (a channel, a group, a head each). One block is never cut."""

    def active(self, uf: UF) -> int | Tensor:
        """Active channels: a number, or int64 of the shape of ``uf``."""
        return channels(uf, self.blocks) * (self.size // self.blocks)


class Axis(tuple[Segment, ...]):
    """The channels of one side of a layer, as segments that lie one after another.

    A side that comes from one layer is one segment; one that comes from a concatenation, or from both directions of
    a recurrent layer, has several, each with a prefix of its own.

    >>> Axis([Segment(64, 64), Segment(8, 1)]).count(0.25)
    24
    """

    __slots__ = ()

    @classmethod
    def of(cls, size: int, *, cut: bool = True, blocks: int | None = None) -> Axis:
        """One segment of ``size`` channels, cut at any channel (or block), or not at all."""
        return cls([Segment(size, (blocks or size) if cut else 1)])

    @property
    def size(self) -> int:
        """All channels."""
        return sum(segment.size for segment in self)

    @property
    def is_cut(self) -> bool:
        """Whether a UF can cut any channel."""
        return any(segment.blocks > 1 for segment in self)

    def count(self, uf: float) -> int:
        """Active channels in all at one UF."""
        return sum(int(segment.active(uf)) for segment in self)

    def parts(self, of: Parts, dim: int, uf: float) -> Parts:
        """Views of the active entries of a tensor, or of parts of it along another axis, along ``dim``."""
        if of is None or not self.is_cut or uf == 1:
            return of
        if isinstance(of, tuple):
            return of[0], [self.parts(part, dim, uf) for part in of[1]]
        if len(self) == 1:
            return of.narrow(dim, 0, int(self[0].active(uf)))
        views = zip(of.split([segment.size for segment in self], dim), self, strict=True)
        return dim, [view.narrow(dim, 0, int(segment.active(uf))) for view, segment in views]

    def narrow(self, tensor: Tensor, dim: int, uf: float) -> Tensor:
        """The active entries of ``tensor`` along ``dim``: a view where they are a prefix, otherwise a copy."""
        narrow = joined(self.parts(tensor, dim, uf))
        assert narrow is not None, "a tensor has parts"
        return narrow

    def take(self, x: Tensor, dim: int, uf: float) -> Tensor:
        """The active channels of an activation that has all of them, or those alone.

        Raises:
            ValueError: for another number of channels.
        """
        found, active = x.shape[dim], self.count(uf)
        if found == active:
            return x
        if found != self.size:
            raise ValueError(f"the input has {found} channels: expected {self.size}, or the {active} active ones")
        return self.narrow(x, dim, uf)

    def mask(self, uf: Tensor) -> Tensor:
        """Whether each channel is active at each of ``uf``: bool ``[*uf.shape, size]``."""
        parts: Iterable[Tensor] = (
            torch.arange(segment.size, device=uf.device) < torch.as_tensor(segment.active(uf)).unsqueeze(-1)
            for segment in self
        )
        return torch.cat([*parts], -1)

    def silence(self, x: Tensor, dim: int, uf: Tensor) -> Tensor:
        """``x`` with zeros in the inactive channels of ``dim``.

        Args:
            x: the batch is its first axis.
            dim: axis of the channels.
            uf: ``[B]``, or ``[B, P]`` for an ``x`` of three axes, ``P`` being the other one.

        Raises:
            ValueError: for a ``uf`` of another shape.
        """
        if not self.is_cut:
            return x
        channel = dim % x.ndim
        positions = [axis for axis in range(1, x.ndim) if axis != channel]
        if uf.shape[0] != x.shape[0] or (
            uf.ndim == 2 and (len(positions) != 1 or uf.shape[1] != x.shape[positions[0]])
        ):
            allowed = f"[{x.shape[0]}]" + (
                f" or [{x.shape[0]}, {x.shape[positions[0]]}]" if len(positions) == 1 else ""
            )
            raise ValueError(f"uf has shape {tuple(uf.shape)}: expected a number or {allowed}")
        mask = self.mask(uf)
        if uf.ndim == 1:
            shape = [1] * x.ndim
            shape[0], shape[channel] = mask.shape
            mask = mask.view(shape)
        elif channel == 1:
            mask = mask.mT
        # `where`, not a product, so that a NaN in an inactive channel cannot leak.
        return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
