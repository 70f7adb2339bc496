"""Does enhancement help a recogniser? Word error rates of noisy, enhanced and mixed speech at several SNRs.

The recogniser is PocketSphinx, whose package carries its model of English (``pip install pocketsphinx``): small and of
the kind that was usual before neural ones, so its rates say nothing of those. Where speech has no transcripts, the
reference is what it hears in the clean signal; then the rates count what noise and enhancement change.

    python bench/recognition.py --speech ../shared/data/valid/speech --noise ../shared/data/valid/noise --files 20
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import slimse
from slimse.audio.files import find_files, read_mono
from slimse.hub import DEFAULT

RATE = 16_000
SNRS = (15.0, 5.0, 0.0)
CONDITIONS = {
    "noisy": None,
    "UF 0.125": {"uf": 0.125},
    "UF 1": {"uf": 1.0},
    "budget 0.25": {"budget": 0.25},
    "budget 0.25, dry 0.3": {"budget": 0.25, "dry": 0.3},
    "budget 0.25, dry 0.6": {"budget": 0.25, "dry": 0.6},
}


def word_errors(reference: list[str], found: list[str]) -> int:
    """Substitutions, deletions and insertions between two lists of words: their edit distance."""
    row = list(range(len(found) + 1))
    for index, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(found, 1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (word != other)),
            )
    return row[-1]


def mix(speech: np.ndarray, noise: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Speech with a random part of the noise, repeated if it is shorter, at an SNR in dB over the whole."""
    start = int(rng.integers(len(noise)))
    under = np.resize(np.roll(noise, -start), len(speech)).astype(np.float32)
    power = np.mean(under**2) + 1e-12
    mixed = speech + under * np.sqrt(np.mean(speech**2) / power / 10 ** (snr / 10))
    return (mixed * min(1.0, 0.99 / np.abs(mixed).max())).astype(np.float32)


def transcripts(path: Path) -> dict[str, list[str]]:
    """Words by the name of a file without suffix, from lines ``NAME WORDS ...`` as LibriSpeech has them."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name: [word.lower() for word in words] for name, *words in lines}


def main() -> None:
    """Print the table."""
    from pocketsphinx import Decoder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder of clean English speech")
    parser.add_argument("--noise", type=Path, required=True, help="folder of noise")
    parser.add_argument("--transcripts", type=Path, help="lines of NAME WORDS ...")
    parser.add_argument("--weights", default=DEFAULT)
    parser.add_argument("--files", type=int, default=20, help="utterances, evenly from all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write, too")
    args = parser.parse_args()
    decoder, model = Decoder(loglevel="FATAL"), slimse.load(args.weights)

    def hear(signal: np.ndarray) -> list[str]:
        decoder.start_utt()
        decoder.process_raw((signal * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr.split() if found is not None else []

    speech, noises = find_files(args.speech), find_files(args.noise)
    chosen = speech[:: max(1, len(speech) // args.files)][: args.files]
    known = transcripts(args.transcripts) if args.transcripts else {}
    rng, words = np.random.default_rng(args.seed), 0
    errors = {name: dict.fromkeys(SNRS, 0) for name in CONDITIONS}
    clean_errors = 0
    for path in chosen:
        clean = read_mono(path, RATE)
        heard = hear(clean)
        reference = known.get(path.stem, heard)
        words, clean_errors = words + len(reference), clean_errors + word_errors(reference, heard)
        for snr in SNRS:
            noisy = mix(clean, read_mono(noises[int(rng.integers(len(noises)))], RATE), snr, rng)
            for name, options in CONDITIONS.items():
                signal = noisy if options is None else slimse.enhance(noisy, RATE, model=model, **options)
                errors[name][snr] += word_errors(reference, hear(signal))
    rates = {name: {snr: count / words for snr, count in row.items()} for name, row in errors.items()}
    of = "transcripts" if known else "what the recogniser hears in clean speech"
    print(f"word error rates, %, over {len(chosen)} utterances, {words} words of {of}")
    print("| | " + " | ".join(f"{snr:g} dB" for snr in SNRS) + " |")
    print("| --- |" + " ---: |" * len(SNRS))
    print(f"| clean |{f' {100 * clean_errors / words:.1f} |' * len(SNRS)}")
    for name, row in rates.items():
        print(f"| {name} | " + " | ".join(f"{100 * rate:.1f}" for rate in row.values()) + " |")
    if args.json:
        content = {"utterances": len(chosen), "words": words, "reference": of, "rates": rates}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
