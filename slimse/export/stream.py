"""One call of a stream as ONNX nodes: from samples and states to samples and states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..config import ModelConfig
from ..model import SlimModel
from . import signal
from .builder import Scope
from .geometry import Geometry
from .layers import Layers

_LONGEST = 2**20
"""Frames up to which the clock of a stream runs: float32 counts them exactly, and nothing depends on more."""

States: TypeAlias = dict[str, str]
"""Names of the states, ``[1, n]`` each, by what they hold."""
_Parts: TypeAlias = dict[str, tuple[int, ...]]


def layout(geometry: Geometry, config: ModelConfig) -> dict[str, _Parts]:
    """What a stream keeps between calls: per state, the parts that lie in it one after the other, with their shapes."""
    g, c = geometry, geometry.config
    levels, reach, stride = range(1, c.depth + 1), g.reach, c.stride
    past: _Parts = {f"up{stage}": (signal.UP_BUFFER,) for stage in range(g.stages)}
    past |= {f"encoder{level}": (c.kernel_size - stride, c.channels(level - 1)) for level in levels}
    past |= {f"skip{level}": (g.rounds(level), c.channels(level)) for level in levels}
    after: _Parts = {
        f"tap{tap}.{level}": (tap, stride * c.channels(level - 1)) for level in levels for tap in range(1, reach)
    }
    # An odd number of samples that were ready makes the buffer one longer.
    before = [0, *(g.ready_down(stage) for stage in range(g.stages))]
    after |= {f"down{stage}": (signal.DOWN_BUFFER + before[stage] % 2,) for stage in range(g.stages)}
    states: dict[str, _Parts] = {
        "level": {"clock": (1, 1)},
        "encoder": past,
        "rnn": {"hidden": (1, c.channels(c.depth))},
        "decoder": after,
    }
    if config.level == "running":
        states["level"] |= {"sums": (1, 3), "gain": (1, g.first_samples - g.first_outputs)}
    if config.router is not None:
        states["router"] = {
            "context": (1, config.router.kernel_size - config.router.stride),
            "hidden": (1, config.router.units),
        }
    return {name: {part: shape for part, shape in parts.items() if np.prod(shape)} for name, parts in states.items()}


@dataclass(frozen=True)
class Heard:
    """What is known of the samples of a call before the network runs."""

    samples: str
    """Normalised, ``[1, n]``."""
    gain: str | None
    """Of the samples that come out now, ``[1, n]``."""
    clock: str
    """Frames since the start of the stream, ``[1, 1]``."""
    choice: str | None
    """Position of the UF in the set, int64 ``[frames]``; None where there is no router."""


class Stream:
    """Writes the calls of a stream.

    Args:
        model: what is exported.
        ufs: that the graph has.
        geometry: of the calls.
        routed: whether the router runs too.
    """

    def __init__(self, model: SlimModel, ufs: Sequence[float], geometry: Geometry, *, routed: bool) -> None:
        self.level, self.ufs, self.geometry, self.routed = model.config.level, list(ufs), geometry, routed
        self.config = geometry.config
        self.layers = Layers(model, geometry.config, shared=len(self.ufs) > 1)
        self.layout = layout(geometry, model.config)
        if not routed:
            self.layout.pop("router", None)

    def with_frames(self, frames: int) -> Stream:
        """The same with calls of another length, and the same states."""
        other = object.__new__(Stream)
        other.__dict__ |= self.__dict__ | {"geometry": replace(self.geometry, frames=frames)}
        return other

    def hear(
        self, s: Scope, samples: str, states: States, budget: str | None, valid: str | None
    ) -> tuple[Heard, States]:
        """Level and router on ``[1, n]`` samples; past ``valid`` of them (int64 ``[1]``) the signal has ended."""
        g, n = self.geometry, self.geometry.call
        parts = self.unpack(s, "level", states["level"])
        clock, gain, x = parts["clock"], None, samples
        if self.level == "running":
            position = s.op("Sub", s.op("Mul", clock, s.const(g.hop)), s.const(g.lead))
            rate, sums = self.config.sample_rate, parts["sums"]
            x, now, sums = signal.running_level(s, x, n, rate, sums, position)
            waiting = s.concat(parts["gain"], now, axis=1)
            length = self.layout["level"]["gain"][1]
            gain = s.slice(waiting, 0, n, axis=1)
            parts |= {"sums": sums, "gain": s.slice(waiting, n, n + length, axis=1)}
        if valid is not None:
            x = s.op("Where", s.op("Less", s.const(np.arange(n)[None], np.int64), valid), x, s.const(0))
        later = s.op("Min", s.op("Add", clock, s.const(g.frames)), s.const(_LONGEST))
        new = states | {"level": self.pack(s, "level", parts | {"clock": later})}
        choice = None
        if self.routed:
            assert budget is not None
            router = self.unpack(s, "router", states["router"])
            context, hidden = router["context"], router["hidden"]
            choice, context, hidden = self.layers.listen(s, x, g.frames, context, hidden, budget)
            hidden = s.op("Mul", hidden, self._started(s, clock))
            new["router"] = self.pack(s, "router", {"context": context, "hidden": hidden})
        return Heard(x, gain, clock, choice), new

    def run(
        self, s: Scope, heard: Heard, states: States, choice: str | None, left: str | None = None
    ) -> tuple[str, States]:
        """The network: output ``[1, n]`` and the new states.

        Args:
            s: where to write.
            heard: what `hear` gave.
            states: likewise.
            choice: position of the UF in ``ufs``, int64 ``[1]``; None if there is one alone.
            left: frames that come after, int64 ``[1]``, where the signal has ended.
        """
        names = ["encoder", "rnn", "decoder"]

        def network(inner: Scope, uf: float) -> list[str]:
            out, new = self._network(inner, uf, heard, states, left)
            return [out, *(new[name] for name in names)]

        out, *rest = self.branch(s, choice, network)
        new = dict(zip(names, rest, strict=True))
        # What frames before the signal leave behind is none of its past.
        started = self._started(s, heard.clock)
        new |= {name: s.op("Mul", new[name], started) for name in ("rnn", "decoder")}
        out = out if heard.gain is None else s.op("Mul", out, heard.gain)
        return out, states | new

    def branch(self, s: Scope, choice: str | None, build: Callable[[Scope, float], list[str]]) -> list[str]:
        """What ``build`` writes for the UF at a position in the set, int64 ``[1]``; one UF needs none."""

        def among(inner: Scope, ufs: list[float]) -> list[str]:
            if len(ufs) == 1:
                return build(inner, ufs[0])
            assert choice is not None
            half = len(ufs) // 2
            narrow = inner.op("Less", choice, inner.ints(self.ufs.index(ufs[half])))
            results = inner.choose(narrow, lambda s: among(s, ufs[:half]), lambda s: among(s, ufs[half:]))
            return [results] if isinstance(results, str) else list(results)

        return among(s, self.ufs)

    def tail(self, s: Scope, states: States, uf: float) -> str:
        """What is left once the last frame has run: ``[1, n]``."""
        c, g = self.config, self.geometry
        past, after = self.unpack(s, "encoder", states["encoder"]), self.unpack(s, "decoder", states["decoder"])
        x, positions = "", 0
        for level in range(c.depth, 0, -1):
            width = c.stride * c.channels(level - 1)
            taps: list[str] = []
            if positions:
                skip = s.slice(past[f"skip{level}"], 0, positions)
                taps = self.layers.decoder(s, level, uf, s.op("Add", x, skip))
            rows = positions + g.reach - 1
            if not rows:
                x = s.const(np.zeros(0))
                break
            total = "" if taps else s.const(np.zeros((rows, width)))
            for tap in range(g.reach):
                pieces = [after[f"tap{tap}.{level}"]] if tap else []
                pieces += [taps[tap]] if taps else []
                missing = rows - tap - positions
                pieces += [s.const(np.zeros((missing, width)))] if missing else []
                part = s.concat(*pieces)
                total = s.op("Add", total, part) if total else part
            # The bias came with the first tap, where that had positions.
            bias = np.repeat([[0.0], [1.0]], [positions, rows - positions], axis=0) * self.layers.row(level)
            x, positions = s.op("Add", total, s.const(bias)), rows * c.stride
            x = s.reshape(s.op("Relu", x) if level > 1 else x, positions, c.channels(level - 1))
        return self._last_samples(s, s.reshape(x, -1), positions, after, states)

    def _last_samples(self, s: Scope, x: str, count: int, after: Mapping[str, str], states: States) -> str:
        g, clock = self.geometry, self.unpack(s, "level", states["level"])["clock"]
        for stage in range(g.stages):
            buffered = self.layout["decoder"][f"down{stage}"][0]
            zeros, ready = signal.final_down(count, buffered)
            x = s.concat(after[f"down{stage}"], x, s.const(np.zeros(zeros)))
            x, count = signal.downsample(s, x, buffered + count + zeros, ready), ready
            rate = g.rate(0) // 2 ** (stage + 1)
            if stage < g.stages - 1 and g.silent_down(stage) > rate:
                x = signal.silence_before(s, x, count, clock, rate, g.early * rate + g.silent_down(stage))
        out = s.reshape(x, 1, count)
        if self.level != "running":
            return out
        gain = self.unpack(s, "level", states["level"])["gain"]
        return str(s.op("Mul", out, s.slice(gain, 0, count, axis=1)))

    def _network(self, s: Scope, uf: float, heard: Heard, states: States, left: str | None) -> tuple[str, States]:
        c, g = self.config, self.geometry
        past, after = self.unpack(s, "encoder", states["encoder"]), self.unpack(s, "decoder", states["decoder"])
        x, count = s.reshape(heard.samples, -1), g.call
        for stage in range(g.stages):
            x, past[f"up{stage}"] = signal.upsample(s, x, count, past[f"up{stage}"])
            count *= 2
            if stage < g.stages - 1:
                rate = count // g.frames
                x = signal.silence_before(s, x, count, heard.clock, rate, g.silent_up(stage))
                if left is not None:
                    x = signal.silence_after(s, x, count, left, rate, g.sounding_up(stage))
        x = s.reshape(x, count, 1)
        skips = {}
        for level in range(1, c.depth + 1):
            positions, name = g.rate(level) * g.frames, f"encoder{level}"
            x, kept = self.layers.encoder(s, level, uf, past.get(name), x, positions)
            skip, past[name] = x, kept
            if (waits := f"skip{level}") in past:
                joined = s.concat(past[waits], skip)
                skip = s.slice(joined, 0, positions)
                past[waits] = s.slice(joined, positions, positions + g.rounds(level))
            skips[level] = skip
        hidden = self.unpack(s, "rnn", states["rnn"])["hidden"]
        x, hidden = self.layers.bottleneck(s, x, g.frames, hidden)
        for level in range(c.depth, 0, -1):
            positions, taps = g.rate(level) * g.frames, self.layers.decoder(s, level, uf, s.op("Add", x, skips[level]))
            x = taps[0]
            for tap in range(1, g.reach):
                name = f"tap{tap}.{level}"
                joined = s.concat(after[name], taps[tap])
                x = s.op("Add", x, s.slice(joined, 0, positions))
                after[name] = s.slice(joined, positions, positions + tap)
            x = s.reshape(s.op("Relu", x) if level > 1 else x, positions * c.stride, c.channels(level - 1))
        x, count = s.reshape(x, -1), g.rate(0) * g.frames
        for stage in range(g.stages):
            buffered = self.layout["decoder"][f"down{stage}"][0]
            joined = s.concat(after[f"down{stage}"], x)
            x = signal.downsample(s, joined, buffered + count, count // 2)
            after[f"down{stage}"] = s.slice(joined, count, count + buffered)
            count //= 2
            if stage < g.stages - 1:
                rate = count // g.frames
                x = signal.silence_before(s, x, count, heard.clock, rate, g.early * rate + g.silent_down(stage))
        new = {"encoder": past, "decoder": after, "rnn": {"hidden": hidden}}
        return s.reshape(x, 1, count), {name: self.pack(s, name, parts) for name, parts in new.items()}

    def _started(self, s: Scope, clock: str) -> str:
        """1 where the frames of this call belong to the signal, else 0."""
        return str(s.op("Cast", s.op("Greater", clock, s.const(self.geometry.early - 0.5)), to=1))

    def unpack(self, s: Scope, name: str, state: str) -> dict[str, str]:
        """The parts of a state."""
        shapes = self.layout[name]
        pieces = s.split(state, *(int(np.prod(shape)) for shape in shapes.values()), axis=1)
        return {part: s.reshape(piece, *shapes[part]) for part, piece in zip(shapes, pieces, strict=True)}

    def pack(self, s: Scope, name: str, parts: Mapping[str, str]) -> str:
        """The inverse of `unpack`."""
        return s.concat(*(s.reshape(parts[part], 1, -1) for part in self.layout[name]), axis=1)
