"""Hours of sound through one live stream, which must stay what it was, as fast and as small.

    python -m bench.reliability.soak --runtime numba --hours 24
    python -m bench.reliability.soak --runtime eager --hours 2

Chunks, widths, budgets, kinds of sound and levels are drawn at random. Every ``--every`` minutes of sound, a window is
compared: its start with the network in float64 from the stream's own state (``exact``: rounding), and its last five
seconds with a stream that heard nothing but the window (``fresh``: what recurrent units keep of all that came before,
which must not grow). Both are relative to the louder of output and input: a noise that is taken away still leaves its
rounding. ``level`` compares the running levels of these two. ``memory`` is of the process, MB. The processor's time of
a frame at UF 1 in digital silence is compared with that in noise.

Prints a line of JSON per window, and a summary at the end or when it is interrupted.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

import slimse
from bench.reliability.sounds import KINDS, LEVELS, RATE, Sound, exact, make_sound, signal_error
from slimse.networks.state import tree_map
from slimse.serving import StreamBatch

_EXACT = 20
"""Seconds from the start of a window that are computed in float64."""
_LAST = 5 * RATE
"""Samples at the end of a window that are compared with a stream that heard nothing before it."""
_TIMES = 5000
"""Times of a frame that are kept of each sound, the last ones: the trial itself must not grow."""
_STREAMS = 3
"""Streams of a batch; the windows are of the first."""


class Piece(NamedTuple):
    """Some sound with one width or budget."""

    kind: str
    samples: Sound
    width: float | None
    budget: float | None


def pieces(model: slimse.SlimModel, seed: int) -> Iterator[Piece]:
    """Sound without end."""
    rng = np.random.default_rng(seed)
    while True:
        kind = str(rng.choice(list(KINDS)))
        seconds = rng.exponential(10 if kind == "silence" else 3) + 0.01
        samples = make_sound(kind, int(min(seconds, 60) * RATE), rng.uniform(*LEVELS), rng)
        if rng.random() < 0.5:
            yield Piece(kind, samples, None, float(rng.uniform(0.15, 1)))
        else:
            yield Piece(kind, samples, float(rng.choice(model.ufs)), None)


class Single:
    """A `Streamer` as the trial sees it."""

    def __init__(self, model: slimse.SlimModel, runtime: str) -> None:
        self._streamer = slimse.Streamer(model, runtime=runtime)

    def chunks(self, piece: Piece, rng: np.random.Generator) -> Iterator[Sound]:
        """Split a piece at random places."""
        # Crumbs are rare: their calls would take most of the time.
        at, most = 0, int(rng.choice([40, 160, 256, 2000, 30_000], p=[0.04, 0.24, 0.24, 0.24, 0.24]))
        while at < len(piece.samples):
            size = int(rng.integers(1, most + 1))
            yield piece.samples[at : at + size]
            at += size

    def feed(self, chunk: Sound, piece: Piece) -> Sound:
        """Output that is ready."""
        return self._streamer.feed(chunk, piece.width, piece.budget)

    @property
    def ufs(self) -> torch.Tensor:
        """UFs of the frames that ran in the last call."""
        return self._streamer.ufs[0]

    @property
    def state(self) -> Any:
        """The stream at this moment."""
        return self._streamer.state


class Batch:
    """A `StreamBatch`: the trial sees its first stream, others hear other sound at other widths."""

    state = None

    def __init__(self, model: slimse.SlimModel, runtime: str) -> None:
        self._batch, self._rng = StreamBatch(model, _STREAMS, runtime=runtime), np.random.default_rng(1)
        self._hop, self._ufs, self._fed, self._rest = model.geometry.hop, model.ufs, 0, np.zeros(0, np.float32)
        self._early, self._wanted = model.geometry.early(0), None
        for _ in range(_STREAMS):
            self._batch.join()

    def chunks(self, piece: Piece, rng: np.random.Generator) -> Iterator[Sound]:
        """Split into hops; what is left over waits for the next piece."""
        samples = np.concatenate([self._rest, piece.samples])
        whole = len(samples) // self._hop * self._hop
        self._rest = samples[whole:]
        yield from samples[:whole].reshape(-1, self._hop)

    def feed(self, chunk: Sound, piece: Piece) -> Sound:
        """As of `Single`."""
        if piece is not self._wanted:
            self._wanted = piece
            if piece.budget is None:
                self._batch.set_uf(0, piece.width)
            else:
                self._batch.set_budget(0, piece.budget)
            for slot in range(1, _STREAMS):
                self._batch.set_uf(slot, float(self._rng.choice(self._ufs)))
        samples = 0.1 * self._rng.standard_normal((_STREAMS, self._hop)).astype(np.float32)
        samples[0] = chunk
        out, ready = self._batch.tick(torch.from_numpy(samples))
        self._fed += self._hop
        return out[0, : ready[0]].numpy().copy()

    @property
    def ufs(self) -> torch.Tensor:
        """As of `Single`."""
        return self._batch.ufs[:1] if self._fed >= self._early + self._hop else torch.zeros(0)


class Soak:
    """One stream, its clock, and the window that is being recorded."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.model = options, slimse.load()
        kind, runtime = (
            (Batch, options.runtime[6:]) if options.runtime.startswith("batch-") else (Single, options.runtime)
        )
        self.stream, self.reference = kind(self.model, runtime), exact(self.model)
        self.heard, self.given, self.lines = 0, 0, list[dict[str, Any]]()
        self.times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_TIMES))
        self.window: dict[str, Any] | None = None

    @torch.no_grad()
    def run(self) -> None:
        """Go on until the hours are full."""
        rng, end, due = np.random.default_rng(self.options.seed + 1), self.options.hours * 3600 * RATE, 0.0
        for piece in pieces(self.model, self.options.seed):
            if self.window is None and self.heard >= due:
                due += self.options.every * 60 * RATE
                self.window = {
                    "at": self.heard,
                    "out_at": self.given,
                    "state": self.stream.state,
                    "in": [],
                    "out": [],
                    "ufs": [],
                }
            for chunk in self.stream.chunks(piece, rng):
                start = time.process_time()
                out = self.stream.feed(chunk, piece)
                seconds = time.process_time() - start
                timed = piece.width == 1.0 and piece.kind in ("silence", "white noise")
                if timed and len(self.stream.ufs) == 1:
                    self.times[piece.kind].append(seconds)
                self.heard, self.given = self.heard + len(chunk), self.given + len(out)
                if self.window is not None:
                    for name, part in (("in", chunk), ("out", out), ("ufs", self.stream.ufs.numpy())):
                        self.window[name].append(part)
            if self.window is not None and self.heard - self.window["at"] >= self.options.window * RATE:
                self.check()
                self.window = None
            if self.heard >= end:
                return

    def check(self) -> None:
        """Compare the window with its references, and print a line."""
        window = self.window
        assert window is not None
        heard, out, ufs = (torch.from_numpy(np.concatenate(window[name])) for name in ("in", "out", "ufs"))
        line: dict[str, Any] = {"hours": round(self.heard / RATE / 3600, 3)}
        state = window["state"]
        if state is not None and state.model.samples:
            expected = self._from_state(state, heard, ufs)
            line["exact"] = signal_error(out[: len(expected)], expected, heard[: len(expected)])
        expected, level = self._from_nothing(window["at"], heard, ufs)
        line["fresh"] = signal_error(out[-_LAST:], expected[-_LAST:], heard[-_LAST:])
        if (now := self.stream.state) is not None and level:
            # The sums of powers span many orders: each by itself.
            pairs = zip(torch.cat(now.model.level[:2], 1)[0], torch.cat(level[:2], 1)[0], strict=True)
            line["level"] = max(abs(float(a - b)) / max(abs(float(b)), 1e-12) for a, b in pairs)
        gc.collect()
        line["memory"] = round(_memory(), 1)
        for kind, seconds in self.times.items():
            line[f"ms {kind}"] = round(1e3 * median(seconds), 3)
        self.lines.append(line)
        print(json.dumps(line), flush=True)

    def _from_state(self, state: Any, heard: torch.Tensor, ufs: torch.Tensor) -> torch.Tensor:
        """The start of the window in float64, from the stream's own state."""
        model, outputs = self.reference, []
        state, samples = (
            tree_map(lambda part: part.double(), state.model),
            torch.cat([state.pending[0], heard]).double(),
        )
        for block in ufs[: _EXACT * RATE // model.geometry.hop].split(64):
            used = len(block) * model.geometry.hop
            out, state = model.step(samples[None, :used], state, block[None])
            outputs.append(out[0])
            samples = samples[used:]
        return torch.cat(outputs)

    def _from_nothing(self, at: int, heard: torch.Tensor, ufs: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The window from a stream that begins in it on the same grid of frames, and its level at the end."""
        model, streamer = self.model, slimse.Streamer(self.model, runtime="numba")
        skipped = -(-at // model.geometry.hop)
        heard, ufs = heard[skipped * model.geometry.hop - at :], ufs[skipped - model.geometry.frames_done(at) :]
        assert len(ufs) == model.geometry.frames_done(len(heard)), "frames that ran are not those of the samples"
        outputs, used = [], 0
        for uf in ufs.tolist():
            need = model.geometry.hop if used else model.geometry.first
            outputs.append(streamer.feed(heard[used : used + need], uf))
            used += need
        return torch.cat(outputs), streamer.state.model.level

    def summary(self) -> dict[str, Any]:
        """What the run showed."""
        settled = self.lines[min(1, len(self.lines) - 1) :]
        found: dict[str, Any] = {
            "runtime": self.options.runtime,
            "hours": round(self.heard / RATE / 3600, 2),
            "windows": len(self.lines),
        }
        for name in ("exact", "fresh", "level"):
            if values := [line[name] for line in self.lines if name in line]:
                found[f"worst {name}"] = max(values)
        if settled:
            found["memory, MB, from and to"] = settled[0]["memory"], settled[-1]["memory"]
        if len(self.times) == 2:
            found["time in silence over that in noise"] = round(
                median(self.times["silence"]) / median(self.times["white noise"]), 3
            )
        return found


def _memory() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Run, and print the summary whatever ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=["numba", "eager", "batch-numba", "batch-eager"], default="numba")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--every", type=float, default=30, help="minutes of sound between two windows")
    parser.add_argument("--window", type=float, default=150, help="seconds of a window")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    soak = Soak(options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        soak.run()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(json.dumps(soak.summary()), flush=True)


if __name__ == "__main__":
    main()
