"""Random networks, widths, levels, sounds and chunks through every runtime, against float64.

    python -m bench.reliability.fuzz_runtimes --minutes 10

Runtimes: ``offline`` is eager PyTorch on the whole signal. ``stream`` and ``compiled stream`` are a `Streamer` of the
eager and of the numba runtime, ``half`` the latter with weights rounded to float16. ``batch`` and ``compiled batch``
are a slot of a `StreamBatch` beside another. The reference is the same network in float64, offline.

An error is the norm of the difference over the norm of the reference (``output``), or over the louder of reference and
input (``signal``): the output of a network that removes its input says little of the numbers that it was made from.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch

import slimse
from bench.reliability.sounds import KINDS, LEVELS, exact, make_sound, signal_error
from slimse import ModelConfig, SlimDemucsConfig, SlimModel, Streamer
from slimse.serving import StreamBatch
from slimse.testing import relative_error


def random_network(rng: np.random.Generator) -> SlimModel:
    """Build a small causal network of any shape; at times with weights of another scale than the first ones."""
    stride, resample = (int(n) for n in ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))[rng.integers(5)])
    groups = int(rng.choice([1, 2]))
    config = SlimDemucsConfig(
        hidden=int(rng.choice([2, 4, 6, 8])) * groups,
        depth=int(rng.integers(1, 4)),
        stride=stride,
        kernel_size=stride * int(rng.integers(1, 3)),
        resample=resample,
        rnn=str(rng.choice(["gru", "lstm"])),
        groups=groups,
    )
    level = str(rng.choice(["running", "none"]))
    torch.manual_seed(int(rng.integers(2**31)))
    model = SlimModel(ModelConfig(config, level=level), runtime="eager").eval().requires_grad_(False)
    scale = float(rng.choice([1.0, 1.0, 2.0]))
    for parameter in model.parameters():
        parameter.mul_(scale)
    return model


def streamed(streamer: Streamer, noisy: torch.Tensor, uf: float, sizes: int | list[int]) -> torch.Tensor:
    """What a stream makes of a signal ``[T]`` in parts of these sizes, or of this one."""
    parts = noisy.split(sizes)
    return torch.cat([*(streamer.feed(part, uf) for part in parts), streamer.flush(uf)])


def batched(model: SlimModel, noisy: torch.Tensor, uf: float, runtime: str) -> torch.Tensor:
    """What a slot of a batch makes of whole hops ``[T]`` beside another slot that hears noise."""
    batch = StreamBatch(model, 2, runtime=runtime)
    slot, beside = batch.join(uf), batch.join(model.ufs[0])
    outputs = []
    for part in noisy.reshape(-1, model.geometry.hop):
        samples = torch.randn(2, model.geometry.hop)
        samples[slot] = part
        out, ready = batch.tick(samples)
        outputs.append(out[slot, : ready[slot]].clone())
    batch.leave(beside)
    return torch.cat([*outputs, batch.leave(slot)])


@torch.no_grad()
def trial(model: SlimModel, noisy: torch.Tensor, uf: float, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Errors of all runtimes on one sound, over the output and over the louder of output and input."""
    reference = exact(model)(noisy.double()[None, None], uf)[0, 0]
    most = int(rng.choice([3, 50, 400, 5000]))
    sizes = []
    while (left := len(noisy) - sum(sizes)) > 0:
        sizes.append(min(int(rng.integers(1, most + 1)), left))
    whole = noisy[: len(noisy) // model.geometry.hop * model.geometry.hop]
    runs: dict[str, Any] = {
        "offline": lambda: model(noisy[None, None], uf)[0, 0],
        "stream": lambda: streamed(Streamer(model, uf, runtime="eager"), noisy, uf, sizes),
        "compiled stream": lambda: streamed(Streamer(model, uf, runtime="numba"), noisy, uf, sizes),
        "half": lambda: streamed(Streamer(model, uf, runtime="numba", weights="float16"), noisy, uf, sizes),
    }
    if len(whole):
        runs["batch"] = lambda: batched(model, whole, uf, "eager")
        runs["compiled batch"] = lambda: batched(model, whole, uf, "numba")
    found = {}
    for name, run in runs.items():
        out = run()
        expected = reference
        if "batch" in name and len(whole) < len(noisy):
            expected = exact(model)(whole.double()[None, None], uf)[0, 0]
        if out.shape != expected.shape or not bool(out.isfinite().all()):
            raise AssertionError(f"{name}: {tuple(out.shape)} of {tuple(expected.shape)}, or not finite")
        found[name] = relative_error(out, expected), signal_error(out, expected, noisy)
    return found


def main() -> None:
    """Try for some minutes, and print the worst and the 99th percentile by runtime, and the worst by kind of sound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundled", action="store_true", help="the bundled weights, and no random networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    errors: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    end, seed, networks = time.monotonic() + 60 * options.minutes, options.seed, 0
    bundled = slimse.load(runtime="eager") if options.bundled else None
    while time.monotonic() < end:
        rng = np.random.default_rng([options.seed, seed])
        model = bundled or random_network(rng)
        networks += 1
        for _ in range(4):
            kind, level = str(rng.choice(list(KINDS))), float(rng.uniform(*LEVELS))
            noisy = make_sound(kind, int(rng.integers(1, 12_000)), level, rng)
            uf = float(rng.choice(model.ufs))
            for name, pair in trial(model, torch.from_numpy(noisy), uf, rng).items():
                errors[name].append((*pair, f"{kind}, {level:.0f} dBFS, UF {uf:g}, seed {seed}, {model.config.level}"))
        seed += 1
    print(f"{networks} networks, {len(errors['offline'])} sounds")
    for name, found in errors.items():
        for index, over in enumerate(("output", "signal")):
            values = sorted(found, key=lambda entry: entry[index])
            worst, most = values[-1], values[int(0.99 * len(values))][index]
            print(f"{name:16} over {over}: median {values[len(values) // 2][index]:.1e}, 99 % {most:.1e}, ", end="")
            print(f"worst {worst[index]:.1e} ({worst[2]})")


if __name__ == "__main__":
    main()
