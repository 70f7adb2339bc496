"""The enhancement loss: waveform error, a multi-resolution STFT distance with compressed magnitudes, and PESQ's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE_RATE = 16_000
"""Hz that the losses are made for: the bands of `PesqDistance` end at 8 kHz, and the FFT sizes are 16 to 64 ms."""


class PesqDistance(nn.Module):
    """How many points of PESQ's raw score an estimate loses to the clean signal, by a model of it with a gradient.

    As PESQ does it: both signals at one level, loudness (Zwicker's law above the threshold of hearing) per half Bark
    and frame; a steady difference of tone colour is forgiven, and most of one of level in a frame; differences
    below a quarter of the softer of the two are masked; what was added counts more than what was taken away; and bad
    moments count more than their length. Without PESQ's alignment in time and its tables.

    Source: ITU-T P.862 and P.862.2, from the description of the method.

    Args:
        size: FFT size in samples at 16 kHz; the hop is half of it.

    Shape:
        ``[B, T]`` twice to ``[B]``. Where the clean signal is silent, the result means nothing.
    """

    def __init__(self, size: int = 512) -> None:
        super().__init__()
        self.size = size
        frequency = torch.arange(size // 2 + 1) * (SAMPLE_RATE / size)
        bark = 26.81 * frequency / (1960 + frequency) - 0.53
        centres = torch.arange(1.0, float(bark[-1]), 0.5)
        bands = (1 - (bark - centres.unsqueeze(1)).abs() / 0.5).clamp(min=0)
        # At low frequencies half a Bark is narrower than a bin.
        filled = bands.sum(1) > 0
        bands, centres = bands[filled], centres[filled]
        kilohertz = (bands @ frequency) / bands.sum(1) / 1000
        # Rumble below 100 Hz is not heard in the wide-band mode.
        bands = bands * (frequency / 100).clamp(max=1) ** 4
        threshold = 3.64 * kilohertz**-0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2) + 1e-3 * kilohertz**4
        # Loudness grows faster with level in the lowest bands.
        exponent = 0.23 * (6 / (centres + 2)).clamp(1, 2) ** 0.15
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.register_buffer("telephone", ((frequency >= 350) & (frequency <= 3250)).float(), persistent=False)
        self.register_buffer("bands", bands.t().contiguous(), persistent=False)
        self.register_buffer("threshold", 10 ** (threshold.clamp(max=60) / 10), persistent=False)
        self.register_buffer("exponent", exponent, persistent=False)

    def _powers(self, signals: Tensor) -> Tensor:
        """Power per frame and band ``[B, frames, bands]``, all signals at the same level in the telephone band."""
        window = self.get_buffer("window")
        spectrum = torch.stft(signals, self.size, self.size // 2, window=window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)
        level = (power @ self.get_buffer("telephone")).mean(1)[:, None, None]
        # Found by trying: at this level the result follows PESQ closely, and has about its slope.
        return (power * (3.4e7 / level.clamp(min=1e-9))) @ self.get_buffer("bands")

    def _audible(self, power: Tensor, margin: float = 1.0) -> Tensor:
        return power * (power > margin * self.get_buffer("threshold"))

    def _loudness(self, power: Tensor) -> Tensor:
        threshold, exponent = self.get_buffer("threshold"), self.get_buffer("exponent")
        return 0.187 * (2 * threshold) ** exponent * ((0.5 + 0.5 * power / threshold).clamp(min=1) ** exponent - 1)

    def forward(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """Points lost: 0 for the clean signal itself, about 2.5 for a bad one."""
        with torch.autocast(estimate.device.type, enabled=False):
            return self._points(self._powers(estimate.float()), self._powers(clean.float()))

    def _points(self, estimate: Tensor, clean: Tensor) -> Tensor:
        """From powers ``[B, frames, bands]`` to points ``[B]``."""
        # The tone colour of the active frames, at most 20 dB of it, is given to the clean signal.
        loud = self._audible(clean, 100)
        active = (loud.sum(2, keepdim=True) > 1e4).float()
        colour = (self._audible(estimate, 100) * active).mean(1, True), (loud * active).mean(1, True)
        share = active.mean(1, True).clamp(min=1e-3)
        clean = clean * ((colour[0] / share + 1e3) / (colour[1] / share + 1e3)).clamp(0.01, 100)
        # And the estimate is brought to the level of the clean signal, frame by frame.
        audible = self._audible(clean).sum(2)
        estimate = estimate * ((audible + 5e3) / (self._audible(estimate).sum(2) + 5e3)).clamp(3e-4, 5).unsqueeze(2)
        found, wanted = self._loudness(estimate), self._loudness(clean)
        disturbance = torch.relu((found - wanted).abs() - 0.25 * torch.minimum(found, wanted))
        # Twelve times the weight, at most, for power that the clean signal does not have.
        added = ((estimate + 50) / (clean + 50)) ** 1.2
        added = torch.where(added < 3, 0.0, added.clamp(max=12))
        # Bands are half a Bark wide; soft frames count a little more.
        weight = disturbance.shape[2] / 2 * ((audible + 1e5) / 1e7) ** -0.04
        both = _norm(disturbance, 2), (disturbance * added).mean(2)
        symmetric, asymmetric = (_over_time((value * weight).clamp(max=45)) for value in both)
        return 0.1 * symmetric + 0.0309 * asymmetric


def _norm(x: Tensor, order: float) -> Tensor:
    """Power mean over the last axis."""
    return torch.linalg.vector_norm(x, order, dim=-1) / x.shape[-1] ** (1 / order)


def _over_time(x: Tensor) -> Tensor:
    """PESQ's mean over frames, ``[B, frames]`` to ``[B]``: the worst of 20 frames for the most part, then squares."""
    return _norm(_norm(x.unfold(1, min(20, x.shape[1]), 10), 6), 2)


def framed(signal: Tensor, hop: int, frames: int) -> Tensor:
    """``[B, T]`` as ``[B, frames, hop]``: silence follows, and what is over is left out."""
    return F.pad(signal, (0, frames * hop - signal.shape[1])).unflatten(1, (frames, hop))


def levelled(noisy: Tensor, *signals: Tensor) -> tuple[Tensor, ...]:
    """Signals ``[B, 1, T]`` relative to the level of the noisy one: ``[B, T]`` each."""
    level = noisy.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
    return tuple((signal.float() / level).squeeze(1) for signal in signals)


_GOOD_ENOUGH = 1e-3
"""Power of an error, 30 dB down, below which it hardly counts; it also keeps the logarithm finite."""


class EnhancementLoss(nn.Module):
    """Waveform L1 and error level, plus, per STFT resolution, L1 of compressed magnitudes and compressed complex bins.

    Signals are first divided by the noisy signal's RMS, so that quiet recordings count as much as loud ones. The
    error level is that of the waveform error in dB below the noisy signal: its slope does not fade for recordings
    that are nearly clean. Magnitudes are raised to the power 0.3, close to how loudness is heard; the complex term
    keeps the phase. PESQ's distance weighs bands, levels and moments as its listeners did.

    Args:
        resolutions: FFT sizes in samples; the hop is a quarter.
        compression: exponent of the magnitudes.
        spectral: weight of the STFT part.
        error_level: weight of 1 dB of error level.
        pesq: weight of a point of `PesqDistance`, where there is speech to compare with.

    Shape:
        three tensors ``[B, 1, T]``; the result is a scalar, or ``[B]`` from `per_item`.
    """

    def __init__(
        self,
        resolutions: tuple[int, ...] = (256, 512, 1024),
        compression: float = 0.3,
        spectral: float = 1.0,
        error_level: float = 0.2,
        pesq: float = 0.2,
    ) -> None:
        super().__init__()
        self.compression, self.spectral, self.error_level = compression, spectral, error_level
        self.pesq, self.pesq_distance = pesq, PesqDistance()
        self.resolutions = resolutions
        for size in resolutions:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def _compressed(self, signals: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Magnitude, real and imaginary part of all bins, compressed."""
        spectrum = torch.stft(
            signals, size, size // 4, window=self.get_buffer(f"window_{size}"), normalized=True, return_complex=True
        )
        # Apart in memory: on a CPU, passes over pairs of numbers are several times slower.
        real, imaginary = spectrum.real.contiguous(), spectrum.imag.contiguous()
        # The floor, 50 dB below the signal, keeps the power's slope finite at silence.
        power = real.square() + imaginary.square() + 1e-5
        scale = power ** ((self.compression - 1) / 2)
        return power.sqrt() * scale, real * scale, imaginary * scale

    def _spectral(self, estimate: Tensor, wanted: tuple[Tensor, ...], size: int) -> Tensor:
        """What one resolution adds to the loss, from `_compressed` of the clean signal: ``[B, times]``."""
        found = self._compressed(estimate, size)
        magnitude, real, imaginary = ((x - y).abs().mean(1) for x, y in zip(found, wanted, strict=True))
        return self.spectral / len(self.resolutions) * (magnitude + (real + imaginary) / 2)

    def forward(self, estimate: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """Distance of ``estimate`` from ``clean``, relative to the level of ``noisy``: the mean of `per_item`."""
        return self.per_item(estimate, clean, noisy).mean()

    def per_item(self, estimate: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """The distance of every item, ``[B]``."""
        estimate, clean = levelled(noisy, estimate, clean)
        error = estimate - clean
        decibels = 10 * torch.log10(error.square().mean(-1) + _GOOD_ENOUGH)
        loss = error.abs().mean(-1) + self.error_level * decibels
        for size in self.resolutions:
            with torch.no_grad():
                wanted = self._compressed(clean, size)
            loss = loss + self._spectral(estimate, wanted, size).mean(1)
        # Speech more than 10 dB below the noisy signal, and silence, are not brought up to the level of speech.
        speech = clean.square().mean(-1) > 0.1
        return loss + self.pesq * speech * self.pesq_distance(estimate, clean)

    @torch.no_grad()
    def saved_per_frame(
        self, narrow: Tensor, wide: Tensor, clean: Tensor, noisy: Tensor, hop: int, frames: int
    ) -> Tensor:
        """How much smaller the loss of ``wide`` is than that of ``narrow``, frame by frame: ``[B, frames]``.

        Without the part of PESQ, which is not a sum over frames. The difference of the error levels is shared out by
        the frames' differences in power.
        """
        one, other, clean = (framed(x, hop, frames).flatten(1) for x in levelled(noisy, narrow, wide, clean))
        errors = [framed(output - clean, hop, frames) for output in (one, other)]
        powers = torch.stack([error.square().mean(2) for error in errors])
        decibels = 10 / math.log(10) * (powers[0] - powers[1]) / (powers.mean((0, 2)) + _GOOD_ENOUGH).unsqueeze(1)
        saved = errors[0].abs().mean(2) - errors[1].abs().mean(2) + self.error_level * decibels
        for size in self.resolutions:
            wanted = self._compressed(clean, size)
            less = self._spectral(one, wanted, size) - self._spectral(other, wanted, size)
            saved = saved + F.adaptive_avg_pool1d(less.unsqueeze(1), frames)[:, 0]
        return saved
