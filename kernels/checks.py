"""Checks of what launchers are given: every one raises a `ValueError` that says what was found and what expected."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import SPARE, FrameWidths, Prefix, Rows
from .tiles import DTYPES, PRECISIONS


def check_shapes(**expected: tuple[Tensor, tuple[int, ...]]) -> None:
    """Check that every named tensor has its shape and is contiguous, and all have one dtype and device.

    Raises:
        ValueError: naming the tensor, what it is and what was expected.
    """
    first = next(iter(expected.values()))[0]
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {shape}")
        if tensor.dtype != first.dtype or tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: expected {first.dtype}, one of {DTYPES}, as the other tensors")
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device}: expected {first.device}, as the other tensors")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: expected the packed layout")


def check_input(name: str, x: Tensor, weight: Tensor, channels: int) -> None:
    """Check that ``x`` is ``[B, T, channels]`` of the weights' dtype and on their device.

    Raises:
        ValueError: naming the tensor, what it is and what was expected.
    """
    if x.ndim != 3 or x.shape[2] != channels:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: expected [batch, time, {channels}]")
    if x.dtype != weight.dtype or x.device != weight.device:
        raise ValueError(f"{name} is {x.dtype} on {x.device}: the weights are {weight.dtype} on {weight.device}")


def skip_rows(x: Tensor, skip: Tensor | None, weight: Tensor) -> Rows | None:
    """Rows of what is added to ``x``, or None.

    Raises:
        ValueError: if it is not as ``x``.
    """
    if skip is None:
        return None
    check_input("skip", skip, weight, x.shape[2])
    if skip.shape != x.shape:
        raise ValueError(f"skip has shape {tuple(skip.shape)}: expected {tuple(x.shape)}, as x")
    return Rows.positions(skip)


def check_convolution(
    weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, *, bias_axis: int
) -> tuple[int, int, int]:
    """Check the weight and the bias of a convolution and its geometry; return the weight's sizes.

    Raises:
        ValueError: naming what does not fit, and what was expected.
    """
    if weight.ndim != 3 or 0 in weight.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: expected [channels, taps, channels]")
    shapes = {"weight": (weight, tuple(weight.shape))}
    if bias is not None:
        shapes["bias"] = (bias, (weight.shape[bias_axis],))
    check_shapes(**shapes)
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if value < least:
            raise ValueError(f"{name} = {value}: expected {least} or more")
    return tuple(weight.shape)


def input_width(name: str, x: Tensor, weight: Tensor, width: int | Tensor, inputs: int) -> Prefix:
    """Check an input that may be as narrow as its widest active position, and return the width, called ``name``.

    Raises:
        ValueError: naming what does not fit, and what was expected.
    """
    channels = min(x.shape[-1], inputs)
    check_input("x", x, weight, channels)
    prefix = split_width(name, width, inputs, tuple(x.shape[:2]))
    if prefix.rows is None and prefix.bound > channels:
        raise ValueError(f"x has {channels} channels: expected at least {name} = {prefix.bound}")
    return Prefix(min(prefix.bound, channels), prefix.rows)


def output_grad(grad: Tensor, out: Tensor | None, shape: tuple[int, int], width: Prefix, channels: int) -> Tensor:
    """The gradient before a ReLU whose result is ``out`` (None: there was none), of all channels, inactive ones zero.

    Raises:
        ValueError: if its shape is not that of the result.
    """
    expected = (*shape, channels if width.rows is not None else width.bound)
    if tuple(grad.shape) != expected:
        raise ValueError(f"grad has shape {tuple(grad.shape)}: expected {expected}")
    if out is not None:
        grad = torch.where(out > 0, grad, 0)
    if width.rows is not None:
        grad = torch.where(torch.arange(channels, device=grad.device) < width.rows.unsqueeze(-1), grad, 0)
    return torch.nn.functional.pad(grad, (0, channels - expected[2])).contiguous()


def check_state(name: str, state: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Check a recurrent state, which may be fp32 beside half-precision tensors, and return it contiguous.

    Raises:
        ValueError: naming what does not fit, and what was expected.
    """
    if tuple(state.shape) != shape or state.dtype not in (torch.float32, like.dtype) or state.device != like.device:
        found = f"{state.dtype} {tuple(state.shape)} on {state.device}"
        raise ValueError(f"{name} is {found}: expected {like.dtype} or float32, {shape} on {like.device}")
    return state.contiguous()


def check_precision(precision: str) -> None:
    """Raise a `ValueError` for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: expected one of {PRECISIONS}")


def split_width(
    name: str, width: int | Tensor | FrameWidths, channels: int, shape: tuple[int, int], *, frames: bool = False
) -> Prefix:
    """A width as what kernels take: the number that bounds it and, if it differs between rows, that of every row.

    Values of a tensor above ``channels`` count as ``channels``: a check of them would wait for the device.

    Raises:
        ValueError: for a number outside ``[0, channels]``, or a tensor that is not integer ``[B, P]``.
    """
    if isinstance(width, int):
        if not 0 <= width <= channels:
            raise ValueError(f"{name} = {width}: expected 0 to {channels} channels")
        return Prefix(width)
    if frames and isinstance(width, FrameWidths):
        _check_frames(name, width, shape[0])
        return Prefix(channels, frames=width)
    if not isinstance(width, Tensor) or tuple(width.shape) != shape or width.is_floating_point():
        found = f"{width.dtype} {tuple(width.shape)}" if isinstance(width, Tensor) else type(width).__name__
        raise ValueError(f"{name} is {found}: expected an int or an integer tensor {list(shape)}")
    return Prefix(channels, width.to(torch.int32).contiguous())


def _check_frames(name: str, width: FrameWidths, batch: int) -> None:
    """Raise a `ValueError` unless the parts of a width by frames fit together."""
    choice, counts = width.choice, width.counts
    for part, tensor, ndim in (("choice", choice, 2), ("counts", counts, 1)):
        if tensor.ndim != ndim or tensor.dtype != torch.int32 or not tensor.is_contiguous() or tensor.numel() == 0:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{name}.{part} is {found}: expected int32 of {ndim} dimensions, contiguous, not empty")
    if choice.shape[0] != batch or width.rate < 1 or width.lead < 0:
        found = f"{name} has {choice.shape[0]} items, rate = {width.rate} and lead = {width.lead}"
        raise ValueError(f"{found}: expected {batch} items, a rate from 1 and a lead from 0")
    for order in width.orders or ():
        check_order(order, batch * (choice.shape[1] + SPARE))


def check_order(order: Tensor | None, rows: int) -> None:
    """Raise a `ValueError` unless ``order`` is None or int32 of ``rows`` elements."""
    if order is not None and (tuple(order.shape) != (rows,) or order.dtype != torch.int32 or not order.is_contiguous()):
        raise ValueError(f"order is {order.dtype} {tuple(order.shape)}: expected a permutation, int32 ({rows},)")


def check_orders(order: tuple[Tensor, Tensor] | None, rows: int, blocks: int) -> tuple[Tensor | None, Tensor | None]:
    """Check the orders of the rows and of the output blocks, and return them apart."""
    row_order, block_order = (None, None) if order is None else order
    check_order(row_order, rows)
    check_order(block_order, blocks)
    return row_order, block_order


def check_decoder(
    x: Tensor,
    skip: Tensor | None,
    glu_weight: Tensor,
    glu_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    width: int | Tensor | FrameWidths,
    stride: int,
    channels: int,
    precision: str,
) -> tuple[Rows, Rows | None, int, Prefix]:
    """Check what a block is given; return its input rows, those added to them, ``K / S`` and the width."""
    hidden = conv_weight.shape[0]
    length = conv_weight.shape[1] if conv_weight.ndim == 2 else 0
    bias = {} if conv_bias is None else {"conv_bias": (conv_bias, (channels,))}
    check_shapes(
        glu_weight=(glu_weight, (hidden, 2, hidden)),
        glu_bias=(glu_bias, (hidden, 2)),
        conv_weight=(conv_weight, (hidden, length)),
        **bias,
    )
    check_input("x", x, conv_weight, hidden)
    if stride < 1 or channels < 1 or length == 0 or length % (stride * channels):
        expected = f"a multiple of stride = {stride} x {channels} channels"
        raise ValueError(f"conv_weight has rows of {length} elements: expected {expected}")
    added = skip_rows(x, skip, conv_weight)
    check_precision(precision)
    prefix = split_width("width", width, hidden, tuple(x.shape[:2]), frames=True)
    return Rows.positions(x), added, length // (stride * channels), prefix


def check_linear_glu(
    x: Tensor, weight: Tensor, bias: Tensor, width: int | Tensor, cut: str, skip: Tensor | None
) -> tuple[Rows, Rows | None, Prefix]:
    """Check what a pointwise layer with GLU is given; return its rows, those added to them, and the width."""
    if cut not in ("input", "output"):
        raise ValueError(f"cut = {cut!r}: expected 'input' or 'output'")
    if cut == "input":
        inputs, outputs = (weight.shape[0], weight.shape[1] // 2) if weight.ndim == 2 else (0, 0)
        shapes = {"weight": (weight, (inputs, 2 * outputs)), "bias": (bias, (2 * outputs,))}
    else:
        outputs, inputs = (weight.shape[0], weight.shape[-1])
        shapes = {"weight": (weight, (outputs, 2, inputs)), "bias": (bias, (outputs, 2))}
    check_shapes(**shapes)
    if cut == "input":
        prefix = input_width("width", x, weight, width, inputs)
    else:
        check_input("x", x, weight, inputs)
        prefix = split_width("width", width, outputs, tuple(x.shape[:2]))
    return Rows.positions(x), skip_rows(x, skip, weight), prefix
