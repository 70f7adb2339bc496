"""How fast a model runs on this machine: per frame of a live stream, and on whole signals, at every width."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from .compiled import unavailable
from .models import SlimDemucs
from .profiling import profile
from .streaming import Streamer

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One backend at one UF, on one thread."""

    backend: str
    uf: float
    frame_ms: float
    """Median time of one frame of a stream, back to back."""
    load: float
    """Share of one core that a live stream takes."""
    streams_per_core: int
    """Live streams that one core carries at that speed."""
    offline: float | None
    """Seconds of sound per second of processing of a whole signal; None where a backend is for streams alone."""
    mac_saving: float
    """Multiply-accumulates at UF 1.0 over those at this UF."""
    saving: float
    """Time of a frame at UF 1.0 over that at this UF, of the same backend."""


@dataclass(frozen=True)
class Benchmark:
    """Results of `benchmark`."""

    timings: tuple[Timing, ...]
    random: dict[str, float]
    """Per backend, ms of a frame whose UF is drawn anew each time: the mean over a turn, its median over the turns."""
    missing: dict[str, str]
    """Backends that cannot run, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """The result in plain words."""
        fastest = min(self.timings, key=lambda timing: timing.frame_ms)
        full = next(t for t in self.timings if t.backend == fastest.backend and t.uf == 1.0)
        return (
            f"On the {fastest.backend} backend a live stream takes {100 * full.load:.1f} % of one core at UF 1, and "
            f"{100 * fastest.load:.1f} % at UF {fastest.uf:g}."
        )


def interleaved(calls: Sequence[Call], rounds: int, repeats: int = 1) -> list[list[float]]:
    """Seconds of every call, all of them taking turns, so that a change of the machine's speed hits all alike.

    Args:
        calls: what to time. Each first runs once unmeasured.
        rounds: turns.
        repeats: runs of a call per turn, timed one by one.
    """
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, spent in zip(calls, times, strict=True):
            for _ in range(repeats):
                start = time.perf_counter()
                call()
                spent.append(time.perf_counter() - start)
    return times


def frame_call(model: SlimDemucs, ufs: Sequence[float], **options: Any) -> Call:
    """A call that runs one more frame of a stream, at the next of ``ufs``, over and over."""
    streamer = Streamer(model, **options)
    generator = torch.Generator().manual_seed(0)
    streamer.feed(0.05 * torch.randn(model.first_samples, generator=generator).numpy())
    frame = 0.05 * torch.randn(model.hop, generator=generator).numpy()
    turn = 0

    def call() -> object:
        nonlocal turn
        turn += 1
        return streamer.feed(frame, ufs[turn % len(ufs)])

    return call


def random_ufs(model: SlimDemucs, count: int) -> list[float]:
    """``count`` UFs of the model, each as likely, from a fixed seed."""
    drawn = torch.randint(len(model.config.ufs), (count,), generator=torch.Generator().manual_seed(0))
    return [model.config.ufs[int(index)] for index in drawn]


def offline_call(model: SlimDemucs, uf: float, seconds: float, backend: str) -> Call:
    """A call that enhances a whole signal, on the layers (``"torch"``) or compiled (``"numba"``)."""
    samples = round(seconds * model.config.sample_rate)
    noisy = 0.05 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def call() -> object:
        if backend == "torch":
            return model.finish(noisy, model.initial_state(), uf)
        from .compiled.network import enhance

        return enhance(model, noisy, uf, None)

    return call


def benchmark(model: SlimDemucs, *, rounds: int = 10, frames: int = 20, seconds: float = 10.0) -> Benchmark:
    """Time every backend that can run, at every UF, on one thread.

    Args:
        model: a causal model in evaluation mode on the CPU.
        rounds: turns of all backends and UFs.
        frames: frames per turn.
        seconds: length of the whole signal.
    """
    backends: dict[str, dict[str, Any]] = {"torch": {"backend": "torch"}}
    reason = unavailable(model)
    missing = {} if reason is None else {"numba": reason}
    if reason is None:
        backends |= {"numba": {"backend": "numba"}, "numba, float16 weights": {"backend": "numba", "half": True}}
    ufs = list(model.config.ufs)
    macs = {width.uf: width.macs_per_sample for width in profile(model).widths}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = [(name, uf) for name in backends for uf in ufs]
        mixed = random_ufs(model, rounds * frames)
        calls = [frame_call(model, [uf], **backends[name]) for name, uf in cases]
        calls += [frame_call(model, mixed, **options) for options in backends.values()]
        live = interleaved(calls, rounds, frames)
        whole = [(name, uf) for name, uf in cases if "half" not in backends[name]]
        spent = interleaved([offline_call(model, uf, seconds, name) for name, uf in whole], 3)
    finally:
        torch.set_num_threads(threads)
    speed = {case: seconds / median(times) for case, times in zip(whole, spent, strict=True)}
    frame_ms = {case: 1000 * median(times) for case, times in zip(cases, live, strict=False)}
    sound_ms = 1000 * model.hop / model.config.sample_rate
    timings = tuple(
        Timing(
            backend=name,
            uf=uf,
            frame_ms=frame_ms[name, uf],
            load=frame_ms[name, uf] / sound_ms,
            streams_per_core=int(sound_ms / frame_ms[name, uf]),
            offline=speed.get((name, uf)),
            mac_saving=macs[1.0] / macs[uf],
            saving=frame_ms[name, 1.0] / frame_ms[name, uf],
        )
        for name, uf in cases
    )
    drawn = {}
    for name, times in zip(backends, live[len(cases) :], strict=True):
        turns = [sum(times[start : start + frames]) / frames for start in range(0, len(times), frames)]
        drawn[name] = 1000 * median(turns)
    return Benchmark(timings, drawn, missing)
