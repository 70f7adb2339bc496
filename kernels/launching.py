"""How every kernel is started."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from .rows import SPARE, Frames, FrameWidths, Prefix, by_width, frame_orders
from .tiles import BlockConfig, chip_of

# The ops look for all but the last three here.
__all__ = ["BlockConfig", "FrameWidths", "by_width", "frame_orders", "launch", "row_tiles", "width_arguments"]


def width_arguments(
    width: Prefix, order: Tensor | None, tile_rows: int, n_pos: int, *, gathers: bool = False
) -> dict[str, Any]:
    """What kernels take of a width, by name; ``order`` is that of its rows, if it is one per position.

    Args:
        width: of the rows.
        order: int32 of as many as there are rows, or None.
        tile_rows: rows of a tile, ``n_pos`` of an item.
        n_pos: positions of an item.
        gathers: whether a row also reads what lies before it.
    """
    given = width.frames
    if given is None:
        return {"width_ptr": width.rows, "counts_ptr": None, "order_ptr": order, "n_frames": 0, "FRAMES": None}
    frames = Frames(given.rate, given.lead, False)
    runs = given.choice.shape[1] + SPARE
    # A tile within one frame is of one width; and positions beyond the runs would not be computed.
    if given.orders is not None and given.rate < tile_rows and 0 <= frames.skipped <= runs * given.rate - n_pos:
        frames, order = frames._replace(ordered=True), given.orders[gathers]
    return {
        **{"width_ptr": given.choice, "counts_ptr": given.counts, "order_ptr": order if frames.ordered else None},
        **{"n_frames": given.choice.shape[1], "FRAMES": frames},
    }


def row_tiles(arguments: dict[str, Any], rows: int, n_pos: int, tile_rows: int) -> int:
    """Tiles of so many rows, with what `width_arguments` gave.

    Raises:
        ValueError: for more rows than kernels can number.
    """
    frames = arguments["FRAMES"]
    if frames is not None and frames.ordered:
        rows = rows // n_pos * (arguments["n_frames"] + SPARE) * frames.rate
    if rows + tile_rows > 2**31:
        raise ValueError(f"{rows} positions in one call: expected less than 2^31; split the batch")
    return triton.cdiv(rows, tile_rows)


def resident_programs(device: torch.device) -> int:
    """How many programs of any kernel are sure to be on a chip at once and may wait for each other; 0 for none.

    A kernel that can be launched at all has one program on every multiprocessor, and we count on no second one.
    """
    # In the interpreter one runs after the other.
    if device.type != "cuda" or torch.version.hip is not None:
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def gave_up_flag(device: torch.device) -> Tensor:
    """int32 ``[1]``, not zero since a program of the device waited for others in vain.

    It lies in memory of the host that the device writes to, so that a look at it waits for nothing.
    """
    with torch.inference_mode(False):
        return torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
    """Start ``kernel`` on the device of its tensors.

    Raises:
        ValueError: where that is the CPU and Triton does not interpret its kernels.
    """
    first = next(value for value in (*args, *constants.values()) if isinstance(value, Tensor))
    device, compiled = first.device, isinstance(kernel, triton.JITFunction)
    if compiled and device.type == "cpu":
        raise ValueError("the tensors are on the CPU: expected a GPU (or TRITON_INTERPRET=1 before the first import)")
    if "PRECISION" in constants:
        nvidia = compiled and chip_of(device).kind != "amd"
        constants["PRECISION"] = product_precision(constants["PRECISION"], nvidia, compiled)
    with torch.cuda.device_of(first):
        # Fused multiply-add is asked for by name: its default differs between versions of Triton.
        kernel[grid](*args, **constants, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)


def product_precision(precision: str, nvidia: bool, compiled: bool) -> str:
    """What `prefix_gemm.product` is told: how the factors of float32 products are rounded, if they are.

    AMD's matrix instructions compute in float32, so that three products in TF32 would gain nothing.
    """
    if precision == "tf32":
        return "tf32" if nvidia else "tf32 by bits"
    return "ieee" if precision == "tf32x3" and compiled and not nvidia else precision
