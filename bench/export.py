"""What exported files cost and give: CPU time of a call, size, and scores against float32.

    python bench/export.py NOISY CLEAN          # folders of pairs of the same names
    python bench/export.py NOISY CLEAN --files 8

Time is the CPU time of one thread in `OnnxStreamer.feed` for 16 ms, all files taking turns: medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import numpy as np
import soundfile
from pesq import pesq

import slimse
from slimse.export import export

CASES = [(uf, precision) for precision in ("float32", "float16", "int8") for uf in (0.125, 0.25, 0.5, 1.0)]


def si_sdr(estimate: np.ndarray, clean: np.ndarray) -> float:
    """In dB."""
    target = clean * (estimate @ clean) / (clean @ clean)
    return float(10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target))))


def main() -> None:
    """Export, score, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("noisy", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--files", type=int, default=8, help="pairs to score, evenly spaced")
    parser.add_argument("--rounds", type=int, default=100, help="turns of all files")
    args = parser.parse_args()
    names = sorted(path.name for path in args.noisy.iterdir())
    names = names[:: max(len(names) // args.files, 1)][: args.files]
    model, streamers, sizes = slimse.load(backend="torch"), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        every = Path(folder) / "all.onnx"
        export(model, every)
        for uf, precision in CASES:
            path = Path(folder) / f"{uf}-{precision}.onnx"
            sizes[uf, precision] = export(model, path, uf, precision=precision).size
            streamers[uf, precision] = slimse.OnnxStreamer(path)
        for uf in model.ufs:
            streamers[uf, "all UFs"] = slimse.OnnxStreamer(every, uf)
            sizes[uf, "all UFs"] = every.stat().st_size
    times: dict[tuple[float, str], list[float]] = {case: [] for case in streamers}
    hop = soundfile.read(args.noisy / names[0], dtype="float32", frames=model.geometry.hop)[0]
    for _ in range(args.rounds):
        for case, streamer in streamers.items():
            start = time.thread_time()
            streamer.feed(hop)
            times[case].append(time.thread_time() - start)
    for (uf, kind), streamer in streamers.items():
        scores = []
        for name in names if kind in ("float32", "int8") else ():
            noisy, rate = soundfile.read(args.noisy / name, dtype="float32")
            clean, _ = soundfile.read(args.clean / name, dtype="float32")
            streamer.reset()
            enhanced = np.concatenate([streamer.feed(noisy), streamer.flush()])
            scores.append((pesq(rate, clean, enhanced, "wb"), si_sdr(enhanced, clean)))
        quality = "".join(f"  {mean(column):6.3f}" for column in zip(*scores, strict=True))
        print(f"{kind:8} UF {uf:<5g} {sizes[uf, kind] / 1e6:5.1f} MB  {1000 * median(times[uf, kind]):.2f} ms{quality}")


if __name__ == "__main__":
    main()
