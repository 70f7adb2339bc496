"""Scoring a model at each UF on pairs of noisy and clean files."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import pickle
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__
from ..audio.files import find_files, read_mono
from ..models import SlimDemucs
from ..profiling import profile
from ..streaming import Streamer
from .metrics import METRICS, SAMPLE_RATE, Scores, check_metrics, score

_PACKAGES = ("torch", "numpy", "soxr", "pesq", "pystoi", "torchmetrics", "speechmos", "onnxruntime", "librosa")


@dataclass(frozen=True)
class Pair:
    """A noisy file and the clean file of the same name."""

    name: str
    """Path below both folders without the suffix, with ``/``."""
    noisy: Path
    clean: Path


@dataclass(frozen=True)
class Dynamic:
    """In place of a UF: the router's choice for a budget."""

    budget: float


Width: TypeAlias = float | Dynamic | None
"""What a row of scores is of: a UF, a budget, or None for the noisy input."""


@dataclass(frozen=True)
class FileScores:
    """Scores of one file at one width."""

    file: str
    uf: Width
    scores: Scores
    chosen: tuple[int, ...] = ()
    """Of a budget: frames at each of the model's UFs."""


@dataclass(frozen=True)
class MeanScores:
    """Means over all files at one width."""

    uf: Width
    average_uf: float | None
    """Over all frames of all files; None for the noisy input."""
    shares: tuple[float, ...]
    """Of a budget: share of the frames at each of the model's UFs."""
    macs_per_sample: float | None
    """Over all frames, the router's included for a budget."""
    values: dict[str, float]
    """By name of the metric, over the files that have it; NaN if none has."""
    excluded: dict[str, int]
    """Files that a mean leaves out, for metrics with any."""


@dataclass(frozen=True)
class Report:
    """All that an evaluation found."""

    metrics: tuple[str, ...]
    ufs: tuple[Width, ...]
    """None, the noisy input, first; budgets last."""
    files: tuple[FileScores, ...]
    """File by file in the order of the pairs, and within one in the order of ``ufs``."""
    macs: Mapping[float, float] = field(default_factory=dict)
    """MACs per sample by UF, of all that the model has, rising."""
    router_macs: float = 0.0
    """What the router adds to them."""

    def means(self) -> list[MeanScores]:
        """One row per UF, in the order of ``ufs``."""
        rows = []
        for uf in self.ufs:
            scores = [row.scores for row in self.files if row.uf == uf]
            shares = self.shares(row for row in self.files if row.uf == uf)
            values, excluded = {}, {}
            for name in self.metrics:
                known = [s.values[name] for s in scores if name not in s.excluded]
                values[name] = math.fsum(known) / len(known) if known else math.nan
                if len(known) < len(scores):
                    excluded[name] = len(scores) - len(known)
            average, macs = self.cost(uf, shares)
            rows.append(MeanScores(uf, average, shares, macs, values, excluded))
        return rows

    @staticmethod
    def shares(rows: Iterable[FileScores]) -> tuple[float, ...]:
        """Share of the frames of ``rows`` at each of the model's UFs; empty for rows that are not of a budget."""
        frames = [sum(counts) for counts in zip(*(row.chosen for row in rows), strict=True)]
        return tuple(count / sum(frames) for count in frames)

    def cost(self, uf: Width, shares: tuple[float, ...]) -> tuple[float | None, float | None]:
        """Average UF and MACs per sample at a width; ``shares`` as from `shares`."""
        if uf is None:
            return None, None
        if not isinstance(uf, Dynamic):
            return uf, self.macs[uf]
        macs = sum(share * cost for share, cost in zip(shares, self.macs.values(), strict=True))
        return sum(share * uf for share, uf in zip(shares, self.macs, strict=True)), macs + self.router_macs

    def notes(self) -> list[str]:
        """One sentence for each mean that leaves files out, with the number of files by reason."""
        notes = []
        for uf in self.ufs:
            for name in self.metrics:
                reasons = [row.scores.excluded.get(name) for row in self.files if row.uf == uf]
                counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons) if reason is not None}
                if counts:
                    why = "; ".join(f"{count}: {reason}" for reason, count in counts.items())
                    notes.append(
                        f"{METRICS[name].title}, {label(uf)}: {sum(counts.values())} of {len(reasons)} files "
                        f"excluded from the mean ({why})"
                    )
        return notes

    def write_csv(self, path: Path) -> None:
        """Write one row per file and width.

        An undefined score is an empty cell, the UF of the noisy input is ``noisy``, and that of a budget its average.
        """
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "uf", "budget", "macs_per_sample", *self.metrics))
            for row in self.files:
                values = (row.scores.values[name] for name in self.metrics)
                average, macs = self.cost(row.uf, self.shares([row]))
                uf = "noisy" if average is None else average
                cells = (row.file, uf, budget_of(row.uf), macs)
                scores = ("" if math.isnan(value) else value for value in values)
                writer.writerow("" if cell is None else cell for cell in (*cells, *scores))

    def to_dict(self) -> dict[str, Any]:
        """Means and scores per file as plain values, for JSON; null where a score is undefined, and as the noisy UF."""
        return {
            "metrics": list(self.metrics),
            "file_count": len(self.files) // len(self.ufs),
            "means": [
                {
                    "uf": row.average_uf,
                    "budget": budget_of(row.uf),
                    "shares": row.shares,
                    "macs_per_sample": row.macs_per_sample,
                    **_plain(row.values),
                    "excluded": row.excluded,
                }
                for row in self.means()
            ],
            "files": [
                {
                    "file": row.file,
                    "uf": self.cost(row.uf, self.shares([row]))[0],
                    "budget": budget_of(row.uf),
                    **_plain(row.scores.values),
                    "excluded": row.scores.excluded,
                }
                for row in self.files
            ],
        }

    def write_json(self, path: Path, **about: Any) -> None:
        """Write `to_dict`, the versions of the packages behind the figures, and ``about`` into one JSON file."""
        content = {**about, "versions": versions(), **self.to_dict()}
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def budget_of(uf: Width) -> float | None:
    """The budget, or None for what has none."""
    return uf.budget if isinstance(uf, Dynamic) else None


def label(uf: Width) -> str:
    """``noisy``, the UF, or the budget."""
    if isinstance(uf, Dynamic):
        return f"budget {uf.budget:g}"
    return "noisy" if uf is None else f"UF {uf:g}"


def versions() -> dict[str, str | None]:
    """Versions of Python, SlimSE and the packages that the figures depend on; None for one that is not installed."""
    found: dict[str, str | None] = {"slimse": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _audio_files(folder: Path) -> dict[str, Path]:
    """Audio files below ``folder`` by their path without the suffix, sorted."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: expected one of audio files")
    found: dict[str, Path] = {}
    for path in find_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name]} and {path} differ in their suffix alone: expected one file per name")
        found[name] = path
    return found


def find_pairs(noisy: str | os.PathLike[str], clean: str | os.PathLike[str]) -> list[Pair]:
    """Match the audio files of two folders, sub-folders included, by relative path; suffixes may differ.

    Returns:
        Pairs sorted by name, 1 or more.

    Raises:
        ValueError: if a file has no partner, if two differ in the suffix alone, or if there are none.
    """
    left, right = _audio_files(Path(noisy)), _audio_files(Path(clean))
    lonely = [left.get(name) or right[name] for name in sorted(left.keys() ^ right.keys())]
    if lonely:
        more = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
        names = ", ".join(str(path) for path in lonely[:3])
        raise ValueError(f"{names}{more}: no file of the same name in the other folder; expected noisy/clean pairs")
    if not left:
        raise ValueError(f"{noisy} and {clean} hold no audio files: expected 1 pair or more")
    return [Pair(name, left[name], right[name]) for name in sorted(left)]


def _read(path: Path) -> NDArray[np.float32]:
    try:
        return read_mono(path, SAMPLE_RATE)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot be read: {error.error_string}") from error


@dataclass(frozen=True)
class _Job:
    """What scoring a pair needs besides the pair."""

    model: SlimDemucs | None
    ufs: tuple[float | Dynamic, ...]
    metrics: tuple[str, ...]

    def __call__(self, pair: Pair) -> list[FileScores]:
        """Scores of the noisy input and of the output at each UF."""
        noisy, clean = _read(pair.noisy), _read(pair.clean)
        # Resampling from different rates may round to lengths a few samples apart.
        if abs(len(noisy) - len(clean)) > SAMPLE_RATE // 1000 or not len(noisy) or not len(clean):
            raise ValueError(
                f"{pair.noisy} has {len(noisy)} samples at {SAMPLE_RATE} Hz and {pair.clean} has {len(clean)}: "
                "expected aligned files of one length"
            )
        length = min(len(noisy), len(clean))
        noisy, clean = noisy[:length], clean[:length]
        rows = [FileScores(pair.name, None, score(noisy, clean, self.metrics))]
        for uf in self.ufs:
            assert self.model is not None
            signal, chosen = torch.from_numpy(noisy)[None, None], tuple[int, ...]()
            with torch.no_grad():
                width = self.model.route(signal, uf.budget) if isinstance(uf, Dynamic) else uf
                enhanced = self.model(signal, width)[0, 0].numpy()
            if isinstance(width, Tensor):
                chosen = tuple(int((width == known).sum()) for known in self.model.config.ufs)
            rows.append(FileScores(pair.name, uf, score(enhanced, clean, self.metrics), chosen))
        return rows


_worker_job: _Job | None = None


def _start_worker(job: bytes) -> None:
    global _worker_job
    torch.set_num_threads(1)
    _worker_job = pickle.loads(job)


def _work(pair: Pair) -> list[FileScores]:
    assert _worker_job is not None
    return _worker_job(pair)


def _run(job: _Job, pairs: list[Pair], jobs: int) -> Iterator[list[FileScores]]:
    """Scores of every pair, in the order of ``pairs``, on ``jobs`` threads of execution in all."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(job, pairs)
        finally:
            torch.set_num_threads(threads)
        return
    # Spawned, not forked: a fork of a process whose torch has run threads can hang. Plain bytes, as torch would
    # otherwise pass the weights through shared memory, which containers keep small.
    context = multiprocessing.get_context("spawn")
    arguments = (pickle.dumps(job),)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=arguments) as pool:
        yield from pool.map(_work, pairs)


def evaluate_pairs(
    pairs: Iterable[Pair],
    model: SlimDemucs | None,
    *,
    ufs: Iterable[float] | None = None,
    budgets: Iterable[float] = (),
    metrics: Iterable[str] = tuple(METRICS),
    jobs: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Score noisy files and what ``model`` makes of them at each UF.

    Files at other rates than 16 kHz are resampled, and channels averaged, before anything else.

    Args:
        pairs: from `find_pairs`.
        model: on the CPU; None scores the noisy files alone.
        ufs: of the model's set; None for all of them.
        budgets: for the model's router.
        metrics: keys of `METRICS`.
        jobs: processes, each of one thread; None for one per core. With 1, no process is started. A script that
            asks for more needs the ``if __name__ == "__main__":`` of `multiprocessing`.
        progress: called with the number of pairs done, after each.

    Raises:
        ValueError: for unknown metrics or UFs, a model at another rate, or a pair of different lengths.
        ModuleNotFoundError: if the package behind a metric is missing.
    """
    pairs, metrics = list(pairs), check_metrics(metrics)
    jobs = (os.cpu_count() or 1) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs = {jobs}: expected 1 or more")
    if not pairs:
        raise ValueError("pairs is empty: expected 1 or more")
    if model is None:
        if ufs is not None:
            raise ValueError(f"ufs = {tuple(ufs)}: expected None, as there is no model")
        chosen: tuple[float | Dynamic, ...] = ()
    else:
        if model.config.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate = {model.config.sample_rate} of the model: expected {SAMPLE_RATE}")
        chosen = tuple(
            dict.fromkeys(model.config.ufs.validate(uf) for uf in (model.config.ufs if ufs is None else ufs))
        ) + tuple(Dynamic(budget) for budget in dict.fromkeys(budgets))
        for width in chosen:
            if isinstance(width, Dynamic):
                Streamer(model, "auto", budget=width.budget)
    rows: list[FileScores] = []
    for done, scores in enumerate(_run(_Job(model, chosen, metrics), pairs, min(jobs, len(pairs))), start=1):
        rows.extend(scores)
        progress(done)
    if model is None:
        return Report(metrics, (None,), tuple(rows))
    costs = profile(model)
    macs = {width.uf: width.macs_per_sample for width in costs.widths}
    return Report(metrics, (None, *chosen), tuple(rows), macs, costs.router_macs_per_sample or 0.0)
