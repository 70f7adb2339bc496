"""Pipecat: an audio filter for input transports; ``pip install '.[pipecat]'``."""

from __future__ import annotations

from typing import Any

import numpy as np
from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame, FilterUpdateSettingsFrame

from ..live import Frame, LiveStreamer
from ..model import SlimModel
from . import shared_model

_SETTINGS = ("strength", "uf", "budget")


class SlimSEFilter(BaseAudioFilter):
    """Enhance the microphone of one session: as many bytes out as in, `delay_ms` later.

    Pass it as ``audio_in_filter`` of the transport's parameters. A `FilterEnableFrame` fades it in and out. A
    `FilterUpdateSettingsFrame` changes ``strength``, and ``uf`` or ``budget`` from the next frame on.

    Args:
        uf: width of the frames; None for 1.0, or the router if there is a budget.
        budget: target mean UF, averaged over a corpus: the router chooses.
        strength: share of the enhanced sound, 0 to 1.
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
        # Refuses bad values before a session starts.
        self._strength = LiveStreamer(self._model, uf, budget=budget, strength=strength).strength
        self._enabled = True
        self._streamer: LiveStreamer | None = None

    @property
    def delay_ms(self) -> float:
        """Milliseconds by which the sound comes later; 0 before `start`."""
        return 0.0 if self._streamer is None else self._streamer.delay_ms

    @property
    def frame(self) -> Frame | None:
        """Width, speech probability and noise level of the latest 16 ms; None before `start`."""
        return None if self._streamer is None else self._streamer.frame

    async def start(self, sample_rate: int) -> None:
        """Begin a session at a rate from 8,000 to 192,000 Hz."""
        options: dict[str, Any] = {"strength": self._strength, "enabled": self._enabled, "dtype": "int16"}
        self._streamer = LiveStreamer(self._model, self._uf, budget=self._budget, sample_rate=sample_rate, **options)

    async def stop(self) -> None:
        """End the session; `start` begins another."""
        self._streamer = None

    async def process_frame(self, frame: FilterControlFrame) -> None:
        """Switch, or change settings.

        Raises:
            ValueError: for a setting that there is not, or a value out of range; nothing is then changed.
        """
        if isinstance(frame, FilterEnableFrame):
            self._enabled = frame.enable
        elif isinstance(frame, FilterUpdateSettingsFrame):
            self._update(dict(frame.settings))
        if self._streamer is not None:
            self._streamer.enabled, self._streamer.strength = self._enabled, self._strength

    def _update(self, settings: dict[str, Any]) -> None:
        if unknown := settings.keys() - set(_SETTINGS):
            raise ValueError(f"setting {min(unknown)!r}: expected one of {_SETTINGS}")
        uf, budget = self._uf, self._budget
        if "uf" in settings or "budget" in settings:
            # Either takes the place of the other.
            uf, budget = settings.get("uf"), settings.get("budget")
        strength = settings.get("strength", self._strength)
        LiveStreamer(self._model, uf, budget=budget, strength=strength)
        self._uf, self._budget, self._strength = uf, budget, strength

    async def filter(self, audio: bytes) -> bytes:
        """Enhance 16-bit samples of one channel; before `start` they pass as they are."""
        if self._streamer is None:
            return audio
        if len(audio) % 2:
            raise ValueError(f"audio has {len(audio)} bytes: expected 16-bit samples")
        budget = self._budget
        uf = 1.0 if self._uf is None and budget is None else self._uf
        return self._streamer.feed(np.frombuffer(audio, np.int16), uf, budget).tobytes()
