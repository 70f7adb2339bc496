"""Time of one live frame on one CPU thread, side by side with eager PyTorch and ONNX Runtime, in one run.

    python bench/streaming.py                 # prints tables, about two minutes
    python bench/streaming.py --json          # prints JSON
    python bench/streaming.py --hour          # adds the spread over an hour of sound

Backends: ``torch`` is eager PyTorch on views of the weights, ``compiled`` the numba path, ``half`` the same with
float16 weights, ``onnx`` ONNX Runtime with one session per UF (needs onnx, onnxscript and onnxruntime), ``inductor``
`torch.compile` with one graph per UF (``--inductor``; needs a C++ compiler). ONNX Runtime's whole signals leave out the
resampling, which it cannot export.

``back to back``: medians of frames without a pause, all cases taking turns. ``paced``: one frame each 16 ms, as in live
use, when caches have gone cold. ``random``: mean of frames whose UF is drawn anew each time, over the mean of the UFs'
own means. ``two processes``: frames per second of two processes over those of one.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import platform
import time
import warnings
from statistics import mean, median

import numpy as np
import torch
from torch import nn

from slimse import SlimDemucs
from slimse.benchmark import Call, frame_call, interleaved, offline_call, random_ufs
from slimse.compiled.network import enhance

OWN = {"torch": {"backend": "torch"}, "compiled": {"backend": "numba"}, "half": {"backend": "numba", "half": True}}


class Step(nn.Module):
    """`SlimDemucs.step` at one UF, with the state as separate tensors."""

    def __init__(self, model: SlimDemucs, uf: float, state: tuple) -> None:
        super().__init__()
        self.model, self.uf, self.state = model, uf, state

    def forward(self, samples: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give the output and the new state."""
        rest = iter(flat)
        groups = [tuple(next(rest) for _ in group) for group in self.state[:-1]]
        out, state = self.model.step(samples, type(self.state)(*groups, self.state.samples), self.uf)
        return (out, *(tensor for group in state[:-1] for tensor in group))


def example(model: SlimDemucs) -> tuple[tuple, list[torch.Tensor]]:
    """A state behind the first frame, and the inputs of a `Step` there."""
    with torch.no_grad():
        _, state = model.step(0.05 * torch.randn(1, model.first_samples), model.initial_state(), 1.0)
    return state, [0.05 * torch.randn(1, model.hop), *(tensor for group in state[:-1] for tensor in group)]


def onnx_step(model: SlimDemucs, uf: float) -> Call:
    """A frame in ONNX Runtime."""
    import onnxruntime

    state, inputs = example(model)
    buffer = io.BytesIO()
    torch.onnx.export(Step(model, uf, state), tuple(inputs), buffer, dynamo=True, verbose=False)
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

    def __init__(self, model: SlimDemucs, uf: float) -> None:
        super().__init__()
        self.plain = model.extract(uf)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 1, T]`` at the network's inner rate."""
        skips = []
        for block in self.plain.encoder:
            x = block(x)
            skips.append(x)
        x = self.plain.bottleneck(x)
        for block, skip in zip(reversed(self.plain.decoder), reversed(skips), strict=True):
            x = block(x + skip)
        return x


def onnx_offline(model: SlimDemucs, uf: float, seconds: float) -> Call:
    """A whole signal in ONNX Runtime."""
    import onnxruntime

    frames, frame_map = model.frames(round(seconds * model.config.sample_rate)), model.frame_map
    x = torch.randn(1, 1, frame_map.lead(0) + 1 + (frames - 1) * frame_map.rate(0))
    buffer = io.BytesIO()
    torch.onnx.export(Core(model, uf), (x,), buffer, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), session_options(), providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def inductor_step(model: SlimDemucs, uf: float) -> Call:
    """A frame in the code of `torch.compile`."""
    state, values = example(model)
    compiled = torch.compile(Step(model, uf, state))

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
    call = frame_call(SlimDemucs().eval().requires_grad_(False), [1.0], backend="numba")
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


def measure(model: SlimDemucs, args: argparse.Namespace) -> dict:
    """All results, in ms."""
    ufs = list(model.config.ufs)
    period = model.hop / model.config.sample_rate
    cases: dict[tuple[str, float], Call] = {}
    for name, options in OWN.items():
        cases |= {(name, uf): frame_call(model, [uf], **options) for uf in ufs}
    if not args.no_onnx:
        cases |= {("onnx", uf): onnx_step(model, uf) for uf in ufs}
    if args.inductor:
        cases |= {("inductor", uf): inductor_step(model, uf) for uf in ufs}
    names = list(dict.fromkeys(name for name, _ in cases))
    turns = dict(zip(cases, interleaved(list(cases.values()), args.rounds, 20), strict=True))
    result = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    result["back to back"] = {n: [1000 * median(turns[n, uf]) for uf in ufs] for n in names}
    result["paced"] = {n: [1000 * paced(cases[n, uf], args.paced, period) for uf in ufs] for n in names}
    for kind in ("back to back", "paced"):
        result[f"gain {kind}"] = {name: times[-1] / times[0] for name, times in result[kind].items()}
    mixed = random_ufs(model, 1000)
    result["random"] = {}
    for name in names:
        if name in OWN:
            drawn = frame_call(model, mixed, **OWN[name])
        else:
            order = iter(mixed * 100)
            drawn = lambda name=name, order=order: cases[name, next(order)]()  # noqa: E731
        calls = [drawn, *(cases[name, uf] for uf in ufs)]
        own, *uniform = interleaved(calls, args.rounds, 20)
        # Means of turns, and their median: a UF of its own for each frame has no typical frame.
        typical = [1000 * median(mean(t[i : i + 20]) for i in range(0, len(t), 20)) for t in (own, *uniform)]
        result["random"][name] = {"ms": typical[0], "over the mean of the UFs": typical[0] / mean(typical[1:])}
    if args.offline:
        whole = {("compiled", uf): offline_call(model, uf, args.offline, "numba") for uf in ufs}
        whole |= {("torch", uf): offline_call(model, uf, args.offline, "torch") for uf in ufs}
        whole[("mixture", 0.0)] = mixture_call(model, args.offline)
        if not args.no_onnx:
            whole |= {("onnx", uf): onnx_offline(model, uf, args.offline) for uf in ufs}
        spent = dict(zip(whole, interleaved(list(whole.values()), 5), strict=True))
        offline = {f"{name} {uf:g}": 1000 * median(times) for (name, uf), times in spent.items()}
        shares = dict(zip(ufs, MIXTURE, strict=True))
        expected = sum(share * offline[f"compiled {uf:g}"] for uf, share in shares.items())
        result["offline"] = offline | {"mixture over shares": offline["mixture 0"] / expected}
    if args.processes:
        result["two processes"] = processes(2, args.processes) / processes(1, args.processes)
    if args.hour:
        call, count = cases["compiled", 1.0], round(3600 / period)
        times = np.array(interleaved([call], 1, count)[0])
        quantiles = np.quantile(times, [0.5, 0.99, 0.999, 1])
        result["hour of frames at UF 1"] = dict(zip(("p50", "p99", "p99.9", "max"), 1000 * quantiles, strict=True))
    return result


MIXTURE = (0.33, 0.40, 0.25, 0.02)
"""Shares of the UFs that a router chooses at a target of 0.25 (arXiv 2507.04879)."""


def mixture_call(model: SlimDemucs, seconds: float) -> Call:
    """A whole signal whose frames have the UFs of a router."""
    noisy = 0.05 * torch.randn(1, round(seconds * model.config.sample_rate))
    frames = model.frames(noisy.shape[1])
    drawn = torch.multinomial(torch.tensor(MIXTURE), frames, True, generator=torch.Generator().manual_seed(0))
    ufs = torch.tensor(model.config.ufs)[drawn][None]

    @torch.no_grad()
    def call() -> object:
        return enhance(model, noisy, ufs, None)

    return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of all cases, of 20 frames each")
    parser.add_argument("--paced", type=int, default=60, help="paced frames of each case")
    parser.add_argument("--offline", type=float, default=10.0, help="seconds of a whole signal, 0 for none")
    parser.add_argument("--processes", type=int, default=3000, help="frames of each of two processes, 0 for none")
    parser.add_argument("--hour", action="store_true", help="time the frames of an hour of sound")
    parser.add_argument("--no-onnx", action="store_true", help="leave ONNX Runtime out")
    parser.add_argument("--inductor", action="store_true", help="add torch.compile")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    result = measure(SlimDemucs().eval().requires_grad_(False), args)
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
