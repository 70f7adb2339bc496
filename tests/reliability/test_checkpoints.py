"""Damaged checkpoints, foreign ones, hostile ones, and bad recipes: named errors, no code run."""

import json
import os
import pickle

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import slimse
from slimse import SlimModel

SUPPRESS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    slimse.save(SlimModel("small"), path)
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [("depth", 60), ("depth", 10**9), ("depth", "3"), ("hidden", 1.5), ("hidden", 10**6), ("causal", 1), ("ufs", 3),
     ("ufs", ["a"]), ("kernel_size", 10**12), ("rnn_layers", 10**6), ("floor", float("nan")), ("router", 5),
     ("router", {"filters": 10**7, "kernel_size": 10**7}), ("nothing", 1), ("type", "unet"), ("network", None),
     ("sample_rate", None), ("rnn", [])],
)  # fmt: skip
def test_a_damaged_configuration_is_one_error(saved, tmp_path, key, value):
    config = SlimModel("small").config.to_dict()
    table = config if key in config else config["network"]
    table[key] = value
    save_file(load_file(saved), tmp_path / "x.safetensors", {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=r"x\.safetensors: "):
        slimse.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype", "nan", "json", "list"])
def test_damaged_weights_are_one_error(saved, tmp_path, change):
    tensors, config = load_file(saved), json.dumps(SlimModel("small").config.to_dict())
    name = next(iter(tensors))
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["more"] = torch.zeros(1)
    elif change == "shape":
        tensors[name] = tensors[name][..., None].contiguous()
    elif change == "dtype":
        tensors[name] = tensors[name].int()
    elif change == "nan":
        tensors[name].flatten()[0] = torch.nan
    config = {"json": "{" * 5, "list": "[" * 100_000}.get(change, config)
    save_file(tensors, tmp_path / "x.safetensors", {"config": config})
    with pytest.raises(ValueError, match=r"x\.safetensors: "):
        slimse.load(tmp_path / "x.safetensors")


@SUPPRESS
@given(at=st.integers(0, 4000), value=st.integers(0, 255), cut=st.integers(0, 200))
def test_a_checkpoint_with_any_byte_changed_loads_or_is_one_error(saved, tmp_path, at, value, cut):
    content = bytearray(saved.read_bytes())
    content[at] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(content[: len(content) - cut])
    try:
        slimse.load(path)
    except ValueError as error:
        assert "x.safetensors" in str(error)


def original(hidden, depth, causal, growth, max_hidden):
    """Layers as the constructor of the original DEMUCS makes them."""
    top, encoder, decoder, before, after = nn.Module(), nn.ModuleList(), nn.ModuleList(), 1, 1
    for _ in range(depth):
        encoder.append(nn.Sequential(nn.Conv1d(before, hidden, 8, 4), nn.ReLU(), nn.Conv1d(hidden, 2 * hidden, 1)))
        decoder.insert(0, nn.Sequential(nn.Conv1d(hidden, 2 * hidden, 1), nn.GLU(1),
                                        nn.ConvTranspose1d(hidden, after, 8, 4)))  # fmt: skip
        before = after = hidden
        hidden = min(int(growth * hidden), max_hidden)
    top.encoder, top.decoder, top.lstm = encoder, decoder, nn.Module()
    top.lstm.lstm = nn.LSTM(before, before, 2, bidirectional=not causal)
    if not causal:
        top.lstm.linear = nn.Linear(2 * before, before)
    return top.state_dict()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(hidden=st.integers(2, 9), depth=st.integers(1, 4), causal=st.booleans(),
       growth=st.sampled_from([1, 1.5, 2, 2.7, 3]), max_hidden=st.sampled_from([10, 10_000]))  # fmt: skip
def test_original_checkpoints_of_any_growth_load(hidden, depth, causal, growth, max_hidden):
    arguments = {"hidden": hidden, "depth": depth, "causal": causal, "growth": growth, "max_hidden": max_hidden}
    hidden = arguments["hidden"] = min(hidden, max_hidden)
    state = original(**arguments)
    model = slimse.load_denoiser({"class": None, "args": (), "kwargs": arguments, "state": state})
    assert slimse.load_denoiser(state).config == model.config
    energy = [sum(float(t.double().square().sum()) for t in d.values()) for d in (state, model.state_dict())]
    assert energy[0] == pytest.approx(energy[1], rel=1e-9)
    wrong = {**arguments, "growth": growth + 1}
    if depth > 1 and max_hidden > hidden * (growth + 1):
        with pytest.raises(ValueError, match="growth = "):
            slimse.load_denoiser({"args": (), "kwargs": wrong, "state": state})


def test_arguments_that_cannot_be_are_refused_by_name():
    state = original(4, 2, True, 2, 10_000)
    for name, value in (("glu", False), ("chin", 2), ("chout", 2), ("resample", 3), ("stride", 3), ("floor", 0)):
        with pytest.raises(ValueError, match=name):
            slimse.load_denoiser({"args": (), "kwargs": {name: value}, "state": state})
    huge = {**state, "encoder.0.0.weight": torch.zeros(1).expand(10**12)}
    with pytest.raises(ValueError, match="more than is stored"):
        slimse.load_denoiser(huge)


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch hostile",)


def test_a_hostile_checkpoint_of_a_run_is_refused(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning")
    assert lightning
    from slimse.training.config import TrainConfig
    from slimse.training.run import train

    monkeypatch.chdir(tmp_path)
    for kind in ("noisy", "clean"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        soundfile.write(tmp_path / "data" / kind / "a.wav", 0.1 * np.ones(16_000), 16_000)
    (tmp_path / "out").mkdir()
    torch.save({"state_dict": Hostile()}, tmp_path / "out" / "last.ckpt")
    config = TrainConfig(preset="small", seconds=0.4, batch=1, narrow_batch=1, steps=1, val_interval=1, workers=0)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        train(config.override(precision="32-true"), tmp_path / "data", tmp_path / "out", None, None, progress=False)
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1.5", "steps = 1.5 in a training recipe: expected an integer"),
        ("beta = nan", "beta = nan in a training recipe: expected a finite number"),
        ('valid_speakers = "p286"', "valid_speakers = 'p286' in a training recipe: expected a list"),
        ("valid_speakers = [1]", r"valid_speakers\[0\] = 1"),
        ("steps = true", "steps = True"),
        ("workers = -1", "workers = -1: expected 0 or more"),
        ("mixing = 3", "mixing = 3: expected a table"),
        ("[mixing]\nroom = 7", "mixing.room = 7.0: expected a chance"),
        ("[mixing]\nsnr_low = 30", "mixing.snr_low = 30.0"),
        ("[mixing]\nwhat = 1", "mixing.what"),
        ('precision = "half"', "precision = 'half'"),
        ("steps = ", "recipe"),
        ("learning_rate = 1" + "0" * 400, "learning_rate = 1"),
    ],
)
def test_a_bad_recipe_names_the_key_and_what_was_expected(tmp_path, text, message):
    pytest.importorskip("lightning")
    from slimse.training.config import TrainConfig

    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TrainConfig.read(tmp_path / "r.toml")
    assert "r.toml" in str(caught.value)
