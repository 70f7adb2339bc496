"""The most live streams that one CPU thread or GPU carries: the largest N whose 99th percentile tick is under 8 ms.

    python bench/serving.py --uf 0.25
    python bench/serving.py --uf mixed --backend torch --device cuda

A tick is a frame of every stream (16 ms of sound); 8 ms leave half the time for all else. Ticks run back to back.
``--uf mixed`` gives every stream a width of its own, in the shares that a router chooses at a budget of 0.25.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import numpy as np
import torch

from slimse import SlimDemucs
from slimse.serving import StreamBatch

SHARES = (0.33, 0.40, 0.25, 0.02)
"""Shares of the UFs at a target of 0.25 (arXiv 2507.04879)."""


def tick_ms(model: SlimDemucs, streams: int, args: argparse.Namespace) -> float:
    """The chosen quantile of a tick with so many streams, in ms."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    batch = StreamBatch(model, streams, backend=args.backend)
    for _ in range(streams):
        if args.uf == "mixed":
            uf = model.config.ufs[int(torch.multinomial(torch.tensor(SHARES), 1, generator=generator))]
        else:
            uf = float(args.uf)
        batch.join(uf)
    samples = (0.05 * torch.randn(streams, model.hop, generator=generator)).to(device)
    times = []
    for tick in range(args.ticks + 10):
        start = time.perf_counter()
        batch.tick(samples)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if tick >= 10:
            times.append(time.perf_counter() - start)
    return 1000 * float(np.quantile(times, args.quantile))


def largest(model: SlimDemucs, args: argparse.Namespace) -> tuple[int, float]:
    """The largest number of streams that stays under the limit, and its tick."""
    good, good_ms, bad = 0, 0.0, None
    trial = 8
    while bad is None or bad - good > max(good // 32, 1):
        ms = tick_ms(model, trial, args)
        if ms < args.limit:
            good, good_ms = trial, ms
        else:
            bad = trial
        trial = 2 * good if bad is None else (good + bad) // 2
        if trial in (0, good):
            break
    return good, good_ms


def main() -> None:
    """Search and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uf", default="0.25", help="width of all streams, or mixed")
    parser.add_argument("--backend", default="auto", help="auto, torch or numba")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, default=8.0, help="ms of a tick")
    parser.add_argument("--quantile", type=float, default=0.99, help="of the ticks; lower where others use the machine")
    parser.add_argument("--ticks", type=int, default=200, help="ticks of each trial")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = SlimDemucs().eval().requires_grad_(False).to(args.device)
    streams, ms = largest(model, args)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine()
    result = {"streams": streams, "tick_ms": round(ms, 2), "device": name, "torch": torch.__version__}
    print(json.dumps(vars(args) | result))


if __name__ == "__main__":
    main()
