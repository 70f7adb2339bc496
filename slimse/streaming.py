"""Enhancing a live signal, chunk by chunk, with the same result as the whole signal at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled import STEP_FRAMES, use_compiled
from .deadline import DeadlineController
from .models import DemucsState, SlimDemucs
from .width import UF

Chunk = TypeVar("Chunk", Tensor, NDArray[np.floating])


class StreamerState(NamedTuple):
    """A stream at one moment: the model's state and the samples that do not fill a frame yet."""

    model: DemucsState
    pending: Tensor
    uf: UF


class Streamer:
    """Feed any number of samples, get back those that are ready.

    The outputs of all `feed` calls and of `flush`, one after the other, are as long as the input, aligned with it,
    and equal to ``model(whole_signal)`` up to rounding. Output ``n`` is ready once input ``n + latency`` has come in.

    Args:
        model: a causal `SlimDemucs`.
        uf: width of the frames, a float or ``[streams]``, unless `feed` says otherwise.
        streams: number of parallel streams, whose chunks are ``[streams, n]``; None for one stream of ``[n]``.
        input_std: deviation of the whole signal, for models that normalise; see `SlimDemucs.initial_state`.
        backend: ``"numba"`` is the compiled path (`slimse.compiled`) for float32 models on the CPU, ``"torch"`` runs
            everywhere, ``"auto"`` takes the first that can run. The compiled path has the weights of this moment.
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
        uf: UF = 1.0,
        *,
        streams: int | None = None,
        input_std: float | Tensor | None = None,
        backend: str = "auto",
        half: bool = False,
        max_load: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not model.config.causal:
            raise ValueError("a bidirectional model cannot stream: it needs the whole signal")
        if streams is not None and streams < 1:
            raise ValueError(f"streams = {streams}: expected 1 or more, or None for a single unbatched stream")
        self.model, self.streams = model, streams
        self._uf = self._checked(uf)
        self._input_std = input_std
        self._controller = None if max_load is None else DeadlineController(model.config.ufs, max_load)
        self._clock = clock
        self._compiled = None
        if use_compiled(backend, model):
            from .compiled.network import CompiledStreams

            self._compiled = CompiledStreams(model, streams or 1, half=half)
        elif half:
            raise ValueError("half = True: expected False, as this streamer does not run on the compiled path")
        self.reset()

    @property
    def backend(self) -> str:
        """What runs the frames: ``"numba"`` or ``"torch"``."""
        return "torch" if self._compiled is None else "numba"

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
        if self._compiled is not None:
            return StreamerState(*self._compiled.save(), self._last_uf)
        return StreamerState(self._state, self._pending, self._last_uf)

    @state.setter
    def state(self, state: StreamerState) -> None:
        if state.pending.shape[0] != (self.streams or 1):
            raise ValueError(
                f"the state is of {state.pending.shape[0]} streams, this streamer runs {self.streams or 1}"
            )
        self._state, self._pending, self._last_uf = state
        if self._compiled is not None:
            self._compiled.load(self._state, self._pending)

    def reset(self) -> None:
        """Forget everything: the next sample starts a new signal."""
        pending = next(self.model.parameters()).new_zeros(self.streams or 1, 0, dtype=torch.float32)
        self.state = StreamerState(self.model.initial_state(self.streams or 1, self._input_std), pending, self._uf)
        self._kind: Any = pending

    def feed(self, chunk: Chunk, uf: UF | None = None) -> Chunk:
        """Take samples, give back those that are ready.

        Args:
            chunk: ``[n]``, or ``[streams, n]``; floating point, numpy or torch, any ``n``, 0 included.
            uf: width of the frames that this chunk completes, a float or ``[streams]``; None for the streamer's own.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind, dtype and device of ``chunk``; ``m`` may be 0.

        Raises:
            ValueError: for another shape, integers, or a UF outside the set.
        """
        samples = self._as_tensor(chunk)
        self._kind = chunk[..., :0]
        uf = self._limited(self._uf if uf is None else self._checked(uf))
        start = self._clock()
        out, frames = self._compiled.feed(samples, uf) if self._compiled else self._feed_torch(samples, uf)
        if frames:
            self._last_uf = uf
            if self._controller is not None:
                sound = frames * self.model.hop / self.model.config.sample_rate
                self._controller.measure(self._clock() - start, sound)
        return self._like(out, chunk)

    def _feed_torch(self, samples: Tensor, uf: UF) -> tuple[Tensor, int]:
        """Samples that are ready, and how many frames of each stream ran."""
        pending, ran = torch.cat([self._pending, samples], dim=1), 0
        model, state, outputs = self.model, self._state, []
        with torch.no_grad():
            while True:
                first = model.hop if state.samples else model.first_samples
                frames = min(1 + (pending.shape[1] - first) // model.hop, STEP_FRAMES)
                if frames < 1:
                    break
                used = first + (frames - 1) * model.hop
                out, state = model.step(pending[:, :used], state, uf)
                outputs.append(out)
                pending, ran = pending[:, used:], ran + frames
        self._state, self._pending = state, pending.clone()
        return torch.cat(outputs, dim=1) if outputs else samples[:, :0], ran

    def flush(self, uf: UF | None = None) -> Any:
        """End the signal: return all that is still missing and start anew.

        Args:
            uf: width of the frames that are left: as in `feed`, or one per frame, ``[streams, frames]``.

        Returns:
            ``[m]`` or ``[streams, m]``, of the kind of the last chunk (a float32 tensor if there was none).
        """
        state, pending = self.state.model, self.state.pending
        left = self.model.frames_left(state, pending.shape[1])
        chosen = uf if uf is not None else (self._limited(self._uf) if left else self._last_uf)
        with torch.no_grad():
            out = self._compiled.finish(chosen) if self._compiled else self.model.finish(pending, state, chosen)
        kind = self._kind
        self.reset()
        return self._like(out, kind)

    def _limited(self, uf: UF) -> UF:
        return uf.clamp(max=self.limit) if isinstance(uf, Tensor) else min(uf, self.limit)

    def _checked(self, uf: UF) -> UF:
        """Reject a bad UF before any sample has been taken."""
        if isinstance(uf, Tensor) and uf.ndim > 1:
            raise ValueError(f"uf has shape {tuple(uf.shape)}: expected a float or [streams]")
        if not isinstance(uf, Tensor):
            return self.model.config.ufs.validate(uf)
        self.model.config.ufs.schedule(uf, self.streams or 1, 1)
        return uf

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
