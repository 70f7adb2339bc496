"""The report's page and pictures, and what is measured for them."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import slimse
from slimse import PRESETS, SlimModel
from slimse.cli import app
from slimse.evaluation import METRICS, find_pairs
from slimse.router import RouterConfig

pytest.importorskip("matplotlib", reason="reports need the extra slimse[train]")
pytest.importorskip("pystoi", reason="reports need the extra slimse[train]")

from slimse.evaluation.routing import rank_correlation, use_by_input
from slimse.report import drop_effect, page, trace_drop, write_report


@pytest.fixture(scope="module")
def model():
    """The louder the sound, the wider."""
    torch.manual_seed(0)
    router = RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4)
    model = SlimModel(replace(PRESETS["small"], router=router)).eval().requires_grad_(False)
    ours = model.router
    for parameter in (ours.input.weight, ours.output.weight, ours.bias_ih):
        parameter.zero_()
    # The new gate of every unit hears all bands; half of what it says is kept per frame.
    ours.input.weight[16:] = 1.0
    ours.bias_ih[:, 16:] = -6.0
    ours.bias_width.fill_(-2.5)
    ours.output.weight.fill_(0.4)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    time = np.arange(int(4.2 * 16_000)) / 16_000
    clean = 0.1 * np.sin(2 * np.pi * 150 * time) * (np.sin(2 * np.pi * 2 * time) > 0)
    for name, level in (("a", 0.01), ("b", 0.05), ("c", 0.2)):
        for kind, audio in (("noisy", clean + level * rng.standard_normal(len(clean))), ("clean", clean)):
            (root / kind).mkdir(exist_ok=True)
            soundfile.write(root / kind / f"{name}.wav", audio.clip(-1, 1), 16_000)
    return root


def test_a_softer_noise_is_followed(model, folders):
    noisy, clean = (soundfile.read(folders / kind / "c.wav", dtype="float32")[0] for kind in ("noisy", "clean"))
    trace = trace_drop(model, noisy, clean, 0.5)
    assert trace.drop == pytest.approx((1.6, 2.6))
    error = np.square(trace.noisy - clean)
    inside, outside = error[27_000:40_000].mean(), error[:24_000].mean()
    assert 10 * np.log10(outside / inside) == pytest.approx(10, abs=0.5)
    assert len(trace.chosen) == model.geometry.frames(len(noisy))
    assert trace.average_uf(inside=True) < trace.average_uf(inside=False)
    assert np.isfinite(trace.improvement).any()
    with pytest.raises(ValueError, match=r"lasts 1\.00 s"):
        trace_drop(model, noisy[:16_000], clean[:16_000], 0.5)
    effect = drop_effect(model, [(noisy, clean)], 0.5)
    assert effect.softer == pytest.approx([trace.average_uf(inside=True)], abs=0.02)
    assert effect.softer < effect.as_it_was
    assert "lower in 1 and higher in 0 of 1 clips." in effect.sentence()


def test_the_pair_that_is_traced_is_near_0_db_and_steady(folders, tmp_path):
    pairs = find_pairs(folders / "noisy", folders / "clean")
    assert page._pairs_to_trace(pairs)[0].name == "b"
    noisy, clean = (soundfile.read(folders / kind / "b.wav")[0] for kind in ("noisy", "clean"))
    bursts = (noisy - clean) * np.where(np.arange(len(clean)) // 8000 % 4 == 0, 2, 0.01)
    for kind, audio in (("noisy", clean + bursts), ("clean", clean)):
        (tmp_path / kind).mkdir()
        soundfile.write(tmp_path / kind / "bursts.wav", audio, 16_000)
    # Files that are not aligned are left to the evaluation, which names them.
    soundfile.write(tmp_path / "noisy" / "longer.wav", np.tile(noisy, 2), 16_000)
    soundfile.write(tmp_path / "clean" / "longer.wav", clean, 16_000)
    bursting = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    chosen, long = page._pairs_to_trace([*bursting, *pairs])
    assert chosen.name == "b" and len(long) == 4


def check_players(html, model, folders):
    """The noisiest file first: noisy, narrowest, router, widest and clean, as they are."""
    sounds = re.findall(r'<audio [^>]*aria-label="([^"]+)" src="data:audio/wav;base64,([^"]+)"', html)
    kinds = ("noisy", "UF 0.125", "budget 0.6", "UF 1", "clean")
    assert [name for name, _ in sounds] == [f"{file}, {kind}" for file in "cba" for kind in kinds]
    heard = {name: soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")[0] for name, data in sounds}
    noisy, clean = (soundfile.read(folders / kind / "b.wav", dtype="float32")[0] for kind in ("noisy", "clean"))
    signal = torch.from_numpy(noisy)[None, None]
    for kind, expected in (
        ("noisy", noisy),
        ("clean", clean),
        ("UF 1", model(signal, 1.0)[0, 0].numpy()),
        ("budget 0.6", model(signal, model.route(signal, 0.6))[0, 0].numpy()),
    ):
        # Where the sound goes beyond full scale, the file clips.
        assert np.abs(heard[f"b, {kind}"] - expected.clip(-1, 1)).max() < 1e-4


def test_the_page_holds_table_and_pictures(model, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "METRIC_NAMES", ("si_sdr", "stoi"))
    pairs = find_pairs(folders / "noisy", folders / "clean")
    report = write_report(model, "small <1>", pairs, tmp_path, (0.3, 0.6), jobs=1)
    html = (tmp_path / "report.html").read_text()
    assert "small &lt;1&gt;" in html
    assert not re.search(r"(src|href)=.(?!data:)", html)
    pictures = re.findall(r"image/png;base64,([^\"]+)", html)
    names = ("front_uf", "front_macs", "shares", "scatter", "trace")
    for name, picture in zip(names, pictures, strict=True):
        png = (tmp_path / f"{name}.png").read_bytes()
        assert base64.b64decode(picture) == png
        assert png.startswith(b"\x89PNG")
    content = json.loads((tmp_path / "report.json").read_text())
    assert (
        [row["budget"] for row in content["routing"]] == [row["budget"] for row in content["noise_drop"]] == [0.3, 0.6]
    )
    assert [row["rank_correlation"] for row in content["routing"]] == pytest.approx([-1, -1])
    assert "Noise 10 dB softer for 1 s, at budget 0.6" in html
    means = {row["budget"] or row["uf"]: row for row in content["means"]}
    assert f"{means[0.3]['macs_per_sample']:,.0f}" in html
    assert f"{means[1.0]['si_sdr']:.1f}" in html
    row = next(row for row in report.means() if row.uf is None)
    low, high = row.intervals["si_sdr"][1:]
    assert f"{row.values['si_sdr']:.1f} <small>{low:.1f} to {high:.1f}</small>" in html
    # Every measure of the table is explained.
    assert all(html.count(f"<li><b>{METRICS[name].title}</b> {METRICS[name].meaning}") == 1 for name in report.metrics)
    check_players(html, model, folders)
    levels, used = use_by_input(report)[0.3]
    assert len(levels) == 3
    # The files differ in level alone, and the model is one that goes by it.
    assert rank_correlation(levels, used) == pytest.approx(-1)


def test_rank_correlation_shares_ranks():
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert rank_correlation([1, 2, 2, 3], [3, 1, 1, 0]) == pytest.approx(-1)
    assert np.isnan(rank_correlation([1, 2], [5, 5]))


def test_the_command_says_what_is_missing(folders, tmp_path):
    slimse.save(SlimModel("small"), tmp_path / "none.safetensors")
    arguments = ["report", str(folders / "noisy"), str(folders / "clean"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--weights", str(tmp_path / "none.safetensors"), "--jobs", "1"])
    assert result.exit_code == 2
    assert "no router" in result.output
    assert not (tmp_path / "out").exists()
