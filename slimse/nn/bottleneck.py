"""Bottlenecks of the U-Net: grouped GRUs at full width, and LSTMs whose units can be cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import check_backend, slim_gru, slim_lstm
from ..width import LevelWidth, Width, by_position, channels, max_width
from .packed import PackedModule


class GroupedGRU(PackedModule):
    """``groups`` GRUs side by side, each on its own slice of the channels; always full width.

    Args:
        channels: channels in and out, a multiple of ``groups``.
        groups: number of GRUs.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.

    Shape:
        ``[B, T, channels]`` and a state ``[B, groups, channels / groups]`` to the same.

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
        return (like.new_zeros(batch, self.groups, self.size),)

    def forward(self, x: Tensor, width: LevelWidth, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        """Run ``T`` steps from ``state``, all units whatever the ``width``."""
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        before = state[0].transpose(0, 1).contiguous()
        out, new = slim_gru(x, *weights, self.size, before, backend=self.backend, precision=self.precision)
        return out, (new.transpose(0, 1),)

    def count(self, args: tuple[Tensor, LevelWidth, tuple[Tensor]], output: object) -> tuple[int, int]:
        """Multiply-accumulates of a call that was just made, and weight bytes that one step reads."""
        macs = self.weight_ih.numel() + self.weight_hh.numel()
        read = macs + self.bias_ih.numel() + self.bias_hh.numel()
        return macs * args[0].shape[1], read * self.weight_ih.element_size()


class PackedLSTM(PackedModule):
    """Layers of LSTMs with one record per hidden unit, as the kernels read them; all layers are cut alike.

    Args:
        input_size: channels in.
        hidden_size: units of every layer and direction.
        num_layers: number of layers.
        bidirectional: add a backward LSTM to each layer.
        backend: see `slimse.ops`.
        precision: see `slimse.ops`.

    The `state_dict` is that of `torch.nn.LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        backend: str = "auto",
        precision: str = "ieee",
    ) -> None:
        super().__init__()
        check_backend(backend, precision)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional, self.directions = bidirectional, 2 if bidirectional else 1
        self.backend, self.precision = backend, precision
        plain = nn.LSTM(input_size, hidden_size, num_layers, bidirectional=bidirectional)
        for name, tensor in self.pack(dict(plain.named_parameters())).items():
            self.register_parameter(name, nn.Parameter(tensor.detach().contiguous()))

    def unpack(self, packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys ``weight_ih_l0`` and so on, as `torch.nn` lays them out."""
        return {name: rearrange(tensor, "h g ... -> (g h) ...") for name, tensor in packed.items()}

    def pack(self, public: dict[str, Tensor]) -> dict[str, Tensor]:
        """One record per hidden unit; the inverse of `unpack`."""
        return {name: rearrange(tensor, "(g h) ... -> h g ...", g=4) for name, tensor in public.items()}

    def run(self, x: Tensor, width: Width, states: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, list[Any]]:
        """Run ``[B, T, inputs]`` with ``width`` active units per step from one state per layer and direction.

        Returns:
            Output ``[B, T, directions * units]``, inactive units being zero, and the states after the last step.

        Raises:
            ValueError: for two directions at a width per step.
        """
        if self.bidirectional and not isinstance(width, int):
            raise ValueError("two directions run at one width per call: pass uf as a float")
        new: list[Any] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                suffix = f"_l{layer}{'_reverse' if direction else ''}"
                out, after = self._direction(x.flip(1) if direction else x, suffix, width, states[len(new)])
                outputs.append(out.flip(1) if direction else out)
                new.append(after)
            # Of two directions each keeps its columns in place; one may hand on its active units alone.
            x = outputs[0] if self.directions == 1 else torch.cat([self._widen(out) for out in outputs], dim=2)
        return (self._widen(x) if self.directions == 1 else x), new

    def _direction(self, x: Tensor, suffix: str, width: Width, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        names = (f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        weight_ih, weight_hh, bias_ih, bias_hh = (self.get_parameter(name) for name in names)
        choice = {"backend": self.backend, "precision": self.precision}
        return slim_lstm(x, weight_ih, weight_hh, bias_ih + bias_hh, width, (state[0], state[1]), **choice)

    def _widen(self, x: Tensor) -> Tensor:
        missing = self.hidden_size - x.shape[2]
        return nn.functional.pad(x, (0, missing)) if missing else x

    @torch.no_grad()
    def extract(self, uf: float) -> nn.LSTM:
        """One width as a `torch.nn.LSTM` of its own, of ``ceil(uf * hidden_size)`` units, batch second."""
        k = channels(uf, self.hidden_size)
        plain = nn.LSTM(self.input_size, k, self.num_layers, bidirectional=self.bidirectional)
        plain = plain.to(next(self.parameters()))
        for name, tensor in self.named_parameters():
            rows = tensor[:k]
            if name.startswith("weight_hh"):
                rows = rows[..., :k]
            elif name.startswith("weight_ih") and "_l0" not in name:
                rows = rows.unflatten(2, (self.directions, self.hidden_size))[..., :k].flatten(2)
            plain.get_parameter(name).copy_(rearrange(rows, "h g ... -> (g h) ..."))
        return plain.train(self.training)


class SlimLSTMStack(nn.Module):
    """A `PackedLSTM` as bottleneck, full width at both ends, with a linear layer after two directions.

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
        self.lstm = PackedLSTM(channels, channels, layers, **options)
        self.linear = nn.Linear(2 * channels, channels) if bidirectional else None

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """Zeros, on the device and in the dtype of ``like``."""
        count = 2 * self.lstm.num_layers * self.lstm.directions
        return tuple(like.new_zeros(batch, self.channels) for _ in range(count))

    def forward(self, x: Tensor, width: LevelWidth, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run ``T`` steps from ``state`` with ``width`` active units per step in every layer."""
        steps = by_position(width, x.shape[1])
        x, new = self.lstm.run(x, steps, list(zip(state[::2], state[1::2], strict=True)))
        return (x if self.linear is None else self.linear(x)), tuple(part for pair in new for part in pair)

    def count(
        self, args: tuple[Tensor, LevelWidth, tuple[Tensor, ...]], output: tuple[Tensor, tuple[Tensor, ...]]
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
