"""`slimse.demo`, ``slimse demo``, and the bundled clip."""

from __future__ import annotations

import base64
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import slimse.demo
from slimse import PRESETS, SlimModel
from slimse.audio.enhance import enhance
from slimse.checkpoint import save
from slimse.cli import app
from slimse.demo import bundled_clip, run_demo, spectrogram
from slimse.profiling import profile
from slimse.router import RouterConfig

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
FILES = ["noisy.wav", *(f"enhanced_uf{uf}.wav" for uf in ("0.125", "0.25", "0.5", "1")), "demo.html", "demo.png"]

plot = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the plot extra")


@pytest.fixture(scope="module")
def model() -> SlimModel:
    torch.manual_seed(0)
    return SlimModel("small").eval().requires_grad_(False)


def write(path: Path, *, seconds: float = 0.5, rate: int = 16_000, channels: int = 1, subtype: str = "PCM_16") -> Path:
    audio = 0.1 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))
    soundfile.write(path, audio, rate, subtype=subtype)
    return path


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from a PNG header."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


@plot
def test_writes_sound_at_every_uf_and_a_picture(tmp_path: Path, model: SlimModel) -> None:
    source = write(tmp_path / "in.wav", subtype="FLOAT")
    rows = run_demo(source, tmp_path / "new" / "out", model)
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(FILES)
    noisy, rate = soundfile.read(source, dtype="float32")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "new" / "out" / "noisy.wav", dtype="float32")[0], noisy)
    for row in rows:
        enhanced, _ = soundfile.read(row.path, dtype="float32")
        np.testing.assert_allclose(enhanced, enhance(noisy, rate, row.uf, model=model), atol=1e-6)
        assert row.real_time_factor == pytest.approx(row.seconds / 0.5)
    widths = profile(model).widths
    assert [(row.uf, row.macs_per_sample) for row in rows] == [(width.uf, width.macs_per_sample) for width in widths]
    assert rows[-1].share == 1
    width, height = picture_size(tmp_path / "new" / "out" / "demo.png")
    assert width >= 1200 and height >= 1000


@plot
def test_router_gets_a_row_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    router = RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4)
    model = SlimModel(replace(PRESETS["small"], router=router)).eval().requires_grad_(False)
    assert model.router is not None
    model.router.output.weight.mul_(30)
    drawn = []
    overlay = slimse.demo._overlay
    monkeypatch.setattr(slimse.demo, "_overlay", lambda *args: drawn.append(args) or overlay(*args))
    source = write(tmp_path / "in.wav", subtype="FLOAT", channels=2)
    row = run_demo(source, tmp_path / "out", model)[-1]
    noisy, rate = soundfile.read(source, dtype="float32")
    enhanced, _ = soundfile.read(tmp_path / "out" / "enhanced_auto.wav", dtype="float32")
    np.testing.assert_allclose(enhanced.T, enhance(noisy.T, rate, budget=row.budget, model=model), atol=1e-6)
    signal = torch.from_numpy(noisy.T.copy())
    chosen, _ = model.decide(signal, model.initial_state(2), model.geometry.frames(len(noisy)), row.budget, shared=True)
    np.testing.assert_array_equal(row.chosen, chosen[0])
    assert row.uf == pytest.approx(chosen[0].mean().item())
    assert row.macs_per_sample == pytest.approx(profile(model).macs_per_sample(chosen[0]))
    assert len(drawn) == 1 and drawn[0][1] is row.chosen


@plot
@pytest.mark.parametrize(("rate", "channels", "seconds"), [(44_100, 2, 0.3), (8_000, 1, 0.3), (16_000, 1, 0.0001)])
def test_keeps_rate_channels_and_length(
    tmp_path: Path, model: SlimModel, rate: int, channels: int, seconds: float
) -> None:
    source = write(tmp_path / "in.flac", rate=rate, channels=channels, seconds=seconds)
    run_demo(source, tmp_path / "out", model)
    for name in FILES[:-2]:
        info = soundfile.info(tmp_path / "out" / name)
        assert (info.samplerate, info.channels, info.frames) == (rate, channels, int(seconds * rate))


@plot
def test_picture_of_a_long_file_shows_its_start_and_says_so(
    tmp_path: Path, model: SlimModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    titles, shown = [], []
    suptitle, imshow = Figure.suptitle, slimse.demo.spectrogram
    monkeypatch.setattr(Figure, "suptitle", lambda self, t, **k: (titles.append(t), suptitle(self, t, **k))[1])
    monkeypatch.setattr(slimse.demo, "spectrogram", lambda x, rate: (shown.append(len(x)), imshow(x, rate))[1])
    monkeypatch.setattr(slimse.demo, "PICTURE_SECONDS", 2.0)
    run_demo(write(tmp_path / "a$b_$c.wav", seconds=3), tmp_path / "out", model)
    assert titles == [r"SlimSE: a\$b_\$c.wav, first 2 s"]
    # Of the page, and of the picture.
    assert shown == 2 * [32_000] * 5
    assert soundfile.info(tmp_path / "out" / "enhanced_uf1.wav").frames == 48_000


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_spectrogram_shows_a_sine_at_its_level_and_frequency(rate: int) -> None:
    tone = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    level = spectrogram(tone.astype(np.float32), rate)
    middle = level[:, level.shape[1] // 2]
    assert middle.max() == pytest.approx(-20, abs=0.1)
    assert middle.argmax() * rate / 2 / (len(middle) - 1) == pytest.approx(1000, abs=16)


def test_spectrogram_of_any_length_fits_a_picture() -> None:
    assert spectrogram(np.zeros(1, np.float32), 16_000).shape[1] >= 1
    assert spectrogram(np.zeros(60 * 16_000, np.float32), 16_000).shape[1] <= 1201


@plot
def test_existing_files_stay_unless_forced(tmp_path: Path, model: SlimModel) -> None:
    source, out = write(tmp_path / "in.wav"), tmp_path / "out"
    out.mkdir()
    (out / "demo.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"demo\.png exists already"):
        run_demo(source, out, model)
    assert [path.name for path in out.iterdir()] == ["demo.png"]
    run_demo(source, out, model, force=True)
    assert picture_size(out / "demo.png")
    with pytest.raises(ValueError, match="is one of the files to write"):
        run_demo(out / "noisy.wav", out, model, force=True)


def test_bad_inputs_raise(tmp_path: Path, model: SlimModel) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.wav"):
        run_demo(tmp_path / "none.wav", tmp_path / "out", model)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav: cannot be read"):
        run_demo(tmp_path / "text.wav", tmp_path / "out", model)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    with pytest.raises(ValueError, match=r"empty\.wav: the signal is empty"):
        run_demo(tmp_path / "empty.wav", tmp_path / "out", model)
    assert not list((tmp_path / "out").glob("*"))


def test_without_matplotlib_there_is_sound_and_a_page(
    tmp_path: Path, model: SlimModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slimse.demo, "can_plot", lambda: False)
    run_demo(write(tmp_path / "a<b.wav"), tmp_path / "out", model)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(set(FILES) - {"demo.png"})
    page = (tmp_path / "out" / "demo.html").read_text()
    # One player and one picture for each file, and nothing that has to be loaded.
    assert page.count("<audio ") == page.count("<img ") == len(model.ufs) + 1
    assert "a&lt;b.wav" in page and "a<b.wav" not in page
    assert "http" not in page and page.count('src="') == page.count('src="data:')
    for encoded in re.findall(r"data:image/png;base64,([^\"]+)", page):
        (tmp_path / "one.png").write_bytes(base64.b64decode(encoded))
        assert min(picture_size(tmp_path / "one.png")) > 1


@plot
def test_command_uses_the_bundled_clip_and_prints_where(tmp_path: Path, model: SlimModel) -> None:
    save(model, tmp_path / "small.safetensors")
    options = ["demo", "-o", str(tmp_path / "out"), "--weights", str(tmp_path / "small.safetensors")]
    result = CliRunner().invoke(app, options, env={"COLUMNS": "80"})
    # But for the path, which is in one piece.
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out") in result.stdout.replace("\n", "")
    assert "real-time" in result.stdout
    assert all((tmp_path / "out" / name).is_file() for name in FILES)
    again = CliRunner().invoke(app, options)
    assert again.exit_code == 2 and "--force" in again.stderr


def test_bundled_clip_is_short_small_and_credited() -> None:
    info = soundfile.info(bundled_clip())
    assert (info.samplerate, info.channels, info.format) == (16_000, 1, "FLAC")
    assert info.duration <= 6 and bundled_clip().stat().st_size <= 150_000
    credits = (bundled_clip().parent / "README.md").read_text()
    assert all(text in credits for text in ("3331-159605-0005", "5-203739-A", "CC BY 4.0", "CC0"))


@pytest.fixture
def make_demo_clip() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_clip", ROOT / "bench" / "make_demo_clip.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the recordings in {DATA}")
def test_script_makes_the_bundled_clip(
    tmp_path: Path, make_demo_clip: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "clip.flac"
    monkeypatch.setattr(sys, "argv", ["make_demo_clip.py", "--data", str(DATA), "--out", str(out)])
    make_demo_clip.main()
    np.testing.assert_array_equal(soundfile.read(out)[0], soundfile.read(bundled_clip())[0])


def test_mix_has_the_ratio_asked_for(make_demo_clip: ModuleType) -> None:
    rng = np.random.default_rng(0)
    speech, noise = rng.standard_normal(800), 7 * rng.standard_normal(1000)
    noisy = make_demo_clip.mix(speech, noise)
    scale, gain = np.linalg.lstsq(np.stack([np.pad(speech, 100), noise], axis=1), noisy, rcond=None)[0]
    ratio = np.mean((scale * speech) ** 2) / np.mean((gain * noise[100:900]) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(make_demo_clip.SNR_DB)
    assert np.abs(noisy).max() == pytest.approx(make_demo_clip.PEAK)
