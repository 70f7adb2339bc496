"""A live signal at any sample rate: blocks in, as many samples out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .audio.polyphase import Polyphase
from .audio.spectral import BandGain, Fifo, SharedMask
from .model import SlimModel
from .runtimes.base import LOUDEST, refuse
from .streaming import Streamer

Array = NDArray[np.float32]

LOWEST_RATE, HIGHEST_RATE = 8_000, 192_000
"""Hz."""
FADE_SECONDS = 0.02
"""That a change of `LiveStreamer.strength` from 0 to 1 takes."""
_GAIN_STEP = 0.004
"""Seconds between two gains of the high band."""
_GAIN_LAG = 0.009
"""Seconds by which they follow the sound: what the network has put out by then tells them."""
_PIECE_SECONDS = 0.1
"""Sound that is worked on at a time: bounds the memory that a long chunk takes."""
_FULL_SCALE = 32_768
_DTYPES = ("float32", "int16")
_QUIET = 1e-12
"""Power, -120 dBFS: the lowest level that is told."""
_NOISE_SECONDS = 0.5
_PEAK_SECONDS, _PEAK_SHARE = 10.0, 0.01
"""Speech is told from the noise level, plus 20 dB below the recent peak: in clean sound there is no noise to beat."""
SPEECH_SLOPE, SPEECH_PLACE = 0.1, -15.4
"""Logistic function of the level of enhanced sound over that, in dB: `bench/speech_activity.py --fit`."""


class Frame(NamedTuple):
    """UF, speech and noise of 16 ms of a live signal."""

    uf: float
    """Width at which the network ran."""
    speech: float
    """Probability that someone speaks, from 0 to 1."""
    noise: float
    """Level of what was taken away, dBFS, averaged over half a second."""


class LiveStreamer:
    """Enhance a live signal: every `feed` returns as many samples as it takes, `delay` samples late.

    ``Streamer(model, sample_rate=48_000, ...)`` makes one too. The first `delay` samples are silence; from then on,
    the output is that of `slimse.enhance`. At other rates than the model's it differs slightly, as the resampling
    filters of live use are shorter. Memory does not grow.

    - The network runs at its own rate. Sound above that band (8 kHz) is the input's, lowered like the top of
      the band, as in files. This gain changes every 4 ms and lags 9 ms behind the sound, so that it adds no delay.
    - Several channels share widths and, as in files, one spectral mask, which adds 27 ms at most.

    Args:
        model: a causal `SlimModel`. Any number of streams share its weights.
        uf: width of the frames; None for 1.0, or the router if there is a budget.
        budget: target mean UF, averaged over a corpus: the router chooses every width.
        sample_rate: Hz, 8,000 to 192,000; None for the model's.
        channels: None for one signal ``[n]``, or a number for ``[channels, n]``.
        block: samples per channel of every chunk. It makes the delay as short as that size allows; None allows any.
        dtype: of input and output: ``"float32"``, full scale 1, or ``"int16"``.
        enabled: False returns the input with the same delay. It may change at any time.
        strength: share of the enhanced signal in the output, 0 to 1. It may change at any time.
        runtime: as of `Streamer`, like ``weights``, ``max_load`` and ``clock``.
        max_load: see there.
        clock: see there.

    Raises:
        ValueError: for a model that cannot stream, or values out of range.

    >>> import numpy as np
    >>> streamer = LiveStreamer(SlimModel("small"), 0.25, sample_rate=48_000, block=480, dtype="int16")
    >>> streamer.feed(np.zeros(480, np.int16)).shape
    (480,)
    """

    def __init__(
        self,
        model: SlimModel,
        uf: float | None = None,
        *,
        budget: float | None = None,
        sample_rate: int | None = None,
        channels: int | None = None,
        block: int | None = None,
        dtype: str = "float32",
        enabled: bool = True,
        strength: float = 1.0,
        runtime: str | None = None,
        weights: str | None = None,
        max_load: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        own = model.sample_rate
        self.model, self.channels, self.block, self.dtype = model, channels, block, dtype
        self.sample_rate = own if sample_rate is None else sample_rate
        for name, value, low, high in (
            ("sample_rate", self.sample_rate, LOWEST_RATE, HIGHEST_RATE),
            ("channels", 1 if channels is None else channels, 1, 64),
            ("block", 1 if block is None else block, 1, HIGHEST_RATE),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} = {value!r}: expected an integer from {low} to {high}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype = {dtype!r}: expected one of {_DTYPES}")
        self._rows = rows = channels or 1
        self._piece = math.ceil(_PIECE_SECONDS * self.sample_rate)
        timing: Any = {"max_load": max_load, "clock": clock}
        self._streamer = Streamer(
            model, uf, budget=budget, streams=rows, shared=True, runtime=runtime, weights=weights, **timing
        )
        self._down = self._up = None
        if self.sample_rate != own:
            self._down = Polyphase(self.sample_rate, own, rows, self._piece)
            # Frames come out in bursts, the end of a signal in one.
            most = (
                math.ceil(_PIECE_SECONDS * own) + 2 * model.geometry.first + model.geometry.hop + 2 * SharedMask.WINDOW
            )
            self._up = Polyphase(own, self.sample_rate, 2 * rows, most)
        self.enabled, self.strength = enabled, strength
        self._delay = self._find_delay()
        self._steps = np.arange(1, self._piece + 1, dtype=np.float32) / np.float32(FADE_SECONDS * self.sample_rate)
        self._input, self._low, self._masked = Fifo(rows), Fifo(rows), Fifo(rows)
        self._ready, self._heard = Fifo(2 * rows), Fifo(2 * rows)
        self.reset()

    @property
    def delay(self) -> int:
        """Samples by which the output is behind the input."""
        return self._delay

    @property
    def delay_ms(self) -> float:
        """The same in milliseconds. Add the length of a block, which has to be full before it is fed."""
        return 1000 * self._delay / self.sample_rate

    @property
    def strength(self) -> float:
        """Share of the enhanced signal in the output, 0 to 1; a change is a fade of at most 20 ms."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"strength = {value!r}: expected a number from 0 to 1")
        self._strength = float(value)

    @property
    def runtime(self) -> str:
        """As of `Streamer`."""
        return self._streamer.runtime

    @property
    def limit(self) -> float:
        """The widest UF that frames run at now, see `Streamer.limit`."""
        return self._streamer.limit

    @property
    def frames(self) -> list[Frame]:
        """Facts on the sound that the last `feed` made ready, one `Frame` per 16 ms; often empty."""
        return self._frames

    @property
    def frame(self) -> Frame:
        """The latest `Frame`."""
        return self._frame

    def reset(self) -> None:
        """Forget everything: the next sample starts a new signal."""
        self._streamer.reset()
        for resampler in (self._down, self._up):
            if resampler is not None:
                resampler.reset()
        for fifo in (self._input, self._low, self._masked, self._ready, self._heard):
            fifo.clear()
        self._mask = SharedMask(self._rows) if self._rows > 1 else None
        self._gain = BandGain(self.sample_rate, self.model.sample_rate, _GAIN_STEP)
        self._ready.push(np.zeros((2 * self._rows, self._delay), np.float32))
        self._share = self._target
        self._noise, self._peak = _QUIET, _QUIET
        self._frames: list[Frame] = []
        self._frame = Frame(self.model.ufs[0], 0.0, 10 * math.log10(_QUIET))
        self._ufs: list[float] = []
        self._received = self._lowered = 0

    def feed(
        self,
        chunk: NDArray[Any],
        uf: float | None = None,
        budget: float | None = None,
        *,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Take samples and return as many, `delay` samples older.

        Args:
            chunk: ``[n]`` or ``[channels, n]``, of ``dtype``; ``n`` is ``block`` if there is one.
            uf: width of the frames that this chunk completes; None for the streamer's own.
            budget: of these frames, which the router then decides.
            out: array to write to, of the shape and dtype of ``chunk``; it may be ``chunk``. None makes one.

        Returns:
            An array of the shape and dtype of ``chunk``.

        Raises:
            ValueError: for another shape or dtype, a sample that is not finite or too loud, or a UF outside the set;
                the stream is then as it was before.
        """
        x = self._checked(chunk)
        out = self._output(chunk, out)
        if uf is not None or budget is not None:
            # Rejects a bad one before any sample has been taken.
            self._streamer.feed(np.zeros((self._rows, 0), np.float32), uf, budget)
        self._frames = []
        rows = out.reshape(self._rows, -1)
        for start in range(0, x.shape[1], self._piece):
            piece = x[:, start : start + self._piece]
            self._enhance(piece, uf, budget)
            self._put(self._mixed(piece.shape[1]), rows[:, start : start + self._piece])
        return out

    def flush(self) -> NDArray[Any]:
        """End the signal: return the last `delay` samples, ``[delay]`` or ``[channels, delay]``, and start anew."""
        out = np.empty((self._rows, self._delay), self.dtype)
        self._frames = []
        if self._received:
            self._enhance(np.zeros((self._rows, 0), np.float32), last=True)
        for start in range(0, self._delay, self._piece):
            part = out[:, start : start + self._piece]
            self._put(self._mixed(part.shape[1]), part)
        frames = self._frames
        self.reset()
        self._frames = frames
        return out[0] if self.channels is None else out

    @property
    def _target(self) -> float:
        return self._strength if self.enabled else 0.0

    def _find_delay(self) -> int:
        """The shortest delay at which no block comes too early, from how many samples each part gives when."""
        geometry, rate, own = self.model.geometry, self.sample_rate, self.model.sample_rate
        # After so many samples, everything is as far from the next frame as before.
        step = math.lcm(geometry.hop, 1 if self._rows == 1 else SharedMask.HOP) * rate
        period = math.lcm(step // math.gcd(step, own), self.block or 1)
        received = np.arange(0, period + rate, self.block or 1)
        low = received if self._down is None else self._down.ready(received)
        frames = 1 + (low - geometry.first) // geometry.hop
        emitted = np.array([geometry.emitted(count) for count in range(max(int(frames.max()), 0) + 1)])
        done = emitted[np.maximum(frames, 0)]
        if self._rows > 1:
            window, hop = SharedMask.WINDOW, SharedMask.HOP
            done = np.clip(done // hop * hop - (window - hop), 0, None)
        if self._up is not None:
            done = np.minimum(self._up.ready(done), received)
        return int((received - done).max())

    def _checked(self, chunk: NDArray[Any]) -> Array:
        """``[rows, n]`` in float32, full scale 1."""
        axes, shape = (1, "[n]") if self.channels is None else (2, f"[{self.channels}, n]")
        if self.block is not None:
            shape = shape.replace("n]", f"{self.block}]")
        if not isinstance(chunk, np.ndarray):
            raise ValueError(f"chunk is a {type(chunk).__name__}: expected a numpy array {shape} of {self.dtype}")
        fits = chunk.ndim == axes and chunk.dtype == self.dtype
        fits = fits and (self.channels is None or len(chunk) == self.channels)
        if not fits or (self.block is not None and chunk.shape[-1] != self.block):
            raise ValueError(
                f"chunk has shape {tuple(chunk.shape)} and dtype {chunk.dtype}: expected {self.dtype} {shape}"
            )
        x = chunk.reshape(self._rows, -1)
        if self.dtype == "int16":
            return np.multiply(x, np.float32(1 / _FULL_SCALE), dtype=np.float32)
        x = np.ascontiguousarray(x)
        # One call where `isfinite` takes two; `refuse` looks closer.
        if not np.vdot(x, x) <= LOUDEST:
            refuse(x, "" if self.channels is None else "channel")
        return x

    def _output(self, chunk: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
        if out is None:
            return np.empty(chunk.shape, self.dtype)
        if out.shape != chunk.shape or out.dtype != chunk.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out has shape {out.shape} and dtype {out.dtype}: expected {chunk.shape} and {chunk.dtype}, contiguous"
            )
        return out

    def _enhance(self, x: Array, uf: float | None = None, budget: float | None = None, *, last: bool = False) -> None:
        """Run everything on ``[rows, n]``; enhanced and aligned input wait in `_ready`. ``last`` ends the signal."""
        self._received += x.shape[1]
        if self._up is not None:
            self._input.push(x)
        estimate = self._enhance_low(self._lower(x, last), uf, budget, last)
        if not estimate.shape[1]:
            return
        noisy = self._low.pop(estimate.shape[1])
        if self._mask is not None:
            self._masked.push(noisy)
            estimate = self._mask.feed(noisy, estimate, last=last)
            noisy = self._masked.pop(estimate.shape[1])
        both = np.concatenate([estimate, noisy])
        self._listen(both)
        if self._up is None:
            self._ready.push(both)
            return
        self._gain.feed(noisy, estimate, last=last)
        risen = self._up(both)
        self._add_rest(risen)
        if last:
            self._add_rest(self._up(np.zeros((2 * self._rows, self._up.half), np.float32)))

    def _lower(self, x: Array, last: bool) -> Array:
        """``[rows, n]`` at the model's rate."""
        if self._down is None:
            return x
        low = self._down(x)
        if last:
            # Samples that lie before the end, and wait for what comes behind it.
            low = self._down(np.zeros((self._rows, self._down.half), np.float32))
            low = low[:, : -(-self._received * self.model.sample_rate // self.sample_rate) - self._lowered]
        self._lowered += low.shape[1]
        return low

    def _enhance_low(self, low: Array, uf: float | None, budget: float | None, last: bool) -> Array:
        """What the network has ready, ``[rows, m]``."""
        self._low.push(low)
        estimate = self._streamer.feed(low, uf, budget)
        if estimate.shape[1]:
            self._ufs += self._streamer.ufs[0].tolist()
        if last:
            estimate = np.concatenate([estimate, self._streamer.flush()], axis=1)
            self._ufs += self._streamer.ufs[0].tolist()
        return estimate

    def _add_rest(self, risen: Array) -> None:
        """Add to ``[2 * rows, n]``, enhanced first, all of the input that the way down and up again has lost."""
        risen = risen[:, : len(self._input)]
        count = risen.shape[1]
        wet, lost = risen[: self._rows], risen[self._rows :]
        original = self._input.pop(count)
        lag = round(_GAIN_LAG * self.sample_rate)
        np.subtract(original, lost, out=lost)
        lost *= self._gain.at(self._input.popped - count - lag, count)
        wet += lost
        lost[:] = original
        self._ready.push(risen)

    def _mixed(self, count: int) -> Array:
        """The next ``count`` samples of output: enhanced and input in their shares of this moment."""
        ready = self._ready.pop(count)
        wet, dry = ready[: self._rows], ready[self._rows :]
        target, share = self._target, self._share
        if share == target:
            return wet if share == 1 else dry if share == 0 else dry + np.float32(share) * (wet - dry)
        steps = self._steps[:count]
        shares = np.minimum(share + steps, target) if target > share else np.maximum(share - steps, target)
        self._share = target if shares[-1] == np.float32(target) else float(shares[-1])
        return np.asarray(dry + shares * (wet - dry), np.float32)

    def _put(self, mixed: Array, out: NDArray[Any]) -> None:
        if self.dtype == "int16":
            scaled = np.rint(mixed * np.float32(_FULL_SCALE))
            np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1, out=scaled)
            out[:] = scaled
        else:
            out[:] = mixed

    def _listen(self, both: Array) -> None:
        """Tell speech and noise of every 16 ms: ``[2 * rows, n]``, enhanced first."""
        hop, heard = self.model.geometry.hop, self._heard
        heard.push(both)
        seconds = hop / self.model.sample_rate
        while len(heard) >= hop:
            both = heard.pop(hop)
            wet, dry = both[: self._rows], both[self._rows :]
            speech = float(np.square(wet).mean()) + _QUIET
            noise = float(np.square(dry - wet).mean()) + _QUIET
            self._noise += (noise - self._noise) * -math.expm1(-seconds / _NOISE_SECONDS)
            self._peak = max(speech, self._peak * math.exp(-seconds / _PEAK_SECONDS))
            above = 10 * math.log10(speech / (self._noise + _PEAK_SHARE * self._peak))
            probability = 1 / (1 + math.exp(-SPEECH_SLOPE * (above - SPEECH_PLACE)))
            uf = self._ufs.pop(0) if self._ufs else self._frame.uf
            self._frame = Frame(uf, probability, 10 * math.log10(self._noise))
            self._frames.append(self._frame)
