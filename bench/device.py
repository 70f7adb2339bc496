"""What times come from: a CUDA GPU, or a stand-in that rehearses the same calls on a machine without one."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Call = Callable[[], Any]
LEAST = 1e-3
"""Seconds that a replayed graph should take, so that what is around it does not count."""
ROUNDS = (5, 40)
"""Fewest and most replays that are timed."""


class Gpu:
    """The first CUDA (or ROCm) device."""

    tensors, backend, compiler = "cuda", "triton", "inductor"

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.name, self.cache = torch.cuda.get_device_name(0), int(properties.L2_cache_size)

    def clocks(self) -> str:
        """Clocks, power and temperature as the driver gives them, or why not."""
        fields = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu,driver_version"
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            return f"unknown: {error}"
        return f"{fields}: {done.stdout.strip()}"

    def synchronize(self) -> None:
        """Wait until all work is done."""
        torch.cuda.synchronize()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A stream of its own, on which calls warm up before a graph is captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def captured(self, calls: Sequence[Call], repeats: int) -> Call:
        """A CUDA graph of ``repeats`` rounds of the calls.

        Raises:
            RuntimeError: where a call cannot be part of a graph.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                for call in calls:
                    call()
        return graph.replay

    def seconds(self, run: Call, rounds: int) -> list[float]:
        """Seconds of every one of ``rounds`` runs by the device's clock."""
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
        for begin, end in marks:
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in marks]

    def host_seconds(self, call: Call) -> float:
        """Seconds for which a call keeps the host busy."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            call()
        seconds = (time.perf_counter() - start) / 10
        torch.cuda.synchronize()
        return seconds

    def release(self) -> None:
        """Give memory that nothing uses back to the device."""
        torch.cuda.empty_cache()


class Rehearsal:
    """The CPU in the place of a GPU, kernels in Triton's interpreter, and a clock that only counts.

    Its name says so, and so does every report with it: no time of a rehearsal means anything.
    """

    tensors, backend, compiler = "cpu", "triton", "aot_eager"
    name, cache = "rehearsal without a GPU", 2**16

    def __init__(self) -> None:
        self._ticks = itertools.count(1)

    def clocks(self) -> str:
        """There are none."""
        return "none"

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """There is one stream."""
        yield

    def captured(self, calls: Sequence[Call], repeats: int) -> Call:
        """The last of the calls, once: results are not looked at, and the interpreter is slow."""
        return calls[-1]

    def seconds(self, run: Call, rounds: int) -> list[float]:
        """Run once; the counting clock gives a millisecond and a little more each time."""
        run()
        return [1e-3 + 1e-6 * next(self._ticks) for _ in range(rounds)]

    def host_seconds(self, call: Call) -> float:
        """As of the counting clock."""
        return 1e-4

    def release(self) -> None:
        """Nothing is kept."""


Device = Gpu | Rehearsal


def measure(device: Device, calls: Sequence[Call], *, captured: bool = True) -> dict[str, Any]:
    """Seconds of a call: median, 20th and 80th percentile, what the host took, and by which clock.

    Args:
        device: where.
        calls: the same on inputs of their own, by turns, so that none is in the cache still.
        captured: whether to try a CUDA graph. Its replays leave out the host (clock ``"graph"``); else the calls are
            timed as they are issued one after the other, and a slow host counts (clock ``"stream"``).
    """
    with device.aside():
        for call in (*calls, calls[0]):
            call()
    device.synchronize()
    host = device.host_seconds(calls[0])
    once = sum(device.seconds(calls[0], 3)) / 3
    repeats, run, clock = max(1, math.ceil(LEAST / once / len(calls))), None, "graph"
    if captured:
        try:
            run = device.captured(calls, min(repeats, 64))
        except RuntimeError as error:
            clock = f"stream ({str(error).splitlines()[0][:80]})"
    else:
        clock = "stream"
    if run is None:
        device.synchronize()
        repeats, run = 1, lambda: [call() for call in calls]
    else:
        repeats = min(repeats, 64)
    first = device.seconds(run, 2)[1]
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(0.3 / first)))
    times = sorted(seconds / (repeats * len(calls)) for seconds in device.seconds(run, rounds))
    return {
        "median": statistics.median(times),
        "p20": times[rounds // 5],
        "p80": times[-1 - rounds // 5],
        "host": host,
        "clock": clock,
    }


def ceilings(device: Device, size: int = 8192) -> dict[str, Any]:
    """What the device reaches: bytes read and written by a large copy, and operations of large products, per second."""
    source = torch.randn(size * size, device=device.tensors)
    copy = measure(device, [functools.partial(torch.empty_like(source).copy_, source)])["median"]
    flops, a, b = {}, source.view(size, size), torch.randn(size, size, device=device.tensors)
    for kind, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", None), ("fp32", None)):
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        left, right = (a, b) if dtype is None else (a.to(dtype), b.to(dtype))
        product = measure(device, [functools.partial(torch.matmul, left, right)])["median"]
        flops[kind] = 2 * size**3 / product
    # Three products of TF32 make one.
    flops["tf32x3"] = flops["tf32"] / 3
    return {"bandwidth": 2 * source.numel() * 4 / copy, "flops": flops, "clocks": device.clocks()}
