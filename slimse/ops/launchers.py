"""Calls of the kernels' launchers with a reference's arguments, as an op's `OpSpec` says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import tuning
from .registry import SPECS, OpSpec, Values, kernels

KERNELS = tuple(name for name, spec in SPECS.items() if spec.registered)
"""Registered ops: their results and gradients have kernels."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What kernels compute in."""


def forward(spec: OpSpec, values: Values, precision: str) -> Any:
    """Run the kernels of an op on the arguments of its reference."""
    options = _options(spec, values, precision)
    tuned = tuning.lookup(spec, values, precision)
    if tuned is not None:
        options["config"] = kernels("launching").BlockConfig(**tuned)
    return spec.launcher("forward")(**values, **options)


def backward(
    spec: OpSpec, grads: list[Tensor], outputs: list[Tensor], values: Values, precision: str, needs: list[bool]
) -> list[Any]:
    """Gradients at the tensors among ``values``, in their order; those that nothing ``needs`` may be None."""
    options = _options(spec, values, precision, backward=True)
    given = {name: value for name, value in values.items() if name not in spec.backward_drops}
    launch = spec.launcher("backward")
    options |= _skipped(spec, values, needs)
    if spec.recurrent:
        last = grads[1] if len(grads) == 2 else tuple(grads[1:])
        return pytree.tree_leaves(launch(grads[0], last, outputs[0], **given, **options))
    if values.get("relu"):
        options["out"] = outputs[0]
    results = launch(grads[0], **given, **options)
    if not spec.gradients:
        return list(results)
    found = dict(zip(spec.gradients, results, strict=True))
    # Arguments that are tensors, or None in the place of one.
    names = [name for name in values if name in found or name == spec.added]
    return [found.get(name) for name in names]


def _skipped(spec: OpSpec, values: Values, needs: list[bool]) -> dict[str, bool]:
    """Which of what a backward launcher can leave out is wanted: nothing is computed for frozen parts."""
    names: list[str] = []
    for name, value in values.items():
        if name not in spec.bounds and (value is None or isinstance(value, Tensor | tuple)):
            names += [name] * (len(value) if isinstance(value, tuple) else 1)
    weights = any(need for name, need in zip(names, needs, strict=True) if "weight" in name or "bias" in name)
    wanted = {"input_grad": needs[0], "weight_grads": weights}
    return {name: wanted[name] for name in spec.skips}


def _options(spec: OpSpec, values: Values, precision: str, *, backward: bool = False) -> dict[str, Any]:
    """Arguments that a launcher has and the reference has not."""
    # The diagonal GRU has no products.
    options: dict[str, Any] = {"precision": precision} if spec.bounds else {}
    if spec.order is not None and (spec.backward_order or not backward):
        order = spec.order(values)
        if order is not None:
            options["order"] = order
    return options
