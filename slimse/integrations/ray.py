"""Corpora over a cluster by Ray Data; ``pip install '.[ray]'``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.data
import torch

from ..audio.jobs import Job, plan_jobs
from ..checkpoint import load
from ..corpus import Settings, run_jobs


class _Worker:
    """One process of the cluster: the model, loaded once, and one thread."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        self._settings, self._model = settings, load(settings.weights, device=settings.devices[0])

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        job = Job(Path(row["source"]), Path(row["target"]))
        ((_, outcome, _),) = run_jobs([job], self._settings, self._model, 1)
        return asdict(outcome)


def enhance_files(
    inputs: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    settings: Settings,
    *,
    workers: int,
    gpus: float = 0,
) -> ray.data.Dataset:
    """Enhance files, folders and manifests, each file on whatever machine is free, as ``slimse enhance`` does.

    All machines see the files under the same paths. Ray starts workers, spreads files and repeats what a lost machine
    had; with ``settings.skip_existing``, a run that is started again does only what is missing.

    Args:
        inputs: as of ``slimse enhance``.
        output: folder, or None for ``name.enhanced.suffix`` beside each input.
        settings: the first of its devices is each worker's; ``batch`` has no effect, each file is a call of its own.
        workers: processes over the whole cluster.
        gpus: of a worker; may be a share of one.

    Returns:
        Lazy: nothing runs before it is used, as by ``write_csv``. One row per file, see `slimse.corpus.Outcome`;
        files that failed have a row that says why.

    Raises:
        ValueError: for inputs that are missing, or outputs that collide.
    """
    jobs = plan_jobs([Path(path) for path in inputs], None if output is None else Path(output))
    # Workers start in folders of their own.
    rows = [{"source": os.path.abspath(job.source), "target": os.path.abspath(job.target)} for job in jobs]
    files = ray.data.from_items(rows, override_num_blocks=min(len(rows), 4 * workers))
    return files.map(
        _Worker,  # type: ignore[arg-type]  # a class, made once per process
        fn_constructor_args=(settings,),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus,
    )
