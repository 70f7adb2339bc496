"""Dynamic mixing: an endless, seeded supply of noisy and clean speech from folders of recordings.

Every item is a function of ``(seed, index)`` alone, so a run that is interrupted goes on with exactly the items it
would have seen, on any number of worker processes. What an item is made of is drawn here, as plain numbers; `Renderer`
makes signals of it, on any device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset

from .bank import Bank, Signal
from .rendering import NOISE, OCTAVES, SPEECH, SYNTHETIC, Plan, Renderer, Track, collate

SET_WEIGHTS = {"librispeech_tc100": 7.0, "picovoice_s2i": 0.2, "picovoice_wakeword": 0.2}
"""Of the sets of speech that the bundled weights are trained on. Read speech, with 223 of some 3,000 voices, makes a
third of the draws; files of few speakers without labels count less."""


_NO_CHANCES = ("snr_low", "snr_high", "level_low", "level_high", "set_weights")
"""Fields of a `Recipe` that are no chances."""


@dataclass(frozen=True)
class Recipe:
    """Chances and ranges of the mixing. Levels in dB, chances per item."""

    snr_low: float = -6.0
    snr_high: float = 18.0
    level_low: float = -60.0
    level_high: float = -15.0
    """RMS of the mixture, dBFS. It is lower where the peaks would clip."""
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
    device: float = 0.2
    """A microphone colours the mixture, or a loudspeaker the speech; the target keeps the colour."""
    offset: float = 0.1
    """The noisy signal has a constant offset of -20 to 10 dB of its RMS; the target has none."""
    silence: float = 0.08
    """Digital silence in both: at the beginning, up to half of it, or within, up to a third."""
    set_weights: Mapping[str, float] = field(default_factory=lambda: dict(SET_WEIGHTS))
    """Factor on the draws of a set of speech, by the name of its folder; 1 for the others."""
    jump: float = 0.2
    """The noise is 6 to 15 dB softer for half a second to a second and a half."""
    equalise: float = 0.3
    low_pass: float = 0.08
    """Speech and noise band-limited to 3 to 7 kHz."""

    def __post_init__(self) -> None:
        """Check that chances are chances, and ranges rise."""
        for low, high in (("snr_low", "snr_high"), ("level_low", "level_high")):
            if not getattr(self, low) <= getattr(self, high):
                found = f"mixing.{low} = {getattr(self, low)!r}, mixing.{high} = {getattr(self, high)!r}"
                raise ValueError(f"{found}: expected dB, rising")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name not in _NO_CHANCES and not 0 <= value <= 1:
                raise ValueError(f"mixing.{entry.name} = {value!r}: expected a chance from 0 to 1")
        for first, second in (("clean", "noise_only"), ("babble", "coloured")):
            if getattr(self, first) + getattr(self, second) > 1:
                raise ValueError(f"mixing.{first} and mixing.{second}: expected a sum of at most 1")


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
        devices: impulse responses of microphones and loudspeakers, possibly empty.
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
        devices: Sequence[Signal] = (),
    ) -> None:
        self.speech, self.noise, self.rooms, self.devices = speech, noise, rooms, devices
        self.length, self.size, self.seed, self.offset = length, size, seed, offset
        self.sample_rate = sample_rate
        self.recipe = recipe or Recipe()
        self.renderer = Renderer(speech.samples, noise.samples, rooms, devices)

    def __len__(self) -> int:
        """Number of items."""
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Item ``index``, counted from ``offset``."""
        noisy, clean = self.renderer(collate([self.plan(index)]))
        return noisy[0], clean[0]

    def plan(self, index: int) -> Plan:
        """What item ``index`` is made of."""
        rng = np.random.default_rng([self.seed, self.offset + index])
        recipe, length = self.recipe, self.length
        kind = rng.random()
        tracks = [self._speech(rng), *self._noise(rng)]
        edge = float("inf")
        if rng.random() < recipe.low_pass:
            edge = float(rng.uniform(3000, 7000)) / (self.sample_rate / 2)
        speech_device = noise_device = -1
        if self.devices and rng.random() < recipe.device:
            speech_device = int(rng.integers(len(self.devices)))
            noise_device = speech_device if rng.random() < 0.5 else -1
        devices = (speech_device, *(noise_device for _ in tracks[1:]))
        jump = (0, 0, 1.0)
        if rng.random() < recipe.jump:
            count = int(rng.uniform(0.5, 1.5) * self.sample_rate)
            start = int(rng.integers(max(length - count, 1)))
            jump = (start, start + count, float(10 ** (-rng.uniform(6, 15) / 20)))
        snr, level = rng.uniform(recipe.snr_low, recipe.snr_high), rng.uniform(recipe.level_low, recipe.level_high)
        offset = 0.0
        if rng.random() < recipe.offset:
            offset = float(rng.choice((-1, 1)) * 10 ** (rng.uniform(-20, 10) / 20))
        silence = (0, 0)
        if rng.random() < recipe.silence:
            leading = rng.random() < 0.5
            count = int(length * rng.uniform(0.02, 1 / 2 if leading else 1 / 3))
            start = 0 if leading else int(rng.integers(length - count))
            silence = (start, start + count)
        return Plan(
            length=length,
            tracks=[track._replace(edge=edge, device=device) for track, device in zip(tracks, devices, strict=True)],
            has_speech=not recipe.clean <= kind < recipe.clean + recipe.noise_only,
            has_noise=kind >= recipe.clean,
            snr=float(snr),
            level=float(level),
            jump=jump,
            offset=offset,
            silence=silence,
        )

    def _speech(self, rng: Generator) -> Track:
        recipe = self.recipe
        track = self._played(SPEECH, rng, rng.uniform(0.88, 1.14) if rng.random() < recipe.speed else 1.0)
        if rng.random() < recipe.equalise:
            track = track._replace(gains=self._tone(rng))
        return track._replace(room=self._room(rng, recipe.room))

    def _noise(self, rng: Generator) -> list[Track]:
        recipe = self.recipe
        kind = rng.random()
        if kind < recipe.babble:
            tracks = [self._played(SPEECH, rng, 1.0)._replace(role=NOISE) for _ in range(rng.integers(3, 7))]
            room = self._room(rng, 0.5)
            tracks = [track._replace(room=room) for track in tracks]
        elif kind < recipe.babble + recipe.coloured:
            # A spectrum of 1 / f^a in amplitude, a from 0 (white) to 1 (brown), slowly modulated.
            knots = tuple(10 ** (rng.uniform(-8, 8, 8) / 20))
            tracks = [
                Track(SYNTHETIC, NOISE, (), tilt=float(rng.uniform(0, 1)), seed=int(rng.integers(2**62)), knots=knots)
            ]
        else:
            tracks = [self._recorded(rng)]
        if rng.random() < recipe.second_noise:
            weight = float(rng.uniform(0.1, 1)) * len(tracks) ** 0.5
            tracks.append(self._recorded(rng)._replace(weight=weight))
        if rng.random() < recipe.equalise:
            gains = self._tone(rng)
            tracks = [track._replace(gains=gains) for track in tracks]
        return tracks

    def _recorded(self, rng: Generator) -> Track:
        """A stretch of noise."""
        speed = 1.5 ** rng.uniform(-1, 1) if rng.random() < self.recipe.noise_speed else 1.0
        return self._played(NOISE, rng, speed)._replace(backwards=bool(rng.random() < self.recipe.backwards))

    def _played(self, source: int, rng: Generator, speed: float) -> Track:
        """A stretch of a bank, ``speed`` times as fast."""
        bank = self.speech if source == SPEECH else self.noise
        pieces = bank.draw(rng, self.length if speed == 1 else int(self.length * speed) + 2)
        return Track(source, SPEECH if source == SPEECH else NOISE, tuple(pieces), speed=float(speed))

    def _room(self, rng: Generator, chance: float) -> int:
        """Number of a room, or -1."""
        return int(rng.integers(len(self.rooms))) if self.rooms and rng.random() < chance else -1

    @staticmethod
    def _tone(rng: Generator) -> tuple[float, ...]:
        """A random tone colour of up to 8 dB either way: dB at a knot per octave."""
        return tuple(rng.uniform(-8, 8, OCTAVES))
