"""The steps of `gpu.py`, each in processes of its own that are cut off when its share of the time is used up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"ceilings": 0.06, "checks and compiling": 0.33, "times": 0.86, "profiles": 0.93, "more checks": 0.985}
"""Steps, and the share of the whole time that is over when each of them ends at the latest."""
WORKERS = 14
TRIES = 8
"""How often the process that times is started again, after a call that breaks it."""
STUCK = 90.0
"""Seconds without a new line after which a process that times is taken to hang."""


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a line of JSON, in one write, as others may be adding theirs."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(row) + "\n").encode())


def lines(path: Path) -> list[dict[str, Any]]:
    """All lines of JSON that are whole."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # The last one, of a process that was stopped while it wrote.
    return found


class Session:
    """The steps on one machine, in processes that are ended with it."""

    def __init__(self, folder: Path, start: float, minutes: float, options: list[str]) -> None:
        self.folder, self.start, self.span, self.options = folder, start, 60 * minutes, options
        self.rehearse = "--rehearse" in options
        self.running: list[subprocess.Popen[bytes]] = []

    def ends(self, step: str) -> float:
        """When a step ends at the latest."""
        return self.start + SHARES[step] * self.span

    def begin(self, step: str, *, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a process of a step; what it prints goes into a log."""
        command = [*before, sys.executable, "-m", "bench.gpu", "--step", step, "--until", str(self.ends(step))]
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--out", str(self.folder.resolve()), *self.options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=ROOT,
            )
        self.running.append(process)
        return process

    def wait(self, step: str, processes: list[subprocess.Popen[bytes]], watch: Path | None = None) -> str:
        """Wait until all have ended, and end them when the step has to; or when nothing new comes; says how it went."""
        seen = time.time()
        while any(process.poll() is None for process in processes):
            if watch is not None and watch.is_file():
                seen = max(seen, watch.stat().st_mtime)
            hangs = watch is not None and time.time() > seen + STUCK
            if hangs or time.time() > self.ends(step) + 3:
                self.stop(processes)
                return "hung" if hangs else "cut off"
            time.sleep(0.1)
        codes = {process.returncode for process in processes}
        return "done" if codes == {0} else f"exit status {sorted(codes)}"

    def stop(self, processes: list[subprocess.Popen[bytes]] | None = None) -> None:
        """End processes and all that they started."""
        for process in self.running if processes is None else processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def say(self, step: str, outcome: str) -> None:
        """One line of a step's end."""
        print(f"{time.time() - self.start:5.0f} s  {step}: {outcome}", flush=True)
        append(self.folder / "steps.jsonl", {"step": step, "seconds": time.time() - self.start, "outcome": outcome})

    def run(self) -> None:
        """All steps."""
        workers = 1 if self.rehearse else min(WORKERS, max(1, (os.cpu_count() or 1) - 2))
        self.say("ceilings", self.wait("ceilings", [self.begin("ceilings")]))
        step = "checks and compiling"
        self.say(step, self.wait(step, [self.begin(step) for _ in range(workers)]))
        times = self.folder / "times.jsonl"
        for _ in range(TRIES):
            outcome = self.wait("times", [self.begin("times")], times)
            self.say("times", outcome)
            if outcome == "done" or time.time() > self.ends("times") - 5:
                break
        self.tools()
        step = "more checks"
        self.say(step, self.wait(step, [self.begin(step) for _ in range(workers)]))

    def tools(self) -> None:
        """Profiles of five kernels, and a memory check of one, where NVIDIA's tools are there."""
        name = "profiles"
        if self.rehearse:
            self.say(name, self.wait(name, [self.begin(name)]))
            return
        started = []
        if shutil.which("ncu"):
            # Clocks stay as they are, and as users have them.
            sections = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats")
            options = [option for section in sections for option in ("--section", section)]
            log = ("--csv", "--log-file", str(self.folder / "ncu.csv"))
            rest = ("--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all")
            started.append(self.begin(name, before=("ncu", *options, *log, *rest)))
        if shutil.which("compute-sanitizer"):
            tool = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
            command = [*tool, "--log-file", str(self.folder / "memcheck.txt"), sys.executable]
            command += ["-m", "bench.checks", "slim_gru", "bf16"]
            with (self.folder / "log.txt").open("ab") as log_file:
                started.append(
                    subprocess.Popen(command, stdout=log_file, stderr=log_file, start_new_session=True, cwd=ROOT)
                )
            self.running.append(started[-1])
        tools = [process.args[0] for process in started]  # type: ignore[index]
        self.say(f"{name} with {tools}", self.wait(name, started) if started else "no tools")
