"""The slimmable waveform U-Net, whole signals and frame by frame through the same code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...nn import DecoderBlock, EncoderBlock, GroupedGRU, SincDownsample, SincUpsample, SlimLSTMStack
from ...width import Schedule
from ..base import CausalNetwork, register
from .config import SlimDemucsConfig
from .init import initialise
from .plain import PlainDemucs, PlainDemucsConfig


class DemucsState(NamedTuple):
    """What streams remember between two steps; every tensor has the streams on axis 0.

    Lengths along time differ between a fresh state and one that has given its first output.
    """

    up: tuple[Tensor, ...]
    """Per up-sampling stage, samples that later outputs need: ``[B, n]``."""
    encoder: tuple[Tensor, ...]
    """Per level, inputs that later windows share: ``[B, n, C_in]``."""
    skip: tuple[Tensor, ...]
    """Per level, encoder outputs that the decoder has not used yet: ``[B, n, C]``."""
    rnn: tuple[Tensor, ...]
    """Grouped GRU: ``[B, M, H]``. LSTM: ``h`` and ``c`` of every layer, ``[B, H]`` each."""
    decoder: tuple[Tensor, ...]
    """Per level, shallowest first, outputs that await an overlap: ``[B, K - S, C_out]`` (empty at the start)."""
    down: tuple[Tensor, ...]
    """Per down-sampling stage, samples that later outputs need: ``[B, n]``."""


# Or `torch.load` would refuse what `torch.save` wrote of a stream.
torch.serialization.add_safe_globals([DemucsState])


@register("demucs", SlimDemucsConfig)
class SlimDemucs(CausalNetwork):
    """A causal DEMUCS whose blocks run at any of several widths from one set of weights.

    Args:
        config: sizes.
        backend: of the layers, see `slimse.ops`.
        precision: of float32 products in Triton kernels: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.

    Source: arXiv 2507.04879 (slimming), arXiv 2006.12847 (the network).
    """

    config: SlimDemucsConfig

    def __init__(self, config: SlimDemucsConfig, *, backend: str = "auto", precision: str = "ieee") -> None:
        super().__init__(config, backend=backend, precision=precision)
        self.geometry, self.frame_map = config.geometry, config.frame_map
        c, k, s = config.channels, config.kernel_size, config.stride
        stages = config.resample.bit_length() - 1
        levels = range(1, config.depth + 1)
        choice = {"backend": backend, "precision": precision}
        # The annotations say what the lists hold; `ModuleList` cannot.
        self.up: Sequence[SincUpsample]
        self.down: Sequence[SincDownsample]
        self.encoder: Sequence[EncoderBlock]
        self.decoder: Sequence[DecoderBlock]
        modules: dict[str, Sequence[nn.Module]] = {
            "up": [SincUpsample(backend=backend) for _ in range(stages)],
            "down": [SincDownsample(backend=backend) for _ in range(stages)],
            "encoder": [EncoderBlock(c(i - 1), c(i), k, s, **choice) for i in levels],
            "decoder": [DecoderBlock(c(i), c(i - 1), k, s, relu=i > 1, **choice) for i in levels],
        }
        for name, members in modules.items():
            self.add_module(name, nn.ModuleList(members))
        self.bottleneck: GroupedGRU | SlimLSTMStack
        if config.rnn == "gru":
            self.bottleneck = GroupedGRU(c(config.depth), config.groups, **choice)
        else:
            two = not config.causal
            self.bottleneck = SlimLSTMStack(c(config.depth), config.rnn_layers, bidirectional=two, **choice)
        initialise(self)

    def initial_state(self, batch: int) -> DemucsState:
        """Silence before the first sample of ``batch`` streams."""
        like = next(self.parameters())
        # Resampling is computed in at least float32, whatever the weights are.
        signal = like.new_zeros(batch, 1, dtype=torch.promote_types(like.dtype, torch.float32))
        empty = tuple(like.new_zeros(batch, 0, self.config.channels(i)) for i in range(self.config.depth + 1))
        return DemucsState(
            up=tuple(stage.initial_buffer(signal) for stage in self.up),
            encoder=empty[:-1],
            skip=empty[1:],
            rnn=self.bottleneck.initial_state(batch, like),
            decoder=empty[:-1],
            down=tuple(stage.initial_buffer(signal) for stage in self.down),
        )

    def whole_state(self, batch: int) -> DemucsState:
        """As of `CausalNetwork`: nothing at all, which stands for silence, but for the recurrent state."""
        like = next(self.parameters())
        none = like.new_empty(batch, 0, dtype=torch.promote_types(like.dtype, torch.float32))
        empty = tuple(like.new_empty(batch, 0, self.config.channels(i)) for i in range(self.config.depth + 1))
        return DemucsState(
            up=(none,) * len(self.up),
            encoder=empty[:-1],
            skip=empty[1:],
            rnn=self.bottleneck.initial_state(batch, like),
            decoder=empty[:-1],
            down=(none,) * len(self.down),
        )

    def extract(self, uf: float) -> PlainDemucs:
        """One width as a smaller network of `torch.nn` layers, with copies of the weights it needs.

        Raises:
            ValueError: for a UF outside the set.
        """
        plain = PlainDemucs(PlainDemucsConfig(self.config, self.ufs.validate(uf)))
        plain.fill(self)
        return plain

    def step(self, x: Tensor, state: DemucsState, schedule: Schedule, *, final: bool) -> tuple[Tensor, DemucsState]:
        """As of `CausalNetwork`."""
        config, frame_map = self.config, self.frame_map
        if x.is_cuda or self.encoder[0].backend == "triton":
            # Kernels put frames of like width into one tile.
            schedule = schedule.ordered()
        # Without an overlap of windows, the first frame owns no more positions than later ones.
        first = not state.encoder[0].shape[1]
        up, encoder_in, skips, decoder_tail, down = [], [], [], [], []
        for stage, buffer in zip(self.up, state.up, strict=True):
            x, buffer = stage(x, buffer, final=final)
            up.append(buffer)

        h = x.unsqueeze(-1).to(self.encoder[0].conv_weight.dtype)
        for level, block in enumerate(self.encoder, start=1):
            h = _join(state.encoder[level - 1], h)
            positions = block.positions(h.shape[1])
            out = block(
                h, schedule.level_width(config.channels(level), positions, *frame_map.encoder(level, first=first))
            )
            encoder_in.append(h[:, positions * config.stride :])
            skips.append(_join(state.skip[level - 1], out))
            h = out

        frames = h.shape[1]
        h, rnn = self.bottleneck(h, schedule.level_width(config.channels(config.depth), frames), state.rnn)

        overlap = config.kernel_size - config.stride
        for level in range(config.depth, 0, -1):
            positions = h.shape[1]
            skip, skips[level - 1] = skips[level - 1].split([positions, skips[level - 1].shape[1] - positions], dim=1)
            decoder, tail = self.decoder[level - 1], state.decoder[level - 1]
            # Offline nothing awaits an overlap.
            whole = final and not tail.shape[1]
            width = schedule.level_width(config.channels(level), positions, *frame_map.decoder(level))
            h = decoder(h, width, skip, activate=whole)
            if tail.shape[1]:
                h = torch.cat([h[:, :overlap] + tail, h[:, overlap:]], dim=1)
            decoder_tail.append(h[:, positions * config.stride :])
            h = h if whole else decoder.activate(h if final else h[:, : positions * config.stride])

        x = h.squeeze(-1).to(x.dtype)
        for half, buffer in zip(self.down, state.down, strict=True):
            x, buffer = half(x, buffer, final=final)
            down.append(buffer)
        if final:
            # Nothing follows that would go on from a state.
            return x, state
        return x, DemucsState(
            tuple(up),
            tuple(part.clone() for part in encoder_in),
            tuple(skip.clone() for skip in skips),
            rnn,
            tuple(tail.clone() for tail in reversed(decoder_tail)),
            tuple(down),
        )


def _join(earlier: Tensor, later: Tensor) -> Tensor:
    """Both along time; no copy where there is nothing earlier, which offline is always."""
    return torch.cat([earlier, later], dim=1) if earlier.shape[1] else later
