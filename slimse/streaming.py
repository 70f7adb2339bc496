"""Enhancing a live signal, chunk by chunk, with the same result as the whole signal at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled import STEP_FRAMES, use_compiled
from .deadline import DeadlineController
from .models import DemucsState, SlimDemucs
from .models.router import RouterState
from .width import UF, Auto, Budget

Chunk = TypeVar("Chunk", Tensor, NDArray[np.floating])

_Wanted: TypeAlias = tuple[UF | Auto, Budget | None]
_Chosen: TypeAlias = UF | NDArray[np.int64]
"""UFs, or an array of indices into the model's."""


class StreamerState(NamedTuple):
    """A stream at one moment: the model's state and the samples that do not fill a frame yet."""

    model: DemucsState
    pending: Tensor
    uf: UF | Auto
    budget: Budget | None = None


# Or `torch.load` would refuse what `torch.save` wrote of a stream.
torch.serialization.add_safe_globals([StreamerState, DemucsState, RouterState])


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
        backend: as of `SlimDemucs`, None for the model's own. The compiled path has the weights of this moment.
        max_load: share of real time that processing may take, up to 1; above it, frames run at narrower widths than
            asked for until it falls (see `DeadlineController`). None for no limit.
        clock: gives seconds, to measure that.
        half: let the compiled path read weights in float16: faster, with a relative error of about 1e-3.

    Raises:
        ValueError: for a model that cannot stream, a UF outside its set, or a backend that cannot run.

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
        backend: str | None = None,
        half: bool = False,
        max_load: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not model.config.causal:
            raise ValueError("a bidirectional model cannot stream: it needs the whole signal")
        if streams is not None and streams < 1:
            raise ValueError(f"streams = {streams}: expected 1 or more, or None for a single unbatched stream")
        self.model, self.streams, self.shared = model, streams, shared
        self._own = self._checked(uf, budget)
        self._input_std = input_std
        self._controller = None if max_load is None else DeadlineController(model.config.ufs, max_load)
        self._clock = clock
        self._compiled = None
        if use_compiled(backend or model.backend, model):
            from .compiled.network import CompiledStreams

            self._compiled = CompiledStreams(model, streams or 1, half=half)
        elif half:
            raise ValueError("half = True: expected False, as this streamer does not run on the compiled path")
        self.reset()

    @property
    def backend(self) -> str:
        """What runs the frames: ``"numba"``, or ``"torch"`` for the layers on theirs."""
        return "torch" if self._compiled is None else "numba"

    @property
    def ufs(self) -> Tensor:
        """The UFs of the frames that the last `feed` or `flush` ran: ``[streams, frames]``."""
        uf, frames = self._ran
        return self._per_frame(uf, frames)

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples, see `SlimDemucs.latency`."""
        return self.model.latency

    @property
    def limit(self) -> float:
        """The widest UF that frames run at now: below 1.0 only while ``max_load`` demands it."""
        return 1.0 if self._controller is None else self._controller.limit

    @property
    def state(self) -> StreamerState:
        """The stream as it is now, a value: set it on a streamer of the same model to go on from here.

        It can be saved with `torch.save`, and set any number of times.
        """
        if self._compiled is None:
            return StreamerState(self._state, self._pending, *self._last)
        state, pending = self._compiled.save()
        return StreamerState(state._replace(router=self._state.router), pending, *self._last)

    @state.setter
    def state(self, state: StreamerState) -> None:
        if state.pending.shape[0] != (self.streams or 1):
            raise ValueError(
                f"the state is of {state.pending.shape[0]} streams, this streamer runs {self.streams or 1}"
            )
        self._state, self._pending = state.model, state.pending
        self._last = state.uf, state.budget
        if self._compiled is not None:
            self._compiled.load(self._state, self._pending)

    def reset(self) -> None:
        """Forget everything: the next sample starts a new signal."""
        pending = next(self.model.parameters()).new_zeros(self.streams or 1, 0, dtype=torch.float32)
        fresh = self.model.initial_state(self.streams or 1, self._input_std)
        self.state = StreamerState(fresh, pending, *self._own)
        self._kind: Any = pending
        self._ran: tuple[_Chosen, int] = (self.model.config.ufs[-1], 0)

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
        start = self._clock()
        with torch.no_grad():
            out, frames = (self._feed_torch if self._compiled is None else self._feed_compiled)(samples, wanted)
        if frames:
            self._last = wanted
            if self._controller is not None:
                sound = frames * self.model.hop / self.model.config.sample_rate
                self._controller.measure(self._clock() - start, sound)
        return self._like(out, chunk)

    def _feed_torch(self, samples: Tensor, wanted: _Wanted) -> tuple[Tensor, int]:
        """Samples that are ready, and how many frames of each stream ran."""
        pending = torch.cat([self._pending, samples], dim=1)
        model, state, outputs, ufs = self.model, self._state, [], []
        while frames := self._completed(pending.shape[1], state.samples):
            frames = min(frames, STEP_FRAMES)
            used = model.early(state.samples) + frames * model.hop
            chosen, state = self._decided(pending[:, :used], state, frames, wanted)
            assert not isinstance(chosen, np.ndarray)
            out, state = model.step(pending[:, :used], state, chosen)
            outputs.append(out)
            ufs.append(self._per_frame(chosen, frames))
            pending = pending[:, used:]
        self._state, self._pending = state, pending.clone()
        joined = torch.cat(ufs, dim=1) if ufs else samples[:, :0]
        self._ran = joined, joined.shape[1]
        return torch.cat(outputs, dim=1) if outputs else samples[:, :0], joined.shape[1]

    def flush(self, uf: UF | Auto | None = None, budget: Budget | None = None) -> Any:
        """End the signal: return all that is still missing and start anew.

        Args:
            uf: width of the frames that are left: as in `feed`, or one per frame, ``[streams, frames]``.
            budget: as in `feed`.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind of the last chunk (a float32 tensor if there was none).
        """
        state, pending = self._state, self._pending
        if self._compiled is not None:
            state, pending = state._replace(samples=self._compiled.samples), self._compiled.pending
        left = self.model.frames_left(state, pending.shape[1])
        if isinstance(uf, Tensor) and uf.ndim > 1:
            wanted: _Wanted = (uf, None)
        elif left or uf is not None:
            wanted = self._wanted(uf, budget)
        else:
            wanted = self._last
        with torch.no_grad():
            chosen, state = self._decided(pending, state, max(left, 1), wanted)
            if self._compiled is not None:
                out = self._compiled.finish(chosen)
            else:
                assert not isinstance(chosen, np.ndarray)
                out = self.model.finish(pending, state, chosen)
        kind = self._kind
        self.reset()
        self._ran = chosen, left
        return self._like(out, kind)

    def _feed_compiled(self, samples: Tensor, wanted: _Wanted) -> tuple[Tensor, int]:
        """As `_feed_torch`. Of the state, samples and router are kept here, the rest in the compiled streams."""
        compiled = self._compiled
        assert compiled is not None
        chosen: _Chosen = self.model.config.ufs[-1]
        if not isinstance(wanted[0], str):
            chosen = self._limited(wanted[0])
        else:
            heard, state = torch.cat([compiled.pending, samples], dim=1), self._state._replace(samples=compiled.samples)
            if frames := self._completed(heard.shape[1], state.samples):
                used = self.model.early(state.samples) + frames * self.model.hop
                chosen, self._state = self._decided(heard[:, :used], state, frames, wanted)
        out, frames = compiled.feed(samples, chosen)
        self._ran = chosen, frames
        return out, frames

    def _completed(self, samples: int, done: int) -> int:
        """Frames that ``samples`` samples complete, ``done`` samples after the start."""
        return max((samples - self.model.early(done)) // self.model.hop, 0)

    def _decided(
        self, samples: Tensor, state: DemucsState, frames: int, wanted: _Wanted
    ) -> tuple[_Chosen, DemucsState]:
        """The UFs of the next frames, as given or from the router, and no wider than the limit."""
        uf, budget = wanted
        if not isinstance(uf, str):
            return self._limited(uf), state
        assert isinstance(budget, Tensor)
        if self._compiled is None:
            chosen, state = self.model.decide(samples, state, frames, budget, shared=self.shared)
            return self._limited(chosen), state
        assert self._compiled.router is not None and state.router
        early = self.model.early(state.samples)
        choice, router = self._compiled.router.choose(samples, early, frames, budget, state.router, self.shared)
        return self._limited(choice), state._replace(router=router)

    def _limited(self, uf: _Chosen) -> _Chosen:
        if self._controller is None:
            return uf
        if isinstance(uf, np.ndarray):
            return np.minimum(uf, self.model.config.ufs.index(self.limit))
        return uf.clamp(max=self.limit) if isinstance(uf, Tensor) else min(uf, self.limit)

    def _per_frame(self, uf: _Chosen, frames: int) -> Tensor:
        """UFs ``[streams, frames]``."""
        if isinstance(uf, np.ndarray):
            return self.model.config.ufs.at(torch.from_numpy(uf))
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
        budgets = self.model.budgets(uf, budget, self.streams or 1)
        if isinstance(uf, Tensor):
            self.model.config.ufs.schedule(uf, self.streams or 1, 1)
        elif not isinstance(uf, str):
            uf = self.model.config.ufs.validate(uf)
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
