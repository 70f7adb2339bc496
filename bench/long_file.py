"""Peak memory and speed of `slimse enhance` on a long file: it must not grow with the length.

    python -m bench.long_file --hours 10

prints a line of JSON and exits with 1 if the enhancing process had more than 1 GB resident. The file is noise with
the rhythm of speech, in a temporary folder (about 1.2 GB for 10 hours at 16 kHz, and as much for the result).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

LIMIT_BYTES = 1e9

_CHILD = """
import sys
from pathlib import Path
import torch
from slimse import SlimModel
from slimse.audio.enhance import enhance_file
from slimse.checkpoint import load
source, target, weights, uf, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = load(weights) if weights else SlimModel("paper").eval()
enhance_file(Path(source), Path(target), model, float(uf))
"""


def write_noise(path: Path, seconds: float, rate: int, channels: int) -> int:
    """Write a file block by block, 16 bits; returns its samples per channel."""
    random = np.random.default_rng(0)
    left = total = round(seconds * rate)
    # A WAV header counts 4 GiB at most.
    container = "RF64" if 2 * channels * total > 2**32 - 2**16 else "WAV"
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16", format=container) as file:
        while left:
            count = min(left, 10 * rate)
            rhythm = 0.05 + 0.1 * np.sin(np.pi * 4 * np.arange(count) / rate)[:, None] ** 2
            file.write((rhythm * random.standard_normal((count, channels), dtype=np.float32)).astype(np.float32))
            left -= count
    return total


def main() -> int:
    """Run the measurement; the result is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=10.0, help="length of the file")
    parser.add_argument("--rate", type=int, default=16_000, help="sample rate, Hz")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--uf", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--weights", default="", help="weights to load; default: the paper preset, not trained")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.wav", Path(folder) / "out.wav"
        samples = write_noise(source, args.hours * 3600, args.rate, args.channels)
        command = [sys.executable, "-c", _CHILD, source, target, args.weights, args.uf, args.threads]
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True)
        seconds = time.perf_counter() - start
        if soundfile.info(target).frames != samples:
            raise RuntimeError(f"the output has {soundfile.info(target).frames} samples: expected {samples}")
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    result = {
        **vars(args),
        "peak_resident_mb": round(peak / 1e6, 1),
        "real_time_factor": round(seconds / (args.hours * 3600), 4),
        "limit_mb": LIMIT_BYTES / 1e6,
    }
    print(json.dumps(result))
    return int(peak > LIMIT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
