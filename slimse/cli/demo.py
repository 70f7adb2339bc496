"""``slimse demo``: hear and see what a model does at each UF, and by its router."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..hub import DEFAULT
from .loading import make_ready
from .terminal import a_path, note

if TYPE_CHECKING:
    from rich.table import Table

    from ..demo import DemoRow


def _table(rows: list[DemoRow]) -> Table:
    from rich.table import Table

    table = Table()
    for title in ("width", "UF", "MACs/sample", "of UF 1", "seconds", "real-time factor"):
        table.add_column(title, justify="right")
    for row in rows:
        cost = f"{row.macs_per_sample:,.0f}", f"{row.share:.0%}"
        width = f"UF {row.uf:g}" if row.budget is None else f"budget {row.budget:g}"
        table.add_row(width, f"{row.uf:.3g}", *cost, f"{row.seconds:.2f}", f"{row.real_time_factor:.3f}")
    return table


def demo(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", parser=a_path, help="Noisy file. Default: a bundled clip.")
    ] = None,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", parser=a_path, help="Where to write; made if it is missing."),
    ] = Path("slimse-demo"),
    weights: Annotated[str, typer.Option(help="Bundled weights, or a .safetensors file.")] = DEFAULT,
    force: Annotated[bool, typer.Option("--force", help="Replace files of an earlier demo.")] = False,
) -> None:
    """Enhance a clip at each UF, and write a page to hear and see it."""
    from rich.console import Console

    from ..checkpoint import load
    from ..demo import bundled_clip, can_plot, run_demo

    model = make_ready(load(weights))
    rows = run_demo(bundled_clip() if file is None else file, output, model, force=force)
    console = Console()
    console.print(_table(rows))
    names = ["noisy.wav", *(row.path.name for row in rows), "demo.html", *(["demo.png"] * can_plot())]
    note("\n".join(textwrap.wrap(f"wrote {', '.join(names)} into", 80)))
    note(str(output.absolute()))
