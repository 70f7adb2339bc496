"""What it costs, or brings, to change the width: SI-SDR beside the mean of the two fixed widths, which costs the same.

    python -m bench.switching NOISY CLEAN

Half of the frames of a file run at one UF, half at the other: drawn by lot, for five frames on average, or the wider
one where the noisy sound is louder. In dB, mean over files with its 95 % bootstrap interval.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

import slimse
from bench.pairs import pairs_parser
from slimse.evaluation import find_pairs, interval, read_pair, score
from slimse.evaluation.metrics import Signal
from slimse.model import SlimModel
from slimse.training.module import by_loudness, wandering
from slimse.width import WidthSet

Mixture = tuple[float, float, str]
"""Narrow and wide UF, and the rule that chooses."""


def choices(model: SlimModel, noisy: Tensor, pair: tuple[float, float], seed: int) -> dict[str, Tensor]:
    """UFs ``[1, frames]`` of a signal ``[1, 1, T]`` by both rules; each takes both UFs equally often, on average."""
    hop, frames = model.geometry.hop, model.geometry.frames(noisy.shape[2])
    ufs = torch.tensor(pair)
    relative = WidthSet((pair[0] / pair[1], 1.0))
    half = torch.tensor([sum(relative) / 2])
    return {
        "by lot": ufs[wandering(np.random.default_rng(seed), 1, frames, 2)],
        "louder": ufs[by_loudness(noisy, half, hop, torch.zeros(1, frames), relative)],
    }


def distances(model: SlimModel, noisy: Tensor, clean: Signal, seed: int) -> dict[Mixture, float]:
    """SI-SDR of a signal ``[1, 1, T]`` at mixed widths, less that of the line between the two at equal use."""

    def quality(uf: float | Tensor) -> float:
        return score(model(noisy, uf)[0, 0].numpy(), clean, ["si_sdr"]).values["si_sdr"]

    fixed = {uf: quality(uf) for uf in model.ufs}
    found = {}
    for low, high in combinations(model.ufs, 2):
        for rule, chosen in choices(model, noisy, (low, high), seed).items():
            share = (float(chosen.mean()) - low) / (high - low)
            found[low, high, rule] = quality(chosen) - (1 - share) * fixed[low] - share * fixed[high]
    return found


@torch.no_grad()
def main() -> None:
    """Print a row for every pair of UFs."""
    parser = pairs_parser(__doc__)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take one file of N")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = slimse.load(arguments.weights)
    files = []
    for number, pair in enumerate(find_pairs(arguments.noisy, arguments.clean)[:: arguments.every]):
        noisy, clean = read_pair(pair)
        files.append(distances(model, torch.from_numpy(noisy)[None, None], clean, number))
    print(f"{len(files)} files, {arguments.weights}: dB of SI-SDR above the line between two UFs")
    for key in files[0]:
        found = interval([file[key] for file in files])
        low, high, rule = key
        print(f"  {low:<5g} and {high:<5g} {rule:7} {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})")


if __name__ == "__main__":
    main()
