"""References and kernels as one op: registered with PyTorch, differentiable, and called through one function.

`register` makes of an `OpSpec` ``torch.ops.slimse.<name>`` with its backward pass, opaque to compilers and exporters,
and the function that layers call. The registered op is used where kernels run with a gradient, and under
`torch.compile` and `torch.export`; elsewhere the function runs the reference directly, so that autograd keeps what it
computed on the way, or launches the kernels itself.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..kernels.rows import FrameWidths
from ..width import SoftWidth
from . import launchers, verdicts
from .arguments import Arguments
from .registry import OpSpec

BACKENDS = ("auto", "reference", "triton")
"""``"auto"``: kernels on a GPU where they can run and are as the reference, the references elsewhere. The others run or
raise."""
PRECISIONS = ("ieee", "tf32", "tf32x3")
"""How kernels compute float32 products; the references follow `torch.set_float32_matmul_precision`."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_PLAIN = (Tensor, torch.nn.Parameter)
_MOST_KEYS = 4096
"""Calls of an op, by shapes, whose verdict's key is kept."""
_REGISTERED: list[_Op] = []


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
        raise ValueError("backend = 'triton': Triton is not installed; expected 'auto' or 'reference'")


def _on_gpu(x: Tensor) -> bool:
    """Whether kernels may run on a tensor where nothing was said of the backend."""
    return x.is_cuda and _HAS_TRITON


def _choose(backend: str, precision: str, x: Tensor, soft: bool) -> str:
    """``"reference"``, ``"triton"``, or ``"auto"`` where kernels may run if they are as the reference."""
    check_backend(backend, precision)
    if backend == "reference" or (backend == "auto" and not _on_gpu(x)):
        return "reference"
    if x.dtype in launchers.DTYPES and not soft:
        return backend
    if backend == "triton":
        found = "a soft width" if soft else f"{x.dtype}"
        raise ValueError(f"backend = 'triton' with {found}: expected no soft width, and one of {launchers.DTYPES}")
    return "reference"


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor that autocast would cast in ``dtype``, anything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in launchers.DTYPES else value


def _untraced(flat: Sequence[Any]) -> bool:
    """Whether a call has neither a gradient to keep nor somebody who looks on: then it needs no registered op."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active():
        return False
    keeps = torch.is_grad_enabled()
    tensors = (value for value in flat if isinstance(value, Tensor))
    return not any(type(value) not in _PLAIN or (keeps and value.requires_grad) for value in tensors)


def register(spec: OpSpec) -> Callable[..., Any]:
    """Register an op and return the function that layers call: the reference's arguments and two more."""
    op = _Op(spec)
    arguments = op.arguments
    name, names = spec.name, [*arguments.kinds]
    if spec.registered:
        _REGISTERED.append(op)

    @functools.wraps(spec.reference)
    def call(*args: Any, backend: str = "auto", precision: str = "ieee", **kwargs: Any) -> Any:
        x = args[0] if args else kwargs[names[0]]
        device = x.device.type
        ambient = torch.is_autocast_enabled(device)
        if device == "cpu" and backend != "triton" and not ambient and not torch.compiler.is_compiling():
            # The short way: a frame of a stream calls a dozen ops, and each microsecond counts.
            check_backend(backend, precision)
            if backend == "reference" or not _on_gpu(x):
                return spec.reference(*args, **kwargs)
        given = {**arguments.defaults, **dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or given.keys() != arguments.kinds.keys():
            raise TypeError(f"{name} takes {names}, got {len(args)} positional arguments and {sorted(kwargs)}")
        values = {key: given[key] for key in names}
        soft = any(isinstance(value, SoftWidth) for value in values.values())
        chosen = _choose(backend, precision, x, soft)
        direct = soft or (chosen == "reference" and not (torch.compiler.is_compiling() and spec.registered))
        if not spec.registered:
            return spec.reference(**values) if direct else op(values, chosen, precision)
        if ambient and not (direct and spec.autocast):
            dtype = torch.get_autocast_dtype(device) if spec.autocast else op.weight(values).dtype
            values = {key: pytree.tree_map(functools.partial(_cast, dtype=dtype), values[key]) for key in names}
            with torch.autocast(device, enabled=False):
                return spec.reference(**values) if direct else op(values, chosen, precision)
        return spec.reference(**values) if direct else op(values, chosen, precision)

    extra = {"backend": "auto", "precision": "ieee"}
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(key, kind, default=value, annotation="str") for key, value in extra.items()]
    call.__signature__ = arguments.signature.replace(  # type: ignore[attr-defined]
        parameters=[*arguments.signature.parameters.values(), *own]
    )
    return call


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The references by registered op, for `torch.export.ExportedProgram.run_decompositions`."""
    return {getattr(torch.ops.slimse, op.spec.name).default: op.reference for op in _REGISTERED}


def _shape_of(value: Any) -> Any:
    """What an argument adds to the key of a call."""
    if isinstance(value, FrameWidths):
        return (*value.choice.shape, value.rate, value.lead, value.orders is None)
    # A state's tensors have the shape that the weights say.
    return value.shape if isinstance(value, Tensor) else 0 if isinstance(value, tuple) else value


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
    """``torch.ops.slimse.<name>`` and ``<name>_backward``, defined from a reference and its kernels."""

    def __init__(self, spec: OpSpec) -> None:
        self.spec, self.name = spec, spec.name
        self.keys: dict[tuple[Any, ...], tuple[torch.device, str]] = {}
        self.arguments = Arguments(spec.reference)
        self.flatten, self.unflatten = self.arguments.flatten, self.arguments.unflatten
        if spec.registered:
            self.define()

    def define(self) -> None:
        """Register with PyTorch."""
        spec = self.spec
        schema, tensors = self.arguments.schema, self.arguments.tensors
        self.tensors = [*tensors.values()]
        """Positions of the differentiable arguments."""
        self.added = [*tensors].index(spec.added) if spec.added in tensors else None
        outputs = {"Tensor": "Tensor", "tuple[Tensor, Tensor]": "(Tensor, Tensor)"}
        returns = outputs.get(str(self.arguments.signature.return_annotation), "(Tensor, Tensor, Tensor)")
        choice = "str backend, str precision"

        self.op = _define(self.name, self.run, f"({schema}, {choice}) -> {returns}")
        self.op.register_fake(self.fake)
        self.op.register_autograd(self.backward, setup_context=self.setup_context)
        gradients = f"(Tensor[] grads, Tensor[] outputs, bool[] needs, {schema}, {choice}) -> Tensor[]"
        self.backward_op = _define(f"{self.name}_backward", self.run_backward, gradients)
        self.backward_op.register_fake(self.fake_backward)

    def weight(self, values: dict[str, Any]) -> Tensor:
        """The first weight among the reference's arguments."""
        return next(value for name, value in values.items() if "weight" in name)

    def __call__(self, values: dict[str, Any], backend: str, precision: str) -> Any:
        """Run the op with the reference's arguments; give what the reference gives."""
        flat = self.flatten(values)
        if _untraced(flat):
            return self.compute(values, backend, precision)
        if not self.spec.registered:
            return self.spec.reference(**values)
        out = self.op(*flat, backend, precision)
        # Only an LSTM has three outputs, of which two are its state.
        return (out[0], out[1:]) if isinstance(out, tuple) and len(out) == 3 else out

    def run(self, *flat: Any) -> Any:
        """The forward pass."""
        *arguments, backend, precision = flat
        if backend not in BACKENDS:
            raise ValueError(f"backend = {backend!r}: expected one of {BACKENDS}")
        with torch.autocast(flat[0].device.type, enabled=False):
            out = self.compute(self.unflatten(arguments), backend, precision)
        leaves = _owned(pytree.tree_leaves(out), flat)
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    def reference(self, *flat: Any) -> Any:
        """The forward pass in plain torch, with the arguments of the registered op."""
        leaves = pytree.tree_leaves(self.spec.reference(**self.unflatten(flat[:-2])))
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    def compute(self, values: dict[str, Any], backend: str, precision: str) -> Any:
        """The forward pass on a backend; ``"auto"`` is the kernel if it is as the reference."""
        reference = self.spec.reference
        if backend == "reference":
            return reference(**values)
        if backend == "triton":
            return launchers.forward(self.spec, values, precision)
        device, key = self.kernel_of("forward", values, precision)
        if not verdicts.allows(self.spec, key, device, lambda: self.check_forward(values, precision)):
            return reference(**values)
        try:
            return launchers.forward(self.spec, values, precision)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Of arguments that are wrong the reference complains itself.
            out = reference(**values)
            verdicts.failed(self.spec, key, device, error)
            return out

    def kernel_of(
        self, direction: str, values: dict[str, Any], precision: str, needs: Sequence[bool] = ()
    ) -> tuple[torch.device, str]:
        """Where a call runs, and the key of its kernels' verdict."""
        x = next(iter(values.values()))
        parts = (_shape_of(value) for value in values.values())
        call = (direction, x.dtype, x.device, precision, *needs, *parts)
        found = self.keys.get(call)
        if found is None:
            if len(self.keys) > _MOST_KEYS:
                self.keys.clear()
            found = self.keys[call] = (x.device, verdicts.key_of(self.spec, direction, values, precision, needs))
        return found

    def check_forward(self, values: dict[str, Any], precision: str) -> str:
        """What is wrong with the kernels of a call, on a small input; or nothing."""
        given = verdicts.sample(self.spec, values)
        exact = pytree.tree_leaves(self.spec.reference(**verdicts.to_double(given)))
        try:
            with verdicts.poisoned():
                ours = pytree.tree_leaves(launchers.forward(self.spec, given, precision))
            limit = verdicts.LIMITS[verdicts.number_format(ours[0].dtype, precision)]
            return verdicts.complaint(ours, exact, limit)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return verdicts.describe(error)

    def check_backward(self, values: dict[str, Any], precision: str, needs: list[bool]) -> str:
        """As `check_forward`, of the gradients."""
        given = verdicts.sample(self.spec, values, decided=True)
        flat, dtype = self.flatten(given), next(iter(given.values())).dtype
        outputs = [out.to(dtype) for out in pytree.tree_leaves(self.spec.reference(**verdicts.to_double(given)))]
        generator = torch.Generator(outputs[0].device).manual_seed(1)
        grads = [
            torch.randn(out.shape, generator=generator, device=out.device).to(dtype) for out in outputs
        ]  # fmt: skip
        wanted = [index for index, need in zip(self.tensors, needs, strict=True) if need]
        exact = self.pull(verdicts.to_double(grads), wanted, verdicts.to_double(flat))
        try:
            with verdicts.poisoned():
                every = launchers.backward(self.spec, grads, outputs, given, precision, needs)
            ours = [every[self.tensors.index(index)] for index in wanted]
            return verdicts.complaint(ours, exact, verdicts.LIMITS[verdicts.number_format(dtype, precision)])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return verdicts.describe(error)

    def fake(self, *flat: Any) -> Any:
        """Empty outputs, for tracing."""
        shapes = self.spec.shapes(**self.unflatten(flat[:-2]))
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
        reads = inputs[-2] != "reference" and self.spec.reads_outputs(self.unflatten(inputs[:-2]))
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
        """Gradients at the differentiable arguments that need one: by kernels, or through the reference run again."""
        *arguments, backend, precision = flat
        wanted = [index for index, need in zip(self.tensors, needs, strict=True) if need]
        with torch.autocast(flat[0].device.type, enabled=False):
            results = self.gradients(grads, outputs, needs, wanted, arguments, backend, precision)
        return _owned(results, (*grads, *outputs, *flat))

    def gradients(
        self,
        grads: list[Tensor],
        outputs: list[Tensor],
        needs: list[bool],
        wanted: list[int],
        arguments: list[Any],
        backend: str,
        precision: str,
    ) -> list[Tensor]:
        """Gradients at the arguments numbered ``wanted`` on a backend, as in `compute`."""

        def launch() -> list[Tensor]:
            every = launchers.backward(self.spec, grads, outputs, values, precision, needs)
            return [every[self.tensors.index(index)] for index in wanted]

        if backend == "reference":
            return self.pull(grads, wanted, arguments)
        values = self.unflatten(arguments)
        if backend == "triton":
            return launch()
        device, key = self.kernel_of("backward", values, precision, needs)
        if not verdicts.allows(self.spec, key, device, lambda: self.check_backward(values, precision, needs)):
            return self.pull(grads, wanted, arguments)
        try:
            return launch()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            results = self.pull(grads, wanted, arguments)
            verdicts.failed(self.spec, key, device, error)
            return results

    def pull(self, grads: list[Tensor], wanted: list[int], arguments: list[Any]) -> list[Tensor]:
        """Gradients of the reference at the arguments numbered ``wanted``."""

        def forward(*leaves: Tensor) -> list[Tensor]:
            given = list(arguments)
            for index, leaf in zip(wanted, leaves, strict=True):
                given[index] = leaf
            return pytree.tree_leaves(self.spec.reference(**self.unflatten(given)))

        # Autograd is off inside of an op; this brings its own.
        pull = torch.func.vjp(forward, *(arguments[index] for index in wanted))[1]
        return list(pull(grads))

    def fake_backward(self, grads: list[Tensor], outputs: list[Tensor], needs: list[bool], *flat: Any) -> list[Tensor]:
        """Empty gradients, for tracing."""
        wanted = [index for index, need in zip(self.tensors, needs, strict=True) if need]
        return [torch.empty_like(flat[index], memory_format=torch.contiguous_format) for index in wanted]
