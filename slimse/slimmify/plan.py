"""What a UF can cut in a network, and what it does cut."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..nn import Axis
from .channels import Channels, Group, Labels, SplitNeededError
from .exchange import Cut
from .leaves import LEAVES, leaf_of
from .trace import Trace

CUT_SIDES = ("output", "input", "both", "units", "heads")
"""Sides of a layer by which ``cuts`` chooses the channels that it puts out or reads."""
_TRIES = 50
"""Traces of one network, each of which finds that one more layer's outputs are split into parts."""


class Plan:
    """The groups of channels of a network, and the layers that have them.

    Args:
        network: runs on ``args`` and ``kwargs`` in a copy; it is not changed.
        args: of its call.
        kwargs: of its call.
    """

    def __init__(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _check_copy(network)
        parts: dict[str, int] = {}
        for _ in range(_TRIES):
            self.channels = Channels(parts)
            try:
                self.reads, called = _trace(network, self.channels, args, kwargs)
                break
            except SplitNeededError:
                continue
        else:
            raise ValueError(f"the outputs of {sorted(parts)} are split in ways that could not be followed")
        layers = [name for name, layer in network.named_modules() if leaf_of(layer)]
        self.uncalled = [name for name in layers if name not in called]
        self.cut: list[Group] = self.found()
        self.counts: dict[str, dict[str, int]] = {}
        """Attributes of modules that count the blocks of channels inside, by name of the module."""

    def found(self) -> list[Group]:
        """The groups that are cut unless chosen otherwise: what lies inside of blocks, their interfaces left out."""
        return [group for group in self.channels.all_groups() if self.can_cut(group) and not group.joins]

    @staticmethod
    def can_cut(group: Group) -> bool:
        """Whether a UF can cut these channels."""
        return group.blocks > 1 and bool(group.layers)

    def choose(self, network: nn.Module, cuts: Mapping[str, str]) -> None:
        """Cut the groups that these sides of layers belong to, and no others.

        Raises:
            ValueError: for a name that no layer has, a layer or side that has no channels to cut, or channels that
                cannot be cut; the message says why.
        """
        chosen: list[Group] = []
        for pattern, side in cuts.items():
            if side not in CUT_SIDES:
                raise ValueError(f"cut of {pattern} = {side!r}: expected one of {CUT_SIDES}")
            names = [name for name, _ in network.named_modules() if name and fnmatchcase(name, pattern)]
            if not names:
                layers = [name for name, layer in network.named_modules() if leaf_of(layer)]
                raise ValueError(f"no layer is named {pattern!r}: expected one of {layers}")
            for name in names:
                chosen += self._chosen(name, network.get_submodule(name), side)
        self.cut = [group for group in self.channels.all_groups() if any(group is one for one in chosen)]

    def _chosen(self, name: str, layer: nn.Module, side: str) -> list[Group]:
        if leaf_of(layer) is None:
            known = [kind.__name__ for kind in LEAVES]
            raise ValueError(f"{name} is a {type(layer).__name__}: expected one of {known}")
        sides = {"output": ("outputs",), "input": ("inputs",), "both": ("inputs", "outputs")}
        sides |= {"units": ("outputs",), "heads": ("heads",)}
        found = [
            group
            for (layer_name, read), labels in self.reads.items()
            if layer_name == name and read.rstrip("-0123456789") in sides[side]
            for group in self.channels.groups_of(labels)
        ]
        if not found:
            raise ValueError(f"cut of {name} = {side!r}: its {side} has no channels that were followed")
        for group in found:
            if not self.can_cut(group):
                raise ValueError(f"cut of {name} = {side!r}: {group.reason or 'one block of channels'}")
        return found

    def count_heads(self, network: nn.Module) -> bool:
        """Let attributes that count heads follow the UF, in modules with layers whose outputs are cut by heads.

        Returns:
            Whether there is any.
        """
        for group in self.cut:
            for layer in group.layers:
                owner = layer.rpartition(".")[0]
                attributes = vars(network.get_submodule(owner)).items()
                counts = {key: n for key, n in attributes if "heads" in key and n == group.blocks}
                if counts and next(network.get_submodule(layer).parameters()).shape[0] > group.blocks:
                    self.counts.setdefault(owner, {}).update(counts)
        return bool(self.counts)

    def applied(self) -> Cut:
        """What is cut; layers of which nothing is cut are left out."""
        axes: dict[str, dict[str, Axis]] = {}
        for (name, side), labels in self.reads.items():
            axes.setdefault(name, {})[side] = self.channels.layout(labels, self.cut)
        cut = {name: sides for name, sides in axes.items() if any(axis.is_cut for axis in sides.values())}
        return Cut(cut, copy.deepcopy(self.counts))


def _check_copy(network: nn.Module) -> None:
    """Refuse weights that a hook computes, as of the older weight normalization: PyTorch cannot copy them."""
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.requires_grad and not value.is_leaf:
                raise ValueError(
                    f"{f'{name}.{key}' if name else key} is computed before each call: expected none such, as of "
                    "torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm"
                )


def _names(parameters: Iterable[tuple[str, nn.Parameter]], inside: set[str]) -> dict[nn.Parameter, str]:
    return {p: name for name, p in parameters if name.rpartition(".")[0] not in inside}


def _trace(
    network: nn.Module, channels: Channels, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[tuple[str, str], Labels], set[str]]:
    """Run a copy of the network on the example, and follow the channels; the names of what ran besides."""
    network = copy.deepcopy(network).eval()
    leaves = {name: leaf for name, layer in network.named_modules() if (leaf := leaf_of(layer)) is not None}
    trace, called = Trace(channels, _names(network.named_parameters(), {*leaves})), set[str]()

    def enter(name: str) -> Any:
        def hook(module: nn.Module, *_: Any) -> None:
            trace.modules.append(name)
            called.add(name)
            if name in leaves:
                trace.enter_layer()

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, given: Any, named: Any, out: Any) -> None:
            trace.modules.pop()
            if name in leaves:
                trace.leave_layer()
                if not trace.inside:
                    leaves[name].follow(trace, name, module, (*given, *named.values()), out)

        return hook

    for name, module in network.named_modules():
        module.register_forward_pre_hook(enter(name))
        module.register_forward_hook(leave(name), with_kwargs=True)
    with torch.inference_mode(), trace:
        outputs = network(*args, **kwargs)
    for tensor in tree_leaves(outputs):
        trace.end("they are an output of the network", tensor)
    while True:
        # What one layer keeps full may be what another reads.
        before = [group.blocks for group in channels.all_groups()]
        for (name, _), labels in trace.reads.items():
            channels.read(np.asarray(labels), name)
        if before == [group.blocks for group in channels.all_groups()]:
            return trace.reads, called
