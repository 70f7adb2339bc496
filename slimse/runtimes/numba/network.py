"""What `slimse.streaming.Streamer` and whole signals need of the compiled network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...model import ModelState, SlimModel
from ...networks import state as states
from ...width import UF
from .layout import Floats, Ints, Weights
from .stream import REFUSED
from .streams import Streams, pack

FRAMES = 32
"""Most frames of one pass over the levels: in a long chunk, each pass reads every weight from memory once."""

_idle: WeakKeyDictionary[Weights, list[Streams]] = WeakKeyDictionary()


class CompiledStreams:
    """Some streams that are all at the same place of their signals.

    A `feed` is one compiled call with as little Python around it as can be: in live use the caches are cold at every
    frame, and each step of Python costs ten times what it does in a loop.

    Args:
        model: the model.
        streams: how many.
        weights: kind of the packed weights, see `slimse.runtimes.numba.layout.Weights`.
        shared: the router decides for all streams alike.
        loudest: samples beyond it, or not finite, are refused.
    """

    def __init__(self, model: SlimModel, streams: int, *, weights: str | None, shared: bool, loudest: float) -> None:
        # A decision for all needs all.
        self._ending = streams if shared else 1
        self._streams = Streams(model, pack(model, weights), streams, max(FRAMES // streams, 1), self._ending)
        self._streams.job["shared"], self._streams.job["loudest"] = shared, loudest
        self._model, self._rows = model, streams
        self._received = self._frames = self._emitted = 0
        self.frames_ran = 0
        """Frames of each stream that the last call ran."""
        self._routed = False
        self._sizes = -1, -1

    @property
    def samples(self) -> int:
        """Samples of each stream that frames have taken."""
        return self._streams.samples(0)

    @property
    def pending(self) -> int:
        """Samples of each stream that do not fill a frame yet."""
        return self._received - self.samples

    @property
    def ran(self) -> Ints:
        """Indices of the UFs of the frames that the last call ran, ``[streams, frames]``."""
        columns = np.minimum(np.arange(self.frames_ran), self._streams.width - 1)
        return self._streams.choice[:, columns]

    def want(self, uf: UF | None, budget: Tensor | None, limit: int) -> None:
        """What frames run at from now on.

        Args:
            uf: UFs ``[streams]`` or ``[streams, frames]``, or one for all. Not looked at where there is a budget.
            budget: ``[streams]``, for the router.
            limit: index of the widest UF that runs.
        """
        streams, self._routed = self._streams, budget is not None
        streams.job["limit"], streams.job["route_any"] = limit, self._routed
        streams.budgets[:] = 0 if budget is None else budget.numpy()
        if budget is not None:
            return
        ufs = self._model.ufs
        if isinstance(uf, Tensor) and uf.ndim:
            choice = ufs.indices(uf).reshape(self._rows, -1).numpy()
            streams.widen(choice.shape[1])
            streams.choice[:, : choice.shape[1]] = choice
        else:
            streams.widen(1)
            streams.choice[:, 0] = ufs.index(float(uf))  # type: ignore[arg-type]

    def feed(self, x: NDArray[np.float32]) -> Floats | None:
        """Take ``[n]`` or ``[streams, n]``, contiguous; give ``[streams, m]`` that are ready, or None if refused."""
        size = self._expect(x.shape[-1])
        out = np.empty((self._rows, size), np.float32)
        x_at, out_at = x.__array_interface__["data"][0], out.__array_interface__["data"][0]
        return out if self._feed(x_at, x.shape[-1], out_at, size) else None

    def feed_tensor(self, x: Tensor) -> Tensor | None:
        """As `feed`, for float32 tensors."""
        count = x.shape[-1]
        size = self._expect(count)
        out = torch.empty(self._rows, size)
        return out if self._feed(x.data_ptr(), count, out.data_ptr(), size) else None

    def _expect(self, count: int) -> int:
        """Samples of each stream that so many more of input make ready."""
        streams = self._streams
        frames = streams.frames_at(self._received + count)
        return streams.emitted_at(frames) - self._emitted

    def _feed(self, x_at: int, count: int, out_at: int, size: int) -> bool:
        streams = self._streams
        frames = streams.frames_at(self._received + count)
        if self._routed and frames - self._frames > streams.width:
            streams.widen(frames - self._frames)
        if (count, size) != self._sizes:
            self._sizes = count, size
            streams.job["x_step"], streams.job["out_step"] = count, size
        ran = streams.call(streams.job_at, x_at, count, out_at)
        if ran == REFUSED:
            return False
        self.frames_ran = ran
        self._received, self._frames, self._emitted = self._received + count, frames, self._emitted + size
        return True

    def finish(self, frames: int) -> Floats:
        """End the signals, which have ``frames`` frames left: ``[streams, m]``, all that is still missing."""
        streams = self._streams
        if self._routed:
            streams.widen(max(frames, 1))
        none = np.zeros((self._ending, 0), np.float32)
        slots = range(self._rows)
        out = [streams.finish(slots[row : row + self._ending], none) for row in slots[:: self._ending]]
        self.frames_ran = frames
        return np.concatenate(out)

    def load(self, state: ModelState, pending: Tensor) -> None:
        """Go on from the state of as many streams."""
        for row in range(self._rows):
            self._streams.load(row, states.select(state, row), pending[row].numpy())
        self._received = state.samples + pending.shape[1]
        self._frames = self._streams.frames_at(self._received)
        self._emitted = self._streams.emitted_at(self._frames)
        self.frames_ran = 0
        self._sizes = -1, -1

    def save(self) -> tuple[ModelState, Tensor]:
        """The state, and ``[streams, n]`` samples that do not fill a frame yet."""
        saved, pending = zip(*(self._streams.save(row) for row in range(self._rows)), strict=True)
        return states.stack(saved), torch.from_numpy(np.stack(pending))


@torch.no_grad()
def enhance(
    model: SlimModel, noisy: Tensor, uf: UF | None, input_std: Tensor | None, budget: Tensor | None = None
) -> Tensor:
    """Whole signals ``[B, T]``.

    Args:
        model: the model.
        noisy: float32.
        uf: as in `SlimModel.forward`, without gates; None where there is a budget.
        input_std: as in `SlimModel.initial_state`.
        budget: ``[B]``, for the router.

    Raises:
        ValueError: for another dtype, or gates.
    """
    frames, batch = model.geometry.frames(noisy.shape[1]), noisy.shape[0]
    gates = isinstance(uf, Tensor) and uf.ndim == 3
    if gates or noisy.dtype != torch.float32:
        raise ValueError(f"backend = 'numba' with {noisy.dtype} and uf {uf}: expected float32 and no gates")
    choices = None if budget is not None else _choices(model, uf, batch, frames)
    with _borrowed(model) as streams:
        outputs = []
        for index in range(batch):
            given = None if input_std is None else input_std[index : index + 1]
            streams.load(0, model.initial_state(1, given), np.zeros(0, np.float32))
            if choices is None:
                _ask(streams, frames, budget, index)
            else:
                streams.budgets[0] = streams.job["route_any"] = 0
                streams.widen(choices.shape[1])
                streams.choice[0, : choices.shape[1]] = choices[index]
            outputs.append(streams.finish([0], noisy[index : index + 1].contiguous().numpy()))
    return torch.from_numpy(np.concatenate(outputs))


@torch.no_grad()
def route(model: SlimModel, noisy: Tensor, budget: Tensor | None) -> Tensor:
    """The UFs ``[B, frames]`` that `enhance` runs ``noisy`` ``[B, T]`` at for a budget ``[B]``."""
    frames, rows = model.geometry.frames(noisy.shape[1]), []
    with _borrowed(model) as streams:
        for index in range(len(noisy)):
            streams.load(0, model.initial_state(1), np.zeros(0, np.float32))
            _ask(streams, frames, budget, index)
            streams.job["route_only"] = 1
            streams.finish([0], noisy[index : index + 1].contiguous().numpy())
            rows.append(streams.choice[0, :frames].copy())
            streams.job["route_only"] = 0
    return model.ufs.at(torch.from_numpy(np.stack(rows)))


def _ask(streams: Streams, frames: int, budget: Tensor | None, index: int) -> None:
    """Let the router choose the UFs of the only stream."""
    if budget is None:
        raise ValueError("neither UFs nor a budget: expected one of them")
    streams.budgets[0], streams.job["route_any"] = float(budget[index]), 1
    streams.widen(frames)


@contextmanager
def _borrowed(model: SlimModel) -> Iterator[Streams]:
    """Memory for one stream: fresh memory would cost more than a short signal. Threads have each their own."""
    weights = pack(model)
    idle = _idle.setdefault(weights, [])
    try:
        streams = idle.pop()
    except IndexError:
        streams = Streams(model, weights, 1, FRAMES)
    yield streams
    idle.append(streams)


def _choices(model: SlimModel, uf: UF | None, batch: int, frames: int) -> Ints:
    """Indices of UFs ``[B, frames]`` or ``[B, 1]``."""
    ufs = model.ufs
    schedule = ufs.schedule(1.0 if uf is None else uf, batch, frames)
    if schedule.choice is not None:
        return schedule.choice.long().numpy()
    return np.full((batch, 1), ufs.index(float(uf)))  # type: ignore[arg-type]
