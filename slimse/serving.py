"""Many live streams on one machine, a frame of each per tick."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from .model import SlimModel
from .runtimes import choose
from .runtimes.base import LOUDEST


class StreamBatch:
    """Concurrent streams, each with its own state and its own width or budget, that join and leave at any tick.

    A tick takes one hop of samples (16 ms in the ``paper`` preset) of every stream. What a stream gets out, over its
    ticks and `leave`, equals what a `Streamer` of its own would give, and so do the widths that a router chooses.

    On the numba runtime each stream costs what its own width costs, and a tick reads the weights once for all (with an
    LSTM, the streams run one after the other). On the eager runtime a tick is one call over all slots, whose shapes
    never change: free slots are computed too, and their rows mean nothing. Its widths are tensors, so that where
    Triton's kernels run it can be one CUDA graph, whatever the widths: the runtime ``"cuda-graph"``. **That graph has
    not run on a GPU yet**; `bench/gpu.py` compares it with a tick without one.

    Args:
        model: a causal `SlimModel`, in evaluation mode, whose ``level`` is not ``"signal"``.
        capacity: most streams at a time.
        runtime: ``"numba"``, ``"cuda-graph"``, ``"eager"``, or ``"auto"`` for the first of these that can run; None for
            the model's own.

    Raises:
        ValueError: for a model that cannot stream or needs the level of the whole signal, a capacity below 1, or a
            runtime that cannot run.
    """

    def __init__(self, model: SlimModel, capacity: int, *, runtime: str | None = None) -> None:
        if not model.causal or model.config.level == "signal":
            raise ValueError(
                "expected a causal model with another level than 'signal': that of a live signal is not known"
            )
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: expected 1 or more")
        self.model, self.capacity = model, capacity
        self._free, self._used = list(range(capacity)), set[int]()
        chosen = choose(runtime, model, "batch")
        self.runtime = chosen.name
        """What runs the frames, by name."""
        self._slots = chosen.slots(model, capacity)

    @property
    def slots(self) -> list[int]:
        """The slots in use."""
        return sorted(self._used)

    @property
    def ufs(self) -> Tensor:
        """The UFs of the last frames, ``[capacity]``; of no meaning for a slot that has not run one."""
        return self.model.ufs.at(self._slots.choice)

    def join(self, uf: float | None = None, budget: float | None = None) -> int:
        """Begin a stream; returns its slot.

        Args:
            uf: width of its frames. Without UF and budget, 1.0.
            budget: target mean UF, averaged over a corpus: the model's router chooses the UFs.

        Raises:
            ValueError: if all slots are in use, for a UF outside the set or a budget out of range, for both at once,
                or for a budget without a router.
        """
        wanted = self._checked(uf, budget)
        if not self._free:
            raise ValueError(f"all {self.capacity} slots are in use: expected one to leave first")
        slot = heapq.heappop(self._free)
        self._used.add(slot)
        self._slots.join(slot)
        self._slots.want(slot, *wanted)
        return slot

    def set_uf(self, slot: int, uf: float) -> None:
        """Give a stream this width from its next frame on.

        Raises:
            ValueError: for a free slot, or a UF outside the set.
        """
        self._check(slot)
        self._slots.want(slot, *self._checked(uf, None))

    def set_budget(self, slot: int, budget: float) -> None:
        """Let the router choose a stream's widths from its next frame on, for this budget.

        Raises:
            ValueError: for a free slot, a budget out of range, or a model without a router.
        """
        self._check(slot)
        self._slots.want(slot, *self._checked(None, budget))

    @torch.no_grad()
    def tick(self, samples: Tensor) -> tuple[Tensor, list[int]]:
        """Run one frame of every stream that has its samples.

        Args:
            samples: ``[capacity, hop]``, the next samples of every slot; those of free slots are not looked at.

        Returns:
            ``[capacity, hop]``, and how many samples at the start of each row are new output: none before a stream's
            first frame, a few less than a hop at it, and a hop at every later one.

        Raises:
            ValueError: for another shape or dtype, or a sample of a used slot beyond `LOUDEST` or not finite; the
                message names the slot, and all streams are then as they were before.
        """
        if tuple(samples.shape) != (self.capacity, self.model.geometry.hop) or not samples.is_floating_point():
            expected = f"floating [{self.capacity}, {self.model.geometry.hop}]"
            raise ValueError(f"samples has shape {tuple(samples.shape)} and dtype {samples.dtype}: expected {expected}")
        used = samples[self.slots]
        if not bool((used.abs() <= LOUDEST).all()):
            slot = self.slots[int((used.abs() <= LOUDEST).all(dim=1).int().argmin())]
            raise ValueError(f"samples of slot {slot}: expected finite ones of at most {LOUDEST:g}; no stream ran")
        return self._slots.tick(samples.to(next(self.model.parameters()).device, torch.float32))

    @torch.no_grad()
    def leave(self, slot: int) -> Tensor:
        """End a stream and give back all of its output that is still missing, ``[m]``.

        Raises:
            ValueError: for a free slot.
        """
        self._check(slot)
        self._used.remove(slot)
        heapq.heappush(self._free, slot)
        return self._slots.leave(slot)

    def _check(self, slot: int) -> None:
        if slot not in self._used:
            raise ValueError(f"slot = {slot}: expected one in use, {self.slots}")

    def _checked(self, uf: float | None, budget: float | None) -> tuple[float | None, float | None]:
        request = self.model.request(uf, budget, 1)
        if request.budget is not None:
            return None, float(request.budget)
        return self.model.ufs.validate(request.uf), None
