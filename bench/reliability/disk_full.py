"""Write every encoding of every container to a disk that is full at every place; nothing may be taken for done.

    python -m bench.reliability.disk_full --step 211

The limit on the size of files stands in for the disk. ALAC is left out: libsndfile crashes where its own temporary file
cannot grow, which the writer foresees from the free space alone. DWVW is left out: libsndfile cannot read its own.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from slimse.audio.files import FileInfo
from slimse.audio.writing import AtomicWriter

_LEFT_OUT = ("ALAC", "DWVW", "MPEG_LAYER_I", "MPEG_LAYER_II")


def write(target: Path, info: FileInfo, samples: int) -> str:
    """Write noise, and say how that ended: ``"whole"`` or the name of the error."""
    noise = (0.1 * np.random.default_rng(0).standard_normal((1, samples))).astype(np.float32)
    try:
        with AtomicWriter(target, info, force=True) as writer:
            for start in range(0, samples, 4000):
                writer.write(noise[:, start : start + 4000])
    except Exception as error:
        return type(error).__name__
    return "whole"


def main() -> None:
    """Try all places and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=211, help="bytes between two places in the last 6,000")
    parser.add_argument("--samples", type=int, default=30_011)
    options = parser.parse_args()
    ends: Counter[str] = Counter()
    tried, limit = 0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    with tempfile.TemporaryDirectory() as folder:
        for container in soundfile.available_formats():
            for subtype in soundfile.available_subtypes(container):
                if container in ("RAW", "SD2") or subtype.startswith(_LEFT_OUT):
                    continue
                info = FileInfo(0, 48_000 if subtype == "OPUS" else 16_000, 1, container, subtype, "FILE")
                target = Path(folder) / ("a.opus" if subtype == "OPUS" else f"a.{container.lower()}")
                if write(target, info, options.samples) != "whole":
                    continue
                size, tried = target.stat().st_size, tried + 1
                target.unlink()
                last = range(max(size - 6000, 0), size, options.step)
                for most in sorted({*last, *range(0, size, size // 15 + 1), *(size - n for n in (1, 2, 10, 100))}):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limit))
                    end = write(target, info, options.samples)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                    ends[end] += 1
                    if end == "whole":
                        print(f"{container} {subtype}: taken for done with {size - most} bytes missing")
                    left = [path.name for path in Path(folder).iterdir()]
                    if left and end != "whole":
                        print(f"{container} {subtype}: left behind: {left}")
                    target.unlink(missing_ok=True)
    print(f"{tried} encodings, {sum(ends.values())} full disks: {dict(ends)}")


if __name__ == "__main__":
    main()
