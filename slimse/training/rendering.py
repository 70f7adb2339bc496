"""Mixtures from plans: the arithmetic of `Mixer`, for a batch at a time, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .bank import Piece, Signal

SPEECH, NOISE, SYNTHETIC = 0, 1, 2
"""What a track is played from, and (the first two) what it is a part of."""
OCTAVES = 9
"""Knots of a tone colour, an octave apart, the last at half the rate."""
_TAPS = 16
"""Samples that play at another speed looks at: half before, half behind."""
_PEAK = 0.99


class Track(NamedTuple):
    """A signal that goes into an item. Lengths are in samples, frequencies in units of half the rate."""

    source: int
    role: int
    pieces: tuple[Piece, ...]
    speed: float = 1.0
    backwards: bool = False
    weight: float = 1.0
    """Of noise: amplitude beside the other tracks, all brought to one level."""
    gains: tuple[float, ...] = (0.0,) * OCTAVES
    """Tone colour, dB."""
    edge: float = math.inf
    """Where a low pass begins to fall."""
    tilt: float = 0.0
    """Exponent a of a spectrum of 1 / f^a."""
    room: int = -1
    device: int = -1
    seed: int = 0
    """Of synthetic noise."""
    knots: tuple[float, ...] = (1.0,) * 8
    """Gains over time, evenly spaced."""


class Plan(NamedTuple):
    """All that was drawn for an item."""

    length: int
    tracks: list[Track]
    has_speech: bool
    has_noise: bool
    snr: float
    """dB, against `speech_level`."""
    level: float
    """RMS of the mixture, dBFS."""
    jump: tuple[int, int, float]
    """Where the noise is softer, and by which factor."""
    offset: float
    """Constant part of the noisy signal, in units of its RMS."""
    silence: tuple[int, int]
    """Where both are digital silence."""


class Batch(NamedTuple):
    """Plans of ``B`` items with ``R`` tracks in all, as tensors on the CPU."""

    length: int
    owner: Tensor
    """``[R]``: the item that a track belongs to."""
    source: Tensor
    role: Tensor
    pieces: Tensor
    """``[R, K, 3]``, see `Piece`; those of no length fill up."""
    speed: Tensor
    backwards: Tensor
    weight: Tensor
    gains: Tensor
    """``[R, OCTAVES]``."""
    edge: Tensor
    tilt: Tensor
    room: Tensor
    device: Tensor
    seed: Tensor
    knots: Tensor
    """``[R, 8]``."""
    has_speech: Tensor
    """``[B]``, as are the next three."""
    has_noise: Tensor
    snr: Tensor
    level: Tensor
    jump: Tensor
    """``[B, 3]``."""
    offset: Tensor
    silence: Tensor
    """``[B, 2]``."""


def collate(plans: Sequence[Plan]) -> Batch:
    """Plans of one length as tensors."""
    tracks = [track for plan in plans for track in plan.tracks]
    most = max(1, *(len(track.pieces) for track in tracks))
    pieces = [[*track.pieces, *[(0, 0, 0)] * (most - len(track.pieces))] for track in tracks]

    def column(name: str, dtype: torch.dtype, of: Sequence[Track | Plan]) -> Tensor:
        return torch.tensor([getattr(row, name) for row in of], dtype=dtype)

    number, single = torch.int64, torch.float32
    return Batch(
        length=plans[0].length,
        owner=torch.tensor([index for index, plan in enumerate(plans) for _ in plan.tracks]),
        pieces=torch.tensor(pieces),
        speed=column("speed", torch.float64, tracks),
        backwards=column("backwards", torch.bool, tracks),
        **{name: column(name, number, tracks) for name in ("source", "role", "room", "device", "seed")},
        **{name: column(name, single, tracks) for name in ("weight", "gains", "edge", "tilt", "knots")},
        **{name: column(name, torch.bool, plans) for name in ("has_speech", "has_noise")},
        **{name: column(name, single, plans) for name in ("snr", "level", "jump", "offset")},
        silence=column("silence", number, plans),
    )


def rms(x: Signal) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def speech_level(x: Tensor) -> Tensor:
    """RMS of the louder of twenty pieces, ``[..., n]`` to ``[...]``.

    Those at most 20 dB below the loudest count: pauses must not make the noise quiet.
    """
    power = x[..., : x.shape[-1] // 20 * 20].unflatten(-1, (20, -1)).square().mean(dim=-1)
    loud = power >= 0.01 * power.amax(dim=-1, keepdim=True)
    return ((power * loud).sum(dim=-1) / loud.sum(dim=-1)).sqrt()


class Renderer:
    """Makes signals of plans. The recordings lie on the device that does the work.

    Args:
        speech, noise: ``[samples]`` int16 each.
        rooms, devices: impulse responses, possibly none.
        device: where to work.
    """

    def __init__(
        self,
        speech: Tensor,
        noise: Tensor,
        rooms: Sequence[Signal],
        devices: Sequence[Signal],
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._banks = speech.to(device), noise.to(device)
        self._rooms, self._devices = (_stacked(found).to(device) for found in (rooms, devices))

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noisy and clean, ``[B, 1, length]`` float32 each."""
        tracks = torch.zeros(len(batch.owner), batch.length, device=self.device)
        for source, bank in enumerate(self._banks):
            for rows in ((batch.source == source) & (batch.speed == 1), (batch.source == source) & (batch.speed != 1)):
                if rows.any():
                    tracks[self._moved(rows)] = self._play(bank, batch, rows)
        rows = batch.source == SYNTHETIC
        if rows.any():
            tracks[self._moved(rows)] = white(self._moved(batch.seed[rows]), batch.length)
        self._colour(tracks, batch)
        items = len(batch.snr)
        speech = tracks.new_zeros(items, batch.length)
        rows = batch.role == SPEECH
        speech[self._moved(batch.owner[rows])] = tracks[self._moved(rows)]
        return self._mixed(batch, speech, self._noise(batch, tracks))

    def _moved(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    def _play(self, bank: Tensor, batch: Batch, rows: Tensor) -> Tensor:
        """Pieces of a bank at their speeds, ``[rows, length]``."""
        speed, backwards, pieces = (self._moved(x[rows]) for x in (batch.speed, batch.backwards, batch.pieces))
        time = torch.arange(batch.length, device=self.device)
        time = torch.where(backwards[:, None], batch.length - 1 - time, time)
        # In single precision, the places of late samples would be up to 1/256 wrong.
        place = time * speed[:, None]
        whole = place.floor().long()
        first, last = torch.zeros_like(whole), torch.full_like(whole, -1)
        shift = torch.zeros_like(whole)
        for source, start, count in (piece.T[:, :, None] for piece in pieces.unbind(dim=1)):
            inside = (whole >= start) & (whole < start + count)
            shift = torch.where(inside, source - start, shift)
            first, last = torch.where(inside, source, first), torch.where(inside, source + count - 1, last)
        at = whole + shift
        if (batch.speed[rows] == 1).all():
            return bank[at.clamp(0, len(bank) - 1)].float() * (last >= first) / 32768
        found = torch.zeros(at.shape, device=self.device)
        part, cutoff = (place - whole).float(), speed.clamp(min=1).reciprocal()[:, None].float()
        for tap in range(1 - _TAPS // 2, _TAPS // 2 + 1):
            distance, near = tap - part, at + tap
            window = (0.5 * math.pi / (_TAPS // 2) * distance).cos().square()
            heard = bank[near.clamp(0, len(bank) - 1)].float() * ((near >= first) & (near <= last))
            found += heard * window * torch.sinc(cutoff * distance)
        return found * cutoff / 32768

    def _colour(self, tracks: Tensor, batch: Batch) -> None:
        """Filter tracks in place: tone, low pass, tilt, room and device in one transform."""
        rows = (batch.room >= 0) | (batch.device >= 0) | batch.edge.isfinite() | (batch.tilt != 0)
        rows |= batch.gains.any(dim=1)
        if not rows.any():
            return
        at = self._moved(rows.nonzero()[:, 0])
        # One size for all: an item must not depend on what else is in the batch.
        size = fast_size(batch.length + max(1024, self._rooms.shape[1] + self._devices.shape[1]))
        spectrum = torch.fft.rfft(tracks[at], size) * self._magnitudes(batch, rows, size)
        for which, responses in ((batch.room, self._rooms), (batch.device, self._devices)):
            used = which[rows] >= 0
            if used.any():
                spectrum[self._moved(used)] *= torch.fft.rfft(responses[self._moved(which[rows][used])], size)
        tracks[at] = torch.fft.irfft(spectrum, size)[:, : batch.length]

    def _magnitudes(self, batch: Batch, rows: Tensor, size: int) -> Tensor:
        """Of the filters without phase, ``[rows, size // 2 + 1]``."""
        gains, edge, tilt = (self._moved(x[rows]) for x in (batch.gains, batch.edge, batch.tilt))
        frequency = torch.linspace(0, 1, size // 2 + 1, device=self.device)
        octave = (frequency.clamp(min=2.0 ** (1 - OCTAVES)).log2() + OCTAVES - 1)[None]
        below = octave.floor().long().clamp(max=OCTAVES - 2)
        low, high = (gains.gather(1, (below + k).expand(len(gains), -1)) for k in (0, 1))
        decibels = low + (high - low) * (octave - below)
        # Falls over 1/32 of the band, as it did.
        passed = (32 * (edge[:, None] - frequency)).clamp(0, 1)
        return 10 ** (decibels / 20) * passed * (frequency / 2).clamp(min=1 / 512) ** -tilt[:, None]

    def _noise(self, batch: Batch, tracks: Tensor) -> Tensor:
        """Sum of the tracks of noise of every item, with its course over time, ``[B, length]``."""
        rows = batch.role == NOISE
        noise = tracks[self._moved(rows)]
        knots = self._moved(batch.knots[rows])
        if (batch.knots != 1).any():
            noise = noise * F.interpolate(knots[:, None], batch.length, mode="linear", align_corners=True)[:, 0]
        noise = noise * (self._moved(batch.weight[rows]) / _rms(noise))[:, None]
        total = tracks.new_zeros(len(batch.snr), batch.length).index_add_(0, self._moved(batch.owner[rows]), noise)
        jump = self._moved(batch.jump)[:, :, None]
        time = torch.arange(batch.length, device=self.device)
        return total * torch.where((time >= jump[:, 0]) & (time < jump[:, 1]), jump[:, 2], 1.0)

    def _mixed(self, batch: Batch, speech: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        has_speech, has_noise, snr, level, offset, silence = map(
            self._moved, (batch.has_speech, batch.has_noise, batch.snr, batch.level, batch.offset, batch.silence)
        )
        loud = speech_level(speech) / _rms(noise) * 10 ** (-snr / 20)
        noise = noise * torch.where(has_speech, loud, 1.0)[:, None] * has_noise[:, None]
        speech = speech * has_speech[:, None]
        noisy = speech + noise
        peak = noisy.abs().amax(dim=1).clamp(min=1e-6)
        gain = torch.minimum(10 ** (level / 20) / _rms(noisy), _PEAK / peak)
        noisy, speech = noisy * gain[:, None], speech * gain[:, None]
        room = (_PEAK - peak * gain).clamp(min=0)
        noisy = noisy + (offset.sign() * torch.minimum(offset.abs() * _rms(noisy), room))[:, None]
        time = torch.arange(batch.length, device=self.device)
        heard = (time < silence[:, :1]) | (time >= silence[:, 1:])
        return (noisy * heard)[:, None], (speech * heard)[:, None]


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=1).sqrt().clamp(min=1e-6)


def _stacked(responses: Sequence[Signal]) -> Tensor:
    """``[number, longest]``; the shorter end in zeros."""
    longest = max((len(response) for response in responses), default=0)
    rows = [np.pad(response, (0, longest - len(response))) for response in responses]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 0)


def fast_size(least: int) -> int:
    """The smallest size of a transform from ``least`` on that is a power of two times 1, 3, 5 or 9."""
    return min(odd << max(0, math.ceil(math.log2(least / odd))) for odd in (1, 3, 5, 9))


def white(seeds: Tensor, length: int) -> Tensor:
    """Normal noise ``[rows, length]`` that depends on the seeds alone, whatever the device: a hash of seed and time."""
    count = torch.arange(2 * length, device=seeds.device)
    # The finaliser of splitmix64. Shifts of negative numbers bring in ones, so these are masked out.
    x = seeds[:, None] + count * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    uniform = (((x >> 40) & 0xFFFFFF).float() + 0.5) / 2**24
    radius, turn = (-2 * uniform[:, :length].log()).sqrt(), 2 * math.pi * uniform[:, length:]
    return radius * turn.cos()
