"""Following channels through a network: one run on an example, in which every operation also works on labels.

A label says which channel of which layer an element of a tensor belongs to. Operations that move elements (views,
permutations, slices, concatenations) move the labels by the same operation, so that nothing about them is guessed. What
works on single elements joins the channels of its operands. Everything else has a rule below, or is an end: channels
that go into it stay full, and the reason names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .channels import Channels, Labels
from .rules import FRESH, LAST_AXES, LIKE, MOVES, REDUCTIONS, SHAPES_KEPT, SINGLE_ELEMENTS, SUMS

Shape = tuple[int, ...]
Rule = Callable[["Trace", str, Any, Any, Any], None]


class Trace(TorchDispatchMode):
    """The labels of all tensors of a run.

    A tensor's labels are kept with size 1 in every axis along which they do not change.

    Args:
        channels: collects what belongs together.
        parameters: names of those that no layer with a rule has.
    """

    def __init__(self, channels: Channels, parameters: dict[nn.Parameter, str]) -> None:
        super().__init__()
        self.channels = channels
        self.parameters = parameters
        self.reads: dict[tuple[str, str], Labels] = {}
        """Labels by name of a layer (or parameter) and side."""
        self.modules: list[str] = [""]
        self._labels: Any = WeakTensorKeyDictionary()
        self._inside = 0

    def enter_layer(self) -> None:
        """From here on, a layer with a rule runs."""
        self._inside += 1

    def leave_layer(self) -> None:
        """The layer has run."""
        self._inside -= 1

    @property
    def inside(self) -> bool:
        """Whether a layer with a rule runs."""
        return self._inside > 0

    # Labels of tensors.

    def get(self, tensor: Any) -> Tensor | None:
        """Labels of a tensor, or None where no UF cuts it."""
        if not isinstance(tensor, Tensor):
            return None
        if tensor in self._labels:
            return self._labels[tensor]
        name = self.parameters.get(tensor) if isinstance(tensor, nn.Parameter) else None
        long = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        if name is None or len(long) != 1:
            return None
        shape = [1] * tensor.ndim
        shape[long[0]] = -1
        labels = self.channels.axis(name, tensor.shape[long[0]], produced=False)
        self.reads[name, str(long[0])] = labels
        self._labels[tensor] = torch.from_numpy(labels).view(shape)
        return self._labels[tensor]

    def put(self, tensor: Any, labels: Tensor | None) -> None:
        """Give a tensor its labels, which broadcast to its shape."""
        if not isinstance(tensor, Tensor):
            return
        labels = None if labels is None else compact(labels)
        if labels is None or not bool((labels >= 0).any()):
            self._labels.pop(tensor, None)
        else:
            assert labels.ndim == tensor.ndim, "labels have an axis for each of their tensor"
            self._labels[tensor] = labels

    def along(self, tensor: Tensor, axis: int, where: str) -> Labels:
        """Labels of the channels on one axis; where they change along others, these channels stay full."""
        labels, size = self.get(tensor), tensor.shape[axis]
        if labels is None:
            return torch.full((size,), -1).numpy()
        others = [index for index in range(labels.ndim) if index != axis % labels.ndim]
        if any(labels.shape[index] > 1 for index in others):
            self.end(where, tensor)
            return torch.full((size,), -1).numpy()
        return labels.reshape(-1).expand(size).numpy()

    def end(self, where: str, *tensors: Any) -> None:
        """Keep the channels of these tensors full."""
        for tensor in tensors:
            labels = self.get(tensor)
            if labels is not None:
                self.channels.keep_full(labels.numpy(), where)

    def read(self, name: str, side: str, labels: Labels) -> None:
        """Note what a layer reads; at every call it has to be the same."""
        known = self.reads.setdefault((name, side), labels)
        if known is not labels:
            if ((known >= 0) != (labels >= 0)).any():
                self.channels.keep_full(known, f"{name} runs several times, on other channels")
                self.channels.keep_full(labels, f"{name} runs several times, on other channels")
            self.channels.join(known, labels, f"{name}, which runs several times,")

    def mixed(self, labels: Tensor, where: str) -> None:
        """Note that something works on several of these channels at once."""
        for group in self.channels.groups_of(labels.numpy()):
            group.mixes = group.mixes or where

    # Operations.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on its tensors, and on their labels."""
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        known = {*MOVES, *LIKE, *REDUCTIONS, *SHAPES_KEPT, *LAST_AXES, *_SPECIAL, *SINGLE_ELEMENTS, *FRESH}
        single = torch.Tag.pointwise in func.tags or name.rstrip("_") in SINGLE_ELEMENTS
        single |= name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor)
        if not single and name not in known and _decomposes(func):
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        labels = [self.get(tensor) for tensor in tensors]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        out = func(*args, **kwargs)
        if name in FRESH or all(label is None for label in labels):
            return out
        where = f"{name} in {self.modules[-1] or 'the network'}"
        if name in _SPECIAL:
            _SPECIAL[name](self, where, args, kwargs, out)
        elif single:
            self._single(name, where, args, list(zip(labels, shapes, strict=True)), out)
        elif name in MOVES:
            self._move(func, name, args, kwargs, out)
        elif name in LIKE:
            self.put(out, labels[0])
        elif name in REDUCTIONS:
            self._reduce(where, args, kwargs, out)
        elif name in SHAPES_KEPT:
            self._keep_shape(where, args, kwargs, out)
        elif name in LAST_AXES:
            self._last_axes(LAST_AXES[name], where, args, out)
        else:
            self.end(f"{where} has no rule", *tensors)
        return out

    def _single(self, name: str, where: str, args: Any, operands: list[tuple[Tensor | None, Shape]], out: Any) -> None:
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        labels, shape = operands[0]
        for other, other_shape in operands[1:]:
            labels, shape = self.combine((labels, shape), (other, other_shape), where, summed=name in SUMS)
        if name.endswith("_") and labels is not None:
            target = args[0]
            if target._is_view() and (self.get(target) is None) and target._base is not None:
                # A part of a larger tensor is written, whose labels this does not follow.
                self.channels.keep_full(labels.numpy(), f"{where} writes into a part of a tensor")
                return
        for result in results:
            if labels is not None and result.ndim == labels.ndim:
                self.put(result, labels)

    def combine(
        self, a: tuple[Tensor | None, Shape], b: tuple[Tensor | None, Shape], where: str, *, summed: bool = False
    ) -> tuple[Tensor | None, Shape]:
        """Labels of what an operation on single elements makes of two operands that broadcast."""
        ndim = max(len(a[1]), len(b[1]))
        (ours, our_shape), (theirs, their_shape) = (_padded(side, ndim) for side in (a, b))
        shape = tuple(torch.broadcast_shapes(our_shape, their_shape))
        if ours is None or theirs is None:
            labels, other = (theirs, our_shape) if ours is None else (ours, their_shape)
            if labels is not None and any(n > 1 and m > 1 for n, m in zip(labels.shape, other, strict=True)):
                self.channels.keep_full(labels.numpy(), f"{where} combines them with what is not cut")
            return labels, shape
        for labels, other_labels, other in ((ours, theirs, their_shape), (theirs, ours, our_shape)):
            for axis, size in enumerate(labels.shape):
                if size > 1 and other[axis] > 1 and other_labels.shape[axis] == 1:
                    self.channels.keep_full(labels.numpy(), f"{where} combines them with what is not cut")
        if not any(n > 1 and m > 1 for n, m in zip(ours.shape, theirs.shape, strict=True)):
            # Channels on different axes; an element has one label only.
            varies = [bool((labels != labels.flatten()[0]).any()) for labels in (ours, theirs)]
            if all(varies):
                self.channels.keep_full(theirs.numpy(), f"{where} combines them with channels on another axis")
            return (ours if varies[0] or not varies[1] else theirs), shape
        first, second = torch.broadcast_tensors(ours, theirs)
        for one, two in ((first, second), (second, first)):
            alone = torch.where(two < 0, one, -1)
            if bool((alone >= 0).any()):
                self.channels.keep_full(alone.numpy(), f"{where} combines them with what is not cut")
        self.channels.join(first.numpy(), second.numpy(), where, summed=summed)
        return torch.where(first >= 0, first, second), shape

    def _move(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        """Move the labels as the elements."""
        first = args[0]
        whole = [self._whole(tensor) for tensor in first] if isinstance(first, list | tuple) else self._whole(first)
        packet = torch.ops.aten.reshape.default if MOVES[name] == "reshape" else func
        moved = whole if MOVES[name] == "same" else packet(whole, *args[1:], **kwargs)
        for result, labels in zip(tree_leaves(out), tree_leaves(moved), strict=True):
            self.put(result, labels)

    def _whole(self, tensor: Tensor) -> Tensor:
        labels = self.get(tensor)
        return (torch.tensor(-1) if labels is None else labels).expand(tensor.shape)

    def _reduce(self, where: str, args: Any, kwargs: Any, out: Any) -> None:
        source, labels = args[0], self.get(args[0])
        if labels is None:
            return
        place = 2 if "norm" in where.split(" ")[0] else 1
        given = kwargs.get("dim", args[place] if len(args) > place and not isinstance(args[place], bool) else None)
        keep = any(leaf.ndim == source.ndim for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        dims = range(source.ndim) if given is None or given == [] else [given] if isinstance(given, int) else given
        reduced = sorted({int(dim) % source.ndim for dim in dims}, reverse=True)
        labels = self.over(labels, reduced, where)
        if not keep and labels is not None:
            for dim in reduced:
                labels = labels.squeeze(dim)
        for result in tree_leaves(out):
            if labels is None or result.ndim == labels.ndim:
                self.put(result, labels)

    def over(self, labels: Tensor, dims: list[int], where: str) -> Tensor | None:
        """Labels of a result in which these axes have become one element each."""
        changing = [dim for dim in dims if labels.shape[dim] > 1]
        if not changing:
            return labels
        self.mixed(labels, where)
        if all(size == 1 for dim, size in enumerate(labels.shape) if dim not in changing):
            return None
        # Blocks of channels, such as heads: each becomes one element, and is there as a whole or not at all.
        first = labels
        for dim in changing:
            first = first.narrow(dim, 0, 1)
        self.channels.join(labels.numpy(), first.expand_as(labels).numpy(), where)
        return first

    def _keep_shape(self, where: str, args: Any, kwargs: Any, out: Any) -> None:
        source, labels = args[0], self.get(args[0])
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        if labels is not None and labels.shape[int(dim) % source.ndim] > 1:
            self.mixed(labels, where)
        for result in tree_leaves(out):
            self.put(result, labels)

    def _last_axes(self, count: int, where: str, args: Any, out: Any) -> None:
        labels = self.get(args[0])
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if labels is None:
            return
        if count == 0:
            count = len(args[1]) // 2 if isinstance(args[1], list | tuple) else 1
        if any(size > 1 for size in labels.shape[labels.ndim - count :]) or results[0].ndim != labels.ndim:
            self.end(f"{where} works along them", args[0])
            return
        for result in results:
            self.put(result, labels)


def _padded(side: tuple[Tensor | None, Shape], ndim: int) -> tuple[Tensor | None, Shape]:
    labels, shape = side
    missing = ndim - len(shape)
    return None if labels is None else labels.view(*[1] * missing, *labels.shape), (*[1] * missing, *shape)


def _decomposes(func: Any) -> bool:
    kernel = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), kernel))


def compact(labels: Tensor) -> Tensor:
    """Labels with size 1 in every axis along which they do not change."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if labels.stride(axis) == 0 or bool((labels == first).all()):
                labels = first
    return labels


def _matmul(trace: Trace, where: str, args: Any, kwargs: Any, out: Any) -> None:
    trace.put(out, _product(trace, where, (trace.get(args[0]), args[0].shape), (trace.get(args[1]), args[1].shape)))


def _addmm(trace: Trace, where: str, args: Any, kwargs: Any, out: Any) -> None:
    added, *factors = args[:3]
    labels = _product(trace, where, *[(trace.get(factor), factor.shape) for factor in factors])
    trace.put(out, trace.combine((labels, tuple(out.shape)), (trace.get(added), tuple(added.shape)), where)[0])


def _product(trace: Trace, where: str, a: tuple[Tensor | None, Any], b: tuple[Tensor | None, Any]) -> Tensor | None:
    """Labels of a matrix product ``[..., M, K]`` by ``[..., K, N]``."""
    (ours, our_shape), (theirs, their_shape) = a, b
    if len(our_shape) < 2 or len(their_shape) < 2:
        for labels in (ours, theirs):
            if labels is not None:
                trace.channels.keep_full(labels.numpy(), f"{where} multiplies a vector")
        return None
    inner = [labels is not None and labels.shape[axis] > 1 for labels, axis in ((ours, -1), (theirs, -2))]
    if any(inner) and not all(inner):
        for labels in (ours, theirs):
            if labels is not None:
                trace.channels.keep_full(labels.numpy(), f"{where} multiplies them by a matrix that is not cut")
        return None
    if all(inner):
        assert ours is not None and theirs is not None
        if ours.shape[-2] > 1 or theirs.shape[-1] > 1:
            for labels in (ours, theirs):
                trace.channels.keep_full(labels.numpy(), f"{where} multiplies channels on two axes")
            return None
        turned = theirs.mT
        joined, _ = trace.combine((ours, tuple(ours.shape)), (turned, tuple(turned.shape)), where)
        assert joined is not None
        kept = trace.over(joined, [joined.ndim - 1], where)
        return kept
    left = (ours, (*our_shape[:-1], 1))
    right = (theirs, (*their_shape[:-2], 1, their_shape[-1]))
    return trace.combine(left, right, where)[0]


def _attention(trace: Trace, where: str, args: Any, kwargs: Any, out: Any) -> None:
    """Scaled dot products: queries by keys over the features of a head, then by values over positions."""
    query, key, value = args[:3]
    keys = trace.get(key)
    turned = (None if keys is None else keys.mT, (*key.shape[:-2], key.shape[-1], key.shape[-2]))
    weights = _product(trace, where, (trace.get(query), query.shape), turned)
    shape = (*query.shape[:-1], key.shape[-2])
    result = out if isinstance(out, Tensor) else out[0]
    trace.put(result, _product(trace, where, (weights, shape), (trace.get(value), value.shape)))


def _linear(trace: Trace, where: str, args: Any, kwargs: Any, out: Any) -> None:
    """A product with weights that are no layer's."""
    labels = trace.get(args[0])
    if labels is not None and labels.shape[-1] > 1:
        trace.end(f"{where} multiplies them by weights that are no layer's", *args)
    else:
        trace.end(f"{where} has them as weights", *args[1:])
        trace.put(out, labels)


def _complex(trace: Trace, where: str, args: Any, kwargs: Any, out: Any) -> None:
    labels = trace.get(args[0])
    if labels is None:
        return
    if out.ndim > labels.ndim:
        trace.put(out, labels.unsqueeze(-1))
    elif labels.shape[-1] == 1:
        trace.put(out, labels.squeeze(-1))
    else:
        trace.end(f"{where} takes them for real and imaginary parts", args[0])


def _glu(trace: Trace, where: str, args: Any, kwargs: Any, out: Any) -> None:
    """The first half by the sigmoid of the second."""
    labels = trace.get(args[0])
    assert labels is not None
    halves = labels.expand(args[0].shape).chunk(2, kwargs.get("dim", args[1] if len(args) > 1 else -1))
    (value, gate), shape = (compact(half) for half in halves), tuple(out.shape)
    trace.put(out, trace.combine((value, shape), (gate, shape), where)[0])


_SPECIAL: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "view_as_complex": _complex,
    "view_as_real": _complex,
    "glu": _glu,
}
