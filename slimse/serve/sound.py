"""A file in memory: read, enhanced and written without touching the disk."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from ..audio.enhance import Enhancer, block_length
from ..audio.files import check_rate
from ..audio.network import Array, open_network
from ..model import SlimModel
from ..profiling import ModelProfile
from .limits import Limits


class TooLargeError(ValueError):
    """A file beyond the limits."""


class EnhancedSound(NamedTuple):
    """What became of a file."""

    wav: bytes
    """16 bits, with the rate and the channels of the input."""
    report: dict[str, Any]
    """Plain values, for JSON."""


def read_sound(data: bytes, limits: Limits) -> tuple[Array, int]:
    """Decode a file.

    Returns:
        ``[channels, n]``, full scale 1, and the sample rate in Hz.

    Raises:
        TooLargeError: for more sound than `Limits.seconds` or `Limits.samples`.
        ValueError: if libsndfile cannot read it, or it holds no samples.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels = check_rate(file.samplerate), file.channels
            most = int(min(limits.seconds * rate, limits.samples / channels))
            # A header may promise less than there is.
            samples = file.read(most + 1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = getattr(error, "error_string", str(error)).strip()
        raise ValueError(f"the file cannot be read: {reason}") from error
    if len(samples) > most:
        raise TooLargeError(
            f"the file is longer than {most / rate:.0f} s, the most for {channels} channels at {rate} Hz"
        )
    if not len(samples):
        raise ValueError("the file holds no samples: expected 1 or more")
    return np.ascontiguousarray(samples.T), rate


def enhance_sound(
    data: bytes,
    model: SlimModel,
    costs: ModelProfile,
    uf: float | None = None,
    *,
    budget: float | None = None,
    limits: Limits | None = None,
    check: Callable[[], object] = lambda: None,
) -> EnhancedSound:
    """Enhance a file as `slimse.enhance` does.

    Args:
        data: of a file, in any format that libsndfile reads.
        model: a causal network.
        costs: of ``model``, from `profile`.
        uf: as of `slimse.enhance`, like ``budget``.
        budget: see there.
        limits: on its size.
        check: called between blocks; may raise to stop.

    Raises:
        TooLargeError, ValueError: as `read_sound`; ValueError also for a UF or a budget that the model does not have.
    """
    signal, rate = read_sound(data, Limits() if limits is None else limits)
    network = open_network(model, len(signal), uf, budget=budget)
    start = time.perf_counter()
    enhancer = Enhancer(network, rate, len(signal), model_rate=model.sample_rate)
    step, pieces = block_length(rate, len(signal)), []
    for begin in range(0, signal.shape[1], step):
        check()
        pieces.append(enhancer.feed(signal[:, begin : begin + step]))
    out = np.concatenate([*pieces, enhancer.flush()], axis=1)
    took = time.perf_counter() - start
    ufs = network.ufs()
    widest = costs.widths[-1].macs_per_sample
    if budget is None:
        macs = next(width.macs_per_sample for width in costs.widths if width.uf == ufs[0])
    else:
        macs = costs.macs_per_sample(torch.from_numpy(ufs))
    wav = io.BytesIO()
    soundfile.write(wav, out.T, rate, format="WAV", subtype="PCM_16")
    seconds = signal.shape[1] / rate
    report = {
        "ufs": [round(value, 4) for value in ufs.tolist()],
        "uf": float(ufs.mean()),
        "macs_per_sample": macs,
        "share": macs / widest,
        "took": took,
        "real_time_factor": took / seconds,
        "seconds": seconds,
        "sample_rate": rate,
        "channels": len(signal),
        "level": _decibels(signal),
        "enhanced_level": _decibels(out),
    }
    return EnhancedSound(wav.getvalue(), report)


def _decibels(x: NDArray[np.float32]) -> float | None:
    """RMS below full scale; None for digital silence."""
    power = float(np.square(x, dtype=np.float64).mean())
    return 10 * math.log10(power) if power else None
