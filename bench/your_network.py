"""What `slimse.slimmify` makes of networks that nobody wrote for it: errors, MACs and times, side by side.

    python bench/your_network.py --out docs/your-network-table.md

Times are of one thread, turns of all variants interleaved in one run, medians as ratios of the plain network's.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from networks import NETWORKS
from torch import Tensor
from torch.utils._pytree import tree_leaves

import slimse

UFS = (0.125, 0.25, 0.5, 1.0)
HEADER = (
    "| network | groups cut | MACs at 0.125, 0.25, 0.5 | largest error | time at UF 1 | at 0.25 | extract(0.25) "
    "| saved of what extract saves |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def _error(found: Any, expected: Any) -> float:
    pairs = zip(*([x for x in tree_leaves(out) if isinstance(x, Tensor)] for out in (found, expected)), strict=True)
    return max(float((a - b).abs().square().sum() / b.abs().square().sum()) ** 0.5 for a, b in pairs)


def _times(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median seconds of every call, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[next(iter(found))]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


@torch.no_grad()
def measure(name: str, seconds: float, length: int) -> str:
    """One row of the table."""
    case = NETWORKS[name]
    if case.missing:
        return f"| {name} | not measured: {case.missing} | | | | | | |"
    torch.manual_seed(0)
    network = case.make(False).eval()
    slim = slimse.slimmify(copy.deepcopy(network), case.inputs(network, 1, 2))
    inputs = case.inputs(network, 1, length)
    errors = []
    for uf in UFS:
        small = slimse.extract(slim, uf)
        with slimse.at(uf):
            errors.append(_error(slim(*inputs), small(*inputs)))
    errors.append(_error(slim(*inputs), network(*inputs)))
    quarter = slimse.extract(slim, 0.25)

    def at(uf: float) -> Callable[[], Any]:
        def call() -> None:
            with slimse.at(uf):
                slim(*inputs)

        return call

    calls = {"plain": lambda: network(*inputs), "full": at(1.0), "quarter": at(0.25), "small": lambda: quarter(*inputs)}
    times = _times(calls, seconds)
    full, narrow, small_time = (times[key] / times["plain"] for key in ("full", "quarter", "small"))
    report = slim.slimming
    cut = sum(not group.full for group in report.groups)
    macs = ", ".join(f"{width.macs / report.widths[-1].macs:.2f}" for width in report.widths[:-1])
    saved = f"{(1 - narrow) / (1 - small_time):.2f}" if small_time < 0.97 else "-"
    return (
        f"| {name} | {cut} of {len(report.groups)} | {macs} | {max(errors):.0e} | {full:.2f} | {narrow:.2f} "
        f"| {small_time:.2f} | {saved} |"
    )


def main(
    seconds: Annotated[float, typer.Option(help="Of timing per network.")] = 10.0,
    length: Annotated[int, typer.Option(help="Of the signals, in tenths of a second.")] = 20,
    only: Annotated[str, typer.Option(help="Networks whose names have this in them.")] = "",
    out: Annotated[Path | None, typer.Option(help="Markdown file to write the table to.")] = None,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = [HEADER]
    print(HEADER)
    for name in NETWORKS:
        if only in name:
            rows.append(measure(name, seconds, length))
            print(rows[-1], flush=True)
    if out is not None:
        out.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    typer.run(main)
