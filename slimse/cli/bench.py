"""``slimse bench``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ..hub import DEFAULT

if TYPE_CHECKING:
    from rich.table import Table

    from ..benchmark import Benchmark


def bench(
    model: Annotated[str, typer.Argument(help="A preset, bundled weights, or a .safetensors file.")] = DEFAULT,
    budget: Annotated[float, typer.Option(help="Mean width for the router, if the model has one.")] = 0.25,
    rounds: Annotated[int, typer.Option(help="Turns of all runtimes and widths: more are steadier.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time every runtime at every width on this machine.

    It takes under a minute, on one thread.
    """
    from rich.console import Console

    from ..benchmark import benchmark as measure
    from ..checkpoint import load
    from ..config import PRESETS
    from ..model import SlimModel

    network = SlimModel(PRESETS[model]).eval().requires_grad_(False) if model in PRESETS else load(model)
    if not network.causal:
        raise ValueError(f"{model} is bidirectional: expected a causal model, which can stream")
    result = measure(network, budget=budget, rounds=rounds)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    console = Console()
    console.print(_table(result, model))
    for name, reason in result.missing.items():
        console.print(f"{name} was not timed: {reason}", highlight=False)
    console.print(result.sentence(), highlight=False)


def _table(result: Benchmark, model: str) -> Table:
    from rich import box
    from rich.table import Table

    router = "" if result.budget is None else f"\nrouter: for a budget of {result.budget:g}"
    table = Table(
        title=f"{model}: one CPU thread, frames back to back, medians{router}",
        caption="streams: that one core carries live; offline: times real time; MACs, time: saved, against the widest",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("runtime")
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
