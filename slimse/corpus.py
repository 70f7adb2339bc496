"""Many files: one after the other or in several processes, with what became of each of them."""

from __future__ import annotations

import csv
import multiprocessing
import os
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch

from .atomic import written_whole
from .audio.batch import KnownNetwork, run_together, shares_passes
from .audio.enhance import block_length, open_for_file, write_enhanced
from .audio.files import read_blocks, read_info, read_mono
from .audio.jobs import Job
from .audio.network import Network
from .checkpoint import load
from .model import SlimModel
from .processes import worker_pool

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
"""What may be wrong with one file, its place on the disk, or its size on this machine, and leaves the others alone."""
_PARALLEL_AT_ONCE = 64
"""Groups of files per process that are handed out before the first of them is back."""


class Settings(NamedTuple):
    """How files are enhanced; plain values, which other processes get too."""

    weights: str
    devices: tuple[str, ...] = ("cpu",)
    """Of the processes, in turn."""
    uf: float | None = None
    budget: float | None = None
    dry: float = 0.0
    force: bool = False
    skip_existing: bool = False
    """Leave outputs alone that read back whole and are as long as their inputs; those that are not are made anew."""
    dnsmos: bool = False
    """Estimate P.808 and OVRL of each output."""
    batch: float = 0.0
    """Seconds of sound, padding included, that a pass of the network takes at most from several short files, see
    `group_jobs`; the last 50 ms of padded ones differ, as in `slimse.enhance_batch`. 0: one file after the other."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file: a row of the table of results. None where it is not known."""

    source: str
    target: str
    status: str
    """``enhanced``, ``skipped`` or ``failed``."""
    seconds: float | None = None
    """Length of the sound."""
    level: float | None = None
    """RMS of the input over all channels, dB below full scale; ``-inf`` for digital silence."""
    enhanced_level: float | None = None
    uf: float | None = None
    """Average over the frames."""
    p808: float | None = None
    ovrl: float | None = None
    error: str = ""


_Finished = tuple[Job, Outcome, BaseException | None]


def enhance_job(
    job: Job,
    settings: Settings,
    model: SlimModel,
    progress: Callable[[float], object] | None = None,
    network: Network | None = None,
) -> Outcome:
    """Enhance one file, or find that it has been.

    Args:
        job: what to read and write.
        settings: how.
        model: of ``settings.weights``.
        progress: called with the seconds of each block that is done.
        network: what ran on the file already. None runs ``model`` on it.

    Raises:
        ValueError, OSError, RuntimeError, MemoryError: for what is wrong with this file; others may be fine.
    """
    source, target = str(job.source), str(job.target)
    force = settings.force
    if settings.skip_existing and os.path.lexists(job.target):
        if is_whole(job.source, job.target):
            return Outcome(source, target, "skipped")
        force = True
    opened = partial(open_for_file, job.source, model, settings.uf, settings.budget)
    done = write_enhanced(
        job.source,
        job.target,
        opened if network is None else lambda _: network,
        model.sample_rate,
        dry=settings.dry,
        force=force,
        progress=progress,
    )
    scores: Mapping[str, float] = {}
    if settings.dnsmos:
        from .evaluation.metrics import SAMPLE_RATE, score

        scores = score(read_mono(job.target, SAMPLE_RATE), None, ("p808", "ovrl")).values
    average = float(done.ufs.mean()) if len(done.ufs) else None
    levels = done.level, done.enhanced_level
    return Outcome(source, target, "enhanced", done.seconds, *levels, average, scores.get("p808"), scores.get("ovrl"))


def is_whole(source: Path, target: Path) -> bool:
    """Whether ``target`` can be read to its end and is as long as ``source`` says it is.

    A file whose header is not exact, such as an MP3, may be half a second longer or shorter.
    """
    try:
        info = read_info(source)
        samples = sum(
            block.shape[1] for block in read_blocks(target, block_length(info.sample_rate, max(info.channels, 1)))
        )
    except ValueError:
        return False
    exact = info.format != "MP3" and read_info(target).format not in ("MP3", "OGG")
    return abs(samples - info.frames) <= (0 if exact else info.sample_rate // 2)


def group_jobs(plan: Sequence[Job], settings: Settings, model: SlimModel) -> list[list[Job]]:
    """Files that go through the network together, from their headers.

    A group has one channel and one sample rate, is sorted by length, and its longest file times its number of files is
    ``settings.batch`` at most. Longer files, those of several channels, those that cannot be read or whose output is
    there, and all files of a model that needs the whole signal are groups of their own, and come first.
    """
    if not settings.batch or not shares_passes(model):
        return [[job] for job in plan]
    groups, short = [], []
    for job in plan:
        with suppress(ValueError, OSError):
            info = read_info(job.source)
            fits = info.channels == 1 and 0 < info.frames <= settings.batch * info.sample_rate
            if fits and (settings.force or not os.path.lexists(job.target)):
                short.append((info.sample_rate, info.frames, job))
                continue
        groups.append([job])
    last = 0
    for rate, frames, job in sorted(short):
        if rate == last and frames * (len(groups[-1]) + 1) <= settings.batch * rate:
            groups[-1].append(job)
        else:
            groups.append([job])
        last = rate
    return groups


def enhance_jobs(
    jobs: Sequence[Job], settings: Settings, model: SlimModel, progress: Callable[[float], object] | None = None
) -> Iterator[_Finished]:
    """Enhance a group of files, in one pass of the network if there are several; failures are told, not raised."""
    networks = _run_group(jobs, settings, model) if len(jobs) > 1 else {}
    for job in jobs:
        try:
            outcome, error = enhance_job(job, settings, model, progress, networks.pop(job, None)), None
        except FAILURES as failure:
            outcome, error = _failed(job, failure), failure
        yield job, outcome, error


def _run_group(jobs: Sequence[Job], settings: Settings, model: SlimModel) -> dict[Job, KnownNetwork]:
    """Networks of the files that could be read whole; what is wrong with the others is found when each is its turn."""
    signals = {}
    try:
        for job in jobs:
            with suppress(ValueError, OSError):
                info = read_info(job.source)
                signal = next(read_blocks(job.source, info.frames), None)
                if signal is not None and signal.shape == (1, info.frames) and np.isfinite(signal).all():
                    signals[job], rate = signal, info.sample_rate
        if len(signals) < 2:
            return {}
        known = run_together(list(signals.values()), rate, model, settings.uf, settings.budget)
    except FAILURES as error:
        message = f"a pass of {len(signals)} files failed, they run one by one: {str(error) or type(error).__name__}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return {}
    return dict(zip(signals, known, strict=True))


def run_jobs(
    plan: Sequence[Job],
    settings: Settings,
    model: SlimModel,
    processes: int,
    advance: Callable[[float], object] = lambda seconds: None,
) -> Iterator[_Finished]:
    """Enhance files, and give what became of each as soon as it is known, failures included.

    Args:
        plan: files to read and write.
        settings: for all of them.
        model: of ``settings.weights``, on the first device; runs here if there is one process.
        processes: how many work at once, each with one thread.
        advance: called with the seconds of sound that are done.
    """
    groups = group_jobs(plan, settings, model)
    processes = min(processes, len(groups))
    if processes > 1:
        yield from _run_parallel(groups, settings, processes, advance)
        return
    for group in groups:
        yield from enhance_jobs(group, settings, model, advance)


def _failed(job: Job, error: BaseException) -> Outcome:
    return Outcome(str(job.source), str(job.target), "failed", error=str(error) or type(error).__name__)


class _Worker:
    """What a worker process keeps between files."""

    settings: Settings
    model: SlimModel
    progress: Callable[[float], None]


def _start_worker(settings: Settings, numbers: Any, ticks: Any) -> None:
    torch.set_num_threads(1)
    device = settings.devices[numbers.get() % len(settings.devices)]
    _Worker.settings, _Worker.progress = settings, staticmethod(ticks.put)
    _Worker.model = load(settings.weights, device=device)


def _work(group: Sequence[Job]) -> list[_Finished]:
    return list(enhance_jobs(group, _Worker.settings, _Worker.model, _Worker.progress))


def _run_parallel(
    groups: Sequence[Sequence[Job]], settings: Settings, processes: int, advance: Callable[[float], object]
) -> Iterator[_Finished]:
    context = multiprocessing.get_context("spawn")
    ticks, numbers = context.Queue(), context.Queue()
    for number in range(processes):
        numbers.put(number)
    with worker_pool(processes, _start_worker, settings, numbers, ticks) as submit:
        rest = iter(groups)
        waiting: dict[Future[list[_Finished]], Sequence[Job]] = {}
        while True:
            # A few at a time: to wait for thousands of calls at once takes longer than short files do.
            while len(waiting) < processes * _PARALLEL_AT_ONCE and (group := next(rest, None)) is not None:
                waiting[submit(_work, group)] = group
            if not waiting:
                return
            done, _ = wait(waiting, timeout=0.1, return_when="FIRST_COMPLETED")
            advance(_drain(ticks))
            for future in [future for future in waiting if future in done]:
                group, error = waiting.pop(future), future.exception()
                if error is not None and not isinstance(error, FAILURES):
                    raise error
                yield from future.result() if error is None else [(job, _failed(job, error), error) for job in group]


def _drain(ticks: Any) -> float:
    seconds = 0.0
    while True:
        try:
            seconds += ticks.get_nowait()
        except queue.Empty:
            return seconds


# The table of results ----------------------------------------------------------------------------------------------


class ResultsFile:
    """A CSV table with a row per file, written as files are finished, so that a run that ends early leaves its rows.

    Used in a ``with`` statement.

    Args:
        path: of the file. One that is there is replaced.
        keep: keep its rows of files that were enhanced, for those that this run will skip.

    Raises:
        ValueError: if it cannot be written, or is no table of results and ``keep`` asks for its rows.
    """

    _COLUMNS = tuple(field.name for field in fields(Outcome))

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        self._path, self._kept = path, self._read(path) if keep and path.exists() else {}
        with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._COLUMNS)
            writer.writeheader()
            writer.writerows(self._kept.values())
        self._file: TextIO = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self._COLUMNS)

    def _read(self, path: Path) -> dict[str, dict[str, str]]:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != self._COLUMNS:
                raise ValueError(f"{path} is no table of results: expected the columns {', '.join(self._COLUMNS)}")
            # A run that was killed may have left half a row.
            rows = [row for row in reader if None not in row.values()]
        return {row["target"]: row for row in rows if row["status"] == "enhanced"}

    def add(self, outcome: Outcome) -> None:
        """Write a row; a skipped file keeps the one it has."""
        if outcome.status == "skipped" and outcome.target in self._kept:
            return
        row = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(outcome).items()}
        self._writer.writerow(row)
        self._file.flush()

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._file.close()


def total_seconds(jobs: Iterable[Job]) -> float:
    """Length of all files together, as far as their headers can be read; the others fail later, by name."""
    total = 0.0
    for job in jobs:
        with suppress(ValueError, OSError):
            info = read_info(job.source)
            total += info.frames / info.sample_rate
    return total
