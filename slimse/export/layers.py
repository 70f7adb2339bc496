"""Blocks of the network as ONNX nodes, for one stream: activations are ``[positions, channels]``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model import SlimModel
from ..networks import SlimDemucsConfig
from ..router import SHARPNESS, SOFT
from ..width import channels
from .builder import Scope

_FLOAT_LEVELS = 2
"""Levels whose products stay in float32 where the others are in int8."""


class Layers:
    """Writes the blocks of a model with the weights that one UF needs.

    Args:
        model: what is exported.
        config: of its network.
        shared: keep whole weights, from which each UF cuts its own in the graph; else store what ``ufs`` needs alone.
    """

    def __init__(self, model: SlimModel, config: SlimDemucsConfig, *, shared: bool) -> None:
        self.config, self.shared = config, shared
        self.weights = {
            name.removeprefix("network."): tensor.detach().float().cpu().numpy()
            for name, tensor in model.state_dict().items()
        }
        self.router = model.router

    def encoder(self, s: Scope, level: int, uf: float, buffer: str | None, x: str, positions: int) -> tuple[str, str]:
        """`EncoderBlock` on a buffer of ``K - S`` positions and new ones ``[S * positions, C_in]``.

        Returns:
            ``[positions, C]``, and the new buffer.
        """
        c, stride = self.config, self.config.stride
        full, k = self._sizes(level, uf)
        inputs, reach = c.channels(level - 1), c.kernel_size // stride
        x = s.concat(buffer, x) if buffer else x
        blocks = s.reshape(x, positions + reach - 1, stride * inputs)
        windows = s.concat(*(s.slice(blocks, tap, tap + positions) for tap in range(reach)), axis=1)
        name = f"encoder.{level - 1}"
        conv = self.weights[f"{name}.conv.weight"].transpose(0, 2, 1).reshape(1, full, -1)
        hidden = s.op("Relu", self._product(s, windows, f"{name}.conv", conv, outputs=k))
        glu = self.weights[f"{name}.glu.weight"][None, ..., 0]
        out = s.glu(self._product(s, hidden, f"{name}.glu", glu, inputs=k), full)
        kept = stride * (reach - 1)
        return out, s.slice(x, positions * stride, positions * stride + kept)

    def decoder(self, s: Scope, level: int, uf: float, x: str) -> list[str]:
        """`DecoderBlock` up to the overlap-add: per stride of the kernel, what ``[P, C]`` adds, ``[P, S * C_out]``.

        The first holds the bias too: it reaches each output once.
        """
        full, k = self._sizes(level, uf)
        name, reach = f"decoder.{level - 1}", self.config.kernel_size // self.config.stride
        glu = self.weights[f"{name}.glu.weight"][..., 0].reshape(2, full, full)
        hidden = s.glu(self._product(s, x, f"{name}.glu", glu, outputs=k), k)
        conv = self.weights[f"{name}.conv.weight"].transpose(2, 1, 0).reshape(1, -1, full)
        row = np.zeros((reach, conv.shape[1] // reach), np.float32)
        row[0] = self.row(level)
        out = self._product(s, hidden, f"{name}.conv", conv, row, inputs=k)
        return list(s.split(out, *[row.shape[1]] * reach, axis=1))

    def row(self, level: int) -> NDArray[np.float32]:
        """Bias of a decoder level for one stride of outputs: ``[S * C_out]``."""
        return np.tile(self.weights[f"decoder.{level - 1}.conv.bias"], self.config.stride)

    def bottleneck(self, s: Scope, x: str, frames: int, state: str) -> tuple[str, str]:
        """`GroupedGRU` on ``[frames, C]``, from ``[1, C]`` on."""
        groups, full = self.config.groups, self.config.channels(self.config.depth)
        size = full // groups
        outputs, states = [], []
        parts = s.split(s.reshape(x, frames, 1, full), *[size] * groups, axis=2)
        before = s.split(s.reshape(state, 1, 1, full), *[size] * groups, axis=2)
        for group, (part, h) in enumerate(zip(parts, before, strict=True)):
            arguments = [
                s.store.weight(f"bottleneck.{group}.{kind}", self._gates(group, kind), exact=kind == "bias")
                for kind in ("weight_ih", "weight_hh", "bias")
            ]
            out, h = s.op("GRU", part, *arguments, "", h, outputs=2, hidden_size=size, linear_before_reset=1)
            outputs.append(out)
            states.append(h)
        joined = s.concat(*outputs, axis=3)
        return s.reshape(joined, frames, full), s.reshape(s.concat(*states, axis=2), 1, full)

    def _gates(self, group: int, kind: str) -> NDArray[np.float32]:
        """Weights of a GRU in ONNX's order: update, reset, new; with a leading axis for its one direction."""

        def ordered(name: str) -> NDArray[np.float32]:
            reset, update, new = np.split(self.weights[f"bottleneck.{group}.{name}_l0"], 3)
            return np.concatenate([update, reset, new])[None]

        return np.concatenate([ordered("bias_ih"), ordered("bias_hh")], 1) if kind == "bias" else ordered(kind)

    def listen(self, s: Scope, x: str, frames: int, context: str, hidden: str, budget: str) -> tuple[str, str, str]:
        """`Router` on normalised samples ``[1, frames * hop]``: the position of each frame's UF in the set.

        Args:
            s: where to write.
            x: the samples.
            frames: of them.
            context: samples before them, ``[1, kernel_size - stride]``.
            hidden: state of the recurrent layer, ``[1, units]``.
            budget: ``[1]``.

        Returns:
            int64 ``[frames]``, and the new context and state.
        """
        router, w = self.router, self.weights
        assert router is not None
        taps, stride, units, hop = router.config.kernel_size, router.config.stride, router.config.units, router.hop
        signal = s.concat(context, x, axis=1)
        starts = np.arange(frames * hop // stride)[:, None] * stride
        windows = s.op("Gather", s.reshape(signal, -1), s.const(starts + np.arange(taps), np.int64))
        conv = (self._router(s, "conv.weight"), self._router(s, "conv.bias"))
        rectified = s.op("Relu", s.op("Gemm", windows, *conv, transB=1))
        bands = s.reshape(rectified, frames, hop // stride, router.config.filters)
        mean = s.op("ReduceMean", bands, s.ints(1), keepdims=0)
        levels = s.op("Mul", s.op("Log", s.op("Add", s.op("Div", mean, s.const(SOFT)), s.const(1))), s.const(0.25))
        asked = s.op("Exp", s.op("MatMul", self._knots(s, budget), s.const(np.log(w["router.calibrated_budgets"]))))
        knots = self._knots(s, asked)
        bias = s.op("MatMul", knots, self._router(s, "bias_ih"))
        width = s.op("MatMul", knots, s.const(w["router.bias_width"][:, None]))
        rows = s.op("Gemm", levels, self._router(s, "input.weight"), transB=1)
        gates = s.op("Add", rows, bias)
        outputs = []
        for gate in s.split(gates, *[1] * frames):
            hidden = self._unit(s, gate, hidden, units)
            outputs.append(hidden)
        own = s.op("Gemm", s.concat(*outputs), self._router(s, "output.weight"), transB=1)
        wanted = s.op("Add", own, width)
        distance = s.op("Sub", wanted, s.const(np.log2(self.config.ufs)[None]))
        logits = s.op("Mul", s.op("Mul", distance, distance), s.const(-SHARPNESS))
        choice = s.op("ArgMax", logits, axis=1, keepdims=0)
        kept = taps - stride
        return choice, s.slice(signal, frames * hop, frames * hop + kept, axis=1), hidden

    def _unit(self, s: Scope, gate: str, hidden: str, units: int) -> str:
        """One step of `diagonal_gru`: gates ``[1, 3 * units]`` and state ``[1, units]`` to the new state."""
        diagonal, bias = (self.weights[f"router.{name}"] for name in ("diagonal", "bias_hh"))
        recurrent = s.op("Add", s.op("Mul", s.const(diagonal), hidden), s.const(bias))
        total = s.op("Add", s.reshape(gate, 3, units), recurrent)
        reset, update, _ = s.split(s.op("Sigmoid", total), 1, 1, 1)
        _, _, own = s.split(s.reshape(gate, 3, units), 1, 1, 1)
        _, _, back = s.split(recurrent, 1, 1, 1)
        new = s.op("Tanh", s.op("Add", own, s.op("Mul", reset, back)))
        return str(s.op("Add", new, s.op("Mul", update, s.op("Sub", hidden, new))))

    def _knots(self, s: Scope, budget: str) -> str:
        """`Router.knot_weights` of one budget: ``[1, knots]``."""
        knots, least = self.router.config.knots, self.config.ufs[0]  # type: ignore[union-attr]
        octaves = s.op("Log", s.op("Div", budget, s.const(least)))
        place = s.op("Mul", octaves, s.const((knots - 1) / -np.log(least)))
        place = s.op("Clip", place, s.const(0), s.const(knots - 1))
        distance = s.op("Abs", s.op("Sub", s.reshape(place, 1, 1), s.const(np.arange(knots)[None])))
        return str(s.op("Max", s.op("Sub", s.const(1), distance), s.const(0)))

    def _router(self, s: Scope, name: str) -> str:
        """A weight of the router, whose decisions must not be rounded."""
        return s.store.weight(f"router.{name}", self.weights[f"router.{name}"], exact=True)

    def _sizes(self, level: int, uf: float) -> tuple[int, int]:
        """Channels of a level, and those that are active."""
        full = self.config.channels(level)
        return full, int(channels(uf, full))

    def _product(
        self,
        s: Scope,
        x: str,
        name: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None = None,
        *,
        outputs: int | None = None,
        inputs: int | None = None,
    ) -> str:
        """``x`` ``[P, in]`` times a weight, plus a bias: ``[P, parts * out]``.

        Args:
            s: where to write.
            x: value to multiply.
            name: of the layer.
            weight: ``[parts, out, in]``.
            bias: ``[parts, out]``, the layer's own if None.
            outputs: how many of ``out`` are active, None for all.
            inputs: how many of ``in`` are, and ``x`` has.
        """
        parts, full_out, full_in = weight.shape
        out, into = outputs or full_out, inputs or full_in
        bias = (self.weights[f"{name}.bias"] if bias is None else bias).reshape(parts, full_out)
        added = self._cut(s, f"{name}.bias", bias, (parts, out), -1)
        # The shallow levels are close to the waveform, of which 8 bits are too few; and they have few weights.
        if s.store.precision != "int8" or int(name.split(".")[1]) < _FLOAT_LEVELS:
            matrix = self._cut(s, f"{name}.weight", weight, (parts, out, into), parts * out, into)
            return str(s.op("Gemm", x, matrix, added, transB=1))
        # Of one UF alone, the largest of what it reads; of several, that of all.
        seen = weight if self.shared else weight[:, :out, :into]
        scale = np.maximum(np.abs(seen).max(2), 1e-12) / 127
        rounded = np.rint(seen / scale[..., None]).astype(np.int8).transpose(2, 0, 1)
        matrix = self._cut(s, f"{name}.int8", rounded, (into, parts, out), into, parts * out)
        scales = self._cut(s, f"{name}.scale", scale.astype(np.float32), (parts, out), -1)
        values, step, zero = s.op("DynamicQuantizeLinear", x, outputs=3)
        product = s.op("Cast", s.op("MatMulInteger", values, matrix, zero), to=1)
        return str(s.op("Add", s.op("Mul", product, s.op("Mul", scales, step)), added))

    def _cut(self, s: Scope, name: str, tensor: NDArray[Any], sizes: tuple[int, ...], *shape: int) -> str:
        """The leading ``sizes`` of a tensor, in another shape; one that UFs share is whole in the file."""
        exact = len(shape) == 1 or tensor.dtype == np.int8
        if not self.shared:
            return s.store.weight(name, tensor[tuple(map(slice, sizes))].reshape(shape), exact=exact)
        whole = s.store.weight(name, tensor, exact=exact)
        for axis, size in enumerate(sizes):
            whole = s.slice(whole, 0, size, axis) if size < tensor.shape[axis] else whole
        return s.reshape(whole, *shape)
