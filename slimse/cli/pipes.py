"""``-`` among the paths of a command: standard input and output."""

from __future__ import annotations

import functools
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

PIPE = Path("-")


@contextmanager
def files_for_pipes(inputs: Sequence[Path], output: Path | None) -> Iterator[tuple[list[Path], Path | None]]:
    """Files in the place of ``-``: standard input is read whole, and what becomes of it is written at the end.

    Raises:
        ValueError: for ``-`` beside other inputs, ``-`` without an output, or several inputs to standard output.
    """
    if PIPE not in inputs and output != PIPE:
        yield list(inputs), output
        return
    if len(inputs) != 1:
        raise ValueError(f"{len(inputs)} inputs and -: expected - as the only input, or one input for the output -")
    if output is None:
        raise ValueError("input -: expected --output, a file or - for standard output")
    with tempfile.TemporaryDirectory(prefix="slimse-") as folder:
        source, target = inputs[0], output
        if source == PIPE:
            source = Path(folder) / "standard input"
            with source.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        if output == PIPE:
            from ..audio.files import read_info

            # The format of the input.
            target = Path(folder) / f"output.{read_info(source).format.lower()}"
        # Lines of text have no place among the sound.
        with redirect_stdout(io.StringIO()) if output == PIPE else nullcontext():
            yield [source], target
        if output == PIPE:
            with target.open("rb") as result:
                shutil.copyfileobj(result, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def through_pipes(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command of ``inputs`` and ``output`` take ``-`` for either, see `files_for_pipes`."""

    @functools.wraps(command)
    def run(inputs: list[Path], output: Path | None, **options: Any) -> None:
        with files_for_pipes(inputs, output) as (sources, target):
            command(sources, target, **options)

    return run
