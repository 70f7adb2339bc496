"""LiveKit: a frame processor for `rtc.AudioStream` and for agents; ``pip install '.[livekit]'``."""

from __future__ import annotations

import numpy as np
from livekit import rtc

from ..live import Frame, LiveStreamer
from ..model import SlimModel
from . import shared_model


class SlimSEFrameProcessor(rtc.FrameProcessor[rtc.AudioFrame]):
    """Enhance the frames of one track: each comes back with as many samples, rate and channels as it had.

    Pass it as ``noise_cancellation`` to `rtc.AudioStream`, one for each stream. The sound comes `delay_ms` later.

    Args:
        uf: width of the frames; None for 1.0, or the router if there is a budget.
        budget: target mean UF, averaged over a corpus: the router chooses.
        strength: share of the enhanced sound, 0 to 1. It may change at any time, without a click.
        model: None for the bundled weights, once per process.

    Raises:
        ValueError: for a UF outside the set or values out of range.
    """

    def __init__(
        self,
        uf: float | None = None,
        *,
        budget: float | None = None,
        strength: float = 1.0,
        model: SlimModel | None = None,
    ) -> None:
        self._model = shared_model() if model is None else model
        self._uf, self._budget = uf, budget
        self._streamer: LiveStreamer | None = None
        self._open(self._model.sample_rate, 1, strength)
        self._enabled = True

    def _open(self, sample_rate: int, channels: int, strength: float) -> LiveStreamer:
        self._streamer = LiveStreamer(
            self._model,
            self._uf,
            budget=self._budget,
            sample_rate=sample_rate,
            channels=channels,
            dtype="int16",
            strength=strength,
        )
        return self._streamer

    def _stream(self) -> LiveStreamer:
        if self._streamer is None:
            raise ValueError("the frame processor is closed: make a new one for another stream")
        return self._streamer

    @property
    def enabled(self) -> bool:
        """Whether frames are processed. LiveKit passes others on as they are, which skips the delay.

        For a switch that is not heard, set `strength` to 0.
        """
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value and not self._enabled:
            # What it holds is from before the pause.
            self._stream().reset()
        self._enabled = bool(value)

    @property
    def strength(self) -> float:
        """Share of the enhanced sound, 0 to 1."""
        return self._stream().strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._stream().strength = value

    @property
    def delay_ms(self) -> float:
        """Milliseconds by which the sound comes later, at the rate of the last frame."""
        return self._stream().delay_ms

    @property
    def frame(self) -> Frame:
        """Width, speech probability and noise level of the latest 16 ms."""
        return self._stream().frame

    def _process(self, frame: rtc.AudioFrame) -> rtc.AudioFrame:
        streamer, rate, channels = self._stream(), frame.sample_rate, frame.num_channels
        if (streamer.sample_rate, streamer.channels) != (rate, channels):
            streamer = self._open(rate, channels, streamer.strength)
        # A buffer may be longer than its frame.
        samples = np.frombuffer(frame.data, np.int16)[: channels * frame.samples_per_channel].reshape(-1, channels)
        out = streamer.feed(np.ascontiguousarray(samples.T))
        data = np.ascontiguousarray(out.T).tobytes()
        return rtc.AudioFrame(data, rate, channels, frame.samples_per_channel, userdata=frame.userdata)

    def _close(self) -> None:
        self._streamer = None
