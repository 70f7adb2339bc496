"""Writing audio files whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..atomic import AtomicFile
from .files import FORMATS, FileInfo, read_blocks

_SAMPLE_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_WAV_LIMIT = 2**32 - 2**16
"""Bytes that a WAV header can count, less room for the header itself."""
_WRITE_FRAMES = 65_536
"""Most frames of one write: libvorbis keeps what it is given on the stack."""
_SPARE_BYTES = 2**20
_HINT = "name an output of another format, for example .wav or .flac"


def writable_format(target: Path, info: FileInfo) -> tuple[str, str, str]:
    """Container, subtype and endianness of an output: the input's own where the suffix of ``target`` allows it.

    Where the suffix asks for another container, the subtype is kept if that has it; samples of more than 16 bits
    stay at 24 or more; otherwise it is the container's usual one.

    Raises:
        ValueError: if the suffix is no container that can be written, or libsndfile reads but does not write it.

    """
    suffix = target.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"{target}: cannot be written: {target.suffix!r} is none of {', '.join(sorted(FORMATS))}")
    container, subtype = FORMATS[suffix]
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


class _Sink:
    """A file that keeps the first error of the system, which libsndfile would lose, above all while it closes.

    Once closed it takes nothing and says nothing: libsndfile may still come back to a file that was given up.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self._file.closed:
            return 0
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            return 0

    def read(self, count: int) -> bytes:
        return b"" if self._file.closed else self._file.read(count)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._file.closed:
            return -1
        try:
            # Writes what is held back.
            return self._file.seek(offset, whence)
        except OSError as error:
            self.error = self.error or error
            return -1

    def tell(self) -> int:
        return -1 if self._file.closed else self._file.tell()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


class AtomicWriter:
    """Write an audio file under a temporary name in the same folder, and rename it when it is complete.

    Used in a ``with`` statement. At its end the temporary file is closed and read back; if all samples that were
    written are there and on the disk, it takes its name. If the statement ends by an exception, `KeyboardInterrupt`
    included, nothing remains.

    Args:
        target: file to write. Missing folders are made.
        info: of the input, see `writable_format`. Sample rate and channels are its.
        tags: title, artist and the like, see `read_tags`; dropped where the container has no place for them.
        force: replace a file that is there already.

    Raises:
        FileExistsError: if ``target`` exists, unless ``force``.
        ValueError: if libsndfile cannot write this container, subtype, rate and number of channels, the system lets no
            file be written there, or what was written does not read back whole.

    """

    def __init__(
        self, target: Path, info: FileInfo, *, tags: dict[str, str] | None = None, force: bool = False
    ) -> None:
        self.target, self.force, self.written = target, force, 0
        if os.path.lexists(target) and not force:
            raise FileExistsError(f"{target} exists already (--force replaces it)")
        container, subtype, endian = writable_format(target, info)
        self._needs_space = subtype.startswith("ALAC")
        self._part = AtomicFile(target)
        self._sink = _Sink(self._part.path)
        # Python runs the handler of Ctrl-C in the main thread alone, between any two steps; inside a call from
        # libsndfile back to `_Sink` the interrupt would be lost.
        self._thread = ThreadPoolExecutor(1)
        try:
            form = subtype, endian, container
            opened = partial(soundfile.SoundFile, self._sink, "w", info.sample_rate, info.channels, *form)
            self._file: Any = self._thread.submit(opened).result()
            for name, value in (tags or {}).items():
                # A container without tags refuses them, which is no reason to lose the sound.
                with suppress(soundfile.LibsndfileError):
                    setattr(self._file, name, value)
        except soundfile.LibsndfileError as error:
            self._discard()
            reason = self._sink.error.strerror if self._sink.error else error.error_string.strip().rstrip(".")
            raise ValueError(
                f"{target}: cannot be written as {container} with {subtype}, {info.channels} channels at "
                f"{info.sample_rate} Hz: {reason}; {_HINT}"
            ) from error
        except BaseException:
            # Interrupted: no ``with`` statement has begun that would end it.
            self._discard()
            raise

    def write(self, audio: NDArray[np.float32]) -> None:
        """Append ``[channels, n]``; integer subtypes clip at full scale."""
        samples = np.ascontiguousarray(audio.T)
        if self._needs_space and shutil.disk_usage(tempfile.gettempdir()).free < samples.nbytes + _SPARE_BYTES:
            # Libsndfile collects ALAC in a temporary file, and crashes where that cannot grow.
            raise ValueError(f"{self.target}: cannot be written: {tempfile.gettempdir()} is full")
        for start in range(0, len(samples), _WRITE_FRAMES):
            self._thread.submit(self._write, samples[start : start + _WRITE_FRAMES]).result()
        self.written += len(samples)

    def _write(self, samples: NDArray[np.float32]) -> None:
        try:
            self._file.write(samples)
        except (soundfile.LibsndfileError, AssertionError) as error:
            # An assertion is how soundfile says that a part was not taken.
            self._check_sink()
            raise ValueError(f"{self.target}: cannot be written: {error}") from error
        self._check_sink()

    def _check_sink(self) -> None:
        if self._sink.error is not None:
            raise ValueError(f"{self.target}: cannot be written: {self._sink.error.strerror}") from self._sink.error

    def _finish(self) -> None:
        """Close the file, and make sure that it holds all that was written."""
        self._file.close()
        self._sink.close()
        self._check_sink()
        try:
            found = sum(block.shape[1] for block in read_blocks(self._part.path, _WRITE_FRAMES))
        except ValueError as error:
            raise ValueError(f"{self.target}: cannot be written: what was written cannot be read") from error
        # ADPCM pads its last block.
        if found < self.written:
            raise ValueError(f"{self.target}: cannot be written: {found} of {self.written} samples read back")

    def _discard(self) -> None:
        self._thread.shutdown()
        self._sink.close()
        self._part.discard()

    def __enter__(self) -> AtomicWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._thread.submit(self._finish).result()
                self._part.commit(force=self.force)
            else:
                with suppress(soundfile.LibsndfileError):
                    self._thread.submit(self._file.close).result()
        finally:
            self._discard()
