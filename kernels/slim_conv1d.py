"""Convolution of any kernel size, stride, padding and dilation over the active prefix of its channels.

Nothing is copied: a row of the product is a window of the input, read tap by tap up to the active channels of every
position, or in one run where all channels are active and the taps are neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .overlap_add import overlap_add
from .prefix_gemm import weight_grad
from .rows import Prefix, Rows, packed_time
from .window_gemm import window_product


def slim_conv1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: int | Tensor,
    width_out: int | Tensor,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
    *,
    order: Tensor | None = None,
    precision: str = "ieee",
) -> Tensor:
    """Convolution; see `slimse.ops.slim_conv1d` for what it computes.

    Args:
        x: ``[B, T, C]``, ``C`` from the widest ``width_in`` to ``C_in``.
        weight: ``[C_out, K, C_in]``.
        bias: ``[C_out]`` or None.
        width_in: active channels of ``x``: a number, or an integer tensor ``[B, T]``.
        width_out: active channels of the output: a number, or an integer tensor ``[B, P]``.
        stride: positions between windows.
        padding: zeros on either side.
        dilation: positions between taps.
        relu: whether a ReLU follows.
        order: int32 ``[B * P]``, a permutation of the output positions that says which share a tile, or None.
        precision: of float32 products.

    Returns:
        ``[B, P, C_out]`` with zeros in inactive channels; for a ``width_out`` that is a number ``[B, P, width_out]``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    rows, prefix_in, prefix_out = _check(x, weight, bias, width_in, width_out, stride, padding, dilation)
    checks.check_precision(precision)
    checks.check_order(order, rows.count)
    ragged = prefix_out.rows is not None
    out = window_product(
        rows,
        weight,
        bias,
        prefix_out,
        width_in=prefix_in,
        relu=relu,
        zero=ragged,
        order=order,
        precision=precision,
    )
    return out if ragged else out[:, :, : prefix_out.bound]


def slim_conv1d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: int | Tensor,
    width_out: int | Tensor,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
    *,
    out: Tensor | None = None,
    input_grad: bool = True,
    weight_grads: bool = True,
    precision: str = "ieee",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `slim_conv1d_forward` at ``x``, ``weight`` and a bias; deterministic.

    Args:
        grad: as the result of the forward pass.
        x: as in the forward pass, like all that follow.
        weight: ``[C_out, K, C_in]``.
        bias: ``[C_out]`` or None.
        width_in: a number, or an integer tensor ``[B, T]``.
        width_out: a number, or an integer tensor ``[B, P]``.
        stride: as there.
        padding: as there.
        dilation: as there.
        relu: as there.
        out: the result of the forward pass; needed if it ended in a ReLU.
        input_grad: whether the gradient at ``x`` is wanted; None stands in for it otherwise.
        weight_grads: whether gradients at weights and biases are wanted; None stands in for each otherwise.
        precision: of float32 products.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    rows, prefix_in, prefix_out = _check(x, weight, bias, width_in, width_out, stride, padding, dilation)
    checks.check_precision(precision)
    grad = checks.output_grad(grad, out if relu else None, (x.shape[0], rows.per_item), prefix_out, weight.shape[0])
    grads, channels = Rows.positions(grad), x.shape[2]
    grad_x = None
    if input_grad:
        grad_x = overlap_add(
            grads,
            weight.flatten(1),
            None,
            prefix_out,
            channels=weight.shape[2],
            n_time=x.shape[1],
            stride=stride,
            dilation=dilation,
            padding=padding,
            width_out=prefix_in,
            precision=precision,
        )[:, :, :channels]
    if not weight_grads:
        return grad_x, None, None
    grad_weight, grad_bias = weight_grad(grads, rows, prefix_out, width_in=prefix_in, bias=True, precision=precision)
    if grad_weight.numel() < weight.numel():
        grad_weight = torch.nn.functional.pad(grad_weight, (0, weight.shape[2] - channels))
    return grad_x, grad_weight.view_as(weight), grad_bias


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: int | Tensor,
    width_out: int | Tensor,
    stride: int,
    padding: int,
    dilation: int,
) -> tuple[Rows, Prefix | None, Prefix]:
    """Check what the layer is given; return its windows, the width of its input (None for all) and of its output."""
    outputs, kernel, inputs = checks.check_convolution(weight, bias, stride, padding, dilation, bias_axis=0)
    prefix_in = checks.input_width("width_in", x, weight, width_in, inputs)
    prefix_in, channels = None if prefix_in == Prefix(inputs) else prefix_in, x.shape[2]
    time, reach = x.shape[1] + 2 * padding, dilation * (kernel - 1)
    per_item = max((time - reach - 1) // stride + 1, 0)
    prefix_out = checks.split_width("width_out", width_out, outputs, (x.shape[0], per_item))
    if padding == 0 and dilation == 1 and prefix_in is None:
        return Rows.windows(x, stride, kernel * channels), None, prefix_out
    if x.shape[1] == 0 and per_item > 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected positions to convolve")
    packed = packed_time(x)
    return Rows(packed, per_item, stride, channels, kernel, dilation, padding), prefix_in, prefix_out
