"""Many signals at once: one pass of the network over a padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..model import SlimModel
from .enhance import Enhancer, Sound, bundled, dry_share, end_padding, enhance
from .files import check_rate
from .network import Array, Resampler, to_array


class KnownNetwork:
    """A network whose outputs are known already: an `Enhancer` adds what its rate cannot carry."""

    def __init__(self, output: Array, ufs: Array) -> None:
        self._output, self._ufs, self._given = output, ufs, 0

    def feed(self, chunk: Array) -> Array:
        """Take a chunk of what it ran on, give back what became of it."""
        start, self._given = self._given, self._given + chunk.shape[1]
        if self._given > self._output.shape[1]:
            raise ValueError("the signal is longer than the one that the network ran on: did it change meanwhile?")
        return self._output[:, start : self._given]

    def flush(self) -> Array:
        """Give back the rest."""
        return self._output[:, self._given :]

    def ufs(self) -> Array:
        """The UFs of its frames, ``[frames]``."""
        return self._ufs


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
    """Enhance mono signals of different lengths together, in one pass of the network.

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
    if shares_passes(network):
        known = run_together(signals, rate, network, uf, budget)
        for row, signal, each in zip(out, signals, known, strict=True):
            enhancer = Enhancer(each, rate, 1, dry=share, model_rate=network.sample_rate)
            row[: signal.shape[1]] = np.concatenate([enhancer.feed(signal), enhancer.flush()], axis=1)[0]
    else:
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


def shares_passes(model: SlimModel) -> bool:
    """Whether signals of different lengths can run in one pass.

    Not where what the model makes of a sample depends on the whole signal: padding would be a part of it.
    """
    return model.causal and model.config.level != "signal"


@torch.no_grad()
def run_together(
    signals: Sequence[Array], sample_rate: int, model: SlimModel, uf: float | None, budget: float | None
) -> list[KnownNetwork]:
    """Run a model that `shares_passes` on signals ``[1, n]`` in one pass; give what an `Enhancer` asks of each."""
    low = [_lowered(signal, sample_rate, model.sample_rate) for signal in signals]
    device = next(model.parameters()).device
    batch = torch.zeros(len(low), 1, max(signal.shape[1] for signal in low), device=device)
    for row, signal in zip(batch, low, strict=True):
        row[:, : signal.shape[1]] = torch.from_numpy(signal).to(device)
    width: float | Tensor = 1.0 if uf is None else uf
    if budget is not None:
        model.request(uf, budget, len(low))
        width = model.route(batch, budget)
    enhanced = to_array(model(batch, width))
    frames = model.geometry.frames(batch.shape[2])
    ufs = to_array(torch.as_tensor(width).expand(len(low), frames))
    return [
        KnownNetwork(out[:, :length], chosen[: model.geometry.frames(length)])
        for out, chosen, length in zip(enhanced, ufs, (signal.shape[1] for signal in low), strict=True)
    ]


def _lowered(signal: Array, rate: int, model_rate: int) -> Array:
    """The signal at the model's rate, ``[1, n]``, as an `Enhancer` hands it to the network."""
    padded = np.pad(signal, ((0, 0), (0, end_padding(rate, model_rate))))
    return Resampler(rate, model_rate, 1)(padded, last=True)
