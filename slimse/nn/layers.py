"""Layers that stand in for those of `torch.nn` and run at any width: what they share, linear ones, embedding, PReLU.

Each is a subclass of its namesake with the same parameters, `state_dict` and result at full width, and has two `Axis`
more: what of its input and of its output a UF cuts. At a UF that is a number, a layer computes on views of the active
part of its weights with PyTorch's own operations. At a tensor of UFs it leaves zeros in inactive channels. A call that
is given no UF runs at that of the block of `slimse.at` around it, at full width outside of any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import check_backend, slim_conv1d
from ..width import UF, check_uf
from .axis import Axis, Parts, joined
from .context import uf_around

CUTS = ("output", "input", "both")
"""Sides of a layer that a UF can cut."""
_HAVE_PLACES = (nn.Parameter, Tensor)
"""Types of tensors that can be asked where they lie; those that compilers and function transforms put in cannot."""
_MOST_KEPT = 16
"""UFs of which a layer keeps views."""


class SlimLayer(nn.Module):
    """What slimmable layers share: two axes, a choice of backend, and conversion from and to `torch.nn`."""

    inputs: Axis
    outputs: Axis
    backend: str = "auto"
    precision: str = "ieee"
    label: str = ""
    """Name in its network, for errors."""
    refusal: str = ""
    """Why the network cannot run at a tensor of UFs, or empty."""
    narrowed: bool = False
    """Whether it was trained at a UF below 1 by `slimse.at`."""

    @classmethod
    def convert(cls, layer: nn.Module, inputs: Axis, outputs: Axis, **options: Any) -> Self:
        """Turn a layer of `torch.nn` into a slimmable one in place: its parameters and whoever holds it stay.

        Args:
            layer: of exactly the type that this class stands in for.
            inputs: what a UF cuts of its input.
            outputs: what a UF cuts of its output.
            **options: further attributes.
        """
        layer.__class__ = cls
        slim: Any = layer
        slim.inputs, slim.outputs = inputs, outputs
        for name, value in options.items():
            setattr(slim, name, value)
        return slim

    def _resolve(self, uf: UF | None) -> UF:
        """The UF of a call: the one that it is given, or that of the block around it."""
        if uf is not None:
            check_uf(uf)
            return uf
        uf = uf_around()
        if uf is None:
            # An activation checkpoint runs layers again when the block that they ran in may be over.
            if self.narrowed and torch._C._current_graph_task_id() != -1:
                raise ValueError(
                    f"{self.label or type(self).__name__} runs again in a backward pass, for an activation checkpoint "
                    "inside of a block of slimse.at: expected the checkpoint around the block"
                )
            return 1.0
        if isinstance(uf, Tensor) and self.refusal:
            raise ValueError(f"uf has shape {tuple(uf.shape)}: expected a number, as {self.refusal}")
        if self.training and not self.narrowed:
            self.narrowed = isinstance(uf, Tensor) or uf != 1
        return uf

    def _replicate_for_data_parallel(self) -> Any:
        raise ValueError(
            "torch.nn.DataParallel runs a network in threads that know no UF: expected DistributedDataParallel"
        )

    def _is_whole(self, uf: UF) -> bool:
        """Whether a call is one of the layer of `torch.nn`."""
        return not isinstance(uf, Tensor) and uf == 1 and self.backend != "triton"

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        """Views of the active part of every parameter."""
        raise TypeError(f"{type(self).__name__} must define _parts")

    def _sources(self) -> list[Tensor | None]:
        """The tensors that `_parts` gives views of."""
        return [*self._parameters.values()]

    def _active(self, uf: float) -> tuple[int, list[Any]]:
        """Active channels of the input, and the active part of every parameter, at one UF.

        The views are kept from call to call, as making them takes as long as a small layer. They are made anew
        where gradients are recorded, under a compiler, and for parameters that lie elsewhere than before.
        """
        places: list[int] = []
        usable = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        for source in self._sources() if usable else ():
            if type(source) in _HAVE_PLACES:
                places.append(source.data_ptr())  # type: ignore[union-attr]
            elif source is not None:
                usable = False
        if not usable:
            return self.inputs.count(uf), [joined(parts) for parts in self._parts(uf)]
        kept = self.__dict__.setdefault("_kept", {})
        found = kept.get(uf)
        if found is None or found[0] != places:
            if len(kept) >= _MOST_KEPT:
                kept.clear()
            found = kept[uf] = places, self.inputs.count(uf), self._parts(uf)
        return found[1], [joined(parts) for parts in found[2]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.__dict__.pop("_kept", None)
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the views that are kept."""
        return {name: value for name, value in super().__getstate__().items() if name != "_kept"}  # type: ignore[misc]

    def _choose(self, inputs: int, outputs: int, cut: str, backend: str, precision: str) -> None:
        """Check and keep the options that `torch.nn` does not have."""
        if cut not in CUTS:
            raise ValueError(f"cut = {cut!r}: expected one of {CUTS}")
        groups = getattr(self, "groups", 1)
        if groups != 1 and cut != "both":
            raise ValueError(f"cut = {cut!r} with groups = {groups}: expected 'both', as a group has channels of both")
        check_backend(backend, precision)
        blocks = groups if groups > 1 else None
        self.inputs = Axis.of(inputs, cut=cut in ("input", "both"), blocks=blocks)
        self.outputs = Axis.of(outputs, cut=cut in ("output", "both"), blocks=blocks)
        self.backend, self.precision = backend, precision

    @property
    def _options(self) -> dict[str, Any]:
        return {"backend": self.backend, "precision": self.precision}

    def _on_kernels(self, input: Tensor) -> bool:
        """Whether a call at a tensor of UFs runs as an op of `slimse.ops`: those know one prefix per position."""
        one_prefix = len(self.inputs) == len(self.outputs) == 1 and getattr(self, "groups", 1) == 1
        return one_prefix and (self.backend == "triton" or (self.backend == "auto" and input.is_cuda))

    def _widths(self, uf: Tensor, shape: tuple[int, ...], positions: int) -> list[int | Tensor]:
        """Active channels of an input ``[B, T, ...]`` and of an output of ``positions``, as the ops take them."""
        widths: list[int | Tensor] = []
        for axis, length in ((self.inputs, shape[1]), (self.outputs, positions)):
            if uf.shape[0] != shape[0] or (axis.is_cut and uf.ndim == 2 and uf.shape[1] != length):
                expected = f"expected a number, [{shape[0]}] or [{shape[0]}, {length}]"
                raise ValueError(f"uf has shape {tuple(uf.shape)}: {expected}")
            counts = axis[0].active(uf)
            over = counts if isinstance(counts, int) or counts.ndim == 2 else counts.unsqueeze(1).expand(-1, length)
            widths.append(over if axis.is_cut else axis.size)
        return widths

    def extract(self, uf: float) -> nn.Module:
        """One width as a layer of `torch.nn` of its own, with copies of the weights that it needs."""
        raise TypeError(f"{type(self).__name__} must define extract")

    def extra_repr(self) -> str:
        """The options of `torch.nn`, and the axes."""
        return f"{super().extra_repr()}, {describe_cut(self.inputs, self.outputs)}"


def describe_cut(inputs: Axis, outputs: Axis) -> str:
    """Which sides of a layer a UF cuts."""
    sides = [name for name, axis in (("input", inputs), ("output", outputs)) if axis.is_cut]
    return f"cut={'+'.join(sides) or None}"


def bare(kind: type[nn.Module], like: nn.Module, **replaced: Any) -> Any:
    """A copy of ``like`` as a plain ``kind``, without its hooks, with some attributes or parameters replaced.

    Parameters and buffers are copied, so that training one does not change the other.
    """
    plain = kind.__new__(kind)
    nn.Module.__init__(plain)
    own = {"inputs", "outputs", "backend", "precision", "label", "refusal", "narrowed", "_kept"}
    kept = {
        name: value
        for name, value in like.__dict__.items()
        if name not in nn.Module().__dict__ and name not in own and name not in replaced
    }
    plain.__dict__.update(kept)
    plain.train(like.training)
    for name, parameter in like._parameters.items():
        plain.register_parameter(name, _copied(replaced.pop(name, parameter), parameter))
    for name, buffer in like._buffers.items():
        value = replaced.pop(name, buffer)
        plain.register_buffer(name, None if value is None else value.detach().clone())
    for name, value in replaced.items():
        setattr(plain, name, value)
    return plain


def _copied(value: Tensor | None, like: nn.Parameter | None) -> nn.Parameter | None:
    if value is None or like is None:
        return None
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), like.requires_grad)


class SlimLinear(SlimLayer, nn.Linear):
    """`torch.nn.Linear` with a UF: the active features are a prefix of the output, the input or both.

    Args:
        *args: as of `torch.nn.Linear`.
        cut: ``"output"``, ``"input"`` or ``"both"``: the side that a UF cuts.
        backend: see `slimse.ops`; ``"auto"`` runs PyTorch at a UF that is a number.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.Linear`.

    Shape:
        ``[..., C_in]`` to ``[..., C_out]``; see `SlimConv1d`. A UF that is a tensor is ``[B]`` for an input
        ``[B, ..., C_in]``, or ``[B, T]`` for ``[B, T, C_in]``.

    Raises:
        ValueError: for an unknown ``cut``, backend or precision.
    """

    def __init__(
        self, *args: Any, cut: str = "output", backend: str = "auto", precision: str = "ieee", **kwargs: Any
    ) -> None:
        nn.Linear.__init__(self, *args, **kwargs)
        self._choose(self.in_features, self.out_features, cut, backend, precision)

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``: a number in (0, 1], ``[B]`` or ``[B, T]``."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return nn.Linear.forward(self, input)
        if isinstance(uf, Tensor):
            return self._ragged(input, uf)
        count, (weight, bias) = self._active(uf)
        x = input if input.shape[-1] == count else self.inputs.take(input, -1, uf)
        if self.backend != "triton":
            return F.linear(x, weight, bias)
        items = x.reshape(1, -1, x.shape[-1])
        packed = weight.unsqueeze(1).contiguous()
        out: Tensor = slim_conv1d(items, packed, bias, weight.shape[1], weight.shape[0], **self._options)
        return out.reshape(*x.shape[:-1], weight.shape[0])

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        weight = self.inputs.parts(self.outputs.parts(self.weight, 0, uf), 1, uf)
        return weight, self.outputs.parts(self.bias, 0, uf)

    def _ragged(self, input: Tensor, uf: Tensor) -> Tensor:
        if input.ndim < 2:
            raise ValueError(f"uf is a tensor, the input has shape {tuple(input.shape)}: expected [B, ..., C_in]")
        if input.ndim == 3 and self._on_kernels(input):
            widths = self._widths(uf, input.shape[:2], input.shape[1])
            out: Tensor = slim_conv1d(input, self.weight.unsqueeze(1), self.bias, *widths, **self._options)
            return out
        return self.outputs.silence(nn.Linear.forward(self, self.inputs.silence(input, -1, uf)), -1, uf)

    def extract(self, uf: float) -> nn.Linear:
        """One width as a `torch.nn.Linear` of its own, with copies of the weights that it needs."""
        _, (weight, bias) = self._active(uf)
        return bare(
            nn.Linear, self, in_features=weight.shape[1], out_features=weight.shape[0], weight=weight, bias=bias
        )


class SlimEmbedding(SlimLayer, nn.Embedding):
    """`torch.nn.Embedding` with a UF: the active features are a prefix of each vector.

    Args:
        *args: as of `torch.nn.Embedding`.
        **kwargs: as of `torch.nn.Embedding`.

    Shape:
        ``[*]`` to ``[*, D]``, at a UF that is a number ``[*, k]``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Embedding.__init__(self, *args, **kwargs)
        self._choose(1, self.embedding_dim, "output", "auto", "ieee")

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``: a number in (0, 1], ``[B]``, or ``[B, T]`` for an input ``[B, T]``."""
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return nn.Embedding.forward(self, input)
        if isinstance(uf, Tensor):
            return self.outputs.silence(nn.Embedding.forward(self, input), -1, uf)
        _, (weight,) = self._active(uf)
        options = (self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
        return F.embedding(input, weight, *options)

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        return (self.outputs.parts(self.weight, 1, uf),)

    def extract(self, uf: float) -> nn.Embedding:
        """One width as a `torch.nn.Embedding` of its own, with copies of the weights that it needs."""
        _, (weight,) = self._active(uf)
        return bare(nn.Embedding, self, embedding_dim=weight.shape[1], weight=weight)


class SlimPReLU(SlimLayer, nn.PReLU):
    """`torch.nn.PReLU` with a slope per channel, of which a UF leaves the active ones.

    Args:
        *args: as of `torch.nn.PReLU`.
        **kwargs: as of `torch.nn.PReLU`.

    Shape:
        ``[B, C, *]``, or with the active channels alone, to the same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.PReLU.__init__(self, *args, **kwargs)
        self._choose(self.num_parameters, self.num_parameters, "both", "auto", "ieee")

    def forward(self, input: Tensor, *, uf: UF | None = None) -> Tensor:
        """Run at ``uf``; a tensor of any shape, as every channel is worked on alone."""
        uf = self._resolve(uf)
        if isinstance(uf, Tensor) or self._is_whole(uf):
            return nn.PReLU.forward(self, input)
        count, (weight,) = self._active(uf)
        return F.prelu(input if input.shape[1] == count else self.inputs.take(input, 1, uf), weight)

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        return (self.inputs.parts(self.weight, 0, uf),)

    def extract(self, uf: float) -> nn.PReLU:
        """One width as a `torch.nn.PReLU` of its own."""
        _, (weight,) = self._active(uf)
        return bare(nn.PReLU, self, num_parameters=len(weight), weight=weight)
