"""`bench/travel.py`: recordings and runs that travel in pieces arrive as they were."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("lightning", reason="training needs the extra slimse[train]")

from bench import travel
from slimse.training.held_out import held_out_speakers


def test_parts_hold_all_but_what_is_held_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    held = min(held_out_speakers())
    names = [f"speech/set/{voice}/{clip}" for voice in ("a", "b", held) for clip in range(4)]
    for name in [f"train/{name}" for name in names] + ["train/rir/r", "valid/mixed/noisy/1", "valid/mixed/clean/1"]:
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(1000), 16_000)
    found = travel.parts(tmp_path, tmp_path / "parts", 6000)
    assert len(found) > 3
    assert max(path.stat().st_size for path in found) <= 6000
    # One that is left behind makes a smaller set, without the rest being useless.
    assert travel.unpack(tmp_path / "parts", tmp_path / "there") == len(found)
    arrived = {path.relative_to(tmp_path / "there").as_posix() for path in (tmp_path / "there").rglob("*.wav")}
    wanted = {f"train/{name}.wav" for name in names if held not in name}
    assert arrived == wanted | {"train/rir/r.wav", "valid/noisy/1.wav", "valid/clean/1.wav"}
    one = tmp_path / "train/speech/set/a/0.wav"
    assert (tmp_path / "there/train/speech/set/a/0.wav").read_bytes() == one.read_bytes()


def test_a_packed_run_is_united_and_an_earlier_one_replaced(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    weights, momentum = torch.randn(50, 40), torch.randn(50, 40)
    state = {"state_dict": {"w": weights}, "optimizer_states": [{"state": {0: {"momentum": momentum}}}]}
    torch.save(state, run / "last.ckpt")
    (run / "metrics.csv").write_bytes(random.Random(0).randbytes(20_000))
    assert len(travel.pack(run, out, 4000)) > 5
    (run / "metrics.csv").write_text("step\n1\n")
    pieces = travel.pack(run, out, 4000)
    assert sorted(out.iterdir()) == sorted(pieces)
    assert max(path.stat().st_size for path in pieces) <= 4000
    assert set(travel.unite(out, tmp_path / "home")) == {"last.ckpt", "metrics.csv"}
    found = torch.load(tmp_path / "home" / "last.ckpt", weights_only=False)
    assert torch.equal(found["state_dict"]["w"], weights)
    kept = found["optimizer_states"][0]["state"][0]["momentum"]
    assert kept.dtype == torch.bfloat16 and (kept.float() - momentum).norm() < 0.01 * momentum.norm()
    assert (tmp_path / "home" / "metrics.csv").read_text() == "step\n1\n"
    with pytest.raises(SystemExit, match="no state-0"):
        travel.unite(tmp_path / "nowhere", tmp_path / "home")
