"""Encoder and decoder blocks on channels-last activations, as GEMMs on contiguous weight prefixes.

With activations ``[B, T, C]`` and a kernel of ``r`` strides (``K = r * S``), cutting time into blocks of ``S``
positions turns a strided convolution into ``r`` plain products on views, and its transpose into the mirror
image. Weights are stored with the slimmed axis first, so width ``k`` reads rows ``[:k]`` of each tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..width import Width, max_width
from .convolution import gated_units, slim_linear_glu


def _strided_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """``[B, T, C_in]`` to ``[B, floor((T - K) / S) + 1, k]``; ``weight`` is ``[k, K * C_in]``, taps major."""
    batch, time, channels = x.shape
    block = stride * channels
    reach = weight.shape[1] // block
    blocks = x[:, : time // stride * stride].reshape(batch, time // stride, block)
    positions = max(blocks.shape[1] - reach + 1, 0)
    out = F.linear(blocks[:, :positions], weight[:, :block], bias)
    for tap in range(1, reach):
        out = out + F.linear(blocks[:, tap : tap + positions], weight[:, tap * block : (tap + 1) * block])
    return out


def _strided_conv_transpose(x: Tensor, weight: Tensor, stride: int, channels: int) -> Tensor:
    """``[B, T, k]`` to ``[B, S T + K - S, C_out]``; ``weight`` is ``[k, K * C_out]``, taps major; no bias."""
    batch, time, _ = x.shape
    block = stride * channels
    reach = weight.shape[1] // block
    out = F.pad(x @ weight[:, :block], (0, 0, 0, reach - 1))
    for tap in range(1, reach):
        out = out + F.pad(x @ weight[:, tap * block : (tap + 1) * block], (0, 0, tap, reach - 1 - tap))
    return out.reshape(batch, (time + reach - 1) * stride, channels)


def encoder_block(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    width: Width,
    stride: int,
) -> Tensor:
    """``GLU(relu(conv(x)[:k]) @ glu_weight[:k] + glu_bias)``: strided convolution, ReLU, pointwise, GLU.

    Args:
        x: ``[B, T, C_in]``.
        conv_weight: ``[C, K * C_in]``, taps major; rows ``[:k]`` are read.
        conv_bias: ``[C]``.
        glu_weight: ``[C, 2 C]``, values then gates in each row; rows ``[:k]`` are read.
        glu_bias: ``[2 C]``.
        width: active hidden channels, see `slimse.width`; for ragged and soft widths over the output positions.
        stride: ``S``; ``K`` must be a multiple of it.

    Returns:
        ``[B, P, C]`` with ``P = floor((T - K) / S) + 1`` (0 if ``T < K``), always full width.
    """
    k = max_width(width, conv_weight.shape[0])
    hidden = torch.relu(_strided_conv(x, conv_weight[:k], conv_bias[:k], stride))
    return slim_linear_glu(hidden, glu_weight, glu_bias, width, "input")


def decoder_block(
    x: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    width: Width,
    stride: int,
    channels: int,
    skip: Tensor | None = None,
    conv_bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``conv_transpose(GLU((x + skip) @ glu_weight[:k].T + glu_bias[:k]))``, where wanted with bias and ReLU.

    In a stream, bias and activation wait until the overlapping contributions of the next positions have been added.

    Args:
        x: ``[B, T, C]``.
        glu_weight: ``[C, 2, C]``: value row and gate row of a unit side by side; rows ``[:k]`` are read.
        glu_bias: ``[C, 2]``.
        conv_weight: ``[C, K * C_out]``, taps major; rows ``[:k]`` are read.
        width: active hidden channels over the ``T`` positions.
        stride: ``S``; ``K`` must be a multiple of it.
        channels: ``C_out``.
        skip: ``[B, T, C]``, added to ``x``; None if that has been done.
        conv_bias: ``[C_out]``, added to the output.
        relu: whether a ReLU follows.

    Returns:
        ``[B, S T + K - S, C_out]``.
    """
    hidden = gated_units(x if skip is None else x + skip, glu_weight, glu_bias, width)
    out = _strided_conv_transpose(hidden, conv_weight[: hidden.shape[-1]], stride, channels)
    out = out if conv_bias is None else out + conv_bias.to(out.dtype)
    return torch.relu(out) if relu else out
