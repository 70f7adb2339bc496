"""Files that appear under their name whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted anyway.
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX = ".slimse-", ".part"
_swept: set[str] = set()
"""Folders in which this process has deleted what others left behind."""


class AtomicFile:
    """A temporary file in the folder of ``target``, which takes that name when it is complete.

    While it exists it is locked, so that a later process can tell a file that is being written from one that a killed
    process has left behind. The latter are deleted: the first `AtomicFile` of a process in a folder does that.

    Args:
        target: the name that it will have. Missing folders are made.

    Raises:
        ValueError: if the system lets no file be written there.

    Attributes:
        path: of the temporary file, empty at first. Its name is short, so any valid target name can be written.

    """

    def __init__(self, target: Path) -> None:
        self.target = target
        try:
            # Before the work, not after it: the system may not take the target's name.
            if stat.S_ISDIR(target.stat().st_mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ValueError(f"{target}: cannot be written: {error.strerror}") from error
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(target.parent)
            self.path, self._lock = _create(target.parent)
        except OSError as error:
            raise ValueError(f"{target}: cannot be written: {error.strerror}") from error

    def commit(self, *, force: bool = True) -> None:
        """Wait until the data is on the disk, and give the file its name.

        Raises:
            FileExistsError: if ``target`` exists, unless ``force``.
            ValueError: if the system fails at it; the temporary file is then deleted.

        """
        try:
            if not force and os.path.lexists(self.target):
                raise FileExistsError(f"{self.target} exists already (--force replaces it)")
            _sync(self.path)
            os.replace(self.path, self.target)
            # The new name is on the disk only when the folder is.
            _sync(self.target.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise ValueError(f"{self.target}: cannot be written: {error.strerror}") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Delete the temporary file, if it still has that name. May be called twice."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write, which replaces ``target`` when the ``with`` statement ends well.

    A ``target`` that is no regular file, such as ``/dev/stdout``, is written as it is.

    Raises:
        ValueError: if the system lets no file be written there; the message names the file.

    """
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    file = AtomicFile(target)
    try:
        yield file.path
        file.commit()
    except OSError as error:
        raise ValueError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        file.discard()


def _create(folder: Path) -> tuple[Path, int | None]:
    """Make an empty file of a new name, and lock it: its path, and the descriptor that holds the lock."""
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        if fcntl is None:
            os.close(descriptor)
            return path, None
        # Some file systems have no locks; files that a killed process leaves there stay.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process that swept the folder may have come between the two calls.
        if path.exists():
            return path, descriptor
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Delete the temporary files of processes that are gone, once per process and folder."""
    key = os.path.realpath(folder)
    if key in _swept or fcntl is None:
        return
    _swept.add(key)
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX)]
    for path in left:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk.

    Raises:
        OSError: if the disk refuses data that was taken before, as a full one may.

    """
    if fcntl is None:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot synchronise folders.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
