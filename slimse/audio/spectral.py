"""Spectral parts of the enhancement, piece by piece: the mask that channels share, the gain of the high band."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float32]

_TINY = 1e-20
"""Far below the energy of the rounding noise of any format: keeps silence from dividing by zero."""


class Fifo:
    """Samples that wait: ``[rows, n]``. Its memory grows to what is needed, and then stays."""

    def __init__(self, rows: int) -> None:
        self._memory: Array = np.zeros((rows, 1024), np.float32)
        self._start = self._end = 0
        self.popped = 0

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def data(self) -> Array:
        """What waits: a view, valid until the next `push`."""
        return self._memory[:, self._start : self._end]

    def push(self, x: Array) -> None:
        """Append ``[rows, n]``."""
        held, count = len(self), x.shape[1]
        if self._end + count > self._memory.shape[1]:
            # At least half is free behind a move, so that moves are rare and never onto themselves.
            memory = self._memory
            if 2 * (held + count) > memory.shape[1] or held > self._start:
                memory = np.zeros((len(memory), 4 * (held + count)), np.float32)
            memory[:, :held] = self.data
            self._memory, self._start, self._end = memory, 0, held
        self._memory[:, self._end : self._end + count] = x
        self._end += count

    def pop(self, count: int) -> Array:
        """Take the ``count`` oldest, or all if there are fewer: ``[rows, count]``, valid until the next `push`."""
        head = self.data[:, :count]
        self._start += head.shape[1]
        self.popped += head.shape[1]
        return head

    def clear(self) -> None:
        """Forget everything."""
        self._start = self._end = self.popped = 0


def _hann(length: int) -> Array:
    """Periodic, so that shifted copies add up to a constant."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length), dtype=np.float32)


class SharedMask:
    """One complex spectral mask for all channels: the network's verdict, without its effect on the stereo image.

    Per bin, of the channels' inputs ``X_c`` and the network's estimates ``S_c``, the mask

        ``M = sum_c conj(X_c) S_c / sum_c |X_c|^2``, limited to ``|M| <= 1``,

    is the one that explains all estimates best in the sense of least squares; the outputs are ``M X_c``. Whatever two
    channels share at different levels comes out with the same difference.

    32 ms windows (at 16 kHz), three quarters overlapped; with ``S = X`` the output is the input. Outputs come
    one window late and are as many as the inputs after the last call.

    Args:
        channels: number of channels.

    """

    WINDOW = 512
    HOP = 128

    def __init__(self, channels: int) -> None:
        self._window = _hann(self.WINDOW)
        lead = self.WINDOW - self.HOP
        self._pending = Fifo(2 * channels)
        self._pending.push(np.zeros((2 * channels, lead), np.float32))
        self._overlap = np.zeros((channels, lead), np.float32)
        self._fed, self._given, self._skip = 0, 0, lead

    def feed(self, noisy: Array, estimate: Array, *, last: bool = False) -> Array:
        """Take ``[channels, n]`` of both, give back what is ready; ``last`` ends the signal."""
        channels = noisy.shape[0]
        self._fed += noisy.shape[1]
        self._pending.push(np.concatenate([noisy, estimate]))
        if last:
            self._pending.push(np.zeros((2 * channels, self.WINDOW), np.float32))
        frames = (len(self._pending) - self.WINDOW) // self.HOP + 1
        if frames < 1:
            return noisy[:, :0]
        windows = sliding_window_view(self._pending.data, self.WINDOW, axis=1)[:, :: self.HOP]
        spectra = np.fft.rfft(windows * self._window)
        self._pending.pop(frames * self.HOP)
        x, s = spectra[:channels], spectra[channels:]
        mask = (x.conj() * s).sum(0) / (np.square(np.abs(x)).sum(0) + _TINY)
        mask /= np.maximum(np.abs(mask), 1)
        # Analysis and synthesis window together add up to 1.5 at this overlap.
        pieces = np.fft.irfft(mask * x, self.WINDOW).astype(np.float32) * (self._window / 1.5)
        out = self._add_overlapping(pieces)[:, self._skip :]
        self._skip = max(0, self._skip - frames * self.HOP)
        out = out[:, : self._fed - self._given]
        self._given += out.shape[1]
        return out

    def _add_overlapping(self, pieces: Array) -> Array:
        """``[channels, frames, WINDOW]`` to ``[channels, frames * HOP]``; the rest waits for the next frames."""
        channels, frames, _ = pieces.shape
        out = np.zeros((channels, frames * self.HOP + self._overlap.shape[1]), np.float32)
        out[:, : self._overlap.shape[1]] = self._overlap
        for start in range(0, self.WINDOW, self.HOP):
            part = pieces[:, :, start : start + self.HOP].reshape(channels, -1)
            out[:, start : start + frames * self.HOP] += part
        self._overlap = out[:, frames * self.HOP :].copy()
        return out[:, : frames * self.HOP]


class BandGain:
    """Gain for what lies above the network's band: that of the top of the band, over time.

    Every 16 ms (``step``) it is the root of the energy after enhancement over that before, of all channels together,
    smoothed over three frames and limited to 1. The energies are those from 3/8 to 15/16 of the band (3 to 7.5 kHz
    at 16 kHz, less if the signal's own rate is lower). Where there is next to nothing in there (40 dB below the band
    from 300 Hz up), the gain of the whole band stands in.

    Args:
        sample_rate: at which gains are asked for, Hz.
        model_rate: of the signals fed, Hz.
        step: seconds from one gain to the next; windows are twice as long.

    """

    def __init__(self, sample_rate: int, model_rate: int, step: float = 0.016) -> None:
        self._step = round(step * model_rate)
        self._window = _hann(2 * self._step)
        self._samples_per_frame = self._step * sample_rate / model_rate
        frequency = np.fft.rfftfreq(2 * self._step, 1 / model_rate)
        nyquist = min(sample_rate, model_rate) / 2
        whole = (frequency >= min(300, 3 / 8 * nyquist)) & (frequency <= 15 / 16 * nyquist)
        top = whole & (frequency >= 3 / 8 * nyquist)
        self._weights = top + 1e-4 * whole
        self._pending: Fifo | None = None
        self._energies = np.zeros((2, 0))
        self._gains = np.ones(0)
        self._first = 0
        self._ended = False

    def feed(self, noisy: Array, enhanced: Array, *, last: bool = False) -> None:
        """Take ``[channels, n]`` of both; ``last`` ends the signal."""
        if self._pending is None:
            self._pending = Fifo(2 * noisy.shape[0])
            self._pending.push(np.zeros((2 * noisy.shape[0], self._step), np.float32))
        self._pending.push(np.concatenate([noisy, enhanced]))
        if last:
            # Frames are centred on multiples of the step: two more reach beyond the last sample.
            self._pending.push(np.zeros((len(self._pending.data), 2 * self._step), np.float32))
        frames = len(self._pending) // self._step - 1
        if frames > 0:
            windows = sliding_window_view(self._pending.data, 2 * self._step, axis=1)[:, :: self._step]
            power = np.square(np.abs(np.fft.rfft(windows * self._window))) @ self._weights
            self._pending.pop(frames * self._step)
            energies = np.stack([half.sum(0) for half in np.split(power, 2)])
            if not self._energies.shape[1]:
                energies = np.concatenate([energies[:, :1], energies], axis=1)
            self._energies = np.concatenate([self._energies, energies], axis=1)
        if last:
            self._energies = np.concatenate([self._energies, self._energies[:, -1:]], axis=1)
            self._ended = True
        self._update()

    def _update(self) -> None:
        """Smooth the energies, a frame late as both neighbours count, and turn them into gains."""
        energies = self._energies
        if energies.shape[1] < 3:
            return
        before, after = 0.25 * energies[:, :-2] + 0.5 * energies[:, 1:-1] + 0.25 * energies[:, 2:] + _TINY
        self._gains = np.concatenate([self._gains, np.minimum(np.sqrt(after / before), 1.0)])
        self._energies = energies[:, -2:]

    def ready(self, start: int) -> int:
        """How many gains from sample ``start`` on (at ``sample_rate``) are known; without limit after the end."""
        if self._ended:
            return 2**62
        known = self._first + len(self._gains) - 1
        return max(0, int(known * self._samples_per_frame) - start)

    def at(self, start: int, count: int) -> Array:
        """Gains of the samples from ``start`` on, ``[count]``, 0 before the signal; calls go forward in time."""
        if start + count <= 0 or not count:
            return np.zeros(count, np.float32)
        time = np.arange(start, start + count) / self._samples_per_frame
        gains = np.interp(time, self._first + np.arange(len(self._gains)), self._gains, left=0.0)
        done = min(max(int(time[-1]) - self._first, 0), len(self._gains) - 1)
        self._gains, self._first = self._gains[done:], self._first + done
        return gains.astype(np.float32)
