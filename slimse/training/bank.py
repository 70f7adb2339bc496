"""Recordings in memory: speech by voice, noise by set, and impulse responses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

Signal = NDArray[np.float32]
UNLABELLED = "unlabelled"
"""Folder of files whose speakers are not known."""
DEVICES = "device"
"""Folder of impulse responses of loudspeakers and microphones, which colour and do not reverberate."""
AUDIO_SUFFIXES = {".flac", ".wav", ".ogg", ".opus", ".mp3"}


class Piece(NamedTuple):
    """A part of a clip, and where it is played."""

    source: int
    """First sample in `Bank.samples`."""
    start: int
    """First sample that it fills."""
    length: int


@dataclass(frozen=True)
class Bank:
    """Recordings held in memory as 16-bit integers, drawn by voice.

    The layout is ``set/voice/file``: sets are the folders directly below the bank's, voices the folders below a set.
    A file that lies in no voice's folder, or in one named ``unlabelled``, is a voice of its own. Noise has sets only.
    """

    samples: Tensor
    """All clips, one after the other: ``[samples]`` int16."""
    edges: NDArray[np.int64]
    """Where clips begin in ``samples``, and the end of the last."""
    groups: list[NDArray[np.int64]]
    """Per voice (or set), numbers of its clips."""
    weights: NDArray[np.float64]
    """Per group, the share of the draws that begin with it."""

    @classmethod
    def load(
        cls,
        folder: Path,
        sample_rate: int,
        *,
        voices: bool = False,
        set_weights: Mapping[str, float] | None = None,
        exclude: Collection[str] = (),
    ) -> Bank:
        """Read all audio below ``folder`` (mono: the first channel), resampled to ``sample_rate``.

        Args:
            folder: of the files.
            sample_rate: Hz.
            voices: draw voices, each as often as any other. Otherwise draw sets, in proportion to the root of their
                length times their number of folders.
            set_weights: factor on the draws of a set, by its name; 1 where it has none.
            exclude: names of folders to leave out, whatever their set.

        Raises:
            ValueError: if there is no audio, or a weight is negative.
        """
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        files = [path for path in files if not set(path.relative_to(folder).parts[:-1]) & set(exclude)]
        if not files:
            raise ValueError(f"no audio files below {folder}")
        with ThreadPoolExecutor() as pool:
            clips = list(pool.map(partial(_read_int16, sample_rate=sample_rate), files))
        parts = [path.relative_to(folder).parts for path in files]
        sets = [names[0] if len(names) > 1 else "" for names in parts]
        keys = [_voice(names) for names in parts] if voices else sets
        members: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            members.setdefault(key, []).append(index)
        groups = [np.array(members[key]) for key in sorted(members)]
        weights = np.ones(len(groups))
        if not voices:
            lengths = [sum(len(clips[i]) for i in group) for group in groups]
            folders = [len({files[i].parent for i in group}) for group in groups]
            weights = np.sqrt(np.array(lengths, dtype=np.float64) * folders)
        factors = dict(set_weights or {})
        if any(not factor >= 0 for factor in factors.values()):
            raise ValueError(f"set_weights = {factors}: expected numbers of 0 or more")
        weights = weights * [factors.get(sets[group[0]], 1.0) for group in groups]
        if not weights.sum() > 0:
            raise ValueError(f"set_weights = {factors}: expected a set of {sorted(set(sets))} with more than 0")
        return cls.of(clips, groups, weights / weights.sum())

    @classmethod
    def of(
        cls, clips: Sequence[NDArray[np.int16]], groups: list[NDArray[np.int64]], weights: NDArray[np.float64]
    ) -> Bank:
        """A bank of clips, ``[samples]`` each; see the attributes."""
        edges = np.cumsum([0, *map(len, clips)])
        return cls(torch.from_numpy(np.concatenate(clips)), edges, groups, weights)

    def draw(self, rng: Generator, length: int) -> list[Piece]:
        """A random stretch of ``length`` samples, out of one group; short clips follow each other after a pause."""
        group = self.groups[min(int(np.searchsorted(self._shares, rng.random(), "right")), len(self.groups) - 1)]
        pieces: list[Piece] = []
        filled = 0
        while filled < length:
            clip = int(group[rng.integers(len(group))])
            begin, end = int(self.edges[clip]), int(self.edges[clip + 1])
            spare = max(end - begin - length, 0)
            begin += int(rng.integers(spare + 1)) if not pieces else 0
            count = min(end - begin, length - filled)
            pieces.append(Piece(begin, filled, count))
            filled += count + int(rng.integers(1600, 8000))
        return pieces

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        return np.cumsum(self.weights)


def _voice(parts: tuple[str, ...]) -> str:
    """Name of the voice of a file, from the parts of its path below the bank's folder."""
    return "/".join(parts if len(parts) < 3 or UNLABELLED in parts else parts[:-1])


def _read_int16(path: Path, sample_rate: int) -> NDArray[np.int16]:
    """The first channel; what peaks above full scale, as Ogg Opus may, is brought down to it."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    audio = audio[:, 0] if rate == sample_rate else soxr.resample(audio[:, 0], rate, sample_rate)
    peak = float(np.abs(audio).max(initial=0))
    return np.round(audio * (32767 / max(peak, 1.0))).astype(np.int16)


def load_rooms(folder: Path, sample_rate: int, seconds: float = 1.0) -> list[Signal]:
    """Room impulse responses below ``folder`` but those of `DEVICES`.

    They start at their peak, have unit energy, and are at most ``seconds`` long. Empty if there are none.
    """
    rooms = []
    for response in _responses(folder, sample_rate, exclude=(DEVICES,)):
        response = response[int(np.abs(response).argmax()) :][: int(seconds * sample_rate)]
        response *= np.linspace(1, 0, len(response), dtype=np.float32)
        rooms.append(response / np.linalg.norm(response))
    return rooms


def load_devices(folder: Path, sample_rate: int, seconds: float = 0.1) -> list[Signal]:
    """Impulse responses of loudspeakers and microphones below ``folder / DEVICES``, of unit energy.

    What comes before the peak is a part of the colour, so it is kept: signals come up to some milliseconds later.
    """
    found = [response[: int(seconds * sample_rate)] for response in _responses(folder / DEVICES, sample_rate)]
    return [response / np.linalg.norm(response) for response in found]


def _responses(folder: Path, sample_rate: int, exclude: Collection[str] = ()) -> list[Signal]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    kept = sorted(path for path in files if not set(path.relative_to(folder).parts[:-1]) & set(exclude))
    return [_read_int16(path, sample_rate).astype(np.float32) for path in kept]
