"""The numbers that a streaming graph of fixed shapes needs: where its frames lie, and what it keeps between calls."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..networks import SlimDemucsConfig
from ..nn.resample import LOOKAHEAD


@dataclass(frozen=True)
class Geometry:
    """Frames of a stream that starts from zeros.

    A `Streamer` treats the first frame apart: it takes more samples and starts from empty buffers. A graph has fixed
    shapes, so it runs `early` frames before the first. What they compute lies before the signal and is not kept. The
    signal begins behind `lead` samples of silence, so that each frame ends with its call, as late as in `Streamer`.

    """

    config: SlimDemucsConfig
    frames: int
    """Per call."""
    early: int
    """Frames before the first: whole calls of them."""
    hop: int
    """Samples per frame."""
    first_samples: int
    """Of the signal that the first frame needs."""
    spare: int
    """Samples that it takes and its windows do not span: they are in the resampling filters."""
    encoder_lead: tuple[int, ...]
    """Per level, the last position that the first frame computes; level 0 is the network's input."""

    @classmethod
    def of(cls, config: SlimDemucsConfig, frames: int) -> Geometry:
        """For a network and a number of frames per call."""
        g, frame_map = config.geometry, config.frame_map
        lead = tuple(frame_map.first_span(level) - 1 for level in range(config.depth + 1))
        early = frames * math.ceil((g.first / g.hop - 1) / frames)
        return cls(config, frames, early, g.hop, g.first, g.first - g.receptive, lead)

    @property
    def first_outputs(self) -> int:
        """Samples that are ready once the first frame has run; below 0 where later frames have to come first."""
        return self.ready_down(self.stages - 1)

    @property
    def lead(self) -> int:
        """Samples of silence before the signal."""
        return (self.early + 1) * self.hop - self.first_samples

    @property
    def delay(self) -> int:
        """Outputs before the first that belongs to the signal."""
        return (self.early + 1) * self.hop - self.first_outputs

    @property
    def latency(self) -> int:
        """Samples that must have come in behind one for its output to be ready, at most."""
        return self.delay - self.lead + self.frames * self.hop - 1

    @property
    def call(self) -> int:
        """Samples of a call."""
        return self.frames * self.hop

    @property
    def tail(self) -> int:
        """Outputs that are left once the last frame has run."""
        return (self.encoder_lead[0] + 1) // self.config.resample - self.first_outputs

    @property
    def stages(self) -> int:
        """Resampling stages, each by two."""
        return self.config.resample.bit_length() - 1

    def rate(self, level: int) -> int:
        """Positions per frame at a level."""
        return self.config.stride ** (self.config.depth - level)

    def rounds(self, level: int) -> int:
        """Encoder outputs of a level that wait for the decoder."""
        return self.encoder_lead[level] + 1 - self.rate(level)

    @property
    def reach(self) -> int:
        """Strides that a kernel spans."""
        return self.config.kernel_size // self.config.stride

    def silent_up(self, stage: int) -> int:
        """Outputs of an up-sampling stage that lie before the signal: a later stage must see silence there."""
        return (self.early + 1) * self.hop * 2 ** (stage + 1) - self._ready_up(stage)

    def sounding_up(self, stage: int) -> int:
        """As `silent_up`, of the last frame: outputs that do not lie behind the signal."""
        per_frame = self.hop * 2 ** (stage + 1)
        return (self.first_samples - self.spare) * 2 ** (stage + 1) - (self._ready_up(stage) - per_frame)

    def _ready_up(self, stage: int) -> int:
        ready = self.first_samples
        for _ in range(stage + 1):
            ready = 2 * (ready - LOOKAHEAD)
        return ready

    def silent_down(self, stage: int) -> int:
        """As `silent_up`, of a down-sampling stage, counted from the first frame."""
        return self.rate(0) // 2 ** (stage + 1) - self.ready_down(stage)

    def ready_down(self, stage: int) -> int:
        """Outputs of a down-sampling stage that are ready once the first frame has run, as of `first_outputs`."""
        ready = self.rate(0)
        for _ in range(stage + 1):
            ready = ready // 2 - (LOOKAHEAD - 1)
        return ready
