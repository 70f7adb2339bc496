"""Enhancing a live signal, chunk by chunk, with the same result as the whole signal at once."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .models import DemucsState, SlimDemucs
from .models.router import NO_ROUTER
from .width import UF, Auto, Budget

Chunk = TypeVar("Chunk", Tensor, NDArray[np.floating])

_Wanted: TypeAlias = tuple[UF | Auto, Budget | None]

_FRAMES_PER_STEP = 256
"""Most frames of one step: bounds the memory that a long chunk takes."""


class StreamerState(NamedTuple):
    """A stream at one moment: the model's state and the samples that do not fill a frame yet."""

    model: DemucsState
    pending: Tensor
    uf: UF | Auto
    budget: Budget | None = None


class Streamer:
    """Feed any number of samples, get back those that are ready.

    The outputs of all `feed` calls and of `flush`, one after the other, are as long as the input, aligned with it,
    and equal to ``model(whole_signal)`` up to rounding. Output ``n`` is ready once input ``n + latency`` has come in.

    Args:
        model: a causal `SlimDemucs`.
        uf: width of the frames, a float or ``[streams]``, unless `feed` says otherwise; ``"auto"`` leaves it to the
            model's router.
        budget: for ``"auto"``, the mean UF that is wanted over much sound, a number or ``[streams]``.
        streams: number of parallel streams, whose chunks are ``[streams, n]``; None for one stream of ``[n]``.
        shared: the router decides for all streams alike, as for the channels of one recording.
        input_std: deviation of the whole signal, for models that normalise; see `SlimDemucs.initial_state`.

    Raises:
        ValueError: for a model that cannot stream or a UF outside its set.

    >>> model = SlimDemucs("small")
    >>> streamer = Streamer(model, uf=0.25)
    >>> noisy = torch.randn(1000)
    >>> parts = [streamer.feed(chunk) for chunk in noisy.split(77)] + [streamer.flush()]
    >>> torch.cat(parts).shape
    torch.Size([1000])
    """

    def __init__(
        self,
        model: SlimDemucs,
        uf: UF | Auto = 1.0,
        *,
        budget: Budget | None = None,
        streams: int | None = None,
        shared: bool = False,
        input_std: float | Tensor | None = None,
    ) -> None:
        if not model.config.causal:
            raise ValueError("a bidirectional model cannot stream: it needs the whole signal")
        if streams is not None and streams < 1:
            raise ValueError(f"streams = {streams}: expected 1 or more, or None for a single unbatched stream")
        self.model, self.streams, self.shared = model, streams, shared
        self._own = self._checked(uf, budget)
        self._input_std = input_std
        self.reset()

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples, see `SlimDemucs.latency`."""
        return self.model.latency

    @property
    def state(self) -> StreamerState:
        """The stream as it is now, a value: set it on a streamer of the same model to go on from here.

        It can be saved with `torch.save`, and set any number of times.
        """
        return StreamerState(self._state, self._pending, self._last[0], self._last[1])

    @state.setter
    def state(self, state: StreamerState) -> None:
        if state.pending.shape[0] != (self.streams or 1):
            raise ValueError(
                f"the state is of {state.pending.shape[0]} streams, this streamer runs {self.streams or 1}"
            )
        self._state, self._pending = state.model, state.pending
        self._last = state.uf, state.budget

    def reset(self) -> None:
        """Forget everything: the next sample starts a new signal."""
        self._state = self.model.initial_state(self.streams or 1, self._input_std)
        self._pending = next(self.model.parameters()).new_zeros(self.streams or 1, 0, dtype=torch.float32)
        self._last = self._own
        self._kind: Any = self._pending
        self.ufs = self._pending
        """The UFs of the frames that the last `feed` or `flush` ran: ``[streams, frames]``."""

    def feed(self, chunk: Chunk, uf: UF | Auto | None = None, budget: Budget | None = None) -> Chunk:
        """Take samples, give back those that are ready.

        Args:
            chunk: ``[n]``, or ``[streams, n]``; floating point, numpy or torch, any ``n``, 0 included.
            uf: width of the frames that this chunk completes, a float or ``[streams]``; None for the streamer's own.
            budget: of these frames, which the router then decides; None for the streamer's own.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind, dtype and device of ``chunk``; ``m`` may be 0.

        Raises:
            ValueError: for another shape, integers, or a UF outside the set.
        """
        samples = self._as_tensor(chunk)
        self._kind = chunk[..., :0]
        wanted = self._wanted(uf, budget)
        pending = torch.cat([self._pending, samples], dim=1)
        model, state, outputs, ufs = self.model, self._state, [], []
        with torch.no_grad():
            while True:
                first = model.hop if state.samples else model.first_samples
                frames = min(1 + (pending.shape[1] - first) // model.hop, _FRAMES_PER_STEP)
                if frames < 1:
                    break
                used = first + (frames - 1) * model.hop
                chosen, state = self._decided(pending[:, :used], state, frames, wanted)
                out, state = model.step(pending[:, :used], state, chosen)
                outputs.append(out)
                ufs.append(self._per_frame(chosen, frames))
                pending = pending[:, used:]
                self._last = wanted
        self._state, self._pending = state, pending.clone()
        self.ufs = torch.cat(ufs, dim=1) if ufs else samples[:, :0]
        return self._like(torch.cat(outputs, dim=1) if outputs else samples[:, :0], chunk)

    def flush(self, uf: UF | Auto | None = None, budget: Budget | None = None) -> Any:
        """End the signal: return all that is still missing and start anew.

        Args:
            uf: width of the frames that are left: as in `feed`, or one per frame, ``[streams, frames]``.
            budget: as in `feed`.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind of the last chunk (a float32 tensor if there was none).
        """
        left = self.model.frames_left(self._state, self._pending.shape[1])
        if isinstance(uf, Tensor) and uf.ndim > 1:
            wanted: _Wanted = (uf, None)
        elif left or uf is not None:
            wanted = self._wanted(uf, budget)
        else:
            wanted = self._last
        with torch.no_grad():
            chosen, state = self._decided(self._pending, self._state, max(left, 1), wanted)
            out = self.model.finish(self._pending, state, chosen)
        kind = self._kind
        self.reset()
        self.ufs = self._per_frame(chosen, max(left, 1))[:, :left]
        return self._like(out, kind)

    def _decided(self, samples: Tensor, state: DemucsState, frames: int, wanted: _Wanted) -> tuple[UF, DemucsState]:
        """The UFs of the next frames: as given, or from the router."""
        uf, budget = wanted
        if not isinstance(uf, str):
            return uf, state
        assert budget is not None
        return self.model.decide(samples, state, frames, budget, shared=self.shared)

    def _per_frame(self, uf: UF, frames: int) -> Tensor:
        ufs = torch.as_tensor(uf, device=self._pending.device)
        return (ufs.unsqueeze(1) if ufs.ndim == 1 else ufs).expand(self.streams or 1, frames)

    def _wanted(self, uf: UF | Auto | None, budget: Budget | None) -> _Wanted:
        """What `feed` and `flush` were given, or the streamer's own."""
        if uf is None and budget is None:
            return self._own
        return self._checked("auto" if uf is None else uf, budget)

    def _checked(self, uf: UF | Auto, budget: Budget | None) -> _Wanted:
        """Reject a bad UF or budget before any sample has been taken."""
        if isinstance(uf, Tensor) and uf.ndim > 1:
            raise ValueError(f"uf has shape {tuple(uf.shape)}: expected a float or [streams]")
        budgets = self.model.config.ufs.budgets(uf, budget, self.streams or 1)
        if not isinstance(uf, str):
            self.model.config.ufs.schedule(uf, self.streams or 1, 1)
        elif self.model.router is None:
            raise ValueError(NO_ROUTER)
        return uf, budgets

    def _as_tensor(self, chunk: Tensor | NDArray[np.floating]) -> Tensor:
        samples = torch.as_tensor(chunk)
        shape = "[n]" if self.streams is None else f"[{self.streams}, n]"
        fits = samples.ndim == 1 if self.streams is None else samples.ndim == 2 and samples.shape[0] == self.streams
        if not fits or not samples.is_floating_point():
            raise ValueError(
                f"chunk has shape {tuple(samples.shape)} and dtype {samples.dtype}: expected floating {shape}"
            )
        return samples.reshape(self.streams or 1, -1).to(self._pending)

    def _like(self, out: Tensor, chunk: Chunk) -> Chunk:
        out = out if self.streams is not None else out[0]
        if isinstance(chunk, np.ndarray):
            return out.cpu().numpy().astype(chunk.dtype, copy=False)
        return out.to(chunk)
