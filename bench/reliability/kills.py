"""Kill a command at random moments: no half-written file under its name, nothing left running, a rerun completes.

    python -m bench.reliability.kills enhance --times 100
    python -m bench.reliability.kills evaluate --times 100
    python -m bench.reliability.kills train --times 100
    python -m bench.reliability.kills export --times 100

Each time a process runs the command, with one worker process or none, and gets SIGKILL, SIGTERM or SIGINT at a moment
drawn from its usual duration; one that ended before does not count. Then all of its processes must end; each file that
has its name must be as in a run that nobody killed; and the same command must complete and leave no temporary file.
Ctrl-C prints the summary so far.

The processes are forks of this one, which has imported everything: the moments are those of the work, not of imports.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import torch

import slimse
from slimse.cli import app

_PATIENCE = 300.0
"""Seconds after which a process counts as left running."""
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_RECIPE = """
preset = "small"
seconds = 0.4
batch = 2
narrow_batch = 2
steps = 4
val_interval = 2
warmup = 1
precision = "32-true"
workers = 1
valid_speakers = ["p286"]
valid_items = 1
"""


def start(arguments: list[str], log: Path) -> int:
    """Fork a process that runs ``slimse`` with these arguments, in a group of its own; returns its number."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    os.setsid()
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(arguments, prog_name="slimse")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 70
    os._exit(status)


def runs(process: int, seconds: float) -> bool:
    """Wait so long, or until the process has ended; whether it still runs."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= end:
            return True
        time.sleep(min(0.01, max(0.0, end - time.monotonic())))
    return False


def ended(process: int, patience: float = _PATIENCE) -> int | None:
    """Wait for a process and all others of its group; its status, or None if something still runs."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.killpg(process, 0)
        except ProcessLookupError:
            return status
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    return None


def files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Contents of the files that have their name."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in suffixes]
    return {path.name: path.read_bytes() for path in paths}


class Command:
    """What to run, and how to tell a file of it that is whole."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, rng = name, np.random.default_rng(0)
        torch.manual_seed(0)
        slimse.save(slimse.SlimModel("small"), folder / "small.safetensors")
        for kind, count in (("noisy", 4), ("clean", 4)):
            (folder / kind).mkdir()
            for index in range(count):
                sound = 0.1 * rng.standard_normal(16_000 * 3)
                soundfile.write(folder / kind / f"p{286 + index % 2}_{index}.flac", sound, 16_000)
        (folder / "recipe.toml").write_text(_RECIPE)
        self.folder = folder

    def arguments(self, out: Path, workers: int) -> list[str]:
        """Arguments of ``slimse``."""
        folder, weights = self.folder, ["--weights", str(self.folder / "small.safetensors")]
        noisy, clean = str(folder / "noisy"), str(folder / "clean")
        jobs = ["--jobs", str(1 + workers)]
        if self.name == "enhance":
            return ["enhance", noisy, "-o", str(out), *jobs, *weights]
        if self.name == "evaluate":
            tables = ["--csv", str(out / "scores.csv"), "--json", str(out / "scores.json")]
            return ["evaluate", noisy, clean, "--metrics", "si_sdr,stoi", *tables, *jobs, *weights]
        if self.name == "export":
            # A file that exists is refused without --force: the rerun must replace it.
            return ["export", weights[1], "-o", str(out / "small.onnx"), "--uf", "1", "--force"]
        return ["train", str(folder / "recipe.toml"), "--data", str(folder), "-o", str(out), "--workers", str(workers)]

    def whole(self, out: Path, expected: dict[str, bytes]) -> list[str]:
        """Names of files under their names that are not as in a run that nobody killed."""
        if self.name != "train":
            return [
                name for name, content in files(out, tuple(_SUFFIXES[self.name])).items() if content != expected[name]
            ]
        wrong = []
        for path in out.glob("*"):
            try:
                if path.suffix == ".safetensors":
                    slimse.load(path)
                elif path.suffix == ".ckpt":
                    torch.load(path, weights_only=True)
            except Exception as error:
                wrong.append(f"{path.name}: {error}")
        return wrong


_SUFFIXES = {"enhance": [".flac"], "evaluate": [".csv", ".json"], "train": [".safetensors"], "export": [".onnx"]}


def trial(
    command: Command, out: Path, delay: float, number: int, workers: int, expected: dict[str, bytes]
) -> tuple[bool, list[str]]:
    """Kill one run, and run it again; whether it ran until it was killed, and what was wrong."""
    log = out.parent / "log"
    log.write_bytes(b"")
    out.mkdir()
    process = start(command.arguments(out, workers), log)
    struck = runs(process, delay)
    os.kill(process, number)
    wrong = [] if ended(process) is not None else ["something still runs"]
    wrong += [f"not whole: {name}" for name in command.whole(out, expected)]
    if number == signal.SIGKILL:
        # A worker that was just starting says that its parent has gone.
        log.write_bytes(b"")
    status = ended(start(command.arguments(out, 0), log))
    # Files that were there already are refused, and are a failure of their own.
    if status not in ((0, 1, 2) if command.name == "enhance" else (0,)):
        wrong.append(f"the rerun ended with {status}")
    wrong += [f"not whole after the rerun: {name}" for name in command.whole(out, expected)]
    missing = expected.keys() - files(out, tuple(_SUFFIXES[command.name])).keys()
    wrong += [f"missing after the rerun: {name}" for name in sorted(missing)]
    wrong += [f"left behind: {path.name}" for path in out.rglob("*.part")]
    if "Traceback" in (said := log.read_text(errors="replace")):
        wrong.append("a traceback: " + said[said.index("Traceback") :].strip())
    return struck, wrong


def main() -> None:
    """Run the command once in peace, then kill it at random moments of that duration, and print what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["enhance", "evaluate", "train", "export"])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, signals = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = Command(options.command, folder)
        _prepare(options.command, folder)
        durations, expected = [], dict[str, bytes]()
        for workers in (0, 1):
            (folder / "out").mkdir()
            began = time.monotonic()
            if status := ended(start(command.arguments(folder / "out", workers), folder / "log")):
                raise SystemExit(f"the command fails by itself, {status}: {(folder / 'log').read_text()}")
            durations.append(time.monotonic() - began)
            expected = files(folder / "out", tuple(_SUFFIXES[options.command]))
            shutil.rmtree(folder / "out")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            _trials(options, command, durations, expected, signals, found)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    print(f"{options.command}: {signals.total()} kills {dict(signals)}, faults: {dict(found) or 'none'}")


def _trials(
    options: argparse.Namespace,
    command: Command,
    durations: list[float],
    expected: dict[str, bytes],
    signals: Counter[str],
    found: Counter[str],
) -> None:
    """Kill it as often as asked for, and count the signals and what was wrong."""
    rng, out = np.random.default_rng(options.seed), command.folder / "out"
    while signals.total() < options.times:
        workers, number = int(rng.random() < 0.25), _SIGNALS[int(rng.integers(3))]
        delay = rng.uniform(0, durations[workers])
        struck, faults = trial(command, out, delay, number, workers, expected)
        for wrong in faults:
            found[wrong] += 1
            print(f"{options.command}, {number.name} after {delay:.2f} s, {workers} workers: {wrong}", flush=True)
        shutil.rmtree(out)
        if not struck:
            # It has become faster than it was: later kills must come earlier.
            durations[workers] = delay
            continue
        signals[number.name] += 1
        if signals.total() % 10 == 0:
            print(f"{signals.total()} kills, {sum(found.values())} faults", flush=True)


def _prepare(command: str, folder: Path) -> None:
    """Import and compile what the forks need."""
    with torch.no_grad():
        slimse.load(folder / "small.safetensors")(torch.zeros(1, 1, 600), 1.0)
    if command == "export":
        importlib.import_module("slimse.export.graphs")
        importlib.import_module("slimse.export.check")
    if command == "train":
        importlib.import_module("slimse.training.run")
    if command == "evaluate":
        from slimse.evaluation.metrics import score

        sound = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        score(sound, sound + 0.1, ("si_sdr", "stoi"))


if __name__ == "__main__":
    main()
