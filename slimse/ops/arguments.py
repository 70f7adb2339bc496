"""The arguments of a reference, and the same as PyTorch takes them for a registered op: tensors, numbers, strings.

The annotations of the reference say how. A width becomes up to seven arguments, a tuple of tensors one for each.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..kernels.rows import FrameWidths

_OF_WIDTHS = ("_rows", "_counts", "_own", "_both")
"""Ends of the names of tensors that are parts of a width."""
_SCHEMA = {
    "Tensor": "Tensor {0}",
    "Tensor | None": "Tensor? {0}",
    # A number, and the integer tensor that stands in for it, or None.
    "Width": "SymInt {0}, Tensor? {0}_rows",
    # The same, or the parts of a width by frames, its choice in the place of rows.
    "LevelWidth": "SymInt {0}, Tensor? {0}_rows, Tensor? {0}_counts, Tensor? {0}_own, Tensor? {0}_both, "
    "SymInt {0}_rate, SymInt {0}_lead",
    "tuple[Tensor, Tensor]": "Tensor {0}_0, Tensor {0}_1",
    "int": "SymInt {0}",
    "bool": "bool {0}",
    "str": "str {0}",
}


def width_parts(width: Any) -> list[Any]:
    """A width as the arguments of a registered op."""
    if isinstance(width, FrameWidths):
        return [0, width.choice, width.counts, *(width.orders or (None, None)), width.rate, width.lead]
    return [*([0, width] if isinstance(width, Tensor) else [width, None]), None, None, None, 1, 0]


def _width_of(
    number: int, rows: Tensor | None, counts: Tensor | None, own: Tensor | None, both: Tensor | None, *place: int
) -> Any:
    """The inverse of `width_parts`."""
    if counts is not None:
        return FrameWidths(rows, counts, *place, None if own is None else (own, both))
    return number if rows is None else rows


class Arguments:
    """Translates between the arguments of a reference, by name, and those of its registered op, by position."""

    def __init__(self, reference: Callable[..., Any]) -> None:
        self.signature = inspect.signature(reference)
        parameters = self.signature.parameters
        self.kinds = {name: str(parameter.annotation) for name, parameter in parameters.items()}
        """The annotation of each argument, in order."""
        self.defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    @functools.cached_property
    def schema(self) -> str:
        """The registered op's arguments, in PyTorch's schema language."""
        return ", ".join(_SCHEMA[kind].format(name) for name, kind in self.kinds.items())

    @functools.cached_property
    def tensors(self) -> dict[str, int]:
        """Positions of the differentiable arguments by name, in order."""
        arguments = enumerate(argument.split() for argument in self.schema.split(", "))
        return {
            name: index
            for index, (kind, name) in arguments
            if kind.startswith("Tensor") and not name.endswith(_OF_WIDTHS)
        }

    def flatten(self, values: dict[str, Any]) -> list[Any]:
        """Arguments of the registered op from those of the reference."""
        flat: list[Any] = []
        for name, kind in self.kinds.items():
            value = values[name]
            if kind in ("Width", "LevelWidth"):
                flat += width_parts(value)[: 2 if kind == "Width" else None]
            elif kind.startswith("tuple"):
                flat += value
            else:
                flat.append(value)
        return flat

    def unflatten(self, flat: Sequence[Any]) -> dict[str, Any]:
        """Arguments of the reference from those of the registered op."""
        values, rest = {}, iter(flat)
        for name, kind in self.kinds.items():
            value = next(rest)
            if kind == "Width":
                rows = next(rest)
                value = value if rows is None else rows
            elif kind == "LevelWidth":
                value = _width_of(value, *(next(rest) for _ in range(6)))
            elif kind.startswith("tuple"):
                value = (value, next(rest))
            values[name] = value
        return values
