"""Convolutions and linear layers that stand in for those of `torch.nn` and run at any width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import check_backend, slim_conv1d, slim_conv_transpose1d
from ..width import UF, active_channels
from .packed import PackedModule

CUTS = ("output", "input", "both")


class _SlimLayer(PackedModule):
    """What the layers below share: which of their sides a UF cuts, and how."""

    cut: str
    backend: str
    precision: str

    def _choose(self, cut: str, backend: str, precision: str) -> None:
        """Check and keep the options that `torch.nn` does not have."""
        if cut not in CUTS:
            raise ValueError(f"cut = {cut!r}: expected one of {CUTS}")
        groups = getattr(self, "groups", 1)
        if groups != 1:
            raise ValueError(f"groups = {groups}: expected 1; channels of a prefix would change their groups")
        check_backend(backend, precision)
        self.cut, self.backend, self.precision = cut, backend, precision

    @property
    def _options(self) -> dict[str, Any]:
        return {"backend": self.backend, "precision": self.precision}

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Taps last, as in `torch.nn`."""
        return {name: tensor.mT if tensor.ndim == 3 else tensor for name, tensor in packed.items()}

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """Channels last; the inverse of `unpack`, and of itself."""
        return self.unpack(public)

    def _cut(self, side: str, uf: UF, full: int, positions: int) -> int | Tensor:
        """Width of the input or the output: a number, or over its positions."""
        return active_channels(uf, full, positions) if self.cut in (side, "both") else full

    def _channels(self, uf: float, inputs: int, outputs: int) -> tuple[int, int]:
        """Active channels of input and output."""
        cut = [self._cut(side, float(uf), full, 1) for side, full in (("input", inputs), ("output", outputs))]
        return int(cut[0]), int(cut[1])

    def _check_channels(self, channels: int, width: int | Tensor, full: int) -> None:
        narrow = width if isinstance(width, int) else full
        if channels not in (narrow, full):
            raise ValueError(f"the input has {channels} channels: expected {full}, or the {narrow} active ones")

    def extra_repr(self) -> str:
        """The options of `torch.nn`, and ``cut``."""
        return f"{super().extra_repr()}, cut={self.cut!r}"


class SlimConv1d(_SlimLayer, nn.Conv1d):
    """`torch.nn.Conv1d` with a UF: the active channels are a prefix of the output, the input or both.

    Args:
        *args: as of `torch.nn.Conv1d`. ``groups`` must be 1.
        cut: ``"output"``, ``"input"`` or ``"both"``: the side that a UF cuts.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.Conv1d`.

    Shape:
        ``[B, C_in, T]`` or ``[C_in, T]`` to the same with ``C_out`` channels. A UF that is a number cuts inactive
        output channels off; a tensor leaves zeros in them. A cut input may have all channels or only the active ones.

    Raises:
        ValueError: for ``groups`` other than 1, or an unknown ``cut``, backend or precision.

    >>> narrow = SlimConv1d(8, 16, 3)(torch.randn(2, 8, 20), uf=0.25)
    >>> SlimConv1d(16, 8, 1, cut="input")(narrow, uf=0.25).shape
    torch.Size([2, 8, 18])
    """

    def __init__(
        self, *args: Any, cut: str = "output", backend: str = "auto", precision: str = "ieee", **kwargs: Any
    ) -> None:
        nn.Conv1d.__init__(self, *args, **kwargs)
        self._choose(cut, backend, precision)
        self.weight = nn.Parameter(self.weight.detach().mT.contiguous())

    def forward(self, input: Tensor, *, uf: UF = 1.0) -> Tensor:
        """Run at ``uf``: a number in (0, 1], ``[B]``, or one per position of the side that is cut."""
        if input.ndim == 2:
            return self.forward(input.unsqueeze(0), uf=uf)[0]
        padding: Any = self.padding[0]
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=mode), 0
        time = input.shape[2]
        stride, dilation = self.stride[0], self.dilation[0]
        positions = (time + 2 * padding - dilation * (self.kernel_size[0] - 1) - 1) // stride + 1
        width_in = self._cut("input", uf, self.in_channels, time)
        self._check_channels(input.shape[1], width_in, self.in_channels)
        widths = width_in, self._cut("output", uf, self.out_channels, positions)
        out = slim_conv1d(input.mT, self.weight, self.bias, *widths, stride, padding, dilation, **self._options)
        return out.mT

    def extract(self, uf: float) -> nn.Conv1d:
        """One width as a `torch.nn.Conv1d` of its own, with copies of the weights that it needs."""
        k_in, k_out = self._channels(uf, self.in_channels, self.out_channels)
        has_bias = self.bias is not None
        options: Any = (self.kernel_size, self.stride, self.padding, self.dilation, 1, has_bias, self.padding_mode)
        plain = nn.Conv1d(k_in, k_out, *options)
        return _filled(plain, self.weight[:k_out, :, :k_in].mT, self.bias, k_out, self)


class SlimConvTranspose1d(_SlimLayer, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with a UF: the active channels are a prefix of the input, the output or both.

    Args:
        *args: as of `torch.nn.ConvTranspose1d`. ``groups`` must be 1.
        cut: as in `SlimConv1d`.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.ConvTranspose1d`.

    Shape:
        ``[B, C_in, T]`` or ``[C_in, T]`` to the same with ``C_out`` channels; see `SlimConv1d`.

    Raises:
        ValueError: for ``groups`` other than 1, or an unknown ``cut``, backend or precision.
    """

    def __init__(
        self, *args: Any, cut: str = "output", backend: str = "auto", precision: str = "ieee", **kwargs: Any
    ) -> None:
        nn.ConvTranspose1d.__init__(self, *args, **kwargs)
        self._choose(cut, backend, precision)
        self.weight = nn.Parameter(self.weight.detach().mT.contiguous())

    def forward(self, input: Tensor, output_size: list[int] | None = None, *, uf: UF = 1.0) -> Tensor:
        """Run at ``uf``, see `SlimConv1d`; ``output_size`` as in `torch.nn.ConvTranspose1d`."""
        if input.ndim == 2:
            return self.forward(input.unsqueeze(0), output_size, uf=uf)[0]
        shape = (self.stride, self.padding, self.kernel_size)
        (more,) = self._output_padding(input, output_size, *shape, 1, self.dilation)  # type: ignore[arg-type]
        time, stride, dilation = input.shape[2], self.stride[0], self.dilation[0]
        padding: Any = self.padding[0]
        positions = (time - 1) * stride - 2 * padding + dilation * (self.kernel_size[0] - 1) + more + 1
        width_in = self._cut("input", uf, self.in_channels, time)
        self._check_channels(input.shape[1], width_in, self.in_channels)
        widths = width_in, self._cut("output", uf, self.out_channels, positions)
        places = (stride, padding, more, dilation)
        return slim_conv_transpose1d(input.mT, self.weight, self.bias, *widths, *places, **self._options).mT

    def extract(self, uf: float) -> nn.ConvTranspose1d:
        """One width as a `torch.nn.ConvTranspose1d` of its own, with copies of the weights that it needs."""
        k_in, k_out = self._channels(uf, self.in_channels, self.out_channels)
        has_bias = self.bias is not None
        options: Any = (self.kernel_size, self.stride, self.padding, self.output_padding, 1, has_bias, self.dilation)
        plain = nn.ConvTranspose1d(k_in, k_out, *options)
        return _filled(plain, self.weight[:k_in, :, :k_out].mT, self.bias, k_out, self)


class SlimLinear(_SlimLayer, nn.Linear):
    """`torch.nn.Linear` with a UF: the active features are a prefix of the output, the input or both.

    Args:
        *args: as of `torch.nn.Linear`.
        cut: as in `SlimConv1d`.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.Linear`.

    Shape:
        ``[..., C_in]`` to ``[..., C_out]``; see `SlimConv1d`. A UF that is a tensor is ``[B]`` for an input
        ``[B, C_in]``, and ``[B]`` or ``[B, T]`` for ``[B, T, C_in]``.

    Raises:
        ValueError: for an unknown ``cut``, backend or precision.
    """

    def __init__(
        self, *args: Any, cut: str = "output", backend: str = "auto", precision: str = "ieee", **kwargs: Any
    ) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self._choose(cut, backend, precision)

    def forward(self, input: Tensor, *, uf: UF = 1.0) -> Tensor:
        """Run at ``uf``: a number in (0, 1], ``[B]`` or ``[B, T]``."""
        if isinstance(uf, Tensor) and input.ndim not in (2, 3):
            shape = tuple(input.shape)
            raise ValueError(f"uf is a tensor, the input has shape {shape}: expected [B, C_in] or [B, T, C_in]")
        items = input.unsqueeze(1) if isinstance(uf, Tensor) else input.reshape(1, -1, input.shape[-1])
        x = input if input.ndim == 3 else items
        width_in = self._cut("input", uf, self.in_features, x.shape[1])
        self._check_channels(x.shape[2], width_in, self.in_features)
        widths = width_in, self._cut("output", uf, self.out_features, x.shape[1])
        out = slim_conv1d(x, self.weight.unsqueeze(1), self.bias, *widths, **self._options)
        return out.reshape(*input.shape[:-1], out.shape[-1])

    def extract(self, uf: float) -> nn.Linear:
        """One width as a `torch.nn.Linear` of its own, with copies of the weights that it needs."""
        k_in, k_out = self._channels(uf, self.in_features, self.out_features)
        plain = nn.Linear(k_in, k_out, self.bias is not None)
        return _filled(plain, self.weight[:k_out, :k_in], self.bias, k_out, self)


@torch.no_grad()
def _filled(plain: Any, weight: Tensor, bias: Tensor | None, outputs: int, like: nn.Module) -> Any:
    """A plain layer with these weights, in the dtype, on the device and in the mode of ``like``."""
    plain = plain.to(weight)
    plain.weight.copy_(weight)
    if bias is not None:
        plain.bias.copy_(bias[:outputs])
    return plain.train(like.training)
