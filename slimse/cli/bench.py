"""``slimse bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..hub import DEFAULT

if TYPE_CHECKING:
    from rich.table import Table

    from ..benchmark import Benchmark, Load


def bench(
    model: Annotated[str, typer.Argument(help="A preset, bundled weights, or a .safetensors file.")] = DEFAULT,
    budget: Annotated[float, typer.Option(help="Mean width for the router, if the model has one.")] = 0.25,
    rounds: Annotated[int, typer.Option(help="Turns of all runtimes and widths: more are steadier.", min=1)] = 10,
    streams: Annotated[
        int | None, typer.Option(help="Run so many live streams at the budget instead, for ROUNDS seconds.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time every runtime at every width on this machine.

    It takes under a minute, on one thread.
    """
    from ..benchmark import benchmark as measure
    from ..benchmark import live_load
    from ..checkpoint import load
    from ..config import PRESETS
    from ..model import SlimModel

    network = SlimModel(PRESETS[model]).eval().requires_grad_(False) if model in PRESETS else load(model)
    if not network.causal:
        raise ValueError(f"{model} is bidirectional: expected a causal model, which can stream")
    if streams is not None:
        loads, missing = live_load(network, streams, budget=budget, seconds=rounds)
        if as_json:
            print(json.dumps({"loads": [asdict(load) for load in loads], "missing": missing}, indent=2))
        else:
            choice = "UF 1" if network.router is None else f"a budget of {budget:g}"
            _print(_load_table(loads, f"{streams} live streams of {model} at {choice}"), missing)
        return
    result = measure(network, budget=budget, rounds=rounds)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    _print(_table(result, model), result.missing, result.sentence())


def _print(table: Table, missing: dict[str, str], sentence: str = "") -> None:
    from rich.console import Console

    console = Console()
    console.print(table)
    for line in (*(f"{name} was not timed: {reason}" for name, reason in missing.items()), sentence):
        if line:
            console.print(line, highlight=False)


def _new_table(title: str, caption: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("runtime")
    return table


def _load_table(loads: list[Load], title: str) -> Table:
    table = _new_table(f"{title}, one CPU thread", "ms: for 20 ms of one stream, paced as in live use")
    for name in ("of a core", "p50, ms", "p99, ms", "max, ms"):
        table.add_column(name, justify="right")
    for load in loads:
        values = (f"{value:.3f}" for value in (load.p50, load.p99, load.worst))
        table.add_row(load.runtime, f"{100 * load.core:.1f} %", *values)
    return table


def _table(result: Benchmark, model: str) -> Table:
    router = "" if result.budget is None else f"\nrouter: for a budget of {result.budget:g}"
    table = _new_table(
        f"{model}: one CPU thread, frames back to back, medians{router}",
        "streams: that one core carries live; offline: times real time; MACs, time: saved, against the widest",
    )
    for name in ("UF", "ms/frame", "of a core", "streams", "offline", "MACs", "time"):
        table.add_column(name, justify="right")
    for runtime, random in result.random.items():
        for timing in (timing for timing in result.timings if timing.runtime == runtime):
            table.add_row(
                runtime,
                "router" if timing.uf is None else f"{timing.uf:g}",
                f"{timing.frame_ms:.3f}",
                f"{100 * timing.load:.1f} %",
                str(timing.streams_per_core),
                "" if timing.offline is None else f"{timing.offline:.0f}x",
                f"{timing.mac_saving:.2f}x",
                f"{timing.saving:.2f}x",
            )
        table.add_row(runtime, "random", f"{random:.3f}")
        table.add_section()
    return table
