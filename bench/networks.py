"""Networks that nobody wrote for slimming: what `slimse.slimmify` is tested and measured on.

Those of installed packages are made from a configuration, with random weights; the others are written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A network, and inputs of any length for it."""

    make: Callable[[bool], nn.Module]
    """Takes whether it is to be small, for tests."""
    inputs: Callable[[nn.Module, int, int], tuple[Tensor, ...]]
    """Takes the network, a batch size, and a length in tenths of a second or the like."""
    package: str = ""
    """What has to be installed."""
    length: int = 5
    """Of the inputs that times are taken on."""

    @property
    def missing(self) -> str:
        """Why it cannot be made here, or empty."""
        if self.package and find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.package == "transformers" and find_spec("kernels") is not None:
            return "transformers takes the folder kernels for a package of that name: run this without it on the path"
        return ""


class TfNetwork(nn.Module):
    """A mask on a spectrogram: 2-D convolutions with batch norms, GRUs along frequency and time, skips.

    Args:
        channels: of the convolutions.
        bins: frequencies, a multiple of 4.
        units: of the GRU along time.

    Shape:
        Complex ``[B, bins, T]`` to the same.
    """

    def __init__(self, channels: int = 32, bins: int = 64, units: int = 128) -> None:
        super().__init__()

        def block(kind: type[nn.Module], inputs: int, outputs: int) -> nn.Sequential:
            conv: Any = kind(
                inputs, outputs, (5, 1), (2, 1), (2, 0), **({"output_padding": (1, 0)} if kind is up else {})
            )
            deep = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)
            return nn.Sequential(
                conv, nn.BatchNorm2d(outputs), nn.PReLU(outputs), deep, nn.BatchNorm2d(outputs), nn.PReLU()
            )

        up = nn.ConvTranspose2d
        self.down = nn.ModuleList([block(nn.Conv2d, 2, channels), block(nn.Conv2d, channels, channels)])
        self.along_frequency = nn.GRU(channels, channels // 2, batch_first=True, bidirectional=True)
        self.mix = nn.Linear(channels, channels)
        self.along_time = nn.GRU(channels * bins // 4, units, batch_first=True)
        self.back = nn.Linear(units, channels * bins // 4)
        self.up = nn.ModuleList([block(up, 2 * channels, channels), block(up, 2 * channels, channels)])
        self.mask = nn.Conv2d(channels, 2, 1)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Multiply by a complex mask."""
        h = torch.stack([spectrum.real, spectrum.imag], 1)
        skips = []
        for block in self.down:
            h = block(h)
            skips.append(h)
        batch, channels, bins, frames = h.shape
        rows = h.permute(0, 3, 2, 1).reshape(batch * frames, bins, channels)
        rows = rows + self.mix(self.along_frequency(rows)[0])
        h = rows.reshape(batch, frames, -1)
        h = self.back(self.along_time(h)[0]).reshape(batch, frames, bins, -1).permute(0, 3, 2, 1)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], 1))
        mask = torch.tanh(self.mask(h))
        return spectrum * torch.complex(mask[:, 0], mask[:, 1])


class EveryLayer(nn.Module):
    """A chain of blocks with every layer that can be cut.

    Args:
        size: channels inside of each block.

    Shape:
        Token numbers ``[B, T]`` to ``[B, T, 8]``.
    """

    def __init__(self, size: int = 16) -> None:
        super().__init__()

        def block(*inside: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Conv1d(8, size, 1), *inside, nn.Conv1d(size, 8, 1))

        self.embedding, self.project = nn.Embedding(20, size), nn.Linear(size, 8)
        norms = [
            nn.BatchNorm1d(size),
            nn.GroupNorm(1, size),
            nn.GroupNorm(4, size),
            nn.InstanceNorm1d(size, affine=True),
        ]
        convs = [
            nn.Conv1d(size, size, 3, padding=1, groups=size),
            nn.Conv1d(size, 2 * size, 3, padding=1, groups=4),
            nn.ConvTranspose1d(2 * size, size, 3, padding=1, groups=4),
            nn.Conv1d(size, size, 3, padding="same", padding_mode="reflect"),
            nn.ConvTranspose1d(size, size, 3, padding=1),
        ]
        self.blocks = nn.ModuleList([block(*norms), block(*convs), block(nn.PReLU(size), nn.Dropout(), nn.PReLU())])
        self.flat = nn.Sequential(
            *(nn.Conv2d(8, size, 1), nn.BatchNorm2d(size), nn.InstanceNorm2d(size), nn.LayerNorm(3), nn.ReLU()),
            *(nn.Conv2d(size, size, 3, padding=1, groups=2), nn.ConvTranspose2d(size, 8, (3, 1))),
        )
        self.features = nn.Sequential(
            nn.Linear(8, size), nn.LayerNorm(size), nn.GELU(), nn.RMSNorm(size), nn.Linear(size, 8)
        )
        self.lstm = nn.LSTM(8, size, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(2 * size, size, batch_first=True)
        self.back = nn.Linear(size, 8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Every block around a skip."""
        h = self.project(self.embedding(tokens)).mT
        for block in self.blocks:
            h = h + block(h)
        h = h + self.flat(h.unsqueeze(2).expand(-1, -1, 3, -1).mT).mean((2, 3)).unsqueeze(2)
        h = h.mT + self.features(h.mT)
        h = h + self.back(self.gru(self.lstm(h)[0])[0])
        return h + self.attention(h, h, h, need_weights=False)[0]


def _asteroid(name: str, small: dict[str, Any], full: dict[str, Any]) -> Case:
    def make(is_small: bool) -> nn.Module:
        import asteroid.models

        return getattr(asteroid.models, name)(1, **(small if is_small else full))

    return Case(make, lambda _, batch, length: (torch.randn(batch, 1, 1600 * length),), "asteroid")


def _sudormrf(is_small: bool) -> nn.Module:
    from asteroid.models.sudormrf import SuDORMRFNet

    return SuDORMRFNet(1, **({"bn_chan": 16, "num_blocks": 2, "upsampling_depth": 3} if is_small else {}))


def _whisper(is_small: bool) -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    size = (32, 2, 4, 64) if is_small else (384, 2, 6, 1536)
    names = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
    config = WhisperConfig(**dict(zip(names, size, strict=True)), max_source_positions=50 if is_small else 500)
    return WhisperEncoder(config)


def _mel(network: Any, batch: int, _: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 80, 2 * network.config.max_source_positions),)


def _transformer(is_small: bool) -> nn.Module:
    return nn.Transformer(*((16, 4, 1, 1, 32) if is_small else (256, 8, 2, 2, 1024)), batch_first=True)


_TASNET = {"n_filters": 32, "n_blocks": 2, "n_repeats": 1, "bn_chan": 16, "hid_chan": 32, "skip_chan": 16}
_CAUSAL = {"norm_type": "cLN", "causal": True}
_DPRNN = {"n_filters": 16, "bn_chan": 16, "hid_size": 16, "chunk_size": 20, "n_repeats": 1}
NETWORKS = {
    "asteroid ConvTasNet": _asteroid("ConvTasNet", _TASNET, {}),
    "asteroid ConvTasNet, causal": _asteroid("ConvTasNet", {**_TASNET, **_CAUSAL}, _CAUSAL),
    "asteroid DPRNN": _asteroid("DPRNNTasNet", _DPRNN, {}),
    "asteroid SuDoRM-RF": Case(_sudormrf, lambda _, batch, length: (torch.randn(batch, 1, 1600 * length),), "asteroid"),
    "asteroid LSTMMasker": _asteroid("LSTMTasNet", {"n_filters": 16, "hid_size": 16, "n_layers": 2}, {}),
    "transformers Whisper encoder": Case(_whisper, _mel, "transformers"),
    "torch.nn.Transformer": Case(
        _transformer,
        lambda net, batch, length: (
            torch.randn(batch, 10 * length, net.d_model),
            torch.randn(batch, 7 * length, net.d_model),
        ),
    ),
    "2-D convolutions with GRUs": Case(
        lambda small: TfNetwork(8, 8, 12) if small else TfNetwork(),
        lambda net, batch, length: (
            torch.randn(batch, net.back.out_features * 4 // net.mix.in_features, 10 * length, dtype=torch.complex64),
        ),
    ),
    "every layer": Case(
        lambda small: EveryLayer(16 if small else 128),
        lambda _, batch, length: (torch.randint(20, (batch, 20 * length)),),
        length=3,
    ),
}
