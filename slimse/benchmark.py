"""How fast a model runs on this machine: per frame of a live stream, and on whole signals, at every width."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from .demo import bundled_clip
from .model import SlimModel
from .profiling import profile
from .runtimes.base import get_runtime, unavailable
from .streaming import Streamer

BLOCK = 0.02
"""Seconds of sound that a voice agent hands over at once."""
_TURN = 50
"""Blocks in a turn of a second."""
Call = Callable[[], object]
INT8 = "numba int8"
WAYS: dict[str, dict[str, Any]] = {
    "eager": {"runtime": "eager"},
    "numba": {"runtime": "numba"},
    INT8: {"runtime": "numba", "weights": "int8"},
}
"""What is timed, and the options of a `Streamer` for it."""


@dataclass(frozen=True)
class Timing:
    """One runtime at one UF, or with the router choosing, on one thread."""

    runtime: str
    uf: float | None
    """None where the router chooses."""
    frame_ms: float
    """Of one frame of a stream, back to back: the median; where widths change, the median of means over turns."""
    load: float
    """Share of one core that a live stream takes."""
    streams_per_core: int
    """Live streams that one core carries at that speed."""
    offline: float | None
    """Seconds of sound per second of processing of a whole signal; None where a way is for streams alone."""
    mac_saving: float
    """Multiply-accumulates at UF 1.0 over those here, the router's included where it chooses."""
    saving: float
    """Time of a frame at UF 1.0 over that here, of the same runtime."""


@dataclass(frozen=True)
class Benchmark:
    """Results of `benchmark`."""

    timings: tuple[Timing, ...]
    random: dict[str, float]
    """Per runtime, ms of a frame whose UF is drawn anew each time: the mean over a turn, its median over the turns."""
    budget: float | None
    """That the router chose for; None for a model without one."""
    missing: dict[str, str]
    """Runtimes that cannot run, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """The result in plain words, of the runtime that runs unless another is asked for."""
        runtime = "eager" if "numba" in self.missing else "numba"
        loads = [(timing.uf, timing.load) for timing in self.timings if timing.runtime == runtime]
        parts = [f"{100 * load:.1f} % at UF {uf:g}" for uf, load in reversed(loads) if uf is not None]
        parts += [f"{100 * load:.1f} % at a budget of {self.budget:g}" for uf, load in loads if uf is None]
        return f"A live stream uses this much of one core ({runtime}): {', '.join(parts)}."


@dataclass(frozen=True)
class Load:
    """What several live streams take of one core."""

    runtime: str
    core: float
    """Share of the time in which the core works."""
    p50: float
    p99: float
    worst: float
    """Median, 99th percentile and maximum of the time per block of one stream, ms."""


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


def noisy_clip(samples: int) -> NDArray[np.float32]:
    """The bundled noisy clip, over and over: ``[samples]``."""
    return np.resize(soundfile.read(bundled_clip(), dtype="float32")[0], samples)


def frame_call(model: SlimModel, ufs: Sequence[float] | None = None, **options: Any) -> Call:
    """A call that runs one more frame of a stream of noisy speech.

    Args:
        model: a causal model.
        ufs: widths that the frames take by turns; None for what ``options`` say.
        **options: of the `Streamer`.
    """
    streamer = Streamer(model, **options)
    sound = noisy_clip(model.geometry.first + 320 * model.geometry.hop)
    streamer.feed(sound[: model.geometry.first])
    frames = itertools.cycle(sound[model.geometry.first :].reshape(-1, model.geometry.hop))
    turns = itertools.cycle([None] if ufs is None else ufs)
    return lambda: streamer.feed(next(frames), next(turns))


def random_ufs(model: SlimModel, count: int) -> list[float]:
    """``count`` UFs of the model, each as likely, from a fixed seed."""
    drawn = torch.randint(len(model.ufs), (count,), generator=torch.Generator().manual_seed(0))
    return [model.ufs[int(index)] for index in drawn]


def offline_call(model: SlimModel, uf: float | None, seconds: float, runtime: str, budget: float | None = None) -> Call:
    """A call that enhances a whole signal on a runtime."""
    noisy = torch.from_numpy(noisy_clip(round(seconds * model.sample_rate)))[None]

    @torch.no_grad()
    def call() -> object:
        if runtime == "eager":
            return model.finish(noisy, model.initial_state(), uf, budget)
        return get_runtime(runtime).enhance(model, noisy, model.request(uf, budget, 1), None)

    return call


def turn_ms(times: Sequence[float], frames: int) -> float:
    """Median over turns of the mean of their ``frames`` frames: where each has a width of its own, none is typical."""
    return 1000 * median(sum(times[start : start + frames]) / frames for start in range(0, len(times), frames))


def benchmark(
    model: SlimModel, *, budget: float = 0.25, rounds: int = 10, frames: int = 32, seconds: float = 10.0
) -> Benchmark:
    """Time every runtime that can run, at every UF and with the router choosing, on one thread.

    Args:
        model: a causal model in evaluation mode on the CPU.
        budget: for the router, if the model has one.
        rounds: turns of all runtimes and UFs.
        frames: frames per turn.
        seconds: length of the whole signal.

    Raises:
        ValueError: for a budget out of range.
    """
    ways, missing = _ways(model)
    widths: list[float | None] = [*model.ufs]
    if model.router is not None:
        widths.append(None)
    cases = [(name, uf) for name in ways for uf in widths]
    mixed = random_ufs(model, rounds * frames)

    def live(name: str, uf: float | None) -> Call:
        if uf is None:
            return frame_call(model, budget=budget, **ways[name])
        return frame_call(model, [uf], **ways[name])

    def whole(name: str, uf: float | None) -> Call:
        return offline_call(model, uf, seconds, name, budget if uf is None else None)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = [live(*case) for case in cases]
        calls += [frame_call(model, mixed, **options) for options in ways.values()]
        spent = interleaved(calls, rounds, frames)
        signals = [case for case in cases if case[0] != INT8]
        offline = interleaved([whole(*case) for case in signals], 3)
        macs = _macs(model, budget)
    finally:
        torch.set_num_threads(threads)
    frame_ms = {
        (name, uf): turn_ms(times, frames) if uf is None else 1000 * median(times)
        for (name, uf), times in zip(cases, spent, strict=False)
    }
    speed = {case: seconds / median(times) for case, times in zip(signals, offline, strict=True)}
    sound_ms = 1000 * model.geometry.hop / model.sample_rate
    timings = tuple(
        Timing(
            runtime=name,
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
    drawn = {name: turn_ms(times, frames) for name, times in zip(ways, spent[len(cases) :], strict=True)}
    return Benchmark(timings, drawn, None if model.router is None else budget, missing)


def _ways(model: SlimModel) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Those of `WAYS` that can run a stream of this model, and why the others cannot."""
    reason = unavailable("numba", model, "stream")
    return (WAYS, {}) if reason is None else ({"eager": WAYS["eager"]}, {"numba": reason})


@torch.no_grad()
def _macs(model: SlimModel, budget: float) -> dict[float | None, float]:
    """Multiply-accumulates per sample at each UF, and of what the router makes of the noisy clip."""
    costs = profile(model)
    macs: dict[float | None, float] = {width.uf: width.macs_per_sample for width in costs.widths}
    if model.router is not None:
        clip = torch.from_numpy(noisy_clip(model.geometry.span(320)))
        macs[None] = costs.macs_per_sample(model.route(clip[None, None], budget))
    return macs


def live_load(
    model: SlimModel, streams: int, *, budget: float = 0.25, seconds: int = 10
) -> tuple[list[Load], dict[str, str]]:
    """Run live streams in real time on one thread, each handing over a block of 20 ms at a time.

    All runtimes take turns of a second. Between two ticks the thread sleeps, as in live use, so caches go cold.

    Args:
        model: a causal model in evaluation mode on the CPU.
        streams: how many at once.
        budget: of each stream, if the model has a router; else they run at UF 1.0.
        seconds: of sound per runtime.

    Returns:
        The load of every runtime, ONNX Runtime among them if its packages are there, and why others cannot run.

    Raises:
        ValueError: for a budget out of range, or no stream or second.
    """
    for name, value in (("streams", streams), ("seconds", seconds)):
        if value < 1:
            raise ValueError(f"{name} = {value}: expected 1 or more")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        starts, missing = _starts(model, budget)
        feeds = {name: [start() for _ in range(streams)] for name, start in starts.items()}
        spent: dict[str, list[float]] = {name: [] for name in feeds}
        block = round(BLOCK * model.sample_rate)
        # Streams hear different parts of the clip.
        sound = noisy_clip(block * (_TURN * (seconds + 1) + streams))
        for turn, (name, streamers) in itertools.product(range(seconds + 1), feeds.items()):
            times = [_tick(streamers, sound, block, _TURN * turn + tick) for tick in range(_TURN)]
            # The first turn warms up.
            spent[name] += itertools.chain.from_iterable(times if turn else [])
    finally:
        torch.set_num_threads(threads)
    loads = []
    for name, values in spent.items():
        p50, p99, worst = (1000 * float(value) for value in np.quantile(values, (0.5, 0.99, 1.0)))
        loads.append(Load(name, sum(values) / (BLOCK * _TURN * seconds), p50, p99, worst))
    return loads, missing


def _tick(streamers: Sequence[Any], sound: NDArray[np.float32], block: int, tick: int) -> list[float]:
    """Seconds that each stream takes for its next block; then wait until the next one is due."""
    begun, times = time.perf_counter(), []
    for number, streamer in enumerate(streamers):
        start = time.perf_counter()
        streamer.feed(sound[(tick + number) * block : (tick + number + 1) * block])
        times.append(time.perf_counter() - start)
    time.sleep(max(0.0, BLOCK - (time.perf_counter() - begun)))
    return times


def _starts(model: SlimModel, budget: float) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """What begins a stream of every runtime that can run, and why others cannot."""
    choice: dict[str, Any] = {"uf": 1.0} if model.router is None else {"budget": budget}
    ways, missing = _ways(model)
    starts: dict[str, Callable[[], Any]] = {
        name: lambda options=options: Streamer(model, **choice, **options)  # type: ignore[misc]
        for name, options in ways.items()
    }
    # With the file: the session keeps its weights in memory.
    with tempfile.TemporaryDirectory() as folder:
        try:
            from .export import export
            from .export.streamer import OnnxStreamer

            path = Path(folder) / "model.onnx"
            export(model, path)
            session = OnnxStreamer(path, **choice).session
        except (ModuleNotFoundError, ValueError) as error:
            missing["onnx"] = str(error)
        else:
            starts["onnx"] = lambda: OnnxStreamer(session, **choice)
    return starts, missing
