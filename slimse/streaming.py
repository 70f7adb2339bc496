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
from .models.state import check_state
from .width import UF, AnyUF, Budget, Request

Chunk = TypeVar("Chunk", Tensor, NDArray[np.floating])

_Chosen: TypeAlias = UF | NDArray[np.int64]
"""UFs, or an array of indices into the model's."""
_Kind: TypeAlias = np.dtype[Any] | tuple[torch.dtype, torch.device] | None
"""Of a chunk: an array or a tensor; None for a tensor in float32 on the CPU."""
_FLOAT32 = torch.float32
LOUDEST = 1e6
"""Largest sample, full scale being 1: beyond, squares of samples inside the network leave the range of float32."""


class StreamerState(NamedTuple):
    """A stream at one moment: the model's state and the samples that do not fill a frame yet."""

    model: DemucsState
    pending: Tensor
    uf: UF | None
    budget: Tensor | None = None


# Or `torch.load` would refuse what `torch.save` wrote of a stream.
torch.serialization.add_safe_globals([StreamerState, DemucsState, RouterState])


class Streamer:
    """Feed any number of samples, get back those that are ready.

    The outputs of all `feed` calls and of `flush`, one after the other, are as long as the input, aligned with it,
    and equal to ``model(whole_signal)`` up to rounding. Output ``n`` is ready once input ``n + latency`` has come in.

    Args:
        model: a causal `SlimDemucs`.
        uf: width of the frames, a float or ``[streams]``, unless `feed` says otherwise. Without UF and budget, 1.0.
        budget: target mean UF, averaged over a corpus, a number or ``[streams]``: the model's router chooses the UFs.
        streams: number of parallel streams, whose chunks are ``[streams, n]``; None for one stream of ``[n]``.
        shared: the router decides for all streams alike, as for the channels of one recording.
        input_std: deviation of the whole signal, for models that normalise; see `SlimDemucs.initial_state`.
        backend: as of `SlimDemucs`, None for the model's own. The compiled path has the weights of this moment.
        max_load: share of real time that processing may take, up to 1; above it, frames run at narrower widths than
            asked for until it falls (see `DeadlineController`). None for no limit.
        clock: gives seconds, to measure that.
        half: let the compiled path read weights in float16 even where that rounds them: faster, with a relative error
            of about 1e-3. Weights that float16 holds exactly, as those of `load` are, are read so in any case.

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
        uf: AnyUF | None = None,
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
        state, pending = (self._state, self._pending) if self._compiled is None else self._compiled.save()
        return StreamerState(state, pending, *self._last)

    @state.setter
    def state(self, state: StreamerState) -> None:
        if not isinstance(state, StreamerState):
            raise ValueError(f"state is a {type(state).__name__}: expected what `state` gave")
        self._checked(state.uf, state.budget)
        check_state(self.model, state.model, state.pending, self._rows)
        self._restore(state)

    def _restore(self, state: StreamerState) -> None:
        self._last = Request(state.uf, state.budget)
        if self._compiled is None:
            self._state, self._pending = state.model, state.pending
        else:
            self._compiled.load(state.model, state.pending)

    def reset(self) -> None:
        """Forget everything: the next sample starts a new signal."""
        pending = next(self.model.parameters()).new_zeros(self._rows, 0, dtype=torch.float32)
        fresh = self.model.initial_state(self._rows, self._input_std)
        self._restore(StreamerState(fresh, pending, *self._own))
        self._kind: _Kind = None
        self._ran: tuple[_Chosen, int] = (pending, 0)

    def feed(self, chunk: Chunk, uf: AnyUF | None = None, budget: Budget | None = None) -> Chunk:
        """Take samples, give back those that are ready.

        Args:
            chunk: ``[n]``, or ``[streams, n]``; floating point, numpy or torch, any ``n``, 0 included.
            uf: width of the frames that this chunk completes, a float or ``[streams]``; None for the streamer's own.
            budget: of these frames, which the router then decides; None for the streamer's own.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind, dtype and device of ``chunk``; ``m`` may be 0.

        Raises:
            ValueError: for another shape, integers, a sample beyond `LOUDEST` or not finite, or a UF outside the set.
                The stream is then as it was before.
        """
        start = self._clock() if self._controller is not None else 0.0
        wanted = self._own if uf is None and budget is None else self._checked(uf, budget)
        out, frames = (self._feed_torch if self._compiled is None else self._feed_compiled)(chunk, wanted)
        if frames:
            self._last = wanted
            if self._controller is not None:
                sound = frames * self.model.hop / self.model.config.sample_rate
                self._controller.measure(self._clock() - start, sound)
        return self._like(out, self._kind)

    @torch.no_grad()
    def _feed_torch(self, chunk: Chunk, wanted: Request) -> tuple[Tensor, int]:
        """Samples that are ready, and how many frames of each stream ran."""
        self._check(chunk)
        self._kind = (chunk.dtype, chunk.device) if isinstance(chunk, Tensor) else chunk.dtype
        samples = torch.as_tensor(chunk).reshape(self._rows, -1).to(self._pending)
        if not bool((samples.abs() <= LOUDEST).all()):
            self._refuse(samples.cpu().numpy())
        pending = torch.cat([self._pending, samples], dim=1)
        model, state, outputs, ufs = self.model, self._state, [], []
        while frames := max((pending.shape[1] - model.early(state.samples)) // model.hop, 0):
            frames = min(frames, STEP_FRAMES)
            used = model.early(state.samples) + frames * model.hop
            chosen, state = self._decided(pending[:, :used], state, frames, wanted)
            out, state = model.step(pending[:, :used], state, chosen)
            outputs.append(out)
            ufs.append(self._per_frame(chosen, frames))
            pending = pending[:, used:]
        self._state, self._pending = state, pending.clone()
        joined = torch.cat(ufs, dim=1) if ufs else samples[:, :0]
        self._ran = joined, joined.shape[1]
        return torch.cat(outputs, dim=1) if outputs else samples[:, :0], joined.shape[1]

    def _feed_compiled(self, chunk: Chunk, wanted: Request) -> tuple[NDArray[np.float32], int]:
        """As `_feed_torch`, with as little around the frames as can be.

        In live use the caches are cold at every frame, and each step here costs ten times what it does in a loop.
        """
        assert self._compiled is not None
        array: NDArray[np.floating]
        if not isinstance(chunk, Tensor):
            self._check(chunk)
            array, self._kind = chunk, chunk.dtype
        elif chunk.dtype is _FLOAT32 and chunk.is_cpu and not chunk.requires_grad:
            array, self._kind = chunk.numpy(), None
            self._check(array)
        else:
            self._check(chunk)
            array, self._kind = chunk.detach().to("cpu", _FLOAT32).numpy(), (chunk.dtype, chunk.device)
        x = np.ascontiguousarray(array, np.float32).reshape(self._rows, -1)
        # One call where `isfinite` takes two; `_refuse` looks closer.
        if not np.vdot(x, x) <= LOUDEST:
            self._refuse(x)
        frames = self._compiled.completed(x.shape[1])
        choice = self._indices(x, frames, wanted)
        self._ran = choice, frames
        return self._compiled.feed(x, choice), frames

    def flush(self, uf: AnyUF | None = None, budget: Budget | None = None) -> Any:
        """End the signal: return all that is still missing and start anew.

        Args:
            uf: width of the frames that are left: as in `feed`, or one per frame, ``[streams, frames]``.
            budget: as in `feed`.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind of the last chunk (a float32 tensor if there was none).
        """
        compiled = self._compiled
        if compiled is None:
            done, pending = self._state.samples, self._pending.shape[1]
        else:
            done, pending = compiled.samples, compiled.pending
        left = self.model.frames_left(done, pending)
        wanted = self._last
        if left or uf is not None or budget is not None:
            wanted = self._own if uf is None and budget is None else self._checked(uf, budget, max(left, 1))
        out: Tensor | NDArray[np.float32]
        if compiled is None:
            with torch.no_grad():
                chosen, state = self._decided(self._pending, self._state, max(left, 1), wanted)
                out = self.model.finish(self._pending, state, chosen)
            ran: _Chosen = chosen
        else:
            ran = self._indices(np.zeros((self._rows, 0), np.float32), max(left, 1), wanted)
            out = compiled.finish(ran)
        kind = self._kind
        self.reset()
        self._ran = ran, left
        return self._like(out, kind)

    def _decided(self, samples: Tensor, state: DemucsState, frames: int, wanted: Request) -> tuple[UF, DemucsState]:
        """The UFs of the next frames, as given or from the router, and no wider than the limit."""
        if wanted.budget is not None:
            chosen: UF
            chosen, state = self.model.decide(samples, state, frames, wanted.budget, shared=self.shared)
        else:
            assert wanted.uf is not None
            chosen = wanted.uf
        if self._controller is not None:
            chosen = chosen.clamp(max=self.limit) if isinstance(chosen, Tensor) else min(chosen, self.limit)
        return chosen, state

    def _indices(self, x: NDArray[np.float32], frames: int, wanted: Request) -> NDArray[np.int64]:
        """As `_decided`, on the compiled path: indices of the UFs, ``[streams, frames]`` or ``[streams, 1]``."""
        assert self._compiled is not None
        uf, budget = wanted
        if uf is not None:
            choice = self._compiled.indices(uf)
        elif frames:
            assert budget is not None
            choice = self._compiled.decide(x, frames, budget.numpy(), shared=self.shared)
        else:
            choice = self._compiled.indices(self.model.config.ufs[-1])
        return choice if self._controller is None else np.minimum(choice, self.model.config.ufs.index(self.limit))

    def _per_frame(self, chosen: _Chosen, frames: int) -> Tensor:
        """UFs ``[streams, frames]``."""
        if isinstance(chosen, np.ndarray):
            return self.model.config.ufs.at(torch.from_numpy(chosen).expand(self._rows, frames))
        ufs = torch.as_tensor(chosen, device=next(self.model.parameters()).device)
        return (ufs.unsqueeze(1) if ufs.ndim == 1 else ufs).expand(self._rows, frames)

    def _checked(self, uf: AnyUF | None, budget: Budget | None, frames: int | None = None) -> Request:
        """Reject a bad UF or budget before any sample has been taken; ``frames`` allows a UF for each of so many."""
        request = self.model.request(uf, budget, self._rows)
        if request.uf is None:
            return request
        if isinstance(request.uf, Tensor) and request.uf.ndim:
            if frames is None and request.uf.ndim > 1:
                raise ValueError(f"uf has shape {tuple(request.uf.shape)}: expected a float or [streams]")
            self.model.config.ufs.schedule(request.uf, self._rows, frames or 1)
            return request
        return Request(self.model.config.ufs.validate(float(request.uf)), None)

    @property
    def _rows(self) -> int:
        return self.streams or 1

    def _check(self, chunk: Chunk) -> None:
        if not isinstance(chunk, Tensor | np.ndarray):
            raise ValueError(f"chunk is a {type(chunk).__name__}: expected a numpy array or a torch tensor")
        axes, shape = (1, "[n]") if self.streams is None else (2, f"[{self.streams}, n]")
        fits = chunk.ndim == axes and (self.streams is None or chunk.shape[0] == self.streams)
        floating = chunk.is_floating_point() if isinstance(chunk, Tensor) else chunk.dtype.kind == "f"
        if not fits or not floating:
            raise ValueError(f"chunk has shape {tuple(chunk.shape)} and dtype {chunk.dtype}: expected floating {shape}")

    def _refuse(self, x: NDArray[np.float32]) -> None:
        """Raise for the first sample that is not finite or too loud: it would stay in the state for ever."""
        for row, position in np.argwhere(~(np.abs(x) <= LOUDEST)):
            place = f"sample {position}" + (f" of stream {row}" if self.streams is not None else "")
            expected = f"finite samples of at most {LOUDEST:g}"
            raise ValueError(f"chunk holds {x[row, position]:g} at {place}: expected {expected}; none was taken")

    def _like(self, out: Tensor | NDArray[np.float32], kind: _Kind) -> Any:
        """``out`` as a chunk of the caller's kind."""
        out = out if self.streams is not None else out[0]
        if isinstance(kind, np.dtype):
            array = out.cpu().numpy() if isinstance(out, Tensor) else out
            return array.astype(kind, copy=False)
        tensor = out if isinstance(out, Tensor) else torch.from_numpy(out)
        # What `Tensor.to` finds out too, only later.
        return tensor if kind is None and out is not tensor else tensor.to(*(kind[::-1] if kind else ("cpu", _FLOAT32)))
