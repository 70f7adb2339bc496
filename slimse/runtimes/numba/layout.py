"""Where everything lies in the flat arrays of the compiled network: field numbers, and the packing of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from ...networks.demucs import SlimDemucs
from ...nn import SlimLSTMStack
from ...nn.resample import LOOKAHEAD, TAPS, filter_taps
from .vector import LANES, WIDENS

if TYPE_CHECKING:
    from ...model import SlimModel

BLOCK = 64
"""Positions that one pass over the weights of a block serves."""

NARROW_UNITS = LANES // 2
ENC_CONV, ENC_GLU, DEC_GLU, DEC_CONV, NARROW, OF_LEVEL = range(6)
"""Level ``i`` has the matrices ``OF_LEVEL * (i - 1) + ENC_CONV`` and so on, the bottleneck what follows. NARROW has the
values and gates of the first NARROW_UNITS units of DEC_GLU in one vector."""
NO_LEVEL, GIVEN_LEVEL, SEEN_LEVEL, RUNNING_LEVEL = range(4)
"""What the numbers of a stream at ``level_at`` begin with; those of the level follow."""
DIVISOR, FACTOR = 8, 9
"""Where among them stands what input is divided by and output multiplied with."""
TAPS_AT, ZEROS_AT, CONST = 0, TAPS, TAPS + 64
"""Where filter taps, zeros and then the biases begin in ``const``."""
UP_COUNT, DOWN_COUNT, SAMPLES, PENDING, GAINS, COUNTERS = 0, 2, 4, 5, 6, 8
"""Counters of a stream: samples that wait in up to two stages, samples seen, samples pending, gains that wait."""
PICKED, TARGET, SLOTS = 0, BLOCK, 2 * BLOCK
"""Indices between two products: where the rows of a block are read, where they go, and the slot of each position."""


def _record(*names: str) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in names])


PLAN = np.dtype(
    [
        *_record(
            *("stages", "depth", "kernel", "stride", "hop", "first", "frames", "ufs", "groups", "units", "layers"),
            # In ``mem``, the memory of a stream, of so many numbers.
            *("size", "level_at", "up_at", "up_step", "down_at", "down_step", "rnn_at", "pending_at", "gain_at"),
            # In ``scratch``, which all streams share.
            *("sum_at", "hidden_at", "gates_at", "wide_at", "x_at", "rnn_x_at", "fir_at", "fir_step"),
            # Of the router: sizes, the state of a stream in ``mem``, weights in ``route``, logits in ``scratch``.
            *("taps", "filters", "router_stride", "router_units", "knots", "heard_at", "context", "hidden_units_at"),
            *("conv_at", "into_at", "diagonal_at", "bias_hh_at", "out_at", "bias_ih_at", "bias_width_at"),
            *("budgets_at", "calibrated_at", "octaves_at", "route_at", "logits_at"),
        ).descr,
        *[(name, np.float32) for name in ("floor", "rate_0", "rate_1", "rate_2")],
    ]
)
"""Sizes of a network, and where everything lies (``*_at``)."""
LEVEL = _record("rate", "lag", "step", "at", "tail_at")
"""Of a level, level 0 being the up-sampled signal: positions per frame, positions that wait, numbers from one position
to the next, and where they and the sums that await an overlap lie in ``mem``."""
MATRIX = _record("w_at", "bias_at", "scale_at", "step", "following", "group", "vectors")
"""Of a weight: its address, bias and scale in ``const``, numbers from one row to the next, from one vector of columns
to the next in a panel of four, and from panel to panel; vectors of columns."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def padded(channels: int) -> int:
    """``channels`` rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


def aligned(size: int, dtype: Any) -> NDArray[Any]:
    """Zeros that begin with a cache line: a vector that crosses two takes twice as long to read."""
    memory = np.zeros(size * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : len(memory) - 64 + start].view(dtype)


def demucs(model: SlimModel) -> SlimDemucs:
    """The network of a model that this runtime runs."""
    assert isinstance(model.network, SlimDemucs)
    return model.network


class Weights:
    """The flat weights of a model: packed once, read by all its streams.

    A weight is a matrix ``[inputs, outputs]`` in panels of one or four vectors of outputs, so that both kinds of prefix
    (outputs of a first product, inputs of a second one) read whole cache lines in the order in which they lie.

    Args:
        model: with a causal `SlimDemucs` in float32 on the CPU. Its weights are copied.
        kind: of the packed weights, even if it rounds them: ``"float32"``, ``"uint16"`` (float16) or ``"int8"`` (with
            a scale per output). None for float16 if that holds them all, as after loading from a file in half
            precision, and the CPU widens it in passing; else float32.
    """

    def __init__(self, model: SlimModel, kind: str | None = None) -> None:
        config = demucs(model).config
        self.kind: str = kind or ("uint16" if WIDENS and _fits_half(model) else "float32")
        self._weights: list[NDArray[Any]] = []
        self._biases: list[Floats] = []
        self._mats: list[tuple[int, ...]] = []
        self._w_at, self._const_at = 0, CONST
        self.channels = [config.channels(level) for level in range(config.depth + 1)]
        self.counts = np.array([[config.ufs.channels(uf, c) for uf in config.ufs] for c in self.channels], np.int64)
        for level in range(1, config.depth + 1):
            self._pack_level(model, level)
        self.units = padded(self.channels[-1] // config.groups if config.rnn == "gru" else self.channels[-1])
        self._pack_bottleneck(model)
        self.weights = aligned(self._w_at, self.kind)
        np.concatenate(self._weights, out=self.weights)
        self.mats = np.array(self._mats, MATRIX)
        self.mats["w_at"] = self.weights.ctypes.data + self.mats["w_at"] * self.weights.itemsize
        self.const = aligned(self._const_at, np.float32)
        self.const[TAPS_AT : TAPS_AT + TAPS] = filter_taps().float().numpy()
        np.concatenate(self._biases, out=self.const[CONST:])
        del self._weights, self._biases, self._mats

    def _add(self, matrix: torch.Tensor, bias: torch.Tensor, used: Sequence[int]) -> None:
        """Append ``[inputs, outputs]`` (outputs padded), its bias, and in which numbers of vectors it will be read."""
        inputs, outputs = matrix.shape
        vectors = outputs // LANES
        wide = 4 if all(count % 4 == 0 for count in (vectors, *used)) else 1
        panels = rearrange(matrix.detach(), "i (p l) -> p i l", l=wide * LANES).contiguous()
        scale_at = 0
        if self.kind == "int8" and inputs:
            scale = panels.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
            panels = (panels / scale).round().char()
            scale_at = self._keep(scale.reshape(-1))
        elif self.kind == "uint16":
            panels = panels.half().view(torch.uint16)
        flat = panels.numpy().reshape(-1).astype(self.kind, copy=False)
        step = wide * LANES
        following = LANES if wide == 4 else inputs * LANES
        bias_at = self._keep(bias)
        self._mats.append((self._w_at, bias_at, scale_at, step, following, inputs * LANES * 4, vectors))
        self._weights.append(flat)
        self._w_at += flat.size

    def _keep(self, numbers: torch.Tensor) -> int:
        """Append to ``const``; returns where."""
        at, self._const_at = self._const_at, self._const_at + len(numbers)
        self._biases.append(numbers.detach().numpy().astype(np.float32))
        return at

    def _pack_level(self, model: SlimModel, level: int) -> None:
        inputs, channels = self.channels[level - 1], self.channels[level]
        wide, outer = padded(channels), inputs if level == 1 else padded(inputs)
        vectors = [padded(int(count)) // LANES for count in self.counts[level]]
        network = demucs(model)
        encoder, decoder = network.encoder[level - 1], network.decoder[level - 1]

        conv = _pad(rearrange(encoder.conv_weight, "o (k i) -> k i o", i=inputs), outer, wide)
        self._add(rearrange(conv, "k i o -> (k i) o"), _pad(encoder.conv_bias, wide), vectors)
        glu = _pad(rearrange(encoder.glu_weight, "i (g o) -> i g o", g=2), 2, wide)
        self._add(_interleave(glu), _interleave(_pad(encoder.glu_bias.view(1, 2, -1), 2, wide))[0], [])

        glu = _pad(rearrange(decoder.glu_weight, "o g i -> i g o"), 2, wide)
        bias = _pad(decoder.glu_bias.t()[None], 2, wide)
        self._add(_interleave(glu), _interleave(bias)[0], [2 * count for count in vectors])
        used = len(glu) if min(self.counts[level]) <= NARROW_UNITS else 0
        narrow, narrow_bias = (x[:, :, :NARROW_UNITS].reshape(-1, LANES) for x in (glu[:used], bias))
        taps = _pad(rearrange(decoder.conv_weight, "o (k i) -> o k i", i=inputs), network.config.kernel_size, outer)
        flat = rearrange(taps, "o k i -> o (k i)")
        # Positions overlap, so the bias goes with the first stride of each alone.
        bias = _pad(decoder.conv_bias, outer).repeat(network.config.stride)
        columns = padded(flat.shape[1])
        self._add(_pad(flat, columns), _pad(bias, columns), [])
        self._add(narrow, narrow_bias[0], [])

    def _pack_bottleneck(self, model: SlimModel) -> None:
        bottleneck, units = demucs(model).bottleneck, self.units
        if not isinstance(bottleneck, SlimLSTMStack):
            for group in range(bottleneck.groups):
                for kind in ("ih", "hh"):
                    weight = bottleneck.get_parameter(f"weight_{kind}")[group]
                    matrix = _pad(rearrange(weight, "o g i -> i g o"), 3, units)
                    bias = _pad(bottleneck.get_parameter(f"bias_{kind}")[group].t(), units)
                    self._add(rearrange(matrix, "i g o -> i (g o)"), bias.reshape(-1), [])
            return
        for layer in range(bottleneck.lstm.num_layers):
            weights = [bottleneck.lstm.get_parameter(f"weight_{kind}_l{layer}") for kind in ("ih", "hh")]
            biases = [bottleneck.lstm.get_parameter(f"bias_{kind}_l{layer}") for kind in ("ih", "hh")]
            bias = _pad((biases[0] + biases[1]).t(), units)
            for weight in weights:
                matrix = _pad(rearrange(weight, "o g i -> i g o"), 4, units)
                self._add(_interleave(matrix), _interleave(bias[None])[0], [4])


def _fits_half(model: SlimModel) -> bool:
    """Whether float16 holds every weight of the layers exactly; biases are never kept in it."""
    network = demucs(model)
    layers = *network.encoder, *network.decoder, network.bottleneck
    parameters = (named for layer in layers for named in layer.named_parameters())
    return all("bias" in name or torch.equal(weight.half().float(), weight) for name, weight in parameters)


class Places:
    """Where a stream's state and what lies between two products go, in ``mem`` and ``scratch``.

    Args:
        model: the model.
        weights: its weights.
        frames: most frames of one pass over the levels; more if the end of a signal may need more.
        streams: streams that run together.
        ending: streams that end together.
    """

    def __init__(self, model: SlimModel, weights: Weights, frames: int, streams: int, ending: int) -> None:
        network, geometry = demucs(model), model.geometry
        config, frame_map = network.config, network.frame_map
        kernel, stride, depth, stages = config.kernel_size, config.stride, config.depth, len(network.up)
        hop, first = geometry.hop, geometry.first
        # The last frames of a signal run at once: those that waited for the look-ahead of the resampling.
        together, frames = frames, max(frames, 2 + (first - geometry.receptive) // hop)
        groups = config.groups if config.rnn == "gru" else 0
        self.plans, self.levels = np.zeros(1, PLAN), np.zeros(depth + 1, LEVEL)
        self._plan: Any = self.plans[0]
        self._set(stages=stages, depth=depth, kernel=kernel, stride=stride, hop=hop, first=first)
        self._set(frames=frames if streams == 1 else together, ufs=len(config.ufs), groups=groups)
        self._set(units=weights.units, layers=config.rnn_layers, floor=model.config.floor)
        self._set(**{f"rate_{index}": rate for index, rate in enumerate(model.level.rates)})

        mem, most = _Arena(), []
        full = 1 + first // hop
        gains = first + full * hop - geometry.emitted(full) + frames * hop
        self._set(level_at=mem.reserve(LANES), pending_at=mem.reserve(max(first, hop)))
        self._set(rnn_at=mem.reserve((groups or 2 * config.rnn_layers) * weights.units), gain_at=mem.reserve(gains))
        for level in range(depth + 1):
            rate = frame_map.positions_per_frame(level)
            lag = frame_map.first_span(level) - rate if level else kernel - stride
            step = padded(weights.channels[level]) if level else 1
            most.append(lag + frames * rate + (frame_map.first_span(0) if not level else 0))
            tail = mem.reserve((kernel - stride) * step + LANES)
            self.levels[level] = rate, lag, step, mem.reserve(most[level] * step), tail
        longest = TAPS + LOOKAHEAD + BLOCK + most[0]
        step = padded(longest + TAPS + 2 * LANES)
        self._set(up_step=step, up_at=mem.reserve(stages * step))
        self._set(down_step=step, down_at=mem.reserve((stages + 1) * step))

        rates = [int(rate) for rate in self.levels["rate"]]
        rows = [max(ending * count, streams * together * rate) for count, rate in zip(most, rates, strict=True)]
        steps = [int(step) for step in self.levels["step"]]
        columns = [0, *(int(weights.mats[OF_LEVEL * i + DEC_CONV]["vectors"]) * LANES for i in range(depth))]
        scratch, steady = _Arena(), max(ending * frames, streams * together)
        self._set(sum_at=scratch.reserve(BLOCK * max(kernel * max(steps[:-1]), max(steps))))
        self._set(hidden_at=scratch.reserve(BLOCK * max(steps)))
        gates = (steady + streams) * 4 * weights.units * max(groups, 1)
        self._set(gates_at=scratch.reserve(max(BLOCK * 2 * max(steps), gates)))
        self._set(wide_at=scratch.reserve(max(a * b for a, b in zip(rows[1:], columns[1:], strict=True))))
        self._set(x_at=scratch.reserve(max(a * b for a, b in zip(rows[1:], steps[1:], strict=True)) + LANES))
        self._set(rnn_x_at=scratch.reserve(steady * steps[-1] + streams * weights.units))
        self._set(fir_step=padded(longest + BLOCK), fir_at=scratch.reserve(2 * padded(longest + BLOCK)))
        self._place_router(model, mem, scratch, frames, steady)
        self._set(size=mem.size)
        self.scratch_size, self.index_size = scratch.size, SLOTS + max(rows[1:])

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self._plan[name] = value

    def _place_router(self, model: SlimModel, mem: _Arena, scratch: _Arena, frames: int, steady: int) -> None:
        """Pack its weights into ``route``, every table at a whole vector."""
        if model.router is None:
            self.route = np.zeros(LANES, np.float32)
            return
        router, units = model.router, padded(model.router.config.units)
        config, filters = router.config, padded(router.config.filters)
        context = config.kernel_size - config.stride
        hop = model.geometry.hop
        windows = hop // config.stride * frames
        self._set(taps=config.kernel_size, filters=filters, router_stride=config.stride, router_units=units)
        self._set(context=context, knots=config.knots, hidden_units_at=mem.reserve(units))
        self._set(heard_at=mem.reserve(context + model.geometry.first + (frames + 1) * hop))
        self._set(route_at=scratch.reserve(windows * filters + filters + 9 * units))
        self._set(logits_at=scratch.reserve(steady * len(model.ufs)))
        into = _pad(rearrange(router.input.weight, "(g u) i -> i g u", g=3), filters, 3, units)
        bias_ih = _pad(rearrange(router.bias_ih, "k (g u) -> k g u", g=3), 3, units)
        tables = {
            "conv_at": torch.cat([_pad(router.conv.bias, filters)[None], _pad(router.conv.weight.t(), filters)]),
            "into_at": into,
            "diagonal_at": _pad(router.diagonal, units),
            "bias_hh_at": _pad(router.bias_hh, units),
            "out_at": _pad(router.output.weight[0], units),
            "bias_ih_at": bias_ih,
            "bias_width_at": router.bias_width,
            "budgets_at": router.budgets,
            "calibrated_at": router.calibrated_budgets,
            "octaves_at": router.octaves,
        }
        arena = _Arena()
        self._set(**{name: arena.reserve(table.numel()) for name, table in tables.items()})
        self.route = np.zeros(arena.size, np.float32)
        for name, table in tables.items():
            self.route[int(self._plan[name]) :][: table.numel()] = table.detach().reshape(-1).numpy()


class _Arena:
    """Hands out parts of an array that start at whole vectors."""

    def __init__(self) -> None:
        self.size = 0

    def reserve(self, size: int) -> int:
        start, self.size = self.size, self.size + padded(size)
        return start


def _pad(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
    """Zeros behind the last axes until they have these sizes."""
    amounts: list[int] = []
    for have, size in zip(reversed(tensor.shape), reversed(sizes), strict=False):
        amounts += [0, size - have]
    return torch.nn.functional.pad(tensor.detach(), amounts)


def _interleave(tensor: torch.Tensor) -> torch.Tensor:
    """``[inputs, gates, units]`` to ``[inputs, gates * units]``: a vector of every gate, then the next units."""
    return rearrange(tensor, "i g (u l) -> i (u g l)", l=LANES)
