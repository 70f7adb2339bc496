"""What the speech probability of a live stream is worth: area under the ROC curve against the clean signal's activity.

    python -m bench.speech_activity
    python -m bench.speech_activity --fit

A frame of 16 ms holds speech if its clean energy is within 35 dB of the loudest tenth of the file's frames. Frames of
all mixtures are pooled. Beside the probability stand what the router of the same stream has in store: the width that it
wants (its one output, before rounding to a UF), and the mean of the band levels that it hears.

``--fit`` finds the two constants of the probability in `slimse.live` anew, on 60 mixtures of training recordings.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from slimse import load
from slimse.audio.files import read_mono
from slimse.live import SPEECH_PLACE, SPEECH_SLOPE, LiveStreamer
from slimse.model import SlimModel
from slimse.router import SHARPNESS

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RANGE_DB = 35.0
"""Below the level of the loudest tenth of the frames."""
Scores = dict[str, NDArray[np.float64]]


def activity(clean: NDArray[np.float32], hop: int) -> NDArray[np.bool_]:
    """Whether each frame holds speech."""
    frames = clean[: len(clean) // hop * hop].reshape(-1, hop)
    energy = np.square(frames, dtype=np.float64).mean(1)
    return energy > np.quantile(energy, 0.9) * 10 ** (-RANGE_DB / 10)


def area(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Share of pairs of a frame with and one without speech that the score puts in order; ties count half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(truth.sum())
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


@torch.no_grad()
def router_scores(model: SlimModel, noisy: NDArray[np.float32], budget: float) -> Scores:
    """The width that the router wants of every frame, in octaves, and the mean of its band levels."""
    router = model.router
    assert router is not None
    x = torch.from_numpy(noisy)[None]
    frames, state = model.geometry.frames(len(noisy)), model.initial_state()
    normalised, _ = model.normalised(x, state)
    early = model.geometry.early(0)
    x = torch.nn.functional.pad(normalised, (0, early + frames * model.geometry.hop - normalised.shape[1]))
    context = torch.cat([state.router.samples, x[:, :early]], 1)[:, early:]
    levels = router.levels(torch.cat([context, x[:, early:]], 1))
    asked = router.calibrated(torch.tensor([budget]))
    logits, _ = router.logits(levels, asked, state.router.hidden)
    # The logits are parabolas of the distance from one number.
    low, high = router.octaves[0], router.octaves[-1]
    wanted = (low + high) / 2 + (logits[0, :, -1] - logits[0, :, 0]) / (2 * SHARPNESS * (high - low))
    return {"width that the router wants": wanted.numpy().astype(float), "its band levels": levels.mean(2)[0].numpy()}


def validation(folder: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Noisy and clean signals of the validation mixtures, at 16 kHz."""
    for path in sorted((folder / "noisy").iterdir()):
        yield soundfile.read(path, dtype="float32")[0], soundfile.read(folder / "clean" / path.name, dtype="float32")[0]


def training(folder: Path, count: int = 60) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Mixtures of training speech and noise at -5 to 15 dB and a peak level of -20 to 0 dB, drawn by a fixed seed."""
    generator = np.random.default_rng(1)
    speech, noise = (sorted((folder / kind).rglob("*.flac")) for kind in ("speech", "noise"))
    while count:
        clean = read_mono(speech[generator.integers(len(speech))], 16_000)[:160_000]
        added = np.resize(read_mono(noise[generator.integers(len(noise))], 16_000), len(clean))
        ratio = generator.choice([-5, 0, 5, 10, 15])
        gain = 10 ** generator.uniform(-1, 0)
        if len(clean) < 16_000 or not added.any():
            continue
        added *= np.sqrt(np.square(clean).mean() / np.square(added).mean() / 10 ** (ratio / 10))
        yield np.float32(gain) * (clean + added), np.float32(gain) * clean
        count -= 1


def fit(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and place of a logistic function of ``score``, both classes weighing the same."""
    weight = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())
    slope, offset = 0.1, 0.0
    for _ in range(20_000):
        error = (1 / (1 + np.exp(-(slope * score + offset))) - truth) * weight
        slope -= 0.01 * float((error * score).sum())
        offset -= 0.5 * float(error.sum())
    return slope, -offset / slope


def main() -> None:
    """Print the areas."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uf", type=float, default=0.125)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load()
    truth, found = [], []
    for noisy, clean in training(DATA / "train") if arguments.fit else validation(DATA / "valid" / "mixed"):
        streamer = LiveStreamer(model, arguments.uf)
        streamer.feed(noisy)
        heard = streamer.frames
        streamer.flush()
        heard = heard + streamer.frames
        active = activity(clean, model.geometry.hop)
        scores = {"speech": np.array([frame.speech for frame in heard]), **router_scores(model, noisy, 0.25)}
        count = min(len(active), *(len(score) for score in scores.values()))
        truth.append(active[:count])
        found.append({name: score[:count] for name, score in scores.items()})
    active = np.concatenate(truth)
    print(f"{len(truth)} mixtures, {len(active)} frames, {100 * active.mean():.0f} % with speech, UF {arguments.uf:g}")
    for name in found[0]:
        pooled = np.concatenate([scores[name] for scores in found])
        print(f"{name}: area {area(pooled, active):.3f}")
        if name == "speech":
            hits, false = (pooled[active] > 0.5).mean(), (pooled[~active] > 0.5).mean()
            print(f"  above 0.5 in {100 * hits:.0f} % of the frames with speech and {100 * false:.0f} % of the others")
            if arguments.fit:
                decibels = np.log(pooled / (1 - pooled)) / SPEECH_SLOPE + SPEECH_PLACE
                print("  slope {:.3f} per dB, place {:.1f} dB".format(*fit(decibels, active)))


if __name__ == "__main__":
    main()
