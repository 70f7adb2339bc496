"""Making the layers of an existing network slimmable, and running it at a width."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from .nn import SlimConv1d, SlimConvTranspose1d, SlimGRU, SlimLinear, SlimLSTM
from .nn.layers import CUTS
from .width import UF

Network = TypeVar("Network", bound=nn.Module)

_LAYERS: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: SlimConv1d,
    nn.ConvTranspose1d: SlimConvTranspose1d,
    nn.Linear: SlimLinear,
}
_RECURRENT: dict[type[nn.Module], type[Any]] = {nn.LSTM: SlimLSTM, nn.GRU: SlimGRU}
_SLIM = (SlimConv1d, SlimConvTranspose1d, SlimLinear, SlimLSTM, SlimGRU)
_ARGUMENTS = {
    SlimConv1d: (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ),
    SlimConvTranspose1d: (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "dilation"),
        "padding_mode",
    ),
    SlimLinear: ("in_features", "out_features"),
    SlimLSTM: ("input_size", "hidden_size", "num_layers", "batch_first", "dropout", "bidirectional", "proj_size"),
    SlimGRU: ("input_size", "hidden_size", "num_layers", "batch_first", "dropout", "bidirectional"),
}
"""What a layer is built from, besides ``bias``."""

_uf: ContextVar[UF] = ContextVar("uf", default=1.0)


@contextmanager
def at(uf: UF) -> Iterator[None]:
    """Run the slimmified networks that are called in this context at ``uf``.

    It holds for this thread (and asynchronous task) alone, and ends with the block.

    Args:
        uf: a number in (0, 1], or one per batch item, ``[B]``.

    >>> network = slimmify(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)), {"0": "output", "2": "input"})
    >>> with at(0.25):
    ...     network(torch.randn(3, 8)).shape
    torch.Size([3, 8])
    """
    token = _uf.set(uf)
    try:
        yield
    finally:
        _uf.reset(token)


def slimmify(network: Network, cuts: Mapping[str, str], *, backend: str = "auto", precision: str = "ieee") -> Network:
    """Exchange layers of a network for slimmable ones with the same weights, in place.

    The network's own code stays as it is; what it computes changes only inside `at`, which hands its UF to each
    exchanged layer as an argument of the call. Cut the outputs of one layer and the inputs of the next; what lies
    between them must work on each channel alone, as activations do. Layers that an activation checkpoint runs again in
    the backward pass run after the `at` block, at full width: put the checkpoint around the block.

    Args:
        network: any module with `torch.nn.Conv1d`, `ConvTranspose1d`, `Linear`, `LSTM` or `GRU` layers inside.
        cuts: names of layers as `torch.nn.Module.named_modules` gives them, or patterns such as ``"layers.*.linear1"``,
            to the side that a UF cuts: ``"output"``, ``"input"`` or ``"both"``; of an LSTM or GRU ``"units"``.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.

    Returns:
        ``network``. Its `state_dict` has the same keys and shapes as before.

    Raises:
        ValueError: for a name that no layer has, a layer of another type, or a cut that does not fit it.
    """
    exchanged: dict[nn.Module, nn.Module] = {}
    for pattern, cut in cuts.items():
        matches = [
            (name, layer) for name, layer in network.named_modules(remove_duplicate=False) if fnmatchcase(name, pattern)
        ]
        if not matches or matches[0][0] == "":
            raise ValueError(
                f"no layer is named {pattern!r}: expected one of {[n for n, _ in network.named_modules() if n]}"
            )
        for name, layer in matches:
            if layer not in exchanged:
                exchanged[layer] = _slim(name, layer, cut, {"backend": backend, "precision": precision})
    _exchange(network, exchanged)
    return network


def extract(network: Network, uf: float) -> Network:
    """A copy of a network in which every slimmable layer is a plain `torch.nn` layer of the width of ``uf``."""
    network = copy.deepcopy(network)
    _exchange(network, {layer: layer.extract(uf) for layer in network.modules() if isinstance(layer, _SLIM)})
    return network


def _exchange(network: nn.Module, exchanged: dict[nn.Module, nn.Module]) -> None:
    """Put the new layers in the places of the old ones, all places of a shared layer alike."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in exchanged:
                setattr(parent, name, exchanged[child])


def _slim(name: str, layer: nn.Module, cut: str, choice: dict[str, str]) -> nn.Module:
    """A slimmable layer with the options, weights, dtype and mode of ``layer``."""
    # Not those derived from the types below: what else they do is unknown.
    recurrent = type(layer) in _RECURRENT
    kind = {**_LAYERS, **_RECURRENT}.get(type(layer))
    if kind is None:
        known = [known.__name__ for known in (*_LAYERS, *_RECURRENT)]
        raise ValueError(f"{name} is a {type(layer).__name__}: expected one of {known}")
    allowed = ("units",) if recurrent else CUTS
    if cut not in allowed:
        raise ValueError(f"cut of {name} = {cut!r}: expected one of {allowed} for a {type(layer).__name__}")
    options: dict[str, Any] = {argument: getattr(layer, argument) for argument in _ARGUMENTS[kind]}
    has_bias = layer.bias if recurrent else layer.bias is not None
    like = next(layer.parameters())
    slim: nn.Module = kind(
        **options, **choice, bias=has_bias, device=like.device, dtype=like.dtype, **({} if recurrent else {"cut": cut})
    )
    slim.load_state_dict(layer.state_dict())
    for name, parameter in layer.named_parameters():
        slim.get_parameter(name).requires_grad_(parameter.requires_grad)
    slim.train(layer.training)
    slim.register_forward_pre_hook(_give_uf, with_kwargs=True)
    return slim


def _give_uf(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Make the context's UF an argument of the call, unless it has one."""
    return args, {"uf": _uf.get(), **kwargs}
