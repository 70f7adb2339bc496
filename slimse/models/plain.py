"""A fixed-width DEMUCS of ordinary `torch.nn` layers: what `SlimDemucs.extract` gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..nn import GroupedGRU, RunningLevel, SincDownsample, SincUpsample, SlimLSTMStack

if TYPE_CHECKING:
    from .demucs import SlimDemucs


class PlainDemucs(nn.Module):
    """One width of a `SlimDemucs` as a network of its own, smaller and with no notion of widths.

    Only `torch.nn` layers hold weights, so exporters and quantisers that know those can take it from here.

    Args:
        model: the slimmable network.
        uf: one of its widths.

    Shape:
        ``[B, 1, T]`` to ``[B, 1, T]``, as `SlimDemucs`.
    """

    def __init__(self, model: SlimDemucs, uf: float) -> None:
        super().__init__()
        config = model.config
        self.config, self.uf = config, config.ufs.validate(uf)
        self.first, self.hop = model.receptive_samples(1), model.hop
        self.level = RunningLevel(config.sample_rate)
        self.up: Sequence[SincUpsample]
        self.down: Sequence[SincDownsample]
        self.add_module("up", nn.ModuleList(SincUpsample() for _ in model.up))
        self.add_module("down", nn.ModuleList(SincDownsample() for _ in model.down))
        channels, kernel, stride = config.channels, config.kernel_size, config.stride
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in range(1, config.depth + 1):
            full, outer, k = channels(level), channels(level - 1), config.ufs.channels(uf, channels(level))
            weights = model.encoder[level - 1].state_dict()
            conv, glu = nn.Conv1d(outer, k, kernel, stride), nn.Conv1d(k, 2 * full, 1)
            _fill(conv, weights["conv.weight"][:k], weights["conv.bias"][:k])
            _fill(glu, weights["glu.weight"][:, :k], weights["glu.bias"])
            self.encoder.append(nn.Sequential(conv, nn.ReLU(), glu, nn.GLU(dim=1)))

            weights = model.decoder[level - 1].state_dict()
            glu, transposed = nn.Conv1d(full, 2 * k, 1), nn.ConvTranspose1d(k, outer, kernel, stride)
            rows = torch.cat([torch.arange(k), full + torch.arange(k)])
            _fill(glu, weights["glu.weight"][rows], weights["glu.bias"][rows])
            _fill(transposed, weights["conv.weight"][:k], weights["conv.bias"])
            layers = [glu, nn.GLU(dim=1), transposed]
            self.decoder.append(nn.Sequential(*layers, nn.ReLU()) if level > 1 else nn.Sequential(*layers))
        self.bottleneck = _plain_bottleneck(model, uf)

    def forward(self, noisy: Tensor) -> Tensor:
        """Enhance ``[B, 1, T]``."""
        samples = noisy.shape[2]
        x, gain = noisy[:, 0], torch.ones_like(noisy[:, 0])
        if self.config.level == "signal":
            gain = x.std(1, keepdim=True) if samples > 1 else torch.zeros_like(x)
            x = x / (self.config.floor + gain)
        elif self.config.level == "running":
            x, (_, _, gain) = self.level(x, self.level.initial_state(x))
        frames = max(1, 1 - (self.first - samples) // self.hop)
        x = nn.functional.pad(x, (0, self.first + (frames - 1) * self.hop - samples))
        for stage in self.up:
            x, _ = stage(x, stage.initial_buffer(x), final=True)
        x = x.unsqueeze(1)
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(x + skip)
        x = x[:, 0]
        for half in self.down:
            x, _ = half(x, half.initial_buffer(x), final=True)
        return (x[:, :samples] * gain).unsqueeze(1)


class _GRUs(nn.Module):
    """GRUs side by side on slices of the channels: ``[B, C, T]`` to ``[B, C, T]``."""

    def __init__(self, grouped: GroupedGRU) -> None:
        super().__init__()
        self.groups = nn.ModuleList(nn.GRU(grouped.size, grouped.size, batch_first=True) for _ in range(grouped.groups))
        self.groups.load_state_dict(grouped.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        parts = x.transpose(1, 2).chunk(len(self.groups), dim=2)
        outputs = [gru(part)[0] for gru, part in zip(self.groups, parts, strict=True)]
        return torch.cat(outputs, dim=2).transpose(1, 2)


class _LSTM(nn.Module):
    """An LSTM of ``k`` units, then zeros or a linear layer back to ``C`` channels: ``[B, C, T]`` to ``[B, C, T]``."""

    def __init__(self, stack: SlimLSTMStack, uf: float) -> None:
        super().__init__()
        self.channels = full = stack.channels
        self.lstm = stack.lstm.extract(uf)
        self.linear = None
        if stack.linear is not None:
            k = self.lstm.hidden_size
            self.linear = nn.Linear(2 * k, full)
            columns = torch.cat([torch.arange(k), full + torch.arange(k)])
            _fill(self.linear, stack.linear.weight[:, columns], stack.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(x.permute(2, 0, 1))[0].transpose(0, 1)
        x = nn.functional.pad(x, (0, self.channels - x.shape[2])) if self.linear is None else self.linear(x)
        return x.transpose(1, 2)


def _plain_bottleneck(model: SlimDemucs, uf: float) -> nn.Module:
    bottleneck = model.bottleneck
    return _GRUs(bottleneck) if isinstance(bottleneck, GroupedGRU) else _LSTM(bottleneck, uf)


@torch.no_grad()
def _fill(layer: nn.Conv1d | nn.ConvTranspose1d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.copy_(bias)
