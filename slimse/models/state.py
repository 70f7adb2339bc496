"""What a stream remembers between two steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .router import RouterState

if TYPE_CHECKING:
    from .demucs import SlimDemucs


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


def check_state(model: SlimDemucs, state: DemucsState, pending: Tensor, rows: int) -> None:
    """Make sure that a saved state, which may be damaged, is one of ``rows`` streams of this model.

    Args:
        model: that shall go on from it.
        state: to check.
        pending: samples that do not fill a frame yet, ``[rows, n]``.
        rows: number of streams.

    Raises:
        ValueError: for another type, shape or dtype, a value that is not finite, or a number of samples that no stream
            has between two frames; the message names the part and what was expected.

    """
    if not isinstance(state, DemucsState):
        raise ValueError(f"state.model is a {type(state).__name__}: expected a DemucsState")
    samples, first = state.samples, model.first_samples
    whole = isinstance(samples, int) and (samples == 0 or (samples >= first and (samples - first) % model.hop == 0))
    if not whole or not 0 <= samples < 2**62:
        raise ValueError(f"state.samples = {samples!r}: expected 0, or {first} and a multiple of {model.hop} more")
    expected = _state_like(model, state, samples, rows)
    for name in DemucsState._fields[:-1]:
        mine, theirs = getattr(expected, name), getattr(state, name)
        if not isinstance(theirs, tuple) or len(theirs) != len(mine):
            raise ValueError(f"state.{name} is {type(theirs).__name__}: expected {len(mine)} tensors")
        for index, (like, part) in enumerate(zip(mine, theirs, strict=True)):
            _check_part(f"state.{name}[{index}]", part, tuple(like.shape), like.dtype)
    most = first - 1 if samples == 0 else model.hop - 1
    length = pending.shape[1] if isinstance(pending, Tensor) and pending.ndim == 2 else 0
    _check_part("state.pending", pending, (rows, min(length, most)), torch.float32)


def _state_like(model: SlimDemucs, state: DemucsState, samples: int, rows: int) -> DemucsState:
    """A sound state after as many samples: its sizes settle with the first output."""
    given = model.config.level == "signal" and isinstance(state.level, tuple) and len(state.level) == 1
    fresh = model.initial_state(rows, 1.0 if given else None)
    if not samples:
        return fresh
    silent = next(frames for frames in itertools.count() if model.emitted(frames + 1))
    frames = min(1 + (samples - model.first_samples) // model.hop, silent + 2)
    with torch.no_grad():
        length = model.first_samples + (frames - 1) * model.hop
        like = next(model.parameters()).new_zeros(rows, length, dtype=torch.float32)
        return model.step(like, fresh, model.config.ufs[0])[1]


def _check_part(name: str, part: object, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(part, Tensor) or part.layout != torch.strided:
        raise ValueError(f"{name} is a {type(part).__name__}: expected a tensor {shape}")
    if tuple(part.shape) != shape or part.dtype != dtype:
        raise ValueError(f"{name} has shape {tuple(part.shape)} and dtype {part.dtype}: expected {shape}, {dtype}")
    if not bool(part.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")
