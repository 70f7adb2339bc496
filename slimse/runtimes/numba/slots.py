"""Streams of a batch on the compiled network, which come and go."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...model import SlimModel
from .streams import Streams, pack


class CompiledSlots:
    """What a `slimse.serving.StreamBatch` needs for its streams, whose common tick is one call.

    Args:
        model: the model.
        capacity: most streams at a time.
    """

    def __init__(self, model: SlimModel, capacity: int) -> None:
        self._model, self._streams = model, Streams(model, pack(model), capacity, 1)
        self._fresh: set[int] = set()
        self._steady: set[int] = set()
        self._given = np.zeros(capacity, np.int64)
        """Index of the UF of a stream without a budget."""
        self._start = model.initial_state()

    @property
    def choice(self) -> Tensor:
        """Index of the UF of the last frame of each slot."""
        return torch.from_numpy(self._streams.choice[:, 0].copy())

    def join(self, slot: int) -> None:
        """Begin a stream."""
        self._streams.load(slot, self._start, np.zeros(0, np.float32))
        self._fresh.add(slot)

    def want(self, slot: int, uf: float | None, budget: float | None) -> None:
        """What a stream's frames run at from now on."""
        self._streams.budgets[slot] = budget or 0
        if budget is None:
            self._given[slot] = self._model.ufs.index(float(uf))  # type: ignore[arg-type]

    def tick(self, samples: Tensor) -> tuple[Tensor, list[int]]:
        """As of `StreamBatch`. Streams up to their first output run alone, the others together."""
        x = samples.contiguous().numpy()
        out, ready = np.zeros(x.shape, np.float32), [0] * len(x)
        streams, hop = self._streams, self._model.geometry.hop
        steady = sorted(self._steady)
        if steady:
            self._run(steady, x, out)
            for slot in steady:
                ready[slot] = hop
        for slot in sorted(self._fresh):
            received = streams.samples(slot) + len(streams.pending(slot))
            before, after = (streams.emitted_at(streams.frames_at(count)) for count in (received, received + hop))
            head = np.empty((1, after - before), np.float32)
            self._run([slot], x, head)
            out[slot, : after - before], ready[slot] = head[0], after - before
            if after > before:
                self._fresh.discard(slot)
                self._steady.add(slot)
        return torch.from_numpy(out), ready

    def _run(self, slots: list[int], x: np.ndarray, out: np.ndarray) -> None:
        """A hop of some streams that are at the same place of their signals; a row of ``out`` per slot or the only."""
        streams, step = self._streams, out.shape[1]
        self._choose(slots)
        streams.use(slots)
        # Rows are addressed by slot.
        out_at = out.ctypes.data - (4 * step * slots[0] if len(out) == 1 else 0)
        streams.run(x.ctypes.data, x.shape[1], x.shape[1], out_at, step)

    def _choose(self, slots: list[int]) -> None:
        streams = self._streams
        routed = streams.budgets[slots] > 0
        streams.job["route_any"] = routed.any()
        streams.choice[slots, 0] = np.where(routed, streams.choice[slots, 0], self._given[slots])

    def leave(self, slot: int) -> Tensor:
        """End a stream, and give back all that is still missing of it."""
        streams, model = self._streams, self._model
        self._steady.discard(slot)
        self._fresh.discard(slot)
        self._choose([slot])
        if streams.budgets[slot] > 0:
            streams.widen(max(model.geometry.frames_left(streams.samples(slot), len(streams.pending(slot))), 1))
        rest = streams.finish([slot], np.zeros((1, 0), np.float32))
        streams.widen(1)
        return torch.from_numpy(rest[0])
