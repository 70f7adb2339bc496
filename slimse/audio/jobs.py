"""Which files to read, and where to write what becomes of them."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .files import FORMATS, find_files

_MARK = ".enhanced"
"""What an output beside its input has in its name."""

_MANIFESTS = (".csv", ".jsonl")
_SOURCE_KEYS = ("source", "audio_filepath", "audio", "path", "file", "noisy")
_TARGET_KEYS = ("target", "output")


class Job(NamedTuple):
    """One file to read and one to write."""

    source: Path
    target: Path


def plan_jobs(
    inputs: Sequence[Path], output: Path | None = None, *, failed: Callable[[ValueError], object] | None = None
) -> list[Job]:
    """Decide what every input becomes.

    Args:
        inputs: files, folders, and manifests (see `read_manifest`). Folders are searched by `find_files`.
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
    several = len(inputs) != 1 or folders[inputs[0]] or inputs[0].suffix.lower() in _MANIFESTS
    if output is not None and as_file and several:
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
        if not folders[path] and path.suffix.lower() in _MANIFESTS:
            jobs += read_manifest(path, output)
            continue
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


def read_manifest(manifest: Path, output: Path | None = None) -> list[Job]:
    """Files that a CSV table or a JSONL file (an object per line) names.

    Sources stand under the first of ``source``, ``audio_filepath``, ``audio``, ``path``, ``file`` and ``noisy`` that
    there is, targets, if any, under ``target`` or ``output``. Relative sources are relative to the folder of the
    manifest. Relative targets are relative to ``output``, or else to the folder of the manifest.

    Args:
        manifest: ``.csv`` with a header, or ``.jsonl``.
        output: folder for sources without a target, which keep their relative path in it; None puts
            ``name.enhanced.suffix`` beside each.

    Raises:
        ValueError: if it cannot be read, or a line has no source; the message names file and line.
    """
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{manifest}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest}: is no text in UTF-8") from error
    jobs = []
    for number, row in _rows(manifest, text):
        name = next((row[key] for key in _SOURCE_KEYS if row.get(key)), None)
        if not isinstance(name, str):
            raise ValueError(f"{manifest}, line {number}: expected a source under one of {', '.join(_SOURCE_KEYS)}")
        target = next((row[key] for key in _TARGET_KEYS if row.get(key)), None)
        source = manifest.parent / name
        if target is not None:
            jobs.append(Job(source, (output or manifest.parent) / str(target)))
        elif output is None:
            jobs.append(Job(source, source.with_name(f"{source.stem}{_MARK}{source.suffix}")))
        else:
            inside = not os.path.isabs(name) and ".." not in Path(name).parts
            jobs.append(Job(source, output / (name if inside else source.name)))
    return jobs


def _rows(manifest: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers of lines, and what they hold by name."""
    if manifest.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        for row in reader:
            yield reader.line_num, row
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{manifest}, line {number}: is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{manifest}, line {number}: expected an object, {{...}}")
        yield number, found


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
