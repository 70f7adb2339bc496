"""Every runtime computes the same network: random shapes, sounds and levels, against float64."""

import numpy as np
import pytest
import torch
from fuzz_runtimes import random_network, trial
from sounds import KINDS, make_sound

from slimse import SlimDemucs, SlimDemucsConfig, Streamer

ODD_GROUPS = SlimDemucsConfig(hidden=12, depth=1, kernel_size=4, stride=4, resample=1, groups=2)
"""Groups of 6 channels, which fill no vector of a processor."""


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_all_runtimes_equal_float64_at_any_level(seed):
    pytest.importorskip("numba", reason="the compiled path needs numba")
    rng = np.random.default_rng(seed or 0)
    model = random_network(rng) if seed else SlimDemucs(ODD_GROUPS, backend="torch").eval().requires_grad_(False)
    for kind in KINDS:
        noisy = make_sound(kind, int(rng.integers(1, 40)) * model.hop, rng.uniform(-80, 20), rng)
        uf = float(rng.choice(model.config.ufs))
        for name, (_, over_signal) in trial(model, torch.from_numpy(noisy), uf, rng).items():
            assert over_signal < (1e-1 if name == "half" else 1e-5), (name, kind)


def test_triton_is_an_error_where_the_layers_run_something_else():
    with pytest.raises(ValueError, match=r"backend = 'triton' cannot run here.*'auto', on cpu"):
        Streamer(SlimDemucs("small"), backend="triton")
