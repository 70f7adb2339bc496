"""What `slimse.slimmify` makes of networks that nobody wrote for it: errors, MACs and times, side by side.

    python -m bench.your_network && python -m bench.tables

The first writes bench/results/networks.json, the second puts its table into docs/your-network.md. Times are of one
thread. Every call is timed between two of the plain network; its time over their mean is one ratio, and the median of
many ratios is reported. So other work on the machine, which slows down all three alike, does not count.
"""

from __future__ import annotations

import copy
import inspect
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import slimse
from bench.networks import NETWORKS

UFS = (0.125, 0.25, 0.5, 1.0)
FEWEST = 25
"""Ratios per variant, however short the time."""
RESULTS = Path(__file__).resolve().parent / "results" / "networks.json"


def use(network: nn.Module, example: tuple[Tensor, ...], inputs: tuple[Tensor, ...], uf: float) -> Any:
    """Slim a network and run it."""
    slim = slimse.slimmify(network, example)
    with slimse.at(uf):
        return slim(*inputs)


LINES = len(inspect.getsource(use).strip().splitlines()) - 2
"""Of code that a user writes to slim a network and run it: the same for every network."""


def _error(found: Any, expected: Any) -> float:
    pairs = zip(*([x for x in tree_leaves(out) if isinstance(x, Tensor)] for out in (found, expected)), strict=True)
    return max(float((a - b).abs().square().sum() / b.abs().square().sum()) ** 0.5 for a, b in pairs)


def _ratios(plain: Callable[[], Any], calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Times of every call over those of the plain calls right before and after it, many of each."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for call in (plain, *calls.values()):
        call()
    end = time.perf_counter() + seconds
    before = _seconds(plain)
    while time.perf_counter() < end or len(found[next(iter(found))]) < FEWEST:
        for name in order.sample(sorted(calls), len(calls)):
            own, after = _seconds(calls[name]), _seconds(plain)
            found[name].append(2 * own / (before + after))
            before = after
    return found


def _seconds(call: Callable[[], Any]) -> float:
    """Of the processor: what the machine does meanwhile for others is not in it."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.no_grad()
def measure(name: str, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    case = NETWORKS[name]
    torch.manual_seed(0)
    network = case.make(False).eval()
    example, inputs = case.inputs(network, 1, 2), case.inputs(network, 1, case.length)
    slim: Any = copy.deepcopy(network)
    found = {1.0: _error(use(slim, example, inputs, 1.0), network(*inputs))}
    small = {uf: slimse.extract(slim, uf) for uf in UFS[:-1]}

    def at(uf: float) -> Callable[[], Any]:
        def call() -> Any:
            with slimse.at(uf):
                return slim(*inputs)

        return call

    found |= {uf: _error(at(uf)(), small[uf](*inputs)) for uf in small}
    calls = {"extracted": lambda: small[0.25](*inputs), **{str(uf): at(uf) for uf in UFS}}
    ratios = _ratios(lambda: network(*inputs), calls, seconds)
    times = {name: statistics.median(values) for name, values in ratios.items()}
    report = slim.slimming
    return {
        "network": name,
        "cut": sum(not group.full for group in report.groups),
        "groups": len(report.groups),
        "lines": LINES,
        "macs": [width.macs / report.widths[-1].macs for width in report.widths],
        "errors": [found[uf] for uf in UFS],
        "times": [times[str(uf)] for uf in UFS],
        "extracted": times["extracted"],
        "pairs": len(ratios["extracted"]),
        "missing": "",
    }


def main(
    seconds: Annotated[float, typer.Option(help="Of timing per network.")] = 5.0,
    only: Annotated[str, typer.Option(help="Networks whose names have this in them; others keep their rows.")] = "",
    out: Annotated[Path, typer.Option(help="JSON file that holds the rows.")] = RESULTS,
) -> None:
    """Measure, and write the rows after each network."""
    torch.set_num_threads(1)
    rows = {row["network"]: row for row in json.loads(out.read_text(encoding="utf-8"))} if out.exists() else {}
    for name, case in NETWORKS.items():
        if only in name:
            rows[name] = {"network": name, "missing": case.missing} if case.missing else measure(name, seconds)
            print(json.dumps(rows[name]), flush=True)
            kept = [rows[known] for known in NETWORKS if known in rows]
            out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
