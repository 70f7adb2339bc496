"""Nothing lost, nothing let in: full disks, killed processes, damaged checkpoints, states and recipes."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import slimse
from slimse import SlimDemucs, Streamer
from slimse.atomic import AtomicFile
from slimse.audio.files import FileInfo, find_files, read_info, read_mono
from slimse.audio.writing import AtomicWriter
from slimse.cli import app
from slimse.serving import StreamBatch

SUPPRESS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def limit():
    """Set the largest size of a file that this process may write: as a full disk, without one."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


# Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III"),
                          ("a.wav", "IMA_ADPCM"), ("a.opus", "OPUS")]
)  # fmt: skip
def test_a_file_that_the_disk_did_not_take_whole_is_not_taken_for_done(tmp_path, limit, name, subtype):
    container = {"ogg": "OGG", "opus": "OGG"}.get(name[2:], name[2:].upper())
    info = FileInfo(0, 48_000 if subtype == "OPUS" else 16_000, 1, container, subtype, "FILE")
    x = (0.1 * np.random.default_rng(0).standard_normal((1, 16_000))).astype(np.float32)

    def write():
        with AtomicWriter(tmp_path / name, info) as writer:
            writer.write(x)

    write()
    size = (tmp_path / name).stat().st_size
    (tmp_path / name).unlink()
    for most in (size - 2, size - 40, size - 700, size // 2, 0):
        limit(most)
        with pytest.raises(ValueError, match=r"a\.\w+: cannot be written"):
            write()
        limit(resource.RLIM_INFINITY)
        assert not list(tmp_path.iterdir())


def test_temporary_files_of_killed_processes_are_deleted_and_those_in_use_are_not(tmp_path):
    code = "import sys, time; from pathlib import Path; from slimse.atomic import AtomicFile\n"
    code += "AtomicFile(Path(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x.wav")], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    AtomicFile(tmp_path / "y.wav").discard()
    assert len(list(tmp_path.iterdir())) == 1
    child.kill()
    child.wait()
    child.stdout.close()
    subprocess.run([sys.executable, "-c", code.replace("time.sleep(60)", "0"), str(tmp_path / "z.wav")], check=True)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_regular_file_is_named_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    for name, reason in (("pipe.wav", "no regular file"), ("loop.wav", "symbolic links"), ("x" * 300, "too long")):
        with pytest.raises(ValueError, match=reason):
            read_info(tmp_path / name)
    soundfile.write(tmp_path / "slow.wav", np.zeros(300), 1)
    with pytest.raises(ValueError, match=r"slow\.wav: sample_rate = 1: expected an integer from 1000 to 768000 Hz"):
        read_mono(tmp_path / "slow.wav", 16_000)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    deep = tmp_path
    for _ in range(17):
        deep /= "d" * 250
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=descriptor)
        descriptor = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
    problems = []
    assert find_files(tmp_path, failed=problems.append) == []
    assert "too long" in str(problems[0])
    with pytest.raises(ValueError, match="too long"):
        find_files(tmp_path)


def test_the_longest_name_can_be_written(tmp_path):
    target = tmp_path / ("n" * 251 + ".wav")
    with AtomicWriter(target, FileInfo(0, 16_000, 1, "WAV", "PCM_16", "FILE")) as writer:
        writer.write(np.zeros((1, 10), np.float32))
    assert target.is_file()


@SUPPRESS
@given(cut=st.integers(0, 3000), at=st.integers(0, 2999), value=st.integers(0, 255), suffix=st.sampled_from(
    ["wav", "flac", "ogg", "mp3", "aiff", "w64", "caf"]))  # fmt: skip
def test_damaged_audio_is_read_or_refused_by_name(tmp_path, cut, at, value, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.1 * np.sin(np.arange(1500)), 16_000)
    content = bytearray(path.read_bytes()[: len(path.read_bytes()) - cut % 3000])
    if at < len(content):
        content[at] = value
    path.write_bytes(content)
    try:
        read_mono(path, 16_000)
    except ValueError as error:
        assert "a." in str(error)


# The command -------------------------------------------------------------------------------------------------------


def command(*arguments, **options):
    code = "from slimse.cli import app; app(prog_name='slimse')"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


def test_workers_end_with_their_parent(tmp_path):
    slimse.save(SlimDemucs("small"), tmp_path / "small.safetensors")
    rng = np.random.default_rng(0)
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.standard_normal(16_000 * 900), 16_000)
    process = command("enhance", *tmp_path.glob("*.wav"), "-o", tmp_path / "out", "--jobs", 2,
                      "--weights", tmp_path / "small.safetensors", start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob(".slimse-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("workers outlived their parent")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        process = command("profile", "small", stdout=full, stderr=subprocess.PIPE)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error == "slimse: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enhance", ""], "it is empty"),
        (["enhance", "a.wav", "--device", "meta"], "device 'meta' cannot be used"),
        (["train", "backbone", "--data", ".", "-o", "out", "--devices", "-5"], "devices"),
        (["evaluate", ".", ".", "--csv", "."], ". is a folder: expected a file to write"),
    ],
)
def test_wrong_arguments_are_status_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(100), 16_000)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 2 and message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


# Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    slimse.save(SlimDemucs("small"), path)
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [("depth", 60), ("depth", 10**9), ("depth", "3"), ("hidden", 1.5), ("hidden", 10**6), ("causal", 1), ("ufs", 3),
     ("ufs", ["a"]), ("kernel_size", 10**12), ("rnn_layers", 10**6), ("floor", float("nan")), ("router", 5),
     ("router", {"filters": 10**7, "kernel_size": 10**7}), ("nothing", 1), ("sample_rate", None), ("rnn", [])],
)  # fmt: skip
def test_a_damaged_configuration_is_one_error(saved, tmp_path, key, value):
    config = {**SlimDemucs("small").config.to_dict(), key: value}
    save_file(load_file(saved), tmp_path / "x.safetensors", {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=r"x\.safetensors: "):
        slimse.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype", "nan", "json", "list"])
def test_damaged_weights_are_one_error(saved, tmp_path, change):
    tensors, config = load_file(saved), json.dumps(SlimDemucs("small").config.to_dict())
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
    config = TrainConfig(preset="small", seconds=0.4, batch=1, narrow_batch=1, steps=1, every=1, workers=0)
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
        ("fixed_uf = 0.3", "fixed_uf = 0.3"),
        ("steps = ", "recipe"),
        ("rate = 1" + "0" * 400, "rate = 1"),
    ],
)
def test_a_bad_recipe_names_the_key_and_what_was_expected(tmp_path, text, message):
    pytest.importorskip("lightning")
    from slimse.training.config import TrainConfig

    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        TrainConfig.read(tmp_path / "r.toml")
    assert "r.toml" in str(caught.value)


# Streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("fed", [0, 100, 3000])
def test_a_damaged_state_is_refused_and_a_sound_one_goes_on(backend, fed):
    model = SlimDemucs("small").eval()
    streamer, x = Streamer(model, 0.5, backend=backend), 0.1 * torch.randn(4000)
    streamer.feed(x[:fed])
    state = streamer.state
    expected = streamer.feed(x[fed:])
    streamer.state = state
    assert torch.equal(streamer.feed(x[fed:]), expected)
    inner = state.model
    damaged = [None, (), state._replace(pending=None), state._replace(pending=state.pending.double())]
    damaged += [state._replace(pending=torch.zeros(1, 9999)), state._replace(pending=torch.full((1, 3), torch.nan))]
    damaged += [state._replace(model=inner._replace(samples=value)) for value in (-1, 7, 2**70, 1.5, None)]
    for name in ("up", "encoder", "skip", "rnn", "decoder", "down"):
        parts = getattr(inner, name)
        for bad in ((), None, parts[:-1], (*parts[:-1], parts[-1][..., None]), (*parts[:-1], parts[-1].long()),
                    (*parts[:-1], torch.cat([parts[-1]] * 3))):  # fmt: skip
            damaged.append(state._replace(model=inner._replace(**{name: bad})))
    for bad in damaged:
        with pytest.raises(ValueError, match="state"):
            streamer.state = bad
    streamer.state = state
    assert torch.equal(streamer.feed(x[fed:]), expected)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_bad_chunks_leave_the_stream_as_it_was(backend, relative_error):
    streamer, x = Streamer(SlimDemucs("small").eval(), np.float32(0.25), backend=backend), 0.1 * torch.randn(3000)
    whole = streamer.feed(x)
    streamer.reset()
    first = streamer.feed(x[:1000])
    for bad in ([0.1], torch.full((100,), 3e38), torch.full((100,), -1e7), torch.full((5,), torch.nan), None):
        with pytest.raises(ValueError, match="chunk"):
            streamer.feed(bad)
    assert relative_error(torch.cat([first, streamer.feed(x[1000:])]), whole) < 1e-5


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_bad_tick_names_the_slot_and_disturbs_nobody(backend):
    model = SlimDemucs("small", backend=backend).eval()
    one, other = (StreamBatch(model, 3) for _ in range(2))
    for batch in (one, other):
        batch.join(0.5)
        batch.join(1.0)
    for tick in range(6):
        samples = 0.1 * torch.randn(3, model.hop)
        bad = samples.clone()
        bad[1, 3] = torch.nan
        with pytest.raises(ValueError, match="slot 1"):
            one.tick(bad)
        assert torch.equal(one.tick(samples)[0][:2], other.tick(samples)[0][:2]), tick
