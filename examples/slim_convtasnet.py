"""Slim a Conv-TasNet and train all its widths at once, beside the same network trained at full width alone.

    python examples/slim_convtasnet.py ../shared/data

DATA holds ``train/speech``, ``train/noise`` and ``valid/mixed`` with ``noisy`` and ``clean``, 16 kHz mono. The lines
that slim the network and train it are marked; the rest is what any training has.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer
from torch import Tensor, nn

import slimse
from slimse.training import sandwich

RATE = 16_000
SIZE, HOP = 128, 64
"""Samples of a filter, and between two positions."""
LEARNING_RATE = 3e-3
"""At the first step."""


class Block(nn.Module):
    """A block of a Conv-TasNet: its hidden channels are what gets cut."""

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            *(nn.Conv1d(channels, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden)),
            nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden),
            *(nn.PReLU(), nn.GroupNorm(1, hidden), nn.Conv1d(hidden, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Around a skip."""
        return x + self.inside(x)


class ConvTasNet(nn.Module):
    """Encoder, mask, decoder, after arXiv 1809.07454; ``[B, 1, T]`` to the same, ``T`` a multiple of `HOP`.

    To learn something in minutes, the filters begin as a windowed Fourier transform, the mask begins the same
    everywhere, which gives the noisy signal back, and it is made from the features without their sign.
    """

    def __init__(self, channels: int = 48, hidden: int = 128, blocks: int = 6) -> None:
        super().__init__()
        place = (SIZE, HOP, (SIZE - HOP) // 2)
        self.encoder = nn.Conv1d(1, SIZE + 2, *place, bias=False)
        self.decoder = nn.ConvTranspose1d(SIZE + 2, 1, *place, bias=False)
        self.masker = nn.Sequential(
            *(nn.GroupNorm(1, SIZE + 2), nn.Conv1d(SIZE + 2, channels, 1)),
            *(Block(channels, hidden, 2**number) for number in range(blocks)),
            *(nn.PReLU(), nn.Conv1d(channels, SIZE + 2, 1), nn.Sigmoid()),
        )
        nn.init.zeros_(self.masker[-2].weight)
        nn.init.ones_(self.masker[-2].bias)
        places = torch.arange(SIZE) + 0.5
        phase = 2 * torch.pi / SIZE * torch.arange(SIZE // 2 + 1).unsqueeze(1) * places
        waves = torch.cat([phase.cos(), phase.sin()]) * (torch.pi / SIZE * places).sin() * (2 / SIZE) ** 0.5
        for layer in (self.encoder, self.decoder):
            layer.weight.data = waves.unsqueeze(1).clone()

    def forward(self, noisy: Tensor) -> Tensor:
        """Mask the features of the noisy signal."""
        features = self.encoder(noisy)
        return self.decoder(features * self.masker((features.abs() + 1e-4).sqrt()))


class Mixtures:
    """Random mixtures of a second of speech with noise at -5 to 15 dB."""

    def __init__(self, data: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.files = {
            kind: sorted(
                path for path in (data / "train" / kind).rglob("*") if path.suffix in (".flac", ".opus", ".ogg")
            )
            for kind in ("speech", "noise")
        }

    def segment(self, kind: str) -> np.ndarray:
        """A second that is not silent."""
        while True:
            path = self.files[kind][self.rng.integers(len(self.files[kind]))]
            with soundfile.SoundFile(path) as file:
                if file.frames >= RATE and file.samplerate == RATE:
                    file.seek(int(self.rng.integers(file.frames - RATE + 1)))
                    signal = file.read(RATE, dtype="float32", always_2d=True)[:, 0]
                    if signal.std() > 1e-3:
                        return signal / signal.std()

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Noisy and clean, ``[size, 1, RATE]``."""
        clean = np.stack([self.segment("speech") for _ in range(size)])
        noise = np.stack([self.segment("noise") for _ in range(size)])
        gain = 10 ** (-self.rng.uniform(-5, 15, (size, 1)) / 20)
        pair = clean + gain * noise, clean
        return tuple(torch.from_numpy(0.1 * x.astype(np.float32)).unsqueeze(1) for x in pair)  # type: ignore[return-value]


def si_sdr(found: Tensor, clean: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio of every item, in dB."""
    found, clean = (x - x.mean(-1, keepdim=True) for x in (found, clean))
    target = (found * clean).sum(-1, keepdim=True) / clean.square().sum(-1, keepdim=True) * clean
    return 10 * (target.square().sum(-1) / (found - target).square().sum(-1).clamp(min=1e-8)).log10()


def loss_fn(found: Tensor, clean: Tensor) -> Tensor:
    """Minus SI-SDR."""
    return -si_sdr(found, clean).mean()


@torch.no_grad()
def score(network: nn.Module, folder: Path) -> float:
    """Mean SI-SDR over the validation mixtures, in dB."""
    scores = []
    for path in sorted((folder / "noisy").iterdir()):
        noisy, clean = (
            torch.from_numpy(soundfile.read(place / path.name, dtype="float32")[0][: 4 * RATE]).view(1, 1, -1)
            for place in (folder / "noisy", folder / "clean")
        )
        whole = noisy.shape[2] // HOP * HOP
        scores.append(float(si_sdr(network(noisy[..., :whole]), clean[..., :whole])))
    return float(np.mean(scores))


def main(
    data: Path,
    steps: Annotated[int, typer.Option(help="Of each of the two trainings, on the same mixtures.")] = 800,
    batch: Annotated[int, typer.Option(help="Mixtures per step.")] = 4,
    seed: Annotated[int, typer.Option(help="Of weights, mixtures and the widths that are drawn.")] = 0,
) -> None:
    """Train both networks and print what every width reaches."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    alone = ConvTasNet()
    # Slims it. The filters of encoder and decoder stay full: with a part of them, no mask gives the signal back.
    network = slimse.slimmify(copy.deepcopy(alone), torch.randn(1, 1, RATE // 10), cuts={"masker.*.inside.0": "output"})
    print(network.slimming)
    mixtures = Mixtures(data, seed)
    both = (alone, network)
    optimizers = [torch.optim.Adam(net.parameters()) for net in both]
    seconds, gained = [0.0, 0.0], list[float]()
    for step in range(1, steps + 1):
        noisy, clean = mixtures.batch(batch)
        for number, (net, optimizer) in enumerate(zip(both, optimizers, strict=True)):
            start = time.process_time()
            # Down to 0 along half a cosine.
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            # Of the second network, the sandwich rule trains all widths.
            loss = sandwich(net, (noisy, clean), loss_fn, distill=0) if number else loss_fn(net(noisy), clean)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            seconds[number] += time.process_time() - start
            if not number:
                gained.append(loss_fn(noisy, clean).item() - loss.item())
        if step % 50 == 0:
            print(f"step {step}: {np.mean(gained[-50:]):.2f} dB over the noisy signal, full width alone", flush=True)
    folder = data / "valid" / "mixed"
    print(f"\nSI-SDR of the first 4 s of each mixture of {folder}, {steps} steps of {batch} mixtures each\n")
    print("| network | MACs of 0.1 s | SI-SDR, dB | CPU seconds of training |\n| --- | ---: | ---: | ---: |")
    print(f"| none: the noisy signal | | {score(nn.Identity(), folder):.2f} | |")
    widths = network.slimming.widths
    print(f"| trained at full width alone | {widths[-1].macs:,} | {score(alone, folder):.2f} | {seconds[0]:.0f} |")
    for width in widths:
        with slimse.at(width.uf):
            quality = score(network, folder)
        print(f"| slimmed, UF {width.uf:g} | {width.macs:,} | {quality:.2f} | {seconds[1]:.0f} for all |")


if __name__ == "__main__":
    typer.run(main)
