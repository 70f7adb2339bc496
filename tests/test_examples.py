"""The files in ``examples`` that no other test runs."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import slimse

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_a_file_streamed_by_chunks(tmp_path, monkeypatch, rate, channels):
    sound = 0.1 * np.random.default_rng(0).standard_normal((rate // 2 + 77, channels))
    soundfile.write(tmp_path / "noisy.wav", sound, rate, "FLOAT")
    run(monkeypatch, "stream_file.py", tmp_path / "noisy.wav", tmp_path / "enhanced.wav")
    out, found = soundfile.read(tmp_path / "enhanced.wav", always_2d=True)
    assert (out.shape, found) == (sound.shape, rate)
    if rate == 16_000:
        expected = slimse.enhance(sound.T.astype(np.float32), rate, budget=0.25).T
        assert np.abs(out - expected).max() < 1e-4 * np.abs(expected).max() + 1 / 32_768


def test_fine_tuning_on_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    rng = np.random.default_rng(1)
    for kind in ("speech", "noise"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        soundfile.write(tmp_path / "data" / kind / "a.wav", 0.1 * rng.standard_normal(48_000), 16_000)
    noisy, enhanced = tmp_path / "data" / "noise" / "a.wav", tmp_path / "enhanced.wav"
    run(monkeypatch, "train_on_folder.py", tmp_path / "data", tmp_path / "run", noisy, enhanced, 1)
    assert len(soundfile.read(enhanced)[0]) == 48_000
    assert (tmp_path / "run" / "model.safetensors").exists()
