"""Every runtime computes the same network: random shapes, sounds and levels, against float64."""

import numpy as np
import pytest
import torch

from bench.reliability.fuzz_runtimes import random_network, trial
from bench.reliability.sounds import KINDS, make_sound
from slimse import SlimDemucsConfig, SlimModel, Streamer

ODD_GROUPS = SlimDemucsConfig(hidden=12, depth=1, kernel_size=4, stride=4, resample=1, groups=2)
"""Groups of 6 channels, which fill no vector of a processor."""


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_all_runtimes_equal_float64_at_any_level(seed):
    pytest.importorskip("numba", reason="the compiled path needs numba")
    rng = np.random.default_rng(seed or 0)
    model = random_network(rng) if seed else SlimModel(ODD_GROUPS, runtime="eager").eval().requires_grad_(False)
    for kind in KINDS:
        noisy = make_sound(kind, int(rng.integers(1, 40)) * model.geometry.hop, rng.uniform(-80, 20), rng)
        uf = float(rng.choice(model.ufs))
        for name, (_, over_signal) in trial(model, torch.from_numpy(noisy), uf, rng).items():
            assert over_signal < (1e-1 if name == "half" else 1e-5), (name, kind)


def test_triton_runs_or_is_an_error_by_name():
    with pytest.raises(ValueError, match="runtime = 'triton'"):
        Streamer(SlimModel("small"), runtime="triton")
