"""Many streams on the layers, a frame of each per tick; where kernels run, as one CUDA graph."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import ModelState, SlimModel
from ..networks import state as states
from ..ops.launchers import DTYPES
from ..router import RouterState
from ..width import Schedule
from .base import Runtime


@dataclass(eq=False)
class _Cohort:
    """Streams that joined before the same tick, up to their first output."""

    rows: Tensor
    """Their slots."""
    members: dict[int, int]
    """Those that have not left: slot to row."""
    heard: Tensor
    """Samples that do not fill a frame yet: ``[rows, n]``."""
    state: ModelState


class EagerSlots:
    """The streams of a batch on the layers: a tick is one function over buffers that stay where they are.

    The sizes of a stream's state settle with its first output; until then it runs beside the others.

    Args:
        model: a causal model.
        capacity: most streams at a time.
        graph: whether to record the tick as a CUDA graph.
    """

    def __init__(self, model: SlimModel, capacity: int, *, graph: bool = False) -> None:
        geometry, hop = model.geometry, model.geometry.hop
        like = next(model.parameters()).new_zeros(0, dtype=torch.float32)
        need = geometry.first + geometry.silent * hop
        with torch.no_grad():
            _, state = model.step(like.new_zeros(1, need), model.initial_state(), model.ufs[0])
        self._model, self._state = model, states.stack([state] * capacity)
        self._samples, self._out = like.new_zeros(capacity, hop), like.new_zeros(capacity, hop)
        self._pending = like.new_zeros(capacity, -need % hop)
        self.choice = torch.zeros(capacity, dtype=torch.int64, device=like.device)
        self._fixed, self._auto = self.choice.clone(), self.choice.bool()
        self._asked = (like if model.router is None else model.router.calibrated_budgets).new_ones(capacity)
        self._joining: list[int] = []
        self._cohorts: list[_Cohort] = []
        self._wanted: dict[int, tuple[float | None, float | None]] = {}
        self._joined: dict[int, int] = {}
        self._ticks, self._ready = 0, [0] * capacity
        self._run: Callable[[], object] = _recorded(self.run, like.device) if graph else self.run

    @torch.no_grad()
    def run(self) -> None:
        """One frame of all slots, from buffers into buffers; the host looks at no number of them."""
        heard, hop = torch.cat([self._pending, self._samples], dim=1), self._model.geometry.hop
        out, choice, state = self._frame(heard[:, :hop], self._state, self._fixed, self._auto, self._asked)
        states.copy(self._state, state)
        self._pending.copy_(heard[:, hop:])
        self._out.copy_(out)
        self.choice.copy_(choice)

    def _frame(
        self, samples: Tensor, state: ModelState, fixed: Tensor, auto: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor, ModelState]:
        """Output of a frame of some streams, the indices of its UFs, and the new state."""
        model, choice = self._model, fixed
        if model.router is not None:
            logits, new = model.router_logits(samples, state, 1, asked)
            choice = torch.where(auto, logits[:, 0].argmax(1), choice)
            # The input of a router is the frames that it decides and no others.
            decides = auto.unsqueeze(1)
            router = (torch.where(decides, now, old) for now, old in zip(new, state.router, strict=True))
            state = state._replace(router=RouterState(*router))
        out, state = model.run(samples, state, Schedule(model.ufs, choice=choice.int().unsqueeze(1)))
        return out, choice, state

    def join(self, slot: int) -> None:
        """Begin a stream."""
        self._joining.append(slot)
        self._joined[slot] = self._ticks

    def want(self, slot: int, uf: float | None, budget: float | None) -> None:
        """What its frames run at from now on."""
        self._wanted[slot] = uf, budget
        self._auto[slot] = budget is not None
        if uf is None:
            assert self._model.router is not None
            self._asked[slot] = self._model.router.calibrated(self._asked.new_tensor([budget]))[0]
        else:
            self._fixed[slot] = self._model.ufs.index(uf)

    def tick(self, samples: Tensor) -> tuple[Tensor, list[int]]:
        """As of `slimse.serving.StreamBatch`."""
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
        used = self._model.geometry.early(cohort.state.samples) + self._model.geometry.hop
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
        states.put(self._state, slots, cohort.state, rows)
        self._pending[slots] = cohort.heard[rows]
        for slot in cohort.members:
            self._ready[slot] = self._model.geometry.hop

    def leave(self, slot: int) -> Tensor:
        """End a stream, and give back all that is still missing of it."""
        wanted, joined = self._wanted.pop(slot), self._joined.pop(slot)
        self._gather()
        for cohort in self._cohorts:
            if slot in cohort.members:
                row = cohort.members.pop(slot)
                if not cohort.members:
                    self._cohorts.remove(cohort)
                return self._model.finish(cohort.heard[row : row + 1], states.select(cohort.state, row), *wanted)[0]
        self._ready[slot] = 0
        rest = self._pending[slot : slot + 1]
        samples = (self._ticks - joined) * self._model.geometry.hop - rest.shape[1]
        return self._model.finish(rest, states.select(self._state, slot)._replace(samples=samples), *wanted)[0]


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


class GraphRuntime(Runtime):
    """The tick of a batch of streams as one CUDA graph, which has not run on a GPU yet."""

    name = "cuda-graph"
    offers = frozenset(("batch",))

    def unavailable(self, model: SlimModel) -> str | None:
        """Why a tick cannot be a CUDA graph, or None if it can."""
        parameter = next(model.parameters())
        if parameter.device.type != "cuda":
            return f"the model is on {parameter.device}, not on a CUDA device"
        if model.backend == "reference" or parameter.dtype not in DTYPES or importlib.util.find_spec("triton") is None:
            return "graphs need the Triton backend: the PyTorch path synchronizes to read widths"
        return None

    def slots(self, model: SlimModel, capacity: int) -> EagerSlots:
        """Streams that come and go."""
        return EagerSlots(model, capacity, graph=True)
