"""The held-out validation set: 60 mixtures of 40 speakers of many languages and ages, none of them trained on.

    python -m slimse.training.held_out ../shared/data held-out
    slimse evaluate held-out/noisy held-out/clean

``held_out.csv`` lists them. Speakers were drawn from the sets of many voices by language (22 of them), sex where a set
gives it, else by pitch, and age (6 to 37 years), among files with DNSMOS OVRL of 2.9 and an SNR of 38 dB at least.
The sets of noise that it uses are held out whole. SNR is -5 to 15 dB, the level of the mixtures -60 to -15 dBFS.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ..audio.files import read_mono
from .bank import Signal
from .rendering import rms, speech_level

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class HeldOut:
    """A row of the list. Nothing is left to chance, so there is no seed."""

    speaker: str
    """Name of the speaker's folder."""
    language: str
    sex: str
    """``f``, ``m``, or empty where it is not known."""
    age: str
    pitch_hz: float
    """Median of the voice."""
    speech: str
    """Path below the folder of training data."""
    speech_start: float
    """Seconds."""
    seconds: float
    noise: str
    noise_start: float
    """Seconds; what is shorter than the speech begins anew."""
    snr_db: float
    """Noise against the louder parts of the speech (`speech_level`)."""
    level_dbfs: float
    """RMS of the mixture; lower where the peaks would clip."""

    @property
    def noise_set(self) -> str:
        """Name of the folder of the set of noise."""
        return Path(self.noise).parts[1]


@cache
def held_out() -> tuple[HeldOut, ...]:
    """The rows of ``held_out.csv``."""
    numbers = {field.name for field in fields(HeldOut) if field.type == "float"}
    with (resources.files(__package__) / "held_out.csv").open(encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return tuple(HeldOut(**{**row, **{key: float(row[key]) for key in numbers}}) for row in rows)


def held_out_speakers() -> frozenset[str]:
    """Folders of speakers that training leaves out."""
    return frozenset(row.speaker for row in held_out())


def held_out_noises() -> frozenset[str]:
    """Folders of sets of noise that training leaves out."""
    return frozenset(row.noise_set for row in held_out())


def mixture(row: HeldOut, data: Path) -> tuple[Signal, Signal]:
    """Noisy and clean, ``[n]`` each, of a row, from the folder that holds ``train``."""
    count = round(row.seconds * SAMPLE_RATE)
    speech, noise = (read_mono(data / "train" / name, SAMPLE_RATE) for name in (row.speech, row.noise))
    start = round(row.speech_start * SAMPLE_RATE)
    clean = speech[start : start + count]
    if len(clean) < count:
        raise ValueError(f"{row.speech} has {len(speech)} samples: expected {start + count} or more")
    noise = np.resize(noise[round(row.noise_start * SAMPLE_RATE) :], count)
    loud = float(speech_level(torch.from_numpy(clean)))
    noisy = clean + noise * np.float32(loud / rms(noise) / 10 ** (row.snr_db / 20))
    gain = min(10 ** (row.level_dbfs / 20) / rms(noisy), 0.99 / max(np.abs(noisy).max(), np.abs(clean).max()))
    return noisy * np.float32(gain), clean * np.float32(gain)


def render(data: Path, out: Path) -> None:
    """Write ``noisy`` and ``clean`` below ``out``, as FLAC of 24 bits, and the list as ``mixtures.csv``.

    Args:
        data: folder that holds ``train/speech`` and ``train/noise``.
        out: created where it is missing.
    """
    for kind in ("noisy", "clean"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(HeldOut)]
    with (out / "mixtures.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", *names])
        for number, row in enumerate(held_out()):
            name = f"{number:03}_{row.speaker}_snr{row.snr_db:+.0f}.flac"
            for kind, signal in zip(("noisy", "clean"), mixture(row, data), strict=True):
                # 16 bits would leave a soft clean signal no more than 30 dB above their noise.
                soundfile.write(out / kind / name, signal, SAMPLE_RATE, subtype="PCM_24")
            table.writerow([name, *(getattr(row, key) for key in names)])


def main() -> None:
    """Render the set from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that holds train/speech and train/noise")
    parser.add_argument("out", type=Path, help="folder for noisy/, clean/ and mixtures.csv")
    options = parser.parse_args()
    render(options.data, options.out)
    print(f"{len(held_out())} mixtures of {len(held_out_speakers())} speakers: {options.out}")


if __name__ == "__main__":
    main()
