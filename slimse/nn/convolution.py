"""Convolutions that stand in for those of `torch.nn` and run at any width."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import slim_conv1d, slim_conv_transpose1d
from ..width import UF
from .axis import Parts
from .layers import SlimLayer, bare


class _SlimConv(SlimLayer):
    """What convolutions share: channels are the second axis, and the weight has groups on one of its sides."""

    plain: ClassVar[type[nn.Module]]
    transposed: ClassVar[bool]

    in_channels: int
    out_channels: int
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    weight: Any
    bias: Any

    def __init__(
        self, *args: Any, cut: str = "output", backend: str = "auto", precision: str = "ieee", **kwargs: Any
    ) -> None:
        self.plain.__init__(self, *args, **kwargs)
        self._choose(self.in_channels, self.out_channels, cut, backend, precision)

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        rows, columns = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        weight = rows.parts(self.weight, 0, uf)
        if self.groups == 1:
            # With groups, the second axis has the channels of one of them; a UF leaves whole groups.
            weight = columns.parts(weight, 1, uf)
        return weight, self.outputs.parts(self.bias, 0, uf)

    def _groups(self, count: int) -> int:
        """Active groups of an input with so many active channels."""
        return 1 if self.groups == 1 else self.groups * count // self.inputs.size

    def extract(self, uf: float) -> Any:
        """One width as a layer of `torch.nn` of its own, with copies of the weights that it needs."""
        count, (weight, bias) = self._active(uf)
        groups = self._groups(count)
        rows, columns = weight.shape[0], weight.shape[1] * groups
        k_in, k_out = (rows, columns) if self.transposed else (columns, rows)
        sizes = {"in_channels": k_in, "out_channels": k_out, "groups": groups}
        return bare(self.plain, self, **sizes, weight=weight, bias=bias)

    def _run(self, input: Tensor, uf: UF | None, *options: Any) -> Tensor:
        """Run at ``uf`` with the options of the call."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return self.plain.forward(self, input, *options)  # type: ignore[no-any-return]
        if input.ndim == self.weight.ndim - 1:
            return self._run(input.unsqueeze(0), uf, *options)[0]
        if not isinstance(uf, Tensor):
            count, (weight, bias) = self._active(uf)
            x = input if input.shape[1] == count else self.inputs.take(input, 1, uf)
            convolve = self._on_op if self.backend == "triton" and self._fits_op else self._convolve
            return convolve(x, weight, bias, self._groups(count), *options)
        if self._fits_op and self._on_kernels(input):
            return self._on_op(input, self.weight, self.bias, 1, *options, uf=uf)
        out = self._convolve(self.inputs.silence(input, 1, uf), self.weight, self.bias, self.groups, *options)
        return self.outputs.silence(out, 1, uf)

    @property
    def _fits_op(self) -> bool:
        return self.weight.ndim == 3 and self.groups == 1

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *options: Any) -> Tensor:
        """PyTorch's convolution with these weights."""
        raise TypeError(f"{type(self).__name__} must define _convolve")

    def _on_op(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *options: Any, uf: Tensor | None = None
    ) -> Tensor:
        """The op of `slimse.ops` with these weights."""
        raise TypeError(f"{type(self).__name__} must define _on_op")


class _Convolution(_SlimConv):
    """What `SlimConv1d` and `SlimConv2d` share."""

    transposed = False
    padding: Any
    padding_mode: Any
    _reversed_padding_repeated_twice: list[int]

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``: a number in (0, 1], ``[B]``, or in one dimension one per position of the side that is cut."""
        return self._run(input, uf)

    def _padded(self, x: Tensor) -> tuple[Tensor, Any]:
        """The input with what padding has to be done before, and the padding that is left."""
        if self.padding_mode == "zeros":
            return x, self.padding
        return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *options: Any) -> Tensor:
        x, padding = self._padded(x)
        convolve: Any = F.conv1d if weight.ndim == 3 else F.conv2d
        return convolve(x, weight, bias, self.stride, padding, self.dilation, groups)

    def _on_op(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *options: Any, uf: Tensor | None = None
    ) -> Tensor:
        x, padding = self._padded(x)
        if isinstance(padding, str):
            x, padding = F.pad(x, self._reversed_padding_repeated_twice), 0
        padding = padding[0] if isinstance(padding, tuple) else padding
        stride, dilation = self.stride[0], self.dilation[0]
        positions = (x.shape[2] + 2 * padding - dilation * (weight.shape[2] - 1) - 1) // stride + 1
        widths: Any = (weight.shape[1], weight.shape[0])
        if uf is not None:
            widths = self._widths(uf, (x.shape[0], x.shape[2]), positions)
        packed = weight.mT.contiguous()
        return slim_conv1d(x.mT, packed, bias, *widths, stride, padding, dilation, **self._options).mT


class _TransposedConvolution(_SlimConv):
    """What `SlimConvTranspose1d` and `SlimConvTranspose2d` share."""

    transposed = True
    padding: Any
    kernel_size: tuple[int, ...]

    def forward(self, input: Tensor, output_size: list[int] | None = None, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``, see `SlimConv1d`; ``output_size`` as in `torch.nn`."""
        return self._run(input, uf, output_size)

    def _more(self, x: Tensor, output_size: list[int] | None) -> Any:
        # A private function of PyTorch; a test holds that it does what the layer of `torch.nn` does.
        shape = (self.stride, self.padding, self.kernel_size, self.weight.ndim - 2, self.dilation)
        return self._output_padding(x, output_size, *shape)  # type: ignore[operator]

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *options: Any) -> Tensor:
        convolve: Any = F.conv_transpose1d if weight.ndim == 3 else F.conv_transpose2d
        more = self._more(x, *options)
        return convolve(x, weight, bias, self.stride, self.padding, more, groups, self.dilation)

    def _on_op(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *options: Any, uf: Tensor | None = None
    ) -> Tensor:
        (more,) = self._more(x, *options)
        stride, padding, dilation = self.stride[0], self.padding[0], self.dilation[0]
        positions = (x.shape[2] - 1) * stride - 2 * padding + dilation * (weight.shape[2] - 1) + more + 1
        widths: Any = (weight.shape[0], weight.shape[1])
        if uf is not None:
            widths = self._widths(uf, (x.shape[0], x.shape[2]), positions)
        places = (stride, padding, more, dilation)
        return slim_conv_transpose1d(x.mT, weight.mT.contiguous(), bias, *widths, *places, **self._options).mT


class SlimConv1d(_Convolution, nn.Conv1d):
    """`torch.nn.Conv1d` with a UF: the active channels are a prefix of the output, the input or both.

    Args:
        *args: as of `torch.nn.Conv1d`. With ``groups``, whole groups are active.
        cut: ``"output"``, ``"input"`` or ``"both"``: the side that a UF cuts; ``"both"`` with ``groups``.
        backend: see `slimse.ops`; ``"auto"`` runs PyTorch at a UF that is a number.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.Conv1d`.

    Shape:
        ``[B, C_in, T]`` or ``[C_in, T]`` to the same with ``C_out`` channels. A UF that is a number cuts inactive
        output channels off; a tensor leaves zeros in them. At a number, a cut input may have all channels or only the
        active ones.

    Raises:
        ValueError: for an unknown ``cut``, backend or precision.

    >>> narrow = SlimConv1d(8, 16, 3)(torch.randn(2, 8, 20), uf=0.25)
    >>> SlimConv1d(16, 8, 1, cut="input")(narrow, uf=0.25).shape
    torch.Size([2, 8, 18])
    """

    plain = nn.Conv1d


class SlimConv2d(_Convolution, nn.Conv2d):
    """`torch.nn.Conv2d` with a UF: the active channels are a prefix of the output, the input or both.

    Args:
        *args: as of `torch.nn.Conv2d`. With ``groups``, whole groups are active.
        cut: as in `SlimConv1d`.
        **kwargs: as of `torch.nn.Conv2d`.

    Shape:
        ``[B, C_in, H, W]`` or ``[C_in, H, W]`` to the same with ``C_out`` channels; see `SlimConv1d`.

    Raises:
        ValueError: for an unknown ``cut``.
    """

    plain = nn.Conv2d


class SlimConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with a UF: the active channels are a prefix of the input, the output or both.

    Args:
        *args: as of `torch.nn.ConvTranspose1d`. With ``groups``, whole groups are active.
        cut: as in `SlimConv1d`.
        backend: as in `SlimConv1d`.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.ConvTranspose1d`.

    Shape:
        ``[B, C_in, T]`` or ``[C_in, T]`` to the same with ``C_out`` channels; see `SlimConv1d`.

    Raises:
        ValueError: for an unknown ``cut``, backend or precision.
    """

    plain = nn.ConvTranspose1d


class SlimConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with a UF: the active channels are a prefix of the input, the output or both.

    Args:
        *args: as of `torch.nn.ConvTranspose2d`. With ``groups``, whole groups are active.
        cut: as in `SlimConv1d`.
        **kwargs: as of `torch.nn.ConvTranspose2d`.

    Shape:
        ``[B, C_in, H, W]`` or ``[C_in, H, W]`` to the same with ``C_out`` channels; see `SlimConv1d`.

    Raises:
        ValueError: for an unknown ``cut``.
    """

    plain = nn.ConvTranspose2d
