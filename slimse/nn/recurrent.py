"""Recurrent layers of the bottleneck."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import slim_gru, slim_lstm
from ..width import Width, max_width
from .packed import PackedModule


class GroupedGRU(PackedModule):
    """``groups`` GRUs side by side, each on its own slice of the channels; always full width.

    Args:
        channels: channels in and out, a multiple of ``groups``.
        groups: number of GRUs.

    Shape:
        ``[B, T, channels]`` and a state ``[groups, B, channels / groups]`` to the same.

    The `state_dict` has the keys of a `torch.nn.ModuleList` of `torch.nn.GRU`.
    Source: the bottleneck of arXiv 2507.04879.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
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
        # The state is carried over thousands of steps: autocast must not round it.
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight_ih.dtype)
            weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            out, new = slim_gru(x, *weights, self.size, state[0])
        return out, (new,)

    def count(self, args: tuple[Tensor, Width, tuple[Tensor]], output: object) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, and weight bytes that one step reads."""
        macs = self.weight_ih.numel() + self.weight_hh.numel()
        read = macs + self.bias_ih.numel() + self.bias_hh.numel()
        return macs * args[0].shape[1], read * self.weight_ih.element_size()


class SlimLSTM(PackedModule):
    """One LSTM layer whose hidden units can be cut to a prefix, per step (see `slimse.ops.slim_lstm`).

    Args:
        inputs: features in. A narrower input is read by the leading columns.
        units: ``H``, hidden units.
        reverse: run backwards in time (the second direction of a bidirectional layer).

    Shape:
        ``[B, T, inputs]`` and ``(h, c)``, ``[B, H]`` each, to ``[B, T, k]`` and the new ``(h, c)``.

    The `state_dict` has the keys of a one-layer `torch.nn.LSTM`.
    """

    def __init__(self, inputs: int, units: int, *, reverse: bool = False) -> None:
        super().__init__()
        self.inputs, self.units, self.reverse = inputs, units, reverse
        self.weight_ih = nn.Parameter(torch.empty(units, 4, inputs))
        self.weight_hh = nn.Parameter(torch.empty(units, 4, units))
        self.bias_ih = nn.Parameter(torch.empty(units, 4))
        self.bias_hh = nn.Parameter(torch.empty(units, 4))
        self.load_state_dict(nn.LSTM(inputs, units).state_dict())

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys ``weight_ih_l0`` and so on, as `torch.nn.LSTM` lays them out."""
        return {f"{name}_l0": rearrange(tensor, "h g ... -> (g h) ...") for name, tensor in packed.items()}

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `unpack`."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return {name: rearrange(public[f"{name}_l0"], "(g h) ... -> h g ...", g=4) for name in names}

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros, on the device and in the dtype of ``like``."""
        return like.new_zeros(batch, self.units), like.new_zeros(batch, self.units)

    def forward(self, x: Tensor, width: Width, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run ``T`` steps from ``state`` with ``width`` active units per step."""
        bias = self.bias_ih + self.bias_hh
        if not self.reverse:
            return slim_lstm(x, self.weight_ih, self.weight_hh, bias, width, state)
        if not isinstance(width, int):
            raise ValueError("a bidirectional LSTM runs at one width per call: pass uf as a float")
        out, state = slim_lstm(x.flip(1), self.weight_ih, self.weight_hh, bias, width, state)
        return out.flip(1), state

    def count(
        self, args: tuple[Tensor, Width, tuple[Tensor, Tensor]], output: tuple[Tensor, tuple[Tensor, Tensor]]
    ) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, and weight bytes that one step reads."""
        k = max_width(args[1], self.units)
        macs = self.weight_ih[:k, :, : args[0].shape[2]].numel() + self.weight_hh[:k, :, :k].numel()
        return macs * args[0].shape[1], (macs + 8 * k) * self.weight_ih.element_size()


class SlimLSTMStack(nn.Module):
    """Layers of `SlimLSTM` in a row, with an optional second direction, full width at both ends.

    Args:
        channels: channels in and out, and units of every layer.
        layers: number of layers.
        bidirectional: add a backward LSTM to each layer, and a linear layer from both back to ``channels``.

    Shape:
        ``[B, T, channels]`` to the same; the state is ``(h, c)`` of every layer (and direction) in a row. Units
        outside the width come out as zero.

    Source: the bottleneck of the original DEMUCS denoiser, arXiv 2006.12847; slimming it is this project's addition.
    """

    def __init__(self, channels: int, layers: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.directions = 2 if bidirectional else 1
        self.layers: Sequence[SlimLSTM]
        members = [
            SlimLSTM(channels * (self.directions if layer else 1), channels, reverse=bool(direction))
            for layer in range(layers)
            for direction in range(self.directions)
        ]
        self.add_module("layers", nn.ModuleList(members))
        self.linear = nn.Linear(2 * channels, channels) if bidirectional else None

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """Zeros, on the device and in the dtype of ``like``."""
        return tuple(tensor for layer in self.layers for tensor in layer.initial_state(batch, like))

    def forward(self, x: Tensor, width: Width, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run ``T`` steps from ``state`` with ``width`` active units per step in every layer."""
        new: list[Tensor] = []
        for first in range(0, len(self.layers), self.directions):
            outputs = []
            for index in range(first, first + self.directions):
                out, after = self.layers[index](x, width, (state[2 * index], state[2 * index + 1]))
                # A narrow layer followed by a linear or a two-direction layer must keep its columns in place.
                outputs.append(out if self.directions == 1 else self._widen(out))
                new.extend(after)
            x = torch.cat(outputs, dim=2)
        x = self._widen(x) if self.linear is None else self.linear(x)
        return x, tuple(new)

    def _widen(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, self.channels - x.shape[2]))
