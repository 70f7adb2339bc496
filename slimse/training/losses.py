"""The enhancement loss: waveform error, a multi-resolution STFT distance with compressed magnitudes, and loudness."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LoudnessDistance(nn.Module):
    """How far the loudness of an estimate is from that of the clean signal, as a share of the clean loudness.

    Both become loudness (Zwicker's law above the threshold of hearing) per half Bark and 16 ms, the clean signal as if
    heard at 79 dB SPL. Differences below a quarter of the softer of the two are masked. The root mean square of the
    rest over the bands is averaged over time.

    Source: the symmetric disturbance of ITU-T P.862, without its time alignment, equalisation and asymmetric part.

    Args:
        sample_rate: Hz.
        size: FFT size in samples; the hop is half of it.

    Shape:
        ``[B, T]`` twice, and ``[B, 1]`` for the least level (RMS) that counts as clean speech, to ``[B]``.
    """

    def __init__(self, sample_rate: int = 16_000, size: int = 512) -> None:
        super().__init__()
        self.size = size
        frequency = torch.arange(size // 2 + 1) * (sample_rate / size)
        bark = 26.81 * frequency / (1960 + frequency) - 0.53
        centres = torch.arange(1.0, float(bark[-1]), 0.5)
        bands = (1 - (bark - centres.unsqueeze(1)).abs() / 0.5).clamp(min=0)
        # At low frequencies half a Bark is narrower than a bin.
        bands = bands[bands.sum(1) > 0]
        kilohertz = (bands @ frequency) / bands.sum(1) / 1000
        threshold = 3.64 * kilohertz**-0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2) + 1e-3 * kilohertz**4
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.register_buffer("bands", bands.t().contiguous(), persistent=False)
        self.register_buffer("threshold", 10 ** (threshold.clamp(max=60) / 10), persistent=False)

    def _loudness(self, signals: Tensor) -> Tensor:
        window, threshold = self.get_buffer("window"), self.get_buffer("threshold")
        spectrum = torch.stft(signals, self.size, self.size // 2, window=window, normalized=True, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2) @ self.get_buffer("bands")
        return threshold**0.23 * ((0.5 + 0.5 * power / threshold).clamp(min=1) ** 0.23 - 1)

    def forward(self, estimate: Tensor, clean: Tensor, floor: Tensor) -> Tensor:
        """Mean disturbance over mean clean loudness, per item."""
        with torch.no_grad():
            frames = clean.unfold(1, self.size, self.size // 2).square().mean(-1)
            active = frames > 1e-3 * frames.amax(1, keepdim=True)
            level = (frames * active).sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp(min=1)
            gain = 10 ** (79 / 20) / level.sqrt().maximum(floor)
            reference = self._loudness(clean * gain)
        loudness = self._loudness(estimate * gain)
        masked = 0.25 * torch.minimum(loudness, reference)
        disturbance = torch.relu((loudness - reference).abs() - masked).square().mean(-1)
        # The constants keep the root's slope finite, and noise that was left in a silence comparable with other errors.
        return ((disturbance + 1e-4).sqrt() - 1e-2).mean(-1) / reference.mean((1, 2)).clamp(min=15)


class EnhancementLoss(nn.Module):
    """Waveform L1 and error level, plus, per STFT resolution, L1 of compressed magnitudes and compressed complex bins.

    Signals are first divided by the noisy signal's RMS, so that quiet recordings count as much as loud ones. The
    error level is that of the waveform error in dB below the noisy signal: its slope does not fade for recordings
    that are nearly clean. Magnitudes are raised to the power 0.3, close to how loudness is heard; the complex term
    keeps the phase. The loudness distance weighs bands and levels as ears do.

    Args:
        resolutions: FFT sizes in samples; the hop is a quarter.
        compression: exponent of the magnitudes.
        spectral: weight of the STFT part.
        error_level: weight of 1 dB of error level.
        loudness: weight of `LoudnessDistance`.

    Shape:
        three tensors ``[B, 1, T]``; the result is a scalar, or ``[B]`` from `per_item`.
    """

    def __init__(
        self,
        resolutions: tuple[int, ...] = (256, 512, 1024),
        compression: float = 0.3,
        spectral: float = 1.0,
        error_level: float = 0.1,
        loudness: float = 0.5,
    ) -> None:
        super().__init__()
        self.compression, self.spectral, self.error_level = compression, spectral, error_level
        self.loudness, self.loudness_distance = loudness, LoudnessDistance()
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

    def forward(self, estimate: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """Distance of ``estimate`` from ``clean``, relative to the level of ``noisy``: the mean of `per_item`."""
        return self.per_item(estimate, clean, noisy).mean()

    def per_item(self, estimate: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
        """The distance of every item, ``[B]``."""
        level = noisy.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-4)
        estimate, clean = (estimate.float() / level).squeeze(1), (clean / level).squeeze(1)
        error = estimate - clean
        # Errors more than 30 dB down are good enough: the floor also keeps the logarithm finite.
        decibels = 10 * torch.log10(error.square().mean(-1) + 1e-3)
        loss = error.abs().mean(-1) + self.error_level * decibels
        for size in self.resolutions:
            with torch.no_grad():
                wanted = self._compressed(clean, size)
            found = self._compressed(estimate, size)
            magnitude, real, imaginary = ((x - y).abs().mean((1, 2)) for x, y in zip(found, wanted, strict=True))
            loss = loss + self.spectral / len(self.resolutions) * (magnitude + (real + imaginary) / 2)
        # Speech more than 10 dB below the noisy signal, and silence, are not brought up to the level of speech.
        floor = torch.full_like(level[:, 0], 10 ** (-10 / 20))
        return loss + self.loudness * self.loudness_distance(estimate, clean, floor)
