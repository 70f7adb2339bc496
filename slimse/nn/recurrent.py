"""Recurrent layers: those that stand in for `torch.nn`'s and run at any width, and the bottlenecks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import check_backend, slim_gru, slim_lstm
from ..width import UF, Width, active_channels, max_width
from .packed import PackedModule


class GroupedGRU(PackedModule):
    """``groups`` GRUs side by side, each on its own slice of the channels; always full width.

    Args:
        channels: channels in and out, a multiple of ``groups``.
        groups: number of GRUs.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.

    Shape:
        ``[B, T, channels]`` and a state ``[groups, B, channels / groups]`` to the same.

    The `state_dict` has the keys of a `torch.nn.ModuleList` of `torch.nn.GRU`.
    Source: the bottleneck of arXiv 2507.04879.
    """

    def __init__(self, channels: int, groups: int, *, backend: str = "auto", precision: str = "ieee") -> None:
        super().__init__()
        self.backend, self.precision = backend, precision
        size = channels // groups
        self.channels, self.groups, self.size = channels, groups, size
        self.weight_ih = nn.Parameter(torch.empty(groups, size, 3, size))
        self.weight_hh = nn.Parameter(torch.empty(groups, size, 3, size))
        self.bias_ih = nn.Parameter(torch.empty(groups, size, 3))
        self.bias_hh = nn.Parameter(torch.empty(groups, size, 3))
        self.load_state_dict(nn.ModuleList(nn.GRU(size, size) for _ in range(groups)).state_dict())

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys ``{group}.weight_ih_l0`` and so on, as `torch.nn.GRU` lays them out."""
        return {
            f"{group}.{name}_l0": rearrange(tensor[group], "h g ... -> (g h) ...")
            for group in range(self.groups)
            for name, tensor in packed.items()
        }

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `unpack`."""
        packed = {}
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            stacked = torch.stack([public[f"{group}.{name}_l0"] for group in range(self.groups)])
            packed[name] = rearrange(stacked, "m (g h) ... -> m h g ...", g=3)
        return packed

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor]:
        """Zeros, on the device and in the dtype of ``like``."""
        return (like.new_zeros(self.groups, batch, self.size),)

    def forward(self, x: Tensor, width: Width, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        """Run ``T`` steps from ``state``, all units whatever the ``width``."""
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        out, new = slim_gru(x, *weights, self.size, state[0], backend=self.backend, precision=self.precision)
        return out, (new,)

    def count(self, args: tuple[Tensor, Width, tuple[Tensor]], output: object) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, and weight bytes that one step reads."""
        macs = self.weight_ih.numel() + self.weight_hh.numel()
        read = macs + self.bias_ih.numel() + self.bias_hh.numel()
        return macs * args[0].shape[1], read * self.weight_ih.element_size()


class _SlimRNN(PackedModule):
    """What `SlimLSTM` and `SlimGRU` share: all layers and directions, one after the other."""

    plain: type[nn.LSTM] | type[nn.GRU]
    gates: int
    state_parts: int
    proj_size = 0

    def __init__(self, *args: Any, backend: str = "auto", precision: str = "ieee", **kwargs: Any) -> None:
        super().__init__()
        check_backend(backend, precision)
        plain = self.plain(*args, **kwargs)
        if plain.proj_size:
            raise ValueError(f"proj_size = {plain.proj_size}: expected 0")
        self.input_size, self.hidden_size, self.num_layers = plain.input_size, plain.hidden_size, plain.num_layers
        self.bias, self.batch_first, self.dropout = plain.bias, plain.batch_first, plain.dropout
        self.bidirectional, self.directions = plain.bidirectional, 2 if plain.bidirectional else 1
        self.backend, self.precision = backend, precision
        for name, tensor in self.pack(dict(plain.named_parameters())).items():
            self.register_parameter(name, nn.Parameter(tensor.detach().contiguous()))

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys ``weight_ih_l0`` and so on, as `torch.nn` lays them out."""
        return {name: rearrange(tensor, "h g ... -> (g h) ...") for name, tensor in packed.items()}

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """One record per hidden unit; the inverse of `unpack`."""
        return {name: rearrange(tensor, "(g h) ... -> h g ...", g=self.gates) for name, tensor in public.items()}

    def forward(self, input: Tensor, hx: Any = None, *, uf: UF = 1.0) -> tuple[Tensor, Any]:
        """Run all steps at ``uf``.

        Args:
            input: as in `torch.nn`.
            hx: as in `torch.nn`; zeros by default.
            uf: a number in (0, 1]; without a second direction also ``[B]`` or ``[B, T]``.

        Returns:
            As in `torch.nn`. A unit outside the width keeps its state and puts out zero.

        Raises:
            ValueError: for a packed sequence, or an input, state or ``uf`` that does not fit.
        """
        if isinstance(input, nn.utils.rnn.PackedSequence):
            raise ValueError("input is a PackedSequence: expected a padded tensor")
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(f"input has shape {tuple(input.shape)}: expected 2 or 3 axes, the last {self.input_size}")
        parts = hx if isinstance(hx, tuple) else () if hx is None else (hx,)
        self._check_state(parts, input)
        single = input.ndim == 2
        if single:
            input, parts = input.unsqueeze(0 if self.batch_first else 1), tuple(part.unsqueeze(1) for part in parts)
        x = input if self.batch_first else input.transpose(0, 1)
        zeros = x.new_zeros(self.num_layers * self.directions, x.shape[0], self.hidden_size)
        parts = parts or (zeros,) * self.state_parts
        states = list(zip(*(part.unbind(0) for part in parts), strict=True))
        x, new = self.run(x, active_channels(uf, self.hidden_size, x.shape[1]), states)
        after = tuple(torch.stack(part) for part in zip(*new, strict=True))
        x = x if self.batch_first else x.transpose(0, 1)
        if single:
            x, after = x.squeeze(0 if self.batch_first else 1), tuple(part.squeeze(1) for part in after)
        return x, after if len(after) == 2 else after[0]

    def _check_state(self, parts: tuple[Tensor, ...], input: Tensor) -> None:
        """Check a state, of which there are as many parts as `torch.nn` has, or none."""
        batch = [input.shape[0 if self.batch_first else 1]] if input.ndim == 3 else []
        expected = (self.num_layers * self.directions, *batch, self.hidden_size)
        found = [tuple(part.shape) for part in parts]
        if found and found != [expected] * self.state_parts:
            raise ValueError(f"hx has shapes {found}: expected {self.state_parts} of {expected}")

    def flatten_parameters(self) -> None:
        """Do nothing: networks call it for cuDNN, and the weights lie as the kernels want them."""

    def run(self, x: Tensor, width: Width, states: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, list[Any]]:
        """Run ``[B, T, inputs]`` with ``width`` active units per step from one state per layer and direction."""
        if self.bidirectional and not isinstance(width, int):
            raise ValueError("two directions run at one width per call: pass uf as a float")
        new: list[Any] = []
        for layer in range(self.num_layers):
            x = nn.functional.dropout(x, self.dropout, self.training) if layer and self.dropout else x
            outputs = []
            for direction in range(self.directions):
                suffix = f"_l{layer}{'_reverse' if direction else ''}"
                out, after = self.direction(x.flip(1) if direction else x, suffix, width, states[len(new)])
                outputs.append(out.flip(1) if direction else out)
                new.append(after)
            # Of two directions each keeps its columns in place; one may hand on its active units alone.
            x = outputs[0] if self.directions == 1 else torch.cat([self._widen(out) for out in outputs], dim=2)
        return (self._widen(x) if self.directions == 1 else x), new

    def direction(self, x: Tensor, suffix: str, width: Width, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        """Run one direction of one layer, whose parameters end in ``suffix``."""
        raise TypeError(f"{type(self).__name__} must define direction")

    def _weights(self, suffix: str) -> list[Tensor]:
        weights = [self.get_parameter(f"weight_{kind}{suffix}") for kind in ("ih", "hh")]
        if self.bias:
            return [*weights, *(self.get_parameter(f"bias_{kind}{suffix}") for kind in ("ih", "hh"))]
        zeros = weights[0].new_zeros(self.hidden_size, self.gates)
        return [*weights, zeros, zeros]

    def _widen(self, x: Tensor) -> Tensor:
        missing = self.hidden_size - x.shape[2]
        return nn.functional.pad(x, (0, missing)) if missing else x

    @torch.no_grad()
    def extract(self, uf: float) -> Any:
        """One width as a `torch.nn` layer of its own, of ``ceil(uf * hidden_size)`` units."""
        k = active_channels(uf, self.hidden_size, 1)
        options = (self.num_layers, self.bias, self.batch_first, self.dropout, self.bidirectional)
        plain = self.plain(self.input_size, k, *options).to(next(self.parameters()))  # type: ignore[call-overload]
        for name, tensor in self.named_parameters():
            rows = tensor[:k]
            if name.startswith("weight_hh"):
                rows = rows[..., :k]
            elif name.startswith("weight_ih") and "_l0" not in name:
                rows = rows.unflatten(2, (self.directions, self.hidden_size))[..., :k].flatten(2)
            plain.get_parameter(name).copy_(rearrange(rows, "h g ... -> (g h) ..."))
        return plain.train(self.training)

    def extra_repr(self) -> str:
        """Sizes, and the options that are not the default."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}"
        )


class SlimLSTM(_SlimRNN):
    """`torch.nn.LSTM` with a UF: the active hidden units of every layer are a prefix (see `slimse.ops.slim_lstm`).

    Args:
        *args: as of `torch.nn.LSTM`. ``proj_size`` must be 0.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.LSTM`.

    Shape:
        As of `torch.nn.LSTM` at every UF, units outside the width being zero in the output.

    Raises:
        ValueError: for a ``proj_size``, or an unknown backend or precision.
    """

    plain, gates, state_parts = nn.LSTM, 4, 2

    def direction(self, x: Tensor, suffix: str, width: Width, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        """Run one direction of one layer, whose parameters end in ``suffix``."""
        weight_ih, weight_hh, bias_ih, bias_hh = self._weights(suffix)
        weights, choice = (weight_ih, weight_hh, bias_ih + bias_hh), {"backend": self.backend}
        return slim_lstm(x, *weights, width, (state[0], state[1]), precision=self.precision, **choice)


class SlimGRU(_SlimRNN):
    """`torch.nn.GRU` with a UF: the active hidden units of every layer are a prefix (see `slimse.ops.slim_gru`).

    Args:
        *args: as of `torch.nn.GRU`.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.
        **kwargs: as of `torch.nn.GRU`.

    Shape:
        As of `torch.nn.GRU` at every UF, units outside the width being zero in the output.

    Raises:
        ValueError: for an unknown backend or precision.
    """

    plain, gates, state_parts = nn.GRU, 3, 1

    def direction(self, x: Tensor, suffix: str, width: Width, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        """Run one direction of one layer, whose parameters end in ``suffix``."""
        weights = [weight.unsqueeze(0) for weight in self._weights(suffix)]
        choice = {"backend": self.backend, "precision": self.precision}
        out, new = slim_gru(x, *weights, width, state[0].unsqueeze(0), **choice)
        return out, (new[0],)


class SlimLSTMStack(nn.Module):
    """A `SlimLSTM` as bottleneck, full width at both ends, with a linear layer after two directions.

    Args:
        channels: channels in and out, and units of every layer.
        layers: number of layers.
        bidirectional: add a backward LSTM to each layer, and a linear layer from both back to ``channels``.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.

    Shape:
        ``[B, T, channels]`` to the same; the state is ``(h, c)`` of every layer (and direction) in a row. Units
        outside the width come out as zero.

    Source: the bottleneck of the original DEMUCS denoiser, arXiv 2006.12847; slimming it is this project's addition.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        bidirectional: bool = False,
        backend: str = "auto",
        precision: str = "ieee",
    ) -> None:
        super().__init__()
        self.channels = channels
        options: dict[str, Any] = {"bidirectional": bidirectional, "backend": backend, "precision": precision}
        self.lstm = SlimLSTM(channels, channels, layers, **options)
        self.linear = nn.Linear(2 * channels, channels) if bidirectional else None

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """Zeros, on the device and in the dtype of ``like``."""
        count = 2 * self.lstm.num_layers * self.lstm.directions
        return tuple(like.new_zeros(batch, self.channels) for _ in range(count))

    def forward(self, x: Tensor, width: Width, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run ``T`` steps from ``state`` with ``width`` active units per step in every layer."""
        x, new = self.lstm.run(x, width, list(zip(state[::2], state[1::2], strict=True)))
        return (x if self.linear is None else self.linear(x)), tuple(part for pair in new for part in pair)

    def count(
        self, args: tuple[Tensor, Width, tuple[Tensor, ...]], output: tuple[Tensor, tuple[Tensor, ...]]
    ) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, and weight bytes that one step reads."""
        k = max_width(args[1], self.channels)
        plain = {name: tensor[:k] for name, tensor in self.lstm.named_parameters()}
        macs = sum(
            tensor.numel() if name.startswith("weight_ih_l0") else k * tensor.numel() // self.channels
            for name, tensor in plain.items()
            if name.startswith("weight")
        )
        biases = sum(tensor.numel() for name, tensor in plain.items() if name.startswith("bias"))
        if self.linear is not None:
            macs, biases = macs + self.linear.weight.numel(), biases + self.channels
        return macs * args[0].shape[1], (macs + biases) * args[0].element_size()
