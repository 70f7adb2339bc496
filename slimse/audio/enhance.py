"""Enhancing sound of any rate, length and number of channels, in memory and from file to file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint import load
from ..model import SlimModel
from .files import FileInfo, check_rate, read_blocks, read_info, read_tags
from .network import Array, Network, Resampler, deviation, open_network, to_array
from .spectral import BandGain, Fifo, SharedMask
from .writing import AtomicWriter

Sound = TypeVar("Sound", Tensor, NDArray[np.floating])

BLOCK_SECONDS = 4.0
"""Sound, over all channels together, that the functions of this module hand to an `Enhancer` at a time."""


class Enhancer:
    """Enhance ``[channels, n]`` at any sample rate piece by piece, in memory that does not grow with the length.

    - The network runs at its own rate; resampling is by soxr, and everything is aligned with the input.
    - Several channels get *one* spectral mask, the least-squares fit to what the network made of each of them (see
      `SharedMask`): the stereo image stays as it is. One channel is the network's own output.
    - What the network's rate cannot carry, above 8 kHz, is the input's, lowered like the top of the network's band
      (see `BandGain`), not removed.

    Args:
        network: what enhances, from `open_network`.
        sample_rate: of input and output, Hz.
        channels: number of channels.
        dry: share of the input in the output, from 0 to 1; see `dry_share`.
        model_rate: the network's rate, Hz.

    Raises:
        ValueError: for values out of range.

    """

    def __init__(
        self, network: Network, sample_rate: int, channels: int = 1, *, dry: float = 0.0, model_rate: int = 16_000
    ) -> None:
        sample_rate = check_rate(sample_rate)
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels = {channels!r}: expected a positive integer")
        self.sample_rate, self.channels, self.dry = sample_rate, channels, dry_share(dry)
        self._network = network
        self._resamples = sample_rate != model_rate
        self._down = Resampler(sample_rate, model_rate, channels)
        self._up = Resampler(model_rate, sample_rate, 2 * channels)
        self._mask = SharedMask(channels) if channels > 1 else None
        self._gain = BandGain(sample_rate, model_rate)
        self._input, self._low, self._masked_low = Fifo(channels), Fifo(channels), Fifo(channels)
        self._risen = Fifo(2 * channels)
        self.padding = end_padding(sample_rate, model_rate)
        self.received = 0
        self.emitted = 0

    @property
    def buffered(self) -> int:
        """Samples, over all channels, that wait inside for their output; bounded for a causal model."""
        fifos = (self._input, self._low, self._masked_low, self._risen)
        return sum(fifo.data.size for fifo in fifos)

    def feed(self, x: Array) -> Array:
        """Take ``[channels, n]``, give back what is ready.

        Raises:
            ValueError: for another shape, or a sample that is not finite; the message has its time.

        """
        if x.ndim != 2 or x.shape[0] != self.channels:
            raise ValueError(f"x has shape {x.shape}: expected [{self.channels}, samples]")
        self._check_finite(x, self.received, "the signal holds {value} at {time:.4f} s (channel {channel}, from 0)")
        self.received += x.shape[1]
        return self._emit(np.ascontiguousarray(x, dtype=np.float32), last=False)

    def flush(self) -> Array:
        """End the signal and give back the rest; the outputs are as long as the inputs.

        Raises:
            ValueError: if no sample was fed.

        """
        if not self.received:
            raise ValueError("the signal is empty: expected 1 sample or more")
        return self._emit(np.zeros((self.channels, self.padding), np.float32), last=True)

    def _check_finite(self, x: Array, offset: int, message: str) -> None:
        finite = np.isfinite(x)
        if finite.all():
            return
        position = int(np.argmin(finite.all(axis=0)))
        channel = int(np.argmin(finite[:, position]))
        time = (offset + position) / self.sample_rate
        raise ValueError(message.format(value=x[channel, position], time=time, channel=channel))

    def _emit(self, x: Array, *, last: bool) -> Array:
        self._input.push(x)
        noisy, enhanced = self._enhance_low(self._down(x, last=last), last=last)
        if self._resamples:
            wet, original = self._add_rest(noisy, enhanced, last=last)
        else:
            wet, original = enhanced, self._input.pop(enhanced.shape[1])
        out = wet if self.dry == 0 else (1 - self.dry) * wet + self.dry * original
        out = np.asarray(out[:, : self.received - self.emitted], dtype=np.float32)
        self._check_finite(out, self.emitted, "the result is {value} at {time:.4f} s: the samples are out of range")
        self.emitted += out.shape[1]
        return out

    def _enhance_low(self, low: Array, *, last: bool) -> tuple[Array, Array]:
        """Run network and mask; return their aligned input and output, ``[channels, k]``, as far as ready."""
        self._low.push(low)
        estimate = self._network.feed(low)
        if last:
            estimate = np.concatenate([estimate, self._network.flush()], axis=1)
        noisy = self._low.pop(estimate.shape[1])
        if self._mask is None:
            return noisy, estimate
        self._masked_low.push(noisy)
        enhanced = self._mask.feed(noisy, estimate, last=last)
        return self._masked_low.pop(enhanced.shape[1]), enhanced

    def _add_rest(self, noisy: Array, enhanced: Array, *, last: bool) -> tuple[Array, Array]:
        """Back to the signal's rate, plus all that the way down and up again has lost; and the aligned input."""
        self._gain.feed(noisy, enhanced, last=last)
        self._risen.push(self._up(np.concatenate([noisy, enhanced]), last=last))
        # Lengths are rounded, so a sample more may come back than went in; it lies behind the end.
        ready = min(self._gain.ready(self._risen.popped), len(self._input))
        risen = self._risen.pop(ready)
        original = self._input.pop(risen.shape[1])
        gain = self._gain.at(self._risen.popped - risen.shape[1], risen.shape[1])
        lost = original - risen[: self.channels]
        return risen[self.channels :] + gain * lost, original


def end_padding(sample_rate: int, model_rate: int) -> int:
    """Samples of silence behind the end, cut off again: rounded lengths must not leave the output short of a sample."""
    return 2 + sample_rate // model_rate if sample_rate != model_rate else 0


def dry_share(dry: float | None = None, attenuation_limit: float | None = None) -> float:
    """Share of the input in the output.

    Args:
        dry: that share, 0 (all enhanced) to 1 (all input). None is 0.
        attenuation_limit: dB, 0 or more: noise is lowered by no more than this, the share being
            ``10 ** (-attenuation_limit / 20)``.

    Raises:
        ValueError: for values out of range, or both at once.

    """
    if attenuation_limit is None:
        share = 0.0 if dry is None else dry
        if not 0 <= share <= 1:
            raise ValueError(f"dry = {dry!r}: expected a number from 0 to 1")
        return float(share)
    if dry is not None:
        raise ValueError(f"dry = {dry!r} and attenuation_limit = {attenuation_limit!r}: expected one of them at most")
    if not attenuation_limit >= 0:
        raise ValueError(f"attenuation_limit = {attenuation_limit!r}: expected dB, 0 or more")
    return float(10 ** (-attenuation_limit / 20))


def block_length(sample_rate: int, channels: int) -> int:
    """Return the samples per channel of a block: `BLOCK_SECONDS` over all channels, at least 20 ms."""
    return max(1, math.ceil(sample_rate * max(BLOCK_SECONDS / channels, 0.02)))


def _needs_deviation(model: SlimModel) -> bool:
    """Whether the level of the whole signal has to be known before it can be streamed."""
    return model.config.level == "signal" and model.causal


@cache
def bundled(device: torch.device) -> SlimModel:
    """The bundled weights, loaded once."""
    return load(device=device)


def enhance(
    audio: Sound,
    sample_rate: int,
    uf: float | None = None,
    *,
    budget: float | None = None,
    model: SlimModel | None = None,
    dry: float | None = None,
    attenuation_limit: float | None = None,
) -> Sound:
    """Enhance a signal in memory; see `Enhancer` for what happens to several channels and above 8 kHz.

    Args:
        audio: numpy or torch, floating point, full scale 1: ``[samples]``, or ``[channels, samples]`` with the
            channels *first* (``soundfile.read`` gives them last: pass ``audio.T``).
        sample_rate: of ``audio`` and of the result, Hz.
        uf: one of the model's widths: smaller is faster, larger is better. Without UF and budget, 1.0.
        budget: target mean UF, averaged over a corpus, from the smallest width to 1: every 16 ms the model's router
            chooses a width, for all channels together.
        model: None for the bundled weights, on the device of a tensor, or on the CPU. A given model runs where it is.
        dry: share of the input in the result, 0 to 1.
        attenuation_limit: instead of ``dry``: noise is lowered by no more than so many dB.

    Returns:
        The enhanced signal, aligned with ``audio``, of its kind, shape, dtype and device. It carries no gradient.

    Raises:
        ValueError: for other shapes, integers, no samples, a sample that is not finite, or options out of range.

    >>> enhance(torch.randn(2, 4410), 44_100, 0.25, model=SlimModel("small")).shape
    torch.Size([2, 4410])

    """
    tensor = audio if isinstance(audio, Tensor) else torch.from_numpy(np.ascontiguousarray(audio))
    if not tensor.is_floating_point():
        raise ValueError(f"audio is {tensor.dtype}: expected floating point, full scale 1 (divide integers by theirs)")
    if tensor.ndim not in (1, 2) or tensor.numel() == 0:
        raise ValueError(f"audio has shape {tuple(tensor.shape)}: expected [samples] or [channels, samples], not empty")
    signal = to_array(tensor.detach()[None] if tensor.ndim == 1 else tensor.detach())
    channels, samples = signal.shape
    if channels > 8 and channels > samples:
        raise ValueError(
            f"audio has shape {tuple(tensor.shape)}: expected [channels, samples]; {channels} channels of {samples} "
            "samples look transposed"
        )
    model = bundled(tensor.device) if model is None else model
    out = _enhance_signal(signal, sample_rate, uf, budget, model, dry_share(dry, attenuation_limit))
    if isinstance(audio, Tensor):
        return torch.from_numpy(out).reshape(audio.shape).to(audio)
    return out.reshape(audio.shape).astype(audio.dtype, copy=False)


def _enhance_signal(
    signal: Array, sample_rate: int, uf: float | None, budget: float | None, model: SlimModel, dry: float
) -> Array:
    channels, samples = signal.shape
    step = block_length(sample_rate, channels)
    blocks = [signal[:, start : start + step] for start in range(0, samples, step)]
    std = None
    if _needs_deviation(model):
        std = deviation(blocks, sample_rate, channels, model.sample_rate)
    network = open_network(model, channels, uf, budget=budget, input_std=std)
    enhancer = Enhancer(network, sample_rate, channels, dry=dry, model_rate=model.sample_rate)
    pieces = [enhancer.feed(block) for block in blocks]
    return np.concatenate([*pieces, enhancer.flush()], axis=1)


class EnhancedFile(NamedTuple):
    """What `enhance_file` found."""

    ufs: Array
    """At which the frames ran, ``[frames]``."""
    seconds: float
    level: float
    """RMS of the input over all channels, dB below full scale."""
    enhanced_level: float


class _Level:
    """Sum of squares of a signal that comes in blocks."""

    def __init__(self) -> None:
        self.squares, self.count = 0.0, 0

    def add(self, block: Array) -> Array:
        self.squares += float(np.square(block, dtype=np.float64).sum())
        self.count += block.size
        return block

    def decibels(self) -> float:
        return 10 * math.log10(self.squares / self.count) if self.squares else -math.inf


def enhance_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    model: SlimModel | None = None,
    uf: float | None = None,
    *,
    budget: float | None = None,
    dry: float = 0.0,
    force: bool = False,
    progress: Callable[[float], object] | None = None,
) -> EnhancedFile:
    """Enhance one file into another, block by block.

    Rate, channels, length and tags are the input's; the format as in `writable_format`. Memory does not grow with the
    length, unless the model is bidirectional.

    Args:
        source: anything libsndfile reads.
        target: file to write; it appears when it is complete. Missing folders are made.
        model: network; its weights decide the device. None for the bundled weights on the CPU.
        uf: as in `enhance`.
        budget: as in `enhance`.
        dry: share of the input in the output, see `dry_share`.
        force: replace ``target`` if it exists.
        progress: called with the seconds of sound of each block that is done; may raise to stop.

    Returns:
        The UFs at which its frames ran, its length and levels.

    Raises:
        FileExistsError: if ``target`` exists, unless ``force``.
        ValueError: if the file cannot be read or written, or holds no, or no finite, samples; the message names it.

    """
    source = Path(source)
    model = bundled(torch.device("cpu")) if model is None else model
    opened = partial(open_for_file, source, model, uf, budget)
    return write_enhanced(source, Path(target), opened, model.sample_rate, dry=dry, force=force, progress=progress)


def open_for_file(source: Path, model: SlimModel, uf: float | None, budget: float | None, info: FileInfo) -> Network:
    """Open ``model`` for a file, whose level it measures first where the model needs that."""
    std = None
    if _needs_deviation(model):
        blocks = read_blocks(source, block_length(info.sample_rate, info.channels))
        std = deviation(blocks, info.sample_rate, info.channels, model.sample_rate)
    return open_network(model, info.channels, uf, budget=budget, input_std=std)


def write_enhanced(
    source: Path,
    target: Path,
    opened: Callable[[FileInfo], Network],
    model_rate: int,
    *,
    dry: float,
    force: bool,
    progress: Callable[[float], object] | None,
) -> EnhancedFile:
    """Write what a network makes of a file, as `enhance_file` tells.

    Args:
        source: file to read.
        target: file to write.
        opened: gives the network for a file of such a header.
        model_rate: the network's rate, Hz.
        dry: as of `enhance_file`.
        force: as of `enhance_file`.
        progress: as of `enhance_file`.
    """
    before, after = _Level(), _Level()
    info = read_info(source)
    step = block_length(info.sample_rate, info.channels)
    with AtomicWriter(target, info, tags=read_tags(source), force=force) as writer:
        network = opened(info)
        enhancer = Enhancer(network, info.sample_rate, info.channels, dry=dry, model_rate=model_rate)
        for block in read_blocks(source, step):
            writer.write(after.add(_named(source, enhancer.feed, before.add(block))))
            if progress is not None:
                progress(block.shape[1] / info.sample_rate)
        writer.write(after.add(_named(source, enhancer.flush)))
    seconds = enhancer.received / info.sample_rate
    return EnhancedFile(network.ufs(), seconds, before.decibels(), after.decibels())


def _named(source: Path, call: Callable[..., Array], *args: Array) -> Array:
    """Put the name of the file before the message of an error."""
    try:
        return call(*args)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
