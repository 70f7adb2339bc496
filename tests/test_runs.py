"""Whole runs: interrupted, on several processes, on folders of pairs."""

import csv
import os
import socket
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import slimse
from slimse import PRESETS, SlimModel
from slimse.router import RouterConfig

pytest.importorskip("lightning", reason="training needs the extra slimse[train]")

from slimse.training.config import TrainConfig
from slimse.training.data import PairSegments, TrainingData, training_pairs
from slimse.training.module import SlimmableTraining
from slimse.training.optimizer import MuonAdamW
from slimse.training.run import train

ROUTER = RouterConfig(filters=8, kernel_size=48, stride=16, units=8, knots=4)
CONFIG = TrainConfig(
    stage="joint",
    preset="small",
    seconds=0.4,
    batch=2,
    narrow_batch=2,
    steps=6,
    val_interval=2,
    warmup=2,
    precision="32-true",
    workers=0,
    ema_decay=0.5,
    valid_speakers=("p286", "p287"),
    valid_items=2,
)
PROCESSES = """
import sys, torch, torch.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_runs import CONFIG, MuonAdamW, small, step_module, whole_batch
from slimse.training.run import train

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
module = step_module()
wrapped = torch.nn.parallel.DistributedDataParallel(module)
wrapped(*(x[rank::2] for x in whole_batch())).backward()
gradients = {name: p.grad.clone() for name, p in module.model.named_parameters()}
MuonAdamW(module.model.named_parameters(), 0.01).step()
torch.save((gradients, module.routing.state_dict(), module.model.state_dict()), f"{sys.argv[1]}/{rank}.pt")
train(CONFIG.override(steps=2), Path(sys.argv[2]), Path(sys.argv[1]) / "run", None, small(), False, devices=2)
"""


def small():
    torch.manual_seed(0)
    return SlimModel(replace(PRESETS["small"], router=ROUTER))


def whole_batch():
    generator = torch.Generator().manual_seed(1)
    clean = 0.05 * torch.randn(4, 1, 4000, generator=generator)
    return clean + 0.05 * torch.randn(4, 1, 4000, generator=generator), clean


def step_module():
    """A training step as a forward: what `torch.nn.parallel.DistributedDataParallel` wraps."""
    module = SlimmableTraining(CONFIG.override(batch=4, narrow_batch=4), small())
    module.log = module.log_dict = lambda *_, **__: None
    module.forward = lambda noisy, clean: module.training_step((noisy, clean), 0)
    return module


@pytest.fixture
def voicebank(tmp_path):
    """Files as in VoiceBank+DEMAND: 48 kHz, four folders, speakers in the names."""
    rng = np.random.default_rng(0)
    for part, speakers in (("trainset_28spk", ("p226", "p230", "p286", "p287")), ("testset", ("p232",))):
        for speaker in speakers:
            for number in range(2):
                clean = 0.1 * np.sin(2 * np.pi * rng.uniform(100, 300) * np.arange(36_000) / 48_000)
                for kind, audio in (("clean", clean), ("noisy", clean + 0.05 * rng.standard_normal(36_000))):
                    path = tmp_path / "vb" / f"{kind}_{part}_wav" / f"{speaker}_{number:03}.wav"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    soundfile.write(path, audio, 48_000)
    return tmp_path / "vb"


def curve(folder):
    """The logged training losses of a run, by step."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/routed"]]
    names = ("step", "train/routed", "train/1.0", "train/efficiency", "train/benefit")
    return [[float(row[name]) for name in names] for row in rows]


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(voicebank, tmp_path, monkeypatch, capsys):
    whole = train(CONFIG, voicebank, tmp_path / "whole", None, small(), progress=False)
    step = SlimmableTraining.training_step

    def dies(self, batch, index):
        if self.global_step == 5:
            raise MemoryError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(SlimmableTraining, "training_step", dies)
    with pytest.raises(MemoryError, match="killed"):
        train(CONFIG, voicebank, tmp_path / "cut", None, small(), progress=False)
    monkeypatch.undo()
    # What a death in the middle of writing leaves behind must not matter.
    assert [path.name for path in (tmp_path / "cut").glob("*.ckpt")] == ["last.ckpt"]
    with pytest.raises(ValueError, match=r"last.ckpt is of stage 'joint', the recipe of 'router'") as failed:
        train(CONFIG.override(stage="router"), voicebank, tmp_path / "cut", None, small(), progress=False)
    assert "\n" not in str(failed.value)
    with pytest.raises(ValueError, match="does not fit the recipe"):
        train(CONFIG, voicebank, tmp_path / "cut", None, SlimModel("small"), progress=False)
    capsys.readouterr()
    resumed = train(CONFIG, voicebank, tmp_path / "cut", None, small())
    # No advertisement, no warning of another package: what a log of the run holds is ours.
    said = capsys.readouterr()
    assert said.out == ""
    starts = "going on from step 4", "step 5 of 6  loss ", "step 6 of 6  loss ", "step 6: validation", "calibr", "final"
    for line, start in zip(said.err.splitlines(), starts, strict=True):
        assert line.startswith(start), said.err
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert len(curve(tmp_path / "whole")) == 3
    one, other = slimse.load(whole).state_dict(), slimse.load(resumed).state_dict()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert "valid/si_sdr/router" in (tmp_path / "whole" / "metrics.csv").read_text()


def test_other_ufs_are_trained_and_calibrated(voicebank, tmp_path):
    """Budgets, knots and calibration follow the model's own set, not that of the preset."""
    config = replace(CONFIG, stage="joint", ufs=(0.25, 0.5, 1.0), steps=2)
    path = train(config, voicebank, tmp_path, None, progress=False)
    model = slimse.load(path)
    assert model.ufs == (0.25, 0.5, 1.0)
    router = model.router
    assert router.budgets[0] == pytest.approx(0.25)
    assert float(router.calibrated_budgets[0]) == pytest.approx(0.25)
    assert (router.calibrated_budgets.diff() >= 0).all()
    assert (router.knot_weights(torch.tensor([0.1, 0.25, 0.6, 1.0])).sum(1) - 1).abs().max() < 1e-5
    noisy = 0.05 * torch.randn(1, 1, 4000)
    assert (model.route(noisy, 0.25) == 0.25).all()
    with pytest.raises(ValueError, match=r"budget_low = 0.125, budget_high = 1.0: expected 0.25 to 1"):
        SlimmableTraining(replace(config, budget_low=0.125), model)
    with pytest.raises(ValueError, match=r"ufs = \(0.5, 1.0\): expected \(0.25, 0.5, 1.0\)"):
        SlimmableTraining(replace(config, ufs=(0.5, 1.0)), model)


def test_other_sample_rates_are_refused_before_anything_is_written(tmp_path):
    model = SlimModel(replace(PRESETS["small"].network, sample_rate=48_000))
    with pytest.raises(ValueError, match="sample_rate = 48000 of the model: the loss supports 16000 Hz alone"):
        train(replace(CONFIG, stage="backbone"), tmp_path / "data", tmp_path / "out", None, model, progress=False)
    assert not (tmp_path / "out").exists()


def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(voicebank, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(PROCESSES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", port, str(script), str(tmp_path), str(voicebank)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([*command, str(Path(__file__).parent)], check=True, timeout=300, env=environment)
    (gradients, routing, stepped), (_, _, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    module = step_module()
    module(*whole_batch()).backward()
    for name, parameter in module.model.named_parameters():
        assert parameter.grad.norm() > 0
        # Sums of single precision in another order; an item left out would show in the first digit.
        assert (gradients[name] - parameter.grad).norm() <= 1e-3 * parameter.grad.norm(), name
    for name, tensor in module.routing.state_dict().items():
        assert torch.allclose(routing[name], tensor, atol=1e-6), name
    # The step that two processes share is the step of one.
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    for name, parameter in module.model.named_parameters():
        parameter.grad = gradients[name]
    MuonAdamW(module.model.named_parameters(), 0.01).step()
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(stepped[name], other[name]), name
        # bfloat16 rounds sums of another order apart.
        assert (stepped[name] - tensor).norm() <= 0.02 * (tensor - before[name]).norm(), name
    assert slimse.load(tmp_path / "run" / "model.safetensors").router is not None


def test_any_key_of_a_recipe_can_be_set():
    settings = ["steps=7", "stage=joint", "mixing.snr_low=-10", "mixing.set_weights.mine=2", 'valid_speakers=["p1"]']
    found = TrainConfig.read("backbone").with_settings([*settings, "init=a=b.safetensors"])
    assert (found.steps, found.stage, found.init, found.valid_speakers) == (7, "joint", "a=b.safetensors", ("p1",))
    assert found.mixing.snr_low == -10.0
    assert found.mixing.set_weights["mine"] == 2.0
    assert found.batch == TrainConfig.read("backbone").batch
    for setting, message in {
        "steps": "expected key=value",
        "step=7": r"unknown keys \['step'\]",
        "mixing.loud=1": r"unknown keys \['mixing.loud'\]",
        "steps=7.5": "steps = 7.5 in a training recipe: expected an integer",
        "steps=many": "steps = 'many' in a training recipe: expected an integer",
        "steps.x=1": "steps holds one value",
        "mixing.room=2": "mixing.room = 2.0: expected a chance",
    }.items():
        with pytest.raises(ValueError, match=message):
            TrainConfig.read("backbone").with_settings([setting])


def test_processes_share_the_items_of_a_step(voicebank):
    def batches(processes, batch):
        found = []
        for rank in range(processes):
            data = TrainingData(voicebank, None, CONFIG.override(batch=batch), 16_000)
            data.trainer = types.SimpleNamespace(world_size=processes, global_rank=rank, global_step=3)
            found.append([noisy for noisy, _ in data.train_dataloader()])
        return [torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*found, strict=True)]

    for one, two in zip(batches(1, 4), batches(2, 2), strict=True):
        assert torch.equal(one, two)


def test_voicebank_keeps_its_two_speakers_for_watching(voicebank):
    data = TrainingData(voicebank, None, TrainConfig.read("voicebank"), 16_000)
    assert {pair.name[:4] for pair in data.pairs} == {"p226", "p230"}
    assert {pair.name[:4] for pair in data.watched.pairs} == {"p286", "p287"}
    assert len(training_pairs(voicebank)) == 8
    with pytest.raises(ValueError, match="expected others too"):
        TrainingData(voicebank, None, CONFIG.override(valid_speakers=("p226", "p230", "p286", "p287")), 16_000)


def test_segments_of_pairs_are_aligned_and_repeatable(voicebank):
    pairs = training_pairs(voicebank)
    items, later = (PairSegments(pairs, 4000, 20, 1, offset, 16_000) for offset in (0, 5))
    noisy, clean = items[7]
    assert noisy.shape == clean.shape == (1, 4000)
    assert torch.equal(noisy, later[2][0])
    error = (noisy - clean).std()
    assert error < clean.std()
    longer = PairSegments(pairs, 20_000, 1, 1, 0, 16_000)[0][0]
    assert not longer[:, 12_100:].any()


def test_fine_tuning_on_a_folder_of_pairs_is_one_command(voicebank, tmp_path):
    from typer.testing import CliRunner

    from slimse.cli import app

    pairs = tmp_path / "mine"
    pairs.mkdir()
    for kind in ("noisy", "clean"):
        (voicebank / f"{kind}_testset_wav").rename(pairs / kind)
    slimse.save(SlimModel("small"), tmp_path / "start.safetensors")
    recipe = tmp_path / "tune.toml"
    recipe.write_text(
        'stage = "joint"\nseconds = 0.4\nbatch = 2\nnarrow_batch = 2\nsteps = 1\n'
        'val_interval = 1\nprecision = "32-true"\n'
        f'workers = 0\ninit = "{tmp_path / "start.safetensors"}"\n'
    )
    result = CliRunner().invoke(app, ["train", str(recipe), "--data", str(pairs), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert slimse.load(tmp_path / "out" / "model.safetensors").router is not None


def test_scores_are_said_in_words():
    from slimse.training.progress import scores_in_words

    scores = {"valid/si_sdr/router": 5.61, "valid/si_sdr/1.0": 6.0, "valid/loss/1.0": 0.3, "valid/uf/0.25": 0.254}
    expected = "validation SI-SDR: UF 1.0 6.00 dB, router 5.61 dB, average UF 0.254 at budget 0.25"
    assert scores_in_words(scores) == expected
