"""The command as a process: wrong arguments, standard streams, signals, workers.

Importing costs more than all that is tried here, so one process does it, and every trial is a fork of that.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import slimse
from slimse import SlimModel
from slimse.cli import app
from slimse.cli.loading import make_ready
from slimse.cli.terminal import exit_on_signals

SERVER = """
import json, os, signal, sys
import slimse, torch
from slimse.cli import app

torch.set_num_threads(1)
with torch.no_grad():
    slimse.load(sys.argv[1])(torch.zeros(1, 1, 600), 1.0)
while line := sys.stdin.readline():
    trial = json.loads(line)
    if not (process := os.fork()):
        break
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
# A shell in the background hands on that signals are ignored; a command that someone sits at has them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
for path, number in ((trial["out"], 1), (trial["error"], 2)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
exec(trial["before"])
app(trial["arguments"], prog_name="slimse")
"""


class Process:
    """A running command."""

    def __init__(self, server, folder, arguments, before, out):
        self._server, self._out, self._error = server, out or folder / "stdout", folder / "stderr"
        trial = {
            "arguments": [*map(str, arguments)],
            "before": before,
            "out": str(self._out),
            "error": str(self._error),
        }
        server.stdin.write(json.dumps(trial) + "\n")
        server.stdin.flush()
        self.number = int(server.stdout.readline())

    def end(self):
        """Exit status, standard output and standard error."""
        status = int(self._server.stdout.readline())
        out = self._out.read_text() if self._out.is_file() else None
        return status, out, self._error.read_text()

    def wait_for_output(self, folder):
        """Wait until a file is being written there."""
        end = time.monotonic() + 120
        while not list(folder.glob(".slimse-*")):
            assert time.monotonic() < end, "the command began no file"
            time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    slimse.save(SlimModel("small"), path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER, str(path)], **pipes) as process:
        process.weights = path
        yield process
        process.stdin.close()


@pytest.fixture
def run(server, tmp_path):
    """Start ``slimse`` with these arguments; ``before`` is run first, and ``out`` replaces standard output."""
    return lambda *arguments, before="", out=None: Process(server, tmp_path, arguments, before, out)


@pytest.fixture
def noise(tmp_path):
    """Write noise of some seconds into a file."""

    def write(name, seconds):
        sound = np.resize(0.1 * np.random.default_rng(0).standard_normal(16_000), int(16_000 * seconds))
        soundfile.write(tmp_path / name, sound, 16_000)
        return tmp_path / name

    return write


# Standard streams --------------------------------------------------------------------------------------------------

ASCII = "sys.stdout.reconfigure(encoding='ascii', errors='strict')"
CLOSED_PIPE = "r, w = os.pipe(); os.close(r); os.dup2(w, 1)"


@pytest.mark.parametrize(
    ("before", "status", "shown", "error"),
    [
        (ASCII, 0, "h\\xf6rt.wav", ""),
        (CLOSED_PIPE, 1, "", "slimse: standard output cannot be written: Broken pipe\n"),
        ("os.close(1); sys.stdout = None", 0, "", ""),
    ],
    ids=["ascii", "closed pipe", "none"],
)
def test_all_files_are_enhanced_whatever_standard_output_takes(
    run, server, noise, tmp_path, before, status, shown, error
):
    noisy = noise("hört.wav", 0.1), noise("b.wav", 0.1)
    process = run("enhance", *noisy, "-o", tmp_path / "out", "--weights", server.weights, before=before)
    found, out, message = process.end()
    assert (found, message) == (status, error)
    assert shown in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.wav", "hört.wav"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("profile", "small"), ("enhance", "--help")])
def test_a_full_standard_output_is_one_line(run, arguments):
    status, _, error = run(*arguments, out=Path("/dev/full")).end()
    assert status == 1
    assert error == "slimse: standard output cannot be written: No space left on device\n"


# Signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "error"),
    [(signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, ""), (signal.SIGINT, 130, "slimse: interrupted\n")],
)
def test_signals_clean_up_and_set_the_status(run, server, noise, tmp_path, number, status, error):
    process = run("enhance", noise("long.wav", 600), "-o", tmp_path / "out", "--weights", server.weights)
    process.wait_for_output(tmp_path / "out")
    os.kill(process.number, number)
    assert process.end() == (status, "", error)
    assert not list((tmp_path / "out").iterdir())


def test_ctrl_c_again_and_again_is_one_line(run, server, noise, tmp_path):
    process = run("enhance", noise("long.wav", 600), "-o", tmp_path / "out", "--weights", server.weights)
    process.wait_for_output(tmp_path / "out")
    # The first may be enough: those that come when it has ended find no process.
    with suppress(ProcessLookupError):
        for _ in range(20):
            os.kill(process.number, signal.SIGINT)
            time.sleep(0.002)
    assert process.end() == (130, "", "slimse: interrupted\n")
    assert not list((tmp_path / "out").glob("*.wav"))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_that_python_drops_comes_again(number, error, capfd):
    class Module:
        """Something with a weak reference, as the locks of imports have."""

    def dropped(_):
        """Take the signal here, where an exception goes nowhere."""
        signal.raise_signal(number)
        time.sleep(0)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error), exit_on_signals():
            module = Module()
            reference = weakref.ref(module, dropped)
            del module
            time.sleep(30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert reference() is None
    assert capfd.readouterr() == ("", "")


class Compiling:
    """A model whose first call is inside of a callback from C, as numba's compiler is."""

    ufs = (1.0,)

    def parameters(self):
        """Give one tensor."""
        return iter([torch.zeros(1)])

    def __call__(self, *_):
        """Wait inside of the callback."""
        ctypes.CFUNCTYPE(None)(lambda: time.sleep(1))()


def test_ctrl_c_during_the_first_compilation_is_not_lost():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            make_ready(Compiling())
    finally:
        signal.signal(signal.SIGINT, before)


def test_workers_end_with_their_parent(run, server, noise, tmp_path):
    noisy = [noise(f"{index}.wav", 900) for index in range(3)]
    process = run("enhance", *noisy, "-o", tmp_path / "out", "--jobs", 2, "--weights", server.weights)
    process.wait_for_output(tmp_path / "out")
    os.kill(process.number, signal.SIGKILL)
    assert process.end()[0] == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(process.number, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.number, signal.SIGKILL)
        pytest.fail("workers outlived their parent")
    assert not list((tmp_path / "out").glob("*"))


# Arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enhance", ""], "it is empty"),
        (["enhance", "a.wav", "--device", "meta"], "device 'meta' cannot be used"),
        (["train", "backbone", "--data", ".", "-o", "out", "--devices", "-5"], "devices"),
        (["evaluate", ".", ".", "--csv", "."], ". is a folder: expected a file to write"),
        (["evaluate", ".", ".", "--against", "a.wav"], "a.wav is no report"),
    ],
)
def test_wrong_arguments_are_status_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(100), 16_000)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 2 and message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
