"""The checks and the tuning that `bench/gpu.py` does on a GPU, here in the interpreter."""

import functools
import json
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

import cases
import checks
import gpu
from slimse.kernels.launching import BlockConfig

from slimse import ops
from slimse.ops import launchers, tuning


@pytest.mark.parametrize(("kind", "ragged"), [("fp32", False), ("fp32", True), ("bf16", True)])
@pytest.mark.parametrize("name", launchers.KERNELS)
def test_every_kernel_is_within_its_limits(name, kind, ragged, device):
    row = checks.check(name, kind, ragged and name != "diagonal_gru", device)
    assert row["within"], row
    assert 0 < row["error"] < checks.LIMITS[kind]


@pytest.mark.parametrize(("kind", "ragged"), [("fp32", True), ("bf16", False)])
def test_a_whole_network_is_within_its_limits(kind, ragged, device):
    row = checks.check_model(kind, ragged, device, "small", 0.02)
    assert row["within"], row
    assert row["error"] > 0
    assert (row["gradient"] > 0) == ragged


def test_a_kernel_that_forgets_a_value_is_found(monkeypatch, device):
    """Even where the first of all gradients is right."""
    backward = launchers.backward

    def forgetful(*args):
        x, weight, bias, skip = backward(*args)
        return [x, weight, bias * float("nan"), skip]

    monkeypatch.setattr(launchers, "backward", forgetful)
    assert [row["within"] for row in checks.checks_of("slim_linear_glu", "fp32", device)] == [False, False]


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
    monkeypatch.setattr(gpu, "STEPS", {"block_t": (64, 32), "num_warps": (4, 8)})
    table, saved = {}, []
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    assert gpu.tune(table, time.monotonic() + 600, 0.005, lambda: saved.append(len(table))) == []
    assert saved == [1, 2]
    # What is in the table is not looked for again.
    assert gpu.tune(table, time.monotonic() + 600, 0.005, lambda: saved.append(len(table))) == []
    assert saved == [1, 2]
    assert {entry.split()[0] for entry in table} == {*tuning.TUNED_OPS}
    assert {(entry["block_t"], entry["num_warps"]) for entry in table.values()} == {(32, 4)}

    calls = [case.build(gpu.Setup(1.0))[0]["slimse"] for case in gpu.BLOCKS]
    before = [call() for call in calls]
    path = tmp_path / tuning.table_name(before[0].device)
    path.write_text(json.dumps({"machine": {}, **table}))
    tuning.use(tmp_path)
    for call, expected in zip(calls, before, strict=True):
        out = call()
        assert (launched[-1].block_t, launched[-1].num_warps) == (32, 4)
        assert (out - expected).norm() <= 1e-5 * expected.norm()
    # Nothing is chosen for them now, so nothing is found.
    assert gpu.tune({}, time.monotonic() + 600, 0.005, lambda: saved.append(0)) == []
    path.write_text(json.dumps({key: {} for key in table}))
    tuning.use(tmp_path)
    calls[0]()
    assert (launched[-1].block_t, launched[-1].num_warps) != (32, 4)
    assert saved == [1, 2]
