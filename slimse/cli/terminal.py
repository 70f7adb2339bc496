"""Standard streams, signals and paths, the same for all commands."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer

_CLEANING_UP = 1.0
"""Seconds after a signal in which another one is ignored."""
_AGAIN = 0.01
"""Seconds until a signal that was dropped is sent again."""


def a_path(text: str | Path) -> Path:
    """Parse a path of the command line; an empty one, as of an unset variable, would mean the working folder."""
    if not str(text):
        raise typer.BadParameter("it is empty: expected a path")
    return Path(text)


def say(message: str) -> None:
    """Print one line on standard error, if that can be written."""
    with suppress(OSError):
        typer.echo(f"slimse: {message}", err=True)


class _Output:
    quiet = False


def be_quiet(quiet: bool) -> None:
    """Say whether commands leave out what is no result and no error: progress, lines per file, what was written."""
    _Output.quiet = quiet


def is_quiet() -> bool:
    """Whether the user asked for ``-q``."""
    return _Output.quiet


def note(message: str) -> None:
    """Print one line on standard output, unless the user asked for ``-q``."""
    if not _Output.quiet:
        typer.echo(message)


def prepare_streams() -> None:
    """Let names be printed that the terminal's encoding lacks, and output go nowhere where it is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def close_streams() -> None:
    """Flush; what a full disk or a closed pipe did not take must not fail again when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_interrupted() -> NoReturn:
    """End the process as after Ctrl-C. Another one interrupts neither what is said nor Python's own end."""
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    say("interrupted")
    raise SystemExit(128 + signal.SIGINT)


def _send(number: int) -> None:
    if hasattr(signal, "pthread_kill"):
        # To the main thread, which may be waiting for something.
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, by an exception, so that it cleans up.

    A signal within a second of the one before is ignored, as it would interrupt the cleaning up.
    """
    last, report = -math.inf, sys.unraisablehook

    def leave(number: int, frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before <= _CLEANING_UP:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def again(lost: sys.UnraisableHookArgs) -> None:
        """Send a signal again whose exception Python dropped, as it does in the callback of a weak reference."""
        nonlocal last
        error = lost.exc_value
        if isinstance(error, KeyboardInterrupt):
            number = int(signal.SIGINT)
        elif isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
            number = error.code - 128
        else:
            report(lost)
            return
        last = -math.inf
        # Later, as here it would be dropped, too.
        threading.Timer(_AGAIN, _send, (number,)).start()

    # Python allows handlers in the main thread alone, and a caller's own stay.
    usual = {"SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL, "SIGINT": signal.default_int_handler}
    kept = {}
    with suppress(ValueError):
        for name in usual.keys() & set(dir(signal)):
            number = getattr(signal, name)
            if signal.getsignal(number) == usual[name]:
                kept[number] = signal.signal(number, leave)
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in kept.items():
            # What ends the process may have it ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
