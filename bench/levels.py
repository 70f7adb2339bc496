"""The same noisy speech at several levels, and digital silence, through every runtime on a CPU.

    python -m bench.levels NOISY CLEAN --every 5

A row per runtime: mean SI-SDR in dB at each level (root mean square of the noisy file, in dBFS), then the largest
sample that comes out for two seconds of digital silence.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import slimse
from bench.reliability.fuzz_runtimes import batched, streamed
from bench.tables import markdown
from slimse import Streamer
from slimse.evaluation import find_pairs, read_pair, score
from slimse.export import export

LEVELS = (-70.0, -56.0, -46.0, -26.0, 0.0, 10.0)
Run = Callable[[Tensor], Tensor]


def chunks(signal: Tensor) -> list[int]:
    """Sizes that are no multiple of a hop."""
    return [len(part) for part in signal.split(1000)]


def runtimes(weights: str, uf: float, folder: Path) -> dict[str, Run]:
    """What takes a signal ``[T]`` of whole hops to the enhanced one, by name."""
    eager, compiled = (slimse.load(weights, runtime=runtime) for runtime in ("eager", "numba"))
    runs: dict[str, Run] = {
        "whole, eager": lambda signal: eager(signal[None, None], uf)[0, 0],
        "whole, numba": lambda signal: compiled(signal[None, None], uf)[0, 0],
        "stream, eager": lambda signal: streamed(Streamer(eager, uf, runtime="eager"), signal, uf, chunks(signal)),
        "batch, eager": lambda signal: batched(eager, signal, uf, "eager"),
        "batch, numba": lambda signal: batched(compiled, signal, uf, "numba"),
    }
    for kind in ("float32", "float16", "int8"):

        def run(signal: Tensor, kind: str) -> Tensor:
            return streamed(Streamer(compiled, uf, runtime="numba", weights=kind), signal, uf, chunks(signal))

        runs[f"stream, numba {kind}"] = partial(run, kind=kind)
    path = folder / "stream.onnx"
    export(eager, path, uf)
    session = slimse.OnnxStreamer(path).session

    def exported(signal: Tensor) -> Tensor:
        streamer = slimse.OnnxStreamer(session)
        parts = [streamer.feed(part.numpy()) for part in signal.split(1000)]
        return torch.from_numpy(np.concatenate([*parts, streamer.flush()]))

    return {**runs, "stream, ONNX": exported}


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("noisy", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--weights", default="dynamic-v1", help="bundled weights, or a file")
    parser.add_argument("--uf", type=float, default=0.25)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take one file of N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = find_pairs(arguments.noisy, arguments.clean)[:: arguments.every]
    print(f"{len(pairs)} files, UF {arguments.uf:g}, {arguments.weights}")
    print(markdown(["SI-SDR, dB", *(f"{level:g} dBFS" for level in LEVELS), "silence"], []), end="")
    with tempfile.TemporaryDirectory() as folder:
        runs = runtimes(arguments.weights, arguments.uf, Path(folder))
        hop = slimse.load(arguments.weights).geometry.hop
        for name, run in runs.items():
            found: dict[float, list[float]] = {level: [] for level in LEVELS}
            for pair in pairs:
                noisy, clean = (signal[: len(signal) // hop * hop] for signal in read_pair(pair))
                for level, values in found.items():
                    gain = 10 ** (level / 20) / float(np.sqrt(np.square(noisy, dtype=np.float64).mean()))
                    enhanced = run(torch.from_numpy(np.float32(gain) * noisy)).numpy()
                    values.append(score(enhanced, np.float32(gain) * clean, ["si_sdr"]).values["si_sdr"])
            silence = float(run(torch.zeros(125 * hop)).abs().max())
            row = [name, *(f"{np.mean(values):.2f}" for values in found.values()), f"{silence:g}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
