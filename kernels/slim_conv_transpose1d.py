"""Transposed convolution of any kernel size, stride, padding and dilation over the active prefix of its channels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .overlap_add import overlap_add
from .prefix_gemm import weight_grad
from .rows import Prefix, Rows
from .window_gemm import window_product


def slim_conv_transpose1d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: int | Tensor,
    width_out: int | Tensor,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
    *,
    precision: str = "ieee",
) -> Tensor:
    """Transposed convolution; see `slimse.ops.slim_conv_transpose1d` for what it computes.

    Args:
        x: ``[B, T, C]``, ``C`` from the widest ``width_in`` to ``C_in``.
        weight: ``[C_in, K, C_out]``.
        bias: ``[C_out]`` or None.
        width_in: active channels of ``x``: a number, or an integer tensor ``[B, T]``.
        width_out: active channels of the output: a number, or an integer tensor ``[B, P]``.
        stride: positions of the output between those of the input.
        padding: positions cut off on either side.
        output_padding: positions added at the end.
        dilation: positions between taps.
        relu: whether a ReLU follows.
        precision: of float32 products.

    Returns:
        ``[B, P, C_out]`` with zeros in inactive channels; for a ``width_out`` that is a number ``[B, P, width_out]``.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix_in, prefix_out, time = _check(
        x, weight, bias, width_in, width_out, stride, padding, output_padding, dilation
    )
    checks.check_precision(precision)
    full = prefix_out == Prefix(weight.shape[2])
    out = overlap_add(
        Rows.positions(x),
        weight.flatten(1),
        bias,
        prefix_in,
        channels=weight.shape[2],
        n_time=time,
        stride=stride,
        dilation=dilation,
        padding=padding,
        width_out=None if full else prefix_out,
        relu=relu,
        precision=precision,
    )
    return out if full or prefix_out.rows is not None else out[:, :, : prefix_out.bound]


def slim_conv_transpose1d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: int | Tensor,
    width_out: int | Tensor,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
    relu: bool = False,
    *,
    out: Tensor | None = None,
    input_grad: bool = True,
    weight_grads: bool = True,
    precision: str = "ieee",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `slim_conv_transpose1d_forward` at ``x``, ``weight`` and a bias; deterministic.

    Args:
        grad: as the result of the forward pass.
        x: as in the forward pass, like all that follow.
        weight: ``[C_in, K, C_out]``.
        bias: ``[C_out]`` or None.
        width_in: a number, or an integer tensor ``[B, T]``.
        width_out: a number, or an integer tensor ``[B, P]``.
        stride: as there.
        padding: as there.
        output_padding: as there.
        dilation: as there.
        relu: as there.
        out: the result of the forward pass; needed if it ended in a ReLU.
        input_grad: whether the gradient at ``x`` is wanted; None stands in for it otherwise.
        weight_grads: whether gradients at weights and biases are wanted; None stands in for each otherwise.
        precision: of float32 products.

    Raises:
        ValueError: for arguments that do not fit together.
    """
    prefix_in, prefix_out, time = _check(
        x, weight, bias, width_in, width_out, stride, padding, output_padding, dilation
    )
    checks.check_precision(precision)
    inputs, kernel, outputs = weight.shape
    grad = checks.output_grad(grad, out if relu else None, (x.shape[0], time), prefix_out, outputs)
    shared = {"width_in": prefix_out, "precision": precision}
    windows = Rows(grad, x.shape[1], stride, outputs, kernel, dilation, padding)
    if padding == 0 and dilation == 1 and prefix_out == Prefix(outputs):
        # All taps are neighbours: one long run.
        windows, shared["width_in"] = Rows(grad, x.shape[1], stride, kernel * outputs), None
    grad_x = None
    if input_grad:
        grad_x = window_product(windows, weight, None, prefix_in, zero=True, **shared)[:, :, : x.shape[2]]
    if not weight_grads:
        return grad_x, None, None
    grad_weight, _ = weight_grad(Rows.positions(x), windows, prefix_in, bias=False, **shared)
    grad_weight = torch.nn.functional.pad(
        grad_weight.reshape(-1, kernel, outputs), (0, 0, 0, 0, 0, inputs - x.shape[2])
    )
    return grad_x, grad_weight, grad.sum((0, 1))


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    width_in: int | Tensor,
    width_out: int | Tensor,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
) -> tuple[Prefix, Prefix, int]:
    """Check what the layer is given; return the widths of its input and its output, and the output's positions."""
    inputs, kernel, outputs = checks.check_convolution(weight, bias, stride, padding, dilation, bias_axis=2)
    prefix_in = checks.input_width("width_in", x, weight, width_in, inputs)
    if not 0 <= output_padding < max(stride, dilation):
        raise ValueError(f"output_padding = {output_padding}: expected 0 to {max(stride, dilation) - 1}")
    time = max((x.shape[1] - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1, 0)
    prefix_out = checks.split_width("width_out", width_out, outputs, (x.shape[0], time))
    return prefix_in, prefix_out, time
