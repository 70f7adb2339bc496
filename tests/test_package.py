"""The package as installed: imports, the command, the bundled weights."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from typer.testing import CliRunner

import slimse
from slimse.cli import app
from slimse.demo import bundled_clip

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_import_needs_neither_triton_nor_audio_libraries():
    blocked = "import sys; sys.modules.update(dict.fromkeys(('triton', 'soundfile', 'soxr', 'lightning'), None)); "
    code = "import slimse, torch; print(slimse.SlimModel('small')(torch.zeros(1, 1, 100), 0.25).shape)"
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1, 1, 100])"


def test_public_names_exist():
    assert all(hasattr(slimse, name) for name in slimse.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = slimse.nothing


def test_kernels_are_a_part_of_the_package_only():
    import slimse.kernels as kernels

    spec = importlib.util.spec_from_file_location("kernels", kernels.__file__)
    with pytest.raises(ImportError, match=r"slimse\.kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_profile_as_table_and_json():
    table = run("profile", "paper")
    assert table.exit_code == 0
    assert all(text in table.stdout for text in ("8,928", "55,968", "6.27x", "47.7 ms"))
    result = json.loads(run("profile", "paper", "--json").stdout)
    assert [width["uf"] for width in result["widths"]] == [0.125, 0.25, 0.5, 1.0]
    assert result["widths"][0]["blocks"]["bottleneck"] == 1536


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slimse", "profile", "small", "--json"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("slimse", run_name="__main__")
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["widths"]


def test_a_mistake_is_one_line_and_status_2():
    for arguments, message in (
        (
            ("profile", "nothing"),
            "no weights 'nothing': expected a .safetensors file, OWNER/NAME on the hub, or bundled weights, one of [",
        ),
        (("profile", "nothing"), "or a preset of ['dns48', "),
        (
            ("train", "nothing", "--data", ".", "-o", "out"),
            # Without the extra, nothing of training can be named.
            "one of ['backbone', " if importlib.util.find_spec("lightning") else "training needs lightning",
        ),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    with pytest.raises(FileNotFoundError):
        CliRunner().invoke(app, ["--traceback", "profile", "nothing"], catch_exceptions=False)


def test_the_readme_names_both_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert sum(line.startswith("pip install") and line.endswith("&& slimse demo") for line in lines) == 1
    assert sum(line.startswith("pip install") and "&& pytest" in line for line in lines) == 1


# Bundled weights -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return slimse.load()


@pytest.fixture(scope="module")
def speech():
    return torch.from_numpy(soundfile.read(bundled_clip(), dtype="float32")[0])


def test_weights_are_the_dynamic_preset_with_a_card(model):
    assert model.config == slimse.PRESETS["dynamic"]
    assert not model.training
    card = (Path(slimse.__file__).parent / "weights" / "dynamic-v1.md").read_text()
    for part in ("Data", "Training", "Quality", "Licence", "LibriSpeech", "PESQ"):
        assert part in card


@torch.no_grad()
def test_enhancing_the_bundled_clip_lowers_the_rain(model, speech):
    """The clip starts and ends in rain alone; the speech between must survive."""
    noisy = speech.numpy()
    energy = speech.unfold(0, 1600, 1600).square().mean(-1)
    quiet = energy < energy.quantile(0.2)
    for uf in model.ufs:
        enhanced = torch.from_numpy(slimse.enhance(noisy, 16_000, uf))
        after = enhanced.unfold(0, 1600, 1600).square().mean(-1)
        assert 10 * torch.log10(energy[quiet].mean() / after[quiet].mean()) > 6
        loud = energy > energy.quantile(0.9)
        assert abs(10 * torch.log10(energy[loud].mean() / after[loud].mean())) < 3


def largest_jump(signal):
    return float(signal.diff().abs().max())


@torch.no_grad()
def test_changing_the_width_at_every_frame_makes_no_click(model, shared):
    """In no recording a sample-to-sample jump beyond 1.1 times that of the static widths: four noisy voices."""
    ufs = torch.tensor(model.ufs)
    for path in sorted((shared / "data" / "valid" / "mixed" / "noisy").iterdir())[::15]:
        noisy = torch.from_numpy(soundfile.read(path, dtype="float32", frames=32_000)[0])[None, None]
        frames = model.geometry.frames(noisy.shape[2])
        static = [largest_jump(model(noisy, uf)) for uf in model.ufs]
        orders = [torch.tensor(order).repeat(frames)[:frames] for order in ([0, 3], [1, 2], [0, 1, 2, 3])]
        orders.append(torch.randint(4, (frames,), generator=torch.Generator().manual_seed(0)))
        switching = [largest_jump(model(noisy, ufs[order][None])) for order in orders]
        assert max(switching) < 1.1 * max(static), path.name
