"""What every launcher does alike: check its arguments, view rows, and start a kernel on the right device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

PRECISIONS = ("ieee", "tf32", "tf32x3")
"""How float32 products are computed; half-precision inputs always use tensor cores with float32 sums."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Tile:
    """Tile of a matrix product: ``rows`` x ``cols`` outputs per program, ``depth`` of the reduction per step."""

    rows: int
    cols: int
    depth: int
    num_warps: int = 4
    num_stages: int = 3

    def grid(self, rows: int, cols: int) -> tuple[int, int]:
        """Programs for ``rows`` x ``cols`` outputs."""
        return triton.cdiv(rows, self.rows), triton.cdiv(cols, self.cols)

    def launch_options(self, rows: str, cols: str, depth: str) -> dict[str, int]:
        """Keyword arguments of `launch`, the three sizes under the names that a kernel has for them."""
        sizes = {rows: self.rows, cols: self.cols, depth: self.depth}
        return {**sizes, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class BlockConfig:
    """Launch parameters of the forward pass of a block.

    Args:
        fused: one launch that keeps the hidden channels on chip, or two that write them out.
        block_t: rows of a tile.
        block_c: output columns of a tile.
        block_h: hidden channels per step of the loop over the width.
        block_k: input elements per step.
        num_warps: of a program.
        num_stages: of the software pipeline.
    """

    fused: bool
    block_t: int
    block_c: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int

    def launch_options(self) -> dict[str, int]:
        """Keyword arguments of `launch` for the fused kernel: block sizes in upper case."""
        fields = asdict(self)
        del fields["fused"]
        return {key.upper() if key.startswith("block_") else key: value for key, value in fields.items()}


class Prefix(NamedTuple):
    """Active units of rows: as many as ``rows`` says of each (int32), at most than ``bound``; or ``bound`` of all."""

    bound: int
    rows: Tensor | None = None


class Geometry(NamedTuple):
    """Where the runs of rows lie, as one constant of a kernel; the fields are those of `Rows`."""

    stride: int
    channels: int
    length: int
    taps: int
    dilation: int
    padding: int


@dataclass(frozen=True)
class Rows:
    """``batch * per_item`` rows of a channels-last tensor, each ``taps`` runs of ``length`` elements.

    Run ``i`` of row ``p`` starts at position ``p * stride + i * dilation - padding`` of its item; positions lie
    ``channels`` elements apart. Outside of an item all is zero. Rows may overlap.
    """

    data: Tensor
    per_item: int
    stride: int
    length: int
    taps: int = 1
    dilation: int = 1
    padding: int = 0

    @property
    def count(self) -> int:
        """Rows of the whole batch."""
        return self.data.shape[0] * self.per_item

    @property
    def channels(self) -> int:
        """Elements between positions."""
        return self.data.stride(1) if self.data.shape[1] > 1 else self.data.shape[2]

    @property
    def stride_b(self) -> int:
        """Positions between the items of the batch.

        The size of a position is known when a kernel is compiled; an offset in elements would be compiled for as a
        multiple of 16 and again as none.
        """
        return self.data.stride(0) // self.channels if self.data.shape[0] > 1 else 0

    @classmethod
    def windows(cls, x: Tensor, stride: int, length: int) -> Rows:
        """The windows of a strided convolution over ``x``: ``length`` elements every ``stride`` positions."""
        x, channels = packed_channels(x), x.shape[2]
        per_item = max((x.shape[1] * channels - length) // (stride * channels) + 1, 0)
        return cls(x, per_item, stride, length)

    @classmethod
    def positions(cls, x: Tensor) -> Rows:
        """Every position of ``x`` as a row."""
        return cls(packed_time(x), x.shape[1], 1, x.shape[2])

    @property
    def plain(self) -> bool:
        """Whether no row reaches out of its item."""
        return self.taps == 1 and self.padding == 0

    @property
    def geometry(self) -> Geometry:
        """What a kernel is compiled for."""
        return Geometry(self.stride, self.channels, self.length, self.taps, self.dilation, self.padding)


def packed_time(x: Tensor) -> Tensor:
    """``x`` itself where channels lie side by side and items a whole number of positions apart, else a copy."""
    batch, time, channels = x.shape
    if x.numel() == 0 or (x.stride(2) != 1 and channels > 1):
        return x.contiguous()
    step = x.stride(1) if time > 1 else channels
    whole = step >= channels and (batch == 1 or x.stride(0) % step == 0)
    return x if whole else x.contiguous()


def packed_channels(x: Tensor) -> Tensor:
    """As `packed_time`, and the positions of an item lie side by side, as windows that span several want it."""
    x = packed_time(x)
    return x if x.shape[1] <= 1 or x.stride(1) == x.shape[2] else x.contiguous()


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


def addend(rows: Rows | None) -> tuple[Tensor | None, int, int]:
    """Data, item stride and channels of rows that a kernel adds to others, or what stands for none."""
    return (None, 0, 1) if rows is None else (rows.data, rows.stride_b, rows.channels)


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


def split_width(name: str, width: int | Tensor, channels: int, shape: tuple[int, int]) -> Prefix:
    """A width as what kernels take: the number that bounds it and, if it differs between rows, that of every row.

    Values of a tensor above ``channels`` count as ``channels``: a check of them would wait for the device.

    Raises:
        ValueError: for a number outside ``[0, channels]``, or a tensor that is not integer ``[B, P]``.
    """
    if isinstance(width, int):
        if not 0 <= width <= channels:
            raise ValueError(f"{name} = {width}: expected 0 to {channels} channels")
        return Prefix(width)
    if not isinstance(width, Tensor) or tuple(width.shape) != shape or width.is_floating_point():
        found = f"{width.dtype} {tuple(width.shape)}" if isinstance(width, Tensor) else type(width).__name__
        raise ValueError(f"{name} is {found}: expected an int or an integer tensor {list(shape)}")
    return Prefix(channels, width.to(torch.int32).contiguous())


def check_order(order: Tensor | None, rows: int) -> None:
    """Raise a `ValueError` unless ``order`` is None or int32 of ``rows`` elements."""
    if order is not None and (tuple(order.shape) != (rows,) or order.dtype != torch.int32 or not order.is_contiguous()):
        raise ValueError(f"order is {order.dtype} {tuple(order.shape)}: expected a permutation, int32 ({rows},)")


def check_steps(steps: Tensor | None, grid: tuple[int, int], config: BlockConfig) -> None:
    """Raise a `ValueError` unless ``steps`` is None or int32, a counter for every program of a fused kernel."""
    if steps is None:
        return
    if tuple(steps.shape) != grid or steps.dtype != torch.int32 or not steps.is_contiguous():
        raise ValueError(f"steps is {steps.dtype} {tuple(steps.shape)}: expected int32 {grid}, a counter per program")
    if not config.fused:
        raise ValueError(f"steps with {config}: expected a fused configuration")


def capability(device: torch.device) -> int:
    """Compute capability of an NVIDIA GPU (90 for 9.0), and 0 for everything else, as older than any of them."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def by_width(width: Tensor) -> Tensor:
    """Order of the rows of an integer tensor ``[B, P]`` from narrow to wide, as the launchers' ``order``."""
    return width.flatten().argsort(stable=True).to(torch.int32)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
    """Start ``kernel`` on the device of its first argument.

    Raises:
        ValueError: where that is the CPU and Triton does not interpret its kernels.
    """
    if isinstance(kernel, triton.JITFunction) and args[0].device.type == "cpu":
        raise ValueError("the tensors are on the CPU: expected a GPU (or TRITON_INTERPRET=1 before the first import)")
    with torch.cuda.device_of(args[0]):
        # Fused multiply-add is asked for by name: its default differs between versions of Triton.
        kernel[grid](*args, **constants, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)
