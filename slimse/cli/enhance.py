"""``slimse enhance``: files, folders and lists of noisy speech."""

from __future__ import annotations

import math
import re
import sys
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..hub import DEFAULT
from .loading import make_ready
from .pipes import through_pipes
from .terminal import a_path, is_quiet

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from ..audio.jobs import Job
    from ..model import SlimModel


class Quality(StrEnum):
    """A budget for people who do not think in widths."""

    low = "low"
    balanced = "balanced"
    high = "high"


_BUDGETS = {Quality.low: 0.15, Quality.balanced: 0.3, Quality.high: 0.75}


class _Report:
    """What the user sees: a bar on a terminal, else a line per file; failures on standard error either way."""

    def __init__(self, jobs: list[Job]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        from ..corpus import total_seconds

        self._console = Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False, soft_wrap=True)
        self.failures = 0
        self.lost: OSError | None = None
        self.bar: Progress | None = None
        if self._console.is_terminal and not is_quiet():
            columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=self._console)
            self._task = self.bar.add_task(self._status(0, len(jobs)), total=total_seconds(jobs))
        self._lines = not is_quiet() and (self.bar is None or not sys.stdout.isatty())
        self._finished, self._count = 0, len(jobs)

    @staticmethod
    def _status(finished: int, count: int) -> str:
        return f"{finished} of {count} files"

    def advance(self, seconds: float) -> None:
        if self.bar is not None:
            self.bar.advance(self._task, seconds)

    def finish(self, job: Job, error: BaseException | None = None, *, skipped: bool = False) -> None:
        self._finished += 1
        if self.bar is not None:
            self.bar.update(self._task, description=self._status(self._finished, self._count))
            if self._finished == self._count:
                # Files that failed never sent the rest of their seconds.
                self.bar.update(self._task, completed=self.bar.tasks[self._task].total)
        if error is None:
            self._tell(f"{job.source} -> {job.target}{' (there already)' if skipped else ''}")
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
        list[Path],
        typer.Argument(
            metavar="IN...",
            parser=a_path,
            help="Audio files, folders, and lists of files (.csv, .jsonl).",
        ),
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
        float | None,
        typer.Option(help="Target mean width. The router picks the width of every 16 ms: more where it helps."),
    ] = None,
    quality: Annotated[
        Quality | None, typer.Option(help="Budget in a word: low is 0.15, balanced 0.3, high 0.75.")
    ] = None,
    dry: Annotated[float | None, typer.Option(help="Share of the noisy input in the output, 0 to 1.")] = None,
    attenuation_limit: Annotated[
        str | None, typer.Option(metavar="DB", help="Lower noise by no more than this, e.g. 12dB.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Name of bundled weights, or a .safetensors file.")] = DEFAULT,
    device: Annotated[str, typer.Option(help="cpu, cuda, or several, one per process in turn: cuda:0,cuda:1.")] = "cpu",
    jobs: Annotated[
        int | None,
        typer.Option(help="Files at the same time, each in a process with one thread. Default: one per device.", min=1),
    ] = None,
    batch: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Run short mono files together, so much sound at a time. 0: one by one."),
    ] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip outputs that exist and are complete, to resume a run.")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=a_path, help="Write a CSV row per file: length, levels, average UF."),
    ] = None,
    dnsmos: Annotated[
        bool, typer.Option("--dnsmos", help="Add DNSMOS of each output to --results; takes a second per file.")
    ] = False,
) -> None:
    """Remove noise from audio files.

    They may have any format, sample rate and number of channels.

    Exit status: 0 if all files were enhanced, 1 if some were not, 2 if nothing was tried, 130 after Ctrl-C.
    """
    from ..audio.enhance import dry_share
    from ..audio.jobs import plan_jobs
    from ..checkpoint import load
    from ..corpus import ResultsFile, Settings, run_jobs

    share = dry_share(dry, None if attenuation_limit is None else _decibels(attenuation_limit))
    _check_options(batch, force=force, skip_existing=skip_existing, dnsmos=dnsmos, results=results)
    refused: list[ValueError] = []
    plan = plan_jobs(inputs, output, failed=refused.append)
    devices = tuple(name.strip() for name in device.split(","))
    first, *_ = [_usable(name) for name in devices]
    model = load(weights, device=first)
    width = _width(model, uf, budget, quality)
    settings = Settings(weights, devices, *width, share, force, skip_existing, dnsmos, batch)
    make_ready(model)
    report = _Report(plan)
    with ExitStack() as stack:
        table = None if results is None else stack.enter_context(ResultsFile(results, keep=skip_existing))
        if report.bar is not None:
            stack.enter_context(report.bar)
        for refusal in refused:
            report.fail(refusal)
        for job, outcome, error in run_jobs(plan, settings, model, jobs or len(devices), report.advance):
            if table is not None:
                table.add(outcome)
            report.finish(job, error, skipped=outcome.status == "skipped")
    if report.lost is not None:
        raise report.lost
    if report.failures:
        raise typer.Exit(1)


def _check_options(batch: float, *, force: bool, skip_existing: bool, dnsmos: bool, results: Path | None) -> None:
    if not 0 <= batch < math.inf:
        raise ValueError(f"--batch {batch:g}: expected seconds of sound, or 0 for one file after the other")
    if force and skip_existing:
        raise ValueError("--force and --skip-existing exclude each other: expected one of them at most")
    if dnsmos and results is None:
        raise ValueError("--dnsmos goes into the table of results: expected --results FILE")
    if dnsmos:
        from ..evaluation.metrics import check_metrics

        check_metrics(("p808", "ovrl"))
    if results is not None and (results.is_dir() or not results.absolute().parent.is_dir()):
        raise ValueError(f"--results {results}: expected a file in a folder that exists")


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
    import torch

    try:
        # And back again: the device "meta" keeps shapes alone.
        torch.ones(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
