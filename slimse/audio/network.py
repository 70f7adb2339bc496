"""What stands between sound of any rate and a model: running it on channels, resampling, levels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model import SlimModel
from ..streaming import Streamer

Array = NDArray[np.float32]

_QUALITY = "HQ"


class Network(Protocol):
    """What an `Enhancer` asks of the model: outputs aligned with the inputs, as many in the end as went in."""

    def feed(self, chunk: Array) -> Array:
        """Take ``[channels, n]`` at the model's rate, give back what is ready."""

    def flush(self) -> Array:
        """Give back the rest."""

    def ufs(self) -> Array:
        """The UFs of the frames so far, which all channels share: ``[frames]``."""


class _CausalNetwork:
    def __init__(
        self, model: SlimModel, channels: int, uf: float | None, budget: float | None, input_std: Tensor | None
    ) -> None:
        self._device = next(model.parameters()).device
        std = None if input_std is None else input_std.to(self._device)
        # One decision for all channels, or their quality would change against each other.
        self._streamer = Streamer(model, uf, budget=budget, streams=channels, shared=True, input_std=std)
        self._ufs: list[Array] = []

    def feed(self, chunk: Array) -> Array:
        return self._note(self._streamer.feed(torch.from_numpy(chunk).to(self._device)))

    def flush(self) -> Array:
        return self._note(self._streamer.flush())

    def ufs(self) -> Array:
        return np.concatenate(self._ufs) if self._ufs else np.zeros(0, np.float32)

    def _note(self, out: Tensor) -> Array:
        self._ufs.append(to_array(self._streamer.ufs[0]))
        return to_array(out)


class _BidirectionalNetwork:
    """Keeps all that comes in: the model needs the whole signal."""

    def __init__(self, model: SlimModel, channels: int, uf: float) -> None:
        self._model, self._uf = model, model.ufs.validate(uf)
        self._chunks: list[Array] = []
        self._none = np.zeros((channels, 0), np.float32)

    def feed(self, chunk: Array) -> Array:
        self._chunks.append(chunk)
        return self._none

    def flush(self) -> Array:
        signal = np.concatenate([self._none, *self._chunks], axis=1)
        if not signal.shape[1]:
            return signal
        with torch.no_grad():
            noisy = torch.from_numpy(signal).to(next(self._model.parameters()).device).unsqueeze(1)
            # One channel after the other: the network's activations are many times the size of the signal.
            return np.concatenate([to_array(self._model(row.unsqueeze(0), self._uf)[0]) for row in noisy])

    def ufs(self) -> Array:
        samples = sum(chunk.shape[1] for chunk in self._chunks)
        return np.full(self._model.geometry.frames(samples) if samples else 0, self._uf, np.float32)


def to_array(tensor: Tensor) -> Array:
    """Copy to the CPU, as float32."""
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float32)


def open_network(
    model: SlimModel,
    channels: int = 1,
    uf: float | None = None,
    *,
    budget: float | None = None,
    input_std: Tensor | None = None,
) -> Network:
    """Run ``model`` on ``channels`` channels, all at the same width.

    Args:
        model: its weights decide the device.
        channels: number of channels.
        uf: one of the model's widths. Without UF and budget, 1.0.
        budget: target mean UF, averaged over a corpus: the router chooses, for all channels together.
        input_std: ``[channels, 1]``, needed by a causal model with ``level = "signal"``; see `deviation`.

    Raises:
        ValueError: for a UF outside the set, a budget without a router, or both at once.

    """
    if not model.causal and budget is None:
        return _BidirectionalNetwork(model, channels, 1.0 if uf is None else uf)
    return _CausalNetwork(model, channels, uf, budget, input_std)


class Resampler:
    """soxr, whose streams neither delay nor shift: all outputs in a row are what one call on the whole would give."""

    def __init__(self, source: int, target: int, channels: int) -> None:
        self._stream = None
        if source != target:
            self._stream = soxr.ResampleStream(source, target, channels, dtype="float32", quality=_QUALITY)

    def __call__(self, x: Array, *, last: bool) -> Array:
        """Take ``[channels, n]``, give back what is ready; ``last`` ends the signal."""
        if self._stream is None:
            return x
        return np.ascontiguousarray(self._stream.resample_chunk(np.ascontiguousarray(x.T), last=last).T)


def deviation(blocks: Iterable[Array], sample_rate: int, channels: int, model_rate: int) -> Tensor:
    """Return the standard deviation of every channel at the model's rate, which models with ``level = "signal"`` need.

    Args:
        blocks: the signal in pieces ``[channels, n]``.
        sample_rate: of the signal, Hz.
        channels: number of channels.
        model_rate: the model's rate, Hz.

    Returns:
        ``[channels, 1]``, 0 where there are fewer than two samples.

    """
    down = Resampler(sample_rate, model_rate, channels)
    total, squares, count = np.zeros(channels), np.zeros(channels), 0

    def add(block: Array, *, last: bool) -> None:
        nonlocal count
        low = down(block, last=last).astype(np.float64)
        total[:] += low.sum(1)
        squares[:] += np.square(low).sum(1)
        count += low.shape[1]

    for block in blocks:
        add(block, last=False)
    add(np.zeros((channels, 0), np.float32), last=True)
    if count < 2:
        return torch.zeros(channels, 1)
    variance = np.maximum(squares - total**2 / count, 0) / (count - 1)
    return torch.from_numpy(np.sqrt(variance)).float().unsqueeze(1)
