"""Enhancing a live signal, chunk by chunk, with the same result as the whole signal at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .deadline import DeadlineController
from .model import ModelState, SlimModel
from .networks.state import check_part, named_parts
from .runtimes import choose
from .runtimes.base import WEIGHTS, Options
from .width import UF, AnyUF, Budget, Request

Chunk = TypeVar("Chunk", Tensor, NDArray[np.floating])

_Kind: TypeAlias = np.dtype[Any] | tuple[torch.dtype, torch.device] | None
"""Of a chunk: an array or a tensor; None for a tensor in float32 on the CPU."""
_FLOAT32 = torch.float32
_LIVE = frozenset({"sample_rate", "channels", "block", "dtype", "enabled", "strength"})
"""Options that a `LiveStreamer` has and a `Streamer` has not."""


class StreamerState(NamedTuple):
    """A stream at one moment: the model's state and the samples that do not fill a frame yet."""

    model: ModelState
    pending: Tensor
    uf: UF | None
    budget: Tensor | None = None


# Or `torch.load` would refuse what `torch.save` wrote of a stream.
torch.serialization.add_safe_globals([StreamerState])


class Streamer:
    """Enhance a live signal in chunks of any length.

    `feed` takes samples and returns those that are ready; `flush` returns the rest. Together they are as long as the
    input, aligned with it, and equal to ``model(whole_signal)`` up to rounding. Output ``n`` is ready once input
    ``n + latency`` has come in.

    Args:
        model: a causal `SlimModel`.
        uf: width of the frames, a float or ``[streams]``, unless `feed` says otherwise. Without UF and budget, 1.0.
        budget: target mean UF, averaged over a corpus, a number or ``[streams]``: the model's router chooses the UFs.
        streams: number of parallel streams, whose chunks are ``[streams, n]``; None for one stream of ``[n]``.
        shared: the router decides for all streams alike, as for the channels of one recording.
        input_std: deviation of the whole signal, for models that normalise; see `SlimModel.initial_state`.
        runtime: as of `SlimModel`, None for the model's own. Compiled runtimes copy the weights now and ignore later
            changes.
        max_load: share of real time that processing may take, up to 1; above it, frames run at narrower widths than
            asked for until it falls (see `DeadlineController`). None for no limit.
        clock: returns the time in seconds; measures the load.
        weights: how a compiled runtime keeps the weights: ``"float32"``, ``"float16"`` or ``"int8"`` (one scale per
            output). float16 and int8 are faster and less exact: the relative error is about 1e-3 for float16, more for
            some networks (docs/reliability.md), and about 1e-2 for int8. None takes float16 where it represents every
            weight exactly, as the bundled ones, and float32 elsewhere.
        live: ``sample_rate``, ``channels``, ``block``, ``dtype``, ``enabled`` or ``strength``: any of them makes this a
            `slimse.live.LiveStreamer`, which works at any rate and gives back as many samples as it takes.

    Raises:
        ValueError: for a model that cannot stream, a UF outside its set, or a runtime that cannot run.

    >>> model = SlimModel("small")
    >>> streamer = Streamer(model, uf=0.25)
    >>> noisy = torch.randn(1000)
    >>> parts = [streamer.feed(chunk) for chunk in noisy.split(77)] + [streamer.flush()]
    >>> torch.cat(parts).shape
    torch.Size([1000])
    """

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Make a `LiveStreamer` where options ask for one, as `pathlib.Path` makes the kind of path that fits."""
        if not _LIVE.isdisjoint(options):
            from .live import LiveStreamer

            return LiveStreamer(*args, **options)
        return super().__new__(cls)

    def __init__(
        self,
        model: SlimModel,
        uf: AnyUF | None = None,
        *,
        budget: Budget | None = None,
        streams: int | None = None,
        shared: bool = False,
        input_std: float | Tensor | None = None,
        runtime: str | None = None,
        weights: str | None = None,
        max_load: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **live: Any,
    ) -> None:
        if live:
            raise TypeError(f"Streamer got an unexpected option {next(iter(live))!r}")
        if not model.causal:
            raise ValueError("a bidirectional model cannot stream: it needs the whole signal")
        if streams is not None and streams < 1:
            raise ValueError(f"streams = {streams}: expected 1 or more, or None for a single unbatched stream")
        if weights is not None and weights not in WEIGHTS:
            raise ValueError(f"weights = {weights!r}: expected one of {WEIGHTS}, or None")
        self.model, self.streams = model, streams
        self._own = self._checked(uf, budget)
        self._input_std = input_std
        self._controller = None if max_load is None else DeadlineController(model.ufs, max_load)
        self._clock = clock
        chosen = choose(runtime, model, "stream")
        self.runtime = chosen.name
        """What runs the frames, by name: ``"eager"`` for the layers."""
        self._session = chosen.session(model, Options(self._rows, shared, weights))
        self.reset()

    @property
    def ufs(self) -> Tensor:
        """The UFs of the frames that the last `feed` or `flush` ran: ``[streams, frames]``."""
        return self._session.ufs if self._flushed is None else self._flushed

    @property
    def latency(self) -> int:
        """Algorithmic latency in samples, see `slimse.networks.FrameGeometry`."""
        return self.model.geometry.latency

    @property
    def limit(self) -> float:
        """The widest UF that frames run at now: below 1.0 only while ``max_load`` demands it."""
        return 1.0 if self._controller is None else self._controller.limit

    @property
    def state(self) -> StreamerState:
        """The stream as it is now, as a value. Set it on a streamer of the same model to continue from here.

        It can be saved with `torch.save`, and set any number of times.
        """
        return StreamerState(*self._session.save(), *self._last)

    @state.setter
    def state(self, state: StreamerState) -> None:
        if not isinstance(state, StreamerState):
            raise ValueError(f"state is a {type(state).__name__}: expected what `state` gave")
        self._checked(state.uf, state.budget)
        _check_state(self.model, state.model, state.pending, self._rows)
        self._restore(state)

    def _restore(self, state: StreamerState) -> None:
        self._last = Request(state.uf, state.budget)
        self._flushed: Tensor | None = None
        self._session.load(state.model, state.pending)

    def reset(self) -> None:
        """Forget everything: the next sample starts a new signal."""
        pending = next(self.model.parameters()).new_zeros(self._rows, 0, dtype=torch.float32)
        fresh = self.model.initial_state(self._rows, self._input_std)
        self._restore(StreamerState(fresh, pending, *self._own))
        self._kind: _Kind = None

    def feed(self, chunk: Chunk, uf: AnyUF | None = None, budget: Budget | None = None) -> Chunk:
        """Take samples and return those that are ready.

        Args:
            chunk: ``[n]``, or ``[streams, n]``; floating point, numpy or torch, any ``n``, 0 included.
            uf: width of the frames that this chunk completes, a float or ``[streams]``; None for the streamer's own.
            budget: of these frames, which the router then decides; None for the streamer's own.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind, dtype and device of ``chunk``; ``m`` may be 0.

        Raises:
            ValueError: for another shape, integers, a sample beyond `slimse.runtimes.base.LOUDEST` or not finite, or a
                UF outside the set. The stream is then as it was before.
        """
        start = self._clock() if self._controller is not None else 0.0
        request = self._own if uf is None and budget is None else self._checked(uf, budget)
        self._check(chunk)
        out, frames = self._session.feed(chunk, request, self.limit)
        self._flushed = None
        if isinstance(chunk, Tensor):
            self._kind = None if chunk.dtype is _FLOAT32 and chunk.is_cpu else (chunk.dtype, chunk.device)
        else:
            self._kind = chunk.dtype
        if frames:
            self._last = request
            if self._controller is not None:
                sound = frames * self.model.geometry.hop / self.model.sample_rate
                self._controller.measure(self._clock() - start, sound)
        return self._like(out, self._kind)

    def flush(self, uf: AnyUF | None = None, budget: Budget | None = None) -> Any:
        """End the signal: return all that is still missing and start anew.

        Args:
            uf: width of the frames that are left: as in `feed`, or one per frame, ``[streams, frames]``.
            budget: as in `feed`.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind of the last chunk (a float32 tensor if there was none).
        """
        left = self.model.geometry.frames_left(self._session.samples, self._session.pending)
        request = self._last
        if left or uf is not None or budget is not None:
            request = self._own if uf is None and budget is None else self._checked(uf, budget, max(left, 1))
        out = self._session.finish(request, self.limit)
        kind, ran = self._kind, self._session.ufs
        self.reset()
        self._flushed = ran
        return self._like(out, kind)

    def _checked(self, uf: AnyUF | None, budget: Budget | None, frames: int | None = None) -> Request:
        """Reject a bad UF or budget before any sample has been taken; ``frames`` allows a UF for each of so many."""
        request = self.model.request(uf, budget, self._rows)
        if request.uf is None:
            return request
        if isinstance(request.uf, Tensor) and request.uf.ndim:
            if frames is None and request.uf.ndim > 1:
                raise ValueError(f"uf has shape {tuple(request.uf.shape)}: expected a float or [streams]")
            self.model.ufs.schedule(request.uf, self._rows, frames or 1)
            return request
        return Request(self.model.ufs.validate(float(request.uf)), None)

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

    def _like(self, out: Tensor | NDArray[np.float32], kind: _Kind) -> Any:
        """``out`` as a chunk of the caller's kind."""
        out = out if self.streams is not None else out[0]
        if isinstance(kind, np.dtype):
            array = out.cpu().numpy() if isinstance(out, Tensor) else out
            return array.astype(kind, copy=False)
        tensor = out if isinstance(out, Tensor) else torch.from_numpy(out)
        # What `Tensor.to` finds out too, only later.
        return tensor if kind is None and out is not tensor else tensor.to(*(kind[::-1] if kind else ("cpu", _FLOAT32)))


def _check_state(model: SlimModel, state: object, pending: object, rows: int) -> None:
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
    if not isinstance(state, ModelState):
        raise ValueError(f"state.model is a {type(state).__name__}: expected a ModelState")
    samples, first, hop = state.samples, model.geometry.first, model.geometry.hop
    whole = isinstance(samples, int) and (samples == 0 or (samples >= first and (samples - first) % hop == 0))
    if not whole or not 0 <= samples < 2**62:
        raise ValueError(f"state.samples = {samples!r}: expected 0, or {first} and a multiple of {hop} more")
    expected = _state_like(model, state, samples, rows)
    for name, part, like in named_parts(state, expected):
        check_part(name, part, tuple(like.shape), like.dtype)
    most = first - 1 if samples == 0 else hop - 1
    length = pending.shape[1] if isinstance(pending, Tensor) and pending.ndim == 2 else 0
    check_part("state.pending", pending, (rows, min(length, most)), torch.float32)


def _state_like(model: SlimModel, state: ModelState, samples: int, rows: int) -> ModelState:
    """A valid state after that many samples; sizes are constant from the first output on."""
    given = model.config.level == "signal" and isinstance(state.level, tuple) and len(state.level) == 1
    fresh = model.initial_state(rows, 1.0 if given else None)
    if not samples:
        return fresh
    geometry = model.geometry
    frames = min(1 + (samples - geometry.first) // geometry.hop, geometry.silent + 2)
    with torch.no_grad():
        length = geometry.first + (frames - 1) * geometry.hop
        like = next(model.parameters()).new_zeros(rows, length, dtype=torch.float32)
        return model.step(like, fresh, model.ufs[0])[1]
