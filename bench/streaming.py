"""Time of one live frame on one CPU thread, side by side with eager PyTorch and ONNX Runtime, in one run.

    python -m bench.streaming                 # prints tables, about two minutes
    python -m bench.streaming --json          # prints JSON
    python -m bench.streaming --frames 225000 # adds the spread over an hour of sound, and what it does to memory
    python -m bench.streaming --enhance 60    # adds `slimse enhance` on a folder, in one process and in two
    python -m bench.streaming --inductor      # adds torch.compile

Rows: ``eager`` is PyTorch on views of the weights, ``numba`` the compiled runtime with float32 weights, ``float16``
and ``int8`` the same with such weights (the bundled ones run as float16), ``onnx`` ONNX Runtime with one session per UF
(needs onnx, onnxscript and onnxruntime), ``inductor`` `torch.compile` with one graph per UF (``--inductor``; needs a
C++ compiler). ONNX Runtime's whole signals leave out the resampling, which it cannot export.

``back to back``: medians of frames without a pause, all cases taking turns. ``paced``: one frame each 16 ms, as in live
use, when caches have gone cold. ``random``: mean of frames whose UF is drawn anew each time, over the mean of the UFs'
own means. ``two processes``: frames per second of two processes over those of one. Any part can be left out by a 0:
``--rounds 0 --offline 0 --processes 0``.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import json
import logging
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from pathlib import Path
from statistics import mean, median

import numpy as np
import soundfile
import torch
from torch import nn

from slimse import SlimModel, load
from slimse.benchmark import Call, frame_call, interleaved, noisy_clip, offline_call, random_ufs, turn_ms
from slimse.networks.state import leaves, tree_map
from slimse.nn import DecoderBlock, EncoderBlock, GroupedGRU
from slimse.ops import blocks as references
from slimse.ops.recurrent import slim_gru
from slimse.runtimes.numba.network import enhance

OWN = {
    "eager": {"runtime": "eager"},
    "numba": {"runtime": "numba"},
    "float16": {"runtime": "numba", "weights": "float16"},
    "int8": {"runtime": "numba", "weights": "int8"},
}
"""Options of the `Streamer` in each row of our own."""


class OpenEncoder(EncoderBlock):
    """The reference itself, into which compilers and exporters can look; of a registered op they see the name."""

    def forward(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """As of `EncoderBlock`."""
        weights = (self.conv_weight, self.conv_bias, self.glu_weight, self.glu_bias)
        return references.encoder_block(x, *weights, width, self.stride)


class OpenDecoder(DecoderBlock):
    """As `OpenEncoder`."""

    def forward(self, x: torch.Tensor, width: int, skip: torch.Tensor, *, activate: bool) -> torch.Tensor:
        """As of `DecoderBlock`."""
        weights = (self.glu_weight, self.glu_bias, self.conv_weight)
        bias, relu = (self.conv_bias, self.relu) if activate else (None, False)
        return references.decoder_block(x, *weights, width, self.stride, self.outputs, skip, bias, relu)


class OpenGRU(GroupedGRU):
    """As `OpenEncoder`."""

    def forward(self, x: torch.Tensor, width: int, state: tuple[torch.Tensor]) -> tuple:
        """As of `GroupedGRU`."""
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        out, new = slim_gru(x, *weights, self.size, state[0].transpose(0, 1))
        return out, (new.transpose(0, 1),)


def opened(model: SlimModel) -> SlimModel:
    """A copy for compilers and exporters, to their best advantage."""
    model = copy.deepcopy(model)
    classes = {EncoderBlock: OpenEncoder, DecoderBlock: OpenDecoder, GroupedGRU: OpenGRU}
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model


class Step(nn.Module):
    """`SlimModel.step` at one UF, with the state as separate tensors."""

    def __init__(self, model: SlimModel, uf: float, state: tuple) -> None:
        super().__init__()
        self.model, self.uf, self.state = model, uf, state

    def forward(self, samples: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give the output and the new state."""
        rest = iter(flat)
        out, state = self.model.step(samples, tree_map(lambda _: next(rest), self.state), self.uf)
        return (out, *leaves(state))


def example(model: SlimModel) -> tuple[tuple, list[torch.Tensor]]:
    """A state behind the first frame, and the inputs of a `Step` there."""
    with torch.no_grad():
        _, state = model.step(0.05 * torch.randn(1, model.geometry.first), model.initial_state(), 1.0)
    return state, [0.05 * torch.randn(1, model.geometry.hop), *leaves(state)]


def onnx_step(model: SlimModel, uf: float) -> Call:
    """A frame in ONNX Runtime."""
    import onnxruntime

    state, inputs = example(model)
    buffer = io.BytesIO()
    torch.onnx.export(Step(opened(model), uf, state).eval(), tuple(inputs), buffer, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), session_options(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    values = [tensor.numpy() for tensor in inputs]

    def call() -> object:
        values[1:] = session.run(None, dict(zip(names, values, strict=True)))[1:]
        return values

    return call


def session_options() -> object:
    """One thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


class Core(nn.Module):
    """One width as plain layers, without the resampling."""

    def __init__(self, model: SlimModel, uf: float) -> None:
        super().__init__()
        self.plain = model.extract(uf).network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 1, T]`` at the network's inner rate."""
        skips = []
        for block in self.plain.encoder:
            x = block(x)
            skips.append(x)
        x, _ = self.plain.bottleneck(x, self.plain.initial_state(1).rnn)
        for block, skip in zip(reversed(self.plain.decoder), reversed(skips), strict=True):
            x = block(x + skip)
        return x


def onnx_offline(model: SlimModel, uf: float, seconds: float) -> Call:
    """A whole signal in ONNX Runtime."""
    import onnxruntime

    frames, frame_map = model.geometry.frames(round(seconds * model.sample_rate)), model.network.frame_map
    x = torch.randn(1, 1, frame_map.first_span(0) + (frames - 1) * frame_map.positions_per_frame(0))
    buffer = io.BytesIO()
    torch.onnx.export(Core(model, uf), (x,), buffer, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), session_options(), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def inductor_step(model: SlimModel, uf: float) -> Call:
    """A frame in the code of `torch.compile`."""
    state, values = example(model)
    options = {"cpp_wrapper": True}
    compiled = torch.compile(Step(opened(model), uf, state), fullgraph=True, dynamic=False, options=options)

    @torch.no_grad()
    def call() -> object:
        values[1:] = compiled(*values)[1:]
        return values

    return call


def paced(call: Call, frames: int, period: float) -> float:
    """Median seconds of a call that comes once per period."""
    times, due = [], time.perf_counter()
    for _ in range(frames):
        due += period
        time.sleep(max(due - time.perf_counter(), 0))
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def work(frames: int, start: object, results: object) -> None:
    """Run frames at UF 1.0 in a process of its own; give back frames per second."""
    torch.set_num_threads(1)
    call = frame_call(SlimModel().eval().requires_grad_(False), [1.0], runtime="numba")
    call()
    start.wait()
    begin = time.perf_counter()
    for _ in range(frames):
        call()
    results.put(frames / (time.perf_counter() - begin))


def processes(count: int, frames: int) -> float:
    """Frames per second of so many processes together."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(count), context.Queue()
    workers = [context.Process(target=work, args=(frames, start, results)) for _ in range(count)]
    for worker in workers:
        worker.start()
    rate = sum(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    return rate


def cases(model: SlimModel, *, onnx: bool, inductor: bool) -> dict[tuple[str, float], Call]:
    """A call per implementation and UF that runs the next frame of a stream."""
    ufs = model.ufs
    calls = {(name, uf): frame_call(model, [uf], **options) for name, options in OWN.items() for uf in ufs}
    if onnx:
        calls |= {("onnx", uf): onnx_step(model, uf) for uf in ufs}
    if inductor:
        calls |= {("inductor", uf): inductor_step(model, uf) for uf in ufs}
    return calls


def live(model: SlimModel, args: argparse.Namespace) -> dict:
    """Back to back, paced, and with a UF drawn for each frame; ms."""
    ufs, period = list(model.ufs), model.geometry.hop / model.sample_rate
    calls = cases(model, onnx=not args.no_onnx, inductor=args.inductor)
    names = list(dict.fromkeys(name for name, _ in calls))
    turns = dict(zip(calls, interleaved(list(calls.values()), args.rounds, 20), strict=True))
    result: dict = {"back to back": {n: [1000 * median(turns[n, uf]) for uf in ufs] for n in names}}
    result["paced"] = {n: [1000 * paced(calls[n, uf], args.paced, period) for uf in ufs] for n in names}
    for kind in ("back to back", "paced"):
        result[f"gain {kind}"] = {name: times[-1] / times[0] for name, times in result[kind].items()}
    mixed = random_ufs(model, 1000)
    result["random"] = {}
    for name in names:
        if name in OWN:
            drawn = frame_call(model, mixed, **OWN[name])
        else:
            order = itertools.cycle(mixed)
            drawn = lambda name=name, order=order: calls[name, next(order)]()  # noqa: E731
        own, *uniform = interleaved([drawn, *(calls[name, uf] for uf in ufs)], args.rounds, 20)
        typical = [turn_ms(times, 20) for times in (own, *uniform)]
        result["random"][name] = {"ms": typical[0], "over the mean of the UFs": typical[0] / mean(typical[1:])}
    return result


def offline(model: SlimModel, seconds: float, *, onnx: bool) -> dict[str, float]:
    """Whole signals; ms."""
    ufs = list(model.ufs)
    whole = {("numba", uf): offline_call(model, uf, seconds, "numba") for uf in ufs}
    whole |= {("eager", uf): offline_call(model, uf, seconds, "eager") for uf in ufs}
    whole[("mixture", 0.0)] = mixture_call(model, seconds)
    if onnx:
        whole |= {("onnx", uf): onnx_offline(model, uf, seconds) for uf in ufs}
    spent = dict(zip(whole, interleaved(list(whole.values()), 5), strict=True))
    result = {f"{name} {uf:g}": 1000 * median(times) for (name, uf), times in spent.items()}
    expected = sum(share * result[f"numba {uf:g}"] for uf, share in zip(ufs, MIXTURE, strict=True))
    return result | {"mixture over shares": result["mixture 0"] / expected}


def steadiness(call: Call, frames: int) -> dict[str, float]:
    """How far single frames are from the median, ms, and what they leave behind in memory."""
    peak_kb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # noqa: E731
    times = np.zeros(frames)
    for _ in range(1000):
        call()
    before = peak_kb()
    for index in range(frames):
        start = time.perf_counter()
        call()
        times[index] = time.perf_counter() - start
    grown = peak_kb() - before
    names, quantiles = ("p50", "p99", "p99.9", "max"), np.quantile(times, [0.5, 0.99, 0.999, 1])
    result = dict(zip(names, (1000 * quantiles).tolist(), strict=True))
    result |= {"p99.9 over p50": float(quantiles[2] / quantiles[0]), "resident memory grew by, kB": grown}
    tracemalloc.start()
    call()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(1000):
        call()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result | {"kept per frame, bytes": (now - kept) / 1000, "at most at a time, bytes": peak - kept}


def scaling(seconds: float) -> dict[str, float]:
    """Seconds of `slimse enhance` for eight files in one and in two processes, and the ratio without the start."""
    command = [sys.executable, "-c", "from slimse.cli import app; app()", "enhance"]
    times: dict[tuple[int, float], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in (1.0, seconds):
            source = Path(folder) / f"{length:g}"
            source.mkdir()
            for index in range(8):
                soundfile.write(source / f"{index}.wav", noisy_clip(round(16_000 * length)), 16_000)
        for (jobs, length), turn in itertools.product(itertools.product((1, 2), (1.0, seconds)), (0, 1)):
            start = time.perf_counter()
            out = [f"{folder}/{length:g}", "-o", f"{folder}/out {jobs} {length:g} {turn}", "--jobs", str(jobs)]
            # With one job the command would use all cores for one file.
            subprocess.run([*command, *out], check=True, stdout=subprocess.DEVNULL, env=os.environ | ONE_THREAD)
            spent = time.perf_counter() - start
            times[jobs, length] = min(spent, times.get((jobs, length), spent))
    result = {f"{jobs} of {length:g} s": spent for (jobs, length), spent in times.items()}
    one, two = (times[jobs, seconds] - times[jobs, 1.0] for jobs in (1, 2))
    return result | {"ratio": times[1, seconds] / times[2, seconds], "ratio without start": one / two}


ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


def measure(model: SlimModel, args: argparse.Namespace) -> dict:
    """All results."""
    result: dict = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if args.rounds:
        result |= live(model, args)
    if args.offline:
        result["offline"] = offline(model, args.offline, onnx=not args.no_onnx)
    if args.processes:
        result["two processes"] = processes(2, args.processes) / processes(1, args.processes)
    if args.enhance:
        result["slimse enhance"] = scaling(args.enhance)
    if args.frames:
        for name, options in (("UF 1", {"uf": 1.0}), ("router", {"budget": 0.25})):
            call = frame_call(load() if name == "router" else model, runtime="numba", **options)
            result[f"{args.frames} frames, {name}"] = steadiness(call, args.frames)
    return result


MIXTURE = (0.33, 0.40, 0.25, 0.02)
"""Shares of the UFs that a router chooses at a target of 0.25 (arXiv 2507.04879)."""


def mixture_call(model: SlimModel, seconds: float) -> Call:
    """A whole signal whose frames have the UFs of a router."""
    noisy = 0.05 * torch.randn(1, round(seconds * model.sample_rate))
    frames = model.geometry.frames(noisy.shape[1])
    drawn = torch.multinomial(torch.tensor(MIXTURE), frames, True, generator=torch.Generator().manual_seed(0))
    ufs = torch.tensor(model.ufs)[drawn][None]

    @torch.no_grad()
    def call() -> object:
        return enhance(model, noisy, ufs, None)

    return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of all cases, of 20 frames each; 0 for none")
    parser.add_argument("--paced", type=int, default=60, help="paced frames of each case")
    parser.add_argument("--offline", type=float, default=10.0, help="seconds of a whole signal, 0 for none")
    parser.add_argument("--processes", type=int, default=3000, help="frames of each of two processes, 0 for none")
    parser.add_argument("--enhance", type=float, default=0, help="seconds of each of eight files, 0 for none")
    parser.add_argument("--frames", type=int, default=0, help="frames of a long stream (225000: an hour), 0 for none")
    parser.add_argument("--no-onnx", action="store_true", help="leave ONNX Runtime out")
    parser.add_argument("--inductor", action="store_true", help="add torch.compile")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    result = measure(SlimModel().eval().requires_grad_(False), args)
    if args.json:
        print(json.dumps(result, indent=2))
        return
    for section, values in result.items():
        print(section, "" if isinstance(values, dict) else values)
        for name, value in values.items() if isinstance(values, dict) else ():
            numbers = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
            print(f"  {name:30}", "  ".join(f"{number:8.3f}" for number in numbers))


if __name__ == "__main__":
    main()
