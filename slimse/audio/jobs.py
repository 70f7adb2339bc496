"""Which files to read, and where to write what becomes of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .files import FORMATS, find_files

_MARK = ".enhanced"
"""What an output beside its input has in its name."""


class Job(NamedTuple):
    """One file to read and one to write."""

    source: Path
    target: Path


def plan_jobs(
    inputs: Sequence[Path], output: Path | None = None, *, failed: Callable[[ValueError], object] | None = None
) -> list[Job]:
    """Decide what every input becomes.

    Args:
        inputs: files and folders. Folders are searched by `find_files`.
        output: None puts ``name.enhanced.suffix`` beside each input (and leaves such files in folders alone). A
            folder gets files under their own names, those of an input folder in the same tree. For one input
            file it may be a file, whose suffix picks the format.
        failed: called with an error that names a folder below the inputs that cannot be read; None raises it.

    Raises:
        ValueError: if an input is missing, nothing is found, an output would be another output or an input, or that of
            a file has a suffix of no known format.

    """
    folders = {path: stat.S_ISDIR(_status(path).st_mode) for path in inputs}
    exists = output is not None and os.path.lexists(output)
    is_folder = output is not None and os.path.isdir(output)
    as_file = output is not None and not is_folder and output.suffix.lower().removeprefix(".") in FORMATS
    if output is not None and as_file and (len(inputs) != 1 or folders[inputs[0]]):
        raise ValueError(f"output {output} names one file: expected a folder for several inputs or a folder")
    if exists and not is_folder and not as_file:
        raise ValueError(f"output {output} is a file, but not of a known audio format: expected a folder or audio file")
    suffix = "" if output is None or exists else output.suffix
    # "-o talk.m4a" would otherwise make a folder of that name; "-o v1.0" may.
    if suffix and not as_file and not suffix[1:].isdigit() and len(inputs) == 1 and not folders[inputs[0]]:
        raise ValueError(
            f"output {output}: {suffix!r} is none of {', '.join(sorted(FORMATS))}; "
            "if it names a folder, make that first"
        )
    jobs: list[Job] = []
    for path in inputs:
        sources = find_files(path, skip=output, failed=failed) if folders[path] else [path]
        for source in sources:
            if output is None:
                if folders[path] and source.stem.endswith(_MARK):
                    continue
                jobs.append(Job(source, source.with_name(f"{source.stem}{_MARK}{source.suffix}")))
            elif as_file:
                jobs.append(Job(source, output))
            else:
                jobs.append(Job(source, output / (source.relative_to(path) if folders[path] else source.name)))
    if not jobs:
        raise ValueError(f"no audio files in {', '.join(map(str, inputs))}")
    _check_distinct(jobs)
    return jobs


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _check_distinct(jobs: Sequence[Job]) -> None:
    # Unlike `Path.resolve`, this takes links that go in a circle.
    sources = {os.path.realpath(job.source) for job in jobs}
    targets: dict[str, Path] = {}
    for source, target in jobs:
        key = os.path.realpath(target)
        if key in sources:
            raise ValueError(f"{source}: its output {target} is an input; choose another --output")
        if key in targets:
            raise ValueError(f"{targets[key]} and {source} would both be written to {target}")
        targets[key] = source
