"""Slimmed operations: what a layer calls, and what is registered as ``torch.ops.slimse``.

Every op is defined by a plain-torch twin, which is its reference and its CPU path (`blocks`, `convolution`,
`recurrent`), and takes two keyword arguments besides the twin's:

- ``backend``: ``"auto"`` is a Triton kernel on a GPU, if there is one for the op, dtype and kind of width, and the twin
  elsewhere; ``"torch"`` is the twin; ``"triton"`` is the kernel, or a `ValueError` that says why not.
- ``precision``: of float32 products in kernels, ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.

Soft widths run on the twins. Under autocast, blocks and convolutions run in its dtype, recurrent ops in that of their
weights.
"""

from typing import Any

import torch
from torch import Tensor

from . import blocks, convolution, recurrent
from .registration import BACKENDS, PRECISIONS, check_backend, register

_Shapes = list[Any]


def _encoder(x: Tensor, conv_weight: Tensor, stride: int, **_: Any) -> _Shapes:
    kernel = conv_weight.shape[1] // x.shape[2]
    return [(x.shape[0], torch.sym_max((x.shape[1] - kernel) // stride + 1, 0), conv_weight.shape[0])]


def _decoder(x: Tensor, conv_weight: Tensor, stride: int, channels: int, **_: Any) -> _Shapes:
    return [(x.shape[0], stride * (x.shape[1] - 1) + conv_weight.shape[1] // channels, channels)]


def _conv(x: Tensor, weight: Tensor, width_out: Any, stride: int, padding: int, dilation: int, **_: Any) -> _Shapes:
    positions = (x.shape[1] + 2 * padding - dilation * (weight.shape[1] - 1) - 1) // stride + 1
    return [(x.shape[0], positions, weight.shape[0] if isinstance(width_out, Tensor) else width_out)]


def _conv_transpose(
    x: Tensor, weight: Tensor, width_out: Any, stride: int, padding: int, output_padding: int, dilation: int, **_: Any
) -> _Shapes:
    positions = (x.shape[1] - 1) * stride - 2 * padding + dilation * (weight.shape[1] - 1) + output_padding + 1
    return [(x.shape[0], positions, weight.shape[2] if isinstance(width_out, Tensor) else width_out)]


def _glu(x: Tensor, weight: Tensor, width: Any, cut: str, **_: Any) -> _Shapes:
    if cut == "input":
        return [(*x.shape[:2], weight.shape[1] // 2)]
    return [(*x.shape[:2], weight.shape[0] if isinstance(width, Tensor) else width)]


def _diagonal(gates_x: Tensor, state: Tensor, **_: Any) -> _Shapes:
    return [(*gates_x.shape[:2], gates_x.shape[3]), state]


def _gru(x: Tensor, weight_hh: Tensor, state: Tensor, **_: Any) -> _Shapes:
    return [(*x.shape[:2], weight_hh.shape[0] * weight_hh.shape[1]), state]


def _lstm(x: Tensor, weight_hh: Tensor, width: Any, state: tuple[Tensor, Tensor], **_: Any) -> _Shapes:
    units = weight_hh.shape[0] if isinstance(width, Tensor) else width
    return [(*x.shape[:2], units), *state]


encoder_block = register(shapes=_encoder)(blocks.encoder_block)
decoder_block = register(shapes=_decoder, added="skip")(blocks.decoder_block)
slim_conv1d = register(shapes=_conv)(convolution.slim_conv1d)
slim_conv_transpose1d = register(shapes=_conv_transpose)(convolution.slim_conv_transpose1d)
slim_linear_glu = register(shapes=_glu, added="skip")(convolution.slim_linear_glu)
diagonal_gru = register(shapes=_diagonal, autocast=False)(recurrent.diagonal_gru)
slim_gru = register(shapes=_gru, autocast=False)(recurrent.slim_gru)
slim_lstm = register(shapes=_lstm, autocast=False)(recurrent.slim_lstm)

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "check_backend",
    "decoder_block",
    "diagonal_gru",
    "encoder_block",
    "slim_conv1d",
    "slim_conv_transpose1d",
    "slim_gru",
    "slim_linear_glu",
    "slim_lstm",
]
