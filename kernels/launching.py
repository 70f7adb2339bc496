"""What every launcher does alike: check its arguments, view rows, and start a kernel on the right device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True)
class Rows:
    """``batch * per_item`` rows of a channels-last tensor, each a contiguous run; consecutive rows may overlap.

    Row ``p`` of item ``b`` starts ``b * stride_b + p * step`` elements into ``data`` and is ``length`` long.
    """

    data: Tensor
    per_item: int
    step: int
    length: int

    @property
    def count(self) -> int:
        """Rows of the whole batch."""
        return self.data.shape[0] * self.per_item

    @property
    def stride_b(self) -> int:
        """Elements between the items of the batch."""
        return self.data.stride(0)

    @classmethod
    def windows(cls, x: Tensor, stride: int, length: int) -> Rows:
        """The windows of a strided convolution over ``x``: ``length`` elements every ``stride`` positions."""
        x, channels = packed_time(x), x.shape[-1]
        per_item = max((x.shape[1] * channels - length) // (stride * channels) + 1, 0)
        return cls(x, per_item, stride * channels, length)

    @classmethod
    def positions(cls, x: Tensor) -> Rows:
        """Every position of ``x`` as a row."""
        return cls(packed_time(x), x.shape[1], x.shape[2], x.shape[2])


def packed_time(x: Tensor) -> Tensor:
    """``x`` itself where the positions of an item lie side by side (slices along time or batch do), else a copy."""
    packed = x.stride(2) == 1 or x.shape[2] == 1
    return x if packed and (x.stride(1) == x.shape[2] or x.shape[1] <= 1) else x.contiguous()


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


def check_precision(precision: str) -> None:
    """Raise a `ValueError` for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: expected one of {PRECISIONS}")


def split_width(width: int | Tensor, channels: int, shape: tuple[int, int]) -> tuple[int, Tensor | None]:
    """A width as the number that bounds it and, if it differs between rows, the int32 tensor of every row's.

    Values of a tensor above ``channels`` count as ``channels``: a check of them would wait for the device.

    Raises:
        ValueError: for a number outside ``[0, channels]``, or a tensor that is not integer ``[B, P]``.
    """
    if isinstance(width, int):
        if not 0 <= width <= channels:
            raise ValueError(f"width = {width}: expected 0 to {channels} channels")
        return width, None
    if not isinstance(width, Tensor) or tuple(width.shape) != shape or width.is_floating_point():
        found = f"{width.dtype} {tuple(width.shape)}" if isinstance(width, Tensor) else type(width).__name__
        raise ValueError(f"width is {found}: expected an int or an integer tensor {list(shape)}")
    return channels, width.to(torch.int32).contiguous()


def check_order(order: Tensor | None, rows: int) -> None:
    """Raise a `ValueError` unless ``order`` is None or int32 of ``rows`` elements."""
    if order is not None and (tuple(order.shape) != (rows,) or order.dtype != torch.int32 or not order.is_contiguous()):
        raise ValueError(f"order is {order.dtype} {tuple(order.shape)}: expected a permutation, int32 ({rows},)")


def check_steps(steps: Tensor | None, grid: tuple[int, int]) -> None:
    """Raise a `ValueError` unless ``steps`` is None or an int32 counter for every program of ``grid``."""
    if steps is not None and (tuple(steps.shape) != grid or steps.dtype != torch.int32 or not steps.is_contiguous()):
        raise ValueError(f"steps is {steps.dtype} {tuple(steps.shape)}: expected int32 {grid}, a counter per program")


def capability(device: torch.device) -> int:
    """Compute capability of an NVIDIA GPU (90 for 9.0), and 80 for everything else: the smaller tiles fit there too."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 80
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


def constants_of(config: Any) -> dict[str, Any]:
    """Fields of a frozen config as keyword arguments of `launch`: block sizes upper case, the rest as they are."""
    return {key.upper() if key.startswith("block_") else key: value for key, value in asdict(config).items()}
