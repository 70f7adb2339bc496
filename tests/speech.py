"""Signals that scores take for speech."""

import numpy as np


def speech_like(seconds: float = 1.5, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Harmonics of a gliding pitch, switched on and off as syllables are."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    voice = sum(np.sin(k * pitch + rng.uniform(0, 6)) / k for k in range(1, 25))
    return (0.05 * voice * np.clip(2 * np.sin(2 * np.pi * 3 * time), 0, 1)).astype(np.float32)


def noisy_of(clean: np.ndarray, level: float = 0.03, seed: int = 1) -> np.ndarray:
    return clean + level * np.random.default_rng(seed).standard_normal(len(clean)).astype(np.float32)
