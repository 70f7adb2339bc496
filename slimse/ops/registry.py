"""What an op is, in one place: its `OpSpec`, which registration, launchers, tuning and first-use checks read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from . import blocks, convolution, recurrent, signal

Values = Mapping[str, Any]
"""Arguments of a reference by name."""
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class OpSpec:
    """A reference implementation and what its kernels need beyond its arguments.

    The kernels are ``<name>_forward`` and ``<name>_backward`` in the module of the op's name in `slimse.kernels`.

    Args:
        reference: plain torch; its name is the op's.
        shapes: those of the outputs, from the reference's arguments; or a tensor that an output is like.
        axes: what the leading axes of arguments are: B (batch), T (time of the first argument), P (positions of the
            first output), or _ (any other).
        bounds: by width, the argument and the axis of it that say how many channels it may have at most.
        steps: positions of the first argument on which a kernel is checked before its first use.
        autocast: whether the op runs in autocast's dtype. Recurrent ones keep that of their weights: what rounding does
            to a state adds up over thousands of steps.
        added: an argument that is only ever added to the first one, so that they share a gradient.
        recurrent: whether the outputs after the first are the state after the last step.
        order: rows of the arguments in the order in which they share tiles, or None; for launchers that take one.
        backward_order: whether the backward launcher takes it as well.
        backward_drops: arguments of the reference that the backward launcher does not take.
        skips: what the backward launcher can leave out: ``"input_grad"``, the gradient at the first argument, and
            ``"weight_grads"``, those at weights and biases.
        gradients: the arguments whose gradients the backward launcher returns, in its order; all tensors by default.
        tuned: columns and channels by which a table of launch parameters is looked up.
        registered: whether it is an op of PyTorch, with a kernel for its gradient. Others are what their reference is
            made of wherever somebody looks on, or wants a gradient.
        positive: arguments that are never negative.
    """

    reference: Callable[..., Any]
    shapes: Callable[..., list[Any]]
    axes: Mapping[str, str]
    bounds: Mapping[str, tuple[str, int]] = field(default_factory=lambda: NONE)
    steps: int = 256
    autocast: bool = True
    added: str = ""
    recurrent: bool = False
    order: Callable[[Values], Tensor | None] | None = None
    backward_order: bool = True
    backward_drops: tuple[str, ...] = ()
    skips: tuple[str, ...] = ("input_grad", "weight_grads")
    gradients: tuple[str, ...] = ()
    tuned: Callable[[Values], tuple[int, int]] | None = None
    registered: bool = True
    positive: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the op."""
        return self.reference.__name__

    def launcher(self, direction: str) -> Callable[..., Any]:
        """``"forward"`` or ``"backward"``. Kernels are imported on first use: Triton may be missing."""
        return getattr(kernels(self.name), f"{self.name}_{direction}")

    def reads_outputs(self, values: Values) -> bool:
        """Whether the backward launcher wants what came out: past states, or where a ReLU let something through."""
        return self.recurrent or bool(values.get("relu"))


def kernels(module: str) -> Any:
    """A module of `slimse.kernels`."""
    return importlib.import_module(f"slimse.kernels.{module}")


_SORTED_ROWS = 2**18
"""Most rows that are worth sorting by width. Longer inputs are of shallow levels, where neighbours share a frame."""


def _by_width(name: str) -> Callable[[Values], Tensor | None]:
    """Rows from narrow to wide: where those of one tile differ, all take the time of the widest."""

    def order(values: Values) -> Tensor | None:
        width = values[name]
        return kernels("launching").by_width(width) if _sorted(width) else None

    return order


def _decoder_order(values: Values) -> Tensor | None:
    width = values["width"]
    if not _sorted(width):
        return None
    reach = values["conv_weight"].shape[1] // (values["stride"] * values["channels"])
    return kernels("decoder_block").decoder_order(width, reach)


def _sorted(width: Any) -> bool:
    return isinstance(width, Tensor) and width.numel() <= _SORTED_ROWS


def _encoder(x: Tensor, conv_weight: Tensor, stride: int, **_: Any) -> list[Any]:
    kernel = conv_weight.shape[1] // x.shape[2]
    return [(x.shape[0], torch.sym_max((x.shape[1] - kernel) // stride + 1, 0), conv_weight.shape[0])]


def _decoder(x: Tensor, conv_weight: Tensor, stride: int, channels: int, **_: Any) -> list[Any]:
    return [(x.shape[0], stride * (x.shape[1] - 1) + conv_weight.shape[1] // channels, channels)]


def _conv(x: Tensor, weight: Tensor, width_out: Any, stride: int, padding: int, dilation: int, **_: Any) -> list[Any]:
    positions = (x.shape[1] + 2 * padding - dilation * (weight.shape[1] - 1) - 1) // stride + 1
    return [(x.shape[0], positions, weight.shape[0] if isinstance(width_out, Tensor) else width_out)]


def _conv_transpose(
    x: Tensor, weight: Tensor, width_out: Any, stride: int, padding: int, output_padding: int, dilation: int, **_: Any
) -> list[Any]:
    positions = (x.shape[1] - 1) * stride - 2 * padding + dilation * (weight.shape[1] - 1) + output_padding + 1
    return [(x.shape[0], positions, weight.shape[2] if isinstance(width_out, Tensor) else width_out)]


def _glu(x: Tensor, weight: Tensor, width: Any, cut: str, **_: Any) -> list[Any]:
    if cut == "input":
        return [(*x.shape[:2], weight.shape[1] // 2)]
    return [(*x.shape[:2], weight.shape[0] if isinstance(width, Tensor) else width)]


def _diagonal(gates_x: Tensor, state: Tensor, **_: Any) -> list[Any]:
    return [(*gates_x.shape[:2], gates_x.shape[3]), state]


def _gru(x: Tensor, weight_hh: Tensor, state: Tensor, **_: Any) -> list[Any]:
    return [(*x.shape[:2], weight_hh.shape[0] * weight_hh.shape[1]), state]


def _own_shapes(**values: Any) -> list[Any]:
    raise TypeError("no registered op: its outputs are made by its reference or its kernels")


def _lstm(x: Tensor, weight_hh: Tensor, width: Any, state: tuple[Tensor, Tensor], **_: Any) -> list[Any]:
    units = weight_hh.shape[0] if isinstance(width, Tensor) else width
    return [(*x.shape[:2], units), *state]


_SPECS = (
    OpSpec(
        blocks.encoder_block,
        _encoder,
        axes={"x": "BT", "width": "BP"},
        bounds={"width": ("conv_weight", 0)},
        steps=520,
        order=_by_width("width"),
        tuned=lambda values: values["conv_weight"].shape[::-1],
    ),
    OpSpec(
        blocks.decoder_block,
        _decoder,
        axes={"x": "BT", "skip": "BT", "width": "BT"},
        bounds={"width": ("conv_weight", 0)},
        added="skip",
        order=_decoder_order,
        backward_drops=("relu", "conv_bias"),
        skips=("weight_grads",),
        gradients=("x", "glu_weight", "glu_bias", "conv_weight", "conv_bias"),
        tuned=lambda values: (values["stride"] * values["channels"], values["conv_weight"].shape[0]),
    ),
    OpSpec(
        convolution.slim_conv1d,
        _conv,
        axes={"x": "BT", "width_in": "BT", "width_out": "BP"},
        bounds={"width_in": ("x", 2), "width_out": ("weight", 0)},
        order=_by_width("width_out"),
        backward_order=False,
    ),
    OpSpec(
        convolution.slim_conv_transpose1d,
        _conv_transpose,
        axes={"x": "BT", "width_in": "BT", "width_out": "BP"},
        bounds={"width_in": ("x", 2), "width_out": ("weight", 2)},
    ),
    OpSpec(
        convolution.slim_linear_glu,
        _glu,
        axes={"x": "BT", "skip": "BT", "width": "BT"},
        bounds={"width": ("weight", 0)},
        added="skip",
        skips=("weight_grads",),
        order=_by_width("width"),
        gradients=("x", "weight", "bias"),
    ),
    OpSpec(
        recurrent.diagonal_gru,
        _diagonal,
        axes={"gates_x": "BT", "state": "B"},
        skips=(),
        steps=4,
        autocast=False,
        recurrent=True,
    ),
    OpSpec(
        recurrent.slim_gru,
        _gru,
        axes={"x": "BT", "width": "BT", "state": "_B"},
        bounds={"width": ("weight_hh", 1)},
        steps=4,
        autocast=False,
        recurrent=True,
    ),
    OpSpec(
        recurrent.slim_lstm,
        _lstm,
        axes={"x": "BT", "width": "BT", "state": "B"},
        bounds={"width": ("weight_hh", 0)},
        steps=4,
        autocast=False,
        recurrent=True,
    ),
    OpSpec(signal.sinc_resample, _own_shapes, axes={"x": "BT", "history": "B_"}, steps=400, registered=False),
    OpSpec(
        signal.running_level,
        _own_shapes,
        axes={"x": "BT", "sums": "B_", "seen": "B_"},
        steps=2500,
        registered=False,
        positive=("sums", "seen"),
    ),
)
SPECS: Mapping[str, OpSpec] = {spec.name: spec for spec in _SPECS}
"""All ops by name."""
