"""Coverage-guided fuzzing, by atheris, of what reads files: audio, checkpoints, recipes.

    pip install atheris
    python -m bench.reliability.fuzz_files audio --seconds 120
    python -m bench.reliability.fuzz_files checkpoint --seconds 120
    python -m bench.reliability.fuzz_files recipe --seconds 120

Mutated files must be read, or be one `ValueError` that names the file. Anything else ends the run with the file that
did it, which libFuzzer writes into the working folder. libsndfile and safetensors are not instrumented, the rest is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np
import soundfile

with atheris.instrument_imports(include=["slimse"]):
    import slimse
    from slimse.audio.files import read_mono
    from slimse.training.config import TrainConfig


def _seeds(kind: str, folder: Path) -> None:
    """Write small sound files to start from."""
    if kind == "audio":
        for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "w64", "caf", "au"):
            soundfile.write(folder / f"seed.{suffix}", 0.1 * np.sin(np.arange(600)), 16_000)
    elif kind == "checkpoint":
        config = slimse.SlimDemucsConfig(hidden=2, depth=1, groups=1, resample=1)
        slimse.save(slimse.SlimModel(config), folder / "seed.safetensors")
    else:
        recipes = Path(slimse.__file__).parent / "training" / "recipes"
        for path in recipes.glob("*.toml"):
            (folder / path.name).write_bytes(path.read_bytes())


def _reader(kind: str) -> tuple[str, Callable[[Path], object]]:
    """Name of the file to read, and what reads it."""
    return {
        "audio": ("x.wav", lambda path: read_mono(path, 16_000)),
        "checkpoint": ("x.safetensors", slimse.load),
        "recipe": ("x.toml", TrainConfig.read),
    }[kind]


def main() -> None:
    """Fuzz one reader for some seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["audio", "checkpoint", "recipe"])
    parser.add_argument("--seconds", type=int, default=120)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    _seeds(options.kind, corpus)
    name, read = _reader(options.kind)
    path = folder / name

    def once(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except ValueError as error:
            if name not in str(error):
                raise AssertionError(f"the message does not name the file: {error}") from error

    flags = [f"-max_total_time={options.seconds}", "-max_len=20000", "-rss_limit_mb=4096", "-timeout=20", str(corpus)]
    atheris.Setup([sys.argv[0], *flags], once)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
