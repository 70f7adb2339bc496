"""``slimse evaluate``: scores of a model at each UF, as table, CSV and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .. import checkpoint
from ..evaluation import METRICS, Report, check_metrics, evaluate_pairs, find_pairs
from ..evaluation.evaluate import label
from ..evaluation.routing import sentences, summarise


def _table(report: Report, count: int) -> Table:
    table = Table(title=f"Means over {count} file{'s' if count > 1 else ''} (more is better)")
    table.add_column("width")
    table.add_column("UF", justify="right")
    table.add_column("MACs/sample", justify="right", overflow="fold")
    for name in report.metrics:
        table.add_column(METRICS[name].title, justify="right", overflow="fold")
    for row in report.means():
        cells = [f"{row.values[n]:.{METRICS[n].digits}f}" + ("*" if n in row.excluded else "") for n in report.metrics]
        macs = "" if row.macs_per_sample is None else f"{row.macs_per_sample:,.0f}"
        average = "" if row.average_uf is None else f"{row.average_uf:.3g}"
        table.add_row(label(row.uf), average, macs, *(c.replace("nan", "-") for c in cells))
    return table


def _check_output(path: Path | None) -> None:
    """Fail before the long part, not after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{path.absolute().parent} is not a folder: expected an existing one for {path.name}")


def evaluate(
    noisy: Annotated[Path, typer.Argument(metavar="NOISY_DIR", help="Folder of noisy files.")],
    clean: Annotated[Path, typer.Argument(metavar="CLEAN_DIR", help="Folder of clean files of the same names.")],
    weights: Annotated[
        str, typer.Option(help="Bundled weights, or a .safetensors file.", show_default=True)
    ] = checkpoint.DEFAULT,
    uf: Annotated[list[float] | None, typer.Option(help="UF to score; repeatable. Default: all of the model.")] = None,
    budget: Annotated[
        list[float] | None, typer.Option(help="Budget of the router to score; repeatable. UFs are scored too.")
    ] = None,
    noisy_only: Annotated[bool, typer.Option("--noisy-only", help="Score the noisy input, without a model.")] = False,
    metrics: Annotated[str, typer.Option(help="Comma-separated scores.")] = ",".join(METRICS),
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one row per file and UF.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write means, files and versions.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first N pairs only.")] = None,
) -> None:
    """Score noisy and enhanced speech against clean speech, per UF: PESQ, STOI, ESTOI, SI-SDR, DNSMOS P.808 and OVRL.

    Files are matched by name, whatever their suffix, and compared at 16 kHz in mono.
    """
    _check_output(csv)
    _check_output(json)
    if noisy_only and (uf or budget):
        raise ValueError("--noisy-only scores no width: expected it without --uf and --budget")
    names = check_metrics(name.strip() for name in metrics.split(","))
    pairs = find_pairs(noisy, clean)[:limit]
    model = None if noisy_only else checkpoint.load(weights)
    # Shown on a terminal only, and not among the results.
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=len(pairs))
        report = evaluate_pairs(
            pairs,
            model,
            ufs=uf or None,
            budgets=budget or (),
            metrics=names,
            jobs=jobs,
            progress=lambda done: bar.update(task, completed=done),
        )
    console = Console()
    console.print(_table(report, len(pairs)))
    for note in report.notes():
        console.print(f"* {note}", style="yellow", highlight=False, markup=False)
    for sentence in sentences(report):
        console.print(sentence, highlight=False, markup=False)
    about: dict[str, Any] = {"noisy": str(noisy), "clean": str(clean), "weights": None, "config": None}
    if model is not None:
        about |= {"weights": weights, "config": model.config.to_dict(), "routing": summarise(report)}
    if csv is not None:
        report.write_csv(csv)
        console.print(f"wrote {csv}", highlight=False, markup=False)
    if json is not None:
        report.write_json(json, **about)
        console.print(f"wrote {json}", highlight=False, markup=False)
