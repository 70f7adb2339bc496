"""Configuration of `SlimDemucs`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...nn.resample import LOOKAHEAD
from ...width import WidthSet
from ..base import FrameGeometry, NetworkConfig
from .frames import FrameMap


@dataclass(frozen=True)
class SlimDemucsConfig(NetworkConfig):
    """Shape of a `SlimDemucs`. The defaults are those of arXiv 2507.04879.

    Args:
        ufs: utilization factors, rising, the last 1.0.
        hidden: ``H``, channels of the first block; block ``i`` has ``growth ** (i - 1) * H``.
        growth: channel growth per level.
        level_channels: channels of every block, ``depth`` of them, instead of ``hidden`` and ``growth``: what the
            original DEMUCS makes of a ``growth`` that is no integer, or a ``max_hidden``.
        depth: ``L``, number of encoder (and decoder) blocks.
        kernel_size: ``K`` of every (transposed) convolution, a multiple of ``stride``.
        stride: ``S``, a multiple of ``resample``.
        resample: ``U``, sinc up-sampling of the input: 1, 2 or 4.
        rnn: ``"gru"`` (grouped, one layer, never slimmed) or ``"lstm"`` (``rnn_layers`` layers, slimmed).
        groups: ``M``, groups of the GRU; must divide the deepest channel count.
        rnn_layers: layers of the LSTM.
        causal: False makes the LSTM bidirectional (offline use only).
        sample_rate: of input and output, Hz.

    Raises:
        ValueError: for values that do not fit together; the message names the value and what was expected.
    """

    ufs: WidthSet = field(default_factory=lambda: WidthSet((0.125, 0.25, 0.5, 1.0)))
    hidden: int = 32
    growth: int = 2
    level_channels: tuple[int, ...] | None = None
    depth: int = 5
    kernel_size: int = 8
    stride: int = 4
    resample: int = 4
    rnn: str = "gru"
    groups: int = 4
    rnn_layers: int = 1
    causal: bool = True
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        """Check that the values fit together."""
        super().__post_init__()
        for name in ("hidden", "growth", "depth", "kernel_size", "stride", "groups", "rnn_layers", "sample_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} = {value!r}: expected a positive integer")
        counts = self.level_channels
        if counts is not None:
            object.__setattr__(self, "level_channels", tuple(counts))
            if len(counts) != self.depth or counts[0] != self.hidden or min(counts) < 1:
                raise ValueError(
                    f"level_channels = {counts}: expected depth = {self.depth} positive integers, the first of them "
                    f"hidden = {self.hidden}"
                )
        if self.resample not in (1, 2, 4):
            raise ValueError(f"resample = {self.resample!r}: expected 1, 2 or 4")
        if self.kernel_size % self.stride:
            raise ValueError(f"kernel_size = {self.kernel_size}: expected a multiple of stride = {self.stride}")
        if self.stride % self.resample:
            raise ValueError(f"stride = {self.stride}: expected a multiple of resample = {self.resample}")
        if self.rnn not in ("gru", "lstm"):
            raise ValueError(f"rnn = {self.rnn!r}: expected 'gru' or 'lstm'")
        if self.rnn == "gru" and (self.channels(self.depth) % self.groups or self.rnn_layers != 1 or not self.causal):
            raise ValueError(
                f"a grouped GRU is causal, has one layer, and its groups divide {self.channels(self.depth)} channels; "
                f"got causal = {self.causal}, rnn_layers = {self.rnn_layers}, groups = {self.groups}"
            )

    def channels(self, level: int) -> int:
        """Channels at ``level``: 1 for the waveform (level 0), then ``growth ** (level - 1) * hidden`` or as listed."""
        if level and self.level_channels is not None:
            return self.level_channels[level - 1]
        return 1 if level == 0 else self.growth ** (level - 1) * self.hidden

    def fewest_weights(self) -> int:
        """Weights of the convolutions and the recurrent layers alone."""
        needed = 0
        for level in range(1, self.depth + 1):
            before, here = self.channels(level - 1), self.channels(level)
            needed += 2 * self.kernel_size * before * here + 4 * here * here
        deepest = self.channels(self.depth)
        gru = 6 * deepest * (deepest // self.groups)
        return needed + (gru if self.rnn == "gru" else 8 * self.rnn_layers * deepest**2)

    @classmethod
    def limits(cls, tensors: int, weights: int) -> dict[str, int]:
        """As of `NetworkConfig`."""
        return {"depth": tensors, "rnn_layers": tensors, "stride": weights, "kernel_size": weights}

    @property
    def frame_map(self) -> FrameMap:
        """Which frame owns which position."""
        return FrameMap(self.depth, self.kernel_size, self.stride)

    @property
    def geometry(self) -> FrameGeometry:
        """How samples and frames relate."""
        frames = self.frame_map
        positions, stages = frames.first_span(0), self.resample.bit_length() - 1
        first = positions
        for _ in range(stages):
            first = -(-first // 2) + LOOKAHEAD
        hop = frames.positions_per_frame(0) // self.resample
        # Enough frames that every resampling filter gives output.
        full = 1 + first // hop
        ready = full * frames.positions_per_frame(0)
        for _ in range(stages):
            ready = ready // 2 - (LOOKAHEAD - 1)
        return FrameGeometry(hop, first, positions // self.resample, full * hop - ready)
