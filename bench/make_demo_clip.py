"""Make the noisy clip that `slimse demo` uses without a file: ``slimse/assets/noisy.flac``.

One utterance and one recorded noise, both free to redistribute, at a fixed ratio. Run it from the root of the
repository; the same inputs give the same file. ``slimse/assets/README.md`` credits the sources.

    python -m bench.make_demo_clip --data ../shared/data
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

SPEECH = "valid/speech/librispeech_testother/3331/3331-159605-0005.flac"
NOISE = "valid/noise/esc10/rain_5-203739-A.flac"
LICENCES = {SPEECH: "CC BY 4.0 (LibriSpeech)", NOISE: "CC0 (ESC-10)"}
SAMPLE_RATE = 16_000
SNR_DB = 3.0
PEAK = 0.7
CLIP = Path(__file__).parents[1] / "slimse" / "assets" / "noisy.flac"


def read(data: Path, name: str) -> np.ndarray:
    """One channel of float64 at 16 kHz.

    Raises:
        ValueError: for a file of another kind, or one whose licence in the manifest is not the one credited.
    """
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        licence = next((row["licence"] for row in csv.DictReader(file) if row["path"] == name), None)
    if licence != LICENCES[name]:
        raise ValueError(f"licence of {name} in the manifest is {licence!r}: expected {LICENCES[name]!r}")
    audio, rate = soundfile.read(data / name)
    if audio.ndim != 1 or rate != SAMPLE_RATE:
        raise ValueError(f"{name} has {rate} Hz and shape {audio.shape}: expected mono at {SAMPLE_RATE} Hz")
    return audio


def mix(speech: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Speech in the middle of the whole noise, at `SNR_DB` over the time of the speech, peak at `PEAK`."""
    start = (len(noise) - len(speech)) // 2
    if start < 0:
        raise ValueError(f"speech has {len(speech)} samples: expected no more than the noise, {len(noise)}")
    under = noise[start : start + len(speech)]
    gain = np.sqrt(np.mean(speech**2) / np.mean(under**2) / 10 ** (SNR_DB / 10))
    noisy = gain * noise
    noisy[start : start + len(speech)] += speech
    return noisy * (PEAK / np.abs(noisy).max())


def main() -> None:
    """Write the clip."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with manifest.csv")
    parser.add_argument("--out", type=Path, default=CLIP, help="file to write")
    args = parser.parse_args()
    noisy = mix(read(args.data, SPEECH), read(args.data, NOISE))
    soundfile.write(args.out, noisy, SAMPLE_RATE, subtype="PCM_16", compression_level=1.0)
    print(f"{args.out}: {len(noisy) / SAMPLE_RATE:.2f} s, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
