"""Audio files: finding them and reading them by blocks."""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

_ALIASES = {
    "aif": ("AIFF", None),
    "aifc": ("AIFF", None),
    "oga": ("OGG", None),
    "opus": ("OGG", "OPUS"),
    "snd": ("AU", None),
    "wave": ("WAV", None),
}
"""Suffixes that are not the name of a libsndfile container: the container, and the subtype they stand for."""
# RAW has no header to read. SD2 keeps its sample rate in a second file, which no rename can carry along.
FORMATS = {
    **{name.lower(): (name, None) for name in soundfile.available_formats() if name not in ("RAW", "SD2")},
    **_ALIASES,
}
"""Containers by suffix, each with the subtype that the suffix stands for, if any."""
_PIECE = 2**20
"""Samples per channel that `read_mono` reads at a time."""
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Hz. Memory and time grow with the ratio of a signal's rate to the model's."""


def check_rate(sample_rate: SupportsIndex) -> int:
    """Return a sample rate in Hz.

    Raises:
        ValueError: if it is no integer from `LOWEST_RATE` to `HIGHEST_RATE`.

    """
    try:
        rate = operator.index(sample_rate)
    except TypeError:
        rate = 0
    if isinstance(sample_rate, bool) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(f"sample_rate = {sample_rate!r}: expected an integer from {LOWEST_RATE} to {HIGHEST_RATE} Hz")
    return rate


# Reading -----------------------------------------------------------------------------------------------------------


class FileInfo(NamedTuple):
    """What an output has to know of its input."""

    frames: int
    """Samples per channel that the header promises; a compressed file may hold a few more or fewer."""
    sample_rate: int
    channels: int
    format: str
    """libsndfile's name of the container, such as ``WAV``."""
    subtype: str
    """libsndfile's name of the encoding, such as ``PCM_16``."""
    endian: str


def read_info(path: Path) -> FileInfo:
    """Read the header of an audio file.

    Raises:
        ValueError: if it is no regular file, libsndfile cannot read it, or its sample rate is out of range; the message
            names the file.

    """
    with open_sound(path) as file:
        return FileInfo(file.frames, file.samplerate, file.channels, file.format, file.subtype, file.endian)


def read_blocks(path: Path, frames: int) -> Iterator[NDArray[np.float32]]:
    """Read a file in blocks.

    Args:
        path: anything libsndfile reads.
        frames: samples per channel of a block; the last one may be shorter.

    Yields:
        ``[channels, n]``, full scale is 1; none for a file without samples.

    Raises:
        ValueError: if the file cannot be read, or ends before the length its header gives; the message names it.

    """
    with open_sound(path) as file:
        read = 0
        while True:
            try:
                block = file.read(frames, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise ValueError(
                    f"{path}: damaged in the {frames / file.samplerate:.3f} s after {read / file.samplerate:.3f} s: "
                    f"{error.error_string.strip()}"
                ) from error
            if len(block) == 0:
                break
            read += len(block)
            yield np.ascontiguousarray(block.T)
        # An MP3 without a length in its header gives an estimate.
        if read < file.frames and file.format != "MP3":
            raise ValueError(
                f"{path}: damaged: ends after {read / file.samplerate:.3f} s, "
                f"its header promises {file.frames / file.samplerate:.3f} s"
            )


def read_tags(path: Path) -> dict[str, str]:
    """Title, artist and the like, as libsndfile names them."""
    with open_sound(path) as file:
        return dict(file.copy_metadata())


def read_mono(path: Path, sample_rate: int) -> NDArray[np.float32]:
    """Read all of a file as one channel, the mean of its channels.

    Args:
        path: anything libsndfile reads.
        sample_rate: of the result, Hz.

    Returns:
        ``[n]``, 1 sample or more.

    Raises:
        ValueError: as `read_blocks`, and for a file with no samples, or one that is not finite; the message names it.

    """
    with open_sound(path) as file:
        rate = file.samplerate
    pieces = [block.mean(axis=0, dtype=np.float32) for block in read_blocks(path, _PIECE)]
    mono = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not len(mono):
        raise ValueError(f"{path}: holds no samples: expected 1 or more")
    finite = np.isfinite(mono)
    if not finite.all():
        at = int(np.argmin(finite))
        raise ValueError(f"{path}: holds {mono[at]} at {at / rate:.4f} s: expected finite samples")
    return mono if rate == sample_rate else np.asarray(soxr.resample(mono, rate, sample_rate), dtype=np.float32)


def open_sound(path: Path) -> Any:
    """Open an audio file for reading.

    Raises:
        ValueError: as `read_info`.

    """
    try:
        mode, size = (status := os.stat(path)).st_mode, status.st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        # Opening a FIFO would wait for its writer, for ever.
        raise ValueError(f"{path}: cannot be read: it is no regular file")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        reason = "the file is empty" if size == 0 else error.error_string.strip()
        raise ValueError(f"{path}: cannot be read: {reason}") from error
    except TypeError as error:
        raise ValueError(f"{path}: cannot be read: {path.suffix!r} files have no header") from error
    try:
        check_rate(file.samplerate)
    except ValueError as error:
        file.close()
        raise ValueError(f"{path}: {error}") from error
    return file


# Finding -----------------------------------------------------------------------------------------------------------


def find_files(
    folder: Path, *, skip: Path | None = None, failed: Callable[[ValueError], object] | None = None
) -> list[Path]:
    """All files below ``folder`` whose suffix is that of an audio file, sorted.

    Hidden files and folders are left out, and so are links to folders and all that is in ``skip``.

    Args:
        folder: where to look.
        skip: a folder to leave out.
        failed: called with an error that names a folder that cannot be read; the rest is found. None raises it.

    """

    def note(error: OSError) -> None:
        problem = ValueError(f"{error.filename}: cannot be read: {error.strerror}")
        if failed is None:
            raise problem from error
        failed(problem)

    skipped = None if skip is None else os.path.realpath(skip)
    found = []
    for root, folders, names in os.walk(folder, onerror=note):
        here = Path(root)
        folders[:] = sorted(n for n in folders if n[0] != "." and os.path.realpath(here / n) != skipped)
        found += [here / n for n in names if n[0] != "." and Path(n).suffix.lower().removeprefix(".") in FORMATS]
    return sorted(found)
