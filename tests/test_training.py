"""The recipe learns, resumes exactly, and writes weights that load."""

import types

import numpy as np
import pytest
import soundfile
import torch
from causal_conv import ConvConfig

import slimse
from slimse import PRESETS, SlimModel

pytest.importorskip("lightning", reason="training needs the extra slimse[train]")

from slimse.training.bank import Bank, load_rooms
from slimse.training.config import TrainConfig, recipe_names
from slimse.training.data import TrainingData
from slimse.training.losses import EnhancementLoss, PesqDistance
from slimse.training.mixing import Mixer, Recipe
from slimse.training.module import SlimmableTraining, by_loudness, wandering
from slimse.training.optimizer import MuonAdamW, orthogonalise
from slimse.training.rendering import rms
from slimse.training.run import train
from slimse.training.time_budget import TimeBudget

CONFIG = TrainConfig(
    preset="small",
    seconds=0.5,
    batch=3,
    narrow_batch=2,
    steps=6,
    val_interval=3,
    warmup=2,
    precision="32-true",
    workers=0,
    ema_decay=0.5,
)


@pytest.fixture
def data(tmp_path):
    """Buzzes for speech, noise for noise, a decaying room; noisy and clean pairs to validate on."""
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    for speaker in ("a", "b"):
        for clip in range(2):
            buzz = np.sign(np.sin(2 * np.pi * rng.uniform(90, 200) * time)) * (np.sin(2 * np.pi * 3 * time) > 0)
            write(tmp_path / "train" / "speech" / speaker / f"{clip}.wav", 0.1 * buzz)
    write(tmp_path / "train" / "noise" / "hiss.flac", 0.1 * rng.standard_normal(16_000))
    write(
        tmp_path / "train" / "rir" / "room.wav", 0.3 * rng.standard_normal(4000) * np.exp(-np.arange(4000) / 500), 8000
    )
    for name in ("1.wav", "2.wav"):
        clean = 0.1 * np.sin(2 * np.pi * 200 * time)
        write(tmp_path / "valid" / "clean" / name, clean)
        write(tmp_path / "valid" / "noisy" / name, clean + 0.05 * rng.standard_normal(16_000))
    return tmp_path


def write(path, audio, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio.astype(np.float32), rate)


def mixer(data, **changes):
    speech, noise = (Bank.load(data / "train" / kind, 16_000) for kind in ("speech", "noise"))
    rooms = load_rooms(data / "train" / "rir", 16_000)
    return Mixer(speech, noise, rooms, **{"length": 8000, "size": 40, "seed": 1, **changes})


def test_items_depend_on_seed_and_index_alone(data):
    first, again, later = mixer(data), mixer(data), mixer(data, offset=3)
    assert torch.equal(first[5][0], again[5][0])
    assert torch.equal(first[5][1], later[2][1])
    assert not torch.equal(first[5][0], first[6][0])
    assert not torch.equal(first[5][0], mixer(data, seed=2)[5][0])


def test_wandering_widths_stay_for_a_while_and_use_all():
    indices = wandering(np.random.default_rng(0), 4, 2000, 4).numpy()
    assert indices.shape == (4, 2000)
    assert np.bincount(indices.ravel()).min() > 0.2 * indices.size
    # A fifth of the frames draw anew, and a quarter of those draw what there was.
    assert (indices[:, 1:] != indices[:, :-1]).mean() == pytest.approx(0.15, abs=0.02)
    assert len({tuple(row) for row in indices}) == 4


def test_switching_steps_run_the_batch_at_widths_that_change(data, monkeypatch):
    model = SlimModel("small")
    module = SlimmableTraining(CONFIG.override(switching=0.999), model)
    monkeypatch.setattr(module, "log", lambda *_: None)
    called = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, uf: called.append(uf) or forward(x, uf))
    noisy, clean = (torch.stack(pair) for pair in zip(*(mixer(data)[i] for i in range(3)), strict=True))
    monkeypatch.setattr(SlimmableTraining, "global_step", 0)
    module.training_step((noisy, clean), 0).backward()
    (ufs,) = called
    assert ufs.shape == (3, model.geometry.frames(8000))
    assert len(ufs.unique()) > 2


def test_louder_frames_get_wider_widths_within_the_budget():
    ufs, frames = PRESETS["paper"].network.ufs, 400
    loud = torch.arange(frames) % 40 < 20
    noisy = torch.randn(2, 1, frames * 256) * torch.where(loud, 0.1, 0.001).repeat_interleave(256)
    budget = torch.tensor([0.2, 0.6])
    chosen = ufs.at(by_loudness(noisy, budget, 256, torch.zeros(2, frames), ufs))
    assert chosen.mean(1).tolist() == pytest.approx(budget.tolist(), abs=0.02)
    assert (chosen[:, loud].mean(1) > chosen[:, ~loud].mean(1) + 0.05).all()


def test_mixtures_keep_their_promises(data):
    recipe = Recipe(clean=0.2, noise_only=0.2)
    kinds = {"clean": 0, "noise only": 0, "mixed": 0}
    for noisy, clean in (mixer(data, recipe=recipe)[index] for index in range(40)):
        assert noisy.shape == clean.shape == (1, 8000)
        assert noisy.dtype == clean.dtype == torch.float32
        assert noisy.abs().max() <= 0.991
        level = 20 * np.log10(rms(noisy.numpy()))
        assert level < recipe.level_high + 0.1
        assert level > recipe.level_low - 0.1 or noisy.abs().max() > 0.98
        kinds["noise only" if not clean.any() else "clean" if torch.equal(noisy, clean) else "mixed"] += 1
    assert min(kinds.values()) > 0


def test_rooms_start_at_their_peak_and_keep_the_energy(data):
    (room,) = load_rooms(data / "train" / "rir", 16_000)
    assert np.abs(room).argmax() == 0
    assert np.linalg.norm(room) == pytest.approx(1, rel=1e-4)


def test_many_voices_outweigh_a_long_recording_of_one(tmp_path):
    for speaker in range(9):
        write(tmp_path / "many" / str(speaker) / "1.wav", 0.1 * np.ones(1000))
    write(tmp_path / "one" / "1.wav", 0.1 * np.ones(9000))
    many, one = Bank.load(tmp_path, 16_000).weights
    assert many == pytest.approx(3 * one)


def test_a_bank_without_audio_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no audio files below"):
        Bank.load(tmp_path, 16_000)


def test_loss_is_lowest_for_the_clean_signal_and_blind_to_level():
    loss = EnhancementLoss()
    clean, noise = 0.1 * torch.randn(2, 1, 4000), 0.1 * torch.randn(2, 1, 4000)
    noisy = clean + noise
    # No distance, and the floor of the error level: 30 dB down.
    best = float(loss(clean, clean, noisy))
    assert best == pytest.approx(-30 * loss.error_level, abs=1e-6)
    half, whole = loss(clean + 0.5 * noise, clean, noisy), loss(noisy, clean, noisy)
    assert best < half < whole
    assert loss(0.01 * noisy, 0.01 * clean, 0.01 * noisy) == pytest.approx(float(whole), rel=1e-4)


def test_loss_has_a_finite_gradient_at_silence():
    estimate = torch.zeros(1, 1, 4000, requires_grad=True)
    EnhancementLoss()(estimate, torch.zeros(1, 1, 4000), torch.zeros(1, 1, 4000)).backward()
    assert estimate.grad.isfinite().all()


def test_pesq_distance_hears_what_ears_hear():
    rng = torch.Generator().manual_seed(0)
    times = torch.arange(16_000) / 16_000
    tones = [torch.sin(2 * torch.pi * hertz * times) for hertz in (300.0, 3000.0, 30.0)]
    clean = (tones[0] + 0.3 * torch.randn(1, 16_000, generator=rng)) * (1.1 + torch.sin(20 * times))
    noise = torch.randn(1, 16_000, generator=rng)
    distance = PesqDistance()

    assert distance(clean, clean) < 1e-3
    assert distance(0.5 * clean, clean) < 1e-3
    little, much = (float(distance(clean + level * noise, clean)) for level in (0.1, 0.3))
    assert 0.1 < little < much < 4.5
    assert distance(0.01 * (clean + 0.3 * noise), 0.01 * clean) == pytest.approx(much, rel=1e-3)
    # What is heard counts, and what was added more than what is missing.
    middle, low = (float(distance(clean + 0.2 * tone, clean)) for tone in tones[1:])
    assert middle > 1.5 * low
    assert little > 1.5 * distance(clean, clean + 0.1 * noise)
    # It means nothing for noise alone, but must not spoil the sum it is a part of.
    estimate = noise.clone().requires_grad_()
    alone = distance(estimate, 0 * clean)
    alone.sum().backward()
    assert torch.isfinite(alone).all()
    assert torch.isfinite(estimate.grad).all()


def test_pesq_distance_follows_pesq(shared):
    pesq = pytest.importorskip("pesq", reason="PESQ comes with the extra slimse[metrics]").pesq
    scipy_stats = pytest.importorskip("scipy.stats")
    folder, distance = shared / "data/valid/mixed", PesqDistance()
    lost, scores = [], []
    for path in sorted((folder / "noisy").iterdir())[::6]:
        noisy, clean = (soundfile.read(p, dtype="float32")[0][:64_000] for p in (path, folder / "clean" / path.name))
        lost.append(float(distance(torch.from_numpy(noisy)[None], torch.from_numpy(clean)[None])))
        scores.append(pesq(16_000, clean, noisy, "wb"))
    assert scipy_stats.spearmanr(lost, scores).statistic < -0.9


def test_muon_orthogonalises_and_biases_take_adamw():
    for shape in ((6, 20), (20, 6), (3, 8, 8)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.5
        assert values.max() < 1.4
    layer = torch.nn.Linear(8, 4)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = MuonAdamW(layer.named_parameters(), 0.01, weight_decay=0.0)
    layer(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()
    change = (layer.weight - weight).detach()
    # The size of AdamW's usual update, 0.2 per element of the longer side's root, whatever the gradient's scale.
    assert change.norm() / (0.01 * 0.2 * 8**0.5 * 4**0.5) == pytest.approx(1, rel=0.3)
    assert float((layer.bias - bias).detach().abs().max()) == pytest.approx(0.01, rel=1e-3)


def test_muon_learns_gates_and_groups_as_matrices():
    weight = torch.nn.Parameter(torch.randn(8, 2, 8))
    optimizer = MuonAdamW([("glu_weight", weight)], 1.0, weight_decay=0.0)
    before = weight.detach().clone()
    weight.grad = torch.randn(8, 2, 8)
    optimizer.step()
    matrices = [*(weight.detach() - before).unbind(1)]
    grouped = torch.nn.Parameter(torch.randn(4, 5, 3, 6))
    optimizer = MuonAdamW([("weight_hh", grouped)], 1.0, weight_decay=0.0)
    before = grouped.detach().clone()
    grouped.grad = torch.randn(4, 5, 3, 6)
    optimizer.step()
    matrices += [*(grouped.detach() - before).flatten(1, 2)]
    for matrix in matrices:
        values = torch.linalg.svdvals(matrix / (0.2 * max(matrix.shape) ** 0.5))
        assert values.min() > 0.4
        assert values.max() < 1.4


@pytest.mark.parametrize("network", ["small", ConvConfig()], ids=["demucs", "conv"])
def test_a_step_trains_every_width(network):
    torch.manual_seed(1)
    module = SlimmableTraining(CONFIG, SlimModel(network))
    calls = []
    handle = module.model.register_forward_pre_hook(lambda _, args: calls.append((args[1], args[0].shape[0])))
    noisy = 0.1 * torch.randn(3, 1, 4000)
    module.log = lambda *_, **__: None
    module.training_step((noisy, 0.5 * noisy), 0).backward()
    handle.remove()
    assert calls[0] == (1.0, 3)
    assert calls[1] == (0.125, 2)
    assert calls[2][0] in (0.25, 0.5)
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.model.parameters())


def test_narrow_widths_can_take_turns():
    calls = set()
    for step in range(2):
        module = SlimmableTraining(CONFIG.override(narrow_widths=1), SlimModel("small"))
        module.log = lambda *_, **__: None
        module._trainer = types.SimpleNamespace(global_step=step)
        module.model.register_forward_pre_hook(lambda _, args: calls.add(args[1]))
        module.training_step((torch.randn(3, 1, 1000), torch.randn(3, 1, 1000)), 0)
    assert {0.125, 1.0} < calls
    assert calls & {0.25, 0.5}


@pytest.mark.parametrize("network", [{}, {"type": "conv", "channels": 16}], ids=["demucs", "conv"])
def test_training_resumes_exactly_and_writes_weights(data, network):
    config = CONFIG.override(network=network)
    whole = train(config, data / "train", data / "whole", data / "valid", progress=False)
    # The same run, cut after the first three steps and taken up again.
    train(config.override(steps=3, cooldown=0.0), data / "train", data / "cut", data / "valid", progress=False)
    assert sorted(path.name for path in (data / "cut").glob("*.ckpt")) == ["last.ckpt"]
    resumed = train(config, data / "train", data / "cut", data / "valid", progress=False)
    one, other = slimse.load(whole), slimse.load(resumed)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    log = (data / "whole" / "metrics.csv").read_text()
    assert "valid/si_sdr/0.125" in log


def test_mixing_on_the_device_gives_what_the_loader_gives(data):
    batches = []
    for on_device in (False, True):
        source = TrainingData(data / "train", None, CONFIG.override(batch=5), 16_000, mix_on_device=on_device)
        source.trainer = types.SimpleNamespace(world_size=2, global_rank=1, global_step=3)
        cpu = torch.device("cpu")
        batches.append([source.transfer_batch_to_device(batch, cpu, 0) for batch in source.train_dataloader()])
    assert len(batches[0]) == CONFIG.val_interval
    for one, other in zip(*batches, strict=True):
        for signal, again in zip(one, other, strict=True):
            assert signal.shape == (5, 1, 8000)
            assert (signal - again).norm() <= 1e-4 * signal.norm()
    with pytest.raises(ValueError, match="device = 'tpu'"):
        train(CONFIG, data / "train", data / "tpu", None, progress=False, device="tpu")


def test_a_run_of_some_minutes_ends_with_its_tail_and_goes_on(data, monkeypatch):
    seconds = 0.0
    step = SlimmableTraining.training_step

    def half_a_second(*args):
        nonlocal seconds
        seconds += 0.5
        return step(*args)

    monkeypatch.setattr(SlimmableTraining, "training_step", half_a_second)
    for module in ("run", "time_budget"):
        monkeypatch.setattr(f"slimse.training.{module}.monotonic", lambda: seconds)
    monkeypatch.setattr(TimeBudget, "FIRST", 2)
    out, rates = data / "timed", []
    update = MuonAdamW.step
    monkeypatch.setattr(
        MuonAdamW, "step", lambda self, **how: rates.append(self.param_groups[-1]["lr"]) or update(self, **how)
    )
    for part in (1, 2):
        train(CONFIG, data / "train", out, None, progress=False, device="cpu", minutes=4 / 60)
        # Seven steps fit, with what is kept back for the end; the recipe has six in all.
        assert torch.load(out / "last.ckpt", weights_only=False)["global_step"] == 7 * part
    for part in (rates[2:7], rates[9:14]):
        assert part[0] == pytest.approx(CONFIG.learning_rate) and part[-1] < 0.5 * part[0]
        assert part == sorted(part, reverse=True)
    assert slimse.load(out / "model.safetensors")
    with pytest.raises(ValueError, match="minutes = 0"):
        train(CONFIG, data / "train", out, None, progress=False, minutes=0)


def test_steps_lower_the_loss():
    module = SlimmableTraining(CONFIG.override(warmup=1, steps=1000, learning_rate=5e-3), SlimModel("small"))
    module.log = lambda *_, **__: None
    optimizer = module.configure_optimizers()["optimizer"]
    clean = 0.05 * torch.sin(2 * torch.pi * 200 * torch.arange(4000) / 16_000).expand(3, 1, -1)
    noisy = clean + 0.05 * torch.randn(3, 1, 4000)
    losses = []
    for _ in range(40):
        loss = module.training_step((noisy, clean), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05


def test_fine_tuning_starts_from_given_weights(data):
    torch.manual_seed(5)
    initial = SlimModel("small")
    path = train(
        CONFIG.override(steps=1, val_interval=1, learning_rate=1e-9, ema_decay=0.0),
        data / "train",
        data / "tuned",
        None,
        initial,
        progress=False,
    )
    tuned = slimse.load(path).state_dict()
    for name, tensor in initial.state_dict().items():
        assert torch.allclose(tuned[name], tensor, atol=1e-5), name


def test_recipes_are_read_and_checked(tmp_path):
    assert "backbone" in recipe_names()
    assert TrainConfig.read("backbone").preset == "paper"
    with pytest.raises(ValueError, match=r"one of.*backbone"):
        TrainConfig.read("nothing")
    for text, message in (
        ("stpes = 3", "stpes"),
        ("[mixing]\nbable = 1.0", r"mixing\.bable"),
        ("batch = 0", "batch = 0"),
        ("narrow_batch = 99", "narrow_batch = 99"),
        ("narrow_widths = 3", "narrow_widths = 3"),
        ("ema_decay = 1.0", "ema_decay = 1.0"),
        ('preset = "big"', "preset = 'big'"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ValueError, match=message):
            TrainConfig.read(tmp_path / "bad.toml")
