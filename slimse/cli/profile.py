"""``slimse profile``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ..profiling import ModelProfile
    from ..slimmify import SlimmingReport


def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="A preset, bundled weights, a .safetensors file, or module:function that makes a slimmed network."
        ),
    ] = "paper",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what each width costs: MACs by block, weights, latency."""
    from rich.console import Console

    from ..checkpoint import load
    from ..config import PRESETS
    from ..model import SlimModel
    from ..profiling import profile as measure

    if ":" in model and not Path(model).exists():
        report = _slimming(model)
        print(json.dumps(report.to_dict(), indent=2) if as_json else report)
        return
    try:
        result = measure(SlimModel(PRESETS[model]) if model in PRESETS else load(model))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or a preset of {sorted(PRESETS)}") from error
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    console = Console()
    console.print(_table(result, model))
    latency = "needs the whole signal" if result.latency_ms is None else f"{result.latency_ms:.1f} ms"
    console.print(
        f"{result.parameters:,} parameters; one frame is {result.hop} samples "
        f"({1000 * result.hop / result.sample_rate:.1f} ms); algorithmic latency {latency}"
    )


def _slimming(name: str) -> SlimmingReport:
    """The report of the network that ``package.module:function`` makes; modules of the current folder are found too."""
    from ..slimmify import SlimmingReport

    module_name, _, function = name.partition(":")
    sys.path.append(str(Path.cwd()))
    try:
        network = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model = {name!r}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    report = getattr(network, "slimming", None)
    if not isinstance(report, SlimmingReport):
        raise ValueError(f"model = {name!r}: it makes a {type(network).__name__}, expected one that slimmify returned")
    return report


def _table(result: ModelProfile, model: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{model}: multiply-accumulates per input sample")
    table.add_column("block")
    for width in result.widths:
        table.add_column(f"UF {width.uf:g}", justify="right")
    for block in result.widths[0].blocks:
        table.add_row(block, *(f"{width.blocks[block]:,.0f}" for width in result.widths))
    table.add_section()
    table.add_row("total", *(f"{width.macs_per_sample:,.0f}" for width in result.widths))
    if result.router_macs_per_sample is not None:
        # Beside the widths, not in them: it runs only where it chooses.
        table.add_row("router", *[f"+{result.router_macs_per_sample:,.0f}"] * len(result.widths))
    widest = result.widths[-1].macs_per_sample
    table.add_row("saving", *(f"{widest / width.macs_per_sample:.2f}x" for width in result.widths))
    table.add_row("MMAC/s", *(f"{width.macs_per_sample * result.sample_rate / 1e6:,.0f}" for width in result.widths))
    table.add_row("weight kB per frame", *(f"{width.weight_bytes_per_frame / 1000:,.0f}" for width in result.widths))
    return table
