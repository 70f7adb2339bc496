"""Many live streams on one machine, a frame of each per tick."""

from __future__ import annotations

import heapq
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .compiled import use_compiled
from .models import DemucsState, SlimDemucs
from .models.router import RouterState
from .ops.launchers import DTYPES
from .streaming import LOUDEST
from .width import Schedule, Width

if TYPE_CHECKING:
    from .compiled.slots import CompiledSlots


class StreamBatch:
    """Concurrent streams, each with its own state and its own width or budget, that join and leave at any tick.

    A tick takes one hop of samples (16 ms in the ``paper`` preset) of every stream. What a stream gets out, over its
    ticks and `leave`, equals what a `Streamer` of its own would give, and so do the widths that a router chooses.

    On the compiled backend each stream costs what its own width costs, and a tick reads the weights once for all (with
    an LSTM, the streams run one after the other). On the torch backend a tick is one call over all slots, whose shapes
    never change: free slots are computed too, and their rows mean nothing. Its widths are tensors, so that where
    kernels run it can be one CUDA graph, whatever the widths. **That graph has not run on a GPU yet**; `bench/gpu.py`
    compares it with a tick without one.

    Args:
        model: a causal `SlimDemucs`, in evaluation mode, whose ``level`` is not ``"signal"``.
        capacity: most streams at a time.
        backend: as in `Streamer`.
        graph: record the tick as a CUDA graph; None for where it can be.

    Raises:
        ValueError: for a model that cannot stream or needs the level of the whole signal, a capacity below 1, or a
            backend or graph that cannot run.
    """

    def __init__(
        self, model: SlimDemucs, capacity: int, *, backend: str | None = None, graph: bool | None = None
    ) -> None:
        if not model.config.causal or model.config.level == "signal":
            raise ValueError(
                "expected a causal model with another level than 'signal': that of a live signal is not known"
            )
        if capacity < 1:
            raise ValueError(f"capacity = {capacity}: expected 1 or more")
        self.model, self.capacity = model, capacity
        self._free, self._used = list(range(capacity)), set[int]()
        compiled, reason = use_compiled(backend or model.backend, model), _no_graph(model)
        if graph and reason is not None:
            raise ValueError(f"graph = True cannot run here: {reason}; expected False or None")
        self.backend = "numba" if compiled else "torch"
        """What runs the frames: ``"numba"``, or ``"torch"`` for the layers on theirs."""
        self._slots: CompiledSlots | _LayerSlots
        if compiled:
            from .compiled.slots import CompiledSlots

            self._slots = CompiledSlots(model, capacity)
        else:
            self._slots = _LayerSlots(model, capacity, graph=reason is None if graph is None else graph)

    @property
    def slots(self) -> list[int]:
        """The slots in use."""
        return sorted(self._used)

    @property
    def ufs(self) -> Tensor:
        """The UFs of the last frames, ``[capacity]``; of no meaning for a slot that has not run one."""
        return self.model.config.ufs.at(self._slots.choice)

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
        if tuple(samples.shape) != (self.capacity, self.model.hop) or not samples.is_floating_point():
            expected = f"floating [{self.capacity}, {self.model.hop}]"
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
        return self.model.config.ufs.validate(request.uf), None


def _no_graph(model: SlimDemucs) -> str | None:
    """Why a tick cannot be a CUDA graph, or None if it can."""
    parameter = next(model.parameters())
    if parameter.device.type != "cuda":
        return f"the model is on {parameter.device}, not on a CUDA device"
    if model.backend == "torch" or parameter.dtype not in DTYPES or importlib.util.find_spec("triton") is None:
        return "without Triton's kernels, the host looks at the widths of every layer"
    return None


@dataclass(frozen=True)
class _TickSchedule(Schedule):
    """A schedule whose tables are on the device already: a graph cannot bring them there."""

    counts: Mapping[int, Tensor] = field(default_factory=dict)
    """By channels of a layer, those that are active at each UF."""

    def width(self, channels: int, frame: Tensor) -> Width:
        """As of `Schedule`."""
        assert self.choice is not None
        return self.counts[channels][self.choice[:, frame]]


@dataclass(eq=False)
class _Cohort:
    """Streams that joined before the same tick, up to their first output."""

    rows: Tensor
    """Their slots."""
    members: dict[int, int]
    """Those that have not left: slot to row."""
    heard: Tensor
    """Samples that do not fill a frame yet: ``[rows, n]``."""
    state: DemucsState


class _LayerSlots:
    """The streams of a batch on the layers: a tick is one function over buffers that stay where they are.

    The sizes of a stream's state settle with its first output; until then it runs beside the others.
    """

    def __init__(self, model: SlimDemucs, capacity: int, *, graph: bool) -> None:
        config, hop = model.config, model.hop
        like = next(model.parameters()).new_zeros(0, dtype=torch.float32)
        silent = next(frames for frames in itertools.count() if model.emitted(frames + 1))
        need = model.first_samples + silent * hop
        with torch.no_grad():
            _, state = model.step(like.new_zeros(1, need), model.initial_state(), config.ufs[0])
        self._model, self._state = model, DemucsState.stack([state] * capacity)
        self._samples, self._out = like.new_zeros(capacity, hop), like.new_zeros(capacity, hop)
        self._pending = like.new_zeros(capacity, -need % hop)
        self.choice = torch.zeros(capacity, dtype=torch.int64, device=like.device)
        self._fixed, self._auto = self.choice.clone(), self.choice.bool()
        self._asked = (like if model.router is None else model.router.asked).new_ones(capacity)
        levels = [config.channels(level) for level in range(config.depth + 1)]
        self._counts = {
            c: torch.tensor([config.ufs.channels(uf, c) for uf in config.ufs]).to(like.device) for c in levels
        }
        self._joining: list[int] = []
        self._cohorts: list[_Cohort] = []
        self._wanted: dict[int, tuple[float | None, float | None]] = {}
        self._joined: dict[int, int] = {}
        self._ticks, self._ready = 0, [0] * capacity
        self._run: Callable[[], object] = _recorded(self.run, like.device) if graph else self.run

    @torch.no_grad()
    def run(self) -> None:
        """One frame of all slots, from buffers into buffers; the host looks at no number of them."""
        heard, hop = torch.cat([self._pending, self._samples], dim=1), self._model.hop
        out, choice, state = self._frame(heard[:, :hop], self._state, self._fixed, self._auto, self._asked)
        self._state.copy_(state)
        self._pending.copy_(heard[:, hop:])
        self._out.copy_(out)
        self.choice.copy_(choice)

    def _frame(
        self, samples: Tensor, state: DemucsState, fixed: Tensor, auto: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor, DemucsState]:
        """Output of a frame of some streams, the indices of its UFs, and the new state."""
        model, choice = self._model, fixed
        if model.router is not None:
            logits, new = model.router_logits(samples, state, 1, asked)
            choice = torch.where(auto, logits[:, 0].argmax(1), choice)
            # A router hears the frames that it decides and no others.
            decides = auto.unsqueeze(1)
            router = (torch.where(decides, now, old) for now, old in zip(new, state.router, strict=True))
            state = state._replace(router=RouterState(*router))
        schedule = _TickSchedule(model.config.ufs, choice=choice.unsqueeze(1), counts=self._counts)
        out, state = model._levelled(samples, 0, state, schedule, final=False)
        return out, choice, state

    def join(self, slot: int) -> None:
        self._joining.append(slot)
        self._joined[slot] = self._ticks

    def want(self, slot: int, uf: float | None, budget: float | None) -> None:
        self._wanted[slot] = uf, budget
        self._auto[slot] = budget is not None
        if uf is None:
            assert self._model.router is not None
            self._asked[slot] = self._model.router.calibrated(self._asked.new_tensor([budget]))[0]
        else:
            self._fixed[slot] = self._model.config.ufs.index(uf)

    def tick(self, samples: Tensor) -> tuple[Tensor, list[int]]:
        self._samples.copy_(samples)
        self._run()
        self._ticks += 1
        out, ready = self._out.clone(), list(self._ready)
        self._gather()
        # A row whose stream has left may have gone to one of a later cohort, which writes later.
        for cohort in list(self._cohorts):
            head = self._begin(cohort, samples)
            out[cohort.rows, : head.shape[1]] = head
            for slot in cohort.members:
                ready[slot] = head.shape[1]
            if head.shape[1]:
                self._settle(cohort)
        return out, ready

    def _gather(self) -> None:
        """Make a cohort of those that have joined since the last tick."""
        if slots := self._joining:
            state, rows = self._model.initial_state(len(slots)), torch.tensor(slots, device=self.choice.device)
            members = {slot: row for row, slot in enumerate(slots)}
            self._cohorts.append(_Cohort(rows, members, self._samples.new_zeros(len(slots), 0), state))
            self._joining = []

    def _begin(self, cohort: _Cohort, samples: Tensor) -> Tensor:
        """One more tick of streams without output so far; their first output, if this is it."""
        rows = cohort.rows
        cohort.heard = torch.cat([cohort.heard, samples[rows]], dim=1)
        used = self._model.early(cohort.state.samples) + self._model.hop
        if cohort.heard.shape[1] < used:
            return samples[rows, :0]
        wanted = self._fixed[rows], self._auto[rows], self._asked[rows]
        head, choice, cohort.state = self._frame(cohort.heard[:, :used], cohort.state, *wanted)
        cohort.heard = cohort.heard[:, used:].clone()
        self.choice[rows] = choice
        return head

    def _settle(self, cohort: _Cohort) -> None:
        """Move streams into the buffers."""
        self._cohorts.remove(cohort)
        slots, rows = (
            torch.tensor([*of], device=cohort.rows.device) for of in zip(*cohort.members.items(), strict=True)
        )
        self._state.put(slots, cohort.state, rows)
        self._pending[slots] = cohort.heard[rows]
        for slot in cohort.members:
            self._ready[slot] = self._model.hop

    def leave(self, slot: int) -> Tensor:
        wanted, joined = self._wanted.pop(slot), self._joined.pop(slot)
        self._gather()
        for cohort in self._cohorts:
            if slot in cohort.members:
                row = cohort.members.pop(slot)
                if not cohort.members:
                    self._cohorts.remove(cohort)
                return self._model.finish(cohort.heard[row : row + 1], cohort.state.stream(row), *wanted)[0]
        self._ready[slot] = 0
        rest = self._pending[slot : slot + 1]
        samples = (self._ticks - joined) * self._model.hop - rest.shape[1]
        return self._model.finish(rest, self._state.stream(slot)._replace(samples=samples), *wanted)[0]


def _recorded(run: Callable[[], None], device: torch.device) -> Callable[[], Any]:
    """``run`` as a CUDA graph."""
    with torch.cuda.device(device):
        # The first runs compile kernels and fill caches, which a graph must not.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    return graph.replay
