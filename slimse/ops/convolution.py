"""Slimmed convolutions and the pointwise layer with a GLU, on channels-last activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..width import Width, apply_width, max_width


def slim_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: Width,
    width_out: Width,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
) -> Tensor:
    """Convolution that reads the active input channels and computes the active output channels.

    Args:
        x: ``[B, T, C]``, ``C`` from the widest ``width_in`` to ``C_in``; inactive channels are not read.
        weight: ``[C_out, K, C_in]``; rows ``[:k_out]`` and their columns ``[:k_in]`` are read.
        bias: ``[C_out]`` or None.
        width_in: active channels of ``x``: a number, or over its ``T`` positions.
        width_out: active channels of the output: a number, or over its ``P`` positions.
        stride: positions between windows.
        padding: zeros on either side.
        dilation: positions between taps.
        relu: whether a ReLU follows.

    Returns:
        ``[B, P, C_out]`` with zeros in inactive channels; for a ``width_out`` that is a number ``[B, P, width_out]``.
        ``P = floor((T + 2 padding - dilation (K - 1) - 1) / stride) + 1``.
    """
    channels = weight.shape[0]
    k_in, k_out = max_width(width_in, weight.shape[2]), max_width(width_out, channels)
    x, weight = apply_width(x[..., :k_in], width_in), weight[:k_out, :, :k_in]
    bias = None if bias is None else bias[:k_out]
    if weight.shape[1] == stride == 1 and padding == 0:
        out = F.linear(x, weight[:, 0], bias)
    else:
        out = F.conv1d(x.mT, weight.mT, bias, stride, padding, dilation).mT
    out = apply_width(torch.relu(out) if relu else out, width_out)
    return _filled(out, width_out, channels)


def slim_conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: Width,
    width_out: Width,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
) -> Tensor:
    """Transposed convolution that reads the active input channels and computes the active output channels.

    Args:
        x: ``[B, T, C]``, ``C`` from the widest ``width_in`` to ``C_in``; inactive channels are not read.
        weight: ``[C_in, K, C_out]``; rows ``[:k_in]`` and their columns ``[:k_out]`` are read.
        bias: ``[C_out]`` or None.
        width_in: active channels of ``x``: a number, or over its ``T`` positions.
        width_out: active channels of the output: a number, or over its ``P`` positions.
        stride: positions of the output between those of the input.
        padding: positions cut off on either side.
        output_padding: positions added at the end.
        dilation: positions between taps.
        relu: whether a ReLU follows.

    Returns:
        ``[B, P, C_out]`` with zeros in inactive channels; for a ``width_out`` that is a number ``[B, P, width_out]``.
        ``P = (T - 1) stride - 2 padding + dilation (K - 1) + output_padding + 1``.
    """
    k_in, k_out = max_width(width_in, weight.shape[0]), max_width(width_out, weight.shape[2])
    columns = apply_width(x[..., :k_in], width_in).mT
    rows = weight[:k_in, :, :k_out].mT
    bias = None if bias is None else bias[:k_out]
    out = F.conv_transpose1d(columns, rows, bias, stride, padding, output_padding, 1, dilation)
    out = apply_width(torch.relu(out.mT) if relu else out.mT, width_out)
    return _filled(out, width_out, weight.shape[2])


def slim_linear_glu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    width: Width,
    cut: str,
    skip: Tensor | None = None,
) -> Tensor:
    """Pointwise layer and GLU, with the active prefix of its input or of its output.

    Args:
        x: ``[B, T, C_in]``; cut on the input, ``C_in`` may be as small as the widest ``width``.
        weight: cut on the input ``[C_in, 2 * C_out]``, values then gates in each row; cut on the output
            ``[C_out, 2, C_in]``, value row and gate row of a unit side by side. Rows ``[:k]`` are read.
        bias: cut on the input ``[2 * C_out]``, on the output ``[C_out, 2]``.
        width: active channels over the ``T`` positions.
        cut: which side ``width`` is of, ``"input"`` or ``"output"``.
        skip: added to ``x`` first; as ``x``.

    Returns:
        ``[B, T, C_out]``; cut on the output, with zeros in inactive channels, or ``[B, T, width]`` for a number.

    Raises:
        ValueError: for another ``cut``.
    """
    x = x if skip is None else x + skip
    if cut == "input":
        k, units = max_width(width, weight.shape[0]), weight.shape[1] // 2
        x = apply_width(x[..., :k], width)
        # Two products, as `F.glu` on one is slow where there are few units: its halves are rows of few numbers each.
        value, gate = (F.linear(x, weight[:k, half].t(), bias[half]) for half in (slice(units), slice(units, None)))
        return value * torch.sigmoid(gate)
    if cut != "output":
        raise ValueError(f"cut = {cut!r}: expected 'input' or 'output'")
    return _filled(gated_units(x, weight, bias, width), width, weight.shape[0])


def gated_units(x: Tensor, weight: Tensor, bias: Tensor, width: Width) -> Tensor:
    """`slim_linear_glu` cut on the output, with no more channels than the widest position has."""
    k = max_width(width, weight.shape[0])
    # Both halves are strided views of one contiguous prefix, so value and gate need no copy of the weights.
    value, gate = (F.linear(x, weight[:k, half], bias[:k, half]) for half in (0, 1))
    return apply_width(value * torch.sigmoid(gate), width)


def _filled(out: Tensor, width: Width, channels: int) -> Tensor:
    """``out`` with zeros up to ``channels``, unless a uniform width has cut them off."""
    return out if isinstance(width, int) else F.pad(out, (0, channels - out.shape[-1]))
