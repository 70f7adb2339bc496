"""Normalisations that stand in for those of `torch.nn` and take their statistics over the active channels alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..width import UF
from .axis import Axis, Parts
from .layers import SlimLayer, bare


def _per_item(layer: SlimLayer, x: Tensor, uf: Tensor, why: str) -> None:
    """Refuse a UF per position."""
    if uf.ndim != 1 or uf.shape[0] != x.shape[0]:
        expected = f"expected a number or [{x.shape[0]}]: {why}"
        raise ValueError(f"uf has shape {tuple(uf.shape)} at a {type(layer).__name__}: {expected}")


class _FeatureNorm(SlimLayer):
    """What norms over the last axes share. Of the normalised axes one may be cut, ``dim`` counted from the end."""

    normalized_shape: tuple[int, ...]
    weight: Any
    eps: Any
    dim: int = -1
    plain: ClassVar[type[nn.Module]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.plain.__init__(self, *args, **kwargs)
        size = self.normalized_shape[-1]
        self._choose(size, size, "both", "auto", "ieee")

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        return tuple(self.inputs.parts(parameter, self.dim, uf) for parameter in self._parameters.values())

    def _shape(self, count: int) -> tuple[int, ...]:
        shape = list(self.normalized_shape)
        shape[self.dim] = count
        return tuple(shape)

    def _moments(self, x: Tensor, uf: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` silenced, and the number of active entries that a statistic is taken over."""
        counts = self.inputs.mask(uf).sum(-1)
        others = 1
        for size in self.normalized_shape:
            others *= size
        counts = counts * (others // self.inputs.size)
        return self.inputs.silence(x, self.dim, uf), counts.view(*counts.shape, *[1] * (x.ndim - counts.ndim)).to(x)

    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.normalized_shape), 0))

    def extract(self, uf: float) -> Any:
        """One width as a layer of `torch.nn` of its own."""
        count, narrow = self._active(uf)
        return bare(
            self.plain, self, normalized_shape=self._shape(count), **dict(zip(self._parameters, narrow, strict=True))
        )


class SlimLayerNorm(_FeatureNorm, nn.LayerNorm):
    """`torch.nn.LayerNorm` over the active features.

    Args:
        *args: as of `torch.nn.LayerNorm`.
        **kwargs: as of `torch.nn.LayerNorm`.

    Shape:
        ``[B, ..., *normalized_shape]``, or with the active features alone, to the same. A UF that is a tensor is
        ``[B]``, or ``[B, T]`` for ``[B, T, C]``; inactive features come out as zero.
    """

    plain = nn.LayerNorm

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return nn.LayerNorm.forward(self, input)
        if not isinstance(uf, Tensor):
            count, (weight, bias) = self._active(uf)
            x = input if input.shape[self.dim] == count else self.inputs.take(input, self.dim, uf)
            return F.layer_norm(x, self._shape(count), weight, bias, self.eps)
        x, counts = self._moments(input, uf)
        mean = x.sum(self._axes(), keepdim=True) / counts
        centred = self.inputs.silence(x - mean, self.dim, uf)
        out = centred * (centred.square().sum(self._axes(), keepdim=True) / counts + self.eps).rsqrt()
        out = out if self.weight is None else out * self.weight
        out = out if self.bias is None else out + self.bias
        return self.inputs.silence(out, self.dim, uf)


class SlimRMSNorm(_FeatureNorm, nn.RMSNorm):
    """`torch.nn.RMSNorm` over the active features; see `SlimLayerNorm`.

    Args:
        *args: as of `torch.nn.RMSNorm`.
        **kwargs: as of `torch.nn.RMSNorm`.
    """

    plain = nn.RMSNorm

    def forward(self, x: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return nn.RMSNorm.forward(self, x)
        if not isinstance(uf, Tensor):
            count, (weight,) = self._active(uf)
            active = x if x.shape[self.dim] == count else self.inputs.take(x, self.dim, uf)
            return F.rms_norm(active, self._shape(count), weight, self.eps)
        x, counts = self._moments(x, uf)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        out = x * (x.square().sum(self._axes(), keepdim=True) / counts + eps).rsqrt()
        return self.inputs.silence(out if self.weight is None else out * self.weight, self.dim, uf)


class SlimGroupNorm(SlimLayer, nn.GroupNorm):
    """`torch.nn.GroupNorm` over the active channels: of one group any prefix, of several whole groups.

    Args:
        *args: as of `torch.nn.GroupNorm`.
        **kwargs: as of `torch.nn.GroupNorm`.

    Shape:
        ``[B, C, *]``, or with the active channels alone, to the same. A UF that is a tensor is ``[B]``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.GroupNorm.__init__(self, *args, **kwargs)
        self._choose(self.num_channels, self.num_channels, "both", "auto", "ieee")
        if self.num_groups > 1:
            self.inputs = self.outputs = Axis.of(self.num_channels, blocks=self.num_groups)

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        return tuple(self.inputs.parts(parameter, 0, uf) for parameter in (self.weight, self.bias))

    def _groups(self, count: int) -> int:
        return 1 if self.num_groups == 1 else self.num_groups * count // self.inputs.size

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``: a number in (0, 1] or ``[B]``."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return nn.GroupNorm.forward(self, input)
        if not isinstance(uf, Tensor):
            count, (weight, bias) = self._active(uf)
            x = input if input.shape[1] == count else self.inputs.take(input, 1, uf)
            return F.group_norm(x, self._groups(count), weight, bias, self.eps)
        _per_item(self, input, uf, "its statistics run over all positions")
        if self.num_groups > 1:
            return self.inputs.silence(nn.GroupNorm.forward(self, input), 1, uf)
        x, axes = self.inputs.silence(input, 1, uf), tuple(range(1, input.ndim))
        counts = self.inputs.mask(uf).sum(-1) * x[0, 0].numel()
        counts = counts.view(-1, *[1] * (x.ndim - 1)).to(x)
        centred = self.inputs.silence(x - x.sum(axes, keepdim=True) / counts, 1, uf)
        out = centred * (centred.square().sum(axes, keepdim=True) / counts + self.eps).rsqrt()
        if self.weight is not None:
            shape = (-1, *[1] * (x.ndim - 2))
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return self.inputs.silence(out, 1, uf)

    def extract(self, uf: float) -> nn.GroupNorm:
        """One width as a `torch.nn.GroupNorm` of its own."""
        count, (weight, bias) = self._active(uf)
        sizes = {"num_channels": count, "num_groups": self._groups(count)}
        return bare(nn.GroupNorm, self, **sizes, weight=weight, bias=bias)


class _SlimInstanceNorm(SlimLayer):
    """What both instance norms share; every channel is normalised alone."""

    plain: ClassVar[type[nn.Module]]
    num_features: int
    eps: float
    weight: Any
    bias: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.plain.__init__(self, *args, **kwargs)
        if self.track_running_stats:
            raise ValueError("track_running_stats = True: expected False, as statistics are taken from each item")
        self._choose(self.num_features, self.num_features, "both", "auto", "ieee")

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        return tuple(self.inputs.parts(parameter, 0, uf) for parameter in (self.weight, self.bias))

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``: a number in (0, 1] or ``[B]``."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return self.plain.forward(self, input)  # type: ignore[no-any-return]
        if isinstance(uf, Tensor):
            _per_item(self, input, uf, "its statistics run over all positions")
            out = F.instance_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
            return self.inputs.silence(out, 1, uf)
        _, (weight, bias) = self._active(uf)
        return F.instance_norm(self.inputs.take(input, 1, uf), None, None, weight, bias, True, 0.0, self.eps)

    def extract(self, uf: float) -> Any:
        """One width as a layer of `torch.nn` of its own."""
        count, (weight, bias) = self._active(uf)
        return bare(self.plain, self, num_features=count, weight=weight, bias=bias)


class SlimInstanceNorm1d(_SlimInstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` of the active channels, ``[B, C, T]``, without running statistics.

    Args:
        *args: as of `torch.nn.InstanceNorm1d`.
        **kwargs: as of `torch.nn.InstanceNorm1d`.
    """

    plain = nn.InstanceNorm1d


class SlimInstanceNorm2d(_SlimInstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` of the active channels, ``[B, C, H, W]``, without running statistics.

    Args:
        *args: as of `torch.nn.InstanceNorm2d`.
        **kwargs: as of `torch.nn.InstanceNorm2d`.
    """

    plain = nn.InstanceNorm2d
