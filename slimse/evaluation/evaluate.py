"""Scoring a model at each UF on pairs of noisy and clean files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..audio.files import find_files, read_mono
from ..model import SlimModel
from ..processes import worker_pool
from ..profiling import profile
from .metrics import DEFAULT_METRICS, SAMPLE_RATE, Signal, check_metrics, score
from .results import Dynamic, Failure, FileScores, Report


@dataclass(frozen=True)
class Pair:
    """A noisy file and the clean file of the same name."""

    name: str
    """Path below both folders without the suffix, with ``/``."""
    noisy: Path
    clean: Path


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


def read_pair(pair: Pair) -> tuple[Signal, Signal]:
    """Noisy and clean, ``[n]`` each, in mono at the rate of the scores.

    Raises:
        ValueError: for a file that cannot be read, and for two that differ in length; the message names them.
    """
    noisy, clean = read_mono(pair.noisy, SAMPLE_RATE), read_mono(pair.clean, SAMPLE_RATE)
    # Resampling from different rates may round to lengths a few samples apart.
    if abs(len(noisy) - len(clean)) > SAMPLE_RATE // 1000 or not len(noisy) or not len(clean):
        raise ValueError(
            f"{pair.noisy} has {len(noisy)} samples at {SAMPLE_RATE} Hz and {pair.clean} has {len(clean)}: "
            "expected aligned files of one length"
        )
    length = min(len(noisy), len(clean))
    return noisy[:length], clean[:length]


@dataclass(frozen=True)
class _Job:
    """What scoring a pair needs besides the pair."""

    model: SlimModel | None
    ufs: tuple[float | Dynamic, ...]
    metrics: tuple[str, ...]

    def __call__(self, pair: Pair) -> list[FileScores] | Failure:
        """Scores of a pair, or why it has none: what is wrong with one leaves the others alone."""
        try:
            return self.scores(pair)
        except (ValueError, RuntimeError, MemoryError) as error:
            message = str(error) or type(error).__name__
            known = str(pair.noisy) in message or str(pair.clean) in message
            return Failure(pair.name, message if known else f"{pair.noisy}: {message}")

    def scores(self, pair: Pair) -> list[FileScores]:
        """Scores of the noisy input and of the output at each UF."""
        noisy, clean = read_pair(pair)
        rows = [FileScores(pair.name, None, score(noisy, clean, self.metrics))]
        for uf in self.ufs:
            assert self.model is not None
            signal, chosen = torch.from_numpy(noisy)[None, None], tuple[int, ...]()
            with torch.no_grad():
                width = self.model.route(signal, uf.budget) if isinstance(uf, Dynamic) else uf
                enhanced = self.model(signal, width)[0, 0].numpy()
            if isinstance(width, Tensor):
                chosen = tuple(int((width == known).sum()) for known in self.model.ufs)
            rows.append(FileScores(pair.name, uf, score(enhanced, clean, self.metrics), chosen))
        return rows


_worker_job: _Job | None = None


def _start_worker(job: bytes) -> None:
    global _worker_job
    torch.set_num_threads(1)
    _worker_job = pickle.loads(job)


def _work(pair: Pair) -> list[FileScores] | Failure:
    assert _worker_job is not None
    return _worker_job(pair)


def _run(job: _Job, pairs: list[Pair], jobs: int) -> Iterator[list[FileScores] | Failure]:
    """Scores of every pair, in the order of ``pairs``, on ``jobs`` threads of execution in all."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(job, pairs)
        finally:
            torch.set_num_threads(threads)
        return
    # Plain bytes, as torch would otherwise pass the weights through shared memory, which containers keep small.
    with worker_pool(jobs, _start_worker, pickle.dumps(job)) as submit:
        for future in [submit(_work, pair) for pair in pairs]:
            yield future.result()


def evaluate_pairs(
    pairs: Iterable[Pair],
    model: SlimModel | None,
    *,
    ufs: Iterable[float] | None = None,
    budgets: Iterable[float] = (),
    metrics: Iterable[str] = DEFAULT_METRICS,
    jobs: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Score noisy files and what ``model`` makes of them at each UF.

    Files at other rates than 16 kHz are resampled, and channels averaged, before anything else. A pair that cannot be
    scored (unreadable, not finite, of two lengths) is left out and named in `Report.failures`.

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
        ValueError: for unknown metrics or UFs, a model at another rate, or if no pair can be scored.
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
        if model.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate = {model.sample_rate} of the model: expected {SAMPLE_RATE}")
        chosen = tuple(dict.fromkeys(model.ufs.validate(uf) for uf in (model.ufs if ufs is None else ufs))) + tuple(
            Dynamic(budget) for budget in dict.fromkeys(budgets)
        )
        for width in chosen:
            if isinstance(width, Dynamic):
                model.request(None, width.budget, 1)
    rows: list[FileScores] = []
    failures: list[Failure] = []
    for done, scores in enumerate(_run(_Job(model, chosen, metrics), pairs, min(jobs, len(pairs))), start=1):
        if isinstance(scores, Failure):
            failures.append(scores)
        else:
            rows.extend(scores)
        progress(done)
    if not rows:
        raise ValueError(f"no pair could be scored: {failures[0].reason}")
    if model is None:
        return Report(metrics, (None,), tuple(rows), failures=tuple(failures))
    costs = profile(model)
    macs = {width.uf: width.macs_per_sample for width in costs.widths}
    return Report(metrics, (None, *chosen), tuple(rows), macs, costs.router_macs_per_sample or 0.0, tuple(failures))
