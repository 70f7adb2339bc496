"""The checks that `bench/gpu.py` makes on a GPU, here in the interpreter."""

import pytest

pytest.importorskip("triton")

import gpu

from slimse.ops import launchers


@pytest.mark.parametrize(("kind", "ragged"), [("fp32", False), ("fp32", True), ("bf16", True)])
@pytest.mark.parametrize("name", launchers.KERNELS)
def test_every_kernel_is_within_its_limits(name, kind, ragged, device):
    row = gpu.check(name, kind, ragged and name != "diagonal_gru", device)
    assert row["within"], row
    assert 0 < row["error"] < gpu.LIMITS[kind]
