"""Exchanging the layers of a network: for slimmable ones, and for those of one width."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..nn import Axis, SlimBatchNorm1d, SlimBatchNorm2d, SlimLayer
from ..nn.context import at
from .context import SHORT_CUTS, Appearance, Cuts, extract_parameters, slice_parameters
from .leaves import convert

Network = TypeVar("Network", bound=nn.Module)


class Cut(NamedTuple):
    """What a UF cuts of a network."""

    axes: dict[str, dict[str, Axis]]
    """By name of a layer or parameter, and side."""
    counts: dict[str, dict[str, int]]
    """Attributes that count blocks of channels inside of modules, such as heads, by name of the module."""


def apply(network: nn.Module, cut: Cut, *, ufs: tuple[float, ...], **options: Any) -> None:
    """Make the layers that are cut slimmable, in place.

    Args:
        network: the one that was followed, or one like it.
        cut: what a UF cuts.
        ufs: those that batch norms keep statistics of.
        **options: attributes of every slimmable layer.
    """
    axes, layers = cut.axes, dict(network.named_modules())
    parameters: dict[str, Cuts] = {}
    for name, sides in axes.items():
        if name not in layers:
            owner, _, parameter = name.rpartition(".")
            ((dim, axis),) = sides.items()
            parameters.setdefault(owner, {})[parameter] = (int(dim), axis)
    for name, layer in layers.items():
        # What comes into a batch norm has another distribution at every width, whether it is cut or not.
        if name in axes or (type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d) and axes):
            convert(layer, axes.get(name, {}), label=name, ufs=ufs, **options)
    switches = {
        name: switches
        for name, module in layers.items()
        for kind, switches in SHORT_CUTS.items()
        if isinstance(module, kind) and any(isinstance(layer, SlimLayer) for layer in module.modules())
    }
    for owner in {*parameters, *cut.counts, *switches}:
        seen = Appearance(parameters.get(owner, {}), cut.counts.get(owner, {}), switches.get(owner, ()))
        slice_parameters(layers[owner], seen)


def extract(network: Network, uf: float) -> Network:
    """A copy of a slimmed network with the layers of one width alone, of `torch.nn` as before.

    Attention with fewer heads than its features make is a `slimse.nn.SlimMultiheadAttention`: `torch.nn` has none.

    Args:
        network: made by `slimmify`.
        uf: a number in (0, 1].
    """
    network = copy.deepcopy(network)
    tied = _ties(network)
    exchanged = {layer: layer.extract(uf) for layer in network.modules() if isinstance(layer, SlimLayer)}
    for parent in list(network.modules()):
        extract_parameters(parent, uf)
        for name, child in list(parent.named_children()):
            if child in exchanged:
                setattr(parent, name, exchanged[child])
    network = exchanged.get(network, network)  # type: ignore[call-overload]
    network.__dict__.pop("slimming", None)
    for first, *others in tied:
        parameter = network.get_parameter(first)
        for owner, _, name in (other.rpartition(".") for other in others):
            module = network.get_submodule(owner)
            if torch.equal(parameter, module._parameters[name]):  # type: ignore[arg-type]
                module._parameters[name] = parameter
    return network


def _ties(network: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [found for found in names.values() if len(found) > 1]


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Any], ufs: Iterable[float] | None = None) -> None:
    """Measure the statistics of every batch norm at every UF but 1, from a few batches of inputs.

    Do it once after training, or before a network that was trained at full width alone runs at others.

    Args:
        network: made by `slimmify`.
        batches: inputs of the network: tensors, or tuples of arguments.
        ufs: those to measure; by default all that it was made for.

    Raises:
        ValueError: if the network has no batch norm with statistics per width, or there is no batch.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, SlimBatchNorm1d | SlimBatchNorm2d)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        raise ValueError("the network has no batch norm with statistics per width")
    chosen = tuple(norms[0].ufs if ufs is None else (uf for uf in ufs if uf != 1))
    training, momenta = [module.training for module in network.modules()], [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_statistics(chosen)
        norm.momentum = None
        norm.training = True
    seen = False
    try:
        for batch in batches:
            seen = True
            for uf in chosen:
                with at(uf):
                    network(*((batch,) if isinstance(batch, Tensor) else batch))
    finally:
        for module, mode in zip(network.modules(), training, strict=True):
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not seen:
        raise ValueError("batches is empty: expected at least one")
