"""Utilization factors (UFs) and channel counts.

This is the only place that turns a UF into channels. A *schedule* says which UF
every frame of a call runs at; a layer asks it for the width of each of its positions. A width is

- an ``int``: the same number of active channels everywhere (*uniform*),
- an integer tensor ``[B, P]``: active channels of every position (*ragged*),
- a `FrameWidths`: the same by the frame that owns a position, for blocks of a network with frames,
- a `SoftWidth`: multipliers ``[B, P, C]`` built from gates over the UFs (*soft*, for training a router).
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._guards import detect_fake_mode

# Plain torch: what the kernels take of a width by frames.
from .kernels.rows import FrameWidths, frame_orders, owners

UF: TypeAlias = float | Tensor
"""What layers accept: a float, ``[B]``, ``[B, frames]``, or gates ``[B, frames, n_ufs]``."""

AnyUF: TypeAlias = UF | Sequence[float] | Sequence[Sequence[float]] | NDArray[Any]
"""What models and streams accept: a `UF`, or the same as a list or a numpy array."""

Budget: TypeAlias = float | Sequence[float] | NDArray[Any] | Tensor
"""Target mean UF, averaged over a corpus: a number or ``[B]``, from the smallest UF to 1. The router meets it."""


class Request(NamedTuple):
    """The widths that a caller asked for: UFs, or a budget for the router. Exactly one of the two is set."""

    uf: UF | None
    budget: Tensor | None
    """``[B]``, float32."""


def as_uf(uf: AnyUF) -> UF:
    """A list or an array of UFs as a tensor; everything else as it is."""
    if isinstance(uf, list | tuple) or (isinstance(uf, np.ndarray) and uf.ndim):
        return torch.as_tensor(np.asarray(uf, dtype=np.float32))
    return uf  # type: ignore[return-value]


@dataclass(frozen=True)
class SoftWidth:
    """Per-channel multipliers of shape ``[B, P, C]``; where gates are one-hot they are prefix masks."""

    mask: Tensor


Width: TypeAlias = int | Tensor | SoftWidth
LevelWidth: TypeAlias = Width | FrameWidths


def by_position(width: LevelWidth, positions: int) -> Width:
    """The width as a number for each of ``positions``, where it is a `FrameWidths`; others as they are."""
    return width.positions(positions) if isinstance(width, FrameWidths) else width


def apply_width(hidden: Tensor, width: Width) -> Tensor:
    """Silence the inactive channels of ``hidden`` (``[B, P, k]``, ``k`` the largest active count).

    A uniform width has already cut the channels. Ragged rows are masked with `where`, not by a product, so
    that a NaN in an inactive channel cannot leak.
    """
    if isinstance(width, int):
        return hidden
    if isinstance(width, SoftWidth):
        return hidden * width.mask
    active = torch.arange(hidden.shape[-1], device=hidden.device) < width.unsqueeze(-1)
    return torch.where(active, hidden, torch.zeros((), dtype=hidden.dtype, device=hidden.device))


def max_width(width: LevelWidth, channels: int) -> int:
    """The channels that a dense pass has to compute so that every position has its own."""
    if isinstance(width, int):
        return width
    if isinstance(width, FrameWidths):
        width = width.counts[width.choice]
    if isinstance(width, SoftWidth):
        return channels
    return int(width.max()) if width.numel() else 0


def channels(uf: UF, full: int) -> Any:
    """Active channels of a layer: the one rule of this package that turns a UF into a number of channels.

    Args:
        uf: a number, or a tensor of any shape, in (0, 1].
        full: channels of the layer.

    Returns:
        ``ceil(full * uf)``: an ``int``, or int64 of the shape of ``uf``. A product that is whole but for rounding
        (0.14 of 50) is not rounded up, so that a number and a tensor give the same.
    """
    if isinstance(uf, Tensor):
        return (uf.double() * full * _ROUNDING).ceil().long()
    return math.ceil(uf * full * _ROUNDING)


_ROUNDING = 1 - 1e-6
"""Larger than the rounding error of a UF in single precision, smaller than a channel of a layer of a million."""


def check_uf(uf: Any) -> None:
    """Check a UF for layers that run at any, of no particular set.

    Raises:
        ValueError: unless it is a number in (0, 1], or a tensor of such, ``[B]`` or ``[B, positions]``. Under a
            compiler, values of a tensor are not looked at.
    """
    if not isinstance(uf, Tensor):
        if isinstance(uf, bool) or not isinstance(uf, int | float | np.floating) or not 0 < uf <= 1:
            raise ValueError(f"uf = {uf!r}: expected a number in (0, 1]")
        return
    if uf.ndim not in (1, 2):
        raise ValueError(f"uf has shape {tuple(uf.shape)}: expected a number, [batch] or [batch, positions]")
    if not torch.compiler.is_compiling() and not bool(((uf > 0) & (uf <= 1)).all()):
        raise ValueError(f"uf has values from {uf.min():g} to {uf.max():g}: expected numbers in (0, 1]")


class WidthSet(tuple[float, ...]):
    """The UFs that a model was trained for, in rising order: the larger, the better and the dearer.

    Args:
        ufs: distinct numbers in (0, 1], rising, the last one 1.0.

    Raises:
        ValueError: if they are not.

    >>> widths = WidthSet((0.125, 0.25, 0.5, 1.0))
    >>> [widths.channels(uf, 512) for uf in widths]
    [64, 128, 256, 512]
    """

    __slots__ = ()

    def __new__(cls, ufs: Iterable[float]) -> WidthSet:
        """Check the UFs and build the set."""
        values = tuple(float(uf) for uf in ufs)
        rising = all(a < b for a, b in pairwise(values))
        if not values or not rising or values[0] <= 0 or values[-1] != 1.0:
            raise ValueError(f"ufs = {values}: expected rising numbers in (0, 1], the last one 1.0")
        return super().__new__(cls, values)

    def validate(self, uf: Any) -> float:
        """Return ``uf`` if it belongs to the set; raise a `ValueError` that names the set otherwise."""
        uf = uf.item() if isinstance(uf, Tensor | np.ndarray) and uf.ndim == 0 else uf
        if isinstance(uf, bool) or not isinstance(uf, numbers.Real) or float(uf) not in self:
            raise ValueError(f"uf = {uf!r} is not one of this model's widths {tuple(self)}")
        return float(uf)

    def request(self, uf: AnyUF | None, budget: Budget | None, batch: int) -> Request:
        """Check what a caller passed as UF and budget, for ``batch`` items. Neither of the two means UF 1.0.

        Shapes and values of a tensor of UFs are checked later, by `schedule`.

        Raises:
            ValueError: for both at once, and for a budget out of range or of another shape.
        """
        if budget is None:
            return Request(1.0 if uf is None else as_uf(uf), None)
        if uf is not None:
            raise ValueError(
                f"uf = {uf} with budget = {budget}: expected one of them; for a budget, the router chooses"
            )
        if isinstance(budget, bool | str):
            raise ValueError(f"budget = {budget!r}: expected a mean UF from {self[0]:g} to 1")
        values = torch.as_tensor(budget, dtype=torch.float32)
        if values.ndim > 1 or (values.ndim == 1 and len(values) != batch):
            raise ValueError(f"budget has shape {tuple(values.shape)}: expected a number or [{batch}]")
        if not bool(((values >= self[0]) & (values <= 1)).all()):
            raise ValueError(f"budget = {budget}: expected a mean UF from {self[0]:g} to 1")
        return Request(None, values.expand(batch))

    def channels(self, uf: float, full: int) -> int:
        """Active channels of a layer of ``full`` channels at ``uf``, see `slimse.width.channels`."""
        return int(channels(self.validate(uf), full))

    def indices(self, uf: Tensor) -> Tensor:
        """Positions in this set of a tensor of UFs (int64, same shape).

        Raises:
            ValueError: if any value is not in the set (not looked for under a compiler); the message names both.
        """
        table = _table((*self,), uf.device, uf.dtype if uf.is_floating_point() else torch.float32)
        hit = uf.unsqueeze(-1) == table
        # A compiler cannot look at values, and takes them as they are.
        if not torch.compiler.is_compiling():
            self._check_all(uf, hit.any(-1))
        return hit.to(torch.int8).argmax(-1)

    def _check_all(self, uf: Tensor, found: Tensor) -> None:
        """Raise unless all are ``found``. On a GPU a kernel asserts it later, so that the host need not wait."""
        if not _readable(found):
            torch._assert_async(found.all(), f"a uf is not one of this model's widths {tuple(self)}")
        elif not bool(found.all()):
            raise ValueError(f"uf = {uf[~found].flatten()[0].item():g} is not one of this model's widths {tuple(self)}")

    def at(self, indices: Tensor) -> Tensor:
        """The UFs at positions in this set (float32, same shape and device): the inverse of `indices`."""
        return _table((*self,), indices.device, torch.float32)[indices]

    def counts(self, full: int, device: torch.device) -> Tensor:
        """Active channels of a layer of ``full`` channels at every UF: int32 ``[len(self)]``."""
        return _table(tuple(self.channels(uf, full) for uf in self), device, torch.int32)

    def schedule(self, uf: AnyUF, batch: int, frames: int) -> Schedule:
        """Resolve what a caller passed as ``uf`` into the schedule of one call.

        Args:
            uf: a float of the set; ``[B]`` or ``[B, frames]`` of such values, as a tensor, a list or an array; or gates
                ``[B, frames, len(self)]`` (one-hot forward, soft gradient) for training.
            batch: items of the call.
            frames: frames of the call, 1 or more.

        Raises:
            ValueError: for a UF outside the set, or a shape that does not fit; the message says which.
        """
        uf = as_uf(uf)
        if not isinstance(uf, Tensor) or uf.ndim == 0:
            return Schedule(self, uf=self.validate(uf))
        shapes = {1: (batch,), 2: (batch, frames), 3: (batch, frames, len(self))}
        if tuple(uf.shape) != shapes.get(uf.ndim):
            raise ValueError(
                f"uf has shape {tuple(uf.shape)}: expected a float, [{batch}], [{batch}, {frames}] "
                f"or gates [{batch}, {frames}, {len(self)}] (batch, frames, widths)"
            )
        if uf.ndim == 3:
            return Schedule(self, gates=uf)
        index = self.indices(uf).int()
        return Schedule(self, choice=index if uf.ndim == 2 else index.unsqueeze(1).expand(batch, frames).contiguous())


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be read without waiting for a GPU."""
    return tensor.device.type == "cpu"


def _table(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A few numbers on a device, copied once: a CUDA graph cannot copy them, and each copy would wait for the GPU."""
    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return torch.tensor(values, device=device, dtype=dtype)
    return _kept_table(values, device, dtype)


@functools.cache
def _kept_table(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # Autograd saves no tensor that was made in inference mode.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


@dataclass(frozen=True)
class Schedule:
    """The UF of every frame of one call. One of ``uf``, ``choice`` and ``gates`` is set; see `WidthSet.schedule`."""

    widths: WidthSet
    uf: float | None = None
    choice: Tensor | None = None
    """int32 ``[B, frames]``, contiguous: index into ``widths``."""
    gates: Tensor | None = None
    """``[B, frames, len(widths)]``."""
    orders: tuple[Tensor, Tensor] | None = None
    """By `ordered`."""

    def ordered(self) -> Schedule:
        """The same with the frames sorted by their ``choice``, for kernels: once for all levels."""
        if self.choice is None:
            return self
        return replace(self, orders=frame_orders(self.choice, len(self.widths)))

    def width(self, channels: int, frame: Tensor) -> Width:
        """Width of a layer of ``channels`` channels at positions owned by the frames ``frame`` (int64 ``[P]``)."""
        if self.uf is not None:
            return self.widths.channels(self.uf, channels)
        counts = self.widths.counts(channels, frame.device)
        if self.choice is not None:
            return counts[self.choice[:, frame]]
        assert self.gates is not None
        prefix = torch.arange(channels, device=frame.device) < counts.unsqueeze(1)
        return SoftWidth((self.gates @ prefix.to(self.gates.dtype))[:, frame])

    def level_width(self, channels: int, positions: int, rate: int = 1, lead: int = 0) -> LevelWidth:
        """The same without a number per position, for blocks whose kernels know frames.

        Args:
            channels: of the layer.
            positions: how many it has.
            rate: positions per frame.
            lead: last position of the first frame. The last frame owns all that come after it.
        """
        if self.choice is not None:
            counts = self.widths.counts(channels, self.choice.device)
            return FrameWidths(self.choice, counts, rate, lead, self.orders)
        if self.uf is not None:
            return self.widths.channels(self.uf, channels)
        assert self.gates is not None
        return self.width(channels, owners(positions, self.gates.shape[1], rate, lead, self.gates.device))
