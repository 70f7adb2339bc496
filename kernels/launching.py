"""How every kernel is started."""

from __future__ import annotations

from typing import Any

import torch
import triton

from .rows import by_width
from .tiles import BlockConfig, chip_of

# The ops look for these two here.
__all__ = ["BlockConfig", "by_width", "launch"]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
    """Start ``kernel`` on the device of its first argument.

    Raises:
        ValueError: where that is the CPU and Triton does not interpret its kernels.
    """
    device, compiled = args[0].device, isinstance(kernel, triton.JITFunction)
    if compiled and device.type == "cpu":
        raise ValueError("the tensors are on the CPU: expected a GPU (or TRITON_INTERPRET=1 before the first import)")
    if "PRECISION" in constants:
        nvidia = compiled and chip_of(device).kind != "amd"
        constants["PRECISION"] = product_precision(constants["PRECISION"], nvidia, compiled)
    with torch.cuda.device_of(args[0]):
        # Fused multiply-add is asked for by name: its default differs between versions of Triton.
        kernel[grid](*args, **constants, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)


def product_precision(precision: str, nvidia: bool, compiled: bool) -> str:
    """What `prefix_gemm.product` is told: how the factors of float32 products are rounded, if they are.

    AMD's matrix instructions compute in float32, so that three products in TF32 would gain nothing.
    """
    if precision == "tf32":
        return "tf32" if nvidia else "tf32 by bits"
    return "ieee" if precision == "tf32x3" and compiled and not nvidia else precision
