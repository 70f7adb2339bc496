"""The command as a process: wrong arguments, standard streams, signals, workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import slimse
from slimse import SlimModel
from slimse.cli import app


def command(*arguments, **options):
    code = "from slimse.cli import app; app(prog_name='slimse')"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


def test_workers_end_with_their_parent(tmp_path):
    slimse.save(SlimModel("small"), tmp_path / "small.safetensors")
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
