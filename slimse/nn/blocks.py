"""Encoder and decoder blocks of the slimmable U-Net."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import decoder_block, encoder_block
from ..width import LevelWidth, max_width
from .packed import PackedModule


class EncoderBlock(PackedModule):
    """Strided convolution (outputs cut to ``k``), ReLU, pointwise convolution (inputs cut to ``k``), GLU.

    Args:
        inputs: ``C_in``, channels in; never cut.
        channels: ``C``, channels inside and out. Only the inside is cut.
        kernel_size: ``K``, a multiple of ``stride``.
        stride: ``S``.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.

    Shape:
        ``[B, T, C_in]`` to ``[B, floor((T - K) / S) + 1, C]``, channels last.

    Source: E_i of arXiv 2507.04879; the layers of one block of arXiv 2006.12847.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        kernel_size: int,
        stride: int,
        *,
        backend: str = "auto",
        precision: str = "ieee",
    ) -> None:
        super().__init__()
        self.inputs, self.channels, self.kernel_size, self.stride = inputs, channels, kernel_size, stride
        self.backend, self.precision = backend, precision
        conv = nn.Conv1d(inputs, channels, kernel_size, stride)
        pointwise = nn.Conv1d(channels, 2 * channels, 1)
        self.conv_weight = nn.Parameter(torch.empty(channels, kernel_size * inputs))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.glu_weight = nn.Parameter(torch.empty(channels, 2 * channels))
        self.glu_bias = nn.Parameter(torch.empty(2 * channels))
        self.load_state_dict(
            {
                "conv.weight": conv.weight,
                "conv.bias": conv.bias,
                "glu.weight": pointwise.weight,
                "glu.bias": pointwise.bias,
            }
        )

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names and layouts of the two `torch.nn.Conv1d`: ``conv`` and ``glu``."""
        return {
            "conv.weight": rearrange(packed["conv_weight"], "o (k i) -> o i k", i=self.inputs),
            "conv.bias": packed["conv_bias"],
            "glu.weight": rearrange(packed["glu_weight"], "i o -> o i 1"),
            "glu.bias": packed["glu_bias"],
        }

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `unpack`."""
        return {
            "conv_weight": rearrange(public["conv.weight"], "o i k -> o (k i)"),
            "conv_bias": public["conv.bias"],
            "glu_weight": rearrange(public["glu.weight"], "o i 1 -> i o"),
            "glu_bias": public["glu.bias"],
        }

    def positions(self, time: int) -> int:
        """Output positions for ``time`` input positions."""
        return max((time - self.kernel_size) // self.stride + 1, 0)

    def forward(self, x: Tensor, width: LevelWidth) -> Tensor:
        """Run the block at ``width`` active hidden channels (see `slimse.width`)."""
        weights = (self.conv_weight, self.conv_bias, self.glu_weight, self.glu_bias)
        return encoder_block(x, *weights, width, self.stride, backend=self.backend, precision=self.precision)

    def count(self, args: tuple[Tensor, LevelWidth], output: Tensor) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, and weight bytes that one pass over its rows reads."""
        k = max_width(args[1], self.channels)
        macs = self.conv_weight[:k].numel() + self.glu_weight[:k].numel()
        read = macs + k + self.glu_bias.numel()
        return macs * output.shape[1], read * self.conv_weight.element_size()


class DecoderBlock(PackedModule):
    """Pointwise convolution (outputs cut to ``k`` units), GLU, transposed convolution (inputs cut to ``k``).

    In a stream, bias and ReLU have to wait for the overlap of later positions: `activate` adds them then.

    Args:
        channels: ``C``, channels in and inside. Only the inside is cut.
        outputs: ``C_out``, channels out; never cut.
        kernel_size: ``K``, a multiple of ``stride``.
        stride: ``S``.
        relu: whether a ReLU follows (not in the outermost block).
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.

    Shape:
        ``[B, T, C]`` and a skip like it to ``[B, S T + K - S, C_out]``, channels last.

    Source: D_i of arXiv 2507.04879.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        kernel_size: int,
        stride: int,
        *,
        relu: bool,
        backend: str = "auto",
        precision: str = "ieee",
    ) -> None:
        super().__init__()
        self.channels, self.outputs, self.kernel_size, self.stride = channels, outputs, kernel_size, stride
        self.relu, self.backend, self.precision = relu, backend, precision
        pointwise = nn.Conv1d(channels, 2 * channels, 1)
        conv = nn.ConvTranspose1d(channels, outputs, kernel_size, stride)
        self.glu_weight = nn.Parameter(torch.empty(channels, 2, channels))
        self.glu_bias = nn.Parameter(torch.empty(channels, 2))
        self.conv_weight = nn.Parameter(torch.empty(channels, kernel_size * outputs))
        self.conv_bias = nn.Parameter(torch.empty(outputs))
        self.load_state_dict(
            {
                "glu.weight": pointwise.weight,
                "glu.bias": pointwise.bias,
                "conv.weight": conv.weight,
                "conv.bias": conv.bias,
            }
        )

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names and layouts of `torch.nn.Conv1d` ``glu`` and `torch.nn.ConvTranspose1d` ``conv``."""
        return {
            "glu.weight": rearrange(packed["glu_weight"], "o g i -> (g o) i 1"),
            "glu.bias": rearrange(packed["glu_bias"], "o g -> (g o)"),
            "conv.weight": rearrange(packed["conv_weight"], "i (k o) -> i o k", o=self.outputs),
            "conv.bias": packed["conv_bias"],
        }

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `unpack`."""
        return {
            "glu_weight": rearrange(public["glu.weight"], "(g o) i 1 -> o g i", g=2),
            "glu_bias": rearrange(public["glu.bias"], "(g o) -> o g", g=2),
            "conv_weight": rearrange(public["conv.weight"], "i o k -> i (k o)"),
            "conv_bias": public["conv.bias"],
        }

    def forward(self, x: Tensor, width: LevelWidth, skip: Tensor, *, activate: bool) -> Tensor:
        """Run the block on ``x + skip`` at ``width`` active hidden channels (see `slimse.width`).

        ``activate`` says that no more overlap is to come: bias and ReLU are part of the result.
        """
        weights = (self.glu_weight, self.glu_bias, self.conv_weight)
        bias, relu = (self.conv_bias, self.relu) if activate else (None, False)
        choice = {"backend": self.backend, "precision": self.precision}
        return decoder_block(x, *weights, width, self.stride, self.outputs, skip, bias, relu, **choice)

    def activate(self, y: Tensor) -> Tensor:
        """Bias and ReLU on finished (fully overlapped) positions."""
        y = y + self.conv_bias.to(y.dtype)
        return torch.relu(y) if self.relu else y

    def count(self, args: tuple[Tensor, LevelWidth, Tensor], output: Tensor) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, and weight bytes that one pass over its rows reads."""
        k = max_width(args[1], self.channels)
        macs = self.glu_weight[:k].numel() + self.conv_weight[:k].numel()
        read = macs + 2 * k + self.conv_bias.numel()
        return macs * args[0].shape[1], read * self.glu_weight.element_size()
