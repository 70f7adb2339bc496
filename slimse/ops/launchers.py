"""What the kernels need beyond a twin's arguments. Kernels are imported on first use: Triton may be missing."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import tuning

KERNELS = (
    *("encoder_block", "decoder_block", "slim_conv1d", "slim_conv_transpose1d", "slim_linear_glu"),
    *("diagonal_gru", "slim_gru", "slim_lstm"),
)
"""Ops that have kernels, each in the module of its name."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What kernels compute in."""

_RECURRENT = ("diagonal_gru", "slim_gru", "slim_lstm")
_BACKWARD = {"slim_gru": "slim_gru_backward", "slim_lstm": "slim_lstm_backward"}
"""Modules of backward passes that are not in that of the op."""
_ORDERED_BY = {
    **{"encoder_block": "width", "decoder_block": "width", "slim_linear_glu": "width"},
    **{"slim_conv1d": "width_out"},
}
"""The width by which an op's rows may be ordered."""
_SORTED_ROWS = 2**18
"""Most rows that are worth sorting by width. Longer inputs are of shallow levels, where neighbours share a frame."""


def forward(name: str, values: dict[str, Any], precision: str) -> Any:
    """Run the kernels of an op on the arguments of its twin."""
    options = _options(name, values, precision)
    tuned = tuning.lookup(name, values, precision)
    if tuned is not None:
        options["config"] = importlib.import_module("slimse.kernels.launching").BlockConfig(**tuned)
    return _launcher(name, "forward")(**values, **options)


def backward_reads_outputs(name: str, values: dict[str, Any]) -> bool:
    """Whether the backward pass wants what came out: past states, or where a ReLU let something through."""
    return name in _RECURRENT or bool(values.get("relu"))


def backward(
    name: str, grads: list[Tensor], outputs: list[Tensor], values: dict[str, Any], precision: str, needs: list[bool]
) -> list[Any]:
    """Gradients at the tensors among ``values``, in their order; those that nothing ``needs`` may be None."""
    launch, options, values = _launcher(name, "backward"), _options(name, values, precision), dict(values)
    if name in _RECURRENT:
        last = grads[1] if len(grads) == 2 else tuple(grads[1:])
        return pytree.tree_leaves(launch(grads[0], last, outputs[0], **values, **options))
    if values.get("relu"):
        options["out"] = outputs[0]
    if name in ("encoder_block", "slim_conv1d"):
        options["input_grad"] = needs[0]
    if name.startswith("slim_conv"):
        options.pop("order", None)
    if name == "decoder_block":
        del values["relu"], values["conv_bias"]
        x, *weights, bias = launch(grads[0], **values, **options)
        return [x, *weights, None, bias]
    results = list(launch(grads[0], **values, **options))
    return [*results, None] if name == "slim_linear_glu" else results


def _launcher(name: str, direction: str) -> Any:
    module = _BACKWARD.get(name, name) if direction == "backward" else name
    return getattr(importlib.import_module(f"slimse.kernels.{module}"), f"{name}_{direction}")


def _options(name: str, values: dict[str, Any], precision: str) -> dict[str, Any]:
    """Arguments that a launcher has and the twin has not."""
    if name == "diagonal_gru":
        return {}
    options: dict[str, Any] = {"precision": precision}
    width = values[_ORDERED_BY[name]] if name in _ORDERED_BY else None
    if isinstance(width, Tensor) and width.numel() <= _SORTED_ROWS:
        # Where rows of one tile differ in width, all take the time of the widest: bring like widths together.
        if name == "decoder_block":
            reach = values["conv_weight"].shape[1] // (values["stride"] * values["channels"])
            options["order"] = importlib.import_module("slimse.kernels.decoder_block").decoder_order(width, reach)
        else:
            options["order"] = importlib.import_module("slimse.kernels.launching").by_width(width)
    return options
