"""Batch normalisation with statistics of its own at every width."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..width import UF
from .axis import Axis, Parts
from .layers import SlimLayer, bare

NARROW = ("narrow_mean", "narrow_var", "narrow_batches")
"""Buffers that a layer has besides those of `torch.nn`."""


class _SlimBatchNorm(SlimLayer):
    """What both batch norms share.

    What comes in has another distribution at every width, so each UF has running statistics of its own: UF 1 those of
    `torch.nn`, the others a row each of the buffers ``narrow_mean``, ``narrow_var`` and ``narrow_batches``. Where a
    state dict lacks these, they start from the statistics of UF 1; `slimse.calibrate` measures them.

    Source: switchable batch normalisation, arXiv 1812.08928.
    """

    plain: ClassVar[type[nn.Module]]
    ufs: tuple[float, ...]
    num_features: int
    eps: float
    momentum: float | None
    track_running_stats: bool
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(self, *args: Any, ufs: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0), **kwargs: Any) -> None:
        self.plain.__init__(self, *args, **kwargs)
        self._choose(self.num_features, self.num_features, "both", "auto", "ieee")
        self.keep_statistics(ufs)

    @classmethod
    def convert(cls, layer: nn.Module, inputs: Axis, outputs: Axis, **options: Any) -> Any:
        """As `SlimLayer.convert`, with an option ``ufs``: those that get statistics."""
        ufs = options.pop("ufs")
        slim = super().convert(layer, inputs, outputs, **options)
        slim.keep_statistics(ufs)
        return slim

    def keep_statistics(self, ufs: tuple[float, ...]) -> None:
        """Start statistics for every one of ``ufs`` from those of UF 1."""
        self.ufs = tuple(uf for uf in ufs if uf != 1)
        if self.track_running_stats:
            rows = (len(self.ufs), 1)
            self.register_buffer("narrow_mean", self.running_mean.repeat(rows))
            self.register_buffer("narrow_var", self.running_var.repeat(rows))
            self.register_buffer("narrow_batches", self.num_batches_tracked.repeat(len(self.ufs)))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if self.track_running_stats and prefix + "running_mean" in state_dict and prefix + NARROW[0] not in state_dict:
            rows = (len(self.ufs), 1)
            for name, whole in zip(NARROW[:2], ("running_mean", "running_var"), strict=True):
                state_dict[prefix + name] = state_dict[prefix + whole].repeat(rows)
            batches = state_dict.get(prefix + "num_batches_tracked", self.num_batches_tracked)
            state_dict[prefix + NARROW[2]] = batches.repeat(len(self.ufs))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _row(self, uf: float) -> int:
        if uf not in self.ufs:
            raise ValueError(
                f"{self.label or type(self).__name__} has no statistics of uf = {uf!r}: {self._expected()}"
            )
        return self.ufs.index(uf)

    def _expected(self) -> str:
        return f"expected one of {(*self.ufs, 1.0)}, the ufs that it was made for"

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        affine = [self.inputs.parts(parameter, 0, uf) for parameter in (self.weight, self.bias)]
        if not self.track_running_stats:
            return *affine, None, None
        if uf == 1:
            return *affine, self.running_mean, self.running_var
        row = self._row(uf)
        return *affine, *(self.inputs.parts(self.get_buffer(name)[row], 0, uf) for name in NARROW[:2])

    def _sources(self) -> list[Tensor | None]:
        return [*self._parameters.values(), *self._buffers.values()]

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``: 1 or one of ``ufs``; in eval mode also a tensor of such, ``[B]``, or ``[B, T]``."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return self.plain.forward(self, input)  # type: ignore[no-any-return]
        if isinstance(uf, Tensor):
            return self._ragged(input, uf)
        count, (weight, bias, mean, var) = self._active(uf)
        x = input if input.shape[1] == count else self.inputs.take(input, 1, uf)
        if not self.training or mean is None:
            return F.batch_norm(x, mean, var, weight, bias, mean is None, 0.0, self.eps)
        row, batches = self._row(uf), self.get_buffer(NARROW[2])
        batches[row] += 1
        share = 1 / float(batches[row]) if self.momentum is None else self.momentum
        mean, var = mean.clone(), var.clone()
        out = F.batch_norm(x, mean, var, weight, bias, True, share, self.eps)
        active = self.inputs.mask(torch.tensor(uf, device=x.device))
        with torch.no_grad():
            for name, new in zip(NARROW[:2], (mean, var), strict=True):
                self.get_buffer(name)[row, active] = new
        return out

    def _ragged(self, x: Tensor, uf: Tensor) -> Tensor:
        if self.training or not self.track_running_stats:
            raise ValueError(
                f"uf has shape {tuple(uf.shape)} at a {type(self).__name__} that takes statistics from the batch: "
                "expected a number; items of one batch have one width"
            )
        table = torch.tensor([*self.ufs, 1.0], device=uf.device)
        hit = uf.unsqueeze(-1).float() == table
        if not torch.compiler.is_compiling() and not bool(hit.any(-1).all()):
            value = float(uf[~hit.any(-1)].flatten()[0])
            raise ValueError(
                f"{self.label or type(self).__name__} has no statistics of uf = {value}: {self._expected()}"
            )
        row = hit.to(torch.int8).argmax(-1)
        mean, var = (
            torch.cat([self.get_buffer(name), whole.unsqueeze(0)])[row]
            for name, whole in ((NARROW[0], self.running_mean), (NARROW[1], self.running_var))
        )
        scale = (var + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        shift = -mean * scale + (0 if self.bias is None else self.bias)
        if uf.ndim == 2:
            scale, shift = scale.mT, shift.mT
        else:
            shape = (*scale.shape, *[1] * (x.ndim - 2))
            scale, shift = scale.view(shape), shift.view(shape)
        return self.inputs.silence(x * scale + shift, 1, uf)

    @torch.no_grad()
    def reset_statistics(self, ufs: tuple[float, ...]) -> None:
        """Forget what was seen at these UFs."""
        rows = [self._row(uf) for uf in ufs]
        for name, value in zip(NARROW, (0, 1, 0), strict=True):
            self.get_buffer(name)[rows] = value

    def extract(self, uf: float) -> Any:
        """One width as a layer of `torch.nn` of its own, with its own statistics."""
        count, (weight, bias, mean, var) = self._active(uf)
        replaced: dict[str, Any] = {"weight": weight, "bias": bias, "num_features": count}
        if self.track_running_stats and uf != 1:
            batches = self.get_buffer(NARROW[2])[self._row(uf)]
            replaced |= {"running_mean": mean, "running_var": var, "num_batches_tracked": batches}
        plain = bare(self.plain, self, **replaced)
        for name in NARROW:
            plain._buffers.pop(name, None)
        del plain.ufs
        return plain


class SlimBatchNorm1d(_SlimBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` of the active channels, with statistics per width: ``[B, C]`` or ``[B, C, T]``.

    Args:
        *args: as of `torch.nn.BatchNorm1d`.
        ufs: those that get running statistics.
        **kwargs: as of `torch.nn.BatchNorm1d`.
    """

    plain = nn.BatchNorm1d


class SlimBatchNorm2d(_SlimBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` of the active channels, with statistics per width: ``[B, C, H, W]``.

    Args:
        *args: as of `torch.nn.BatchNorm2d`.
        ufs: those that get running statistics.
        **kwargs: as of `torch.nn.BatchNorm2d`.
    """

    plain = nn.BatchNorm2d
