"""The checks that `bench/gpu.py` makes on a GPU, here in the interpreter."""

import pytest

pytest.importorskip("triton")

import gpu

from slimse.ops import launchers


@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("name", launchers.KERNELS)
def test_every_kernel_is_within_its_limits(name, ragged, device):
    row = gpu.check(name, "fp32", ragged and name != "diagonal_gru", device)
    assert row["within"], row
    assert 0 < row["error"] < 1e-5
    assert 0 < row["gradient"] < 4e-5
