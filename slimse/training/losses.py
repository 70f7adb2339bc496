"""The enhancement loss: waveform error plus a multi-resolution STFT distance with compressed magnitudes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EnhancementLoss(nn.Module):
    """Waveform L1 and error level, plus, per STFT resolution, L1 of compressed magnitudes and compressed complex bins.

    Signals are first divided by the noisy signal's RMS, so that quiet recordings count as much as loud ones. The
    error level is that of the waveform error in dB below the noisy signal: its slope does not fade for recordings
    that are nearly clean. Magnitudes are raised to the power 0.3, close to how loudness is heard; the complex term
    keeps the phase.

    Args:
        resolutions: FFT sizes in samples; the hop is a quarter.
        compression: exponent of the magnitudes.
        spectral: weight of the STFT part.
        error_level: weight of 1 dB of error level.

    Shape:
        three tensors ``[B, 1, T]``; the result is a scalar, or ``[B]`` from `per_item`.
    """

    def __init__(
        self,
        resolutions: tuple[int, ...] = (256, 512, 1024),
        compression: float = 0.3,
        spectral: float = 1.0,
        error_level: float = 0.05,
    ) -> None:
        super().__init__()
        self.compression, self.spectral, self.error_level = compression, spectral, error_level
        self.resolutions = resolutions
        for size in resolutions:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def _compressed(self, signals: Tensor, size: int) -> tuple[Tensor, Tensor]:
        spectrum = torch.stft(
            signals, size, size // 4, window=self.get_buffer(f"window_{size}"), normalized=True, return_complex=True
        )
        parts = torch.view_as_real(spectrum)
        # The floor, 50 dB below the signal, keeps the power's slope finite at silence.
        power = parts.square().sum(-1) + 1e-5
        return power ** (self.compression / 2), parts * (power ** ((self.compression - 1) / 2)).unsqueeze(-1)

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
            magnitude, bins = self._compressed(estimate, size)
            with torch.no_grad():
                clean_magnitude, clean_bins = self._compressed(clean, size)
            distance = (magnitude - clean_magnitude).abs().mean((1, 2)) + (bins - clean_bins).abs().mean((1, 2, 3))
            loss = loss + self.spectral / len(self.resolutions) * distance
        return loss
