"""How the router follows a noise that becomes softer for a second."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..model import SlimModel

Signal = NDArray[np.float32]

DROP_DB = 10.0
DROP_SECONDS = 1.0
_WINDOW_SECONDS = 0.25


@dataclass(frozen=True)
class Trace:
    """One clip, with the noise lowered for a while, through the router."""

    noisy: Signal
    sample_rate: int
    hop: int
    """Samples per frame."""
    budget: float
    ufs: tuple[float, ...]
    """Of the model."""
    chosen: Signal
    """UF of every frame."""
    drop: tuple[float, float]
    """When the noise is softer, s."""
    times: Signal
    """Of ``improvement``, s."""
    improvement: Signal
    """Level of the noise before over that after enhancement, dB; NaN where next to nothing is to be heard."""

    def average_uf(self, *, inside: bool) -> float:
        """Mean UF of the frames inside the drop, or of those outside from half a second on."""
        time = np.arange(len(self.chosen)) * self.hop / self.sample_rate
        within = (time >= self.drop[0]) & (time < self.drop[1])
        return float(self.chosen[within if inside else ~within & (time >= 0.5)].mean())


def trace_drop(model: SlimModel, noisy: Signal, clean: Signal, budget: float) -> Trace:
    """Lower the noise of a pair by 10 dB for a second in its middle, and enhance that.

    Args:
        model: with a router, on the CPU.
        noisy: ``[n]`` at the model's rate, longer than the drop.
        clean: the same.
        budget: for the router.

    Raises:
        ValueError: for a clip that is too short.
    """
    rate = model.sample_rate
    changed, drop = _softened(noisy, clean, rate)
    signal = torch.from_numpy(changed)[None, None]
    with torch.no_grad():
        chosen = model.route(signal, budget)
        enhanced = model(signal, chosen)[0, 0].numpy()
    times, improvement = _improvement(changed, enhanced, clean, rate)
    return Trace(
        changed, rate, model.geometry.hop, budget, tuple(model.ufs), chosen[0].numpy(), drop, times, improvement
    )


@dataclass(frozen=True)
class DropEffect:
    """Average UF in the second in which the noise is softer, over clips, and in the same second of the same clips."""

    budget: float
    softer: tuple[float, ...]
    """With the noise lowered, per clip."""
    as_it_was: tuple[float, ...]
    """Without that."""

    def to_dict(self) -> dict[str, float | int]:
        """Means and counts, for JSON."""
        return {
            "budget": self.budget,
            "average_uf_softer": float(np.mean(self.softer)),
            "average_uf_as_it_was": float(np.mean(self.as_it_was)),
            "clips": len(self.softer),
            "clips_falling": sum(one < other for one, other in zip(self.softer, self.as_it_was, strict=True)),
            "clips_rising": sum(one > other for one, other in zip(self.softer, self.as_it_was, strict=True)),
        }

    def sentence(self) -> str:
        """The same in words."""
        found = self.to_dict()
        return (
            f"Noise {DROP_DB:g} dB softer for {DROP_SECONDS:g} s, at budget {self.budget:g}: the router used UF "
            f"{found['average_uf_softer']:.3f} in that second, and {found['average_uf_as_it_was']:.3f} where the noise "
            f"stayed. UF was lower in {found['clips_falling']} and higher in {found['clips_rising']} of "
            f"{found['clips']} clips."
        )


@torch.no_grad()
def drop_effect(model: SlimModel, clips: Iterable[tuple[Signal, Signal]], budget: float) -> DropEffect:
    """Measure what the router makes of a softer noise, on noisy and clean signals as for `trace_drop`."""
    rate = model.sample_rate
    means: tuple[list[float], list[float]] = [], []
    for noisy, clean in clips:
        changed, drop = _softened(noisy, clean, rate)
        first, last = (round(edge * rate / model.geometry.hop) for edge in drop)
        for signal, found in zip((changed, noisy), means, strict=True):
            found.append(float(model.route(torch.from_numpy(signal)[None, None], budget)[0, first:last].mean()))
    return DropEffect(budget, tuple(means[0]), tuple(means[1]))


def _softened(noisy: Signal, clean: Signal, rate: int) -> tuple[Signal, tuple[float, float]]:
    """The clip with its noise lowered for a while in the middle, and when, in seconds."""
    seconds = len(noisy) / rate
    if seconds < 2 * DROP_SECONDS:
        raise ValueError(f"the clip lasts {seconds:.2f} s: expected {2 * DROP_SECONDS:g} s or more")
    drop = ((seconds - DROP_SECONDS) / 2, (seconds + DROP_SECONDS) / 2)
    # Over 20 ms at either end, or there would be clicks.
    knots = np.array([drop[0] - 0.01, drop[0] + 0.01, drop[1] - 0.01, drop[1] + 0.01])
    decibels = np.interp(np.arange(len(noisy)) / rate, knots, [0.0, -DROP_DB, -DROP_DB, 0.0])
    return (clean + (noisy - clean) * 10 ** (decibels / 20)).astype(np.float32), drop


def _improvement(noisy: Signal, enhanced: Signal, clean: Signal, rate: int) -> tuple[Signal, Signal]:
    """Times and dB by which the error falls, over windows of a quarter of a second, half overlapped."""
    size = int(_WINDOW_SECONDS * rate)
    starts = np.arange(0, len(noisy) - size + 1, size // 2)

    def powers(x: Signal) -> NDArray[np.float64]:
        return np.array([np.mean(np.square(x[start : start + size], dtype=np.float64)) for start in starts])

    before, after = powers(noisy - clean), powers(enhanced - clean)
    # 30 dB below the clip, there is no noise to speak of, and its ratio to what remains says nothing.
    audible = before > 1e-3 * np.mean(np.square(noisy, dtype=np.float64))
    gain = 10 * np.log10(np.maximum(before, 1e-20) / np.maximum(after, 1e-20))
    return ((starts + size / 2) / rate).astype(np.float32), np.where(audible, gain, np.nan).astype(np.float32)
