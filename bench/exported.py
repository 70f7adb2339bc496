"""What precision costs an exported stream, and what it gains: scores and time of fp32, fp16 and int8 in ONNX Runtime.

    python -m bench.exported NOISY_DIR CLEAN_DIR --uf 0.25 --files 8

Scores are means over files from all over the folder. Differences from fp32 have the bounds of a bootstrap over files.
Times are medians of one call (one frame) on one thread, all precisions taking turns.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

from bench.pairs import pairs_parser
from slimse import OnnxStreamer, load
from slimse.benchmark import Call, interleaved, noisy_clip
from slimse.evaluation import METRICS, Pair, find_pairs, read_pair
from slimse.evaluation.intervals import interval
from slimse.evaluation.metrics import score
from slimse.export import export

PRECISIONS = ("float32", "float16", "int8")
NAMES = ("pesq", "stoi", "si_sdr")


def spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """``count`` pairs from all over the list, or all of them."""
    return [pairs[index] for index in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)]


def scores(session: onnxruntime.InferenceSession, pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """By metric, of what a stream makes of every pair."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for pair in pairs:
        noisy, clean = read_pair(pair)
        streamer = OnnxStreamer(session)
        enhanced = np.concatenate([streamer.feed(noisy), streamer.flush()])
        values = score(enhanced, clean, NAMES).values
        for name in NAMES:
            found[name].append(values[name])
    return found


def call_of(session: onnxruntime.InferenceSession) -> Call:
    """One more frame of a stream."""
    streamer = OnnxStreamer(session)
    frames = itertools.cycle(noisy_clip(320 * streamer.hop).reshape(-1, streamer.hop))
    return lambda: streamer.feed(next(frames))


def main() -> None:
    """Print a table of scores, and one of times."""
    parser = pairs_parser(__doc__)
    parser.add_argument("--uf", type=float, default=0.25)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20, help="turns of 32 frames each")
    options = parser.parse_args()
    pairs, model, sessions = spread(find_pairs(options.noisy, options.clean), options.files), load(options.weights), {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            path = Path(folder, f"{precision}.onnx")
            export(model, path, options.uf, precision=precision)
            sessions[precision] = OnnxStreamer(path).session
    plain = scores(sessions["float32"], pairs)
    print(f"UF {options.uf:g}, {len(pairs)} files; beside fp32: mean of the differences, and its bounds")
    for precision in PRECISIONS:
        found, parts = plain if precision == "float32" else scores(sessions[precision], pairs), []
        for name in NAMES:
            mean, low, high = interval([a - b for a, b in zip(found[name], plain[name], strict=True)])
            title, digits = METRICS[name].title, METRICS[name].digits + 1
            parts.append(
                f"{title} {np.mean(found[name]):.{digits}f} "
                f"({mean:+.{digits}f}, {low:+.{digits}f} to {high:+.{digits}f})"
            )
        print(f"{precision}: {'; '.join(parts)}")
    times = interleaved([call_of(session) for session in sessions.values()], options.rounds, 32)
    middle = {precision: median(spent) for precision, spent in zip(sessions, times, strict=True)}
    for precision, spent in middle.items():
        print(f"{precision}: {1000 * spent:.3f} ms per frame, {spent / middle['float32']:.2f} of fp32")


if __name__ == "__main__":
    main()
