"""The running level against a plain loop, in pieces, and what it promises of levels, silence and offsets."""

import math

import numpy as np
import pytest
import torch

import slimse
from slimse.nn import RunningLevel


def by_loop(x: np.ndarray, level: RunningLevel) -> tuple[np.ndarray, np.ndarray]:
    """Normalised samples and gains of ``[n]``, one sample after the other, as the docstring defines them."""
    decay = np.exp(-np.array(level.rates))
    total, seen = np.zeros(3), np.zeros(3)
    normalised, gains = [], []
    for sample in x:
        value = sample - total[0] / seen[0] if seen[0] else 0.0
        total = decay * total + (1 - decay) * np.array([sample, value**2, value**2])
        seen = decay * seen + 1 - decay
        _, slow, fast = total / seen
        now = math.sqrt(max(slow, fast / 8))
        normalised.append(value / (now + 1e-6))
        gains.append(now * fast / (fast + 1e-12))
    return np.array(normalised), np.array(gains)


def test_equals_a_loop_over_samples():
    level = RunningLevel(16_000)
    x = torch.randn(2, 9000, dtype=torch.float64) * torch.linspace(-9, 1, 9000).exp() + 0.01
    normalised, state = level(x, level.initial_state(x))
    for row in range(2):
        expected, gains = by_loop(x[row].numpy(), level)
        assert np.abs(normalised[row].numpy() - expected).max() < 1e-9
        assert np.abs(state.gain[row].numpy() - gains).max() < 1e-9 * gains.max()


def test_pieces_give_what_the_whole_gives(relative_error):
    level = RunningLevel(16_000)
    x = torch.randn(3, 5000)
    expected, whole = level(x, level.initial_state(x))
    state, parts = level.initial_state(x), []
    for piece in x.split([1, 0, 63, 64, 65, 1000, 3807], dim=1):
        part, state = level(piece, state)
        parts.append(part)
    assert relative_error(torch.cat(parts, 1), expected) < 1e-6
    assert relative_error(state.gain, whole.gain) < 1e-6
    assert torch.allclose(state.sums, whole.sums, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("runtime", ["eager", "numba"])
def test_any_level_gives_the_same_sound(runtime, relative_error):
    model = slimse.SlimModel("small", runtime=runtime).eval()
    noisy = torch.randn(1, 1, 4000) * torch.linspace(0.2, 1, 4000)
    unit = noisy / noisy.square().mean().sqrt()
    expected = model(unit, 0.5)
    for decibels in (-70, -40, 10):
        gain = 10 ** (decibels / 20)
        # 0.2 dB of SI-SDR at 15 dB; the floors are felt at -70 dBFS alone.
        assert relative_error(model(gain * unit, 0.5) / gain, expected) < (5e-3 if decibels == -70 else 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("runtime", ["eager", "numba"])
def test_silence_stays_silent_and_an_offset_goes(runtime, relative_error):
    model = slimse.SlimModel("small", runtime=runtime).eval()
    assert not model(torch.zeros(1, 1, 3000)).any()
    assert model(torch.full((1, 1, 3000), 0.3)).abs().max() < 1e-6
    noisy = 0.1 * torch.randn(1, 1, 8000)
    # The mean of a constant and noise settles in a few times 0.1 s.
    shifted = model(noisy + 0.2)[..., 4000:]
    assert relative_error(shifted, model(noisy)[..., 4000:]) < 0.02
    speech_then_silence = torch.cat([noisy, torch.zeros(1, 1, 16_000)], dim=2)
    assert model(speech_then_silence)[..., -4000:].abs().max() < 2**-16
