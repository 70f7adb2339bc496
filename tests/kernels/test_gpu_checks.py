"""What `bench/gpu.py` and `bench/tune.py` do on a GPU, here in the interpreter."""

import json
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from slimse.kernels.launching import BlockConfig

from bench import checks, gpu, session, tune
from bench.device import Rehearsal
from slimse.ops import launchers, tuning


@pytest.mark.parametrize(("kind", "ragged"), [("fp32", False), ("fp32", True), ("bf16", True), ("fp16", True)])
@pytest.mark.parametrize("name", launchers.KERNELS)
def test_every_kernel_is_within_its_limits(name, kind, ragged, device, monkeypatch):
    if name in ("slim_gru", "slim_lstm"):
        # A step is a launch here.
        monkeypatch.setattr(checks, "STEPS", 3)
    row = checks.check(name, kind, ragged and name != "diagonal_gru", device)
    assert row["verdict"] == "ok", row
    assert 0 < row["error"] < checks.LIMITS[kind]


@pytest.mark.parametrize(("kind", "ragged"), [("fp32", True), ("bf16", False)])
def test_a_whole_network_is_within_its_limits(kind, ragged, device):
    row = checks.check_model(kind, ragged, device, "small", 0.01)
    assert row["verdict"] == "ok", row
    assert row["error"] > 0
    assert (row["gradient"] > 0) == ragged


def test_a_kernel_that_forgets_a_value_is_found(monkeypatch, device):
    """Even where the first of all gradients is right."""
    backward = launchers.backward

    def forgetful(*args):
        x, weight, bias, skip = backward(*args)
        return [x, weight, bias * float("nan"), skip]

    monkeypatch.setattr(launchers, "backward", forgetful)
    assert [row["verdict"] for row in checks.checks_of("slim_linear_glu", "fp32", device)] == ["wrong", "wrong"]


def test_what_tuning_finds_is_what_runs(tmp_path, monkeypatch, device):
    """With a clock that likes small blocks; their results are those of all others."""
    setup = tune.Setup
    monkeypatch.setattr(tune, "Setup", lambda uf, *_: setup(uf, 1, 0.005, "fp32", device, "triton"))
    monkeypatch.setattr(tune, "BLOCKS", [case for case in tune.BLOCKS if case.label in ("encoder 1", "decoder 1")])
    launched = []
    monkeypatch.setattr(
        BlockConfig, "launch_options", lambda self, real=BlockConfig.launch_options: launched.append(self) or real(self)
    )

    def measure(_, calls):
        calls[0]()
        return {"median": float(launched[-1].block_t + launched[-1].num_warps)}

    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune, "STEPS", {"block_t": (64, 32), "num_warps": (4, 8)})
    table, saved = {}, []
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    assert tune.tune(Rehearsal(), table, time.monotonic() + 600, 0.005, lambda: saved.append(len(table))) == []
    assert saved == [1, 2]
    # What is in the table is not looked for again.
    assert tune.tune(Rehearsal(), table, time.monotonic() + 600, 0.005, lambda: saved.append(len(table))) == []
    assert saved == [1, 2]
    assert {entry.split()[0] for entry in table} == {*tuning.TUNED_OPS}
    assert {(entry["block_t"], entry["num_warps"]) for entry in table.values()} == {(32, 4)}

    calls = [case.build(tune.Setup(1.0))[0]["slimse"] for case in tune.BLOCKS]
    before = [call() for call in calls]
    path = tmp_path / tuning.table_name(before[0].device)
    path.write_text(json.dumps({"machine": {}, **table}))
    tuning.use(tmp_path)
    for call, expected in zip(calls, before, strict=True):
        out = call()
        assert (launched[-1].block_t, launched[-1].num_warps) == (32, 4)
        assert (out - expected).norm() <= 1e-5 * expected.norm()
    # Nothing is chosen for them now, so nothing is found.
    assert tune.tune(Rehearsal(), {}, time.monotonic() + 600, 0.005, lambda: saved.append(0)) == []
    path.write_text(json.dumps({key: {} for key in table}))
    tuning.use(tmp_path)
    calls[0]()
    assert (launched[-1].block_t, launched[-1].num_warps) != (32, 4)
    assert saved == [1, 2]


def test_rehearsal_of_the_run_on_a_gpu(tmp_path, monkeypatch, capsys):
    """Every step but its processes: checks, compiling, times on a clock that only counts, profiles, report."""
    arguments = SimpleNamespace(out=tmp_path, until=time.time() + 600, few=True, rehearse=True)
    passes = [(["slimse", "compiled"], [gpu.BLOCKS[0]], ["bf16"], [64], [0.25, None])]
    monkeypatch.setattr(gpu, "PASSES", [*passes, (["slimse"], gpu.TICK, ["tf32"], [1000], [None])])
    monkeypatch.setattr(gpu, "PROFILED", [("encoder 1", 0.25)])
    # The tick is of the whole network, which takes the interpreter a minute.
    monkeypatch.setattr(gpu, "FEW", 3)

    def begin(self, step, before=()):
        gpu.step(SimpleNamespace(**vars(arguments), step=step), Rehearsal())
        return SimpleNamespace(poll=lambda: 0, returncode=0)

    monkeypatch.setattr(session.Session, "begin", begin)
    (tmp_path / "machine.json").write_text(json.dumps(gpu.machine(Rehearsal())))
    session.Session(tmp_path, time.time(), 10, ["--rehearse"]).run()
    assert [row["outcome"] for row in session.lines(tmp_path / "steps.jsonl")] == ["done"] * 5
    assert gpu.finish(tmp_path, few=True) == 0
    times = [row for row in session.lines(tmp_path / "times.jsonl") if "stats" in row]
    assert [row["extra_info"]["implementation"] for row in times] == ["slimse", "compiled", "slimse"]
    assert all(row["stats"]["clock"] == "graph" and row["extra_info"]["roofline"] > 0 for row in times)
    # What is there is not measured again, and a rehearsal cannot be taken for a GPU.
    session.Session(tmp_path, time.time(), 10, ["--rehearse"]).run()
    assert len([row for row in session.lines(tmp_path / "times.jsonl") if "stats" in row]) == 3
    assert "GPU: not measured" in (tmp_path / "report.md").read_text()
    assert "encoder 1 | 0.25" in capsys.readouterr().out
