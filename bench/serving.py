"""The most live streams that one CPU thread or GPU carries: the largest N whose 99th percentile tick is under 8 ms.

    python -m bench.serving --uf 0.25
    python -m bench.serving --budget 0.25
    python -m bench.serving --budget 0.25 --runtime eager --device cuda --at 10000

A tick is a frame of every stream (16 ms of sound); 8 ms leave half the time for all else. Ticks run back to back. The
streams play the bundled noisy clip, each from a place of its own. With ``--budget`` the router of the bundled weights
runs inside of the tick and chooses the widths; with ``--uf mixed`` every stream has a width of its own, in the shares
that a router chooses at a budget of 0.25.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter

import numpy as np
import soundfile
import torch
from torch import Tensor

import slimse
from slimse import SlimModel
from slimse.demo import bundled_clip
from slimse.serving import StreamBatch

SHARES = (0.33, 0.40, 0.25, 0.02)
"""Shares of the UFs at a target of 0.25 (arXiv 2507.04879)."""
WARM_UP = 20
"""Ticks before the first that counts: all streams have had their first frames then."""


def filled(model: SlimModel, streams: int, args: argparse.Namespace) -> StreamBatch:
    """A batch with so many streams."""
    generator = torch.Generator().manual_seed(0)
    batch = StreamBatch(model, streams, runtime=args.runtime)
    drawn = torch.multinomial(torch.tensor(SHARES), streams, replacement=True, generator=generator).tolist()
    for index in drawn:
        if args.budget is not None:
            batch.join(budget=args.budget)
        else:
            batch.join(model.ufs[index] if args.uf == "mixed" else float(args.uf))
    return batch


def sounds(model: SlimModel, streams: int) -> tuple[Tensor, Tensor]:
    """The clip, and where in it each stream takes its next hop: ``[streams, hop]``."""
    clip, rate = soundfile.read(bundled_clip(), dtype="float32")
    if rate != model.sample_rate:
        raise ValueError(f"the bundled clip has {rate} Hz: expected {model.sample_rate}")
    starts = torch.randint(len(clip), (streams, 1), generator=torch.Generator().manual_seed(1))
    device = next(model.parameters()).device
    return torch.from_numpy(clip).to(device), (starts + torch.arange(model.geometry.hop)).to(device)


@torch.no_grad()
def ticks_ms(model: SlimModel, streams: int, args: argparse.Namespace) -> tuple[np.ndarray, float]:
    """Milliseconds of ticks with so many streams, and the mean UF of their frames."""
    batch, (clip, places) = filled(model, streams, args), sounds(model, streams)
    times, ufs = [], Counter[float]()
    for tick in range(args.ticks + WARM_UP):
        samples = clip[(places + tick * model.geometry.hop) % len(clip)]
        if samples.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        batch.tick(samples)
        if samples.is_cuda:
            torch.cuda.synchronize()
        if tick >= WARM_UP:
            times.append(1000 * (time.perf_counter() - start))
            ufs.update(batch.ufs.tolist())
    return np.array(times), sum(uf * count for uf, count in ufs.items()) / ufs.total()


def largest(model: SlimModel, args: argparse.Namespace) -> int:
    """The largest number of streams whose ticks stay under the limit, within a thirty-second."""
    good, bad, trial = 0, None, 8
    while bad is None or bad - good > max(good // 32, 1):
        if np.quantile(ticks_ms(model, trial, args)[0], args.quantile) < args.limit:
            good = trial
        else:
            bad = trial
        trial = 2 * good if bad is None else (good + bad) // 2
    return good


def describe(model: SlimModel, streams: int, args: argparse.Namespace) -> dict[str, object]:
    """Ticks with so many streams, measured anew."""
    times, mean_uf = ticks_ms(model, streams, args)
    quantiles = {f"p{100 * q:g}": round(float(np.quantile(times, q)), 2) for q in (0.5, 0.99, 1)}
    return {"streams": streams, "tick_ms": quantiles, "mean_uf": round(mean_uf, 3)}


def main() -> None:
    """Search and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    widths = parser.add_mutually_exclusive_group()
    widths.add_argument("--uf", default="0.25", help="width of all streams, or mixed")
    widths.add_argument("--budget", type=float, help="let the router choose, for this mean UF")
    parser.add_argument("--runtime", default="auto", help="auto, eager, cuda-graph or numba")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--at", type=int, help="do not search: time this many streams")
    parser.add_argument("--limit", type=float, default=8.0, help="ms of a tick")
    parser.add_argument("--quantile", type=float, default=0.99, help="of the ticks; lower where others use the machine")
    parser.add_argument("--ticks", type=int, default=500, help="ticks of each trial")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = slimse.load(device=args.device)
    streams = largest(model, args) if args.at is None else args.at
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine()
    result = describe(model, streams, args) if streams else {"streams": 0}
    print(json.dumps(vars(args) | result | {"device": name, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
