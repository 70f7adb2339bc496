"""A causal convolutional network, defined and registered as a user would."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import linear

from slimse.networks import CausalNetwork, FrameGeometry, NetworkConfig, register
from slimse.width import WidthSet, apply_width, max_width


@dataclass(frozen=True)
class ConvConfig(NetworkConfig):
    """Its sizes."""

    ufs: WidthSet = field(default_factory=lambda: WidthSet((0.125, 0.25, 0.5, 1.0)))
    sample_rate: int = 16_000
    hop: int = 32
    channels: int = 24


class SlimHidden(nn.Linear):
    """The first ``width`` outputs of a linear layer, for every position."""

    def forward(self, x, width):
        """``[B, frames, inputs]`` to ``[B, frames, largest width]``."""
        k = max_width(width, self.out_features)
        return apply_width(torch.relu(linear(x, self.weight[:k], self.bias[:k])), width)

    def count(self, args, output):
        """MACs of a call, and weight bytes of a frame."""
        return output.numel() * self.in_features, output.shape[2] * (self.in_features + 1) * 4


@register("conv", ConvConfig)
class ConvNet(CausalNetwork):
    """Each frame from the one before, itself, and the one that follows."""

    def __init__(self, config, **choice):
        super().__init__(config, **choice)
        # A frame can run once the next one has come in.
        self.geometry = FrameGeometry(hop=config.hop, first=2 * config.hop, receptive=config.hop, delay=0)
        self.hidden = SlimHidden(3 * config.hop, config.channels)
        self.out = nn.Linear(config.channels, config.hop)

    def initial_state(self, batch):
        """Silence."""
        return {"samples": self.out.weight.new_zeros(batch, self.config.hop)}

    def step(self, x, state, schedule, *, final):
        """As of the base class."""
        hop = self.config.hop
        x = torch.cat([state["samples"], x, x.new_zeros(len(x), hop if final else 0)], dim=1)
        windows = x.unfold(1, 3 * hop, hop)
        frames = torch.arange(windows.shape[1], device=x.device)
        hidden = self.hidden(windows, schedule.width(self.config.channels, frames))
        out = linear(hidden, self.out.weight[:, : hidden.shape[2]], self.out.bias)
        return out.flatten(1), {"samples": x[:, len(frames) * hop :].clone()}
