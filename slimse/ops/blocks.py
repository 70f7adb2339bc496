"""Encoder and decoder blocks on channels-last activations, as GEMMs on contiguous weight prefixes.

With activations ``[B, T, C]`` and a kernel of ``r`` strides (``K = r * S``), cutting time into blocks of ``S``
positions turns a strided convolution into ``r`` plain products on views, and its transpose into the mirror
image. Weights are stored with the slimmed axis first, so width ``k`` reads rows ``[:k]`` of each tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..width import LevelWidth, by_position, max_width
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
    taps = (x @ weight[:, tap * block : (tap + 1) * block] for tap in range(reach))
    return _overlap_add(list(taps)).reshape(batch, (time + reach - 1) * stride, channels)


def _overlap_add(taps: list[Tensor]) -> Tensor:
    """Sum of ``taps`` ``[B, T, n]``, each shifted by one position against the last: ``[B, T + len(taps) - 1, n]``."""
    out = F.pad(taps[0], (0, 0, 0, len(taps) - 1))
    for tap, part in enumerate(taps[1:], start=1):
        out = out + F.pad(part, (0, 0, tap, len(taps) - 1 - tap))
    return out


class _Permute(torch.autograd.Function):
    """Rows in another order, whose gradient is a gather too: `index_select` would add them up one by one."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Permute.apply(grads[0], inverse, order), None, None


def _by_width(rows: Tensor, width: Tensor, run: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``run(some rows, their width)`` for each width of ``[B, P]``, in the order of ``rows`` ``[B * P, n]``.

    Every row costs what its own width costs.
    """
    flat = width.reshape(-1)
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    widths, counts = flat[order].unique_consecutive(return_counts=True)
    parts = _Permute.apply(rows, order, inverse).split(counts.tolist())
    out = torch.cat([run(part, k) for part, k in zip(parts, widths.tolist(), strict=True)])
    return _Permute.apply(out, inverse, order)


def encoder_block(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    width: LevelWidth,
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
    width = by_position(width, max((x.shape[1] - conv_weight.shape[1] // x.shape[2]) // stride + 1, 0))
    if isinstance(width, Tensor) and width.numel():
        block = stride * x.shape[2]
        blocks = x[:, : x.shape[1] // stride * stride].reshape(len(x), -1, block)
        reach, positions = conv_weight.shape[1] // block, width.shape[1]
        windows = torch.cat([blocks[:, tap : tap + positions] for tap in range(reach)], dim=2).flatten(0, 1)

        def run(rows: Tensor, k: int) -> Tensor:
            hidden = torch.relu(F.linear(rows, conv_weight[:k], conv_bias[:k]))
            return slim_linear_glu(hidden, glu_weight, glu_bias, k, "input")

        return _by_width(windows, width, run).unflatten(0, width.shape)
    k = max_width(width, conv_weight.shape[0])
    hidden = torch.relu(_strided_conv(x, conv_weight[:k], conv_bias[:k], stride))
    return slim_linear_glu(hidden, glu_weight, glu_bias, width, "input")


def decoder_block(
    x: Tensor,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    width: LevelWidth,
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
    x, width = x if skip is None else x + skip, by_position(width, x.shape[1])
    if isinstance(width, Tensor) and width.numel():
        wide = _by_width(
            x.flatten(0, 1), width, lambda rows, k: gated_units(rows, glu_weight, glu_bias, k) @ conv_weight[:k]
        )
        taps = wide.unflatten(0, width.shape).split(stride * channels, dim=2)
        out = _overlap_add(list(taps)).reshape(len(x), -1, channels)
    else:
        hidden = gated_units(x, glu_weight, glu_bias, width)
        out = _strided_conv_transpose(hidden, conv_weight[: hidden.shape[-1]], stride, channels)
    out = out if conv_bias is None else out + conv_bias.to(out.dtype)
    return torch.relu(out) if relu else out
