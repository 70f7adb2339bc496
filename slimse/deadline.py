"""Keeping a live stream within its share of the processor by the width of the network."""

from __future__ import annotations

from .width import WidthSet

_SMOOTHING = 0.3
"""Weight of the newest measurement: a single hiccup does not narrow, three slow frames in a row do."""
_CALM_SECONDS = 1.0
"""Sound that must pass well below the limit before the width is raised by a step."""
_MARGIN = 0.8
"""A wider network must be expected to stay below this share of the limit, or it would soon be narrowed again."""


class DeadlineController:
    """The widest UF at which frames stay within their share of real time.

    The load is processing time over the time that the sound takes. Above ``max_load`` the width falls by a step, down
    to the smallest if a frame took longer than the sound; after a second of calm it rises by a step if the load would
    stay below the limit even if it grew with the UF.

    Args:
        widths: UFs of the model.
        max_load: share of real time, above 0 and at most 1.

    Raises:
        ValueError: for a ``max_load`` out of range.
    """

    def __init__(self, widths: WidthSet, max_load: float) -> None:
        if not 0 < max_load <= 1:
            raise ValueError(f"max_load = {max_load!r}: expected a number above 0, at most 1")
        self._widths, self._max_load = widths, max_load
        self._index = len(widths) - 1
        self._load, self._calm = 0.0, 0.0

    @property
    def limit(self) -> float:
        """The widest UF that frames may run at now."""
        return self._widths[self._index]

    def measure(self, seconds: float, sound: float) -> None:
        """Take the time that frames took and the time that they sound, in seconds."""
        load = seconds / sound
        self._load += _SMOOTHING * (load - self._load)
        if load > 1:
            self._move(0)
        elif self._load > self._max_load:
            self._move(max(self._index - 1, 0))
        elif self._index + 1 < len(self._widths):
            growth = self._widths[self._index + 1] / self.limit
            self._calm = self._calm + sound if self._load * growth < _MARGIN * self._max_load else 0.0
            if self._calm >= _CALM_SECONDS:
                self._move(self._index + 1)

    def _move(self, index: int) -> None:
        """Change the width; what the load will be there is expected to follow the UF until it is measured."""
        self._load *= self._widths[index] / self.limit
        self._index, self._calm = index, 0.0
