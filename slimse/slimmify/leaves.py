"""What every layer of `torch.nn` does to channels, and which slimmable layer stands in for it.

A new layer is one entry of `LEAVES`: how labels go through it, and the class that it becomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import nn as slim
from ..nn.axis import Axis
from .channels import Labels
from .trace import Trace

Follow = Callable[[Trace, str, Any, tuple[Any, ...], Any], None]


@dataclass(frozen=True)
class Leaf:
    """A layer of `torch.nn` that has a slimmable one."""

    kind: type[Any]
    """The slimmable layer."""
    follow: Follow
    """Reads the labels of the arguments, and gives those of the output."""


def _put(trace: Trace, out: Tensor, labels: Labels, axis: int) -> None:
    shape = [1] * out.ndim
    shape[axis] = -1
    trace.put(out, torch.from_numpy(np.ascontiguousarray(labels)).view(shape))


def _dense(trace: Trace, name: str, layer: Any, args: tuple[Any, ...], out: Tensor, axis: int) -> None:
    """A layer that reads all channels of an axis and puts out others."""
    x = args[0]
    labels = trace.get(x)
    others = [] if labels is None else [n for i, n in enumerate(labels.shape) if i != axis % x.ndim]
    if labels is not None and labels.shape[axis] == 1 and any(size > 1 for size in others):
        # Channels on another axis, which the layer works on one by one.
        beside = [i for i, n in enumerate(labels.shape) if n > 1]
        if (axis == -1 and x.ndim > 1) or beside == [0]:
            shape = list(labels.shape)
            trace.put(out, labels.view(shape) if out.ndim == x.ndim else None)
            return
    trace.read(name, "inputs", trace.along(x, axis, f"{name} reads them"))
    _put(trace, out, trace.channels.axis(name, out.shape[axis]), axis)
    trace.reads.setdefault((name, "outputs"), trace.channels.axis(name, out.shape[axis]))


def _linear(trace: Trace, name: str, layer: nn.Linear, args: tuple[Any, ...], out: Tensor) -> None:
    _dense(trace, name, layer, args, out, -1)


def _convolution(trace: Trace, name: str, layer: Any, args: tuple[Any, ...], out: Tensor) -> None:
    x, axis = args[0], args[0].ndim - (layer.weight.ndim - 1)
    if layer.groups == 1:
        _dense(trace, name, layer, args, out, axis)
        return
    labels = trace.along(x, axis, f"{name} reads them")
    size_in, size_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    first = labels.reshape(layer.groups, size_in)[:, :1]
    # Channels of one group are active together.
    trace.channels.join(labels.reshape(layer.groups, size_in), np.repeat(first, size_in, 1), f"{name} in groups")
    trace.read(name, "inputs", labels)
    outputs = np.repeat(first, size_out, 1).reshape(-1)
    trace.read(name, "outputs", outputs)
    _put(trace, out, outputs, axis)


def _channelwise(trace: Trace, name: str, layer: Any, args: tuple[Any, ...], out: Tensor) -> None:
    """A layer with parameters per channel of the second axis."""
    x = args[0]
    labels = trace.along(x, 1 if x.ndim > 1 else 0, f"{name} works on them")
    if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
        groups = labels.reshape(layer.num_groups, -1)
        trace.channels.join(groups, np.repeat(groups[:, :1], groups.shape[1], 1), f"{name} in groups")
    trace.read(name, "inputs", labels)
    _put(trace, out, labels, 1 if x.ndim > 1 else 0)


def _prelu(trace: Trace, name: str, layer: nn.PReLU, args: tuple[Any, ...], out: Tensor) -> None:
    if layer.num_parameters == 1:
        trace.put(out, trace.get(args[0]))
    else:
        _channelwise(trace, name, layer, args, out)


def _feature_norm(trace: Trace, name: str, layer: Any, args: tuple[Any, ...], out: Tensor) -> None:
    """A norm over the last axes, of which one may be cut; on axes before them it works one by one."""
    x, labels = args[0], trace.get(args[0])
    count = len(layer.normalized_shape)
    if labels is None:
        return
    inner = [axis for axis in range(-count, 0) if labels.shape[axis] > 1]
    outer = any(size > 1 for size in labels.shape[: x.ndim - count])
    if inner and (outer or len(inner) > 1):
        trace.end(f"{name} works along several axes of them", x)
        return
    if inner:
        trace.read(name, f"inputs{inner[0]}", trace.along(x, inner[0], f"{name} works on them"))
    trace.put(out, labels)


def _recurrent(trace: Trace, name: str, layer: Any, args: tuple[Any, ...], out: Any) -> None:
    x, outputs = args[0], out[0]
    if layer.proj_size or isinstance(x, nn.utils.rnn.PackedSequence):
        what = "has projections" if layer.proj_size else "is given a packed sequence"
        trace.end(f"{name} {what}", x)
        return
    trace.read(name, "inputs", trace.along(x, -1, f"{name} reads them"))
    trace.end(f"{name} starts from them", *(args[1] if len(args) > 1 and isinstance(args[1], tuple) else args[1:2]))
    units = trace.channels.axis(name, layer.hidden_size)
    units = np.tile(units, 2 if layer.bidirectional else 1)
    trace.read(name, "outputs", units)
    _put(trace, outputs, units, outputs.ndim - 1)


def _embedding(trace: Trace, name: str, layer: nn.Embedding, args: tuple[Any, ...], out: Tensor) -> None:
    labels = trace.channels.axis(name, layer.embedding_dim)
    trace.read(name, "outputs", labels)
    _put(trace, out, labels, out.ndim - 1)


def _attention(trace: Trace, name: str, layer: nn.MultiheadAttention, args: tuple[Any, ...], out: Any) -> None:
    """Heads are cut inside; what goes in and comes out stays full."""
    trace.end(f"{name} reads them in full", *args)
    if layer.bias_k is not None or layer.add_zero_attn:
        return
    heads = trace.channels.axis(name, layer.embed_dim)
    grouped = heads.reshape(layer.num_heads, -1)
    trace.channels.join(grouped, np.repeat(grouped[:, :1], grouped.shape[1], 1), f"{name} by heads")
    trace.read(name, "heads", heads)


LEAVES: dict[type[nn.Module], Leaf] = {
    nn.Linear: Leaf(slim.SlimLinear, _linear),
    nn.Conv1d: Leaf(slim.SlimConv1d, _convolution),
    nn.Conv2d: Leaf(slim.SlimConv2d, _convolution),
    nn.ConvTranspose1d: Leaf(slim.SlimConvTranspose1d, _convolution),
    nn.ConvTranspose2d: Leaf(slim.SlimConvTranspose2d, _convolution),
    nn.LSTM: Leaf(slim.SlimLSTM, _recurrent),
    nn.GRU: Leaf(slim.SlimGRU, _recurrent),
    nn.Embedding: Leaf(slim.SlimEmbedding, _embedding),
    nn.MultiheadAttention: Leaf(slim.SlimMultiheadAttention, _attention),
    nn.BatchNorm1d: Leaf(slim.SlimBatchNorm1d, _channelwise),
    nn.BatchNorm2d: Leaf(slim.SlimBatchNorm2d, _channelwise),
    nn.InstanceNorm1d: Leaf(slim.SlimInstanceNorm1d, _channelwise),
    nn.InstanceNorm2d: Leaf(slim.SlimInstanceNorm2d, _channelwise),
    nn.GroupNorm: Leaf(slim.SlimGroupNorm, _channelwise),
    nn.LayerNorm: Leaf(slim.SlimLayerNorm, _feature_norm),
    nn.RMSNorm: Leaf(slim.SlimRMSNorm, _feature_norm),
    nn.PReLU: Leaf(slim.SlimPReLU, _prelu),
}


def leaf_of(layer: nn.Module) -> Leaf | None:
    """The entry of a layer. Those of derived types have none: what else they do is unknown."""
    if getattr(layer, "track_running_stats", False) and isinstance(layer, nn.InstanceNorm1d | nn.InstanceNorm2d):
        return None
    if isinstance(getattr(layer, "weight", None), Tensor) and "weight" not in layer._parameters:
        # Computed before every call, as by weight normalisation.
        return None
    return LEAVES.get(type(layer))


def convert(layer: nn.Module, axes: dict[str, Axis], **options: Any) -> None:
    """Turn a layer of `torch.nn` into its slimmable one in place.

    Args:
        layer: one that has a leaf.
        axes: what a UF cuts, by side: ``"inputs"``, ``"outputs"``, ``"heads"``; of a norm ``"inputs-2"`` for an axis.
        **options: attributes of every slimmable layer.
    """
    kind = LEAVES[type(layer)].kind
    axes = dict(axes)
    for side in [side for side in axes if side.startswith("inputs-")]:
        options["dim"] = int(side.removeprefix("inputs"))
        axes["inputs"] = axes.pop(side)
    if "heads" in axes:
        options["heads"] = axes["heads"]
    if not issubclass(kind, slim.SlimBatchNorm1d | slim.SlimBatchNorm2d):
        options.pop("ufs", None)
    inputs = axes.get("inputs", _full(layer, "in"))
    kind.convert(
        layer,
        inputs,
        axes.get("outputs", inputs if "inputs" in axes and _keeps(layer) else _full(layer, "out")),
        **options,
    )


def _keeps(layer: nn.Module) -> bool:
    """Whether a layer puts out the channels that it reads."""
    return not isinstance(layer, nn.Linear | nn.RNNBase | nn.modules.conv._ConvNd)


_SIZES = {
    "in": ("in_features", "in_channels", "input_size", "embed_dim", "num_features", "num_channels", "num_parameters"),
    "out": (
        "out_features",
        "out_channels",
        "hidden_size",
        "embedding_dim",
        "embed_dim",
        "num_features",
        "num_channels",
    ),
}


def _full(layer: Any, side: str) -> Axis:
    """An axis of the size of a layer's side that no UF cuts."""
    size = next((getattr(layer, name) for name in _SIZES[side] if hasattr(layer, name)), 1)
    if isinstance(layer, nn.RNNBase) and side == "out":
        return Axis([Axis.of(size, cut=False)[0]] * (2 if layer.bidirectional else 1))
    return Axis.of(size, cut=False)
