"""The UF at which slimmed networks run: how layers and bare parameters get to know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..nn import Axis
from ..width import UF, channels, check_uf

_uf: ContextVar[UF] = ContextVar("uf", default=1.0)

Cuts = dict[str, tuple[int, Axis]]
"""Axis of a parameter, and what a UF cuts of it, by the parameter's name."""


@contextmanager
def at(uf: UF) -> Iterator[None]:
    """Run the slimmed networks that are called in this context at ``uf``.

    It holds for this thread (and asynchronous task) alone, and ends with the block. Layers that an activation
    checkpoint runs again in the backward pass run after the block, at full width: put the checkpoint around it.

    Args:
        uf: a number in (0, 1], or one per batch item, ``[B]``.

    Raises:
        ValueError: for another number or shape.

    >>> network = slimmify(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(3, 8))
    >>> with at(0.25):
    ...     network(torch.randn(3, 8)).shape
    torch.Size([3, 8])
    """
    check_uf(uf)
    token = _uf.set(uf)
    try:
        yield
    finally:
        _uf.reset(token)


def give_uf(layer: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make the context's UF an argument of the call of a slimmable layer, unless it has one."""
    uf = kwargs.get("uf", _uf.get())
    if isinstance(uf, Tensor) and layer.refusal:
        raise ValueError(f"uf has shape {tuple(uf.shape)}: expected a number, as {layer.refusal}")
    return args, {**kwargs, "uf": uf}


class Appearance(NamedTuple):
    """What the code of a module sees at a UF, in place of what the module has."""

    cuts: Cuts
    counts: dict[str, int]
    """Attributes that count blocks of channels, such as heads, by name."""


class _Sliced(nn.Module):
    """Mixed into the class of a module, shows its code the active part of some parameters and counts."""

    plain: ClassVar[type[nn.Module]]
    appearance: ClassVar[Appearance]


def _rebuild(kind: type[nn.Module], appearance: Appearance) -> nn.Module:
    sliced = _sliced_class(kind, appearance)
    return sliced.__new__(sliced)


def _sliced_class(kind: type[nn.Module], appearance: Appearance) -> type[nn.Module]:
    """A class like ``kind`` with a property in place of each of these parameters and counts."""

    def parameter(name: str, axis: int, cut: Axis) -> property:
        def get(module: nn.Module) -> Any:
            value, uf = module._parameters[name], _uf.get()
            return value if value is None or isinstance(uf, Tensor) else cut.narrow(value, axis, uf)

        return property(get)

    def count(name: str) -> property:
        def get(module: nn.Module) -> Any:
            value, uf = module.__dict__[name], _uf.get()
            return value if isinstance(uf, Tensor) else channels(uf, value)

        return property(get)

    def reduce(module: nn.Module, protocol: Any) -> Any:
        # The class has no name to be found by.
        return _rebuild, (kind, appearance), module.__dict__

    members: dict[str, Any] = {name: parameter(name, axis, cut) for name, (axis, cut) in appearance.cuts.items()}
    members |= {name: count(name) for name in appearance.counts}
    members |= {"__reduce_ex__": reduce, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (_Sliced, kind), {**members, "appearance": appearance, "plain": kind})


def slice_parameters(module: nn.Module, cuts: Cuts, counts: dict[str, int]) -> None:
    """Let the code of a module see only the active part of its parameters; its `state_dict` keeps all of them.

    Args:
        module: its class changes.
        cuts: parameters.
        counts: attributes that count blocks of channels.
    """
    module.__class__ = _sliced_class(type(module), Appearance(cuts, counts))


def extract_parameters(module: nn.Module, uf: float) -> None:
    """The inverse of `slice_parameters`, with the active part alone, as parameters of their own."""
    if not isinstance(module, _Sliced):
        return
    cuts, counts = module.appearance
    module.__class__ = module.plain  # type: ignore[assignment]
    for name in counts:
        module.__dict__[name] = channels(uf, module.__dict__[name])
    for name, (axis, cut) in cuts.items():
        parameter = module._parameters[name]
        if parameter is not None:
            narrow = cut.narrow(parameter.detach(), axis, uf).clone()
            module._parameters[name] = nn.Parameter(narrow, parameter.requires_grad)
