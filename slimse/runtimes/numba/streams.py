"""The memory of streams on the compiled network, with the state of the torch path at the border."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ...model import ModelState, SlimModel
from ...nn import LevelState
from . import layout as f
from .layout import Floats, Places, Weights, aligned, demucs
from .products import product_address
from .stream import JOB, feed_function

_packed: WeakKeyDictionary[SlimModel, dict[str | None, tuple[Any, Weights]]] = WeakKeyDictionary()


def pack(model: SlimModel, kind: str | None = None) -> Weights:
    """The packed weights of a model, see `Weights`; packed again only if they have changed."""
    # Nobody counts the changes of tensors made in inference mode: those are packed every time.
    stamp = [(p.data_ptr(), object() if p.is_inference() else p._version) for p in model.parameters()]
    known = _packed.setdefault(model, {})
    if kind not in known or known[kind][0] != stamp:
        known[kind] = stamp, Weights(model, kind)
    return known[kind][1]


class Streams:
    """The memory of some streams of a causal model, and the call that runs them.

    Args:
        model: the model.
        weights: its packed weights.
        capacity: most streams.
        frames: most frames of one pass of all streams together.
        ending: streams that end together.
    """

    def __init__(self, model: SlimModel, weights: Weights, capacity: int, frames: int, ending: int = 1) -> None:
        self.model, self.capacity, self._weights = model, capacity, weights
        places = self._places = Places(model, weights, frames, capacity, ending)
        plan = places.plans[0]
        self._plan = {name: plan[name].item() for name in f.PLAN.names or ()}
        size = self._plan["size"]
        self._mem, self._scratch = aligned(capacity * size, np.float32), aligned(places.scratch_size, np.float32)
        self._mems = self._mem.reshape(capacity, size)
        self.counters = np.zeros((capacity, f.COUNTERS), np.int64)
        self._index = np.zeros(places.index_size, np.int64)
        self.choice = np.zeros((capacity, 1), np.int64)
        """Index of the UF of every frame of the next call, ``[capacity, frames]``; where there is a budget, of the last
        call."""
        self.budgets = np.zeros(capacity, np.float32)
        """That the router chooses for; 0 for streams whose UFs are given."""
        self._slots = np.arange(capacity)
        self._jobs = np.zeros(1, JOB)
        self.job: Any = self._jobs[0]
        self._describe()
        self.call, self.job_at = feed_function(), self._jobs.ctypes.data
        """See `feed_function`."""
        # Both grow by a hop per frame once the resampling filters are full.
        self.first, self.hop = model.geometry.first, model.geometry.hop
        full = 1 + self.first // self.hop
        self._behind = full * self.hop - model.geometry.emitted(full)

    def _describe(self) -> None:
        places, weights, job = self._places, self._weights, self.job
        arrays = {
            "plan": places.plans,
            "levels": places.levels,
            "mats": weights.mats,
            "counts": weights.counts,
            "const": weights.const,
            "route": places.route,
            "mem": self._mem,
            "counters": self.counters,
            "scratch": self._scratch,
            "index": self._index,
            "slots": self._slots,
            "budgets": self.budgets,
        }
        for name, array in arrays.items():
            job[name] = array.ctypes.data
        sizes = {"matrices": weights.mats, "consts": weights.const, "routes": places.route, "mems": self._mem}
        sizes |= {"scratches": self._scratch, "indices": self._index}
        for name, array in sizes.items():
            job[name] = array.size
        job["streams"], job["running"], job["finish"] = self.capacity, self.capacity, -1
        job["product"], job["limit"] = product_address(weights.kind), len(self.model.ufs) - 1
        self.widen(1)

    def widen(self, frames: int) -> None:
        """Make room in ``choice`` for so many frames, and let them all count."""
        if frames > self.choice.shape[1]:
            self.choice = np.repeat(self.choice[:, :1], frames, axis=1)
        self.job["choice"], self.job["choices"] = self.choice.ctypes.data, self.choice.shape[1]
        self.job["width"] = self.width = frames

    def frames_at(self, received: int) -> int:
        """Frames that a stream has run once so many samples have come in."""
        return 1 + (received - self.first) // self.hop if received >= self.first else 0

    def emitted_at(self, frames: int) -> int:
        """Samples that a stream has given out after so many frames."""
        return max(frames * self.hop - self._behind, 0)

    def samples(self, slot: int) -> int:
        """That the frames of a stream have taken."""
        return int(self.counters[slot, f.SAMPLES])

    def pending(self, slot: int) -> Floats:
        """A view of the samples that do not fill a frame yet."""
        start = self._plan["pending_at"]
        return self._mems[slot, start : start + int(self.counters[slot, f.PENDING])]

    def run(self, x_at: int, x_step: int, count: int, out_at: int, out_step: int) -> int:
        """See `slimse.runtimes.numba.stream.feed_function`; the streams are those of `use`."""
        job = self.job
        job["x_step"], job["out_step"] = x_step, out_step
        return self.call(self.job_at, x_at, count, out_at)

    def use(self, slots: Sequence[int]) -> None:
        """The streams that `run` runs from now on."""
        self._slots[: len(slots)] = slots
        self.job["running"] = len(slots)

    def finish(self, slots: Sequence[int], x: Floats) -> Floats:
        """End streams at the same place of their signals: ``[len(slots), m]``, all that is still missing of them.

        Only `load` may follow. ``choice`` and ``budgets`` hold what the frames that are left run at; `widen` has made
        room for them.

        Args:
            slots: one, or all from 0 on that end together.
            x: the last samples, ``[len(slots), n]``.
        """
        geometry, job, first = self.model.geometry, self.job, slots[0]
        received = self.samples(first) + int(self.counters[first, f.PENDING])
        total = received + x.shape[1]
        out = np.empty((len(slots), total - self.emitted_at(self.frames_at(received))), np.float32)
        if not total:
            return out
        frames, running = geometry.frames(total), self._slots[: int(job["running"])].tolist()
        self.use(slots)
        job["finish"], job["pad"] = frames - geometry.frames_done(total), geometry.span(frames) - total
        # Rows are addressed by slot.
        x_at, out_at = (array.ctypes.data - array.strides[0] * first for array in (x, out))
        self.run(x_at, x.shape[1], x.shape[1], out_at, out.shape[1])
        job["finish"] = -1
        self.use(running)
        return out

    def load(self, slot: int, state: ModelState, pending: Floats) -> None:
        """Go on from a state of one stream, with ``pending`` samples that do not fill a frame yet."""
        # Padding must be zero, even if the last signal held NaN. What lies behind is written before it is read.
        config, levels = demucs(self.model).config, self._places.levels
        overlap = config.kernel_size - config.stride
        mem, counters, plan = self._mems[slot], self.counters[slot], self._plan
        mem[: levels[0]["tail_at"]] = 0
        for _, lag, step, at, tail_at in levels.tolist():
            mem[tail_at : tail_at + overlap * step] = 0
            mem[at : at + lag * step] = 0
        stages, mode = len(state.network.up), self._mode(state)
        mem[plan["level_at"]] = mode
        counters[f.GAINS] = state.level[2].shape[1] if mode == f.RUNNING_LEVEL else 0
        for part, tensor in self._parts(slot, state):
            part[...] = tensor.numpy()
        counters[f.UP_COUNT : f.UP_COUNT + stages] = [buffer.shape[1] for buffer in state.network.up]
        counters[f.DOWN_COUNT : f.DOWN_COUNT + stages] = [buffer.shape[1] for buffer in state.network.down]
        counters[f.SAMPLES], counters[f.PENDING] = state.samples, len(pending)
        mem[plan["pending_at"] :][: len(pending)] = pending

    def save(self, slot: int) -> tuple[ModelState, Floats]:
        """The state and the samples that do not fill a frame yet, as copies."""
        state = self._blank(slot)
        for part, tensor in self._parts(slot, state):
            tensor.copy_(torch.from_numpy(part))
        return state, self.pending(slot).copy()

    def _mode(self, state: ModelState) -> int:
        """What kind of level a state has."""
        if self.model.config.level == "running":
            return f.RUNNING_LEVEL
        return (f.NO_LEVEL, f.GIVEN_LEVEL, f.SEEN_LEVEL)[len(state.level)]

    def _blank(self, slot: int) -> ModelState:
        """A state of the sizes that this one has now."""
        model, config, counters = self.model, demucs(self.model).config, self.counters[slot].tolist()
        mode = int(self._mems[slot, self._plan["level_at"]])
        fresh = model.initial_state(input_std=1.0 if mode == f.GIVEN_LEVEL else None)
        stages = range(len(fresh.network.up))
        up = tuple(torch.zeros(1, counters[f.UP_COUNT + stage]) for stage in stages)
        down = tuple(torch.zeros(1, counters[f.DOWN_COUNT + stage]) for stage in stages)
        level = tuple(value.clone() for value in fresh.level)
        if mode == f.RUNNING_LEVEL:
            level = LevelState(level[0], level[1], torch.zeros(1, counters[f.GAINS]))
        network = fresh.network._replace(up=up, down=down)
        if not counters[f.SAMPLES]:
            return fresh._replace(network=network, level=level)
        overlap, levels = config.kernel_size - config.stride, range(config.depth + 1)
        edges = tuple(torch.zeros(1, overlap, config.channels(i)) for i in levels)[:-1]
        lags = self._places.levels["lag"].tolist()
        skips = tuple(torch.zeros(1, lags[i], config.channels(i)) for i in levels)[1:]
        decoder = tuple(edge.clone() for edge in edges)
        network = network._replace(encoder=edges, skip=skips, decoder=decoder)
        return fresh._replace(network=network, level=level, samples=counters[f.SAMPLES])

    def _parts(self, slot: int, state: ModelState) -> Iterator[tuple[Floats, Tensor]]:
        """Every tensor of ``state`` and the view of the memory that holds the same."""
        plan, levels, network = self._plan, self._places.levels.tolist(), state.network

        def rows(at: int, count: int, step: int, columns: int) -> Floats:
            return self._mems[slot, at : at + count * step].reshape(count, step)[:, :columns]

        for stage, (up, down) in enumerate(zip(network.up, network.down, strict=True)):
            yield rows(plan["up_at"] + stage * plan["up_step"], 1, up.shape[1], up.shape[1]), up
            yield rows(plan["down_at"] + stage * plan["down_step"], 1, down.shape[1], down.shape[1]), down
        level_at = plan["level_at"]
        if self.model.config.level == "running":
            sums, seen, gain = state.level
            yield rows(level_at + 1, 1, 3, 3), sums
            yield rows(level_at + 4, 1, 3, 3), seen
            yield rows(plan["gain_at"], 1, gain.shape[1], gain.shape[1]), gain
        else:
            for index, value in enumerate(state.level):
                yield rows(level_at + 1 + index, 1, 1, 1), value
        hidden = [*network.rnn[0][0]] if plan["groups"] else [tensor[0] for tensor in network.rnn]
        for index, tensor in enumerate(hidden):
            yield rows(plan["rnn_at"] + index * plan["units"], 1, plan["units"], len(tensor))[0], tensor
        if state.router:
            for at, part in zip((plan["heard_at"], plan["hidden_units_at"]), state.router, strict=True):
                yield rows(at, 1, part.shape[1], part.shape[1]), part
        if not state.samples:
            return
        for level, (_, lag, step, at, tail_at) in enumerate(levels):
            if level:
                skip = network.skip[level - 1][0]
                yield rows(at, len(skip), step, skip.shape[1]), skip
            if level < len(network.encoder):
                tail, edge = network.decoder[level][0], network.encoder[level][0]
                yield rows(tail_at, len(tail), step, tail.shape[1]), tail
                yield rows(at + (lag - len(edge)) * step, len(edge), step, edge.shape[1]), edge
