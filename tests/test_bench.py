"""The arithmetic of the benchmarks: work, rooflines and reports. No time is looked at."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import checks, gpu, report, roofline, serving, session
from bench.cases import compiled
from bench.points import MIXTURE, Setup
from slimse import PRESETS, SlimModel
from slimse.profiling import profile
from slimse.router import RouterConfig

ROOT = Path(__file__).parents[1]
ROUTED = replace(PRESETS["small"], router=RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4))


def test_macs_of_the_blocks_are_those_of_the_profile():
    """Per sample of a long clip."""
    seconds = 60.0
    for width in profile(SlimModel("paper")).widths:
        for name, block in (("encoder", roofline.encoder_block), ("decoder", roofline.decoder_block)):
            for level in range(1, 6):
                k = roofline.CONFIG.ufs.channels(width.uf, roofline.CONFIG.channels(level))
                work = block(level, 3, seconds, k)
                expected = width.blocks[f"{name}.{level - 1}"] * 3 * seconds * roofline.CONFIG.sample_rate
                assert work.macs == pytest.approx(expected, rel=0.005)


def test_recurrent_work_is_quadratic_in_the_width():
    """Of the grouped GRU of the paper at full width as in the profile: 1,536 per sample."""
    frames, groups, units = 1000, 4, 128
    work = roofline.recurrence(1, frames, units, (units, units**2), 3, units, groups)
    assert work.macs / (256 * frames) == 1536
    half = roofline.recurrence(1, frames, units, (units / 2, units**2 / 4), 3, units, groups)
    assert half.macs / work.macs == (1 / 2 + 1 / 4) / 2


def test_a_roofline_is_the_slower_of_memory_and_arithmetic():
    ceilings = roofline.Ceilings(100.0, {"fp32": 10.0, "bf16": 1000.0})
    work = roofline.Work(macs=50, elements=50)
    assert work.seconds("fp32", ceilings) == 10.0
    assert work.seconds("bf16", ceilings) == 1.0
    assert (work + work).seconds("bf16", ceilings) == 2.0


def test_the_mixture_has_its_shares():
    ufs = Setup(None, 64, 4.0, "fp32", "cpu").ufs(250)
    for uf, share in MIXTURE.items():
        assert float((ufs == uf).float().mean()) == pytest.approx(share, abs=0.02)
    width, mean = Setup(None, 2, 4.0, "fp32", "cpu").width(64, 1000)
    assert width.shape == (2, 1000)
    assert mean == pytest.approx(float(width.float().mean()))


def entry(implementation, uf, seconds, macs=8.0, line=None, device="CPU (test)"):
    info = {"label": "encoder 1", "uf": uf, "implementation": implementation, "macs": macs, "roofline": line}
    info |= {"device": device, "batch": 1, "kind": "fp32"}
    return {"stats": {"median": seconds}, "extra_info": info}


def test_a_report_divides_what_was_measured_and_names_what_was_not(tmp_path):
    entries = [
        entry("slimse", 1.0, 8.0, 8.0, 4.0),
        entry("slimse", 0.125, 2.0, 1.0, 0.8),
        entry("full", 0.125, 9.0, 1.0, 0.8),
    ]
    row = report.Times(entries).row(("CPU (test)", 1, "fp32"), "encoder 1", 0.125)
    assert row == {"saving": 8.0, "attainable": 5.0, "seconds": 2.0, "measured": 4.0, "of roofline": 0.4, "full": 4.5}
    text = report.write(entries, tmp_path).read_text()
    assert "GPU: not measured" in text
    assert (
        "| encoder 1 | 0.125 | 2000.000 ms | not measured | 8.00 | 5.00 | 4.00 | 0.40 | not measured | not measured | "
        "4.50 |" in text
    )
    assert "- encoder 1: not measured" in text
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "speedup.png", "blocks.png"}


def test_live_frames_are_compared_with_their_own_full_width_and_with_eager_pytorch(tmp_path):
    entries = []
    for uf in MIXTURE:
        for name, seconds in (("slimse", 1 + uf), ("sliced", 4 + 4 * uf)):
            entries.append(entry(name, uf, seconds, macs=16 * uf))
            entries[-1]["extra_info"]["label"] = report.LIVE
    entries.append(entry("slimse", 1.0, 1.0))
    entries[-1]["extra_info"] |= {"label": report.LIVE, "kind": "fp16 weights"}
    found = report.live_speedups(report.Times(entries))
    ours, half = report.NAMES["slimse"], report.NAMES["slimse"] + ", fp16 weights"
    assert set(found) == {ours, half, report.NAMES["sliced"]}
    assert sorted(found[ours])[-1] == (8.0, 2 / 1.125, 8 / 1.125)
    assert found[half] == [(1.0, 1.0, 8.0)]
    text = report.write(entries, tmp_path).read_text()
    assert "(live.svg)" in text
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "live.svg"}
    first = (tmp_path / "live.svg").read_bytes()
    report.write(entries, tmp_path)
    assert (tmp_path / "live.svg").read_bytes() == first


def test_a_mixture_stands_beside_the_mean_of_the_uniform_times():
    entries = [entry("slimse", uf, 10 * uf) for uf in MIXTURE] + [entry("slimse", "mixture", 6.0)]
    mean = sum(10 * uf * share for uf, share in MIXTURE.items())
    assert report.Times(entries).mixing(("CPU (test)", 1, "fp32"), "encoder 1") == pytest.approx(6.0 / mean)


def test_the_check_of_a_tick_finds_what_differs(monkeypatch):
    """Without a graph both sides are the same code; a graph that replays old samples must not pass."""
    row = checks.check_tick("cpu", ROUTED, ticks=10)
    assert row["verdict"] == "ok"
    assert row["error"] == 0

    class Stale(checks.StreamBatch):
        made = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            Stale.made += 1
            self.stale = Stale.made == 1

        def tick(self, samples):
            return super().tick(0 * samples if self.stale else samples)

    monkeypatch.setattr(checks, "StreamBatch", Stale)
    assert checks.check_tick("cpu", ROUTED, ticks=10)["verdict"] == "wrong"


def test_what_compilers_get_is_the_network():
    streaming = pytest.importorskip("streaming", reason="the comparison needs numba", exc_type=ImportError)
    model = SlimModel("small").eval()
    state, inputs = streaming.example(model)
    with torch.no_grad():
        plain, opened = (streaming.Step(m, 0.5, state)(*inputs) for m in (model, streaming.opened(model)))
    assert {type(module) for module in streaming.opened(model).network.encoder} == {streaming.OpenEncoder}
    for ours, theirs in zip(plain, opened, strict=True):
        assert torch.equal(ours, theirs)


def test_memory_that_frames_keep_is_found():
    streaming = pytest.importorskip("streaming", reason="the comparison needs numba", exc_type=ImportError)
    kept = []
    assert streaming.steadiness(lambda: kept.append(bytearray(1000)), 5)["kept per frame, bytes"] > 1000
    clean = streaming.steadiness(lambda: bytearray(1000), 5)
    assert clean["kept per frame, bytes"] < 100
    assert clean["at most at a time, bytes"] > 1000


@pytest.mark.parametrize(("cost", "expected"), [(0.01, range(775, 801)), (1.5, range(5, 6)), (9.0, range(1))])
def test_the_largest_number_of_streams_is_found(cost, expected, monkeypatch):
    monkeypatch.setattr(serving, "ticks_ms", lambda model, streams, args: (np.full(100, cost * streams), 0.25))
    assert serving.largest(None, argparse.Namespace(limit=8.0, quantile=0.99)) in expected


def test_session_tells_cut_off_from_hung_from_broken(tmp_path, monkeypatch):
    run = session.Session(tmp_path, time.time(), 10, [])
    monkeypatch.setattr(session, "SHARES", {"now": 0.0, "later": 1.0})
    monkeypatch.setattr(session, "STUCK", 0.2)

    def process(code):
        run.running.append(subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True))
        return [run.running[-1]]

    assert run.wait("later", process("pass")) == "done"
    assert run.wait("later", process("import os; os._exit(7)")) == "exit status [7]"
    watched = tmp_path / "times.jsonl"
    watched.touch()
    assert run.wait("later", process("import time; time.sleep(60)"), watched) == "hung"
    run.start -= 10
    assert run.wait("now", process("import time; time.sleep(60)")) == "cut off"
    assert all(one.poll() is not None for one in run.running)


def test_lines_that_were_cut_off_are_left_out(tmp_path):
    path = tmp_path / "times.jsonl"
    session.append(path, {"name": "a"})
    session.append(path, {"name": "b"})
    path.write_text(path.read_text() + '{"name": "c", "sta')
    assert session.lines(path) == [{"name": "a"}, {"name": "b"}]
    assert session.lines(tmp_path / "missing") == []


def test_wrong_and_no_time_are_different_words(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "CHECKS", [("slim_gru", kind) for kind in ("bf16", "fp16", "fp32")])
    session.append(tmp_path / "checks.jsonl", {"op": "slim_gru", "kind": "bf16", "verdict": "ok"})
    found, right = gpu.verdicts(tmp_path, False)
    assert right
    assert found[-1] == "- no time: slim_gru in fp16, slim_gru in fp32"
    session.append(tmp_path / "checks.jsonl", {"op": "slim_gru", "kind": "fp16", "verdict": "wrong"})
    found, right = gpu.verdicts(tmp_path, False)
    assert not right
    assert found[0] == "Checks against float64: 1 ok, 1 not, 1 had no time."
    assert found[1].startswith("- WRONG: ")


def test_inputs_rotate_until_they_do_not_fit_the_cache():
    setup = Setup(0.25, 2, 0.02, "fp32", "cpu")
    device = SimpleNamespace(cache=10**6)
    case = gpu.BLOCKS[0]
    calls, work = gpu.several(case, setup, device)
    assert 1 < len(calls) <= 8
    assert len(calls) == 8 or len(calls) * work.bytes("fp32") >= 3 * device.cache
    first, second = (one["slimse"]() for one in calls[:2])
    assert not torch.equal(first, second)
    # One graph of the compiler serves all of them.
    seen = []
    monkey = replace(setup, compiler=lambda module, inputs: seen.append(1) or module.forward)
    for one, call in zip(compiled(case, monkey, calls), calls, strict=True):
        torch.testing.assert_close(one(), call["sliced"]())
    assert len(seen) == 1


def test_least_time_of_the_model_is_the_sum_over_its_parts():
    ceilings = roofline.Ceilings(1.0, {"fp32": 1.0})
    moves, multiplies = roofline.Work(0, 100), roofline.Work(1000, 0)
    assert (moves + multiplies).seconds("fp32", ceilings) == 400 + 2000
    assert (roofline.Work(0, 0) + moves).parts == (moves,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path):
    """Nor are the libraries for audio and the CPU wanted, which a machine for measuring may lack."""
    hide = "import runpy, sys; sys.modules |= dict.fromkeys(('soundfile', 'soxr', 'numba')); sys.argv[0] = 'gpu'"
    command = [sys.executable, "-c", f"{hide}; runpy.run_module('bench.gpu', run_name='__main__')"]
    command += ["--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_report_command(tmp_path):
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"benchmarks": [entry("slimse", 1.0, 8.0)]}))
    subprocess.run([sys.executable, "-m", "bench.report", times, "--out", tmp_path], check=True, cwd=ROOT)
    assert "encoder 1" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "module", ["exported", "levels", "long_file", "routing_ablation", "streaming", "switching", "tools", "your_network"]
)
def test_a_script_starts(module: str):
    """What takes minutes to run at least imports, and says what it takes."""
    done = subprocess.run([sys.executable, "-m", f"bench.{module}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout.lower()
