"""Many live streams on one machine, a frame of each per tick."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .compiled import use_compiled
from .models import SlimDemucs

if TYPE_CHECKING:
    from .compiled.network import CompiledStream


class StreamBatch:
    """Concurrent streams, each with its own state and width, that join and leave at any tick.

    A tick takes one hop of samples (16 ms in the ``paper`` preset) of every stream. What a stream gets out, over its
    ticks and `leave`, equals what a `Streamer` of its own would give.

    On the torch backend a tick is one `SlimDemucs.step` over all slots, whose shapes never change: free slots are
    computed too, and their rows mean nothing. On the compiled backend each stream costs what its own width costs, and a
    tick reads the weights once for all (with an LSTM, the streams run one after the other).

    Args:
        model: a causal `SlimDemucs`, in evaluation mode, without ``normalize``.
        capacity: most streams at a time.
        backend: as in `Streamer`.

    Raises:
        ValueError: for a model that cannot stream or normalises, a capacity below 1, or a backend that cannot run.
    """

    def __init__(self, model: SlimDemucs, capacity: int, *, backend: str = "auto") -> None:
        if not model.config.causal or model.config.normalize:
            raise ValueError("expected a causal model that does not normalise: the level of a live signal is not known")
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: expected 1 or more")
        self.model, self.capacity = model, capacity
        self._like = next(model.parameters())
        self._ufs = torch.ones(capacity, device=self._like.device)
        self._ticks: dict[int, int] = {}
        # The sizes of a stream's state settle with its first output; until then its samples wait.
        self._silent = next(frames for frames in itertools.count() if model.emitted(frames + 1))
        self._need = model.first_samples + self._silent * model.hop
        self._start = -(-self._need // model.hop)
        self._early: dict[int, list[float]] = {}
        self._waiting = self._like.new_zeros(capacity, self._start * model.hop, dtype=torch.float32)
        self._compiled: _CompiledSlots | None = None
        if use_compiled(backend, model):
            self._compiled = _CompiledSlots(model, capacity)
            return
        fresh = self._like.new_zeros(capacity, self._need, dtype=torch.float32)
        with torch.no_grad():
            _, self._state = model.step(fresh, model.initial_state(capacity), model.config.ufs[0])

    @property
    def backend(self) -> str:
        """What runs the frames: ``"numba"`` or ``"torch"``."""
        return "torch" if self._compiled is None else "numba"

    @property
    def slots(self) -> list[int]:
        """The slots in use."""
        return sorted(self._ticks)

    def join(self, uf: float = 1.0) -> int:
        """Begin a stream; returns its slot.

        Raises:
            ValueError: if all slots are in use, or for a UF outside the set.
        """
        free = sorted(set(range(self.capacity)) - set(self._ticks))
        if not free:
            raise ValueError(f"all {self.capacity} slots are in use: expected one to leave first")
        self.set_uf(free[0], uf, joining=True)
        self._ticks[free[0]], self._early[free[0]] = 0, []
        if self._compiled is not None:
            self._compiled.join(free[0])
        return free[0]

    def set_uf(self, slot: int, uf: float, *, joining: bool = False) -> None:
        """Change the width of a stream from its next frame on.

        Raises:
            ValueError: for a free slot, or a UF outside the set.
        """
        if not joining:
            self._check(slot)
        self._ufs[slot] = self.model.config.ufs.validate(uf)

    @torch.no_grad()
    def tick(self, samples: Tensor) -> tuple[Tensor, list[int]]:
        """Run one frame of every stream that has its samples.

        Args:
            samples: ``[capacity, hop]``, the next samples of every slot; those of free slots are not looked at.

        Returns:
            ``[capacity, hop]``, and how many samples at the start of each row are new output: none before a stream's
            first frame, a few less than a hop at it, and a hop at every later one.

        Raises:
            ValueError: for another shape or dtype.
        """
        if tuple(samples.shape) != (self.capacity, self.model.hop) or not samples.is_floating_point():
            expected = f"floating [{self.capacity}, {self.model.hop}]"
            raise ValueError(f"samples has shape {tuple(samples.shape)} and dtype {samples.dtype}: expected {expected}")
        samples = samples.to(self._waiting)
        ready = [0] * self.capacity
        for slot in self._ticks:
            self._ticks[slot] += 1
            frames = self._ticks[slot] - (self._start - self._silent) + 1
            if 0 < frames <= self._silent + 1:
                self._early[slot].append(float(self._ufs[slot]))
            if frames > self._silent:
                ready[slot] = self.model.emitted(frames) - self.model.emitted(frames - 1)
        if self._compiled is not None:
            return self._compiled.tick(samples, self._indices(), self.slots), ready
        hop, window = self.model.hop, torch.cat([self._waiting, samples], dim=1)
        # A stream that runs has given all but these to its earlier frames.
        start = window.shape[1] - hop - (self._start * hop - self._need)
        out, self._state = self.model.step(window[:, start : start + hop], self._state, self._ufs)
        self._waiting = window[:, hop:].clone()
        for slot, ticks in self._ticks.items():
            if ticks == self._start:
                ufs = self._ufs.new_tensor([self._early[slot]])
                head, state = self.model.step(
                    self._waiting[slot : slot + 1, : self._need], self.model.initial_state(), ufs
                )
                out[slot, : head.shape[1]] = head
                self._state.put(slot, state)
        return out, ready

    @torch.no_grad()
    def leave(self, slot: int) -> Tensor:
        """End a stream and give back all of its output that is still missing, ``[m]``.

        Raises:
            ValueError: for a free slot.
        """
        self._check(slot)
        ticks, uf = self._ticks.pop(slot), float(self._ufs[slot])
        if self._compiled is not None:
            return self._compiled.leave(slot, self.model.config.ufs.index(uf))
        samples = ticks * self.model.hop
        kept = samples if ticks < self._start else self._start * self.model.hop - self._need
        rest = self._waiting[slot : slot + 1, self._waiting.shape[1] - kept :]
        if ticks >= self._start:
            return self.model.finish(rest, self._state.stream(slot)._replace(samples=samples - kept), uf)[0]
        early = self._early[slot]
        ufs = [*early, *[uf] * (self.model.frames(samples) - len(early))] if samples else [uf]
        return self.model.finish(rest, self.model.initial_state(), self._ufs.new_tensor([ufs]))[0]

    def _indices(self) -> list[int]:
        return [self.model.config.ufs.index(uf) for uf in self._ufs.tolist()]

    def _check(self, slot: int) -> None:
        if slot not in self._ticks:
            raise ValueError(f"slot = {slot}: expected one in use, {self.slots}")


class _CompiledSlots:
    """The streams of a batch on the compiled path."""

    def __init__(self, model: SlimDemucs, capacity: int) -> None:
        from .compiled.layout import Places
        from .compiled.network import pack

        self._model, self._weights = model, pack(model)
        places = self._places = Places(model, self._weights, 1, capacity)
        self._mems = np.zeros((capacity, places.mem_size), np.float32)
        self._counters = np.zeros((capacity, places.int_size), np.int64)
        self._scratch = np.zeros(places.scratch_size, np.float32)
        self._ints = np.zeros(places.shared_int_size, np.int64)
        self._streams: dict[int, CompiledStream] = {}

    def join(self, slot: int) -> None:
        from .compiled.network import Buffers, CompiledStream

        buffers = Buffers(self._places, self._mems[slot], self._scratch, self._counters[slot])
        self._streams[slot] = CompiledStream(self._model, self._weights, buffers)

    def tick(self, samples: Tensor, ufs: list[int], slots: list[int]) -> Tensor:
        """Streams before or at their first frame run alone, the others together."""
        from .compiled.batch import tick

        x, out = samples.contiguous().numpy(), np.zeros(tuple(samples.shape), np.float32)
        together = []
        for slot in slots:
            stream = self._streams[slot]
            if stream.frames and self._model.config.rnn == "gru":
                together.append(slot)
                continue
            ready = stream.feed(x[slot], np.array([ufs[slot]]))
            out[slot, : len(ready)] = ready
        if together:
            weights, places, chosen = self._weights, self._places, np.array(together)
            arrays = weights.weights, weights.const, self._mems, self._counters, self._scratch, self._ints
            tables = places.shape, places.levels, weights.mats, weights.counts
            tick(x, chosen, np.array(ufs)[chosen], out, *arrays, *tables)
            for slot in together:
                self._streams[slot].ran(self._model.hop)
        return torch.from_numpy(out)

    def leave(self, slot: int, index: int) -> Tensor:
        return torch.from_numpy(self._streams.pop(slot).finish(np.zeros(0, np.float32), np.array([index])))
