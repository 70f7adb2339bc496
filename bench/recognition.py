"""Does enhancement help a recogniser? Word error rates of noisy, enhanced and mixed speech at several SNRs.

    pip install pocketsphinx
    python -m bench.recognition SPEECH NOISE --snr 0 5 10 --uf 0.125 1 --dry 0.5

PocketSphinx brings its English model along. References are the transcripts beside the files, as LibriSpeech has them
(``*.trans.txt``). Where a file has none, the reference is what the recogniser makes of the clean file: the rate then
says how far noise and enhancement move it away from that, not how well it understands.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import slimse
from slimse.audio.files import find_files, read_mono
from slimse.evaluation.intervals import interval

RATE = 16_000
Array = NDArray[np.float32]


def word_errors(reference: Sequence[str], found: Sequence[str]) -> int:
    """Fewest words to insert, delete or replace (Levenshtein)."""
    row = list(range(len(found) + 1))
    for count, word in enumerate(reference, 1):
        last, row[0] = row[0], count
        for index, other in enumerate(found, 1):
            last, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, last + (word != other))
    return row[-1]


def mix(speech: Array, noise: Array, snr: float, generator: np.random.Generator) -> Array:
    """Speech and a stretch of noise at an SNR in dB, at most at full scale."""
    start = int(generator.integers(len(noise)))
    stretch = np.resize(np.roll(noise, -start), len(speech))
    power = float(np.square(stretch, dtype=np.float64).mean())
    gain = np.sqrt(float(np.square(speech, dtype=np.float64).mean()) / max(power, 1e-12)) * 10 ** (-snr / 20)
    mixed = speech + np.float32(gain) * stretch
    return np.asarray(mixed / max(1.0, float(np.abs(mixed).max())), np.float32)


class Recognizer:
    """PocketSphinx with its own model."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(samprate=RATE, loglevel="FATAL")

    def words(self, signal: Array) -> list[str]:
        """What it hears in ``[n]``."""
        samples = (32_767 * signal.clip(-1, 1)).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return [] if found is None else str(found.hypstr).lower().split()


def transcripts(folder: Path) -> dict[str, list[str]]:
    """Words by the name of a file without its suffix."""
    lines = [line for path in folder.rglob("*.trans.txt") for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: text.lower().split() for name, _, text in (line.partition(" ") for line in lines)}


def conditions(noisy: Array, options: argparse.Namespace, model: slimse.SlimModel) -> Iterator[tuple[str, Array]]:
    """What is recognised, by name."""
    yield "noisy", noisy
    for uf in options.uf:
        yield f"UF {uf:g}", slimse.enhance(noisy, RATE, uf, model=model)
        for dry in options.dry:
            yield f"UF {uf:g}, dry {dry:g}", slimse.enhance(noisy, RATE, uf, dry=dry, model=model)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Rates by condition and SNR, and changes from noisy, in percent, with the bounds of a bootstrap over files."""
    generator = np.random.default_rng(0)
    known, model, recognizer = transcripts(options.speech), slimse.load(), Recognizer()
    noises = [read_mono(path, RATE) for path in find_files(options.noise)[:: options.noise_step]]
    errors: dict[str, list[float]] = {}
    words, own = [], 0
    for path in generator.permutation(np.array(find_files(options.speech), object)):
        speech = read_mono(path, RATE)
        if len(speech) > options.longest * RATE or len(words) == options.files:
            continue
        reference = known.get(path.stem)
        if reference is None:
            own += 1
            reference = recognizer.words(speech)
        if not reference:
            continue
        words.append(len(reference))
        for snr in options.snr:
            noisy = mix(speech, noises[int(generator.integers(len(noises)))], snr, generator)
            for name, signal in conditions(noisy, options, model):
                errors.setdefault(f"{snr:g} dB, {name}", []).append(word_errors(reference, recognizer.words(signal)))
        print(f"{path.name}: {len(reference)} words", flush=True)
    mean = float(np.mean(words))
    rates, changes = {}, {}
    for name, counts in errors.items():
        noisy = errors[f"{name.split(',')[0]}, noisy"]
        rates[name] = _percent(counts, mean)
        if counts is not noisy:
            changes[name] = _percent([count - other for count, other in zip(counts, noisy, strict=True)], mean)
    return {"files": len(words), "words": sum(words), "own_references": own, "rates": rates, "changes": changes}


def _percent(counts: Sequence[float], words: float) -> list[float]:
    """Mean over files and its bounds, in percent of ``words`` words a file."""
    return [round(value, 1) for value in interval([100 * count / words for count in counts])]


def main() -> None:
    """Print rates, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="folder with clean files")
    parser.add_argument("noise", type=Path, help="folder with noises")
    parser.add_argument("--snr", type=float, nargs="+", default=[0, 5, 10], help="dB")
    parser.add_argument("--uf", type=float, nargs="+", default=[0.125, 1.0])
    parser.add_argument("--dry", type=float, nargs="*", default=[0.5], help="shares of the input")
    parser.add_argument("--files", type=int, default=30)
    parser.add_argument("--longest", type=float, default=12, help="seconds of a file; longer ones are left out")
    parser.add_argument("--noise-step", type=int, default=1, help="take every so many noises")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args()
    found = measure(options)
    print(f"{found['files']} files, {found['words']} words, {found['own_references']} references by the recogniser")
    for name, (mean, low, high) in found["rates"].items():  # type: ignore[attr-defined]
        print(f"{name}: word error rate {mean} % ({low} to {high})")
    for name, (mean, low, high) in found["changes"].items():  # type: ignore[attr-defined]
        print(f"{name}: {mean:+} % from noisy ({low:+} to {high:+})")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
