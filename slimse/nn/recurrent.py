"""LSTM and GRU that stand in for those of `torch.nn` and run at any width."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import check_backend, slim_gru, slim_lstm
from ..width import UF
from .axis import Axis, Parts, Segment
from .layers import SlimLayer, bare


class _SlimRNN(SlimLayer):
    """What `SlimLSTM` and `SlimGRU` share: the same prefix of units in every layer and direction."""

    plain: ClassVar[Any]
    gates: ClassVar[int]
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    def __init__(self, *args: Any, backend: str = "auto", precision: str = "ieee", **kwargs: Any) -> None:
        self.plain.__init__(self, *args, **kwargs)
        if self.proj_size:
            raise ValueError(f"proj_size = {self.proj_size}: expected 0")
        check_backend(backend, precision)
        self.inputs = Axis.of(self.input_size, cut=False)
        self.outputs = Axis([Segment(self.hidden_size, self.hidden_size)] * self.directions)
        self.backend, self.precision = backend, precision

    @property
    def directions(self) -> int:
        """1, or 2 if the layer also runs backwards."""
        return 2 if self.bidirectional else 1

    def forward(self, input: Tensor, hx: Any = None, *, uf: UF | None = None) -> tuple[Tensor, Any]:
        """Run all steps at ``uf``.

        Args:
            input: as in `torch.nn`.
            hx: as in `torch.nn`, for all units; zeros by default.
            uf: a number in (0, 1], ``[B]``, or one per step, ``[B, T]``.

        Returns:
            As in `torch.nn`. At a UF that is a number the output has the active units of each direction alone, at a
            tensor zeros in the others. The state has all units; one outside the width keeps its state.

        Raises:
            ValueError: for a packed sequence, or an input, state or ``uf`` that does not fit.
        """
        uf = self._resolve(uf)
        if self._is_whole(uf):
            return self.plain.forward(self, input, hx)  # type: ignore[no-any-return]
        if isinstance(input, nn.utils.rnn.PackedSequence):
            raise ValueError("input is a PackedSequence: expected a padded tensor")
        x = input if isinstance(uf, Tensor) else self.inputs.take(input, -1, uf)
        if x.ndim not in (2, 3):
            raise ValueError(f"input has shape {tuple(input.shape)}: expected 2 or 3 axes, the last {self.input_size}")
        parts = hx if isinstance(hx, tuple) else () if hx is None else (hx,)
        self._check_state(parts, input)
        if input.ndim == 2:
            batch_axis = 0 if self.batch_first else 1
            many = tuple(part.unsqueeze(1) for part in parts)
            out, after = self.forward(input.unsqueeze(batch_axis), self._state(many) if parts else None, uf=uf)
            single = tuple(part.squeeze(1) for part in (after if isinstance(after, tuple) else (after,)))
            return out.squeeze(batch_axis), self._state(single)
        if isinstance(uf, Tensor) or self.backend == "triton":
            return self._on_ops(x, parts or self._zeros(x, self.hidden_size), uf)
        return self._native(x, parts, uf)

    def _zeros(self, x: Tensor, units: int) -> tuple[Tensor, ...]:
        """The state before a signal."""
        zeros = x.new_zeros(self.num_layers * self.directions, x.shape[0 if self.batch_first else 1], units)
        return (zeros,) * (2 if self.gates == 4 else 1)

    def _units(self, uf: UF) -> Any:
        """Active units of each direction: a number, or int64 of the shape of ``uf``."""
        if not self.outputs.is_cut:
            return (
                torch.full(uf.shape, self.hidden_size, device=uf.device) if isinstance(uf, Tensor) else self.hidden_size
            )
        return self.outputs[0].active(uf)

    @staticmethod
    def _state(parts: tuple[Tensor, ...]) -> Any:
        """As `torch.nn` has it: a tuple for an LSTM, a tensor for a GRU."""
        return parts if len(parts) == 2 else parts[0]

    def _check_state(self, parts: tuple[Tensor, ...], input: Tensor) -> None:
        """Check a state, of which there are as many parts as `torch.nn` has, or none."""
        batch = [input.shape[0 if self.batch_first else 1]] if input.ndim == 3 else []
        expected = (self.num_layers * self.directions, *batch, self.hidden_size)
        found = [tuple(part.shape) for part in parts]
        count = 2 if self.gates == 4 else 1
        if found and found != [expected] * count:
            raise ValueError(f"hx has shapes {found}: expected {count} of {expected}")

    def _layers(self) -> list[tuple[int, str]]:
        """Number and suffix of the parameters of every layer and direction, in the order of `torch.nn`."""
        suffixes = ("", "_reverse")[: self.directions]
        return [(layer, f"_l{layer}{suffix}") for layer in range(self.num_layers) for suffix in suffixes]

    def _parts(self, uf: float) -> tuple[Parts, ...]:
        """Views of the active weights and biases, in the order of `torch.nn`; their first axis is of gates."""
        k, found = self._units(uf), list[Parts]()
        for layer, suffix in self._layers():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]:
                rows = getattr(self, name + suffix).unflatten(0, (self.gates, self.hidden_size)).narrow(1, 0, k)
                if name == "weight_ih":
                    found.append((self.outputs if layer else self.inputs).parts(rows, 2, uf))
                else:
                    found.append(rows.narrow(2, 0, k) if name == "weight_hh" else rows)
        return tuple(found)

    def _weights(self, uf: float) -> list[Tensor]:
        """The active part of all weights and biases, as `torch.nn` has them."""
        return [rows.flatten(0, 1) for rows in self._active(uf)[1]]

    def _native(self, x: Tensor, parts: tuple[Tensor, ...], uf: float) -> tuple[Tensor, Any]:
        """PyTorch's own recurrence on the active units."""
        k = self._units(uf)
        active = tuple(part[..., :k].contiguous() for part in parts) or self._zeros(x, k)
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, self.batch_first)
        if self.gates == 4:
            out, *new = torch.lstm(x, active, self._weights(uf), *options)
        else:
            out, *new = torch.gru(x, active[0], self._weights(uf), *options)
        if parts and k < self.hidden_size:
            new = [torch.cat([part, old[..., k:]], -1) for part, old in zip(new, parts, strict=True)]
        elif k < self.hidden_size:
            new = [torch.cat([part, part.new_zeros(*part.shape[:2], self.hidden_size - k)], -1) for part in new]
        return out, self._state(tuple(new))

    def _on_ops(self, x: Tensor, parts: tuple[Tensor, ...], uf: UF) -> tuple[Tensor, Any]:
        """The recurrences of `slimse.ops`, which know a number of units per step."""
        x = x if self.batch_first else x.transpose(0, 1)
        width: Any = self._units(uf)
        if isinstance(uf, Tensor):
            if uf.shape != x.shape[: uf.ndim]:
                expected = f"expected a number, [{x.shape[0]}] or [{x.shape[0]}, {x.shape[1]}]"
                raise ValueError(f"uf has shape {tuple(uf.shape)}: {expected}")
            x = self.inputs.silence(x, -1, uf)
            width = width if uf.ndim == 2 else width.unsqueeze(1).expand(-1, x.shape[1])
        states, new = list(zip(*(part.unbind(0) for part in parts), strict=True)), []
        outputs: list[Tensor] = []
        for number, (layer, suffix) in enumerate(self._layers()):
            if number and number % self.directions == 0:
                x, outputs = torch.cat(outputs, -1), []
                x = nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
            backwards = number % self.directions == 1
            steps = width.flip(1) if backwards and isinstance(width, Tensor) else width
            weights = self._packed(suffix, self.outputs if layer else self.inputs, uf)
            out, after = self._direction(x.flip(1) if backwards else x, weights, steps, states[number])
            outputs.append(out.flip(1) if backwards else out)
            new.append(after)
        out = torch.cat(outputs, -1)
        after = self._state(tuple(torch.stack(part) for part in zip(*new, strict=True)))
        return out if self.batch_first else out.transpose(0, 1), after

    def _packed(self, suffix: str, below: Axis, uf: UF) -> list[Tensor]:
        """Weights and biases of a direction with one record per unit, for the active channels of its input."""
        weight_ih, weight_hh = (
            rearrange(getattr(self, name + suffix), "(g h) i -> h g i", g=self.gates)
            for name in ("weight_ih", "weight_hh")
        )
        if not isinstance(uf, Tensor):
            weight_ih = below.narrow(weight_ih, 2, uf)
        if self.bias:
            biases = [
                rearrange(getattr(self, name + suffix), "(g h) -> h g", g=self.gates) for name in ("bias_ih", "bias_hh")
            ]
        else:
            biases = [weight_ih.new_zeros(self.hidden_size, self.gates)] * 2
        return [tensor.contiguous() for tensor in (weight_ih, weight_hh, *biases)]

    def _direction(self, x: Tensor, weights: list[Tensor], width: Any, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        """Run one direction of one layer; at a number of units, put out these alone."""
        raise TypeError(f"{type(self).__name__} must define _direction")

    def extract(self, uf: float) -> Any:
        """One width as a `torch.nn` layer of its own, of ``ceil(uf * hidden_size)`` units."""
        names = [
            name + suffix
            for _, suffix in self._layers()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        ]
        weights = dict(zip(names, self._weights(uf), strict=True))
        sizes = {"input_size": self.inputs.count(uf), "hidden_size": self._units(uf)}
        plain = bare(self.plain, self, **sizes, **weights)
        # What `torch.nn` keeps beside its parameters, for cuDNN.
        plain._init_flat_weights()
        return plain


class SlimLSTM(_SlimRNN, nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM` with a UF: the active hidden units of every layer and direction are a prefix.

    Args:
        *args: as of `torch.nn.LSTM`. ``proj_size`` must be 0.
        backend: see `slimse.ops`; ``"auto"`` runs PyTorch's recurrence at a UF that is a number.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.LSTM`.

    Shape:
        As of `torch.nn.LSTM`, with ``k`` units per direction in the output at a UF that is a number.

    Raises:
        ValueError: for a ``proj_size``, or an unknown backend or precision.
    """

    plain, gates = nn.LSTM, 4

    def _direction(self, x: Tensor, weights: list[Tensor], width: Any, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        both = (state[0].contiguous(), state[1].contiguous())
        return slim_lstm(x, weight_ih, weight_hh, bias_ih + bias_hh, width, both, **self._options)


class SlimGRU(_SlimRNN, nn.GRU):  # type: ignore[misc]
    """`torch.nn.GRU` with a UF: the active hidden units of every layer and direction are a prefix.

    Args:
        *args: as of `torch.nn.GRU`.
        backend: see `slimse.ops`; ``"auto"`` runs PyTorch's recurrence at a UF that is a number.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.GRU`.

    Shape:
        As of `torch.nn.GRU`, with ``k`` units per direction in the output at a UF that is a number.

    Raises:
        ValueError: for an unknown backend or precision.
    """

    plain, gates = nn.GRU, 3

    def _direction(self, x: Tensor, weights: list[Tensor], width: Any, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        grouped = [weight.unsqueeze(0) for weight in weights]
        out, new = slim_gru(x, *grouped, width, state[0].unsqueeze(0).contiguous(), **self._options)
        return out if isinstance(width, Tensor) else out[..., :width], (new[0],)
