"""Sounds for trials: of several kinds, at any level, the same for the same seed; and float64 references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import resources

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimse import SlimModel

Sound = NDArray[np.float32]

RATE = 16_000
LEVELS = (-80.0, 20.0)
"""dBFS of the root mean square: from below the noise of a microphone to ten times full scale."""


def _speech(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    clip = soundfile.read(resources.files("slimse") / "assets" / "noisy.flac")[0]
    return np.resize(np.roll(clip, -int(rng.integers(len(clip)))), samples)


def _noise(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(samples)


def _tone(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.sin(2 * np.pi * rng.uniform(20, 7_990) / RATE * np.arange(samples) + rng.uniform(0, 6))


def _clicks(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return (rng.random(samples) < 0.002) * rng.standard_normal(samples)


def _offset(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return 1 + 0.01 * rng.standard_normal(samples)


def _silence(samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.zeros(samples)


KINDS: dict[str, Callable[[int, np.random.Generator], NDArray[np.float64]]] = {
    "speech": _speech,
    "white noise": _noise,
    "tone": _tone,
    "clicks": _clicks,
    "constant offset": _offset,
    "silence": _silence,
}


def make_sound(kind: str, samples: int, level: float, rng: np.random.Generator) -> Sound:
    """Return ``samples`` samples of one of `KINDS` whose root mean square is ``level`` dBFS; silence has none."""
    sound = KINDS[kind](samples, rng)
    power = float(np.mean(np.square(sound)))
    return (sound * (10 ** (level / 20) / np.sqrt(power)) if power else sound).astype(np.float32)


def exact(model: SlimModel) -> SlimModel:
    """Return a copy of a model in float64, for references."""
    reference = copy.deepcopy(model).double()
    reference.runtime = "eager"
    return reference


def signal_error(out: Tensor, expected: Tensor, heard: Tensor) -> float:
    """Norm of the difference over that of the louder of ``expected`` and the input ``heard``; 0 if there is none."""
    difference = (out.double() - expected.double()).norm()
    return float(difference / torch.maximum(expected.double().norm(), heard.double().norm())) if difference else 0.0
