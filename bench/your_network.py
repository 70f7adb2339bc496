"""What `slimse.slimmify` makes of networks that nobody wrote for it: errors, MACs and times, side by side.

    python bench/your_network.py && python bench/tables.py

The first writes bench/results/networks.json, the second puts its table into docs/your-network.md. Times are of one
thread, turns of all variants interleaved in one run, as ratios of the plain network's. Of each variant the lower fifth
of its times is taken, as other work on a machine only adds to them.
"""

from __future__ import annotations

import copy
import inspect
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from networks import NETWORKS
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import slimse

UFS = (0.125, 0.25, 0.5, 1.0)
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


def _times(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Seconds of every call, the lower fifth of those taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[next(iter(found))]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.quantiles(values, n=5)[0] for name, values in found.items()}


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
    calls = {"plain": lambda: network(*inputs), "extracted": lambda: small[0.25](*inputs)}
    times = _times({**calls, **{str(uf): at(uf) for uf in UFS}}, seconds)
    report = slim.slimming
    return {
        "network": name,
        "cut": sum(not group.full for group in report.groups),
        "groups": len(report.groups),
        "lines": LINES,
        "macs": [width.macs / report.widths[-1].macs for width in report.widths],
        "errors": [found[uf] for uf in UFS],
        "times": [times[str(uf)] / times["plain"] for uf in UFS],
        "extracted": times["extracted"] / times["plain"],
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
