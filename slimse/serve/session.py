"""A live session: blocks of samples and changes of settings in, as many samples out."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from ..live import LiveStreamer
from ..model import SlimModel

_LONGEST_BLOCK = 0.5
"""Seconds."""
_REPORT_SECONDS = 0.1


class LiveSession:
    """One microphone.

    Args:
        model: a causal network.
        text: JSON of the settings: ``rate`` in Hz, and what `set` takes.

    Raises:
        ValueError: for settings that are none.
    """

    def __init__(self, model: SlimModel, text: str) -> None:
        settings = _object(text)
        rate = settings.pop("rate", None)
        if isinstance(rate, bool) or not isinstance(rate, int):
            raise ValueError(f"rate = {rate!r}: expected a sample rate in Hz")
        self._streamer = LiveStreamer(model, sample_rate=rate)
        self._uf: float | None = model.ufs[0]
        self._budget: float | None = None
        self._model, self._rate = model, rate
        self._fed, self._unreported, self._busy = 0, 0, 0.0
        self._frames: list[list[float]] = []
        self.set(settings)

    @property
    def seconds(self) -> float:
        """Sound so far."""
        return self._fed / self._rate

    def welcome(self) -> str:
        """The first message to the page."""
        frame_ms = 1000 * self._model.geometry.hop / self._model.sample_rate
        return json.dumps({"delay_ms": self._streamer.delay_ms, "frame_ms": frame_ms})

    def change(self, text: str) -> None:
        """Take JSON of changed settings, see `set`."""
        self.set(_object(text))

    def set(self, settings: dict[str, Any]) -> None:
        """Change what is there of ``uf`` or ``budget`` (a number), and ``enabled``.

        Raises:
            ValueError: for others, or both of the former.
        """
        uf, budget = settings.pop("uf", None), settings.pop("budget", None)
        enabled = settings.pop("enabled", self._streamer.enabled)
        if settings:
            raise ValueError(f"settings {sorted(settings)}: expected uf or budget, and enabled")
        if uf is not None and budget is not None:
            raise ValueError(f"uf = {uf!r} and budget = {budget!r}: expected one of both")
        if not isinstance(enabled, bool):
            raise ValueError(f"enabled = {enabled!r}: expected true or false")
        if uf is not None or budget is not None:
            # Rejects a bad one.
            self._streamer.feed(np.zeros(0, np.float32), uf, budget)
            self._uf, self._budget = uf, budget
        self._streamer.enabled = enabled

    def feed(self, data: bytes) -> tuple[bytes, str | None]:
        """Enhance a block.

        Args:
            data: samples in float32, little-endian.

        Returns:
            As many, and now and then JSON of what was found out: ``frames`` (UF, speech probability, noise in dBFS),
            and ``load``, the share of the time that enhancing took.

        Raises:
            ValueError: for half a sample, too many of them, or one that is not finite.
        """
        if len(data) % 4 or len(data) > 4 * _LONGEST_BLOCK * self._rate:
            raise ValueError(f"a block of {len(data)} bytes: expected float32 samples, {_LONGEST_BLOCK} s at most")
        start = time.perf_counter()
        block = np.frombuffer(data, "<f4").astype(np.float32)
        out = self._streamer.feed(block, self._uf, self._budget)
        self._fed += len(block)
        self._busy += time.perf_counter() - start
        self._unreported += len(block)
        self._frames += [[round(value, 4) for value in frame] for frame in self._streamer.frames]
        report = None
        if self._unreported >= _REPORT_SECONDS * self._rate:
            report = json.dumps({"frames": self._frames, "load": self._busy * self._rate / self._unreported})
            self._frames, self._unreported, self._busy = [], 0, 0.0
        return out.astype("<f4").tobytes(), report


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text[:40]!r} is no JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"{text[:40]!r}: expected an object, {{...}}")
    return found
