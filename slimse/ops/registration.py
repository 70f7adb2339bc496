"""Twins and kernels as one op: registered with PyTorch, differentiable, and called through one function.

`register` makes of a twin ``torch.ops.slimse.<name>`` with its backward pass, opaque to compilers and exporters, and
the function that layers call. The registered op is used where a kernel runs, and under `torch.compile` and
`torch.export`; elsewhere the function runs the twin directly, so that autograd keeps what the twin computed on the way.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..width import SoftWidth
from . import launchers

R = TypeVar("R")

BACKENDS = ("auto", "torch", "triton")
"""``"auto"``: kernels on a GPU where they can run, the twins elsewhere. The others run or raise."""
PRECISIONS = ("ieee", "tf32", "tf32x3")
"""How kernels compute float32 products; the twins follow `torch.set_float32_matmul_precision`."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_SCHEMA = {
    "Tensor": "Tensor {0}",
    "Tensor | None": "Tensor? {0}",
    # A number, and the integer tensor that stands in for it, or None.
    "Width": "SymInt {0}, Tensor? {0}_rows",
    "tuple[Tensor, Tensor]": "Tensor {0}_0, Tensor {0}_1",
    "int": "SymInt {0}",
    "bool": "bool {0}",
    "str": "str {0}",
}


def check_backend(backend: str, precision: str) -> None:
    """Check a choice of backend before there is anything to run it on.

    Raises:
        ValueError: for an unknown backend or precision, or ``"triton"`` where Triton is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: expected one of {BACKENDS}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: expected one of {PRECISIONS}")
    if backend == "triton" and not _HAS_TRITON:
        raise ValueError("backend = 'triton': Triton is not installed; expected 'auto' or 'torch'")


def _choose(backend: str, precision: str, x: Tensor, soft: bool) -> str:
    """The backend that runs a call: ``"torch"`` or ``"triton"``."""
    check_backend(backend, precision)
    if backend == "torch" or (backend == "auto" and not (x.is_cuda and _HAS_TRITON)):
        return "torch"
    if x.dtype in launchers.DTYPES and not soft:
        return "triton"
    if backend == "triton":
        found = "a soft width" if soft else f"{x.dtype}"
        raise ValueError(f"backend = 'triton' with {found}: expected no soft width, and one of {launchers.DTYPES}")
    return "torch"


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor that autocast would cast in ``dtype``, anything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in launchers.DTYPES else value


def register(
    *, shapes: Callable[..., list[Any]], autocast: bool = True, added: str = ""
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Register a twin as an op and return the function that layers call: the twin's arguments and two more.

    Args:
        shapes: gives those of the outputs, from the twin's arguments; or a tensor that one is like.
        autocast: whether the op runs in autocast's dtype. Recurrent ones keep that of their weights: what rounding does
            to a state adds up over thousands of steps.
        added: a tensor argument that is only ever added to the first one, so that they share a gradient.
    """

    def decorate(twin: Callable[..., R]) -> Callable[..., R]:
        op = _Op(twin, shapes, added)
        name, names = twin.__name__, [*op.kinds]

        @functools.wraps(twin)
        def call(*args: Any, backend: str = "auto", precision: str = "ieee", **kwargs: Any) -> R:
            x = args[0] if args else kwargs[names[0]]
            device = x.device.type
            ambient = torch.is_autocast_enabled(device)
            if device == "cpu" and backend != "triton" and not ambient and not torch.compiler.is_compiling():
                # The short way: a frame of a stream calls a dozen ops, and each microsecond counts.
                check_backend(backend, precision)
                return twin(*args, **kwargs)
            values = {**op.defaults, **dict(zip(names, args, strict=False)), **kwargs}
            if len(args) > len(names) or values.keys() != op.kinds.keys():
                raise TypeError(f"{name} takes {names}, got {len(args)} positional arguments and {sorted(kwargs)}")
            soft = any(isinstance(value, SoftWidth) for value in values.values())
            chosen = _choose(backend, precision, x, soft)
            direct = soft or (chosen == "torch" and not torch.compiler.is_compiling())
            if ambient and not (direct and autocast):
                dtype = torch.get_autocast_dtype(device) if autocast else op.weight(values).dtype
                values = {key: pytree.tree_map(functools.partial(_cast, dtype=dtype), values[key]) for key in names}
                with torch.autocast(device, enabled=False):
                    return twin(**values) if direct else op(values, chosen, precision)
            return twin(**values) if direct else op(values, chosen, precision)

        extra = {"backend": "auto", "precision": "ieee"}
        kind = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter(key, kind, default=value, annotation="str") for key, value in extra.items()]
        call.__signature__ = op.signature.replace(  # type: ignore[attr-defined]
            parameters=[*op.signature.parameters.values(), *own]
        )
        return call

    return decorate


def _define(name: str, run: Callable[..., Any], schema: str) -> Any:
    return torch.library.custom_op(f"slimse::{name}", run, mutates_args=(), schema=schema)  # type: ignore[call-overload]


def _owned(results: Sequence[Tensor], inputs: Sequence[Any]) -> list[Tensor]:
    """Results as a registered op must give them: contiguous, and none sharing memory with an input or another."""
    taken = {value.untyped_storage().data_ptr() for value in inputs if isinstance(value, Tensor)}
    owned = []
    for result in results:
        result = result.contiguous()
        result = result.clone() if result.untyped_storage().data_ptr() in taken else result
        taken.add(result.untyped_storage().data_ptr())
        owned.append(result)
    return owned


class _Op:
    """``torch.ops.slimse.<name>`` and ``<name>_backward``, defined from a twin and its kernels."""

    def __init__(self, twin: Callable[..., Any], shapes: Callable[..., list[Any]], added: str) -> None:
        self.twin, self.shapes, self.name = twin, shapes, twin.__name__
        self.signature = inspect.signature(twin)
        parameters = self.signature.parameters
        self.kinds = {name: str(parameter.annotation) for name, parameter in parameters.items()}
        self.defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        schema = ", ".join(_SCHEMA[kind].format(name) for name, kind in self.kinds.items())
        arguments = [argument.split() for argument in schema.split(", ")]
        self.tensors = [
            index
            for index, (kind, name) in enumerate(arguments)
            if kind.startswith("Tensor") and not name.endswith("_rows")
        ]
        """Positions of the differentiable arguments."""
        self.added = next((n for n, index in enumerate(self.tensors) if arguments[index][1] == added), None)
        outputs = {"Tensor": "Tensor", "tuple[Tensor, Tensor]": "(Tensor, Tensor)"}
        returns = outputs.get(str(self.signature.return_annotation), "(Tensor, Tensor, Tensor)")
        choice = "str backend, str precision"

        self.op = _define(self.name, self.run, f"({schema}, {choice}) -> {returns}")
        self.op.register_fake(self.fake)
        self.op.register_autograd(self.backward, setup_context=self.setup_context)
        gradients = f"(Tensor[] grads, Tensor[] outputs, bool[] needs, {schema}, {choice}) -> Tensor[]"
        self.backward_op = _define(f"{self.name}_backward", self.run_backward, gradients)
        self.backward_op.register_fake(self.fake_backward)

    def weight(self, values: dict[str, Any]) -> Tensor:
        """The first weight among the twin's arguments."""
        return next(value for name, value in values.items() if "weight" in name)

    def __call__(self, values: dict[str, Any], backend: str, precision: str) -> Any:
        """Call the registered op with the twin's arguments; give what the twin gives."""
        flat: list[Any] = []
        for name, kind in self.kinds.items():
            value = values[name]
            if kind == "Width":
                flat += [0, value] if isinstance(value, Tensor) else [value, None]
            elif kind.startswith("tuple"):
                flat += value
            else:
                flat.append(value)
        out = self.op(*flat, backend, precision)
        # Only an LSTM has three outputs, of which two are its state.
        return (out[0], out[1:]) if isinstance(out, tuple) and len(out) == 3 else out

    def unflatten(self, flat: Sequence[Any]) -> dict[str, Any]:
        """Arguments of the twin from those of the registered op."""
        values, rest = {}, iter(flat)
        for name, kind in self.kinds.items():
            value = next(rest)
            if kind == "Width":
                rows = next(rest)
                value = value if rows is None else rows
            elif kind.startswith("tuple"):
                value = (value, next(rest))
            values[name] = value
        return values

    def run(self, *flat: Any) -> Any:
        """The forward pass."""
        *arguments, backend, precision = flat
        if backend not in ("torch", "triton"):
            raise ValueError(f"backend = {backend!r}: expected 'torch' or 'triton'; slimse.ops.{self.name} has 'auto'")
        values = self.unflatten(arguments)
        with torch.autocast(flat[0].device.type, enabled=False):
            out = self.twin(**values) if backend == "torch" else launchers.forward(self.name, values, precision)
        leaves = _owned(pytree.tree_leaves(out), flat)
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    def fake(self, *flat: Any) -> Any:
        """Empty outputs, for tracing."""
        shapes = self.shapes(**self.unflatten(flat[:-2]))
        outputs = [
            torch.empty_like(shape, memory_format=torch.contiguous_format)
            if isinstance(shape, Tensor)
            else flat[0].new_empty(shape)
            for shape in shapes
        ]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save what the backward pass needs."""
        outputs = [output] if isinstance(output, Tensor) else list(output)
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        reads = inputs[-2] == "triton" and launchers.backward_reads_outputs(self.name, self.unflatten(inputs[:-2]))
        kept = outputs if reads else []
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs), *kept)

    def backward(self, ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Gradients at the registered op's arguments."""
        count = len(ctx.others)
        inputs, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        flat = [other if tensor is None else tensor for tensor, other in zip(inputs, ctx.others, strict=True)]
        needs = [bool(ctx.needs_input_grad[index]) for index in self.tensors]
        computed = list(needs)
        if self.added is not None and needs[self.added]:
            computed[0], computed[self.added] = True, False
        found = iter(self.backward_op([*grads], [*outputs], computed, *flat))
        results = [next(found) if compute else None for compute in computed]
        if self.added is not None and needs[self.added]:
            results[self.added] = results[0]
        every: list[Any] = [None] * count
        for index, need, result in zip(self.tensors, needs, results, strict=True):
            every[index] = result if need else None
        return tuple(every)

    def run_backward(self, grads: list[Tensor], outputs: list[Tensor], needs: list[bool], *flat: Any) -> list[Tensor]:
        """Gradients at the differentiable arguments that need one: by kernels, or through the twin run again."""
        *arguments, backend, precision = flat
        wanted = [index for index, need in zip(self.tensors, needs, strict=True) if need]
        with torch.autocast(flat[0].device.type, enabled=False):
            if backend == "triton":
                values = self.unflatten(arguments)
                every = launchers.backward(self.name, grads, outputs, values, precision, needs)
                results = [every[self.tensors.index(index)] for index in wanted]
            else:
                results = self.pull(grads, wanted, arguments)
        return _owned(results, (*grads, *outputs, *flat))

    def pull(self, grads: list[Tensor], wanted: list[int], arguments: list[Any]) -> list[Tensor]:
        """Gradients of the twin at the arguments numbered ``wanted``."""

        def forward(*leaves: Tensor) -> list[Tensor]:
            given = list(arguments)
            for index, leaf in zip(wanted, leaves, strict=True):
                given[index] = leaf
            return pytree.tree_leaves(self.twin(**self.unflatten(given)))

        # Autograd is off inside of an op; this brings its own.
        pull = torch.func.vjp(forward, *(arguments[index] for index in wanted))[1]
        return list(pull(grads))

    def fake_backward(self, grads: list[Tensor], outputs: list[Tensor], needs: list[bool], *flat: Any) -> list[Tensor]:
        """Empty gradients, for tracing."""
        wanted = [index for index, need in zip(self.tensors, needs, strict=True) if need]
        return [torch.empty_like(flat[index], memory_format=torch.contiguous_format) for index in wanted]
