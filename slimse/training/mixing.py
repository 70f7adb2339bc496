"""Dynamic mixing: an endless, seeded supply of noisy and clean speech from folders of recordings.

Every item is a function of ``(seed, index)`` alone, so a run that is interrupted goes on with exactly the items it
would have seen, on any number of worker processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

Signal = NDArray[np.float32]
AUDIO_SUFFIXES = {".flac", ".wav", ".ogg", ".opus", ".mp3"}


@dataclass(frozen=True)
class Bank:
    """Recordings held in memory as 16-bit integers, grouped by folder.

    A group's share of the draws is the root of its length times its number of folders (usually speakers): long
    collections of one voice do not drown short ones of many, or the network takes other voices for noise.
    """

    clips: list[NDArray[np.int16]]
    groups: list[NDArray[np.int64]]
    """Per group, indices into ``clips``."""
    weights: NDArray[np.float64]

    @classmethod
    def load(cls, folder: Path, sample_rate: int) -> Bank:
        """Read all audio below ``folder`` (mono: the first channel), resampled to ``sample_rate``.

        The groups are the folders directly below ``folder``, or the folder itself.

        Raises:
            ValueError: if there is none.
        """
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise ValueError(f"no audio files below {folder}")

        def read(path: Path) -> NDArray[np.int16]:
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
            audio = audio[:, 0] if rate == sample_rate else soxr.resample(audio[:, 0], rate, sample_rate)
            return np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)

        with ThreadPoolExecutor() as pool:
            clips = list(pool.map(read, files))
        names = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in files]
        groups = [np.array([i for i, n in enumerate(names) if n == name]) for name in sorted(set(names))]
        lengths = [sum(len(clips[i]) for i in group) for group in groups]
        folders = [len({files[i].parent for i in group}) for group in groups]
        weights = np.sqrt(np.array(lengths, dtype=np.float64) * folders)
        return cls(clips, groups, weights / weights.sum())

    def draw(self, rng: Generator, length: int) -> Signal:
        """A random stretch of ``length`` samples, out of one group; short clips follow each other after a pause."""
        group = self.groups[rng.choice(len(self.groups), p=self.weights)]
        out = np.zeros(length, dtype=np.float32)
        filled = 0
        while filled < length:
            clip = self.clips[group[rng.integers(len(group))]]
            start = rng.integers(max(len(clip) - length, 0) + 1) if filled == 0 else 0
            piece = clip[start : start + length - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece) + int(rng.integers(1600, 8000))
        return np.float32(1 / 32768) * out


def rms(x: Signal) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _filter(x: Signal, response: NDArray[np.float32]) -> Signal:
    """Apply a magnitude response given at ``len(response)`` equal steps from 0 Hz to half the rate (zero phase)."""
    spectrum = np.fft.rfft(x)
    grid = np.linspace(0, len(response) - 1, len(spectrum))
    return np.fft.irfft(spectrum * np.interp(grid, np.arange(len(response)), response), len(x)).astype(np.float32)


def _equalise(rng: Generator, x: Signal) -> Signal:
    """A random tone colour of up to 8 dB either way: a knot per octave, of the eight below half the rate."""
    gains = rng.uniform(-8, 8, 9)
    bins = np.linspace(0, 1, 513)[1:]
    octaves = np.interp(np.log2(bins), np.arange(-8, 1), gains)
    return _filter(x, (10 ** (np.concatenate([octaves[:1], octaves]) / 20)).astype(np.float32))


def _convolve(x: Signal, response: Signal) -> Signal:
    size = len(x) + len(response) - 1
    size = 1 << (size - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(response, size), size)[: len(x)].astype(np.float32)


def _coloured(rng: Generator, length: int) -> Signal:
    """Noise with a spectrum of 1 / f^a, a from 0 (white) to 2 (brown), slowly modulated."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length), 1 / 512)
    noise = np.fft.irfft(spectrum * frequency ** (-rng.uniform(0, 1)), length)
    knots = 10 ** (rng.uniform(-8, 8, 8) / 20)
    return (noise * np.interp(np.linspace(0, 7, length), np.arange(8), knots)).astype(np.float32)


@dataclass(frozen=True)
class Recipe:
    """Chances and ranges of the mixing. Levels in dB, chances per item."""

    snr_low: float = -6.0
    snr_high: float = 18.0
    level_low: float = -38.0
    level_high: float = -16.0
    clean: float = 0.04
    """Nothing but speech."""
    noise_only: float = 0.03
    babble: float = 0.15
    """The noise is 3 to 6 talkers from the training speech."""
    coloured: float = 0.1
    """The noise is synthetic."""
    second_noise: float = 0.2
    speed: float = 0.6
    """Speech played 0.88 to 1.14 times as fast, with its pitch: more speakers than there are."""
    noise_speed: float = 0.4
    """Recorded noise played 0.67 to 1.5 times as fast."""
    backwards: float = 0.3
    """Recorded noise played backwards."""
    room: float = 0.15
    """Speech in a room; the target keeps the room."""
    jump: float = 0.2
    """The noise is 6 to 15 dB softer for half a second to a second and a half."""
    equalise: float = 0.3
    low_pass: float = 0.08
    """Speech and noise band-limited to 3 to 7 kHz."""


class Mixer(Dataset[tuple[Tensor, Tensor]]):
    """Noisy and clean segments, each ``[1, length]`` float32.

    Args:
        speech, noise: banks to draw from.
        rooms: room impulse responses, possibly empty.
        length: samples per segment.
        size: number of items.
        seed: of the run.
        offset: index of the first item (how many a resumed run has used up).
        sample_rate: Hz.
        recipe: chances and ranges.
    """

    def __init__(
        self,
        speech: Bank,
        noise: Bank,
        rooms: Sequence[Signal],
        length: int,
        size: int,
        seed: int,
        offset: int = 0,
        sample_rate: int = 16_000,
        recipe: Recipe | None = None,
    ) -> None:
        self.speech, self.noise, self.rooms = speech, noise, rooms
        self.length, self.size, self.seed, self.offset = length, size, seed, offset
        self.sample_rate = sample_rate
        self.recipe = recipe or Recipe()

    def __len__(self) -> int:
        """Number of items."""
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Item ``index``, counted from ``offset``."""
        rng = np.random.default_rng([self.seed, self.offset + index])
        noisy, clean = self.mix(rng)
        return torch.from_numpy(noisy)[None], torch.from_numpy(clean)[None]

    def mix(self, rng: Generator) -> tuple[Signal, Signal]:
        """One noisy and clean segment from the draws of ``rng``."""
        recipe = self.recipe
        kind = rng.random()
        speech, noise = self._speech(rng), self._noise(rng)
        if rng.random() < recipe.low_pass:
            steps = 32
            edge = rng.uniform(3000, 7000) / (self.sample_rate / 2) * steps
            response = np.clip(edge - np.arange(steps + 1), 0, 1).astype(np.float32)
            speech, noise = _filter(speech, response), _filter(noise, response)
        if kind < recipe.clean:
            noise = np.zeros_like(noise)
        elif kind < recipe.clean + recipe.noise_only:
            speech = np.zeros_like(speech)
        else:
            # The level of speech is that of its louder parts: pauses must not make the noise quiet.
            active = np.sqrt(np.mean(np.square(speech.reshape(-1, self.length // 20)), axis=1))
            loud = float(np.sqrt(np.mean(np.square(active[active >= 0.1 * active.max()]))))
            snr = rng.uniform(recipe.snr_low, recipe.snr_high)
            noise *= loud / max(rms(noise), 1e-6) / 10 ** (snr / 20)
        noisy = speech + noise
        gain = 10 ** (rng.uniform(recipe.level_low, recipe.level_high) / 20) / max(rms(noisy), 1e-6)
        gain = min(gain, 0.99 / max(float(np.abs(noisy).max()), 1e-6))
        return noisy * np.float32(gain), speech * np.float32(gain)

    def _speech(self, rng: Generator) -> Signal:
        recipe = self.recipe
        speech = self._played(self.speech, rng, rng.uniform(0.88, 1.14) if rng.random() < recipe.speed else 1.0)
        if rng.random() < recipe.equalise:
            speech = _equalise(rng, speech)
        if self.rooms and rng.random() < recipe.room:
            speech = _convolve(speech, self.rooms[int(rng.integers(len(self.rooms)))])
        return speech

    def _played(self, bank: Bank, rng: Generator, speed: float) -> Signal:
        """A stretch of ``bank``, ``speed`` times as fast."""
        if speed == 1:
            return bank.draw(rng, self.length)
        drawn = bank.draw(rng, int(self.length * speed) + 64)
        return soxr.resample(drawn, self.sample_rate * speed, self.sample_rate, quality="LQ")[: self.length]

    def _recorded(self, rng: Generator) -> Signal:
        """A stretch of noise."""
        speed = 1.5 ** rng.uniform(-1, 1) if rng.random() < self.recipe.noise_speed else 1.0
        noise = self._played(self.noise, rng, speed)
        return noise[::-1] if rng.random() < self.recipe.backwards else noise

    def _noise(self, rng: Generator) -> Signal:
        recipe = self.recipe
        kind = rng.random()
        if kind < recipe.babble:
            talkers = [self.speech.draw(rng, self.length) for _ in range(rng.integers(3, 7))]
            noise: Signal = np.stack([talker / max(rms(talker), 1e-6) for talker in talkers]).sum(axis=0)
            if self.rooms and rng.random() < 0.5:
                noise = _convolve(noise, self.rooms[int(rng.integers(len(self.rooms)))])
        elif kind < recipe.babble + recipe.coloured:
            noise = _coloured(rng, self.length)
        else:
            noise = self._recorded(rng)
        if rng.random() < recipe.second_noise:
            other = self._recorded(rng)
            noise = noise / max(rms(noise), 1e-6) + other / max(rms(other), 1e-6) * rng.uniform(0.1, 1)
        if rng.random() < recipe.equalise:
            noise = _equalise(rng, noise)
        if rng.random() < recipe.jump:
            count = int(rng.uniform(0.5, 1.5) * self.sample_rate)
            start = int(rng.integers(max(self.length - count, 1)))
            noise = noise.copy()
            noise[start : start + count] *= 10 ** (-rng.uniform(6, 15) / 20)
        return np.asarray(noise, dtype=np.float32)


def load_rooms(folder: Path, sample_rate: int, seconds: float = 1.0) -> list[Signal]:
    """Room impulse responses below ``folder``, from their peak on, of unit energy, at most ``seconds`` long."""
    bank = Bank.load(folder, sample_rate)
    rooms = []
    for clip in bank.clips:
        response = clip.astype(np.float32)[int(np.abs(clip.astype(np.int32)).argmax()) :][: int(seconds * sample_rate)]
        response *= np.linspace(1, 0, len(response), dtype=np.float32)
        rooms.append(response / np.linalg.norm(response))
    return rooms
