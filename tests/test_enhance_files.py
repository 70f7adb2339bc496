"""Enhancing files, and `slimse enhance`."""

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from typer.testing import CliRunner

from slimse import SlimModel
from slimse.audio.enhance import BLOCK_SECONDS, enhance, enhance_file
from slimse.checkpoint import save
from slimse.cli import app, loading

RATES = [8_000, 16_000, 22_050, 44_100, 48_000]


def noise(channels: int, samples: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((channels, samples))).astype(np.float32)


def decibels(error: np.ndarray, reference: np.ndarray) -> float:
    return float(20 * np.log10(np.abs(error).max() / np.abs(reference).max() + 1e-20))


@pytest.fixture
def model() -> SlimModel:
    return SlimModel("small").eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(SlimModel("small"), path)
    return str(path)


# Files -------------------------------------------------------------------------------------------------------------

FORMATS = [
    ("wav", "PCM_16"),
    ("wav", "PCM_24"),
    ("wav", "FLOAT"),
    ("wav", "ULAW"),
    ("flac", "PCM_24"),
    ("ogg", "VORBIS"),
    ("opus", "OPUS"),
    ("mp3", "MPEG_LAYER_III"),
    ("aiff", "PCM_16"),
    ("w64", "PCM_16"),
    ("caf", "ALAC_16"),
]


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_files_keep_format_rate_channels_and_length(
    tmp_path: Path, suffix: str, subtype: str, model: SlimModel
) -> None:
    source, target = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    container = "OGG" if suffix == "opus" else suffix.upper()
    with soundfile.SoundFile(source, "w", 48_000, 2, subtype, format=container) as file:
        file.write(noise(2, 20_011).T)
    before = soundfile.info(source)
    enhance_file(source, target, model, 0.25)
    after = soundfile.info(target)
    for name in ("format", "subtype", "samplerate", "channels", "frames"):
        assert getattr(after, name) == getattr(before, name), name
    assert soundfile.read(target)[0].any()


@pytest.mark.parametrize("rate", RATES)
def test_a_file_is_enhanced_as_its_samples_are(tmp_path: Path, rate: int, model: SlimModel) -> None:
    x = noise(2, 3 * rate + 7)
    soundfile.write(tmp_path / "in.wav", x.T, rate, subtype="FLOAT")
    enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", model, 0.5, dry=0.1)
    out = soundfile.read(tmp_path / "out.wav", dtype="float32")[0].T
    expected = enhance(x, rate, 0.5, model=model, dry=0.1)
    assert out.shape == x.shape and decibels(out - expected, expected) < -90


@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3"])
def test_lossy_formats_stay_aligned(tmp_path: Path, suffix: str, model: SlimModel) -> None:
    x = noise(1, 24_000)[0] * np.repeat(np.float32([0.1, 1.0, 0.1]), 8000)
    x = soxr.resample(soxr.resample(x, 24_000, 6_000), 6_000, 24_000)
    soundfile.write(tmp_path / "in.wav", x, 24_000, subtype="FLOAT")
    enhance_file(tmp_path / "in.wav", tmp_path / f"out.{suffix}", model, dry=1.0)
    out, rate = soundfile.read(tmp_path / f"out.{suffix}", dtype="float32")
    assert rate == 24_000
    size = min(len(out), len(x))
    correlation = np.fft.irfft(np.fft.rfft(out[:size], 65_536) * np.fft.rfft(x[:size], 65_536).conj())
    assert abs((int(correlation.argmax()) + 32_768) % 65_536 - 32_768) <= 1


def test_one_sample_silence_and_dc_in_a_file(tmp_path: Path, model: SlimModel) -> None:
    for name, x in {"one": np.float32([0.5]), "silent": np.zeros(9000), "dc": np.full(9000, 0.5)}.items():
        soundfile.write(tmp_path / f"{name}.wav", x, 44_100)
        enhance_file(tmp_path / f"{name}.wav", tmp_path / f"{name}.out.wav", model)
        assert soundfile.info(tmp_path / f"{name}.out.wav").frames == len(x)


def test_bad_samples_name_the_file_and_the_time(tmp_path: Path, model: SlimModel) -> None:
    x = noise(1, 96_000)[0]
    x[72_000] = np.nan
    soundfile.write(tmp_path / "bad.wav", x, 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"bad\.wav: the signal holds nan at 4\.5000 s"):
        enhance_file(tmp_path / "bad.wav", tmp_path / "out.wav", model)
    soundfile.write(tmp_path / "none.wav", x[:0], 16_000)
    with pytest.raises(ValueError, match=r"none\.wav: the signal is empty"):
        enhance_file(tmp_path / "none.wav", tmp_path / "out.wav", model)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.wav", "none.wav"}


def test_an_interrupt_leaves_nothing_and_progress_counts_seconds(tmp_path: Path, model: SlimModel) -> None:
    soundfile.write(tmp_path / "in.wav", noise(1, 160_000)[0], 16_000)
    seconds: list[float] = []

    def interrupt(done: float) -> None:
        seconds.append(done)
        if sum(seconds) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", model, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]
    assert seconds == [BLOCK_SECONDS, BLOCK_SECONDS]


# The command -------------------------------------------------------------------------------------------------------


def cli(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["enhance", *map(str, arguments)], env={"COLUMNS": "500"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def write(path: Path, samples: int = 4000, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(1, samples)[0], rate)
    return path


def test_one_file(tmp_path: Path, weights: str) -> None:
    path = write(tmp_path / "a.wav")
    code, out, err = cli(path, "--weights", weights, "--uf", 0.25)
    assert (code, err) == (0, "")
    assert out == f"{path} -> {tmp_path / 'a.enhanced.wav'}\n"
    assert soundfile.info(tmp_path / "a.enhanced.wav").frames == 4000


def test_a_folder_goes_on_after_bad_files(tmp_path: Path, weights: str) -> None:
    write(tmp_path / "in/a.wav")
    write(tmp_path / "in/sub/c.flac")
    (tmp_path / "in/b.wav").write_bytes(b"no sound")
    (tmp_path / "in/empty.ogg").touch()
    bad = noise(1, 4000)[0]
    bad[1600] = np.inf
    soundfile.write(tmp_path / "in/inf.wav", bad, 16_000, subtype="FLOAT")
    code, out, err = cli(tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    assert code == 1
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert made == ["a.wav", "sub/c.flac"]
    assert len(out.splitlines()) == 2
    for name in ("b.wav: cannot be read", "empty.ogg: cannot be read: the file is empty", "inf at 0.1000 s"):
        assert name in err
    assert len(err.splitlines()) == 3


def test_existing_files_are_failures_unless_forced(tmp_path: Path, weights: str) -> None:
    path = write(tmp_path / "a.wav")
    (tmp_path / "a.enhanced.wav").write_bytes(b"precious")
    code, _, err = cli(path, "--weights", weights)
    assert code == 1 and "a.enhanced.wav exists already" in err and "--force" in err
    assert (tmp_path / "a.enhanced.wav").read_bytes() == b"precious"
    assert cli(path, "--weights", weights, "--force")[0] == 0
    assert soundfile.info(tmp_path / "a.enhanced.wav").frames == 4000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--uf", "0.3"], "uf = 0.3 is not one of this model's widths (0.125, 0.25, 0.5, 1.0)"),
        (["--dry", "2"], "dry = 2.0"),
        (["--dry", "0.1", "--attenuation-limit", "12"], "one of them"),
        (["--attenuation-limit", "loud"], "'loud': expected a number of dB"),
        (["--weights", "no-such-weights"], "no-such-weights"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--jobs", "0"], "jobs"),
        (["--batch", "nan"], "--batch nan: expected seconds"),
        (["missing.wav"], "missing.wav: no such file"),
    ],
)
def test_usage_errors_are_found_before_any_work(tmp_path: Path, weights: str, options: list[str], message: str) -> None:
    path = write(tmp_path / "a.wav")
    code, _, err = cli(path, "--weights", weights, *options)
    assert code == 2
    assert message in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("text", ["12", "12dB", "12 db", "12.0"])
def test_the_limit_may_have_a_unit(tmp_path: Path, weights: str, text: str) -> None:
    path = write(tmp_path / "a.wav")
    assert cli(path, "--weights", weights, "--attenuation-limit", text, "-o", tmp_path / "x.wav")[0] == 0
    assert cli(path, "--weights", weights, "--dry", 10 ** (-12 / 20), "-o", tmp_path / "y.wav")[0] == 0
    assert (tmp_path / "x.wav").read_bytes() == (tmp_path / "y.wav").read_bytes()


def test_several_processes_do_the_same_as_one(tmp_path: Path, weights: str) -> None:
    for index in range(3):
        write(tmp_path / f"in/{index}.wav", 5000 + index, 44_100)
    (tmp_path / "in/bad.wav").write_bytes(b"no sound")
    one = cli(tmp_path / "in", "-o", tmp_path / "one", "--weights", weights)
    two = cli(tmp_path / "in", "-o", tmp_path / "two", "--weights", weights, "--jobs", 2, "--batch", 0.3)
    assert (one[0], two[0]) == (1, 1)
    assert len(two[1].splitlines()) == 3 and "bad.wav: cannot be read" in two[2]
    for index in range(3):
        x, y = (soundfile.read(tmp_path / folder / f"{index}.wav")[0] for folder in ("one", "two"))
        assert len(x) == 5000 + index and np.abs(x - y).max() <= 2**-15


def test_a_long_wait_for_the_first_call_is_explained(monkeypatch, capsys):
    model = SlimModel("small")
    told = threading.Event()
    monkeypatch.setattr(loading, "_PATIENCE", 0.0)
    monkeypatch.setattr(loading.typer, "echo", lambda *args, **options: (print(*args), told.set()))
    monkeypatch.setattr(SlimModel, "forward", lambda *_: told.wait(10))
    assert loading.make_ready(model) is model
    assert "compiling" in capsys.readouterr().out


def test_options_are_checked_before_anything_is_compiled(monkeypatch, tmp_path):
    write(tmp_path / "talk.wav", 1000, 16_000)
    monkeypatch.setattr(loading.threading, "Timer", lambda *_: pytest.fail("the network ran"))
    status, _, error = cli(tmp_path / "talk.wav", "--uf", 0.3)
    assert status == 2 and "uf = 0.3" in error
