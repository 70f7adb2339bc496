"""Standard input and output: WAV and raw samples, against the file's result."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import slimse
from slimse.audio.pipe import PipeFormat, enhance_pipe, header, read_header
from slimse.demo import bundled_clip


@pytest.fixture(scope="module")
def paper() -> slimse.SlimModel:
    return slimse.load()


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """``[8000]``, int16 at 16 kHz."""
    return np.rint(32_000 * soundfile.read(bundled_clip(), dtype="float32", frames=8_000)[0]).astype(np.int16)


class Slow(io.BytesIO):
    """Gives a few bytes at a time, as a pipe does: also half of a sample."""

    def read(self, size: int = -1) -> bytes:
        """At most 102 bytes."""
        return super().read(size if size < 16 else min(size, 102))


def wav(samples: np.ndarray, rate: int, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_stream_becomes_what_the_file_does(paper: slimse.SlimModel, clip: np.ndarray, subtype: str) -> None:
    written = clip if subtype == "PCM_16" else (clip / 32_768).astype(np.float32)
    source, target = wav(written, 16_000, subtype), io.BytesIO()
    assert enhance_pipe(Slow(source), target, paper, 0.125) == len(clip)
    out, rate = soundfile.read(io.BytesIO(target.getvalue()), dtype="float32")
    assert rate == 16_000
    expected = slimse.enhance((clip / 32_768).astype(np.float32), 16_000, 0.125, model=paper)
    assert out.shape == expected.shape
    assert np.abs(out - expected).max() <= (0.51 / 32_768 if subtype == "PCM_16" else 1e-6)


def test_raw_samples_of_two_channels_and_no_known_end(paper: slimse.SlimModel, clip: np.ndarray) -> None:
    stereo = np.stack([clip, clip // 2], 1)
    raw, target = PipeFormat(48_000, 2, "int16", wav=False), io.BytesIO()
    assert enhance_pipe(Slow(stereo.tobytes()[:-3]), target, paper, 0.125, raw=raw) == len(clip) - 1
    out = np.frombuffer(target.getvalue(), "<i2").reshape(-1, 2)
    assert out.shape == (len(clip) - 1, 2)
    # As a WAV stream whose writer did not know its length.
    again = io.BytesIO()
    sound = raw._replace(wav=True)
    enhance_pipe(io.BytesIO(header(sound) + stereo[:-1].tobytes()), again, paper, 0.125)
    assert read_header(io.BytesIO(again.getvalue())) == sound
    assert abs(np.frombuffer(again.getvalue()[44:], "<i2").reshape(-1, 2).astype(int) - out).max() <= 1


def test_headers_that_are_none() -> None:
    good = wav(np.zeros(10, np.int16), 8_000)
    assert read_header(io.BytesIO(good)) == PipeFormat(8_000, 1, "int16", True, 20)
    for data, message in (
        (b"", "expected a WAV stream"),
        (b"OggS" + good[4:], "starts with b'OggS'"),
        (good[:30], "damaged WAV header"),
        (good[:12], "ends in the header"),
        (wav(np.zeros(10), 8_000, "PCM_24"), "24 bits"),
        (good[:12] + good[36:], "without a format"),
        (good[:12] + b"LIST" + struct.pack("<I", 2**31), "damaged WAV header"),
    ):
        with pytest.raises(ValueError, match=message):
            read_header(io.BytesIO(data))


def command(*arguments: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "slimse", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, input=data, capture_output=True, env=environment, timeout=300, check=False)


def test_the_commands(clip: np.ndarray) -> None:
    source = wav(clip, 16_000)
    file = command("enhance", "-", "-o", "-", "--uf", "0.125", data=source)
    assert file.returncode == 0, file.stderr
    stream = command("live", "-", "--uf", "0.125", data=source)
    assert stream.returncode == 0, stream.stderr
    a, b = (soundfile.read(io.BytesIO(part.stdout), dtype="int16")[0] for part in (file, stream))
    assert len(a) == len(clip)
    assert np.abs(a.astype(int) - b).max() <= 1


def test_pipes_that_make_no_sense(tmp_path) -> None:
    from typer.testing import CliRunner

    from slimse.cli import app

    for words, message in (
        (["enhance", "-"], "expected --output"),
        (["enhance", "-", "a.wav", "-o", "-"], "expected - as the only input"),
        (["enhance", "-", "-o", "-"], "the file is empty"),
        (["live", "a.wav"], "expected -, standard input"),
        (["live", "-", "--uf", "1", "--budget", "0.5"], "exclude each other"),
        (["live", "-"], "expected a WAV stream"),
    ):
        result = CliRunner().invoke(app, words, input=b"")
        assert result.exit_code == 2, (words, result.output)
        assert message in result.output
