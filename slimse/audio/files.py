"""Audio files: finding them, reading them by blocks, and writing them whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

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
_FORMATS = {
    **{name.lower(): (name, None) for name in soundfile.available_formats() if name not in ("RAW", "SD2")},
    **_ALIASES,
}
_SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_WAV_LIMIT = 2**32 - 2**16
"""Bytes that a WAV header can count, less room for the header itself."""
_WRITE_FRAMES = 65_536
"""Most frames of one write: libvorbis keeps what it is given on the stack."""
_HINT = "name an output of another format, for example .wav or .flac"
_MARK = ".enhanced"
"""What an output beside its input has in its name."""


def read_mono(path: Path, sample_rate: int) -> NDArray[np.float32]:
    """All of a file as one channel (the mean of its channels) at ``sample_rate`` Hz."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = audio.mean(axis=1, dtype=np.float32)
    return mono if rate == sample_rate else np.asarray(soxr.resample(mono, rate, sample_rate), dtype=np.float32)


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
        ValueError: if libsndfile cannot read it; the message names the file.

    """
    with _reading(path) as file:
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
    with _reading(path) as file:
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
    with _reading(path) as file:
        return dict(file.copy_metadata())


def _reading(path: Path) -> Any:
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        reason = "the file is empty" if path.is_file() and path.stat().st_size == 0 else error.error_string
        raise ValueError(f"{path}: cannot be read: {reason}") from error


# Writing -----------------------------------------------------------------------------------------------------------


def writable_format(target: Path, info: FileInfo) -> tuple[str, str, str]:
    """Container, subtype and endianness of an output: the input's own where the suffix of ``target`` allows it.

    Where the suffix asks for another container, the subtype is kept if that has it; samples of more than 16 bits
    stay at 24 or more; otherwise it is the container's usual one.

    Raises:
        ValueError: if the suffix is no container that can be written, or libsndfile reads but does not write it.

    """
    suffix = target.suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise ValueError(f"{target}: cannot be written: {target.suffix!r} is none of {', '.join(sorted(_FORMATS))}")
    container, subtype = _FORMATS[suffix]
    family = {"WAVEX": "WAV", "RF64": "WAV", "NIST": "WAV"}
    if family.get(info.format, info.format) == family.get(container, container) and subtype in (None, info.subtype):
        container, subtype, endian = info.format, info.subtype, info.endian
    else:
        endian = "FILE"
        deep = info.subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
        wishes = [subtype, info.subtype, *(["PCM_24"] if deep else []), soundfile.default_subtype(container)]
        subtype = next(wish for wish in wishes if wish and soundfile.check_format(container, wish))
    size = info.frames * info.channels * _SAMPLE_BYTES.get(subtype, 0)
    if container in ("WAV", "WAVEX") and size > _WAV_LIMIT and soundfile.check_format("RF64", subtype):
        container, endian = "RF64", "FILE"
    if not soundfile.check_format(container, subtype, endian):
        raise ValueError(
            f"{target}: cannot be written: libsndfile reads {container} with {subtype} but does not write it; {_HINT}"
        )
    return container, subtype, endian


class AtomicWriter:
    """Write an audio file under a temporary name in the same folder, and rename it when it is complete.

    Used in a ``with`` statement: at its end the file appears under its name; if the statement ends by an
    exception, `KeyboardInterrupt` included, nothing remains.

    Args:
        target: file to write. Missing folders are made.
        info: of the input, see `writable_format`. Sample rate and channels are its.
        tags: title, artist and the like, see `read_tags`; dropped where the container has no place for them.
        force: replace a file that is there already.

    Raises:
        FileExistsError: if ``target`` exists, unless ``force``.
        ValueError: if libsndfile cannot write this container, subtype, rate and number of channels, or the system
            lets no file be written there.

    """

    def __init__(
        self, target: Path, info: FileInfo, *, tags: dict[str, str] | None = None, force: bool = False
    ) -> None:
        self.target, self.force = target, force
        self._check_target()
        container, subtype, endian = writable_format(target, info)
        self.temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # libsndfile would not say what the system has against it.
            self.temporary.touch(exist_ok=False)
        except OSError as error:
            raise ValueError(f"{target}: cannot be written: {error.strerror}") from error
        try:
            self._file: Any = soundfile.SoundFile(
                self.temporary, "w", info.sample_rate, info.channels, subtype, endian, container
            )
        except soundfile.LibsndfileError as error:
            self.temporary.unlink(missing_ok=True)
            raise ValueError(
                f"{target}: cannot be written as {container} with {subtype}, {info.channels} channels at "
                f"{info.sample_rate} Hz: {error.error_string.strip().rstrip('.')}; {_HINT}"
            ) from error
        for name, value in (tags or {}).items():
            # A container without tags refuses them, which is no reason to lose the sound.
            with suppress(soundfile.LibsndfileError):
                setattr(self._file, name, value)

    def write(self, audio: NDArray[np.float32]) -> None:
        """Append ``[channels, n]``; integer subtypes clip at full scale."""
        samples = np.ascontiguousarray(audio.T)
        try:
            for start in range(0, len(samples), _WRITE_FRAMES):
                self._file.write(samples[start : start + _WRITE_FRAMES])
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{self.target}: cannot be written: {error.error_string.strip()}") from error

    def _check_target(self) -> None:
        if self.target.exists() and not self.force:
            raise FileExistsError(f"{self.target} exists already (--force replaces it)")

    def __enter__(self) -> AtomicWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._check_target()
                os.replace(self.temporary, self.target)
        finally:
            self.temporary.unlink(missing_ok=True)


# Which files to read, and where to write ---------------------------------------------------------------------------


class Job(NamedTuple):
    """One file to read and one to write."""

    source: Path
    target: Path


def find_files(folder: Path, *, skip: Path | None = None) -> list[Path]:
    """All files below ``folder`` whose suffix is that of an audio file, sorted.

    Hidden files and folders are left out, and so are links to folders and all that is in ``skip``.
    """
    found = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and (skip is None or (here / name).resolve() != skip.resolve())
        )
        found += [here / n for n in names if n[0] != "." and Path(n).suffix.lower().removeprefix(".") in _FORMATS]
    return sorted(found)


def plan_jobs(inputs: Sequence[Path], output: Path | None = None) -> list[Job]:
    """Decide what every input becomes.

    Args:
        inputs: files and folders. Folders are searched by `find_files`.
        output: None puts ``name.enhanced.suffix`` beside each input (and leaves such files in folders alone). A
            folder gets files under their own names, those of an input folder in the same tree. For one input
            file it may be a file, whose suffix picks the format.

    Raises:
        ValueError: if an input is missing, nothing is found, an output would be another output or an input, or that of
            a file has a suffix of no known format.

    """
    for path in inputs:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    as_file = output is not None and not output.is_dir() and output.suffix.lower().removeprefix(".") in _FORMATS
    if output is not None and as_file and (len(inputs) != 1 or inputs[0].is_dir()):
        raise ValueError(f"output {output} names one file: expected a folder for several inputs or a folder")
    if output is not None and output.exists() and not output.is_dir() and not as_file:
        raise ValueError(f"output {output} is a file, but not of a known audio format: expected a folder or audio file")
    suffix = "" if output is None or output.exists() else output.suffix
    # "-o talk.m4a" would otherwise make a folder of that name; "-o v1.0" may.
    if suffix and not as_file and not suffix[1:].isdigit() and len(inputs) == 1 and not inputs[0].is_dir():
        raise ValueError(
            f"output {output}: {suffix!r} is none of {', '.join(sorted(_FORMATS))}; "
            "if it names a folder, make that first"
        )
    jobs: list[Job] = []
    for path in inputs:
        sources = find_files(path, skip=output) if path.is_dir() else [path]
        for source in sources:
            if output is None:
                if path.is_dir() and source.stem.endswith(_MARK):
                    continue
                jobs.append(Job(source, source.with_name(f"{source.stem}{_MARK}{source.suffix}")))
            elif as_file:
                jobs.append(Job(source, output))
            else:
                jobs.append(Job(source, output / (source.relative_to(path) if path.is_dir() else source.name)))
    if not jobs:
        raise ValueError(f"no audio files in {', '.join(map(str, inputs))}")
    _check_distinct(jobs)
    return jobs


def _check_distinct(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    targets: dict[Path, Path] = {}
    for source, target in jobs:
        key = target.resolve()
        if key in sources:
            raise ValueError(f"{source}: its output {target} is an input; choose another --output")
        if key in targets:
            raise ValueError(f"{targets[key]} and {source} would both be written to {target}")
        targets[key] = source
