"""SlimSE side by side with `noisereduce` and RNNoise on the same pairs.

    pip install noisereduce pyrnnoise
    python bench/tools.py NOISY CLEAN --budget 0.25

prints a table of means at 16 kHz in mono. Outputs are first shifted by the delay that fits the noisy input best, as
RNNoise answers late. Of ``pyrnnoise`` only the library is used, not its Python part.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

import slimse
from slimse.audio.files import read_mono
from slimse.evaluation import METRICS, find_pairs, score

RATE = 16_000
RNNOISE_RATE = 48_000
MAX_DELAY = 640
"""Samples that an output may come late, 40 ms."""

Signal = NDArray[np.float32]
Tool = Callable[[Signal], Signal]


def noisereduce_tool() -> Tool:
    """Spectral gating, with the settings that the package has by default."""
    import noisereduce

    return lambda noisy: np.asarray(noisereduce.reduce_noise(noisy, sr=RATE), dtype=np.float32)


def rnnoise_tool() -> Tool:
    """RNNoise with its own weights, at the rate it was made for."""
    spec = importlib.util.find_spec("pyrnnoise")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("RNNoise needs pyrnnoise: pip install pyrnnoise", name="pyrnnoise")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("librnnoise.*"))))
    library.rnnoise_create.restype = ctypes.c_void_p
    library.rnnoise_create.argtypes = [ctypes.c_void_p]
    library.rnnoise_destroy.argtypes = [ctypes.c_void_p]
    samples = ctypes.POINTER(ctypes.c_float)
    library.rnnoise_process_frame.argtypes = [ctypes.c_void_p, samples, samples]
    library.rnnoise_process_frame.restype = ctypes.c_float
    size = library.rnnoise_get_frame_size()

    def enhance(noisy: Signal) -> Signal:
        # It expects the range of 16-bit integers, in floating point.
        x = soxr.resample(noisy, RATE, RNNOISE_RATE).astype(np.float32) * 32768
        frames = np.pad(x, (0, -len(x) % size)).reshape(-1, size)
        state = library.rnnoise_create(None)
        for frame in frames:
            pointer = frame.ctypes.data_as(samples)
            library.rnnoise_process_frame(state, pointer, pointer)
        library.rnnoise_destroy(state)
        return soxr.resample(frames.reshape(-1)[: len(x)] / 32768, RNNOISE_RATE, RATE)[: len(noisy)]

    return enhance


@torch.no_grad()
def slimse_tool(model: slimse.SlimDemucs, uf: float | str, budget: float | None, noisy: Signal) -> Signal:
    """Run a model at a UF or a budget."""
    return model(torch.from_numpy(noisy)[None, None], uf, budget)[0, 0].numpy()


def aligned(output: Signal, noisy: Signal) -> Signal:
    """``output`` earlier by the delay, at most `MAX_DELAY`, at which it resembles ``noisy`` most."""
    size = 1 << (2 * len(noisy) - 1).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(output, size) * np.fft.rfft(noisy, size).conj(), size)
    delay = int(likeness[:MAX_DELAY].argmax())
    return np.pad(output[delay:], (0, max(0, len(noisy) - len(output) + delay)))[: len(noisy)].astype(np.float32)


def main() -> None:
    """Score all tools and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("noisy", type=Path)
    parser.add_argument("clean", type=Path)
    parser.add_argument("--weights", default=slimse.checkpoint.DEFAULT)
    parser.add_argument("--uf", type=float, nargs="*", default=[1.0])
    parser.add_argument("--budget", type=float, nargs="*", default=[])
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.metrics.split(",")
    model = slimse.load(options.weights)
    tools: dict[str, Tool] = {
        "noisy": lambda noisy: noisy,
        "noisereduce": noisereduce_tool(),
        "RNNoise": rnnoise_tool(),
        **{f"SlimSE, UF {uf:g}": partial(slimse_tool, model, uf, None) for uf in options.uf},
        **{f"SlimSE, budget {b:g}": partial(slimse_tool, model, "auto", b) for b in options.budget},
    }
    pairs = find_pairs(options.noisy, options.clean)[: options.limit]
    values: dict[str, list[list[float]]] = {tool: [] for tool in tools}
    for pair in pairs:
        noisy, clean = read_mono(pair.noisy, RATE), read_mono(pair.clean, RATE)
        length = min(len(noisy), len(clean))
        noisy, clean = noisy[:length], clean[:length]
        for tool, enhance in tools.items():
            scores = score(aligned(enhance(noisy), noisy), clean, names)
            values[tool].append([scores.values[name] for name in names])
    print(f"means over {len(pairs)} files\n\n| tool | {' | '.join(METRICS[name].title for name in names)} |")
    print(f"| --- |{' ---: |' * len(names)}")
    for tool, rows in values.items():
        means = np.nanmean(rows, axis=0)
        cells = (f"{mean:.{METRICS[name].digits}f}" for mean, name in zip(means, names, strict=True))
        print(f"| {tool} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
