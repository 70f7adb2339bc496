"""What the kernels need beyond a twin's arguments. Kernels are imported on first use: Triton may be missing."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

KERNELS = ("encoder_block", "decoder_block")
"""Ops that have kernels, each in the module of its name."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What kernels compute in."""
BACKWARD_NEEDS_OUTPUTS = ("decoder_block",)
"""Ops whose ReLU is undone from what came out."""

_SORTED_ROWS = 2**18
"""Most rows that are worth sorting by width. Longer inputs are of shallow levels, where neighbours share a frame."""


def forward(name: str, values: dict[str, Any], precision: str) -> Any:
    """Run the kernels of an op on the arguments of its twin."""
    launch = getattr(importlib.import_module(f"slimse.kernels.{name}"), f"{name}_forward")
    return launch(**values, order=_order(name, values), precision=precision)


def backward(
    name: str, grads: list[Tensor], outputs: list[Tensor], values: dict[str, Any], precision: str, needs: list[bool]
) -> list[Any]:
    """Gradients at the tensors among ``values``, in their order; those that nothing ``needs`` may be None."""
    launch = getattr(importlib.import_module(f"slimse.kernels.{name}"), f"{name}_backward")
    values, options = dict(values), {"order": _order(name, values), "precision": precision}
    if name == "encoder_block":
        return list(launch(grads[0], **values, **options, input_grad=needs[0]))
    relu, _ = values.pop("relu"), values.pop("conv_bias")
    x, *weights, bias = launch(grads[0], **values, **options, out=outputs[0] if relu else None)
    return [x, *weights, None, bias]


def _order(name: str, values: dict[str, Any]) -> Any:
    """Rows by width, where rows of one tile may differ, or None."""
    width = values["width"]
    if not isinstance(width, Tensor) or width.numel() > _SORTED_ROWS:
        return None
    if name == "encoder_block":
        from slimse.kernels.launching import by_width

        return by_width(width)
    from slimse.kernels.decoder_block import decoder_order

    window, step = values["conv_weight"].shape[1], values["stride"] * values["channels"]
    return decoder_order(width, window // step)
