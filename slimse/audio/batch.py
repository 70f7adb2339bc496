"""Many signals at once: one pass of the network over a padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..model import SlimModel
from .enhance import Enhancer, Sound, bundled, dry_share, enhance
from .files import check_rate
from .network import Array, Resampler, to_array


class _Known:
    """A network whose outputs are known already: an `Enhancer` adds what its rate cannot carry."""

    def __init__(self) -> None:
        self.output, self._given = np.zeros((1, 0), np.float32), 0

    def feed(self, chunk: Array) -> Array:
        start, self._given = self._given, self._given + chunk.shape[1]
        return self.output[:, start : self._given]

    def flush(self) -> Array:
        return self.output[:, self._given :]

    def ufs(self) -> Array:
        return np.zeros(0, np.float32)


def enhance_batch(
    audio: Sound,
    sample_rate: int,
    uf: float | None = None,
    *,
    lengths: Sequence[int] | Tensor | None = None,
    budget: float | None = None,
    model: SlimModel | None = None,
    dry: float | None = None,
) -> Sound:
    """Enhance mono signals of different lengths together; on a GPU that is much quicker than one by one.

    Every signal becomes what `enhance` makes of it alone, up to rounding; except for the last 50 ms of one that is
    shorter than ``T``, to which the frames behind its end contribute here. Resampling spreads that difference: before
    the last 50 ms it stays below 0.5 % of the peak. Sort signals by length before you make batches of them: what is
    padded is computed, too.

    Args:
        audio: ``[B, T]``, numpy or torch, floating point, full scale 1; what lies behind the end of a signal is
            ignored.
        sample_rate: of all of them, Hz.
        uf: as of `enhance`.
        lengths: samples of each signal, 1 to ``T``; None if all are ``T`` long.
        budget: as of `enhance`.
        model: as of `enhance`.
        dry: as of `enhance`.

    Returns:
        ``[B, T]`` of the kind, dtype and device of ``audio``, 0 behind the end of each signal.

    Raises:
        ValueError: for other shapes, integers, lengths out of range, a sample that is not finite, or as `enhance`.
    """
    rate, share = check_rate(sample_rate), dry_share(dry)
    tensor = audio if isinstance(audio, Tensor) else torch.from_numpy(np.ascontiguousarray(audio))
    if not tensor.is_floating_point() or tensor.ndim != 2 or tensor.numel() == 0:
        raise ValueError(
            f"audio is {tensor.dtype} of shape {tuple(tensor.shape)}: expected floating point of [signals, samples]"
        )
    ends = _checked_lengths(lengths, *tensor.shape)
    signals = [row[:end][None] for row, end in zip(to_array(tensor.detach()), ends, strict=True)]
    for index, signal in enumerate(signals):
        if not np.isfinite(signal).all():
            raise ValueError(f"audio[{index}] holds a sample that is not finite")
    network = bundled(tensor.device) if model is None else model
    out = np.zeros(tuple(tensor.shape), np.float32)
    if network.causal and network.config.level != "signal":
        known = [_Known() for _ in signals]
        enhancers = [Enhancer(each, rate, 1, dry=share, model_rate=network.sample_rate) for each in known]
        low = [_lowered(signal, rate, network.sample_rate, enhancers[0].padding) for signal in signals]
        for each, output in zip(known, _run(network, low, uf, budget), strict=True):
            each.output = output
        for row, signal, enhancer in zip(out, signals, enhancers, strict=True):
            row[: signal.shape[1]] = np.concatenate([enhancer.feed(signal), enhancer.flush()], axis=1)[0]
    else:
        # What such a model makes of a sample depends on the whole signal, and padding would be a part of it.
        for row, signal in zip(out, signals, strict=True):
            row[: signal.shape[1]] = enhance(signal[0], rate, uf, budget=budget, model=network, dry=share)
    if isinstance(audio, Tensor):
        return torch.from_numpy(out).to(audio)
    return out.astype(audio.dtype, copy=False)


def _checked_lengths(lengths: Sequence[int] | Tensor | None, signals: int, samples: int) -> list[int]:
    if lengths is None:
        return [samples] * signals
    found = [int(length) for length in lengths]
    if len(found) != signals or not all(1 <= length <= samples for length in found):
        raise ValueError(f"lengths = {found}: expected {signals} integers from 1 to {samples}")
    return found


def _lowered(signal: Array, rate: int, model_rate: int, padding: int) -> Array:
    """The signal at the model's rate, ``[1, n]``, as an `Enhancer` hands it to the network."""
    padded = np.pad(signal, ((0, 0), (0, padding)))
    return Resampler(rate, model_rate, 1)(padded, last=True)


@torch.no_grad()
def _run(model: SlimModel, signals: list[Array], uf: float | None, budget: float | None) -> list[Array]:
    """Outputs of signals ``[1, n]`` at the model's rate, in one pass."""
    longest = max(signal.shape[1] for signal in signals)
    device = next(model.parameters()).device
    batch = torch.zeros(len(signals), 1, longest, device=device)
    for row, signal in zip(batch, signals, strict=True):
        row[:, : signal.shape[1]] = torch.from_numpy(signal).to(device)
    enhanced = model(batch, uf, budget)
    return [to_array(row[:, : signal.shape[1]]) for row, signal in zip(enhanced, signals, strict=True)]
