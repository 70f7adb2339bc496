"""``slimse enhance``: files and folders of noisy speech."""

from __future__ import annotations

import multiprocessing
import queue
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..audio.enhance import dry_share, enhance_file
from ..audio.files import read_info
from ..audio.jobs import Job, plan_jobs
from ..checkpoint import DEFAULT, load
from ..model import SlimModel
from ..processes import worker_pool
from .loading import make_ready
from .pipes import through_pipes
from .terminal import a_path

_FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
"""What may be wrong with one file, its place on the disk, or its size on this machine, and leaves the others alone."""


class Quality(StrEnum):
    """A budget for people who do not think in widths."""

    low = "low"
    balanced = "balanced"
    high = "high"


_BUDGETS = {Quality.low: 0.15, Quality.balanced: 0.3, Quality.high: 0.75}


class _Settings(NamedTuple):
    weights: str
    device: str
    uf: float | None
    budget: float | None
    dry: float
    force: bool


class _Report:
    """What the user sees: a bar on a terminal, else a line per file; failures on standard error either way."""

    def __init__(self, jobs: list[Job]) -> None:
        self._console = Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False, soft_wrap=True)
        self.failures = 0
        self.lost: OSError | None = None
        self.bar: Progress | None = None
        if self._console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=self._console)
            self._task = self.bar.add_task(self._status(0, len(jobs)), total=_seconds(jobs))
        self._lines = self.bar is None or not sys.stdout.isatty()
        self._finished, self._count = 0, len(jobs)

    @staticmethod
    def _status(finished: int, count: int) -> str:
        return f"{finished} of {count} files"

    def advance(self, seconds: float) -> None:
        if self.bar is not None:
            self.bar.advance(self._task, seconds)

    def finish(self, job: Job, error: BaseException | None = None) -> None:
        self._finished += 1
        if self.bar is not None:
            self.bar.update(self._task, description=self._status(self._finished, self._count))
            if self._finished == self._count:
                # Files that failed never sent the rest of their seconds.
                self.bar.update(self._task, completed=self.bar.tasks[self._task].total)
        if error is None:
            self._tell(f"{job.source} -> {job.target}")
            return
        message = str(error) or type(error).__name__
        if str(job.source) not in message and str(job.target) not in message:
            message = f"{job.source}: {message}"
        self.fail(message)

    def fail(self, message: object) -> None:
        """Count and show a failure."""
        self.failures += 1
        with suppress(OSError):
            self._console.print(f"error: {message}", markup=False)

    def _tell(self, line: str) -> None:
        """Print on standard output; if that is full or closed, the files are more important."""
        if not self._lines:
            return
        try:
            print(line, flush=True)
        except OSError as error:
            self._lines, self.lost = False, error


@through_pipes
def enhance(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN...", parser=a_path, help="Audio files, and folders of them.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            parser=a_path,
            help="Folder; for one file also a file. Default: NAME.enhanced.EXT beside IN. - is a pipe.",
        ),
    ] = None,
    uf: Annotated[
        float | None, typer.Option(help="Width of the network: smaller is faster, larger is better. Default: 1.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Mean width; the router chooses that of every 16 ms by how hard the sound is.")
    ] = None,
    quality: Annotated[
        Quality | None, typer.Option(help="Budget in a word: low is 0.15, balanced 0.3, high 0.75.")
    ] = None,
    dry: Annotated[float | None, typer.Option(help="Share of the noisy input in the output, 0 to 1.")] = None,
    attenuation_limit: Annotated[
        str | None, typer.Option(metavar="DB", help="Lower noise by no more than this, e.g. 12dB.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Name of bundled weights, or a .safetensors file.")] = DEFAULT,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 ...")] = "cpu",
    jobs: Annotated[int, typer.Option(help="Files at the same time, each in a process with one thread.", min=1)] = 1,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Remove noise from audio files of any format, sample rate and number of channels.

    Exit status: 0 if all files were enhanced, 1 if some were not, 2 if nothing was tried, 130 after Ctrl-C.
    """
    share = dry_share(dry, None if attenuation_limit is None else _decibels(attenuation_limit))
    refused: list[ValueError] = []
    plan = plan_jobs(inputs, output, failed=refused.append)
    model = load(weights, device=_usable(device))
    settings = _Settings(weights, device, *_width(model, uf, budget, quality), share, force)
    make_ready(model)
    report = _Report(plan)
    with ExitStack() as stack:
        if report.bar is not None:
            stack.enter_context(report.bar)
        for error in refused:
            report.fail(error)
        if min(jobs, len(plan)) > 1:
            _run_parallel(plan, settings, min(jobs, len(plan)), report)
        else:
            _run_serial(plan, settings, model, report)
    if report.lost is not None:
        raise report.lost
    if report.failures:
        raise typer.Exit(1)


def _width(
    model: SlimModel, uf: float | None, budget: float | None, quality: Quality | None
) -> tuple[float | None, float | None]:
    """The width or budget that was asked for, checked before any file is opened."""
    if sum(option is not None for option in (uf, budget, quality)) > 1:
        raise ValueError("--uf, --budget and --quality exclude each other: expected one of them at most")
    budget = budget if quality is None else _BUDGETS[quality]
    if budget is None:
        return model.ufs.validate(1.0 if uf is None else uf), None
    model.request(None, budget, 1)
    return None, budget


def _decibels(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(?:dB)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"attenuation limit {text!r}: expected a number of dB, for example 12dB")
    return float(match[1])


def _usable(device: str) -> torch.device:
    try:
        # And back again: the device "meta" keeps shapes alone.
        torch.ones(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _seconds(jobs: list[Job]) -> float:
    """Length of all files together, as far as their headers can be read; the others fail later, by name."""
    total = 0.0
    for job in jobs:
        try:
            info = read_info(job.source)
        except (ValueError, OSError):
            continue
        total += info.frames / info.sample_rate
    return total


def _enhance_one(job: Job, settings: _Settings, model: SlimModel, progress: Callable[[float], None]) -> None:
    uf, budget, dry, force = settings.uf, settings.budget, settings.dry, settings.force
    enhance_file(job.source, job.target, model, uf, budget=budget, dry=dry, force=force, progress=progress)


def _run_serial(plan: list[Job], settings: _Settings, model: SlimModel, report: _Report) -> None:
    for job in plan:
        try:
            _enhance_one(job, settings, model, report.advance)
        except _FAILURES as error:
            report.finish(job, error)
        else:
            report.finish(job)


# Several processes -------------------------------------------------------------------------------------------------


class _Worker:
    """What a worker process keeps between files."""

    settings: _Settings
    model: SlimModel
    progress: Callable[[float], None]


def _start_worker(settings: _Settings, ticks: Any) -> None:
    torch.set_num_threads(1)
    _Worker.settings, _Worker.progress = settings, staticmethod(ticks.put)
    _Worker.model = load(settings.weights, device=settings.device)


def _work(job: Job) -> None:
    _enhance_one(job, _Worker.settings, _Worker.model, _Worker.progress)


def _run_parallel(plan: list[Job], settings: _Settings, workers: int, report: _Report) -> None:
    ticks = multiprocessing.get_context("spawn").Queue()
    with worker_pool(workers, _start_worker, settings, ticks) as submit:
        futures: dict[Future[None], int] = {submit(_work, job): index for index, job in enumerate(plan)}
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=0.1)
            report.advance(_drain(ticks))
            for future in sorted(done, key=futures.__getitem__):
                error = future.exception()
                if error is not None and not isinstance(error, _FAILURES):
                    raise error
                report.finish(plan[futures[future]], error)


def _drain(ticks: Any) -> float:
    seconds = 0.0
    while True:
        try:
            seconds += ticks.get_nowait()
        except queue.Empty:
            return seconds
