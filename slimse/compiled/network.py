"""Streams of a model on its compiled kernels, with the state of the torch path at the border."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..model import ModelState, SlimModel
from ..networks import state as states
from ..nn import LevelState
from ..width import UF
from . import layout as f
from .layout import Floats, Ints, Places, Weights, demucs
from .router import CompiledRouter, Heard
from .stream import feed, normalise

FRAMES = 32
"""Most frames of one pass over the levels: in a long chunk, each pass reads every weight from memory once."""

_packed: WeakKeyDictionary[SlimModel, dict[bool, tuple[Any, Weights]]] = WeakKeyDictionary()
_idle: WeakKeyDictionary[Weights, list[Buffers]] = WeakKeyDictionary()


def pack(model: SlimModel, *, half: bool = False) -> Weights:
    """The packed weights of a model; packed again only if they have changed."""
    # Nobody counts the changes of tensors made in inference mode: those are packed every time.
    stamp = [(p.data_ptr(), object() if p.is_inference() else p._version) for p in model.parameters()]
    known = _packed.setdefault(model, {})
    if half not in known or known[half][0] != stamp:
        known[half] = stamp, Weights(model, half=half)
    return known[half][1]


class Buffers(NamedTuple):
    """Memory of a stream, and where its parts lie."""

    places: Places
    mem: Floats
    scratch: Floats
    ints: Ints

    @classmethod
    def new(cls, places: Places, scratch: Floats | None = None) -> Buffers:
        """Fresh memory; streams that run one after the other may share ``scratch``."""
        scratch = np.zeros(places.scratch_size, np.float32) if scratch is None else scratch
        return cls(places, np.zeros(places.mem_size, np.float32), scratch, np.zeros(places.int_size, np.int64))


class CompiledStream:
    """One stream of a causal model on the CPU.

    Args:
        model: the model.
        weights: its packed weights.
        buffers: the stream's memory.
    """

    def __init__(self, model: SlimModel, weights: Weights, buffers: Buffers) -> None:
        places, self._mem, scratch, self._ints = buffers
        self.model, self._places = model, places
        tables = weights.weights, weights.const, self._mem, scratch, self._ints
        self._arrays = (*tables, places.shape, places.levels, weights.mats, weights.counts)
        self._first, self._hop = model.geometry.first, model.geometry.hop
        # Both grow by a hop per frame once the resampling filters are full.
        full = 1 + self._first // self._hop
        self._behind = full * self._hop - model.geometry.emitted(full)
        self.load(model.initial_state(), np.zeros(0, np.float32))

    def _count(self, received: int) -> None:
        """Note that so many samples have come in, and that all that is ready then goes out."""
        self.received, self.frames = received, self.frames_at(received)
        self._emitted = max(self.frames * self._hop - self._behind, 0)

    def frames_at(self, received: int) -> int:
        """Frames that have run once so many samples have come in."""
        return 1 + (received - self._first) // self._hop if received >= self._first else 0

    @property
    def samples(self) -> int:
        """Samples that frames have taken."""
        return self._first + (self.frames - 1) * self._hop if self.frames else 0

    @property
    def pending(self) -> Floats:
        """A view of the samples that do not fill a frame yet."""
        start = int(self._places.shape[f.PENDING_AT])
        return self._mem[start : start + int(self._ints[f.PENDING])]

    def feed(self, x: Floats, choice: Ints) -> Floats:
        """Take ``[n]`` samples, give back those that are ready.

        Args:
            x: contiguous.
            choice: index of the UF of every frame that they complete; the last one holds for all frames behind it.
        """
        before = self._emitted
        self._count(self.received + len(x))
        out = np.empty(self._emitted - before, np.float32)
        feed(x, choice, out, -1, 0, *self._arrays)
        return out

    def ran(self, samples: int) -> None:
        """Count samples that a common tick of several streams has run, with as many of output."""
        self._count(self.received + samples)

    def finish(self, x: Floats, choice: Ints) -> Floats:
        """End the signal behind ``x``: as `feed`, for all that is still missing. Only `load` may follow."""
        total = self.received + len(x)
        out = np.empty(total - self._emitted, np.float32)
        if total:
            frames = self.model.geometry.frames(total)
            left = frames - self.model.geometry.frames_done(total)
            feed(x, choice, out, left, self.model.geometry.span(frames) - total, *self._arrays)
        return out

    def load(self, state: ModelState, pending: Floats) -> None:
        """Go on from a state of one stream, with ``pending`` samples that do not fill a frame yet."""
        # Padding must be zero, even if the last signal held NaN. What lies behind is written before it is read.
        levels, overlap = self._places.levels, demucs(self.model).config.kernel_size - demucs(self.model).config.stride
        self._mem[: levels[0, f.TAIL_AT]] = 0
        for _, lag, step, at, tail_at in levels:
            self._mem[tail_at : tail_at + overlap * step] = 0
            self._mem[at : at + lag * step] = 0
        stages, ints, shape = len(state.network.up), self._ints, self._places.shape
        mode = self._mode(state)
        self._mem[int(shape[f.LEVEL_AT])] = mode
        ints[f.GAINS] = state.level[2].shape[1] if mode == f.RUNNING_LEVEL else 0
        for part, tensor in self._parts(state):
            part[...] = tensor.numpy()
        ints[f.UP_COUNT : f.UP_COUNT + stages] = [buffer.shape[1] for buffer in state.network.up]
        ints[f.DOWN_COUNT : f.DOWN_COUNT + stages] = [buffer.shape[1] for buffer in state.network.down]
        ints[f.SAMPLES], ints[f.PENDING] = state.samples, len(pending)
        self._mem[shape[f.PENDING_AT] :][: len(pending)] = pending
        self._count(state.samples + len(pending))

    def save(self) -> tuple[ModelState, Floats]:
        """The state and the samples that do not fill a frame yet, as copies."""
        state = self._blank(self.samples)
        for part, tensor in self._parts(state):
            tensor.copy_(torch.from_numpy(part))
        return state, self.pending.copy()

    def _mode(self, state: ModelState) -> int:
        """What kind of level a state has."""
        if self.model.config.level == "running":
            return f.RUNNING_LEVEL
        return (f.NO_LEVEL, f.GIVEN_LEVEL, f.SEEN_LEVEL)[len(state.level)]

    def normalised(self, x: Floats) -> Floats:
        """``[n]`` samples behind those that frames have taken, as the network will have them. The stream stays."""
        shape, mem = self._places.shape, self._mem
        at = int(shape[f.LEVEL_AT])
        if mem[at] != f.RUNNING_LEVEL:
            return x
        out, const = np.empty_like(x), self._arrays[1]
        normalise(x, mem[at + 1 : at + 7].copy(), const[f.RATES_AT : f.RATES_AT + 3], out, np.empty_like(x))
        return out

    def _blank(self, samples: int) -> ModelState:
        """A state of the sizes that this one has now."""
        model, config = self.model, demucs(self.model).config
        mode = int(self._mem[int(self._places.shape[f.LEVEL_AT])])
        fresh = model.initial_state(input_std=1.0 if mode == f.GIVEN_LEVEL else None)
        counts = self._ints
        stages = range(len(fresh.network.up))
        up = tuple(torch.zeros(1, int(counts[f.UP_COUNT + stage])) for stage in stages)
        down = tuple(torch.zeros(1, int(counts[f.DOWN_COUNT + stage])) for stage in stages)
        level = tuple(value.clone() for value in fresh.level)
        if mode == f.RUNNING_LEVEL:
            level = LevelState(level[0], level[1], torch.zeros(1, int(counts[f.GAINS])))
        if not samples:
            return fresh._replace(network=fresh.network._replace(up=up, down=down), level=level)
        overlap, levels = config.kernel_size - config.stride, range(config.depth + 1)
        edges = tuple(torch.zeros(1, overlap, config.channels(i)) for i in levels)[:-1]
        lags = self._places.levels[:, f.LAG]
        skips = tuple(torch.zeros(1, int(lags[i]), config.channels(i)) for i in levels)[1:]
        decoder = tuple(edge.clone() for edge in edges)
        network = fresh.network._replace(up=up, down=down, encoder=edges, skip=skips, decoder=decoder)
        return fresh._replace(network=network, level=level, samples=samples)

    def _parts(self, state: ModelState) -> Iterator[tuple[Floats, Tensor]]:
        """Every tensor of ``state`` and the view of `_mem` that holds the same."""
        shape, levels = self._places.shape, self._places.levels

        def rows(at: int, count: int, step: int, columns: int) -> Floats:
            return self._mem[at : at + count * step].reshape(count, step)[:, :columns]

        for stage, (up, down) in enumerate(zip(state.network.up, state.network.down, strict=True)):
            yield rows(shape[f.UP_AT] + stage * shape[f.UP_STEP], 1, up.shape[1], up.shape[1]), up
            yield rows(shape[f.DOWN_AT] + stage * shape[f.DOWN_STEP], 1, down.shape[1], down.shape[1]), down
        level_at = int(shape[f.LEVEL_AT])
        if self.model.config.level == "running":
            sums, seen, gain = state.level
            yield rows(level_at + 1, 1, 3, 3), sums
            yield rows(level_at + 4, 1, 3, 3), seen
            yield rows(int(shape[f.GAIN_AT]), 1, gain.shape[1], gain.shape[1]), gain
        else:
            for index, value in enumerate(state.level):
                yield rows(level_at + 1 + index, 1, 1, 1), value
        hidden = [*state.network.rnn[0][0]] if shape[f.GROUPS] else [tensor[0] for tensor in state.network.rnn]
        for index, tensor in enumerate(hidden):
            yield rows(shape[f.RNN_AT] + index * shape[f.UNITS], 1, shape[f.UNITS], len(tensor))[0], tensor
        if not state.samples:
            return
        for level in range(len(state.network.encoder) + 1):
            step, at = int(levels[level, f.STEP]), int(levels[level, f.AT])
            if level:
                skip = state.network.skip[level - 1][0]
                yield rows(at, len(skip), step, skip.shape[1]), skip
            if level < len(state.network.encoder):
                tail, edge = state.network.decoder[level][0], state.network.encoder[level][0]
                yield rows(levels[level, f.TAIL_AT], len(tail), step, tail.shape[1]), tail
                last = at + (int(levels[level, f.LAG]) - len(edge)) * step
                yield rows(last, len(edge), step, edge.shape[1]), edge


class CompiledStreams:
    """What a `Streamer` needs for its streams, which run one after the other.

    Everything is in arrays: after a frame, whose weights fill the caches, even a small PyTorch call takes microseconds.

    Args:
        model: the model.
        streams: how many.
        half: read the weights in float16, even if that rounds them.
    """

    def __init__(self, model: SlimModel, streams: int, *, half: bool = False) -> None:
        weights = pack(model, half=half)
        places = Places(model, weights, FRAMES)
        scratch = np.zeros(places.scratch_size, np.float32)
        self._model = model
        self._streams = [CompiledStream(model, weights, Buffers.new(places, scratch)) for _ in range(streams)]
        self._router = CompiledRouter(model.router) if model.router else None
        self._heard: Heard
        self._uniform = {uf: np.full((streams, 1), index) for index, uf in enumerate(model.ufs)}

    @property
    def samples(self) -> int:
        """Samples of each stream that frames have taken."""
        return self._streams[0].samples

    @property
    def pending(self) -> int:
        """Samples of each stream that do not fill a frame yet."""
        return self._streams[0].received - self.samples

    @property
    def left(self) -> int:
        """Frames that `finish` runs."""
        return self._model.geometry.frames_left(self.samples, self.pending)

    def completed(self, samples: int) -> int:
        """Frames that so many more samples complete."""
        first = self._streams[0]
        return first.frames_at(first.received + samples) - first.frames

    def indices(self, uf: UF) -> Ints:
        """Of UFs, ``[streams, 1]`` or ``[streams, frames]``."""
        if isinstance(uf, Tensor) and uf.ndim:
            return self._model.ufs.indices(uf).reshape(len(self._streams), -1).numpy()
        return self._uniform[float(uf)]

    def decide(self, x: Floats, frames: int, budget: Floats, *, shared: bool) -> Ints:
        """Let the router choose for the next frames, which ``x`` ``[streams, n]`` completes; see `CompiledRouter`."""
        assert self._router is not None
        early = self._model.geometry.early(self.samples)
        heard = np.concatenate([np.stack([stream.pending for stream in self._streams]), x], axis=1)
        heard = heard[:, : early + frames * self._model.geometry.hop]
        heard = np.stack([stream.normalised(row) for stream, row in zip(self._streams, heard, strict=True)])
        choice, self._heard = self._router.choose(heard, early, frames, budget, self._heard, shared)
        return choice

    def feed(self, x: Floats, choice: Ints) -> Floats:
        """Take ``[streams, n]``, give back what is ready.

        Args:
            x: contiguous.
            choice: indices of the UFs of the frames that they complete, ``[streams, frames]``, or ``[streams, 1]``.
        """
        return _stack([stream.feed(x[i], choice[i]) for i, stream in enumerate(self._streams)])

    def finish(self, choice: Ints) -> Floats:
        """End the signals; ``choice`` as in `feed`, of the frames that are left."""
        none = np.zeros(0, np.float32)
        return _stack([stream.finish(none, choice[i]) for i, stream in enumerate(self._streams)])

    def load(self, state: ModelState, pending: Tensor) -> None:
        """Go on from the state of as many streams."""
        for index, stream in enumerate(self._streams):
            stream.load(states.select(state, index), pending[index].numpy())
        if state.router:
            self._heard = Heard.of(state.router)

    def save(self) -> tuple[ModelState, Tensor]:
        """The state, and ``[streams, n]`` samples that do not fill a frame yet."""
        saved, pending = zip(*(stream.save() for stream in self._streams), strict=True)
        state = states.stack(saved)
        if self._router is not None:
            state = state._replace(router=self._heard.tensors())
        return state, torch.from_numpy(np.stack(pending))


def _stack(outputs: list[Floats]) -> Floats:
    return outputs[0][None] if len(outputs) == 1 else np.stack(outputs)


@torch.no_grad()
def enhance(model: SlimModel, noisy: Tensor, uf: UF, input_std: Tensor | None) -> Tensor:
    """Whole signals ``[B, T]``; ``uf`` as in `SlimModel.forward`, ``input_std`` as in `initial_state`."""
    frames, batch = model.geometry.frames(noisy.shape[1]), noisy.shape[0]
    schedule = model.ufs.schedule(uf, batch, frames)
    if schedule.gates is not None or noisy.dtype != torch.float32:
        raise ValueError(f"backend = 'numba' with {noisy.dtype} and uf {uf}: expected float32 and no gates")
    if schedule.choice is not None:
        choices = schedule.choice.contiguous().numpy()
    else:
        choices = np.full((batch, 1), model.ufs.index(float(uf)))
    weights = pack(model)
    # Fresh memory would cost more than a short signal. Several threads may be here, each with its own.
    idle: list[Buffers] = _idle.setdefault(weights, [])
    try:
        buffers = idle.pop()
    except IndexError:
        buffers = Buffers.new(Places(model, weights, FRAMES))
    stream, outputs = CompiledStream(model, weights, buffers), []
    for index in range(batch):
        state = model.initial_state(1, None if input_std is None else input_std[index : index + 1])
        stream.load(state, np.zeros(0, np.float32))
        outputs.append(stream.finish(noisy[index].contiguous().numpy(), choices[index]))
    idle.append(buffers)
    return torch.from_numpy(_stack(outputs))
