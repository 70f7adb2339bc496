"""The same noisy speech at several levels, and digital silence, through every runtime on a CPU.

    python -m bench.levels NOISY CLEAN --every 5

A row per runtime: mean SI-SDR in dB at each level (root mean square of the noisy file, in dBFS), then the largest
sample that comes out for two seconds of digital silence.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import slimse
from bench.pairs import pairs_parser
from bench.reliability.fuzz_runtimes import batched, streamed
from bench.tables import markdown
from slimse import Streamer
from slimse.evaluation import find_pairs, read_pair, score
from slimse.export import export
from slimse.model import SlimModel

LEVELS = (-70.0, -56.0, -46.0, -26.0, 0.0, 10.0)
Run = Callable[[Tensor], Tensor]
CHUNK = 1000
"""Samples fed at once: no multiple of a hop."""


def stream(model: SlimModel, uf: float, kind: str | None, signal: Tensor) -> Tensor:
    """What a stream makes of a signal ``[T]``, with its weights kept as ``kind``."""
    return streamed(Streamer(model, uf, weights=kind), signal, uf, CHUNK)


def runtimes(eager: SlimModel, compiled: SlimModel, uf: float, folder: Path) -> dict[str, Run]:
    """What takes a signal ``[T]`` of whole hops to the enhanced one, by name."""
    runs: dict[str, Run] = {
        "whole, eager": lambda signal: eager(signal[None, None], uf)[0, 0],
        "whole, numba": lambda signal: compiled(signal[None, None], uf)[0, 0],
        "stream, eager": partial(stream, eager, uf, None),
        "batch, eager": lambda signal: batched(eager, signal, uf, "eager"),
        "batch, numba": lambda signal: batched(compiled, signal, uf, "numba"),
    }
    for kind in ("float32", "float16", "int8"):
        runs[f"stream, numba {kind}"] = partial(stream, compiled, uf, kind)
    path = folder / "stream.onnx"
    export(eager, path, uf)
    session = slimse.OnnxStreamer(path).session

    def exported(signal: Tensor) -> Tensor:
        streamer = slimse.OnnxStreamer(session)
        parts = [streamer.feed(part.numpy()) for part in signal.split(CHUNK)]
        return torch.from_numpy(np.concatenate([*parts, streamer.flush()]))

    return {**runs, "stream, ONNX": exported}


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = pairs_parser(__doc__)
    parser.add_argument("--uf", type=float, default=0.25)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take one file of N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    eager, compiled = (slimse.load(arguments.weights, runtime=runtime) for runtime in ("eager", "numba"))
    hop = eager.geometry.hop
    pairs = []
    for pair in find_pairs(arguments.noisy, arguments.clean)[:: arguments.every]:
        noisy, clean = (signal[: len(signal) // hop * hop] for signal in read_pair(pair))
        # Levels are given below; SI-SDR does not depend on that of the clean signal.
        pairs.append((noisy / np.sqrt(np.square(noisy, dtype=np.float64).mean()), clean))
    print(f"{len(pairs)} files, UF {arguments.uf:g}, {arguments.weights}")
    print(markdown(["SI-SDR, dB", *(f"{level:g} dBFS" for level in LEVELS), "silence"], []), end="")
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runtimes(eager, compiled, arguments.uf, Path(folder)).items():
            row = [name]
            for level in LEVELS:
                values = []
                for noisy, clean in pairs:
                    enhanced = run(torch.from_numpy(np.float32(10 ** (level / 20) * noisy))).numpy()
                    values.append(score(enhanced, clean, ["si_sdr"]).values["si_sdr"])
                row.append(f"{np.mean(values):.2f}")
            row.append(f"{float(run(torch.zeros(125 * hop)).abs().max()):g}")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
