"""What a stream remembers between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .router import RouterState


class DemucsState(NamedTuple):
    """All that a stream remembers between two steps; every tensor has the streams as its leading (or second) axis.

    It is a value: `SlimDemucs.step` returns a new one and leaves the old as it was. Copy it, save it
    (`torch.save`), go back to it. Lengths along time differ between a fresh state and one that has seen its first
    frame, and are constant from then on.
    """

    up: tuple[Tensor, ...]
    """Per up-sampling stage, samples that later outputs need: ``[B, n]``."""
    encoder: tuple[Tensor, ...]
    """Per level, inputs that later windows share: ``[B, n, C_in]``."""
    skip: tuple[Tensor, ...]
    """Per level, encoder outputs that the decoder has not used yet: ``[B, n, C]``."""
    rnn: tuple[Tensor, ...]
    """Grouped GRU: ``[M, B, H]``. LSTM: ``h`` and ``c`` of every layer, ``[B, H]`` each."""
    decoder: tuple[Tensor, ...]
    """Per level, shallowest first, outputs that await an overlap: ``[B, K - S, C_out]`` (empty at the start)."""
    down: tuple[Tensor, ...]
    """Per down-sampling stage, samples that later outputs need: ``[B, n]``."""
    level: tuple[Tensor, ...]
    """Running: a `LevelState`. Of the whole signal, ``[B, 1]`` each: mean square so far and samples seen, or one given
    deviation. None: empty."""
    router: RouterState | tuple[()]
    """Of a model with a router, which hears the frames that it decides and no others."""
    samples: int
    """Input samples per stream so far, 0 in a fresh state."""

    def stream(self, index: int) -> DemucsState:
        """One of the streams, as views."""
        return self._map(lambda axis, part: part.narrow(axis, index, 1))

    def put(self, streams: Tensor, others: DemucsState, rows: Tensor) -> None:
        """Overwrite ``streams`` with ``rows`` of another state, in place. Both states have given their first output."""
        rest = iter([part for group in others[:-1] for part in group])
        self._map(lambda axis, part: part.index_copy_(axis, streams, next(rest).index_select(axis, rows)))

    def copy_(self, other: DemucsState) -> None:
        """Overwrite all tensors, in place, with those of a state of the same shapes; ``samples`` stays."""
        for mine, theirs in zip(self[:-1], other[:-1], strict=True):
            for old, new in zip(mine, theirs, strict=True):
                old.copy_(new)

    @staticmethod
    def stack(states: Sequence[DemucsState]) -> DemucsState:
        """Streams that have seen as many samples side by side."""
        parts = ([part for group in state[:-1] for part in group] for state in states)
        rest = iter(list(zip(*parts, strict=True)))
        return states[0]._map(lambda axis, _: torch.cat(next(rest), axis))

    def _map(self, change: Callable[[int, Tensor], Tensor]) -> DemucsState:
        """Apply ``change(axis of the streams, tensor)``; the grouped GRU has its groups first."""
        groups: dict[str, Any] = {
            name: tuple(change(int(name == "rnn" and part.ndim == 3), part) for part in getattr(self, name))
            for name in self._fields
            if name not in ("router", "samples")
        }
        router = RouterState(*(change(0, part) for part in self.router)) if self.router else ()
        return self._replace(router=router, **groups)
