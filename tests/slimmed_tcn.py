"""A causal network as a user would have it, slimmed and registered for streams in a few lines."""

from dataclasses import dataclass

import torch
from torch import nn

from slimse.networks import SlimmedConfig, SlimmedNetwork, register


class Block(nn.Module):
    """A dilated block that sees what was before; its padding is a function's, or a module's."""

    def __init__(self, channels, hidden, dilation):
        super().__init__()
        self.past = 2 * dilation
        self.up = nn.Sequential(nn.Conv1d(channels, hidden, 1), nn.PReLU(hidden))
        self.deep = nn.Conv1d(hidden, hidden, 3, dilation=dilation, groups=hidden)
        self.down = nn.Conv1d(hidden, channels, 1)

    def forward(self, x):
        """Around a skip."""
        h = self.deep(nn.functional.pad(self.up(x), (self.past, 0)))
        return x + self.down(h.relu())


class Tcn(nn.Module):
    """A causal Conv-TasNet with a GRU in its middle."""

    def __init__(self, channels=8, hidden=24, size=16):
        super().__init__()
        self.encoder = nn.Sequential(nn.ConstantPad1d((size, 0), 0.0), nn.Conv1d(1, channels, 2 * size, size))
        self.blocks = nn.Sequential(*(Block(channels, hidden, 2**number) for number in range(2)))
        self.gru, self.back = nn.GRU(channels, hidden, batch_first=True), nn.Linear(hidden, channels)
        self.decoder = nn.ConvTranspose1d(channels, 1, 2 * size, size, padding=size)

    def forward(self, noisy):
        """Mask features of the noisy signal."""
        features = self.encoder(noisy)
        h = self.blocks(features)
        h = h + self.back(self.gru(h.mT)[0]).mT
        return self.decoder(nn.functional.pad(features * torch.sigmoid(h), (1, 0)))


@dataclass(frozen=True)
class TcnConfig(SlimmedConfig):
    """Its sizes."""

    hop: int = 32
    hidden: int = 24


@register("test-tcn", TcnConfig)
class SlimTcn(SlimmedNetwork):
    """The network in streams."""

    def build(self):
        """As trained."""
        return Tcn(hidden=self.config.hidden)
