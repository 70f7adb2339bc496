"""Streams of a batch on the compiled kernels, which come and go."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from ..model import SlimModel
from .batch import tick
from .layout import Floats, Ints, Places, demucs
from .network import Buffers, CompiledStream, pack
from .router import CompiledRouter, Heard


class CompiledSlots:
    """What a `slimse.serving.StreamBatch` needs for its streams, whose common tick is one call.

    Args:
        model: the model.
        capacity: most streams at a time.
    """

    def __init__(self, model: SlimModel, capacity: int) -> None:
        self._model, self._weights = model, pack(model)
        places = self._places = Places(model, self._weights, 1, capacity)
        self._mems = np.zeros((capacity, places.mem_size), np.float32)
        self._counters = np.zeros((capacity, places.int_size), np.int64)
        self._scratch = np.zeros(places.scratch_size, np.float32)
        self._ints = np.zeros(places.shared_int_size, np.int64)
        self._streams: dict[int, CompiledStream] = {}
        self._steady: set[int] = set()
        self._next = np.zeros(capacity, np.int64)
        """Index of the UF of the next frame, the router's where there is a budget."""
        self.choice = torch.zeros(capacity, dtype=torch.int64)
        self._budgets: dict[int, float] = {}
        if model.router is not None:
            self._router = CompiledRouter(model.router)
            self._heard = Heard.of(model.router.initial_state(capacity))

    def join(self, slot: int) -> None:
        """Begin a stream."""
        buffers = Buffers(self._places, self._mems[slot], self._scratch, self._counters[slot])
        self._streams[slot] = CompiledStream(self._model, self._weights, buffers)
        if self._model.router is not None:
            for part in self._heard:
                part[slot] = 0

    def want(self, slot: int, uf: float | None, budget: float | None) -> None:
        """What a stream's frames run at from now on."""
        self._budgets.pop(slot, None)
        if uf is None:
            assert budget is not None
            self._budgets[slot] = budget
        else:
            self._next[slot] = self._model.ufs.index(uf)

    def tick(self, samples: Tensor) -> tuple[Tensor, list[int]]:
        """As of `StreamBatch`. Streams up to their first output run alone, the others together (with an LSTM, none)."""
        x, out = samples.contiguous().numpy(), np.zeros(tuple(samples.shape), np.float32)
        self._choose(x)
        self.choice = torch.from_numpy(self._next.copy())
        ready, together = [0] * len(x), []
        for slot, stream in self._streams.items():
            if slot in self._steady:
                together.append(slot)
                continue
            head = stream.feed(x[slot], self._next[slot : slot + 1])
            out[slot, : len(head)], ready[slot] = head, len(head)
            if len(head) and demucs(self._model).config.rnn == "gru":
                self._steady.add(slot)
        if together:
            weights, places, chosen = self._weights, self._places, np.array(together)
            arrays = weights.weights, weights.const, self._mems, self._counters, self._scratch, self._ints
            tables = places.shape, places.levels, weights.mats, weights.counts
            tick(x, chosen, self._next[chosen], out, *arrays, *tables)
            for slot in together:
                self._streams[slot].ran(self._model.geometry.hop)
                ready[slot] = self._model.geometry.hop
        return torch.from_numpy(out), ready

    def _choose(self, x: Floats) -> None:
        """Ask the router for the streams that have a budget and complete a frame."""
        groups: dict[int, list[int]] = defaultdict(list)
        for slot in self._budgets:
            stream = self._streams[slot]
            early = self._model.geometry.early(stream.samples)
            if len(stream.pending) >= early:
                groups[early].append(slot)
        for early, slots in groups.items():
            heard = [np.concatenate([self._streams[slot].pending, x[slot]]) for slot in slots]
            used = np.stack(heard)[:, : early + self._model.geometry.hop]
            self._next[slots] = self._decided(slots, used, early, 1)[:, 0]

    def _decided(self, slots: list[int], used: Floats, early: int, frames: int) -> Ints:
        """Indices of UFs ``[slots, frames]``, from the samples of these frames; the router has then heard them."""
        state = Heard(*(part[slots] for part in self._heard))
        used = np.stack([self._streams[slot].normalised(row) for slot, row in zip(slots, used, strict=True)])
        budgets = np.array([self._budgets[slot] for slot in slots], np.float32)
        choice, state = self._router.choose(used, early, frames, budgets, state, False)
        for part, new in zip(self._heard, state, strict=True):
            part[slots] = new
        return choice

    def leave(self, slot: int) -> Tensor:
        """End a stream, and give back all that is still missing of it."""
        self._steady.discard(slot)
        stream, choice = self._streams[slot], self._next[slot : slot + 1]
        if slot in self._budgets:
            left = max(self._model.geometry.frames_left(stream.samples, len(stream.pending)), 1)
            choice = self._decided([slot], stream.pending[None], self._model.geometry.early(stream.samples), left)[0]
            del self._budgets[slot]
        del self._streams[slot]
        return torch.from_numpy(stream.finish(np.zeros(0, np.float32), choice))
