"""`slimse bench` and `slimse doctor`: what they print; the times themselves are not judged."""

import json
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from slimse import PRESETS, SlimModel
from slimse.benchmark import WAYS, Benchmark, Timing, benchmark, interleaved, live_load, random_ufs
from slimse.cli import app
from slimse.profiling import profile
from slimse.router import RouterConfig


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_bench_reports_every_backend_at_every_width():
    result = json.loads(run("bench", "small", "--rounds", "1", "--json").stdout)
    cases = [(timing["runtime"], timing["uf"]) for timing in result["timings"]]
    assert cases == [(runtime, uf) for runtime in result["random"] for uf in (0.125, 0.25, 0.5, 1.0)]
    assert set(result["random"]) == {"eager", "numba", "numba int8"} - set(result["missing"])
    for timing in result["timings"]:
        assert timing["load"] == pytest.approx(timing["frame_ms"] / 2)  # a frame is 2 ms
        assert timing["streams_per_core"] == int(2 / timing["frame_ms"])
    widest = [timing for timing in result["timings"] if timing["uf"] == 1.0]
    assert all(timing["saving"] == timing["mac_saving"] == 1 for timing in widest)
    assert result["budget"] is None


def test_bench_reports_what_the_router_makes_of_a_budget():
    router = RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4)
    model = SlimModel(replace(PRESETS["small"], router=router)).eval().requires_grad_(False)
    # Always the smallest width: the work is that of the smallest, and the router's.
    model.router.bias_width.fill_(-9)
    result = benchmark(model, budget=0.5, rounds=1, frames=2, seconds=0.1)
    chosen = [timing for timing in result.timings if timing.uf is None]
    assert [timing.runtime for timing in chosen] == list(result.random)
    costs = profile(model)
    macs = costs.widths[0].macs_per_sample + costs.router_macs_per_sample
    for timing in chosen:
        assert timing.mac_saving == pytest.approx(costs.widths[-1].macs_per_sample / macs)
    assert "% at a budget of 0.5" in result.sentence()
    with pytest.raises(ValueError, match="budget = 2"):
        benchmark(model, budget=2)


def test_bench_as_table_with_a_sentence():
    result = benchmark(SlimModel("small").eval(), rounds=1, frames=2, seconds=0.1)
    assert "% at UF 1, " in result.sentence()
    assert "budget" not in result.sentence()
    table = run("bench", "small", "--rounds", "1")
    assert table.exit_code == 0
    assert all(text in table.stdout for text in ("ms/frame", "random", "times real time", "this much of one core"))
    refused = run("bench", "dns48-bidirectional")
    assert refused.exit_code == 2
    assert "bidirectional" in refused.stderr


def test_bench_of_live_streams(monkeypatch):
    slept = []
    monkeypatch.setattr("slimse.benchmark.time.sleep", slept.append)
    shown = CliRunner().invoke(app, ["bench", "small", "--streams", "2", "--rounds", "1"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert "2 live streams of small at UF 1" in shown.stdout and max(map(len, shown.stdout.splitlines())) <= 80
    found = json.loads(run("bench", "small", "--streams", "2", "--rounds", "1", "--json").stdout)
    assert {load["runtime"] for load in found["loads"]} == {"eager", "numba", "numba int8", "onnx"} - set(
        found["missing"]
    )
    for load in found["loads"]:
        assert 0 < load["p50"] <= load["p99"] <= load["worst"] and load["core"] > 0
    # A tick lasts 20 ms, whatever of it the streams take.
    assert slept and all(0 <= seconds < 0.02 for seconds in slept)
    with pytest.raises(ValueError, match="streams = 0"):
        live_load(SlimModel("small").eval(), 0)


@pytest.mark.parametrize("command", ["bench", "profile", "doctor"])
def test_tables_fit_80_columns(command, monkeypatch):
    # Numbers as long as they get: a slow machine, and the largest preset. Nothing is cut or broken into two lines.
    slow = [Timing(name, uf, 1234.567, 77.16, 0, 1234.0, 16.27, 10.46) for name in WAYS for uf in (0.125, 1.0, None)]
    result = Benchmark(tuple(slow), dict.fromkeys(WAYS, 1234.567), 0.25, {})
    monkeypatch.setattr("slimse.benchmark.benchmark", lambda *a, **k: result)
    arguments = {"bench": ["dynamic-v1"], "profile": ["dns64"], "doctor": []}[command]
    found = CliRunner().invoke(app, [command, *arguments], env={"COLUMNS": "80"})
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in found.stdout
    if command == "bench":
        cells = ["numba", "int8", "router", "1234.567", "7716.0", "%", "0", "1234x", "16.27x", "10.46x"]
        assert cells in [line.split() for line in lines]


def test_calls_take_turns():
    order = []
    times = interleaved([lambda: order.append("a"), lambda: order.append("b")], rounds=2, repeats=2)
    assert "".join(order) == "ab" + "aabb" * 2
    assert [len(spent) for spent in times] == [4, 4]


def test_random_widths_repeat():
    model = SlimModel("small")
    drawn = random_ufs(model, 200)
    assert drawn == random_ufs(model, 200)
    assert set(drawn) == set(model.ufs)


def test_doctor_says_what_can_run_and_why_not():
    report = json.loads(run("doctor", "--json").stdout)
    assert report["backend"]["reference"] == "available"
    assert report["processor"]["cores"] >= 1
    assert report["compiled path"]["state"].startswith("ready") or "numba" in report["compiled path"]["state"]
    table = run("doctor")
    assert table.exit_code == 0
    assert "runtime: numba" in table.stdout


def test_doctor_without_numba(monkeypatch):
    # The package's name `doctor` is the command; the module is behind it.
    monkeypatch.setattr(sys.modules["slimse.diagnosis"], "numba_missing", lambda: "numba cannot be imported (gone)")
    report = json.loads(run("doctor", "--json").stdout)
    assert report["runtime"]["numba"] == report["compiled path"]["state"] == "numba cannot be imported (gone)"
