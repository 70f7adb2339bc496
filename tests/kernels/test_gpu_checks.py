"""The checks and the tuning that `bench/gpu.py` does on a GPU, here in the interpreter."""

import functools
import json
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

import cases
import gpu
from slimse.kernels.launching import BlockConfig

from slimse import ops
from slimse.ops import launchers, tuning


@pytest.mark.parametrize(("kind", "ragged"), [("fp32", False), ("fp32", True), ("bf16", True)])
@pytest.mark.parametrize("name", launchers.KERNELS)
def test_every_kernel_is_within_its_limits(name, kind, ragged, device):
    row = gpu.check(name, kind, ragged and name != "diagonal_gru", device)
    assert row["within"], row
    assert 0 < row["error"] < gpu.LIMITS[kind]


def test_what_tuning_finds_is_what_runs(tmp_path, monkeypatch, device):
    """With a clock that likes small blocks; their results are those of all others."""
    on_kernels = {name: functools.partial(getattr(ops, name), backend="triton") for name in tuning.TUNED_OPS}
    monkeypatch.setattr(cases, "ops", SimpleNamespace(**on_kernels))
    setup = gpu.Setup
    monkeypatch.setattr(gpu, "Setup", lambda uf, *_: setup(uf, 1, 0.005, "fp32", device))
    monkeypatch.setattr(gpu, "BLOCKS", [case for case in gpu.BLOCKS if case.label in ("encoder 1", "decoder 1")])
    launched = []
    monkeypatch.setattr(
        BlockConfig, "launch_options", lambda self, real=BlockConfig.launch_options: launched.append(self) or real(self)
    )

    def measure(call, rounds=20):
        call()
        return {"median": float(launched[-1].block_t + launched[-1].num_warps)}

    monkeypatch.setattr(gpu, "measure", measure)
    table = gpu.tune(time.monotonic() + 600, 0.005)
    assert {entry.split()[0] for entry in table} == {*tuning.TUNED_OPS}
    assert {(entry["block_t"], entry["num_warps"]) for entry in table.values()} == {(32, 4)}

    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    calls = [case.build(gpu.Setup(1.0))[0]["slimse"] for case in gpu.BLOCKS]
    before = [call() for call in calls]
    (tmp_path / tuning.table_name(before[0].device)).write_text(json.dumps(table))
    tuning._table.cache_clear()
    for call, expected in zip(calls, before, strict=True):
        out = call()
        assert (launched[-1].block_t, launched[-1].num_warps) == (32, 4)
        assert (out - expected).norm() <= 1e-5 * expected.norm()
    tuning._table.cache_clear()
