"""Where everything lies in the flat arrays of the compiled network: field numbers, and the packing of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from ..networks.demucs import SlimDemucs
from ..nn import GroupedGRU, SlimLSTMStack
from ..nn.resample import LOOKAHEAD, TAPS, filter_taps
from .vector import LANES, WIDENS

if TYPE_CHECKING:
    from ..model import SlimModel

BLOCK = 64
"""Positions that one pass over the weights of a block serves."""

# Fields of ``shape``; ``*_AT`` are offsets in ``mem``, or in ``scratch`` from SUM_AT on.
STAGES, DEPTH, KERNEL, STRIDE, HOP, FIRST, FRAMES, UFS, GROUPS, UNITS, LAYERS = range(11)
LEVEL_AT, UP_AT, UP_STEP, DOWN_AT, DOWN_STEP, RNN_AT, PENDING_AT = range(11, 18)
SUM_AT, HIDDEN_AT, GATES_AT, WIDE_AT, X_AT, FIR_AT, FIR_STEP, GAIN_AT, SHAPE = range(18, 27)
# Fields of ``levels[i]``: level 0 is the up-sampled signal. STEP is the distance of two positions in ``mem``.
RATE, LAG, STEP, AT, TAIL_AT, LEVEL = range(6)
# Fields of ``mats[m]``. Level ``i`` has the matrices ``OF_LEVEL * (i - 1) + ENC_CONV`` and so on, the bottleneck what
# follows. NARROW has the values and gates of the first NARROW_UNITS units of DEC_GLU in one vector.
W_AT, BIAS_AT, W_STEP, W_NEXT, W_GROUP, VECTORS, MAT = range(7)
ENC_CONV, ENC_GLU, DEC_GLU, DEC_CONV, NARROW, OF_LEVEL = range(6)
NARROW_UNITS = LANES // 2
# What LEVEL_AT begins with; the numbers of the level follow.
NO_LEVEL, GIVEN_LEVEL, SEEN_LEVEL, RUNNING_LEVEL = range(4)
# Fields of ``const`` and where its filter taps, its zeros and then the biases begin.
FLOOR, RATES_AT, TAPS_AT, ZEROS_AT, CONST = 0, 1, 16, 16 + TAPS, 16 + TAPS + 64
# Fields of ``ints``: samples that wait per stage, samples seen, samples pending, gains that wait, then scratch.
UP_COUNT, DOWN_COUNT, SAMPLES, PENDING, GAINS, PICKED, TARGET, SLOTS = 0, 2, 4, 5, 6, 8, 8 + BLOCK, 8 + 2 * BLOCK

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def padded(channels: int) -> int:
    """``channels`` rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


def demucs(model: SlimModel) -> SlimDemucs:
    """The network of a model that this runtime runs."""
    assert isinstance(model.network, SlimDemucs)
    return model.network


class Weights:
    """The flat weights of a model: packed once, read by all its streams.

    A weight is a matrix ``[inputs, outputs]`` in panels of one or four vectors of outputs, so that both kinds of prefix
    (outputs of a first product, inputs of a second one) read whole cache lines in the order in which they lie.

    Args:
        model: a causal `SlimDemucs` in float32 on the CPU. Its weights are copied.
        half: keep the weights in float16 even if that rounds them. If it does not, as after loading from a file in half
            precision, they are kept so anyway, where the CPU widens them in passing.
    """

    def __init__(self, model: SlimModel, *, half: bool) -> None:
        config = demucs(model).config
        self._half = half or (WIDENS and _fits_half(model))
        self._weights: list[NDArray[Any]] = []
        self._biases: list[Floats] = []
        self._mats: list[list[int]] = []
        self._w_at, self._bias_at = 0, CONST
        self.channels = [config.channels(level) for level in range(config.depth + 1)]
        self.counts = np.array([[config.ufs.channels(uf, c) for uf in config.ufs] for c in self.channels], np.int64)
        for level in range(1, config.depth + 1):
            self._pack_level(model, level)
        self.units = padded(self.channels[-1] // config.groups if config.rnn == "gru" else self.channels[-1])
        self._pack_bottleneck(model)
        self.weights = np.concatenate(self._weights)
        taps = filter_taps().float().numpy()
        head = np.zeros(CONST, np.float32)
        head[FLOOR], head[RATES_AT : RATES_AT + 3], head[TAPS_AT : TAPS_AT + TAPS] = (
            model.config.floor,
            model.level.rates,
            taps,
        )
        self.const = np.concatenate([head, *self._biases])
        self.mats = np.array(self._mats, np.int64)
        del self._weights, self._biases, self._mats

    def _add(self, matrix: torch.Tensor, bias: torch.Tensor, used: Sequence[int]) -> None:
        """Append ``[inputs, outputs]`` (outputs padded), its bias, and in which numbers of vectors it will be read."""
        inputs, outputs = matrix.shape
        vectors = outputs // LANES
        wide = 4 if all(count % 4 == 0 for count in (vectors, *used)) else 1
        panels = rearrange(matrix.detach(), "i (p l) -> p i l", l=wide * LANES).contiguous()
        flat = panels.half().numpy().view(np.uint16) if self._half else panels.numpy()
        step = wide * LANES
        following = LANES if wide == 4 else inputs * LANES
        group = inputs * LANES * 4
        self._mats.append([self._w_at, self._bias_at, step, following, group, vectors])
        self._weights.append(flat.reshape(-1))
        self._w_at += flat.size
        self._biases.append(bias.detach().numpy().astype(np.float32))
        self._bias_at += len(bias)

    def _pack_level(self, model: SlimModel, level: int) -> None:
        inputs, channels = self.channels[level - 1], self.channels[level]
        wide, outer = padded(channels), inputs if level == 1 else padded(inputs)
        vectors = [padded(int(count)) // LANES for count in self.counts[level]]
        encoder, decoder = demucs(model).encoder[level - 1], demucs(model).decoder[level - 1]

        conv = _pad(rearrange(encoder.conv_weight, "o (k i) -> k i o", i=inputs), outer, wide)
        self._add(rearrange(conv, "k i o -> (k i) o"), _pad(encoder.conv_bias, wide), vectors)
        glu = _pad(rearrange(encoder.glu_weight, "i (g o) -> i g o", g=2), 2, wide)
        self._add(_interleave(glu), _interleave(_pad(encoder.glu_bias.view(1, 2, -1), 2, wide))[0], [])

        glu = _pad(rearrange(decoder.glu_weight, "o g i -> i g o"), 2, wide)
        bias = _pad(decoder.glu_bias.t()[None], 2, wide)
        self._add(_interleave(glu), _interleave(bias)[0], [2 * count for count in vectors])
        used = len(glu) if min(self.counts[level]) <= NARROW_UNITS else 0
        narrow, narrow_bias = (x[:, :, :NARROW_UNITS].reshape(-1, LANES) for x in (glu[:used], bias))
        taps = _pad(
            rearrange(decoder.conv_weight, "o (k i) -> o k i", i=inputs), demucs(model).config.kernel_size, outer
        )
        flat = rearrange(taps, "o k i -> o (k i)")
        # Positions overlap, so the bias goes with the first stride of each alone.
        bias = _pad(decoder.conv_bias, outer).repeat(demucs(model).config.stride)
        columns = padded(flat.shape[1])
        self._add(_pad(flat, columns), _pad(bias, columns), [])
        self._add(narrow, narrow_bias[0], [])

    def _pack_bottleneck(self, model: SlimModel) -> None:
        bottleneck, units = demucs(model).bottleneck, self.units
        if isinstance(bottleneck, GroupedGRU):
            for group in range(bottleneck.groups):
                for kind in ("ih", "hh"):
                    weight = bottleneck.get_parameter(f"weight_{kind}")[group]
                    matrix = _pad(rearrange(weight, "o g i -> i g o"), 3, units)
                    bias = _pad(bottleneck.get_parameter(f"bias_{kind}")[group].t(), units)
                    self._add(rearrange(matrix, "i g o -> i (g o)"), bias.reshape(-1), [])
            return
        assert isinstance(bottleneck, SlimLSTMStack)
        for layer in range(bottleneck.lstm.num_layers):
            weights = [bottleneck.lstm.get_parameter(f"weight_{kind}_l{layer}") for kind in ("ih", "hh")]
            biases = [bottleneck.lstm.get_parameter(f"bias_{kind}_l{layer}") for kind in ("ih", "hh")]
            bias = _pad((biases[0] + biases[1]).t(), units)
            for weight in weights:
                matrix = _pad(rearrange(weight, "o g i -> i g o"), 4, units)
                self._add(_interleave(matrix), _interleave(bias[None])[0], [4])


def _fits_half(model: SlimModel) -> bool:
    """Whether float16 holds every weight of the layers exactly; biases are never kept in it."""
    layers = *demucs(model).encoder, *demucs(model).decoder, demucs(model).bottleneck
    parameters = (named for layer in layers for named in layer.named_parameters())
    return all("bias" in name or torch.equal(weight.half().float(), weight) for name, weight in parameters)


class Places:
    """Where a stream's state and what lies between two products go, in ``mem`` and ``scratch``.

    Args:
        model: the model.
        weights: its weights.
        frames: most frames of one pass over the levels; more if the end of a signal may need more.
        streams: streams that share ``scratch`` in a common tick.
    """

    def __init__(self, model: SlimModel, weights: Weights, frames: int, streams: int = 1) -> None:
        config, frame_map = demucs(model).config, demucs(model).frame_map
        kernel, stride, depth, stages = config.kernel_size, config.stride, config.depth, len(demucs(model).up)
        # The last frames of a signal run at once: those that waited for the look-ahead of the resampling.
        frames = max(frames, 2 + (model.geometry.first - model.geometry.span(1)) // model.geometry.hop)
        shape, levels = np.zeros(SHAPE, np.int64), np.zeros((depth + 1, LEVEL), np.int64)
        groups = config.groups if config.rnn == "gru" else 0
        shape[[STAGES, DEPTH, KERNEL, STRIDE, HOP]] = stages, depth, kernel, stride, model.geometry.hop
        shape[[FIRST, FRAMES, UFS]] = model.geometry.first, frames, len(config.ufs)
        shape[[GROUPS, UNITS, LAYERS]] = groups, weights.units, config.rnn_layers
        mem, scratch, most = _Arena(), _Arena(), []
        shape[LEVEL_AT] = mem.reserve(LANES)
        shape[RNN_AT] = mem.reserve((groups or 2 * config.rnn_layers) * weights.units)
        shape[PENDING_AT] = mem.reserve(max(model.geometry.first, model.geometry.hop))
        full = 1 + model.geometry.first // model.geometry.hop
        shape[GAIN_AT] = mem.reserve(
            model.geometry.first
            + full * model.geometry.hop
            - model.geometry.emitted(full)
            + frames * model.geometry.hop
        )
        for level in range(depth + 1):
            rate = frame_map.positions_per_frame(level)
            lag = frame_map.first_span(level) - rate if level else kernel - stride
            step = padded(weights.channels[level]) if level else 1
            most.append(lag + frames * rate + (frame_map.first_span(0) if not level else 0))
            tail = mem.reserve((kernel - stride) * step + LANES)
            levels[level] = rate, lag, step, mem.reserve(most[level] * step), tail
        longest = TAPS + LOOKAHEAD + BLOCK + most[0]
        shape[UP_STEP] = shape[DOWN_STEP] = padded(longest + TAPS + 2 * LANES)
        shape[UP_AT] = mem.reserve(stages * int(shape[UP_STEP]))
        shape[DOWN_AT] = mem.reserve((stages + 1) * int(shape[DOWN_STEP]))

        rows = [max(count, streams * frame_map.positions_per_frame(level)) for level, count in enumerate(most)]
        steps = [int(step) for step in levels[:, STEP]]
        columns = [0, *(int(weights.mats[OF_LEVEL * i + DEC_CONV, VECTORS]) * LANES for i in range(depth))]
        shape[SUM_AT] = scratch.reserve(BLOCK * max(kernel * max(steps[:-1]), max(steps)))
        shape[HIDDEN_AT] = scratch.reserve(BLOCK * max(steps))
        shape[GATES_AT] = scratch.reserve(
            max(BLOCK * 2 * max(steps), (frames + streams) * 8 * weights.units * max(groups, 1))
        )
        # Also inputs and states of a group of the GRU, for all streams of a batch.
        gathered = streams * (steps[depth] + weights.units)
        shape[WIDE_AT] = scratch.reserve(max(gathered, *(a * b for a, b in zip(rows[1:], columns[1:], strict=True))))
        shape[X_AT] = scratch.reserve(max(a * b for a, b in zip(rows[1:], steps[1:], strict=True)) + LANES)
        shape[FIR_STEP] = padded(longest + BLOCK)
        shape[FIR_AT] = scratch.reserve(2 * int(shape[FIR_STEP]))
        self.mem_size, self.scratch_size, self.int_size = mem.size, scratch.size, SLOTS + max(most[1:])
        self.shared_int_size = SLOTS + max(rows[1:])
        self.shape, self.levels = shape, levels


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
