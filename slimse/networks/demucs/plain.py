"""A fixed-width DEMUCS of ordinary `torch.nn` layers: what extracting one width gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ...nn import GroupedGRU, SincDownsample, SincUpsample, SlimLSTMStack
from ...width import Schedule, WidthSet
from ..base import CausalNetwork, FrameGeometry, NetworkConfig, register
from .config import SlimDemucsConfig

if TYPE_CHECKING:
    from .network import SlimDemucs


@dataclass(frozen=True)
class PlainDemucsConfig(NetworkConfig):
    """Shape of a `PlainDemucs`.

    Args:
        source: of the slimmable network that it was cut from.
        uf: the width that it has; its own set of UFs is 1.0 alone.

    Raises:
        ValueError: for a UF that the slimmable network does not have.
    """

    source: SlimDemucsConfig = field(default_factory=SlimDemucsConfig)
    uf: float = 1.0

    def __post_init__(self) -> None:
        """Check the UF."""
        self.source.ufs.validate(self.uf)

    ufs = WidthSet((1.0,))  # type: ignore[assignment]

    @property
    def sample_rate(self) -> int:  # type: ignore[override]
        """Of input and output, Hz."""
        return self.source.sample_rate

    @property
    def causal(self) -> bool:  # type: ignore[override]
        """False for a network that needs the whole signal."""
        return self.source.causal

    @property
    def geometry(self) -> FrameGeometry:
        """How samples and frames relate."""
        return self.source.geometry

    def active(self, level: int) -> int:
        """Channels inside the blocks of ``level``."""
        return self.source.ufs.channels(self.uf, self.source.channels(level))

    def fewest_weights(self) -> int:
        """As of `NetworkConfig`."""
        return sum(self.active(level) for level in range(1, self.source.depth + 1))


class PlainState(NamedTuple):
    """What streams remember between two steps; every tensor has the streams on axis 0."""

    up: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...]
    """Per level, inputs that later windows share: ``[B, C_in, n]``."""
    skip: tuple[Tensor, ...]
    """Per level, encoder outputs that the decoder has not used yet: ``[B, C, n]``."""
    rnn: Tensor
    """GRUs: ``[B, groups, H]``. LSTM: ``[B, 2, layers * directions, k]``."""
    decoder: tuple[Tensor, ...]
    """Per level, shallowest first, outputs that await an overlap: ``[B, C_out, n]``."""
    down: tuple[Tensor, ...]


torch.serialization.add_safe_globals([PlainState])


@register("demucs-plain", PlainDemucsConfig)
class PlainDemucs(CausalNetwork):
    """One width of a `SlimDemucs` as a network of its own, smaller and with no notion of widths.

    Only `torch.nn` layers hold weights, so exporters and quantisers that know those can take it from here.

    Args:
        config: of the slimmable network, and the width.
        backend: not used; as of all networks.
        precision: not used.
    """

    config: PlainDemucsConfig

    def __init__(self, config: PlainDemucsConfig, *, backend: str = "auto", precision: str = "ieee") -> None:
        super().__init__(config, backend=backend, precision=precision)
        self.geometry = config.geometry
        shape = config.source
        channels, kernel, stride = shape.channels, shape.kernel_size, shape.stride
        stages = shape.resample.bit_length() - 1
        self.up: Sequence[SincUpsample]
        self.down: Sequence[SincDownsample]
        self.encoder: Sequence[nn.Sequential]
        self.decoder: Sequence[nn.Sequential]
        encoder, decoder = [], []
        for level in range(1, shape.depth + 1):
            full, outer, k = channels(level), channels(level - 1), config.active(level)
            conv, glu = nn.Conv1d(outer, k, kernel, stride), nn.Conv1d(k, 2 * full, 1)
            encoder.append(nn.Sequential(conv, nn.ReLU(), glu, nn.GLU(dim=1)))
            glu, transposed = nn.Conv1d(full, 2 * k, 1), nn.ConvTranspose1d(k, outer, kernel, stride)
            layers: list[nn.Module] = [glu, nn.GLU(dim=1), transposed]
            decoder.append(nn.Sequential(*layers, nn.ReLU()) if level > 1 else nn.Sequential(*layers))
        lists: dict[str, Sequence[nn.Module]] = {
            "up": [SincUpsample() for _ in range(stages)],
            "down": [SincDownsample() for _ in range(stages)],
            "encoder": encoder,
            "decoder": decoder,
        }
        for name, members in lists.items():
            self.add_module(name, nn.ModuleList(members))
        full = channels(shape.depth)
        self.bottleneck: _GRUs | _LSTM
        if shape.rnn == "gru":
            self.bottleneck = _GRUs(full, shape.groups)
        else:
            self.bottleneck = _LSTM(full, config.active(shape.depth), shape.rnn_layers, two=not shape.causal)

    @torch.no_grad()
    def fill(self, network: SlimDemucs) -> None:
        """Copy the weights of this width from a slimmable network of the same shape."""
        for level in range(1, self.config.source.depth + 1):
            full, k = self.config.source.channels(level), self.config.active(level)
            weights, layers = network.encoder[level - 1].state_dict(), self.encoder[level - 1]
            _fill(layers[0], weights["conv.weight"][:k], weights["conv.bias"][:k])
            _fill(layers[2], weights["glu.weight"][:, :k], weights["glu.bias"])
            weights, layers = network.decoder[level - 1].state_dict(), self.decoder[level - 1]
            rows = torch.cat([torch.arange(k), full + torch.arange(k)])
            _fill(layers[0], weights["glu.weight"][rows], weights["glu.bias"][rows])
            _fill(layers[2], weights["conv.weight"][:k], weights["conv.bias"])
        self.bottleneck.fill(network.bottleneck, self.config.uf)

    def initial_state(self, batch: int) -> PlainState:
        """Silence before the first sample of ``batch`` streams."""
        like, shape = next(self.parameters()), self.config.source
        signal = like.new_zeros(batch, 1, dtype=torch.promote_types(like.dtype, torch.float32))
        empty = tuple(like.new_zeros(batch, shape.channels(i), 0) for i in range(shape.depth + 1))
        return PlainState(
            up=tuple(stage.initial_buffer(signal) for stage in self.up),
            encoder=empty[:-1],
            skip=empty[1:],
            rnn=self.bottleneck.initial_state(batch, like),
            decoder=empty[:-1],
            down=tuple(stage.initial_buffer(signal) for stage in self.down),
        )

    def step(self, x: Tensor, state: PlainState, schedule: Schedule, *, final: bool) -> tuple[Tensor, PlainState]:
        """As of `CausalNetwork`; the schedule has one width."""
        shape = self.config.source
        up, encoder_in, skips, decoder_tail, down = [], [], [], [], []
        for stage, buffer in zip(self.up, state.up, strict=True):
            x, buffer = stage(x, buffer, final=final)
            up.append(buffer)

        h = x.unsqueeze(1).to(next(self.parameters()).dtype)
        for block, earlier, waiting in zip(self.encoder, state.encoder, state.skip, strict=True):
            h = _join(earlier, h)
            positions = max(0, 1 + (h.shape[2] - shape.kernel_size) // shape.stride)
            out = block(h) if positions else waiting[..., :0]
            encoder_in.append(h[:, :, positions * shape.stride :].clone())
            skips.append(_join(waiting, out))
            h = out
        h, rnn = self.bottleneck(h, state.rnn) if h.shape[2] else (h, state.rnn)

        overlap = shape.kernel_size - shape.stride
        for level in range(shape.depth, 0, -1):
            positions, tail = h.shape[2], state.decoder[level - 1]
            skip, skips[level - 1] = skips[level - 1].split([positions, skips[level - 1].shape[2] - positions], dim=2)
            block = self.decoder[level - 1]
            if final and not tail.shape[2]:
                h = block(h + skip)
                decoder_tail.append(h[:, :, :0])
                continue
            # Bias and ReLU wait for the overlap of later positions.
            glu, conv, relu = block[:2], block[2], block[3:]
            bias = conv.get_parameter("bias").unsqueeze(1)
            h = conv(glu(h + skip)) - bias if positions else tail.new_zeros(*tail.shape[:2], overlap)
            if tail.shape[2]:
                h = torch.cat([h[:, :, :overlap] + tail, h[:, :, overlap:]], dim=2)
            decoder_tail.append(h[:, :, positions * shape.stride :].clone())
            h = (h if final else h[:, :, : positions * shape.stride]) + bias
            h = relu(h)

        x = h.squeeze(1).to(x.dtype)
        for half, buffer in zip(self.down, state.down, strict=True):
            x, buffer = half(x, buffer, final=final)
            down.append(buffer)
        kept = tuple(skip.clone() for skip in skips)
        return x, PlainState(tuple(up), tuple(encoder_in), kept, rnn, tuple(reversed(decoder_tail)), tuple(down))


class _GRUs(nn.Module):
    """GRUs side by side on slices of the channels: ``[B, C, T]`` to ``[B, C, T]``."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.size = channels // groups
        self.groups = nn.ModuleList(nn.GRU(self.size, self.size, batch_first=True) for _ in range(groups))

    def fill(self, bottleneck: nn.Module, uf: float) -> None:
        assert isinstance(bottleneck, GroupedGRU)
        self.groups.load_state_dict(bottleneck.state_dict())

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, len(self.groups), self.size)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts, states = x.transpose(1, 2).chunk(len(self.groups), dim=2), state.transpose(0, 1)
        pairs = [
            gru(part, before.unsqueeze(0).contiguous())
            for gru, part, before in zip(self.groups, parts, states, strict=True)
        ]
        outputs, new = zip(*pairs, strict=True)
        return torch.cat(outputs, dim=2).transpose(1, 2), torch.cat(new).transpose(0, 1)


class _LSTM(nn.Module):
    """An LSTM of ``k`` units, then zeros or a linear layer back to ``C`` channels: ``[B, C, T]`` to ``[B, C, T]``."""

    def __init__(self, channels: int, k: int, layers: int, *, two: bool) -> None:
        super().__init__()
        self.channels = channels
        self.lstm = nn.LSTM(channels, k, layers, bidirectional=two)
        self.linear = nn.Linear(2 * k, channels) if two else None

    @torch.no_grad()
    def fill(self, bottleneck: nn.Module, uf: float) -> None:
        assert isinstance(bottleneck, SlimLSTMStack)
        self.lstm.load_state_dict(bottleneck.lstm.extract(uf).state_dict())
        if self.linear is not None:
            assert bottleneck.linear is not None
            full, k = bottleneck.channels, self.lstm.hidden_size
            columns = torch.cat([torch.arange(k), full + torch.arange(k)])
            _fill(self.linear, bottleneck.linear.weight[:, columns], bottleneck.linear.bias)

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        layers = self.lstm.num_layers * (2 if self.linear is not None else 1)
        return like.new_zeros(batch, 2, layers, self.lstm.hidden_size)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = (part.contiguous() for part in state.permute(1, 2, 0, 3))
        x, new = self.lstm(x.permute(2, 0, 1), (h, c))
        x = x.transpose(0, 1)
        x = nn.functional.pad(x, (0, self.channels - x.shape[2])) if self.linear is None else self.linear(x)
        return x.transpose(1, 2), torch.stack(new).permute(2, 0, 1, 3)


@torch.no_grad()
def _fill(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    layer.get_parameter("weight").copy_(weight)
    assert bias is not None
    layer.get_parameter("bias").copy_(bias)


def _join(earlier: Tensor, later: Tensor) -> Tensor:
    """Both along time; no copy where there is nothing earlier."""
    return torch.cat([earlier, later], dim=2) if earlier.shape[2] else later
