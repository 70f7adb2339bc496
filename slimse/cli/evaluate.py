"""``slimse evaluate``: scores of a model at each UF, as table, CSV and JSON."""

from __future__ import annotations

import json as jsonlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..hub import DEFAULT
from .terminal import a_path, is_quiet, note, say

if TYPE_CHECKING:
    from ..evaluation import Interval, Report
    from ..evaluation.results import Width


def _earlier(path: Path) -> dict[str, Any]:
    try:
        content = jsonlib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no report: {error}; expected what --json writes") from error
    if not isinstance(content, dict) or not {"metrics", "files"} <= content.keys():
        raise ValueError(f"{path} is no report: expected what --json writes")
    return content


def _check_output(path: Path | None) -> None:
    """Fail before the long part, not after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(f"{path.absolute().parent} is not a folder: expected an existing one for {path.name}")
    if path is not None and path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file to write")


def _show(report: Report, scored: int, title: str, differences: dict[Width, dict[str, Interval]]) -> None:
    """Print all tables; ``title`` is that of the differences, if there are any."""
    from rich.console import Console

    from ..evaluation import Dynamic
    from ..evaluation.routing import line_distances
    from ..evaluation.tables import difference_table, score_table

    console = Console()
    console.print(score_table(report, scored))
    for failure in report.failures:
        say(f"left out: {failure.reason}")
    for remark in report.notes():
        console.print(f"* {remark}", style="yellow", highlight=False, markup=False)
    distances: dict[Width, dict[str, Interval]] = {
        Dynamic(budget): rows for budget, rows in line_distances(report).items()
    }
    if distances:
        console.print(difference_table("Above the line between the fixed widths, at equal MACs", report, distances))
    if differences:
        console.print(difference_table(title, report, differences))


def _plain(differences: dict[Width, dict[str, Interval]]) -> list[dict[str, Any]]:
    """Differences as JSON holds them."""
    from ..evaluation import Dynamic
    from ..evaluation.results import budget_of

    return [
        {"budget": budget_of(uf), "uf": None if isinstance(uf, Dynamic) else uf}
        | {name: found._asdict() for name, found in row.items() if not math.isnan(found.mean)}
        for uf, row in differences.items()
    ]


def evaluate(
    noisy: Annotated[Path, typer.Argument(metavar="NOISY_DIR", parser=a_path, help="Folder of noisy files.")],
    clean: Annotated[
        Path, typer.Argument(metavar="CLEAN_DIR", parser=a_path, help="Folder of clean files of the same names.")
    ],
    weights: Annotated[str, typer.Option(help="Bundled weights, or a .safetensors file.", show_default=True)] = DEFAULT,
    uf: Annotated[list[float] | None, typer.Option(help="UF to score; repeatable. Default: all of the model.")] = None,
    budget: Annotated[list[float] | None, typer.Option(help="Budget to score, besides the UFs; repeatable.")] = None,
    noisy_only: Annotated[bool, typer.Option("--noisy-only", help="Score the noisy input, without a model.")] = False,
    metrics: Annotated[str, typer.Option(help="Comma-separated names of scores. Default: all but distillmos.")] = "",
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=a_path, help="Write one row per file and UF.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=a_path, help="Write means, files and versions.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first N pairs only.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="JSON", parser=a_path, help="An earlier report of --json to compare with."),
    ] = None,
) -> None:
    """Score noisy and enhanced speech against clean speech.

    For each UF: PESQ (wide-band, P.862.2), STOI, ESTOI, SI-SDR (zero-mean, in dB), DNSMOS P.808 and OVRL; DistillMOS
    on request. Files of one name are a pair, whatever their suffix, and are compared whole, at 16 kHz, in mono. Behind
    the ± are half widths of 95 % bootstrap intervals over files. A budget is compared with the line between the fixed
    widths at equal MACs; those of the router count.

    Exit status: 0 if all pairs were scored, 1 if some were not, 2 if none was.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ..checkpoint import load
    from ..evaluation import DEFAULT_METRICS, check_metrics, evaluate_pairs, find_pairs
    from ..evaluation.routing import summarise

    _check_output(csv)
    _check_output(json)
    if noisy_only and (uf or budget):
        raise ValueError("--noisy-only scores no width: expected it without --uf and --budget")
    earlier = None if against is None else _earlier(against)
    names = check_metrics(name.strip() for name in metrics.split(",")) if metrics else DEFAULT_METRICS
    pairs = find_pairs(noisy, clean)[:limit]
    model = None if noisy_only else load(weights)
    # Shown on a terminal only, and not among the results.
    with Progress(console=Console(stderr=True), transient=True, disable=is_quiet()) as bar:
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
    differences = {} if earlier is None else report.differences(earlier)
    _show(report, len(pairs) - len(report.failures), f"Better than in {against}", differences)
    about: dict[str, Any] = {"noisy": str(noisy), "clean": str(clean), "weights": None, "config": None}
    if model is not None:
        about |= {"weights": weights, "config": model.config.to_dict(), "routing": summarise(report)}
    if differences:
        about["differences"] = _plain(differences)
    if csv is not None:
        report.write_csv(csv)
        note(f"wrote {csv}")
    if json is not None:
        report.write_json(json, **about)
        note(f"wrote {json}")
    if report.failures:
        raise typer.Exit(1)
