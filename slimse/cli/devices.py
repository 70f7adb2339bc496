"""Microphone to loudspeaker: what `slimse live` does without a pipe."""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..live import LiveStreamer

BUDGET_STEP = 2 ** (1 / 2)
"""By which a key changes the budget: half an octave."""
_REFRESH_SECONDS = 0.1
_KEYS = "b: bypass, + and -: budget, q: quit"


def audio_module() -> Any:
    """The package `sounddevice`.

    Raises:
        ValueError: if it, or the PortAudio library that it needs, is missing.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ValueError(f"sound devices cannot be used: {error}; pip install '.[live]', and PortAudio") from error
    return sounddevice


class Session:
    """A full-duplex stream of a sound card through a `LiveStreamer`, and what its meters show.

    Args:
        streamer: of one channel, in int16.
        budget: of the router; None where a width is fixed, and keys do not change it.
    """

    def __init__(self, streamer: LiveStreamer, budget: float | None) -> None:
        self.streamer, self.budget = streamer, budget
        self.load, self.level, self.dropouts = 0.0, 0.0, 0
        self.error: Exception | None = None

    def callback(
        self, indata: NDArray[np.int16], outdata: NDArray[np.int16], frames: int, _time: object, status: object
    ) -> None:
        """Enhance one block ``[frames, 1]``, in the thread of the sound card."""
        start = time.perf_counter()
        self.dropouts += bool(status)
        try:
            block = np.ascontiguousarray(indata[:, 0])
            outdata[:] = self.streamer.feed(block, budget=self.budget)[:, None]
        except Exception as error:
            # PortAudio would print it and go on; the command ends with it.
            outdata[:] = 0
            self.error = error
            return
        self.level = float(np.abs(block.astype(np.int32)).max()) / 32_768
        load = (time.perf_counter() - start) * self.streamer.sample_rate / frames
        self.load += 0.1 * (load - self.load)

    def press(self, key: str) -> bool:
        """React to a key; False ends the session."""
        if key == "b":
            self.streamer.enabled = not self.streamer.enabled
        elif key in ("+", "-") and self.budget is not None:
            wanted = self.budget * (BUDGET_STEP if key == "+" else 1 / BUDGET_STEP)
            self.budget = min(max(wanted, self.streamer.model.ufs[0]), 1.0)
        return key != "q"

    def line(self) -> str:
        """The meters, in one line."""
        uf, speech, noise = self.streamer.frame
        level = 20 * math.log10(max(self.level, 1e-6))
        asked = "" if self.budget is None else f" of budget {self.budget:.2f}"
        return (
            f"{'on ' if self.streamer.enabled else 'off'}  in {level:4.0f} dBFS  noise {noise:4.0f} dBFS  "
            f"speech {speech:.1f}  UF {uf:g}{asked}  load {100 * self.load:3.0f} %  dropouts {self.dropouts}"
        )


def run_session(
    session: Session, sounddevice: Any, device: tuple[int | str | None, int | str | None], keys: Callable[[], str]
) -> None:
    """Run until ``keys`` gives ``q``; meters go to standard error.

    Raises:
        ValueError: for devices that cannot be opened at this rate.
    """
    streamer = session.streamer
    options = {"samplerate": streamer.sample_rate, "blocksize": streamer.block, "dtype": "int16", "channels": 1}
    try:
        stream = sounddevice.Stream(device=device, latency="low", callback=session.callback, **options)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise ValueError(f"devices {device} cannot be opened at {streamer.sample_rate} Hz: {error}") from error
    sys.stderr.write(
        f"{streamer.delay_ms + 1000 * (streamer.block or 0) / streamer.sample_rate:.0f} ms and those of the "
    )
    sys.stderr.write(f"devices; {_KEYS}\n")
    with stream:
        while session.error is None and session.press(keys()):
            sys.stderr.write(f"\r{session.line()}\x1b[K" if sys.stderr.isatty() else "")
            sys.stderr.flush()
    sys.stderr.write("\n")
    if session.error is not None:
        raise session.error


@contextmanager
def terminal_keys() -> Iterator[Callable[[], str]]:
    """Single keys of the terminal, each waited for 0.1 s; none where standard input is no terminal."""

    def wait() -> str:
        time.sleep(_REFRESH_SECONDS)
        return ""

    if os.name != "posix" or not sys.stdin.isatty():
        yield wait
        return
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def read() -> str:
        ready, _, _ = select.select([number], [], [], _REFRESH_SECONDS)
        return os.read(number, 1).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(number)
        yield read
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
