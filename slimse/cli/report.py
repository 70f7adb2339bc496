"""``slimse report``: what widths cost and give, as pictures on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..hub import DEFAULT
from .terminal import a_path, is_quiet, note, say


def report(
    noisy: Annotated[Path, typer.Argument(metavar="NOISY_DIR", parser=a_path, help="Folder of noisy files.")],
    clean: Annotated[
        Path, typer.Argument(metavar="CLEAN_DIR", parser=a_path, help="Folder of clean files of the same names.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", parser=a_path, help="Where to write; made if it is missing."),
    ] = Path("slimse-report"),
    weights: Annotated[str, typer.Option(help="Weights with a router: bundled, or a .safetensors file.")] = DEFAULT,
    budget: Annotated[list[float] | None, typer.Option(help="Budget; repeatable. Default: 0.15 0.25 0.5 0.75.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first N pairs only.")] = None,
) -> None:
    """Write a page of pictures: quality over cost, and the router."""
    from rich.console import Console
    from rich.progress import Progress

    from ..checkpoint import load
    from ..demo import check_plotting

    check_plotting()
    from ..evaluation import find_pairs
    from ..report import write_report

    pairs = find_pairs(noisy, clean)[:limit]
    model = load(weights)
    name = weights if weights == DEFAULT else Path(weights).name
    with Progress(console=Console(stderr=True), transient=True, disable=is_quiet()) as bar:
        task = bar.add_task("scoring", total=len(pairs))
        scores = write_report(
            model,
            name,
            pairs,
            output,
            budget or (0.15, 0.25, 0.5, 0.75),
            jobs=jobs,
            progress=lambda done: bar.update(task, completed=done),
        )
    note(f"wrote report.html, report.json and pictures into {output.absolute()}")
    for failure in scores.failures:
        say(f"left out: {failure.reason}")
    if scores.failures:
        raise typer.Exit(1)
