"""Modules that show their own code the active part of parameters that no layer with a rule has."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ..nn import Axis
from ..nn.context import current_uf
from ..width import channels

Cuts = dict[str, tuple[int, Axis]]
"""Axis of a parameter, and what a UF cuts of it, by the parameter's name."""


class Appearance(NamedTuple):
    """What the code of a module sees at a UF, in place of what the module has."""

    cuts: Cuts
    counts: dict[str, int]
    """Attributes that count blocks of channels, such as heads, by name."""
    off: tuple[str, ...] = ()
    """Attributes that are 0 unless the UF is 1: switches of a path through the code that reads whole weights."""


SHORT_CUTS: dict[type[nn.Module], tuple[str, ...]] = {nn.TransformerEncoderLayer: ("activation_relu_or_gelu",)}
"""Switches of PyTorch's modules that compute with the weights of the layers inside, and do not call these."""


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
            value, uf = module._parameters[name], current_uf()
            return value if value is None or isinstance(uf, Tensor) else cut.narrow(value, axis, uf)

        return property(get)

    def count(name: str) -> property:
        def get(module: nn.Module) -> Any:
            value, uf = module.__dict__[name], current_uf()
            return value if isinstance(uf, Tensor) else channels(uf, value)

        return property(get)

    def switch(name: str) -> property:
        def get(module: nn.Module) -> Any:
            uf = current_uf()
            return 0 if isinstance(uf, Tensor) or uf != 1 else module.__dict__[name]

        return property(get)

    def reduce(module: nn.Module, protocol: Any) -> Any:
        # The class has no name to be found by.
        return _rebuild, (kind, appearance), module.__dict__

    members: dict[str, Any] = {name: parameter(name, axis, cut) for name, (axis, cut) in appearance.cuts.items()}
    members |= {name: count(name) for name in appearance.counts}
    members |= {name: switch(name) for name in appearance.off}
    members |= {"__reduce_ex__": reduce, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (_Sliced, kind), {**members, "appearance": appearance, "plain": kind})


def slice_parameters(module: nn.Module, appearance: Appearance) -> None:
    """Let the code of a module see only the active part of its parameters; its `state_dict` keeps all of them.

    Args:
        module: its class changes.
        appearance: what its code sees.
    """
    module.__class__ = _sliced_class(type(module), appearance)


def extract_parameters(module: nn.Module, uf: float) -> None:
    """The inverse of `slice_parameters`, with the active part alone, as parameters of their own."""
    if not isinstance(module, _Sliced):
        return
    cuts, counts, off = module.appearance
    module.__class__ = module.plain  # type: ignore[assignment]
    for name in counts:
        module.__dict__[name] = channels(uf, module.__dict__[name])
    for name in off if uf != 1 else ():
        module.__dict__[name] = 0
    for name, (axis, cut) in cuts.items():
        parameter = module._parameters[name]
        if parameter is not None:
            narrow = cut.narrow(parameter.detach(), axis, uf).clone()
            module._parameters[name] = nn.Parameter(narrow, parameter.requires_grad)
