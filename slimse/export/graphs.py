"""Whole ONNX models: a stream call by call, and whole signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import ModelProto, TensorProto, helper

from ..model import SlimModel
from ..networks import SlimDemucs
from .builder import IR_VERSION, OPSET, Scope, Store
from .geometry import Geometry
from .stream import States, Stream

WHOLE_FRAMES = 16
"""Frames that a graph for whole signals runs at a time: their products are large enough to be fast."""


_Shapes: TypeAlias = dict[str, list[Any]]
"""Of inputs or outputs: numbers, and names for what varies."""


class _End(NamedTuple):
    """Of a frame after which the signal ends."""

    valid: str
    """How many of its samples belong to the signal, int64 ``[1]``; may be below 0."""
    turn: str
    """Its position among the last ones, int64 ``[1]``."""
    left: str
    """Frames that come after it, int64 ``[1]``."""


class Graphs:
    """Makes the graphs of one model.

    Args:
        model: what is exported.
        ufs: one, or several from which the graph chooses by its inputs.
        frames: per call of the stream, or at a time of a whole signal.
        precision: of stored weights, one of `PRECISIONS`.
    """

    def __init__(self, model: SlimModel, ufs: Sequence[float], frames: int, precision: str = "float32") -> None:
        self.routed = len(ufs) > 1 and model.router is not None
        assert isinstance(model.network, SlimDemucs)
        self.stream = Stream(model, ufs, Geometry.of(model.network.config, frames), routed=self.routed)
        self.single = self.stream.with_frames(1)
        self.geometry, self.ufs = self.stream.geometry, list(ufs)
        self.store = Store(precision)
        self.sizes = {
            f"state_{name}": sum(int(np.prod(shape)) for shape in parts.values())
            for name, parts in self.stream.layout.items()
        }
        """Floats of each state, ``[1, n]``."""

    def streaming(self, notes: Mapping[str, str]) -> ModelProto:
        """From ``samples`` and states to ``enhanced`` and states, call by call."""
        s = Scope(self.store)
        states = {name.removeprefix("state_"): name for name in self.sizes}

        def go_on(inner: Scope) -> list[str]:
            out, ufs, new = self._call(inner, self.stream, "samples", states)
            return [out, *ufs, *new.values()]

        def end(inner: Scope) -> list[str]:
            out, ufs, new = self._rest(inner, "samples", valid, states)
            return [out, *ufs, *new.values()]

        valid = s.op("Cast", "end", to=TensorProto.INT64)
        results = s.choose(s.op("Less", valid, s.ints(0)), go_on, end)
        inputs: _Shapes = {"samples": [1, self.geometry.call]} | self._choices()
        inputs |= {name: [1, size] for name, size in self.sizes.items()}
        outputs: _Shapes = {"enhanced": [1, "ready"]}
        outputs |= {"ufs": ["frames"]} if len(self.ufs) > 1 else {}
        outputs |= {f"new_{name}": [1, size] for name, size in self.sizes.items()}
        return self._model(s, inputs, outputs, results, notes)

    def whole(self, notes: Mapping[str, str]) -> ModelProto:
        """From ``noisy`` ``[1, T]`` to ``enhanced`` ``[1, T]``, any ``T`` of 1 or more."""
        g, s = self.geometry, Scope(self.store)
        length = s.slice(s.op("Shape", "noisy"), 1, 2)
        padded = s.concat(s.const(np.zeros((1, g.lead))), "noisy", axis=1) if g.lead else "noisy"
        total = s.op("Add", length, s.ints(g.lead))
        calls = s.op("Div", total, s.ints(g.call))
        fresh = {name.removeprefix("state_"): s.const(np.zeros((1, size))) for name, size in self.sizes.items()}
        first = self._first_choice(s, padded, total, fresh) if self.routed else None

        def turn(inner: Scope, index: str, carried: list[str]) -> tuple[list[str], list[str]]:
            samples, _ = self._piece(inner, padded, index, g.call)
            now = dict(zip(fresh, carried, strict=True))
            out, ufs, new = self._call(inner, self.stream, samples, now, first)
            return list(new.values()), [out, *ufs]

        after, stacked = s.loop(s.reshape(calls), list(fresh.values()), turn)
        done = s.op("Mul", calls, s.ints(g.call))
        rest = s.concat(s.op("Slice", padded, done, total, s.ints(1)), s.const(np.zeros((1, g.call))), axis=1)
        left = s.op("Sub", total, done)
        states = dict(zip(fresh, after, strict=True))
        out, ufs, _ = self._rest(s, s.slice(rest, 0, g.call, axis=1), left, states, first=first)
        joined = s.concat(s.reshape(stacked[0], 1, -1), out, axis=1)
        end = s.op("Add", length, s.ints(g.delay))
        results = [s.op("Slice", joined, s.ints(g.delay), end, s.ints(1))]
        outputs: _Shapes = {"enhanced": [1, "samples"]}
        if ufs:
            every = s.concat(s.reshape(stacked[1], -1), *ufs)
            results.append(s.slice(every, g.early, 2**62))
            outputs["ufs"] = ["frames"]
        inputs: _Shapes = {"noisy": [1, "samples"]} | self._choices()
        return self._model(s, inputs, outputs, results, notes)

    def _call(
        self,
        s: Scope,
        stream: Stream,
        samples: str,
        states: States,
        first: str | None = None,
        end: _End | None = None,
    ) -> tuple[str, list[str], States]:
        """One call: output, the UFs of its frames where there are several to choose from, new states."""
        budget = "budget" if self.routed else None
        heard, states = stream.hear(s, samples, states, budget, None if end is None else end.valid)
        left = None if end is None else end.left
        if len(self.ufs) == 1:
            out, states = stream.run(s, heard, states, None, left)
            return out, [], states
        uf = s.slice("uf", 0, 1)
        if end is not None:
            last = s.op("Sub", s.op("Shape", "uf"), s.ints(1))
            uf = s.op("Gather", "uf", s.op("Min", end.turn, last))
        choice = self._asked(s, uf)
        if heard.choice is not None:
            routed = heard.choice
            if first is not None:
                early = s.op("Less", s.reshape(heard.clock, 1), s.const(stream.geometry.early))
                routed = s.op("Where", early, first, routed)
            choice = s.op("Where", s.op("Greater", uf, s.const(0)), choice, routed)
        out, states = stream.run(s, heard, states, choice, left)
        ufs = s.op("Gather", s.const(self.ufs), choice)
        frames = stream.geometry.frames
        return out, [ufs if frames == 1 else s.op("Expand", ufs, s.ints(frames))], states

    def _rest(
        self, s: Scope, samples: str, valid: str, states: States, first: str | None = None
    ) -> tuple[str, list[str], States]:
        """As `_call`, of the last samples of a signal, frame by frame, with all that is then still to come."""
        g, names = self.geometry, list(states)
        zeros = max(g.early + 1 - g.frames, -(-g.spare // g.hop), 1) * g.hop
        padded = s.concat(samples, s.const(np.zeros((1, zeros))), axis=1)
        clock = s.op("Cast", s.reshape(s.slice(states["level"], 0, 1, axis=1), 1), to=TensorProto.INT64)
        needed = s.op("Div", s.op("Add", valid, s.ints(g.spare + g.hop - 1)), s.ints(g.hop))
        count = s.op("Max", needed, s.op("Sub", s.ints(g.early + 1), clock))

        def turn(inner: Scope, index: str, carried: list[str]) -> tuple[list[str], list[str]]:
            piece, start = self._piece(inner, padded, index, g.hop)
            turn = inner.reshape(index, 1)
            left = inner.op("Sub", inner.op("Sub", count, inner.ints(1)), turn)
            now = dict(zip(names, carried, strict=False))
            last = _End(inner.op("Sub", valid, start), turn, left)
            out, ufs, new = self._call(inner, self.single, piece, now, first, last)
            return [*new.values(), *ufs], [out, *ufs]

        # Where no frame is left (without resampling that may be), the tail takes what is asked for now.
        last = [s.slice("uf", 0, 1)] if len(self.ufs) > 1 else []
        after, stacked = s.loop(s.reshape(count), [*states.values(), *last], turn)
        states = dict(zip(names, after, strict=False))
        out, ufs = s.reshape(stacked[0], 1, -1), [s.reshape(part, -1) for part in stacked[1:]]
        if g.tail:
            choice = self._asked(s, after[-1]) if last else None
            tail = self.stream.branch(s, choice, lambda s, uf: [self.stream.tail(s, states, uf)])
            out = s.concat(out, *tail, axis=1)
        return out, ufs, states

    def _first_choice(self, s: Scope, padded: str, total: str, fresh: States) -> str:
        """What the router says of the first frame, for the frames before it: int64 ``[1]``."""
        g = self.geometry
        silence = s.const(np.zeros((1, (g.early + 1) * g.hop)))
        signal = s.concat(padded, silence, axis=1)

        def turn(inner: Scope, index: str, carried: list[str]) -> tuple[list[str], list[str]]:
            piece, start = self._piece(inner, signal, index, g.hop)
            now = fresh | dict(zip(("level", "router"), carried, strict=True))
            heard, new = self.single.hear(inner, piece, now, "budget", inner.op("Sub", total, start))
            assert heard.choice is not None
            return [new["level"], new["router"]], [inner.op("Gather", inner.const(self.ufs), heard.choice)]

        count = s.const(g.early + 1, np.int64)
        _, (ufs,) = s.loop(count, [fresh["level"], fresh["router"]], turn)
        return self._asked(s, s.reshape(s.slice(ufs, g.early, g.early + 1), 1))

    def _piece(self, s: Scope, x: str, index: str, length: int) -> tuple[str, str]:
        """The ``index``-th samples of ``[1, n]``, and where they start (int64 ``[1]``)."""
        start = s.op("Mul", s.reshape(index, 1), s.ints(length))
        return s.op("Slice", x, start, s.op("Add", start, s.ints(length)), s.ints(1)), start

    def _asked(self, s: Scope, uf: str) -> str:
        """Position in the set of a UF ``[1]``, the next wider one where it is not in it."""
        narrower = s.op("Less", s.const([value + 1e-6 for value in self.ufs[:-1]]), uf)
        return str(s.op("ReduceSum", s.op("Cast", narrower, to=TensorProto.INT64), keepdims=1))

    def _choices(self) -> _Shapes:
        """Inputs that choose the UF."""
        return ({"uf": ["choices"]} if len(self.ufs) > 1 else {}) | ({"budget": [1]} if self.routed else {})

    def _model(
        self,
        s: Scope,
        inputs: _Shapes,
        outputs: _Shapes,
        results: Sequence[str],
        notes: Mapping[str, str],
    ) -> ModelProto:
        nodes = [*self.store.casts, *s.nodes]
        for name, result in zip(outputs, results, strict=True):
            nodes.append(helper.make_node("Identity", [result], [name], name=name))
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        if "samples" in inputs:
            infos.insert(1, helper.make_tensor_value_info("end", TensorProto.INT32, [1]))
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(nodes, "slimse", infos, values, list(self.store.tensors.values()))
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="slimse")
        helper.set_model_props(model, dict(notes))
        return model
